"""One HTML page for a run: tables and figures in one file that loads nothing and runs nothing."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; } table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #bbb; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } figure { margin: 2rem 0; } img { max-width: 100%; }
figcaption { color: #444; max-width: 48rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: #444; } dd { margin: 0; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #161616; } figcaption, dt { color: #bbb; } img { background: #fff; }
}
"""


def html_page(
    title: str,
    introduction: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    figures: Sequence[tuple[Path, str]],
    facts: Mapping[str, Any],
) -> str:
    """The page as text. Every string is escaped; figures are PNG files and their captions."""
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    images = "".join(
        f"<figure><img src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}' "
        f"alt='{escape(caption, quote=True)}'><figcaption>{escape(caption)}</figcaption></figure>\n"
        for path, caption in figures
    )
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
<table><thead><tr>{head}</tr></thead><tbody>
{body}</tbody></table>
{images}<h2>How it was made</h2>
<dl>
{listed}</dl>
</body>
</html>
"""
