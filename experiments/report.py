"""Report a run on the terminal and as one HTML page, which loads no other files and runs no scripts."""

import base64
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; } table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #bbb; white-space: nowrap; }
th.left, td.left { text-align: left; } strong { color: #b00020; } pre { overflow-x: auto; font-size: .8rem; }
figure { margin: 2rem 0; } img { max-width: 100%; }
figcaption, .note { color: #444; max-width: 48rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: #444; } dd { margin: 0; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #161616; } figcaption, .note, dt { color: #bbb; }
  img { background: #fff; } strong { color: #ff7b7b; }
}
"""


class Table(NamedTuple):
    """Cells as text; the first `left` columns are left-aligned, and cells that contain `alarm` are highlighted."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    left: int = 1
    alarm: str | None = None

    def alarming(self, cell: str) -> bool:
        return self.alarm is not None and self.alarm in cell


class Picture(NamedTuple):
    """The file of a picture and its caption."""

    path: Path
    caption: str


Block = Table | Picture | str  # a string is shown verbatim


def print_blocks(*blocks: Block) -> None:
    """Print tables and text, without pictures."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    for block in blocks:
        if isinstance(block, Table):
            console.print(_rich_table(block))
        elif isinstance(block, str):
            console.print(block, markup=False, highlight=False, soft_wrap=True)


def _rich_table(table: Table) -> RichTable:
    shown = RichTable(title=table.title, caption=table.note or None, caption_justify="left")
    for number, column in enumerate(table.columns):
        words = number < table.left
        shown.add_column(column, justify="left" if words else "right", no_wrap=not words)
    for row in table.rows:
        shown.add_row(*(Text(cell, "bold red" if table.alarming(cell) else "") for cell in row))
    return shown


def html_page(title: str, introduction: str, blocks: Sequence[Block], facts: Mapping[str, Any]) -> str:
    """Make the page; every string is escaped."""
    listed = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>\n" for name, value in facts.items())
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(introduction)}</p>
{"".join(map(_html, blocks))}<h2>How it was made</h2>
<dl>
{listed}</dl>
</body>
</html>
"""


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<pre>{escape(block)}</pre>\n"
    if isinstance(block, Picture):
        caption = escape(block.caption, quote=True)
        picture = f"<img src='{_data_uri(block.path)}' alt='{caption}'>"
        return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>\n"

    def line(tag: str, cells: Sequence[str]) -> str:
        shown = [f"<strong>{escape(cell)}</strong>" if block.alarming(cell) else escape(cell) for cell in cells]
        sides = [" class='left'" if number < block.left else "" for number in range(len(cells))]
        return (
            "<tr>" + "".join(f"<{tag}{s}>{c}</{tag.split()[0]}>" for s, c in zip(sides, shown, strict=True)) + "</tr>\n"
        )

    title = f"<h2>{escape(block.title)}</h2>\n" if block.title else ""
    note = f"<p class='note'>{escape(block.note)}</p>\n" if block.note else ""
    head, body = line("th scope='col'", block.columns), "".join(line("td", row) for row in block.rows)
    return f"{title}{note}<table><thead>{head}</thead><tbody>\n{body}</tbody></table>\n"


def _data_uri(path: Path) -> str:
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def facts(manifest: Mapping[str, Any], source: str) -> dict[str, Any]:
    """How a run was made, for the end of its page; `source` is the source of the data."""
    return {
        "command": f"python -m experiments {manifest['experiment']} {' '.join(sys.argv[2:])}".strip(),
        "data": f"{source}; SHA-256 {manifest['data']['sha256']}",
        "dtype": manifest["dtype"],
        "device": manifest["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items() if version),
        "source": manifest["source"],
    }
