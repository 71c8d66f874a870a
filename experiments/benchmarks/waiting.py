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

from experiments.benchmarks import timing

ROOT = Path(__file__).parents[2]
IMPORT, HELP = 0.1, 0.3  # most seconds
LONG = {"demo": 60, "contract": 180, "quick": 60, "test": 480, "docs": 360}  # most seconds of each command
CLONED = ("demo", "test", "docs")
USUAL = ("demo", "contract", "quick")


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
        *((once(name), LONG[name]) for name in options.commands),
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


def once(name: str) -> timing.Timing:
    """One run of a long command; no time and a note if it fails or if there is nothing to clone."""
    command = [sys.executable, "-m", "experiments", "contract"] if name == "contract" else ["make", name]
    label = "contract" if name == "contract" else f"make {name}"
    print(label, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if name in CLONED:
                run("git", "clone", "--quiet", str(ROOT), folder)
            start = time.perf_counter()
            run(*command, folder=Path(folder) if name in CLONED else ROOT)
            return timing.Timing("command", label, (time.perf_counter() - start,))
        except (OSError, subprocess.CalledProcessError) as error:
            return timing.Timing("command", label, (), f"did not run: {error}"[:120])


def run(*command: str, folder: Path = ROOT) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
