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

import numpy as np

from jaxopt_course.lab.state import SETTINGS, complaints, surface_of
from jaxopt_course.landscape import Paths
from jaxopt_course.looks import COLORS, DASHES, RULES, pairs
from jaxopt_course.problems.surfaces import NOISY, SURFACES

SCRIPTS = (  # in the order of the page; tests run the first and `files.js` under node
    *("mathematics.js", "state.js", "pens.js", "pictures.js", "charts.js", "map.js"),
    *("player.js", "controls.js", "hands.js", "files.js", "export.js", "start.js"),
)


def write(
    path: str | Path,
    *,
    state: str = "",
    title: str = "Optimizer lab",
    paths: Mapping[str, np.ndarray | Paths] | None = None,
) -> Path:
    """Write the lab: one HTML page in which every optimizer runs live on every surface, in double precision.

    The page works from a `file://` address, loads nothing, and keeps its state in the address after `#`. It opens on
    finished paths.

    Args:
      path: the file to write.
      state: what to show at first, as the page's own address has it after `#`, such as
        "surface=beale&run=adam,learning_rate:0.1&run=lbfgs". A setting that is not in it has its default.
      title: of the page.
      paths: name -> a record of `landscape.paths`, or `[steps, 2]`, or `[N, steps, 2]`: recorded paths of any
        optimizer, which the page shows beside its own runs, on the surface that `state` names (by default the page's
        first one). Of several starts the first is the line and the others are drawn pale. A path ends before its first
        point that is not finite.

    Returns:
      The path.

    Raises:
      ValueError: a setting, surface, optimizer or hyperparameter of `state` that the page does not have, or a number
        that is out of its bounds; the message names what there is. A recorded path of another shape or without a finite
        start; more than 30 of them.

    Example:
      >>> import tempfile
      >>> import jaxopt_course as jc
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     page = jc.lab.write(Path(folder) / "lab.html", state="surface=himmelblau&run=newton").read_text()
      >>> "default-src 'none'" in page, " src=" in page, len(page) < 300_000
      (True, False, True)

      Any optimizer beside those of the page:

      >>> import optax
      >>> valley = jc.surfaces.SURFACES["rosenbrock"]
      >>> walked = jc.landscape.paths(valley, optax.lion(0.02), valley.start, 100)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     page = jc.lab.write(Path(folder) / "lab.html", paths={"Lion": walked}).read_text()
      >>> '"label": "Lion"' in page
      True
    """
    check_state(state)
    folder = files("jaxopt_course.lab")
    parts = {
        "title": escape(title),
        "data": _json(_data(state.removeprefix("#")) | {"recorded": _recorded(surface_of(state), paths or {})}),
        "script": "\n".join((folder / name).read_text("utf-8") for name in SCRIPTS),
    }
    page = (folder / "lab.html").read_text("utf-8")
    page = re.sub(r"\{\{(title|data|script)\}\}", lambda found: parts[found[1]], page)
    Path(path).write_text(page.replace("{{policy}}", _policy(page)), "utf-8")
    return Path(path)


def check_state(state: str) -> None:
    """Raise ValueError, in the page's own words, unless the page has all that a state names."""
    wrong = complaints(state, {name: surface.window for name, surface in SURFACES.items()})
    if wrong:
        raise ValueError(f"lab.write: {'; '.join(wrong)}")


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
    looks = {"colors": COLORS, "dashes": DASHES, "looks": RULES}
    return {"state": state, "settings": SETTINGS, "surfaces": records, **looks}


def _recorded(surface: str, paths: Mapping[str, np.ndarray | Paths]) -> list[dict[str, Any]]:
    """Paths as the page reads them: each with its surface, its look and its runs, lists of points."""
    if len(paths) > SETTINGS["most_paths"]:
        raise ValueError(f"lab.write: at most {SETTINGS['most_paths']} recorded paths, not {len(paths)}")
    records = []
    for label, look in pairs(paths).items():
        given = paths[label]
        points = np.asarray(given.params if isinstance(given, Paths) else given, float)
        if points.ndim not in (2, 3) or points.shape[-1] != 2:
            raise ValueError(f"lab.write: the path of {label!r} is [steps, 2] or [N, steps, 2], not {points.shape}")
        runs = list(points) if points.ndim == 3 else [points]
        runs = [run[: int(np.argmin([*np.isfinite(run).all(axis=1), False]))] for run in runs]
        if not runs or not all(len(run) for run in runs):
            raise ValueError(f"lab.write: the path of {label!r} has no finite start")
        records.append({"label": label, "look": look, "surface": surface, "runs": [run.tolist() for run in runs]})
    return records


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
