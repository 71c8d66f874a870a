"""How long does a person wait: for an import, for help, for the first result, for the tests?

Times are whole commands, as ratios to the time that is allowed. `import` is the time beyond that of JAX and optax, and
`help` is that of the slowest command. The commands of `--commands` run once: `contract` and `make quick` in this
checkout, `make demo`, `make test` and `make docs` in a fresh clone of the last commit, installation included.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import timing

ROOT = Path(__file__).parents[2]
IMPORT, HELP = 0.1, 0.3  # most seconds
USUAL = ("demo", "contract", "quick")


class Command(NamedTuple):
    """A command that takes long; `most`: most seconds; `cloned`: whether it runs in a fresh clone."""

    label: str
    arguments: tuple[str, ...]
    most: float
    cloned: bool


LONG = {
    "demo": Command("make demo", ("make", "demo"), 60, cloned=True),
    "contract": Command("contract", (sys.executable, "-m", "experiments", "contract"), 180, cloned=False),
    "quick": Command("make quick", ("make", "quick"), 60, cloned=False),
    "test": Command("make test", ("make", "test"), 480, cloned=True),
    "docs": Command("make docs", ("make", "docs"), 360, cloned=True),
}


def main(argv: list[str]) -> int:
    parser = timing.arguments("waiting", __doc__ or "", rounds=7)
    parser.add_argument("--commands", nargs="*", choices=LONG, default=USUAL, help=f"({' '.join(USUAL)})")
    options = parser.parse_args(argv)
    imports, helps = import_times(options.rounds), help_times(options.rounds)
    beyond = tuple(max(a - b, 0.0) for a, b in zip(imports["ours"].seconds, imports["floor"].seconds, strict=True))
    slowest = max(helps.values(), key=lambda t: t.median)
    waits = [
        (timing.Timing("import", "beyond JAX and optax", beyond), IMPORT),
        (slowest._replace(label="--help", note=f"of {slowest.label}, the slowest"), HELP),
        *((once(LONG[name]), LONG[name].most) for name in options.commands),
    ]
    ratios = [
        timing.ratio(f"{t.label} / {most:g} s", t, t._replace(seconds=(most,) * len(t.seconds)), "<=", 1.0)
        for t, most in waits
    ]
    if not options.json:
        lines = [[t.group, t.label, timing.number(t.median, 2), timing.number(t.best, 2), t.note] for t, _ in waits]
        timing.print_table("What a person waits for", ["what", "command", "s", "min s", "note"], lines)
        timing.print_ratios(ratios)
    timings = [*imports.values(), *helps.values(), *(t for t, _ in waits)]
    shown = {"rounds": options.rounds, "commands": list(options.commands)}
    timing.write(timing.document("waiting", shown, timings, ratios), options.out, echo=options.json)
    return 0


def import_times(rounds: int) -> dict[str, timing.Timing]:
    floor = "import jax, optax"
    return timing.race(
        "import", {"ours": python("-c", f"{floor}, jaxopt_course"), "floor": python("-c", floor)}, rounds
    )


def help_times(rounds: int) -> dict[str, timing.Timing]:
    from experiments.__main__ import COMMANDS

    return timing.race("help", {name: python("-m", "experiments", name, "--help") for name in COMMANDS}, rounds)


def python(*arguments: str) -> timing.Run:
    return lambda: run(sys.executable, *arguments)


def once(command: Command) -> timing.Timing:
    """One run of a long command; no time and a note if it fails or if there is nothing to clone."""
    print(command.label, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if command.cloned:
                run("git", "clone", "--quiet", str(ROOT), folder)
            start = time.perf_counter()
            run(*command.arguments, folder=Path(folder) if command.cloned else ROOT)
            return timing.Timing("command", command.label, (time.perf_counter() - start,))
        except (OSError, subprocess.CalledProcessError) as error:
            return timing.Timing("command", command.label, (), f"did not run: {error}"[:120])


def run(*command: str, folder: Path = ROOT) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
