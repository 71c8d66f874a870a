"""The reference shows every public name, public names have examples, and cells of the course stay short."""

import importlib
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jaxopt_course as jc

DOCS = Path(__file__).parent.parent / "docs"
ROOMS = sorted(path.parent.name for path in Path(jc.__file__).parent.glob("*/__init__.py"))
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|data|exception):: (jaxopt_course\.[\w.]+)", re.MULTILINE)
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
MOST_LINES, MOST_CHARACTERS = 10, 90

# Public names that have no docstring of their own to show; the page that names each.
DATA = {
    "data.DATASETS": "data.md",
    "surfaces.SURFACES": "problems.md",
    "surfaces.NOISY": "problems.md",
    "mgh.PROBLEMS": "problems.md",
    "conventions.LIBRARIES": "comparison.md",
}
MODULES = ("conventions", "losses", "mgh", "nearest_neighbor", "scores", "surfaces")  # public, beside the rooms
# Functions without an example, and why.
NO_EXAMPLE = {
    "surfaces.*": "each is drawn in the lab, and the examples of `Surface` and `bowl` show how they are used",
}
# Classes have no examples where they are records, enumerations or errors: the function that returns or raises one has.


def shown() -> dict[str, Any]:
    """What the reference shows: dotted name -> object."""
    names = [name for page in sorted((DOCS / "reference").glob("*.md")) for name in DIRECTIVE.findall(page.read_text())]
    assert len(names) == len(set(names)), "shown twice"
    return {name.removeprefix("jaxopt_course."): look_up(name) for name in names}


def look_up(name: str) -> Any:
    thing: Any = jc
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


def public() -> Iterator[tuple[str, Any]]:
    """Every public name, by the shortest way to it."""
    seen: list[Any] = []
    rooms = [("", jc), *((f"{room}.", importlib.import_module(f"jaxopt_course.{room}")) for room in ROOMS)]
    for prefix, module in [*rooms, *((f"{name}.", getattr(jc, name)) for name in MODULES)]:
        for name in module.__all__:
            thing = getattr(module, name)
            if not isinstance(thing, ModuleType) and not any(thing is other for other in seen):
                seen.append(thing)
                yield f"{prefix}{name}", thing


PUBLIC = dict(public())


def test_there_is_something_to_show() -> None:
    assert {"adam", "Status", "losses.multiclass_hinge", "plots.curves", "sweeps.product"} <= PUBLIC.keys()
    assert len(PUBLIC) > 150


@pytest.mark.parametrize("module", [jc, *(getattr(jc, name) for name in (*ROOMS, *MODULES))], ids=lambda m: m.__name__)
def test_a_public_module_shows_its_public_names_and_no_others(module: ModuleType) -> None:
    assert {name for name in dir(module) if not name.startswith("__")} == set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_every_module_that_is_a_public_name_is_a_public_module() -> None:
    modules = {name for name in jc.__all__ if isinstance(getattr(jc, name), ModuleType)}
    assert modules == {*ROOMS, *MODULES}


def test_the_reference_shows_every_public_name() -> None:
    there = list(shown().values())
    missing = [name for name, thing in PUBLIC.items() if name not in DATA and not any(thing is t for t in there)]
    assert missing == []


@pytest.mark.parametrize(("name", "page"), DATA.items())
def test_tables_of_data_are_named(name: str, page: str) -> None:
    look_up(f"jaxopt_course.{name}")
    assert f"`{name}`" in (DOCS / "reference" / page).read_text()


def test_every_public_function_has_an_example() -> None:
    functions = {
        name: thing for name, thing in {**shown(), **PUBLIC}.items() if inspect.isroutine(inspect.unwrap(thing))
    }
    missing = {name for name, thing in functions.items() if ">>>" not in (inspect.getdoc(thing) or "")}
    excused = {name for name in missing if name in NO_EXAMPLE or f"{name.rpartition('.')[0]}.*" in NO_EXAMPLE}
    assert missing == excused


def test_no_exception_is_stale() -> None:
    for name in NO_EXAMPLE:
        if not name.endswith("*"):
            assert ">>>" not in (inspect.getdoc(look_up(f"jaxopt_course.{name}")) or ""), f"{name} has an example now"


def test_every_page_of_the_reference_is_in_its_index() -> None:
    index = (DOCS / "reference" / "index.md").read_text()
    for page in (DOCS / "reference").glob("*.md"):
        assert page.stem == "index" or f"({page.name})" in index


@pytest.mark.parametrize("kind", [jc.Status, jc.gradients.Verdict, jc.comparison.Parity, jc.contract.Outcome])
def test_every_status_and_verdict_is_explained(kind: type[Enum]) -> None:
    page = (DOCS / "reference" / "statuses.md").read_text()
    assert [member.name for member in kind if f"`{member.name}`" not in page] == []


@pytest.mark.parametrize("chapter", sorted((DOCS / "course").glob("[0-9]*.md")), ids=lambda path: path.stem)
def test_cells_of_a_chapter_are_short(chapter: Path) -> None:
    text = chapter.read_text()
    cells = [[line for line in cell.strip().splitlines() if line[:1] != ":"] for cell in CELL.findall(text)]
    assert len(cells) > 5
    for cell in cells:
        assert len("\n".join(cell).strip().splitlines()) <= MOST_LINES, "\n".join(cell)
        assert max(map(len, cell)) <= MOST_CHARACTERS, max(cell, key=len)
    assert 3 <= len(re.findall(r"^\*\*\d\.\*\*", text, re.MULTILINE)) <= 5, "three to five exercises"
    assert text.count("[hide-cell]") >= 3, "solutions are cells"
