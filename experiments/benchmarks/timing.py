"""Timing: contestants take turns, medians are compared, and every sample is recorded.

The speed of a shared machine drifts, so contestants are not timed one after another. Each round times every contestant
once, and the result is the ratio of medians within one run.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

Run = Callable[[], Any]

PACKAGES = ("jax", "jaxlib", "optax", "torch", "numpy")


class Timing(NamedTuple):
    """Seconds of a contestant, one sample per round; if it could not run, there are none and `note` states why."""

    group: str
    label: str
    seconds: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def best(self) -> float:
        return min(self.seconds, default=float("nan"))


class Ratio(NamedTuple):
    """A ratio of medians and its target (`relation` is "<=" or ">=").

    Reliability: `best` is the ratio of minima; `low` to `high` is the middle half of `rounds`, the ratios of single
    rounds. `rounds` is empty if something was measured only once.
    """

    name: str
    value: float
    relation: str
    target: float
    best: float
    low: float
    high: float
    rounds: tuple[float, ...] = ()

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.relation == "<=" else self.value >= self.target


def arguments(name: str, description: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments bench {name}", description=description)
    parser.add_argument("--rounds", type=at_least_one, default=rounds, help="samples of each contestant (%(default)s)")
    parser.add_argument("--out", type=Path, help=f"where the JSON goes (runs/bench-{name}-<utc>.json)")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the tables")
    return parser


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"need at least 1, got {text}")
    return int(text)


def installed(package: str) -> bool:
    return find_spec(package) is not None


def race(
    group: str,
    runs: Mapping[str, Run | None],
    rounds: int,
    *,
    per: int | Mapping[str, int] = 1,
    notes: Mapping[str, str] | None = None,
) -> dict[str, Timing]:
    """Time every contestant once per round, after one warm-up each.

    The first contestant goes last in the next round, and every other round runs backwards, so that no contestant always
    follows the same one.

    `per` divides the time, for runs of many steps: one number, or one for each contestant. A contestant that is None is
    not installed.
    """
    present = [(label, run) for label, run in runs.items() if run is not None]
    samples: dict[str, list[float]] = {label: [] for label in runs}
    steps = per if isinstance(per, Mapping) else dict.fromkeys(runs, per)
    for _, run in present:
        stopwatch(run)
    gc.collect()
    gc.disable()
    try:
        for first in range(rounds):
            turn = first % max(len(present), 1)
            order = present[turn:] + present[:turn]
            for label, run in order[:: 1 if first % 2 else -1]:
                samples[label].append(stopwatch(run) / steps[label])
    finally:
        gc.enable()
    notes = {label: "not installed" for label, run in runs.items() if run is None} | dict(notes or {})
    return {label: Timing(group, label, tuple(times), notes.get(label, "")) for label, times in samples.items()}


def stopwatch(run: Run) -> float:
    """Seconds until the result of `run` is ready."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def compiling(make: Callable[[], Callable[..., Any]], *args: Any, donate_argnums: tuple[int, ...] = ()) -> Run:
    """A run that makes a new function, traces it and compiles it; `args` are arrays or their shapes."""
    import jax

    def run() -> None:
        jax.jit(make(), donate_argnums=donate_argnums).lower(*args).compile()

    return run


def ratio(name: str, over: Timing, under: Timing, relation: str, target: float) -> Ratio:
    """The ratio of two medians of one race; NaN if one of the two did not run."""
    if not over.seconds or not under.seconds:
        nan = float("nan")
        return Ratio(name, nan, relation, target, nan, nan, nan)
    rounds = [a / b for a, b in zip(over.seconds, under.seconds, strict=True)]
    low, _, high = statistics.quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else rounds * 3
    best = over.best / under.best
    return Ratio(name, over.median / under.median, relation, target, best, low, high, tuple(rounds))


def race_lines(timings: Mapping[str, Timing], reference: str, scale: float = 1e6) -> list[list[str]]:
    """Cells for a table: group, label, median, min, median over the reference's, note. Times are in 1 / `scale` s."""
    base = timings[reference].median
    return [
        [t.group, t.label, number(t.median * scale), number(t.best * scale), number(t.median / base, 2), t.note]
        for t in timings.values()
    ]


def number(value: float, digits: int = 1) -> str:
    return "-" if value != value else f"{value:,.{digits}f}"


def print_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a rich table; columns of numbers are right-aligned."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        numeric = all(line[i].replace(",", "").replace(".", "").strip("-% ").isdigit() for line in lines if line[i])
        table.add_column(column, justify="right" if numeric else "left")
    for line in lines:
        table.add_row(*line)
    _console().print(table)


def print_ratios(ratios: Sequence[Ratio]) -> None:
    lines = []
    for r in ratios:
        verdict = "-" if r.value != r.value else "met" if r.met else "missed"
        spread = f"{number(r.low, 2)} to {number(r.high, 2)}"
        lines.append([r.name, number(r.value, 3), f"{r.relation} {r.target:.2f}", verdict, number(r.best, 3), spread])
    columns = ["ratio", "of medians", "target", "", "of minima", "middle half of rounds"]
    print_table("Ratios", columns, lines)


def document(
    name: str,
    options: Mapping[str, Any],
    timings: Sequence[Timing],
    ratios: Sequence[Ratio],
    facts: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All measurements and the environment, in a form for JSON; NaN becomes null."""
    return {
        "name": name,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "options": dict(options),
        "facts": dict(facts or {}),
        "timings": [t._asdict() | {"median": _or_none(t.median), "min": _or_none(t.best)} for t in timings],
        "ratios": [
            r._asdict() | {key: _or_none(getattr(r, key)) for key in ("value", "best", "low", "high")} | {"met": r.met}
            for r in ratios
        ],
    }


def environment() -> dict[str, Any]:
    """Versions and hardware, without anything that identifies the machine."""
    import jax

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) if installed(package) else None for package in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device.platform}: {device.device_kind}",
        "cpu_cores": os.cpu_count(),
    }


def write(result: Mapping[str, Any], out: Path | None, *, echo: bool) -> None:
    """Write the document to `out` or under runs/; with `echo` also print it, else print its path."""
    text = json.dumps(result, indent=2)
    path = out or Path("runs") / f"bench-{result['name']}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    if echo:
        print(text)
    else:
        print(f"every sample: {path}", file=sys.stderr)


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=150)
