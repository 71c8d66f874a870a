"""Two optimizers in lock step on minibatches of real images: their first difference, and the convention behind it."""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.notation import optimizer
from experiments.problems import describe
from experiments.report import Block, Picture, facts, html_page, print_blocks
from experiments.runs import Run, plain, start_run

INTRODUCTION = (
    "Two optimizers take steps on the same minibatches. Where do they first differ, and which of the known conventions "
    "(the place of epsilon, the initial accumulator, ...) explains the difference?"
)
OWN, SHARED = "each on its own path", "on the same gradients"


def run(args: argparse.Namespace) -> int:
    """Compare, write the folder, print the report. Returns 1 if they differ and no known convention explains it."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    with jax.enable_x64(not args.float32):
        a, b = (optimizer(text, args.learning_rate) for text in (args.a, args.b))
        with start_run("parity", asked, args.out) as folder:
            dataset, params, batches = load_problem(args)
            folder.note(dtype="float32" if args.float32 else "float64", data=describe(dataset))
            objective = jc.empirical_risk(
                jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, args.l2
            )
            names = (args.a, args.b) if args.a != args.b else (args.a, f"{args.b} again")
            report = jc.parity(a, b, objective, params, batches, num_steps=args.steps, names=names)
            write(folder, report, args, dataset)
    return 0 if report.first_difference is None or report.explained else 1


def load_problem(args: argparse.Namespace) -> tuple[jc.data.Dataset, Any, list[Any]]:
    dataset = jc.data.load(args.data, root=args.root)
    images, labels = dataset.train
    if args.batch_size > len(images):
        raise UsageError(f"--batch-size {args.batch_size} is more than the {len(images)} training images")
    init_key, order_key = jax.random.split(jax.random.key(args.seed))
    params = jc.scores.init_linear(init_key, len(dataset.class_names), images.shape[1], dtype=float)
    draw = jax.vmap(lambda key: jax.random.choice(key, len(images), (args.batch_size,), replace=False))
    chosen = np.asarray(draw(jax.random.split(order_key, args.steps)))
    return dataset, params, [(jnp.asarray(images[rows], float), jnp.asarray(labels[rows])) for rows in chosen]


def write(folder: Run, report: jc.comparison.ParityReport, args: argparse.Namespace, dataset: jc.data.Dataset) -> None:
    curves = {OWN: report.own, SHARED: report.shared}
    blamed = ",\n".join(report.causes[0].groups) if report.causes else None
    if blamed and report.removed is not None:
        curves[f"with the second's\n{blamed}"] = report.removed
    rows = [{"step": step + 1, **{name: values[step] for name, values in curves.items()}} for step in range(args.steps)]
    folder.write_csv("differences.csv", rows)
    (folder.folder / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    figure = jc.plots.difference_curves(
        curves,
        title=f"{report.names[0]} and {report.names[1]}\non softmax regression, {dataset.name}, {report.dtype}",
        tolerance=report.rtol,
    )
    found = f"Blamed: {report.causes[0]}" if report.causes else str(report.verdict)
    caption = (
        f"Largest difference in any parameter, relative to the size of its path, of two optimizers on minibatches "
        f"of {args.batch_size} {dataset.name} images. {found}."
    )
    picture = Picture(folder.write_figure("differences.png", figure), caption)
    blocks: list[Block] = [str(report), picture]
    title = f"{report.names[0]} and {report.names[1]}: {report.verdict}"
    page = html_page(title, INTRODUCTION, blocks, facts(folder.manifest, dataset.source))
    (folder.folder / "report.html").write_text(page, encoding="utf-8")
    results = {
        "verdict": str(report.verdict),
        "certain": report.certain,
        "causes": [{"groups": cause.groups, "words": str(cause)} for cause in report.causes],
        "first_difference": str(report.first_difference) if report.first_difference else None,
        "ulps": report.ulps,
    }
    folder.note(results=results)
    if args.json:
        print(json.dumps({"folder": str(folder.folder), **results}, default=plain))
    elif not args.quiet:
        print_blocks(*blocks, f"{folder.folder}/report.html")
