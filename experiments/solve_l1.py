"""Softmax regression with an L1 penalty, for decreasing strengths from the one at which every weight is 0.

Each strength starts from the solution of the previous one. The bias is not penalized.
"""

import argparse
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_course as jc
from experiments.problems import describe
from experiments.report import Block, Picture, Table, facts, html_page, print_blocks
from experiments.runs import Run, start_run

STRENGTHS = 12
RANGE = 1e-3  # the weakest strength, relative to the one from which on every weight is 0
SHOWN = 5  # strengths whose W is drawn
GTOL = 5e-9
INTRODUCTION = (
    "The lecture's R(W) with |w| instead of w squared. The penalty sets weights exactly to 0. The stronger it is, the "
    "fewer pixels are used."
)


class Path(NamedTuple):
    """The solutions for every strength: `weights` is `[S, C, D]`."""

    strengths: np.ndarray
    weights: np.ndarray
    rows: list[dict[str, Any]]


def run(args: argparse.Namespace) -> int:
    """Solve the path, write the folder, print the table. Returns 1 if a claim of success is false."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    with jax.enable_x64(True), start_run("solve", asked, args.out) as folder:
        dataset = jc.data.load(args.data, root=args.root)
        folder.note(dtype="float64", data=describe(dataset))
        path = solve_path(dataset, args.max_steps)
        folder.write_csv("metrics.csv", path.rows)
        folder.write_arrays("params.npz", {"strengths": path.strengths, "weights": path.weights})
        blocks: list[Block] = [table(path, dataset.name), *draw(folder, path, dataset)]
        page = html_page(
            f"Softmax regression with L1 on {dataset.name}",
            INTRODUCTION,
            blocks,
            facts(folder.manifest, dataset.source),
        )
        (folder.folder / "report.html").write_text(page, encoding="utf-8")
        folder.note(results=path.rows)
        if args.json:
            print(json.dumps({"folder": str(folder.folder), "results": path.rows}))
        elif not args.quiet:
            print_blocks(*blocks, f"{folder.folder}/report.html")
    return 1 if any(row["claimed"] and row["residual"] > 1e-8 for row in path.rows) else 0


def solve_path(dataset: jc.data.Dataset, max_steps: int) -> Path:
    images, labels = jnp.asarray(dataset.train[0], float), jnp.asarray(dataset.train[1])
    test_images, test_labels = jnp.asarray(dataset.test[0], float), jnp.asarray(dataset.test[1])
    risk = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
    params = jc.scores.init_linear(
        jax.random.key(0), len(dataset.class_names), images.shape[1], scale=0.0, dtype=jnp.float64
    )
    data = images, labels
    bias = jc.minimize(lambda b: risk(params | {"b": b}, data), jc.lbfgs(), params["b"]).params
    gradient = jax.jit(jax.grad(risk))
    strongest = float(jnp.max(jnp.abs(gradient(params | {"b": bias}, data)["W"])))
    strengths, rows, weights = np.geomspace(strongest, strongest * RANGE, STRENGTHS), [], []
    for strength in strengths:
        result = jc.minimize(
            risk, jc.lbfgs(), params, data=data, l1={"W": strength, "b": 0.0}, gtol=GTOL, max_steps=max_steps
        )
        params = result.params
        W = np.asarray(params["W"])
        rows.append(
            {
                "strength": float(strength),
                "nonzero": int(np.sum(W != 0)),
                "pixels": int(np.sum(np.any(W != 0, axis=0))),
                "value": float(result.value),
                "residual": residual(gradient(params, data), params, strength),
                "evaluations": int(result.num_evals),
                "status": jc.Status(int(result.status)).name,
                "claimed": bool(result.status > 0),
                "test_accuracy": float(jc.accuracy(jc.scores.linear(params, test_images), test_labels)),
            }
        )
        weights.append(W)
    return Path(strengths, np.stack(weights), rows)


def residual(grad: Any, params: Any, strength: float) -> float:
    """The residual of the conditions for a minimum, computed independently of the solver."""
    g, W = np.asarray(grad["W"]), np.asarray(params["W"])
    left = np.where(W == 0, np.maximum(np.abs(g) - strength, 0), np.abs(g + strength * np.sign(W)))
    return float(max(left.max(), np.abs(np.asarray(grad["b"])).max()))


def table(path: Path, name: str) -> Table:
    cells = [
        [
            f"{row['strength']:.3g}",
            f"{row['nonzero']:,} of {path.weights[0].size:,}",
            str(row["pixels"]),
            f"{row['value']:.5f}",
            f"{row['residual']:.1e}",
            str(row["evaluations"]),
            row["status"],
            f"{row['test_accuracy']:.4f}",
        ]
        for row in path.rows
    ]
    columns = ["strength", "weights not 0", "pixels used", "value", "residual", "evaluations", "ended", "test accuracy"]
    note = (
        "Residual: the largest entry of the smallest subgradient, computed again. Evaluations: from the solution in "
        "the row above."
    )
    return Table(columns, cells, f"Softmax regression with L1 on {name}", note)


def draw(folder: Run, path: Path, dataset: jc.data.Dataset) -> list[Picture]:
    paths = path.weights.reshape(len(path.strengths), -1)
    title = f"Weights of softmax regression on {dataset.name} against the strength of L1"
    figure = jc.plots.coefficient_paths(path.strengths, paths, title=title)
    shown = np.unique(np.linspace(1, len(path.strengths) - 1, SHOWN).round().astype(int))
    rows = {f"{path.strengths[i]:.2g}": path.weights[i] for i in shown}
    pictures = jc.plots.templates(
        rows, dataset.image_shape, dataset.class_names, title=f"Rows of W on {dataset.name}, by strength of L1"
    )
    return [
        Picture(
            folder.write_figure("l1_path.png", figure),
            f"Each line is one of the {paths.shape[1]:,} weights. From left to right the penalty is weaker and more of "
            f"them leave 0: {path.rows[0]['nonzero']} at the strongest, {path.rows[-1]['nonzero']:,} at the weakest.",
        ),
        Picture(
            folder.write_figure("l1_templates.png", pictures),
            "Evidence for each class in red, against it in blue; white pixels are not used at all.",
        ),
    ]
