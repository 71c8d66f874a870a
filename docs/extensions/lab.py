"""The role `lab` links to the lab beside the site, in a state: {lab}`words <surface=beale&run=adam>`."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes

import jaxopt_course as jc
from jaxopt_course.lab.page import check_state

LINK = re.compile(r"(?s)(.+?)\s*<(.+)>")
ROLE = re.compile(r"\{lab\}`([^`<]+?)\s*<([^`]+)>`")


def role(name: str, raw: str, text: str, line: int, inliner: Any, options: Any = None, content: Any = None) -> Any:
    """Make the link; a state that the lab does not know is an error of the build."""
    found = LINK.fullmatch(text)
    if found is None:
        return [], [inliner.reporter.error(f"lab: {text!r} is not 'text <state>'", line=line)]
    words, state = found.groups()
    try:
        check_state(state)
    except ValueError as error:
        return [], [inliner.reporter.error(str(error), line=line)]
    up = "../" * inliner.document.settings.env.docname.count("/")
    return [nodes.reference(raw, words, refuri=f"{up}lab.html#{state}")], []


def in_words(text: str) -> str:
    """The same in a notebook, which has no lab beside it: the call that writes the page."""
    return ROLE.sub(lambda found: f'{found[1]}: `jc.lab.write("lab.html", state="{found[2]}")`', text)


def write(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        jc.lab.write(Path(app.outdir) / "lab.html")


def setup(app: Any) -> dict[str, bool]:
    app.add_role("lab", role)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
