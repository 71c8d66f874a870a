"""Translate docstrings, which use `code`, $x$, $$x$$ and tables as Markdown does, into reStructuredText."""

import re
from typing import Any

INLINE = re.compile(r"(``.+?``|`[^`]+`|\$[^$\s](?:[^$]*[^$\s])?\$)")
READY = "\x00"  # begins a line that is reStructuredText already


def translate(lines: list[str]) -> list[str]:
    """Translate the lines of a docstring; examples stay as they are."""
    out, in_example = [], False
    for line in join_spans(math_blocks(tables(code_blocks(returns(lines))))):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        out.append(line.removeprefix(READY) if in_example or line.startswith(READY) else inline(line))
    return out


def returns(lines: list[str]) -> list[str]:
    """Turn "Returns:" into a field, because napoleon takes what stands before a colon for a type."""
    return [READY + line.replace("Returns:", ":returns:") if line.strip() == "Returns:" else line for line in lines]


def code_blocks(lines: list[str]) -> list[str]:
    """Mark paragraphs that are indented by four, below text that is not, as code."""
    out: list[str] = []
    in_code, above = False, ""
    for line in lines:
        indented = line.startswith("    ")
        if indented and not in_code and above[:1].strip() and out and not out[-1].strip():
            in_code = True
            out += [f"{READY}.. code-block:: python", ""]
        in_code = in_code and (indented or not line.strip())
        out.append(READY + line if in_code else line)
        above = line if line.strip() else above
    return out


def tables(lines: list[str]) -> list[str]:
    """Turn Markdown tables into list-tables."""
    out: list[str] = []
    for number, line in enumerate(lines):
        indent = line[: len(line) - len(line.lstrip())]
        if re.fullmatch(r"\s*\|[-| ]+\|", line):
            continue
        if not line.lstrip().startswith("| "):
            out.append(line)
            continue
        if not lines[number - 1].lstrip().startswith("|"):
            out += [f"{READY}{indent}.. list-table::", f"{READY}{indent}   :header-rows: 1", ""]
        cells = line.strip().strip("|").split(" | ")
        out += [f"{indent}   {' ' if column else '*'} - {cell.strip()}" for column, cell in enumerate(cells)]
    return out


def math_blocks(lines: list[str]) -> list[str]:
    """Turn every `$$...$$` that begins a line into a math directive."""
    out: list[str] = []
    formula: list[str] | None = None
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        if formula is None and line.lstrip().startswith("$$"):
            formula, line = [], line.replace("$$", "", 1)
            out += ["", f"{READY}{indent}.. math::", ""]
        if formula is None:
            out.append(line)
            continue
        formula.append(line.replace("$$", "").strip())
        if "$$" in line:
            out += [*(f"{READY}{indent}   {part}" for part in formula if part), ""]
            formula = None
    return out


def join_spans(lines: list[str]) -> list[str]:
    """Join a line with the next where `code` or $x$ is broken between them."""
    out: list[str] = []
    for line in lines:
        before = out[-1] if out else ""
        is_text = not before.startswith(READY) and ">>>" not in before
        if is_text and line.strip() and re.search(r"[`$]", INLINE.sub("", before)):
            out[-1] += " " + line.strip()
        else:
            out.append(line)
    return out


def inline(line: str) -> str:
    """Translate code and formulas, and escape what reStructuredText would read as markup."""
    parts = INLINE.split(line)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            bullet = re.match(r"\s*\* ", part) if i == 0 else None
            kept = bullet[0] if bullet else ""
            parts[i] = kept + re.sub(r"([|*]|(?<=\w)_(?=\W|$))", r"\\\1", part.removeprefix(kept))
        elif not part.startswith("``"):
            parts[i] = f":math:`{part[1:-1]}`" if part.startswith("$") else f"``{part[1:-1]}``"
            if re.match(r"\w", parts[i + 1]):
                parts[i] += "\\ "  # ends a role before a letter
    return re.sub(r"^(\s*)Source: ", r"\1**Source:** ", "".join(parts))


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = translate(lines)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
