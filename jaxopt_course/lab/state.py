"""The state in the page's address, as Python checks it: the same table and the same sentences as in the page."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

SETTINGS: dict[str, Any] = json.loads((files("jaxopt_course.lab") / "settings.json").read_text("utf-8"))
OPTIMIZERS: dict[str, Any] = SETTINGS["optimizers"]
KEYS = ("surface", "start", "run", "step", "map", "view", *SETTINGS["numbers"], *SETTINGS["choices"])
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
VIEW = (-100.0, 100.0)  # an angle, in radians

Window = tuple[tuple[float, float], tuple[float, float]]


def parse(state: str) -> dict[str, list[str]]:
    """Every setting of a state, with its values in order."""
    found: dict[str, list[str]] = {}
    for key, value in parse_qsl(state.removeprefix("#"), keep_blank_values=True):
        found.setdefault(key, []).append(value)
    return found


def surface_of(state: str) -> str:
    """The surface that a state names; the first one of the page where it names none."""
    return parse(state).get("surface", [SETTINGS["surface"]])[0]


def complaints(state: str, windows: Mapping[str, Window]) -> list[str]:
    """What in a state is unknown or out of its bounds, a sentence each, in the page's own words.

    `windows`: surface -> the limits of x and of y between which it is drawn, and a start has to be.
    """
    found = parse(state)
    said = [f'there is no setting "{key}"; there are {_listed(KEYS)}' for key in found if key not in KEYS]
    said += _choice("surface", found, windows)
    surface = surface_of(state) if surface_of(state) in windows else SETTINGS["surface"]
    if "start" in found:
        parts = _parts(found["start"][0], 2)
        if len(parts) > 2:
            said.append(f'start cannot be "{found["start"][0]}": two numbers, with a comma between')
        for name, part, (least, most) in zip("xy", parts, windows[surface], strict=False):
            said += _number(f"start {name}", part, least, most, where=f" on {surface}")
    steps = SETTINGS["numbers"]["steps"]["value"]
    for key, record in SETTINGS["numbers"].items():
        if key in found:
            wrong = list(_number(key, found[key][0], record["least"], record["most"], whole=record["whole"]))
            said += wrong
            if key == "steps" and not wrong:
                steps = int(float(found[key][0]))
    if "step" in found:
        said += _number("step", found["step"][0], 0, steps, whole=True)
    for key, values in SETTINGS["choices"].items():
        said += _choice(key, found, values)
    runs = [run for run in found["run"] if run] if "run" in found else list(SETTINGS["runs"])
    for run in runs:
        said += _run(run)
    if len(runs) > SETTINGS["most_runs"]:
        said.append(f"there are {len(runs)} runs: at most {SETTINGS['most_runs']}")
    known = [run.split(",")[0] for run in runs if run.split(",")[0] in OPTIMIZERS][: SETTINGS["most_runs"]]
    known = known or list(SETTINGS["runs"] if runs else ())  # the page shows the usual ones where none is known
    if "map" in found:
        said += _map(found["map"][0], known)
    if "view" in found:
        for part in _parts(found["view"][0], 2)[:2]:
            said += _number("view", part, *VIEW)
    return said


def _run(text: str) -> Iterator[str]:
    rule, *settings = text.split(",")
    if rule not in OPTIMIZERS:
        yield f'there is no optimizer "{rule}"; there are {_listed(OPTIMIZERS)}'
        return
    hyper = {record["name"]: record for record in OPTIMIZERS[rule]["hyper"]}
    for setting in settings:
        name, _, value = setting.partition(":")
        if name not in hyper:
            yield f'{rule} has no "{name}"; it has {_listed(hyper)}'
        else:
            record = hyper[name]
            yield from _number(
                f"{name} of {rule}", value, record["least"], record["most"], whole=record.get("whole", False)
            )


def _map(text: str, rules: list[str]) -> Iterator[str]:
    number, axis = _parts(text, 2)[:2]
    wrong = list(_number("map", number, 0, max(0, len(rules) - 1), whole=True)) if number else []
    yield from wrong
    if axis and rules and not wrong:
        hyper = OPTIMIZERS[rules[int(float(number or 0))]]["hyper"]
        names = [*(record["name"] for record in hyper[1:]), "noise"]
        if axis not in names:
            yield f'there is no axis "{axis}" of the map; there are {_listed(names)}'


def _number(
    what: str, text: str, least: float | int, most: float | int, *, whole: bool = False, where: str = ""
) -> Iterator[str]:
    value = float(text) if NUMBER.fullmatch(text.strip()) else None
    if value is None or not least <= value <= most or (whole and not value.is_integer()):
        kind = "a whole number" if whole else "a number"
        yield f'{what} cannot be "{text}":{where} {kind} from {_words(least)} to {_words(most)}'


def _choice(key: str, found: Mapping[str, list[str]], values: Iterable[str]) -> Iterator[str]:
    if key in found and found[key][0] not in values:
        yield f'there is no {key} "{found[key][0]}"; there are {_listed(values)}'


def _parts(text: str, count: int) -> list[str]:
    """The parts between commas, at least `count`."""
    parts = text.split(",")
    return parts + [""] * (count - len(parts))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _words(x: float | int) -> str:
    """A number as JavaScript writes it, if it is neither huge nor tiny."""
    return str(int(x)) if float(x).is_integer() else repr(float(x))
