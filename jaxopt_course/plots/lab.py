"""The lab: one HTML page to play with every optimizer on every surface, from a file and without a network."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from jaxopt_course.plots.style import COLORS, DASHES, RULES, pairs
from jaxopt_course.plots.trails import Path as Trail
from jaxopt_course.plots.trails import runs_of
from jaxopt_course.problems.surfaces import NOISY, SURFACES

FIRST = "rosenbrock"  # the surface that the page opens on
SCRIPTS = ("lab.js", "lab_state.js", "lab_pens.js", "lab_pictures.js", "lab_page.js")  # tests run the first under node


def write_lab(
    path: str | Path,
    *,
    state: str = "",
    title: str = "Optimizer lab",
    paths: Mapping[str, Trail] | None = None,
) -> Path:
    """Write the page: surfaces, update rules, noise and searches run in it live, in double precision.

    It works from a `file://` address, loads nothing, and keeps its state in the address after `#`.

    Args:
      path: the file to write.
      state: what to show at first, as the page's own address has it after `#`, such as
        "surface=beale&run=adam,learning_rate:0.1&run=lbfgs"; what is not in it is as usual.
      title: of the page.
      paths: name -> a record of `landscape.paths`, or `[steps, 2]`: paths of any optimizer, which the page shows beside
        its own runs, on the surface that `state` names (its first one otherwise). Of several starts the first is the
        line and the others are drawn pale. A path ends before its first point that is not finite.

    Returns:
      The path.

    Raises:
      ValueError: recorded paths on an unknown surface, or one without a finite start.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     page = write_lab(Path(folder) / "lab.html", state="surface=himmelblau&run=newton").read_text()
      >>> "default-src 'none'" in page, " src=" in page, len(page) < 300_000
      (True, False, True)

      Any optimizer beside those of the page:

      >>> import optax
      >>> import jaxopt_course as jc
      >>> valley = SURFACES["rosenbrock"]
      >>> walked = jc.landscape.paths(valley, optax.lion(0.02), valley.start, 100)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     page = write_lab(Path(folder) / "lab.html", paths={"Lion": walked}).read_text()
      >>> '"label": "Lion"' in page
      True
    """
    folder = files("jaxopt_course.plots")
    parts = {
        "title": escape(title),
        "data": _json(_data(state.removeprefix("#")) | {"recorded": _recorded(state.removeprefix("#"), paths or {})}),
        "script": "\n".join((folder / name).read_text("utf-8") for name in SCRIPTS),
    }
    page = (folder / "lab.html").read_text("utf-8")
    page = re.sub(r"\{\{(title|data|script)\}\}", lambda found: parts[found[1]], page)
    Path(path).write_text(page.replace("{{policy}}", _policy(page)), "utf-8")
    return Path(path)


def _data(state: str) -> dict[str, Any]:
    records = [
        {
            "name": surface.name,
            "start": surface.start.tolist(),
            "minimizers": surface.minimizers.tolist(),
            "minimum": surface.minimum if surface.minimum > float("-inf") else None,
            "window": surface.window,
            "noise": float(NOISY[surface.name].covariance[0, 0] ** 0.5),
        }
        for surface in SURFACES.values()
    ]
    return {"state": state, "surfaces": records, "colors": COLORS, "dashes": DASHES, "looks": RULES}


def _recorded(state: str, paths: Mapping[str, Trail]) -> dict[str, Any]:
    """Paths as the page reads them: each with its look and its runs, lists of points."""
    surface = parse_qs(state).get("surface", [FIRST])[0]
    if paths and surface not in SURFACES:
        raise ValueError(f"write_lab: paths are recorded on a surface that the lab has, and {surface!r} is none")
    records = []
    for label, look in pairs(paths).items():
        runs = [np.asarray(run, float) for run in runs_of(paths[label])]
        runs = [run[: int(np.argmin([*np.isfinite(run).all(axis=1), False]))] for run in runs]
        if not all(len(run) for run in runs):
            raise ValueError(f"write_lab: the path of {label!r} has no finite start")
        records.append({"label": label, "look": look, "runs": [run.tolist() for run in runs]})
    return {"surface": surface, "paths": records}


def _json(data: Mapping[str, Any]) -> str:
    """For a script element, which `</` would end and `<!--` would confuse."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _policy(page: str) -> str:
    """Nothing may be loaded, and nothing runs but the style and the script of this page, by their hashes."""

    def hashes(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    sources = f"script-src {hashes('script')}; style-src {hashes('style')}"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"
