"""The output of a race: its files, the table, the verdict and the figures."""

import argparse
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_course as jc
from experiments.problems import Problem
from experiments.report import Block, Picture, Table, facts, html_page
from experiments.runs import Run, finite

WIDTH = 120  # characters in a line of the verdict

Row = dict[str, Any]


def write_outputs(
    folder: Run, args: argparse.Namespace, problem: Problem, result: jc.RaceResult, rows: list[Row]
) -> list[Block]:
    folder.write_csv("metrics.csv", step_rows(result.fresh))
    parts = {"run": result.sweep.rows(), "fresh run": result.fresh.rows(), "result": rows}
    folder.write_jsonl("metrics.jsonl", ({"kind": kind, **finite(row)} for kind, part in parts.items() for row in part))
    result.save(folder.folder / "race.npz")
    on = f"{problem.title}, {args.epochs} epochs, batch {problem.batch_size}"
    table = Table(*table_of(rows), f"Race on {on}")
    blocks: list[Block] = [table, textwrap.fill(result.verdict, WIDTH)]
    pictures = [
        Picture(folder.write_figure(name, figure), caption) for name, figure, caption in draw(problem, result, args)
    ]
    points = result.sweep.points(result.labels[0]).count
    introduction = INTRODUCTION.format(points=points, seeds=args.seeds, fresh_seeds=args.fresh_seeds)
    how = facts(folder.manifest, problem.about["source"])
    page = html_page(f"Race on {on}", introduction, [*blocks, *pictures], how)
    (folder.folder / "report.html").write_text(page, encoding="utf-8")
    folder.note(results=rows, ranking=result.ranking, verdict=result.verdict)
    return blocks


def step_rows(fresh: jc.SweepResult) -> Iterator[Row]:
    """One row for each step of every fresh seed; a hyperparameter that a method does not have is None."""
    names = dict.fromkeys(name for label in fresh.labels for name in fresh.points(label))
    for label in fresh.labels:
        point = dict.fromkeys(names) | fresh.best(label).hyperparameters
        for seed, losses in enumerate(fresh.curve(label)[0]):
            for step, loss in enumerate(losses, start=1):
                yield {"optimizer": label, **point, "seed": seed, "step": step, "loss": loss}


def draw(problem: Problem, result: jc.RaceResult, args: argparse.Namespace) -> Iterator[tuple[str, Any, str]]:
    """Yield (file name, figure, caption) for every figure that applies to the problem."""
    fresh, on, name = result.fresh, f"({problem.title})", problem.about["name"]
    by_epoch = {
        label: fresh.curve(label)[0].reshape(args.fresh_seeds, args.epochs, -1).mean(axis=2) for label in fresh.labels
    }
    yield (
        "learning_curves.png",
        jc.plots.learning_curves(by_epoch, title=f"Training loss at the best point {on}", ylabel="minibatch loss"),
        f"Loss of each optimizer at its best point on {name}: median and range over {args.fresh_seeds} fresh seeds, "
        "minibatch losses averaged over each epoch.",
    )
    rates = [result.sweep.points(label) for label in result.labels]
    alone = all([*points] == ["learning_rate"] for points in rates)
    if alone and all(np.array_equal(points["learning_rate"], rates[0]["learning_rate"]) for points in rates):
        order = np.argsort(rates[0]["learning_rate"])
        yield (
            "learning_rates.png",
            jc.plots.rate_robustness(
                rates[0]["learning_rate"][order],
                {label: result.sweep.loss(label)[order] for label in result.labels},
                title=f"How much does the learning rate matter? {on}",
                ylabel="final training loss",
                ceiling=float(result.sweep.start_loss.mean()),
            ),
            f"Training loss after {args.epochs} epochs on {name} against the learning rate: mean over {args.seeds} "
            "seeds. The line at the top is the loss before training, with which runs above it or diverged runs count. "
            "A dot marks the best rate.",
        )
    if problem.classifier is None:
        return
    dataset, score_fn, is_linear = problem.classifier
    learned = {label: jax.tree.map(lambda leaf: leaf[0], fresh.best(label).params) for label in fresh.labels}
    if is_linear:
        colours = "red speaks for the class, blue against it" if len(dataset.image_shape) == 2 else "zero is mid-grey"
        weights = {label: params["W"] for label, params in learned.items()}
        title = f"Rows of W: what each class looks for {on}"
        yield (
            "templates.png",
            jc.plots.templates(weights, dataset.image_shape, dataset.class_names, title=title),
            f"The learned rows of W on {name} as images, one for each class, first fresh seed: {colours}.",
        )
    winner, classes = result.ranking[0][0], len(dataset.class_names)
    predicted = np.argmax(score_fn(learned[winner], jnp.asarray(dataset.test[0])), axis=1)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (dataset.test[1], predicted), 1)
    yield (
        "confusion_matrix.png",
        jc.plots.confusion_matrix(counts, dataset.class_names, title=f"{winner} on the test images {on}"),
        f"Test images of {name} by true and predicted class, for the optimizer with the lowest training loss "
        f"({winner}), first fresh seed.",
    )


INTRODUCTION = (
    "Each optimizer was tuned on {points} points with {seeds} seeds, the same seeds, starts and minibatches for all, "
    "and then run at its best point on {fresh_seeds} fresh seeds. The table shows the loss over all training data on "
    "the fresh seeds with its 95 % interval (places with = are shared: no difference from the first is shown), steps "
    "per second beside optax's in the same loop, and the largest absolute difference of any parameter from the optax "
    "twin along the whole path, both on the same gradients, in float64."
)


def table_of(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """The column names and the cells of the table."""
    measured = [name.removesuffix("_sd") for name in rows[0] if name.endswith("_sd")]

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    def loss(row: Row) -> str:
        if row["fresh_loss_mean"] is None:
            return "diverged"
        low, high = row["fresh_loss_interval"]
        return f"{row['fresh_loss_mean']:.4g} [{number(low, '.4g')}, {number(high, '.4g')}]"

    rate_alone = all([*row["hyperparameters"]] == ["learning_rate"] for row in rows)

    def point(row: Row) -> str:
        return ", ".join(
            f"{'' if rate_alone else f'{name} '}{value:.2g}{' (edge)' if name in row['at_edge'] else ''}"
            for name, value in row["hyperparameters"].items()
        )

    columns: dict[str, Callable[[Row], str]] = {
        "optimizer": lambda r: r["optimizer"],
        "best rate" if rate_alone else "best point": point,
        "place": lambda r: f"{r['place']}{'=' if r['tied'] else ''}",
        "loss on fresh seeds": loss,
        **{
            name.replace("_", " "): lambda r, name=name: (  # type: ignore[misc]
                f"{number(r[f'{name}_mean'], '.4f')} ± {number(r[f'{name}_sd'], '.4f')}"
            )
            for name in measured
        },
        "steps/s": lambda r: number(r["steps_per_second"], ",.0f"),
        "optax's": lambda r: number(r["steps_per_second_optax"], ",.0f"),
        "compile s": lambda r: number(r["compile_seconds"], ".2f"),
        "from optax": lambda r: number(r["largest_difference"], ".1e"),
        "verdict": lambda r: {True: "same rule", False: "NOT THE SAME", None: "-"}[r["same_as_optax"]],
    }
    return list(columns), [[show(row) for show in columns.values()] for row in rows]
