"""Check every optimizer of ours and every alias of optax with `check_optimizer`."""

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, NamedTuple

import optax
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

import jaxopt_course as jc
from experiments.contestants import aliases, contestant, contestants
from experiments.report import Block, Picture, Table, html_page, print_blocks
from experiments.runs import Run, plain, start_run

OURS: dict[str, Any] = {
    "sgd": jc.sgd,
    "momentum": jc.momentum,
    "nesterov": lambda rate: jc.momentum(rate, nesterov=True),
    "adagrad": jc.adagrad,
    "rmsprop": jc.rmsprop,
    "adam": jc.adam,
    "adam_uncorrected": lambda rate: jc.adam(rate, bias_correction=False),
    "lbfgs": jc.lbfgs(),
    "newton": jc.newton(),
    "newton_cg": jc.newton_cg(),
}
INTRODUCTION = (
    "The properties that loops, compilers, sweeps and checkpoints rely on, checked for each optimizer. Each failure is "
    "shown with the smallest parameters that cause it."
)
SLOW = ("lbfgs", "newton")  # words in the names of optimizers with a line search, which are slow to check
FEW = 4  # start one process for this many optimizers
MOST_WORKERS = 8


class Checked(NamedTuple):
    name: str
    report: jc.contract.ContractReport
    seconds: float


def label(name: str) -> str:
    return name if name in OURS else contestant(name).label


def subject(name: str) -> Any:
    """The argument of `check_optimizer`: a factory if it takes a learning rate, else an optimizer."""
    if name in OURS:
        return OURS[name]
    factory = contestant(name).make
    takes_rate = next(iter(inspect.signature(factory).parameters), "") == "learning_rate" and name != "optax.lbfgs"
    if name.startswith("optax.") and not takes_rate:
        return factory()
    return lambda rate: factory(rate)  # the contract chooses the rate


def run(args: argparse.Namespace) -> int:
    """Check, write the folder, print the tables. Returns 1 if an optimizer that is not optax's fails."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    chosen = list(dict.fromkeys(args.optimizers or [*OURS, *aliases()]))
    contestants((name for name in chosen if name not in OURS), OURS)  # raises early if a name is wrong
    with start_run("contract", asked, args.out) as folder:
        reports, seconds = {}, {}
        for name, report, spent in checked(chosen, quiet=args.quiet or args.json):
            reports[label(name)], seconds[name] = report, round(spent, 2)
            folder.note(checking_seconds=seconds)
        reports = {label(name): reports[label(name)] for name in chosen}
        ok = all(report.ok for name, report in reports.items() if not name.startswith("optax."))
        folder.note(dtype="float32", ok=ok)
        write(folder, reports, args, ok)
    return 0 if ok else 1


def checked(names: list[str], quiet: bool) -> Iterator[Checked]:
    """Check the optimizers in several processes, the slowest first, and yield the results as they finish."""
    names = sorted(names, key=lambda name: not any(word in name for word in SLOW))
    workers = min(os.cpu_count() or 1, len(names) // FEW, MOST_WORKERS)
    with Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("contract", total=len(names))
        for found in map(check, names) if workers < 2 else _in_processes(names, workers):
            progress.update(task, advance=1, description=f"contract: {found.name} {found.seconds:.0f} s")
            yield found


def _in_processes(names: list[str], workers: int) -> Iterator[Checked]:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(check, name) for name in names]):
            yield future.result()


def check(name: str) -> Checked:
    """Check one optimizer by its name, which can be passed to another process."""
    began = time.perf_counter()
    report = jc.check_optimizer(subject(name))
    return Checked(name, report, time.perf_counter() - began)


def write(folder: Run, reports: Mapping[str, jc.contract.ContractReport], args: argparse.Namespace, ok: bool) -> None:
    clauses = [row.name for row in next(iter(reports.values())).rows]
    rows = [
        {"optimizer": name, "clause": row.name, "outcome": str(row.outcome), "detail": row.detail, "case": row.case}
        for name, report in reports.items()
        for row in report.rows
    ]
    folder.write_csv("rows.csv", rows)
    outcomes = {name: [str(row.outcome) for row in report.rows] for name, report in reports.items()}
    figure = jc.plots.contract_grid(outcomes, clauses, title=f"The contract: ours, and optax {optax.__version__}")
    caption = (
        f"{len(reports)} optimizers and {len(clauses)} clauses, on small float32 trees. A dot: kept; a cross: broken; "
        "empty: does not apply."
    )
    blocks: list[Block] = [*tables(reports, clauses), Picture(folder.write_figure("contract.png", figure), caption)]
    manifest = folder.manifest
    how = {
        "command": f"python -m experiments contract {' '.join(sys.argv[2:])}".strip(),
        "device": manifest["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items() if version),
        "source": manifest["source"],
    }
    page = html_page("The contract of an optimizer", INTRODUCTION, blocks, how)
    (folder.folder / "report.html").write_text(page, encoding="utf-8")
    failed = {name: [row.name for row in report.failed] for name, report in reports.items()}
    folder.note(results=failed)
    if args.json:
        print(json.dumps({"folder": str(folder.folder), "ok": ok, "failed": failed}, default=plain))
    elif not args.quiet:
        print_blocks(*blocks, f"{folder.folder}/report.html")


def tables(reports: Mapping[str, jc.contract.ContractReport], clauses: Sequence[str]) -> Iterator[Table]:
    summary = [
        [
            name,
            str(sum(row.outcome == "passed" for row in report.rows)),
            str(len(report.failed)),
            str(sum(row.outcome == "not applicable" for row in report.rows)),
            report["response to scaling"].detail,
            report["equivariance"].detail,
        ]
        for name, report in reports.items()
    ]
    columns = ["optimizer", "kept", "broken", "n/a", "response to c times the gradient", "equivariance"]
    yield Table(columns, summary, f"{len(clauses)} clauses", left=1)
    broken = [
        [name, row.name, row.detail, row.case]
        for name, report in reports.items()
        for row in report.rows
        if row in report.failed
    ]
    if broken:
        yield Table(["optimizer", "clause", "what is broken", "smallest case"], broken, "What is broken", left=4)
