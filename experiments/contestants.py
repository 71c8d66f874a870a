"""The contestants of races: every first-order rule of ours with the equal optax call, and rules by name.

Each factory is `learning_rate, ... -> optimizer`, with the lecture's defaults; hyperparameters may be traced.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import jaxopt_course as jc
from experiments.arguments import FORMS, UsageError, is_external
from experiments.loading import attribute, describe_error, load_file, load_module

TRIED_RATE = 0.01
GIVEN: dict[str, dict[str, Any]] = {"noisy_sgd": {"key": 0}}  # arguments that optax's aliases need beside the rate


class Contestant(NamedTuple):
    """A label, a factory, and the factory of the optax optimizer that is the same rule, or None."""

    label: str
    make: Callable[..., optax.GradientTransformation]
    twin: Callable[..., optax.GradientTransformation] | None = None


def optax_adagrad(learning_rate: Any, eps: Any = 1e-7) -> optax.GradientTransformation:
    """AdaGrad built from optax's RMSProp: a running mean over t steps is the sum divided by t, and sqrt(t) cancels.

    `optax.adagrad` is a different rule: it starts from 0.1 and has epsilon inside the root.
    """
    return optax.inject_hyperparams(optax.rmsprop, static_args=("eps_in_sqrt",))(
        learning_rate=lambda t: learning_rate / jnp.sqrt(t.astype(float) + 1),
        decay=lambda t: t.astype(float) / (t.astype(float) + 1),
        eps=lambda t: eps / jnp.sqrt(t.astype(float) + 1),
        eps_in_sqrt=False,
    )


def optax_adam_uncorrected(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-7
) -> optax.GradientTransformation:
    """Adam without bias correction built from optax's Adam: the counter is so high that the correction is 1."""
    adam = optax.adam(learning_rate, b1, b2, eps=eps)

    def init(params: Any) -> Any:
        return optax.tree.set(adam.init(params), count=jnp.asarray(2**30, jnp.int32))

    return optax.GradientTransformation(init, adam.update)


CONTESTANTS: dict[str, Contestant] = {
    "sgd": Contestant("SGD", jc.sgd, optax.sgd),
    "momentum": Contestant("Momentum", jc.momentum, partial(optax.sgd, momentum=0.9)),
    "nesterov": Contestant(
        "Nesterov", partial(jc.momentum, nesterov=True), partial(optax.sgd, momentum=0.9, nesterov=True)
    ),
    "adagrad": Contestant("AdaGrad", jc.adagrad, optax_adagrad),
    "rmsprop": Contestant("RMSProp", jc.rmsprop, partial(optax.rmsprop, decay=0.99, eps=1e-7, eps_in_sqrt=False)),
    "adam_uncorrected": Contestant(
        "Adam, no correction", partial(jc.adam, bias_correction=False), optax_adam_uncorrected
    ),
    "adam": Contestant("Adam", jc.adam, partial(optax.adam, eps=1e-7)),
}


@cache
def contestant(name: str) -> Contestant:
    """Look up the rule for a name on the command line.

    Args:
      name: a name in `CONTESTANTS`, `optax.lion`, `path/to/file.py:factory` or `package.module:factory`. A factory
        takes hyperparameters, the learning rate first, and returns an optax transformation.

    Raises:
      UsageError: there is no such name, file, module or function; the file raises when it is loaded; or the function
        does not make an optimizer from a learning rate.
    """
    if name in CONTESTANTS:
        return CONTESTANTS[name]
    place, colon, function = name.rpartition(":")
    if colon:
        is_file = place.endswith(".py") or "/" in place
        module = load_file(place) if is_file else load_module(place)
        label, factory = f"{Path(place).name if is_file else place}:{function}", attribute(module, function, place)
    elif name.startswith("optax."):
        label, factory = name, _of_optax(name)
    else:
        raise UsageError(f"{name} is none of {FORMS}")
    _check_factory(name, factory)
    return Contestant(label, factory)


def contestants(names: Iterable[str], known: Iterable[str] = CONTESTANTS) -> dict[str, Contestant]:
    """Look up the rules of several names, without repetition; `known`: names to list in the error for an unknown name.

    Raises:
      UsageError: as `contestant`, or if two rules have the same label.
    """
    found = {}
    for name in names:
        if name not in CONTESTANTS and not is_external(name):
            raise UsageError(f"there is no optimizer {name}; there are {', '.join(known)}, and {FORMS}")
        found[name] = contestant(name)
    by_label: dict[str, str] = {}
    for name, rule in found.items():
        if (other := by_label.setdefault(rule.label, name)) != name:
            raise UsageError(f"{other} and {name} would both be shown as {rule.label}; rename one of the files")
    return found


def aliases() -> dict[str, Callable[..., Any]]:
    """The optimizers that optax exports, such as `optax.adam`."""
    return {
        f"optax.{name}": partial(function, **GIVEN[name]) if name in GIVEN else function
        for name, function in inspect.getmembers(optax, inspect.isfunction)
        if function.__module__.endswith(".alias")
    }


def _of_optax(name: str) -> Any:
    """A function of optax or of its modules, such as `optax.contrib.muon`."""
    every = aliases()
    if name in every:
        return every[name]
    found: Any = optax
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    if found is None:
        raise UsageError(f"there is no {name}; optax's optimizers are {', '.join(every)}")
    return found


def _check_factory(name: str, factory: Any) -> None:
    """Check that the factory makes an optimizer from a learning rate."""
    needed = "it must be a function that takes the learning rate first and returns an optax transformation"
    if not callable(factory):
        made = hasattr(factory, "init") and hasattr(factory, "update")
        what = "an optimizer that is already made" if made else f"a {type(factory).__name__}"
        raise UsageError(f"{name} is {what}; {needed}")
    try:
        with warnings.catch_warnings(action="ignore"):
            made = factory(TRIED_RATE)
    except Exception as error:
        raise UsageError(f"{name}({TRIED_RATE}) raises {describe_error(error)}; {needed}") from error
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise UsageError(f"{name}({TRIED_RATE}) is no optimizer but a {type(made).__name__}; {needed}")
