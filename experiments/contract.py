"""Every optimizer of ours and every alias of optax through `check_optimizer`: what is kept and what is broken."""

import argparse
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax
from rich.console import Console
from rich.progress import track

import jaxopt_course as jc
from experiments.arguments import UsageError
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
GIVEN: dict[str, dict[str, Any]] = {"noisy_sgd": {"key": 0}}
INTRODUCTION = (
    "What a loop, a compiler, a sweep or a checkpoint may ask of an optimizer, asked of every one. Each failure is "
    "shown with the smallest parameters that bring it about."
)
Row = dict[str, Any]


def aliases() -> dict[str, Any]:
    """Optax's, at 0.01 where they take a learning rate."""
    found = {}
    for name, function in inspect.getmembers(optax, inspect.isfunction):
        if function.__module__.endswith(".alias"):
            found[f"optax.{name}"] = _factory(name, function)
    return found


def _factory(name: str, function: Callable[..., Any]) -> Any:
    names = list(inspect.signature(function).parameters)
    given = GIVEN.get(name, {})
    if names[0] != "learning_rate" or name == "lbfgs":
        return function(**given)
    return lambda rate: function(rate, **given)


def run(args: argparse.Namespace) -> int:
    """Check, write the folder, print the grid. 1 if one of ours breaks the contract."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    every = OURS | aliases()
    if unknown := set(args.optimizers) - every.keys():
        raise UsageError(f"no optimizer {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    chosen = {name: every[name] for name in args.optimizers or every}
    with start_run("contract", asked, args.out) as folder:
        reports, seconds = {}, {}
        for name in watch(list(chosen), args.quiet or args.json):
            began = time.perf_counter()
            reports[name] = jc.check_optimizer(chosen[name])
            seconds[name] = round(time.perf_counter() - began, 2)
            folder.note(checking_seconds=seconds)
            jax.clear_caches()  # what was compiled for one is of no use to the next
        ok = all(reports[name].ok for name in reports if name in OURS)
        folder.note(dtype="float32", ok=ok)
        write(folder, reports, args, ok)
    return 0 if ok else 1


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


def watch(names: Sequence[str], quiet: bool) -> Iterator[str]:
    yield from track(
        names, "contract", console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()
    )
