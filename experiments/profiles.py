"""Performance profiles of second-order solvers on collections of test problems: ours beside scipy's and the JAX peers'.

`experiments.judging` defines terms such as solved and false success; `experiments.peers` defines how costs are counted.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.progress import track

import jaxopt_course as jc
from experiments import judging, peers
from experiments.arguments import UsageError
from experiments.contestants import contestants
from experiments.judging import COMMON, COSTS, RIVALS, SLOWER, TAUS, Row, costs, judge, summarise, where_ours_lose
from experiments.peers import SOLVERS, Limits, Outcome, Solver, Task, make_task, solver_of
from experiments.report import Block, Picture, Table, facts, html_page, print_blocks
from experiments.runs import Run, finite, plain, sha256, start_run

LARGEST = 100  # most unknowns of a CUTEst problem
CLEARED = 20  # clear the cache of compiled functions after this many problems
TITLES = {"mgh": "Moré-Garbow-Hillstrom", "cutest": "CUTEst", "bounded": "CUTEst within bounds"}
SOURCES = {
    "mgh": "Moré, Garbow and Hillstrom 1981, as in jaxopt_course.mgh",
    "cutest": f"CUTEst as in sif2jax, unconstrained, n <= {LARGEST}",
    "bounded": f"CUTEst as in sif2jax, with bounds only, including Hock and Schittkowski's, n <= {LARGEST}",
}
INTRODUCTION = (
    "Which solver solves how many problems, with how many evaluations? And are its claims of success true? Costs are "
    "counted, not timed. The words of the tables and the counting of evaluations are explained below the tables."
)


def run(args: argparse.Namespace) -> int:
    """Solve, judge, write the folder, print the tables. Returns 1 if one of ours has a false success or crashes."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    solvers = asked_solvers(args)
    with jax.enable_x64(True), start_run("profiles", asked, args.out) as folder:
        tasks, limits = load_tasks(args), Limits(args.gtol, args.max_evals)
        collections = list(dict.fromkeys(task.collection for task in tasks))
        folder.note(
            dtype="float64",
            data={
                "name": args.collection,
                "source": "; ".join(SOURCES[name] for name in collections),
                "sha256": sha256(task.start for task in tasks),
                "problems": [task.name for task in tasks],
            },
            versions=folder.manifest["versions"] | versions(),
            given={name: solver.given for name, solver in solvers.items()},
        )
        rows = solve_all(folder, tasks, solvers, limits, args.quiet or args.json)
        ok = not any(row["false_success"] or row["crashed"] for row in rows if row["solver"] in RIVALS)
        found: dict[str, list[Row]] = {"summary": [], "losses": []}
        blocks: list[Block] = []
        for name in collections:
            own = [row for row in rows if row["collection"] == name]
            summary, lost = summarise(own, solvers), where_ours_lose(own)
            found["summary"] += [{"collection": name, **row} for row in summary]
            found["losses"] += [{"collection": name, **row} for row in lost]
            blocks += [*tables(TITLES[name], own, summary, lost, limits), *draw(folder, name, own, solvers)]
        folder.write_csv("problems.csv", rows)
        for name, listed in found.items():
            folder.write_csv(f"{name}.csv", listed)
        given = [[solver.label, solver.given] for solver in solvers.values()]
        explained: list[Block] = [
            Table(["solver", "given beside start and budget"], given, "Settings of the solvers", left=2),
            *(str(module.__doc__) for module in (judging, peers)),
        ]
        page = html_page(
            f"Performance profiles: {' and '.join(TITLES[name] for name in collections)}",
            INTRODUCTION,
            [*blocks, *explained],
            facts(folder.manifest, folder.manifest["data"]["source"]),
        )
        (folder.folder / "report.html").write_text(page, encoding="utf-8")
        folder.note(ok=ok, results=found["summary"])
        if args.json:
            print(json.dumps({"folder": str(folder.folder), "ok": ok, **finite(found)}, default=plain))
        elif not args.quiet:
            print_blocks(*blocks, f"{folder.folder}/report.html")
    return 0 if ok else 1


def asked_solvers(args: argparse.Namespace) -> dict[str, Solver]:
    """The solvers named on the command line, or all that fit the collection."""
    kind = "bounded" if args.collection == "bounded" else "unbounded"
    if args.solvers is None:
        return {name: solver for name, solver in SOLVERS.items() if getattr(solver, kind)}
    contestants((name for name in args.solvers if name not in SOLVERS), SOLVERS)  # raises early if a name is wrong
    solvers = {name: solver_of(name) for name in args.solvers}
    if unfit := [name for name, solver in solvers.items() if not getattr(solver, kind) and name in SOLVERS]:
        raise UsageError(f"{', '.join(unfit)} cannot solve --collection {args.collection}")
    return solvers


def load_tasks(args: argparse.Namespace) -> list[Task]:
    makers = {"mgh": mgh, "cutest": cutest, "bounded": bounded}
    names = ("mgh", "cutest") if args.collection == "both" else (args.collection,)
    tasks = [task for name in names for task in makers[name]()]
    if not args.problems:
        return tasks
    if unknown := set(args.problems) - {task.name for task in tasks}:
        raise UsageError(f"no problem of {args.collection} is called {', '.join(sorted(unknown))}")
    return [task for task in tasks if task.name in args.problems]


def mgh() -> Iterator[Task]:
    for name, problem in jc.mgh.PROBLEMS.items():
        yield make_task("mgh", name, problem.fn, problem.start, tuple(minimum.value for minimum in problem.minima))


def cutest() -> Iterator[Task]:
    """CUTEst problems without constraints; their expected values are not used, because some are wrong."""
    for problem, start, unravel in from_sif2jax("unconstrained_minimisation_problems"):
        yield make_task("cutest", problem.name, objective_of(problem, unravel), start)


def bounded() -> Iterator[Task]:
    """CUTEst problems with bounds and no other constraints."""
    for problem, start, unravel in from_sif2jax("bounded_minimisation_problems"):
        bounds = [np.broadcast_to(np.asarray(ravel_pytree(bound)[0], float), start.shape) for bound in problem.bounds]
        fn = objective_of(problem, unravel)
        yield make_task("bounded", problem.name, fn, start, bounds=(bounds[0], bounds[1]))


def from_sif2jax(kind: str) -> Iterator[tuple[Any, np.ndarray, Callable[[Any], Any]]]:
    """Problems of a kind with few unknowns: the problem, its start as a vector, and the inverse of flattening."""
    if find_spec("sif2jax") is None:
        raise UsageError("--collection cutest and bounded need sif2jax: pip install 'jaxopt_course[peers]'")
    problems = getattr(importlib.import_module("sif2jax"), kind)
    for problem in {problem.name: problem for problem in problems}.values():
        start, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), problem.y0))
        if len(start) <= LARGEST:
            yield problem, np.asarray(start), unravel


def objective_of(problem: Any, unravel: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jnp.reshape(problem.objective(unravel(x), problem.args), ())


def versions() -> dict[str, str]:
    packages = ("scipy", "optimistix", "jaxopt", "sif2jax")
    return {package: metadata.version(package) for package in packages if find_spec(package)}


# Solving


def solve_all(
    folder: Run, tasks: Sequence[Task], solvers: Mapping[str, Solver], limits: Limits, quiet: bool
) -> list[Row]:
    """Solve every problem by every solver; write each problem to `metrics.jsonl` as soon as it is done."""
    rows = []
    with (folder.folder / "metrics.jsonl").open("w") as file:
        for number, task in enumerate(watch(tasks, quiet), start=1):
            outcomes = {name: attempt(solver, task, limits) for name, solver in solvers.items() if solver.installed}
            judged = judge(task, outcomes)
            rows += judged
            file.writelines(json.dumps(finite(row), default=plain) + "\n" for row in judged)
            file.flush()
            if number % CLEARED == 0:
                jax.clear_caches()
    return rows


def attempt(solver: Solver, task: Task, limits: Limits) -> Outcome | Exception:
    try:
        return solver.solve(task, limits)
    except Exception as error:
        return error


def watch(tasks: Sequence[Task], quiet: bool) -> Iterator[Task]:
    yield from track(
        tasks, "profiles", console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()
    )


# Showing


COLUMNS: dict[str, Callable[[Row], str]] = {
    "solver": lambda r: r["label"],
    **{f"{tau:g}": lambda r, tau=tau: str(r[f"solved_{tau:g}"]) for tau in TAUS},  # type: ignore[misc]
    "other min.": lambda r: str(r["other_minimum"]),
    "false success": lambda r: f"{r['false_success']}{' (!)' * bool(r['false_success'])}",
    "steep": lambda r: str(r["steep_success"]),
    "elsewhere": lambda r: str(r["elsewhere"]),
    "false failure": lambda r: str(r["false_failure"]),
    "crashed": lambda r: f"{r['crashed']}{' (!)' * bool(r['crashed'])}",
    "evals/best": lambda r: number(r["median_ratio_evaluations"], ".2f"),
    "work/best": lambda r: number(r["median_ratio_work"], ".2f"),
    "evals": lambda r: number(r["median_on_common"], ".0f"),
}
LOSSES: dict[str, Callable[[Row], str]] = {
    "ours": lambda r: SOLVERS[r["solver"]].label,
    "problem": lambda r: f"{r['problem']} ({r['n']})",
    "tau": lambda r: f"{r['tau']:g}",
    "cost": lambda r: number(r["cost"], ".0f"),
    "ends at": lambda r: f"{r['value']:.6g}",
    "status": lambda r: r["status"],
    "best peer": lambda r: SOLVERS[r["peer"]].label,
    "its cost": lambda r: number(r["peer_cost"], ".0f"),
    "ends at ": lambda r: f"{r['peer_value']:.6g}",
}
WORDS = {
    "false_success": "false success",
    "elsewhere": "elsewhere",
    "false_failure": "false failure",
    "crashed": "crashed",
}
CLAIMS: dict[str, Callable[[Row], str]] = {
    "solver": lambda r: solver_of(r["solver"]).label,
    "problem": lambda r: f"{r['problem']} ({r['n']})",
    "says": lambda r: r["status"][:44],
    "value": lambda r: f"{r['value']:.6g}",
    "best of all": lambda r: f"{r['best_value']:.6g}",
    "|g|": lambda r: f"{r['grad_norm']:.1e}",
    "what": lambda r: ", ".join(WORDS[flag] for flag in WORDS if r[flag]),
}


def tables(title: str, rows: list[Row], summary: list[Row], lost: list[Row], limits: Limits) -> Iterator[Table]:
    count = len({row["problem"] for row in rows})
    shared = [row["label"] for row in summary if row["solver"] in COMMON and row["installed"]]
    common = max((row["common_problems"] or 0 for row in summary), default=0)
    bottomless = len({row["problem"] for row in rows if row["bottomless"]})
    note = (
        f"float64, gtol {limits.gtol:g}, at most {limits.max_evals:,} evaluations of value and gradient. Problems "
        "solved within each tau, and how many of these at another minimum than the best; false claims. "
        f"Medians: evaluations (work: plus Hessian-vector products) to {TAUS[1]:g} in multiples of the best solver's; "
        f"evaluations on the {common} problems that {', '.join(shared)} all solve. "
        f"{bottomless} problems have no minimum."
    )
    cells = [
        [show(row) for show in COLUMNS.values()]
        if row["installed"]
        else [row["label"], "not installed", *[""] * (len(COLUMNS) - 2)]
        for row in summary
    ]
    yield Table(list(COLUMNS), cells, f"{title}: {count} problems", note, alarm="(!)")
    if lost:
        yield table(
            LOSSES,
            lost,
            f"{title}: where a peer is better",
            f"A peer of the same kind solves it and ours does not, or ours costs more than {SLOWER:g} times as much. "
            "Cost: evaluations of value and gradient, for Newton-CG with Hessian-vector products.",
        )
    if ends := [row for row in rows if any(row[flag] for flag in WORDS)]:
        yield table(CLAIMS, ends, f"{title}: false claims", "", left=3)
    if others := other_minima(rows):
        yield Table(["problem", "value", "best of all", "solvers"], others, f"{title}: other minima", left=4)


def other_minima(rows: list[Row]) -> list[list[str]]:
    """Ends of solvers at another minimum than the best, which count as solved."""
    ends: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["other_minimum"]:
            where = f"{row['problem']} ({row['n']})", f"{row['value']:.4g}", f"{row['best_value']:.4g}"
            ends.setdefault(where, []).append(solver_of(row["solver"]).label)
    return [[*where, ", ".join(labels)] for where, labels in ends.items()]


def table(columns: dict[str, Callable[[Row], str]], rows: list[Row], title: str, note: str, left: int = 2) -> Table:
    return Table(list(columns), [[show(row) for show in columns.values()] for row in rows], title, note, left)


def number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "-"


def draw(folder: Run, collection: str, rows: list[Row], solvers: Mapping[str, Solver]) -> Iterator[Picture]:
    """Draw a performance profile for each cost."""
    tau = TAUS[1]
    for cost, words in COSTS.items():
        spent = {
            solvers[name].label: values
            for name, values in costs(rows, solvers, f"{cost}_{tau:g}").items()
            if solvers[name].drawn
        }
        if not spent:
            continue
        count = len(next(iter(spent.values())))
        title = f"Performance profiles on {TITLES[collection]} ({count} problems, solved at {tau:g})"
        figure = jc.plots.performance_profiles(spent, title=title, cost=words)
        caption = (
            f"Fraction of the {count} problems of {TITLES[collection]} that a solver solved within {tau:g} of the best "
            f"value, or of another minimum, against the ratio of its {words} to those of the solver with the fewest."
        )
        yield Picture(folder.write_figure(f"{collection}_{cost}.png", figure), caption)
