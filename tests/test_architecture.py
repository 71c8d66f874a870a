"""The house stays as it was drawn: imports run downwards, rooms keep their names, heavy packages load on use."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import jaxopt_course as jc

PACKAGE = Path(__file__).parent.parent / "jaxopt_course"
FLOORS = {
    "annotations": 0,
    "arrays": 0,
    "dtypes": 0,
    "extras": 0,
    "looks": 0,
    "statistics": 0,
    "status": 0,
    "problems": 1,
    "data": 1,
    "optimizers": 2,
    "gradients": 2,
    "landscape": 2,
    "training": 3,
    "comparison": 3,
    "contract": 3,
    "diagnosis": 4,
    "sweeps": 4,
    "lab": 5,
    "plots": 5,
}
STRANGERS = {"problems", "data", "optimizers", "gradients"}  # they meet as plain functions in the rooms above
READERS_OF_RECORDS = {"landscape", "lab", "plots"}
HEAVY = {"matplotlib", "sklearn", "mlxtend", "rich", "pooch", "torch"}
LONGEST = 350
FILES = sorted(PACKAGE.rglob("*.py"))

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


class Import(NamedTuple):
    """`from module import name`, or `import module` with no name."""

    module: str
    name: str | None
    at_module_level: bool


def imports(source: str, module: str = "jaxopt_course.room.file") -> list[Import]:
    """Every import in the source of a module, inside functions too."""
    return list(_imports(ast.parse(source), module, at_module_level=True))


def _imports(node: ast.AST, module: str, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, None, at_module_level) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            start = module.split(".")[: -child.level] if child.level else []
            origin = ".".join([*start, *([child.module] if child.module else [])])
            yield from (Import(origin, alias.name, at_module_level) for alias in child.names)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, module, at_module_level and not inside)


def room_of(module: str, name: str | None = None) -> str | None:
    """The room a module of ours is in: "" for the front door itself, None for other people's modules."""
    first, *rest = module.split(".")
    if first != "jaxopt_course":
        return None
    if rest:
        return rest[0]
    return name if name in FLOORS else ""


def complaints(source: str, module: str) -> list[str]:
    """What is wrong with the imports of a module, in words."""
    here, found = room_of(module), []
    for module_, name, at_module_level in imports(source, module):
        there, what = room_of(module_, name), f"{module_}{f'.{name}' if name else ''}"
        top = module_.split(".")[0]
        if top in ("experiments", "tests"):
            found.append(f"{what} is no part of the package")
        if at_module_level and here != "plots" and top in HEAVY:
            found.append(f"{what} is loaded by every import")
        if there is None or here in ("", there):
            continue
        if there == "":
            found.append(f"{what} goes out by the front door and in again")
        elif there not in FLOORS or here not in FLOORS:
            found.append(f"{what}: {there if there not in FLOORS else here} has no floor")
        elif FLOORS[there] >= FLOORS[here]:
            found.append(f"{what} runs upwards or sideways, from {here}")
        elif here in STRANGERS and there in STRANGERS:
            found.append(f"{what}: {here} and {there} never import one another")
        elif here in READERS_OF_RECORDS and FLOORS[there] > 0 and not (name and name[0].isupper()):
            found.append(f"{what} is no record, and {here} may use records only")
    return found


def name_of(path: Path) -> str:
    """The module's name; a package counts as a file inside itself, as relative imports do."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@each_file
def test_imports_run_downwards(path: Path) -> None:
    name = name_of(path)
    if path.parent == PACKAGE and path.stem == "__init__":
        name = "jaxopt_course"  # the front door may show every room
    assert complaints(path.read_text(), name) == []


@pytest.mark.parametrize(
    ("room", "source", "said"),
    [
        ("problems", "from jaxopt_course.data import load", "runs upwards or sideways"),
        ("problems", "from jaxopt_course import data", "runs upwards or sideways"),
        ("problems", "from ..data.batches import minibatches", "runs upwards or sideways"),
        ("problems", "import jaxopt_course.training.train as t", "runs upwards"),
        ("optimizers", "def f():\n    from jaxopt_course.problems import losses", "never import one another"),
        ("gradients", "from jaxopt_course.data.batches import BatchPlan", "never import one another"),
        ("training", "if True:\n    import jaxopt_course.plots", "runs upwards"),
        ("comparison", "from jaxopt_course.training import train", "runs upwards or sideways"),
        ("comparison", "from jaxopt_course.contract.trial import Trial", "runs upwards or sideways"),
        ("contract", "from jaxopt_course.comparison import Stepper", "runs upwards or sideways"),
        ("landscape", "from jaxopt_course.problems.losses import l2_penalty", "records only"),
        ("plots", "from jaxopt_course.training import train", "records only"),
        ("plots", "import jaxopt_course.training", "records only"),
        ("training", "from jaxopt_course import losses", "front door"),
        ("training", "import jaxopt_course", "front door"),
        ("training", "from jaxopt_course.attic import x", "attic has no floor"),
        ("attic", "from jaxopt_course.annotations import Array", "attic has no floor"),
        ("training", "from experiments.runs import f", "no part of the package"),
        ("plots", "import tests.tables", "no part of the package"),
        ("data", "from sklearn.datasets import load_digits", "loaded by every import"),
        ("data", "try:\n    import mlxtend.data\nexcept ImportError:\n    pass", "loaded by every import"),
        ("comparison", "class A:\n    import torch", "loaded by every import"),
    ],
)
def test_this_test_sees_what_is_wrong(room: str, source: str, said: str) -> None:
    (complaint,) = complaints(source, f"jaxopt_course.{room}.file")
    assert said in complaint


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("problems", "from jaxopt_course.annotations import Array"),
        ("problems", "from jaxopt_course.problems.labels import check_labels"),
        ("problems", "from . import labels"),
        ("data", "def f():\n    from sklearn.datasets import load_digits"),
        ("training", "from jaxopt_course.data.batches import minibatches"),
        ("plots", "from jaxopt_course.training import Trace, TrainResult"),
        ("plots", "import matplotlib.pyplot as plt"),
        ("landscape", "from jaxopt_course.problems.surfaces import Surface"),
        ("optimizers", "import jax, numpy, optax"),
    ],
)
def test_this_test_sees_what_is_right(room: str, source: str) -> None:
    assert complaints(source, f"jaxopt_course.{room}.file") == []


def test_there_is_something_to_look_at() -> None:
    assert {path.parent.name for path in FILES} >= {"jaxopt_course", "problems", "data", "optimizers", "training"}
    assert any(room_of(i.module) == "data" for i in imports((PACKAGE / "training" / "train.py").read_text()))


def test_comparison_and_contract_share_nothing_but_dtypes_and_annotations() -> None:
    used = {
        room: {
            room_of(i.module, i.name)
            for path in (PACKAGE / room).glob("*.py")
            for i in imports(path.read_text(), name_of(path))
        }
        for room in ("comparison", "contract")
    }
    shared = (used["comparison"] & used["contract"]) - {None}
    assert shared <= {"dtypes", "annotations"}
    assert "contract" not in used["comparison"]
    assert "comparison" not in used["contract"]


def test_every_room_has_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms <= FLOORS.keys()


def test_no_room_bears_the_name_of_a_function_in_it() -> None:
    for folder in [path for path in PACKAGE.rglob("*") if path.is_dir()]:
        nodes = [node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
        functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert folder.name not in functions, f"{folder.name} is a room and a function"


def test_there_is_no_utils() -> None:
    names = {part for path in FILES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not {name for name in names if name.strip("_") in ("util", "utils", "helpers", "misc", "common")}


@each_file
def test_no_file_asks_to_become_two(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


# From what is differentiated, over both sides and their comparison, to the front doors: imports run to the left.
GRADIENTS = (
    "subject",
    "estimates",
    "report",
    "compiling",
    "numerical",
    "analytic",
    "finite_differences",
    "spot_check",
    "verdicts",
    "shortcuts",
    "entries",
    "localize",
    "check",
    "second_order",
)


def test_the_gradient_room_is_built_in_one_direction() -> None:
    room = PACKAGE / "gradients"
    assert {path.stem for path in room.glob("*.py")} == {*GRADIENTS, "__init__"}
    for number, name in enumerate(GRADIENTS):
        modules = {
            i.module.split(".")[-1] for i in imports((room / f"{name}.py").read_text()) if "gradients" in i.module
        }
        assert modules <= set(GRADIENTS[:number]), name


def printed(code: str) -> list[str]:
    """The words that a new process prints."""
    ran = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    unwanted = HEAVY | {"jaxtyping", "beartype", "scipy.optimize", "pytest"}
    rooms = "import sys, jaxopt_course as jc; [getattr(jc, name) for name in jc.__all__ if name != 'plots']"
    assert printed(f"{rooms}; print(*sorted({unwanted!r} & sys.modules.keys()))") == []


def test_a_room_is_loaded_when_it_is_used() -> None:
    ours = "print(*sorted(name for name in sys.modules if name.startswith('jaxopt_course')))"
    assert printed(f"import sys, jaxopt_course; {ours}") == ["jaxopt_course"]
    loaded = printed(f"import sys, jaxopt_course as jc; jc.sgd; {ours}")
    assert {name.split(".")[1] for name in loaded if "." in name} <= {"annotations", "dtypes", "optimizers", "status"}


def test_type_checkers_and_users_see_the_same_names_at_the_front_door() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    shown = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert shown == set(jc.__all__)
    assert set(jc.__all__) <= set(dir(jc))
    for name in jc.__all__:
        assert getattr(jc, name) is not None
    with pytest.raises(AttributeError, match="'adamm'"):
        _ = jc.adamm  # type: ignore[attr-defined]


def test_a_room_may_be_loaded_under_a_trace() -> None:
    """Nothing is computed by JAX when a module is loaded: it would become part of the program that is traced."""
    code = (
        "import importlib, pkgutil, jax, jaxopt_course\n"
        "def f(x):\n"
        "    for module in pkgutil.walk_packages(jaxopt_course.__path__, 'jaxopt_course.'):\n"
        "        importlib.import_module(module.name)\n"
        "    return x\n"
        "print(len(jax.make_jaxpr(f)(1.0).eqns))"
    )
    assert printed(code) == ["0"]


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [
        (
            "matplotlib",
            "import jaxopt_course as jc; jc.plots.learning_curves",
            "jaxopt_course.plots needs .*matplotlib",
        ),
        ("rich", "from experiments.__main__ import main; sys.exit(main(['contract', '--quiet']))", "needs .*rich"),
        (
            "sklearn",
            "from experiments.__main__ import main; sys.exit(main(['data', 'digits']))",
            "needs .*scikit-learn",
        ),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(module: str, code: str, said: str) -> None:
    hidden = f"import sys; sys.modules[{module!r}] = None; {code}"
    ran = subprocess.run(
        [sys.executable, "-c", hidden], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert re.search(said + r".*pip install 'jaxopt_course\[experiments\]'", ran.stderr), ran.stderr
