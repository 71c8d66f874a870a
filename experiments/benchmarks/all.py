"""Run every benchmark, one after another, and report what has become slower than in a recorded run.

    python -m experiments bench all --out before.json
    python -m experiments bench all --against before.json

Each benchmark runs in its own process. The compared quantities are ratios (to a peer or to a floor timed in the same
rounds), because absolute times drift from day to day. A ratio is worse beyond noise if its median is worse by more than
5 % and the ratios of the rounds are larger than the recorded ones by a one-sided Mann-Whitney test with an error
probability of 1 in 1,000 per row. Two runs of the same code differ in 1 row of 1,000, or more often if the machine was
busy during one of them. Rows without rounds, such as memory, are compared by the 5 % only.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.arguments import BENCHMARKS
from experiments.benchmarks import timing

NAMES = tuple(name for name in BENCHMARKS if name != "all")
WORSE = 1.05  # a row is slower only if the ratio of medians is above this
ERROR = 1e-3  # error probability of the test for each row
FEWEST = 7  # fewest rounds of each run for which the test can reach that probability


class Change(NamedTuple):
    """A recorded ratio and the ratio now; `factor` above 1 is worse, regardless of the direction of the target."""

    benchmark: str
    name: str
    before: float
    now: float
    factor: float
    verdict: str


def main(argv: list[str]) -> int:
    """Returns 1 if a benchmark failed or a row has become slower."""
    parser = timing.arguments("all", __doc__ or "", rounds=FEWEST)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="(all)")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="a file that an earlier run wrote, to compare with"
    )
    options = parser.parse_args(argv)
    recorded = None if options.against is None else read(options.against)
    documents, failed = {}, []
    for name in options.only:
        done = measured(name, options.rounds)
        if done is None:
            failed.append(name)
        else:
            documents[name] = done
    changes = [] if recorded is None else list(compared(recorded, documents))
    if not options.json:
        if recorded is not None:
            print_changes(changes, options.against)
        if failed:
            print(f"failed: {', '.join(failed)}", file=sys.stderr)
    result = {
        "name": "all",
        "options": {"rounds": options.rounds, "only": options.only},
        "documents": documents,
        "failed": failed,
        "changes": [change._asdict() for change in changes],
    }
    timing.write(result, options.out, echo=options.json)
    return int(bool(failed) or any(change.verdict == "slower" for change in changes))


def measured(name: str, rounds: int) -> dict[str, Any] | None:
    """Run a benchmark in its own process; None if it fails. Its tables are printed to standard error."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "experiments", "bench", name, "--rounds", str(rounds), "--out", str(out)]
        print(f"bench {name}", file=sys.stderr, flush=True)
        ran = subprocess.run(command, stdout=sys.stderr, check=False)
        return json.loads(out.read_text()) if ran.returncode == 0 else None


def read(path: Path) -> dict[str, Any]:
    """The documents of a recorded run by name, of one benchmark or of all; ValueError for another kind of file."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        documents = result["documents"] if result["name"] == "all" else {result["name"]: result}
        for document in documents.values():
            for row in document["ratios"]:
                row["rounds"], row["relation"], row["name"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no file that `bench NAME --out FILE` of this version wrote: {error!r}") from error
    return documents


def compared(recorded: dict[str, Any], documents: dict[str, Any]) -> Iterator[Change]:
    """Compare the rows of both runs, including rows that only one of them has."""
    for benchmark, document in documents.items():
        before = {row["name"]: row for row in recorded.get(benchmark, {"ratios": []})["ratios"]}
        now = {row["name"]: row for row in document["ratios"]}
        for name in dict.fromkeys([*before, *now]):
            yield changed(benchmark, name, before.get(name), now.get(name))


def changed(benchmark: str, name: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> Change:
    from scipy import stats

    old, new = (float("nan") if row is None or row["value"] is None else row["value"] for row in (before, now))
    if before is None or now is None or not (old > 0 and new > 0):
        return Change(benchmark, name, old, new, float("nan"), "only in one run")
    up = now["relation"] == "<="  # a larger ratio is worse
    factor = new / old if up else old / new
    rounds = before["rounds"], now["rounds"]
    if not any(rounds):
        worse = better = True
    elif min(map(len, rounds)) < FEWEST:
        return Change(benchmark, name, old, new, factor, f"not tested: fewer than {FEWEST} rounds")
    else:
        sides = ("less", "greater") if up else ("greater", "less")
        worse, better = (stats.mannwhitneyu(*rounds, alternative=side).pvalue <= ERROR for side in sides)
    verdict = "slower" if worse and factor > WORSE else "faster" if better and factor < 1 / WORSE else ""
    return Change(benchmark, name, old, new, factor, verdict)


def print_changes(changes: list[Change], path: Path) -> None:
    lines = [
        [
            c.benchmark,
            c.name,
            timing.number(c.before, 3),
            timing.number(c.now, 3),
            timing.number(c.factor, 3),
            c.verdict,
        ]
        for c in changes
    ]
    slower = sum(change.verdict == "slower" for change in changes)
    columns = ["benchmark", "ratio", "recorded", "now", "worse by", ""]
    timing.print_table(f"Against {path}: {slower} of {len(changes)} rows slower beyond noise", columns, lines)
