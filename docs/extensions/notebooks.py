"""Offer each chapter of the course as a notebook that runs on its own."""

import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from lab import in_words

INSTALL = '%pip install --quiet "jaxopt_course[experiments,data]"'


def folder(app: Any) -> Path:
    return Path(app.srcdir) / "_build" / "notebooks"


def write(app: Any) -> None:
    """Write every chapter as .ipynb, with a first cell that installs the package."""
    folder(app).mkdir(parents=True, exist_ok=True)
    for page in sorted((Path(app.srcdir) / "course").glob("[0-9]*.md")):
        notebook = jupytext.read(page)
        for cell in notebook.cells:
            cell.source = in_words(cell.source)
            if "hide-cell" in cell.metadata.get("tags", []):
                cell.metadata["jupyter"] = {"source_hidden": True}  # a solution; Jupyter folds it
        notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTALL))
        nbformat.write(nbformat.validator.normalize(notebook)[1], folder(app) / f"{page.stem}.ipynb")


def link(app: Any, page: str, source: list[str]) -> None:
    """Put a link to the notebook below the title of a chapter."""
    name = f"{Path(page).name}.ipynb"
    if page.startswith("course/") and (folder(app) / name).exists():
        line = f"{{download}}`Download this chapter as a notebook <../_build/notebooks/{name}>`"
        source[0] = re.sub(r"(?m)^# .+$", lambda title: f"{title[0]}\n\n{line}", source[0], count=1)


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("source-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
