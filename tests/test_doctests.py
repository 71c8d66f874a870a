"""Every example in a docstring runs as a user would run it: in float32, with JAX's own promotion."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import jax
import pytest

import experiments
import jaxopt_course

ROOT = Path(__file__).parent.parent


def modules(package: ModuleType) -> list[ModuleType]:
    names = [package.__name__]
    names += [
        m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".") if "__main__" not in m.name
    ]
    return [importlib.import_module(name) for name in names]


def examples() -> list[doctest.DocTest]:
    """One a docstring. Unwrapped by hand: doctest's own finder passes over decorated functions in silence."""
    found = {}
    for module in [m for package in (jaxopt_course, experiments) for m in modules(package)]:
        for name, thing in vars(module).items():
            docstring = inspect.getdoc(thing) if getattr(thing, "__module__", None) == module.__name__ else None
            if docstring and ">>>" in docstring:
                full_name = f"{module.__name__}.{name}"
                found[full_name] = doctest.DocTestParser().get_doctest(
                    docstring, dict(vars(module)), full_name, module.__file__, 0
                )
    return list(found.values())


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_docstring(example: doctest.DocTest) -> None:
    run(example)


def test_every_public_function_has_an_example() -> None:
    documented = {example.name.rsplit(".", 1)[-1] for example in examples()}
    public = [getattr(jaxopt_course, name) for name in jaxopt_course.__all__ if name != "plots"]
    for module in (jaxopt_course.scores, jaxopt_course.losses):
        public += [f for f in vars(module).values() if getattr(f, "__module__", None) == module.__name__]
    names = {f.__name__ for f in public if inspect.isfunction(f) and not f.__name__.startswith("_")}
    assert {"adam", "linear", "softmax_cross_entropy", "train"} <= names
    assert names <= documented


def run(example: doctest.DocTest) -> None:
    assert example.examples
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert result.failed == 0, f"{result.failed} of {result.attempted} lines of {example.name} failed; see above"
