"""The site: `make docs` writes it to docs/_build/html. No page loads anything from a network."""

import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from docutils import nodes
from latex2mathml.converter import convert

import jaxopt_course

HERE = Path(__file__).parent

project = "jaxopt_course"
author = "the authors of jaxopt_course"
release = version = jaxopt_course.__version__

extensions = [
    "myst_nb",  # Markdown, and the cells of the course
    "sphinx.ext.autodoc",  # the reference, from the docstrings
    "sphinx.ext.napoleon",  # which are written in Google style
    "sphinx_design",  # cards
    "sphinx_copybutton",  # a button on every cell
]
exclude_patterns = ["_build"]

# Pages. In a page, $...$ and $$...$$ are formulas.
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# Cells run in every build, and an error in one is an error of the build. A cell with the tag hide-cell is a solution.
nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
nb_merge_streams = True

# The look. Furo brings all it needs.
html_theme = "furo"
html_title = f"jaxopt_course {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_theme_options: dict[str, Any] = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Signatures show names and defaults; shapes, dtypes and units stand in the docstrings.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"


# Formulas become MathML, which browsers draw themselves: no script, no fonts to load.


def mathml(latex: str, display: str) -> str:
    """The formula as MathML; latex2mathml has no `aligned`, and `align*` draws the same."""
    latex = re.sub(r"\\(begin|end)\{(aligned|split)\}", r"\\\1{align*}", latex)
    if "&" in re.sub(r"\\begin\{(align\*|cases|\w*matrix|array)\}.*?\\end\{\1\}", "", latex, flags=re.DOTALL):
        latex = rf"\begin{{align*}}{latex}\end{{align*}}"
    formula = convert(latex, display=display)
    return re.sub(r"(<m([io])>(?:log|exp|sin|cos)</m\2>)(?!<mo)", r'\1<mspace width="0.17em" />', formula)


def visit_math(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math-block">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


# Docstrings are Markdown in spirit: `code`, $x$, $$x$$. Sphinx reads reStructuredText.

INLINE = re.compile(r"(``.+?``|`[^`]+`|\$[^$\s](?:[^$]*[^$\s])?\$)")


def to_restructured_text(lines: list[str]) -> list[str]:
    """Translate the lines of a docstring; examples stay as they are."""
    text, out, in_example, previous = _join_spans(_math_blocks(lines)), [], False, ""
    for line in text:
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        indented = line.startswith("    ") and not line.strip().startswith((".. math", ">>>"))
        if in_example or line.startswith(MATH):
            out.append(line.removeprefix(MATH))
        elif indented and not previous.startswith(" ") and out and not out[-1].strip():
            out += ["::", "", line]  # an indented paragraph is code
            previous = " "
            continue
        elif indented and previous == " " and "::" in out:
            out.append(line)
            continue
        else:
            out.append(_inline(line))
        if line.strip():
            previous = line
    return out


MATH = "\x00"


def _math_blocks(lines: list[str]) -> list[str]:
    """Turn every `$$...$$` that stands alone into a math directive, marked so that nobody touches it again."""
    out: list[str] = []
    formula: list[str] | None = None
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        if formula is None and line.lstrip().startswith("$$"):
            formula, line = [], line.replace("$$", "", 1)
            out += ["", f"{MATH}{indent}.. math::", ""]
        if formula is None:
            out.append(line)
            continue
        formula.append(line.replace("$$", "").strip())
        if "$$" in line:
            out += [*(f"{MATH}{indent}   {part}" for part in formula if part), ""]
            formula = None
    return out


def _join_spans(lines: list[str]) -> list[str]:
    """Join a line with the next where `code` or $x$ is broken across them."""
    out: list[str] = []
    for line in lines:
        open_span = out and not out[-1].startswith(MATH) and ">>>" not in out[-1]
        if open_span and line.strip() and re.search(r"[`$]", INLINE.sub("", out[-1])):
            out[-1] += " " + line.strip()
        else:
            out.append(line)
    return out


def _inline(line: str) -> str:
    """Code, formulas, and escapes of what reStructuredText would read as markup."""
    parts = INLINE.split(line)
    for i, part in enumerate(parts):
        if i % 2 and part.startswith("``"):
            continue
        if i % 2:
            parts[i] = f":math:`{part[1:-1]}`" if part.startswith("$") else f"``{part[1:-1]}``"
            if i + 1 < len(parts) and re.match(r"\w", parts[i + 1]):
                parts[i] += "\\ "
        else:
            parts[i] = re.sub(r"([|*](?!\s*$)|(?<=\w)_(?=\W|$))", r"\\\1", part)
    return re.sub(r"^(\s*)Source: ", r"\1**Source:** ", "".join(parts))


def process_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_restructured_text(lines)


# Each chapter is also a notebook that runs on its own.

INSTALL = '%pip install --quiet "jaxopt_course[experiments,data]"'
CHAPTERS = HERE / "course"
NOTEBOOKS = HERE / "_build" / "notebooks"


def write_notebooks(app: Any) -> None:
    NOTEBOOKS.mkdir(parents=True, exist_ok=True)
    for page in sorted(CHAPTERS.glob("[0-9]*.md")):
        notebook = jupytext.read(page)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTALL))
        jupytext.write(notebook, NOTEBOOKS / f"{page.stem}.ipynb")


def offer_notebook(app: Any, page: str, source: list[str]) -> None:
    """Put a link to the notebook below the title of a chapter."""
    if page.startswith("course/") and (NOTEBOOKS / f"{Path(page).name}.ipynb").exists():
        link = f"{{download}}`Download this chapter as a notebook <../_build/notebooks/{Path(page).name}.ipynb>`"
        source[0] = re.sub(r"(?m)^(# .+)$", lambda title: f"{title[1]}\n\n{link}", source[0], count=1)


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("builder-inited", write_notebooks)
    app.connect("source-read", offer_notebook)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}


html_math_renderer = "mathml"
