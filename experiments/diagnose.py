"""Training runs with planted problems: what `jc.diagnose` finds, and whether its advice lowers the loss."""

import argparse
import json
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import track

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.problems import describe
from experiments.report import Picture, Table, facts, html_page, print_blocks
from experiments.runs import Run, plain, start_run
from experiments.spoiled import MODELS, SPOILS, Setup, setup, spoils_of, trained, tuned_rate
from jaxopt_course import Cause
from jaxopt_course.diagnosis import Evidence, Finding

SETS = ("digits", "patch10")
MARGIN = 1.2  # a rate that is too high is reduced to 1 / MARGIN of the limit
INTRODUCTION = (
    "Good runs into which one problem was planted: what their probes show, in sentences with numbers; and, in a race "
    "on fresh seeds, the same run with the learning rate that the diagnosis advises."
)


class Advice(NamedTuple):
    """The rate that a finding advises, and the difference in the final loss on fresh seeds with that rate."""

    rate: float
    difference: float
    helps: bool | None


class Case(NamedTuple):
    """A spoiled run and its diagnosis."""

    data: str
    model: str
    spoil: str
    run: Setup
    result: jc.TrainResult
    found: jc.Diagnosis
    advice: Advice | None

    @property
    def is_right(self) -> bool:
        return self.spoil == "nothing" or self.found.cause in SPOILS[self.spoil].causes


def run(args: argparse.Namespace) -> int:
    """Diagnose one run or all of them. Returns 1 if fewer than 9 in 10 diagnoses are right."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    wanted = runs_wanted(args)
    with start_run("diagnose", asked, args.out) as folder:
        sets = {name: jc.data.load(name, root=args.root) for name in dict.fromkeys(data for data, _, _ in wanted)}
        described = [describe(dataset) for dataset in sets.values()]
        folder.note(dtype="float32", data={key: ", ".join(str(one[key]) for one in described) for key in described[0]})
        cases, rates = [], {}
        for data, model, spoil in track(wanted, "diagnose", console=Console(stderr=True), disable=args.quiet):
            key = jax.random.key(args.seed)
            base = setup(sets[data], model)
            if (data, model) not in rates:
                rates[data, model] = tuned_rate(base, key, args.steps)
            cases.append(diagnosed((data, model, spoil), base._replace(rate=rates[data, model]), key, args))
            folder.write_csv("findings.csv", map(row, cases))
            jax.clear_caches()  # no run uses the programs of another, and Linux limits how many fit
        report(folder, cases, args, "; ".join(dataset.source for dataset in sets.values()))
    judged = [case.is_right for case in cases if case.spoil != "nothing"]
    return 0 if sum(judged) >= 0.9 * len(judged) else 1


def runs_wanted(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Data, model and spoil of each run: one run, or every existing combination of the given names."""
    sets, models, spoils = ([name] if name else None for name in (args.data, args.model, args.spoil))
    every = [
        (data, model, spoil)
        for data in sets or (SETS if args.all else ("digits",))
        for model in models or (MODELS if args.all else ("mlp",))
        for spoil in spoils or (("nothing", *SPOILS) if args.all else ("rate",))
        if spoil in ("nothing", *spoils_of(model))
    ]
    if not every:
        raise UsageError(f"--spoil {args.spoil}: a {args.model} model has none")
    return every


def diagnosed(names: tuple[str, str, str], base: Setup, key: jax.Array, args: argparse.Namespace) -> Case:
    """Spoil a run, train it, diagnose it, and race the advised rate against the original rate."""
    spoil = names[2]
    spoiled = base if spoil == "nothing" else SPOILS[spoil].change(base)
    result = trained(spoiled, jax.random.fold_in(key, 1), args.steps)
    found = jc.diagnose(result)
    rate = advised_rate(found.findings[0], spoiled.rate)
    return Case(*names, spoiled, result, found, None if rate is None else raced(spoiled, rate, key, args))


def advised_rate(finding: Finding, rate: float) -> float | None:
    """The rate that a finding advises; None if it does not concern the rate."""
    match finding.cause:
        case Cause.RATE_TOO_HIGH:
            return rate / (MARGIN * max(finding.factor, 1.0))
        case Cause.RATE_TOO_LOW:
            return rate * finding.factor
        case Cause.NOISE_LIMITED:
            return rate / 2
    return None


def raced(run: Setup, rate: float, key: jax.Array, args: argparse.Namespace) -> Advice:
    grid = {"as it was": {"learning_rate": [run.rate]}, "as advised": {"learning_rate": [rate]}}
    race = jc.race(
        run.objective, dict.fromkeys(grid, run.make), grid, run.init, run.data, key=jax.random.fold_in(key, 2),
        num_seeds=1, num_fresh_seeds=args.fresh_seeds, batch_size=run.batch_size, num_steps=args.steps,
        progress=False,
    )  # fmt: skip
    compared = race.compare("as advised", "as it was")
    return Advice(rate, compared.difference, None if compared.better is None else compared.better == "as advised")


def report(folder: Run, cases: list[Case], args: argparse.Namespace, source: str) -> None:
    """Write rows, figures and the page, and print the findings."""
    rows = [row(case) for case in cases]
    blocks: list[Any] = [table(cases)] if args.all else []
    for case in cases:
        name = f"{case.data}-{case.model}-{case.spoil}"
        title = f"{case.data}, {case.model} model: {said(case.spoil)}"
        figure = jc.plots.diagnosis(case.result, title=title)
        shown = [title + "\n" + str(case.found), measured(case)] if not args.all else []
        blocks += [*shown, Picture(folder.write_figure(f"{name}.png", figure), f"{title}. {case.found}")]
    page = html_page("Diagnoses", INTRODUCTION, blocks, facts(folder.manifest, source))
    (folder.folder / "report.html").write_text(page, encoding="utf-8")
    folder.note(results=rows)
    if args.json:
        print(json.dumps({"folder": str(folder.folder), "results": rows}, default=plain))
    elif not args.quiet:
        print_blocks(*blocks, f"{folder.folder}/report.html")


def said(spoil: str) -> str:
    return "as tuned" if spoil == "nothing" else SPOILS[spoil].said


def row(case: Case) -> dict[str, Any]:
    first = case.found.findings[0]
    return {
        "data": case.data,
        "model": case.model,
        "spoil": case.spoil,
        "expected": None if case.spoil == "nothing" else " ".join(SPOILS[case.spoil].causes),
        "found": first.cause.value,
        "certain": first.certain,
        "factor": first.factor,
        "leaf": first.leaf,
        "right": case.is_right,
        "all": " ".join(map(name_of, case.found.findings)),
        "rate": case.run.rate,
        "advised_rate": case.advice.rate if case.advice else None,
        "loss_difference": case.advice.difference if case.advice else None,
        "helps": case.advice.helps if case.advice else None,
    }


def table(cases: list[Case]) -> Table:
    """A table with one line for each run, and the number of right diagnoses."""
    judged = [case for case in cases if case.spoil != "nothing"]
    wrong = [case for case in judged if not case.is_right and case.found.findings[0].certain]
    advised = [case.advice for case in judged if case.advice]
    helped = sum(bool(advice.helps) for advice in advised)
    note = (
        f"In {sum(case.is_right for case in judged)} of {len(judged)} spoiled runs the first finding is the planted "
        f"cause; in {len(wrong)} the first finding is another cause and is called certain. A question mark: not "
        "certain. A rate x 10 may show as noise: both findings advise to lower it. Races of the advised rate against "
        f"the original one, on fresh seeds: the loss is shown to be lower in {helped} of {len(advised)}."
    )
    lines = [
        [
            case.data,
            case.model,
            said(case.spoil),
            name_of(case.found.findings[0]) + ("" if case.is_right else " (wrong)"),
            f"{case.found.findings[0].factor:.3g}",
            case.found.findings[0].leaf or "",
            ", ".join(map(name_of, case.found.findings[1:])),
            outcome_of(case.advice),
        ]
        for case in cases
    ]
    head = ["data", "model", "spoiled by", "found", "factor", "leaf", "also", "advice raced: loss"]
    return Table(head, lines, "Runs that were spoiled on purpose", note, len(head), "(wrong)")


def name_of(finding: Finding) -> str:
    return f"{finding.cause}{'' if finding.certain else '?'}"


def outcome_of(advice: Advice | None) -> str:
    if advice is None:
        return ""
    verdict = {True: "lower", False: "higher", None: "not told apart"}[advice.helps]
    return f"{advice.difference:+.2g} ({verdict})"


def measured(case: Case) -> Table:
    """A table of the probes' results at the start and at the end."""
    seen = Evidence.of(case.result)
    named = {
        "loss": "loss", "rate / stability limit": "over", "lowest curvature, in units of the rate": "lowest",
        "left to gain, units of loss": "left", "held up by noise, units of loss": "floor",
        "noise scale, examples": "noise_scale", "critical batch, examples": "critical_batch",
        "trace of the Hessian": "trace",
    }  # fmt: skip
    lines = [[name, str(getattr(seen.first, field)), str(getattr(seen.last, field))] for name, field in named.items()]
    cosines = seen.looks.cosine
    lines.append(["cosine of successive gradients", f"{cosines[0]:.2f}", f"{cosines[-1]:.2f}"])
    note = f"Rate {case.run.rate:.3g}, minibatches of {case.run.batch_size}; in brackets intervals of 99.9 %." + (
        f" The rate advised is {case.advice.rate:.3g}: loss {outcome_of(case.advice)}." if case.advice else ""
    )
    return Table(["measured", "before the first step", "after the last"], lines, "", note)
