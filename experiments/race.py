"""The race: every first-order rule trains the same linear classifier, at its best learning rate, beside its optax twin.

It is fair: every rule gets the same grid of learning rates, the same seeds, starts and minibatches. It is a proof: each
rule and its twin in optax take the same steps in float64, and the largest difference along the whole path is a column.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.contestants import CONTESTANTS, Contestant
from experiments.report import Picture, Table, facts, html_page, print_blocks
from experiments.runs import Run, sha256, start_run
from experiments.sweeps import RATES, Problem, Saves, Sweep, load_problem, sharing, swept

SAME = 1e-10  # relative, in float64; rules that differ in one convention part by 1e-4 or more
TIMED_ROUNDS = 7


def run(args: argparse.Namespace) -> int:
    """Race, write the folder, print the table. 1 if a rule is not its twin's equal."""
    if args.resume and not args.checkpoint_dir:
        raise UsageError("--resume needs --checkpoint-dir")
    mesh = sharing(args.devices, args.batch_size)
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    with jax.enable_x64(args.x64), start_run("race", asked, args.out) as folder:
        problem = load_problem(args, mesh)
        dataset = problem.dataset
        folder.note(
            dtype="float64" if args.x64 else "float32",
            data=describe(dataset),
            learning_rates=RATES,
        )
        kept = ("data", "loss", "l2", "batch_size", "epochs", "seeds", "seed", "x64")
        facts = {f"--{name}": asked[name] for name in kept}
        saves = Saves(args.checkpoint_dir, args.resume, facts) if args.checkpoint_dir else None
        sweeps, results = {}, {}
        for name in watch(dict.fromkeys(args.optimizers), args.quiet or args.json):
            sweeps[name] = swept(CONTESTANTS[name], problem, saves)
            results[name] = judge(CONTESTANTS[name], sweeps[name], problem)
        write_outputs(folder, args, problem, sweeps, results)
        if args.json:
            print(json.dumps({"folder": str(folder.folder), "results": list(results.values())}))
        elif not args.quiet:
            table = Table(list(COLUMNS), cells(results), title(args, dataset))
            print_blocks(table, f"{folder.folder}/report.html")
    return 0 if all(result["same_as_optax"] for result in results.values()) else 1


def describe(dataset: jc.data.Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "source": dataset.source,
        "sha256": sha256([*dataset.train, *dataset.test]),
        "train": len(dataset.train[0]),
        "test": len(dataset.test[0]),
        "image_shape": dataset.image_shape,
    }


def judge(contestant: Contestant, sweep: Sweep, problem: Problem) -> dict[str, Any]:
    """The contestant at its best rate: how good, how fast, and how far from its twin."""
    best = sweep.best
    rate = float(RATES[best])
    ours, twin = contestant.make(rate), contestant.twin(rate)
    speed = time_both(ours, twin, problem)
    difference, size = largest_difference(ours, twin, problem)
    return {
        "optimizer": contestant.label,
        "learning_rate": rate,
        "rate_at_edge_of_grid": best in (0, len(RATES) - 1),
        "diverged_runs": int(np.sum(~np.isfinite(sweep.train_loss))),
        **spread("train_loss", sweep.train_loss[best]),
        **spread("test_accuracy", sweep.test_accuracy[best]),
        **speed,
        "largest_difference": difference,
        "relative_difference": difference / size,
        "same_as_optax": bool(difference <= SAME * size),
    }


def spread(name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{name}_mean": float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}


def time_both(ours: Any, twin: Any, problem: Problem) -> dict[str, float]:
    """Steps a second of `train` with either, turn by turn, in medians; and what the first call took beyond that."""
    params, num_steps = problem.start(problem.keys[0]), problem.epochs * (len(problem.train[0]) // problem.batch_size)
    seconds: dict[str, list[float]] = {"ours": [], "optax": []}
    for _ in range(1 + TIMED_ROUNDS):
        for name, optimizer in (("ours", ours), ("optax", twin)):
            began = time.perf_counter()
            result = jc.train(
                problem.objective,
                optimizer,
                params,
                problem.train,
                key=problem.keys[0],
                batch_size=problem.batch_size,
                num_steps=num_steps,
                progress=False,
                mesh=problem.mesh,
            )
            jax.block_until_ready(result.params)
            seconds[name].append(time.perf_counter() - began)
    steady = {name: float(np.median(values[1:])) for name, values in seconds.items()}
    return {
        "steps_per_second": num_steps / steady["ours"],
        "steps_per_second_optax": num_steps / steady["optax"],
        "compile_seconds": seconds["ours"][0] - steady["ours"],
        "compile_seconds_optax": seconds["optax"][0] - steady["optax"],
    }


def largest_difference(ours: Any, twin: Any, problem: Problem) -> tuple[float, float]:
    """Of any parameter at any step between the two paths, each on its own gradients; and the largest parameter.

    In float64, whatever the race runs in: there a rule that differs in one convention stands out by 6 orders.
    """
    params, plan = problem.start(problem.keys[0]), problem.plan(problem.keys[0], problem.epochs)
    with jax.enable_x64(True):
        params, data = jax.tree.map(
            lambda leaf: leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            (params, problem.train),
        )

        def both(carries: tuple[Any, Any], row: jax.Array) -> tuple[tuple[Any, Any], tuple[jax.Array, jax.Array]]:
            batch = jax.tree.map(lambda leaf: leaf[row], data)
            a, _ = jc.training.train_step(problem.objective, ours, carries[0], batch)
            b, _ = jc.training.train_step(problem.objective, twin, carries[1], batch)
            apart = optax.tree.norm(optax.tree.sub(a.params, b.params), ord=jnp.inf)
            return (a, b), (apart, optax.tree.norm(b.params, ord=jnp.inf))

        start = jc.training.init_carry(ours, params), jc.training.init_carry(twin, params)
        _, (apart, size) = jax.jit(lambda start: jax.lax.scan(both, start, plan))(start)
        return float(jnp.max(apart)), float(jnp.max(size))


def write_outputs(
    folder: Run,
    args: argparse.Namespace,
    problem: Problem,
    sweeps: dict[str, Sweep],
    results: dict[str, dict[str, Any]],
) -> None:
    folder.write_csv("metrics.csv", step_rows(sweeps))
    folder.write_jsonl("metrics.jsonl", [*sweep_rows(sweeps), *({"kind": "result", **r} for r in results.values())])
    best = {name: jax.tree.map(lambda leaf, at=s.best: leaf[at], s.params) for name, s in sweeps.items()}
    folder.write_arrays("params.npz", {f"{name}/{leaf}": p[leaf] for name, p in best.items() for leaf in p})
    figures = draw(folder, args, problem, sweeps, results)
    table = Table(list(COLUMNS), cells(results))
    how = facts(folder.manifest, problem.dataset.source)
    page = html_page(title(args, problem.dataset), INTRODUCTION, [table, *figures], how)
    (folder.folder / "report.html").write_text(page, encoding="utf-8")
    folder.note(results=list(results.values()))


def step_rows(sweeps: dict[str, Sweep]) -> Iterator[dict[str, Any]]:
    """Every step of every seed at the best rate."""
    for name, sweep in sweeps.items():
        for seed, (losses, norms) in enumerate(zip(sweep.loss[sweep.best], sweep.grad_norm[sweep.best], strict=True)):
            for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
                yield {
                    "optimizer": name,
                    "learning_rate": RATES[sweep.best],
                    "seed": seed,
                    "step": step,
                    "loss": loss,
                    "grad_norm": norm,
                }


def sweep_rows(sweeps: dict[str, Sweep]) -> Iterator[dict[str, Any]]:
    """The end of every run; JSON has no infinity, so a run that diverged has a loss of null."""
    for name, sweep in sweeps.items():
        for (i, seed), loss in np.ndenumerate(sweep.train_loss):
            yield {
                "kind": "run",
                "optimizer": name,
                "learning_rate": float(RATES[i]),
                "seed": seed,
                "train_loss": float(loss) if np.isfinite(loss) else None,
                "test_accuracy": float(sweep.test_accuracy[i, seed]),
            }


def draw(
    folder: Run,
    args: argparse.Namespace,
    problem: Problem,
    sweeps: dict[str, Sweep],
    results: dict[str, dict[str, Any]],
) -> list[Picture]:
    """The four figures, each with its caption."""
    dataset = problem.dataset
    labels = {name: CONTESTANTS[name].label for name in sweeps}
    on = f"{dataset.name}, {args.loss}"
    by_epoch = {
        labels[name]: s.loss[s.best].reshape(len(problem.keys), problem.epochs, -1).mean(axis=2)
        for name, s in sweeps.items()
    }
    winner = min(results, key=lambda name: results[name]["train_loss_mean"])
    W, b = (sweeps[winner].params[leaf][sweeps[winner].best, 0] for leaf in ("W", "b"))
    predicted = np.argmax(dataset.test[0] @ W.T + b, axis=1)
    classes = len(dataset.class_names)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (dataset.test[1], predicted), 1)
    figures = {
        "learning_curves.png": (
            jc.plots.learning_curves(
                by_epoch, title=f"Training loss at the best learning rate ({on})", ylabel="minibatch loss, epoch mean"
            ),
            f"Loss of each optimizer at its best learning rate on {dataset.name}: median and range over "
            f"{len(problem.keys)} seeds, minibatch losses averaged over each epoch.",
        ),
        "learning_rates.png": (
            jc.plots.rate_robustness(
                RATES,
                {labels[name]: s.train_loss for name, s in sweeps.items()},
                title=f"How much does the learning rate matter? ({on})",
                ylabel="final training loss",
                ceiling=float(sweeps[winner].start_loss.mean()),
            ),
            f"Training loss after {problem.epochs} epochs on {dataset.name} against the learning rate: mean over "
            f"{len(problem.keys)} seeds. The line at the top is the loss before training; runs that ended above it or "
            "diverged count as it. A dot marks the best rate.",
        ),
        "templates.png": (
            jc.plots.templates(
                {labels[n]: s.params["W"][s.best, 0] for n, s in sweeps.items()},
                dataset.image_shape,
                dataset.class_names,
                title=f"Rows of W: what each class looks for ({on})",
            ),
            f"The learned rows of W on {dataset.name} as images, one for each class, first seed: "
            + ("red speaks for the class, blue against it." if len(dataset.image_shape) == 2 else "zero is mid-grey."),
        ),
        "confusion_matrix.png": (
            jc.plots.confusion_matrix(counts, dataset.class_names, title=f"{labels[winner]} on the test images ({on})"),
            f"Test images of {dataset.name} by true and predicted class, for the optimizer with the lowest training "
            f"loss ({labels[winner]}), first seed.",
        ),
    }
    return [Picture(folder.write_figure(name, figure), caption) for name, (figure, caption) in figures.items()]


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "optimizer": lambda r: r["optimizer"],
    "best rate": lambda r: f"{r['learning_rate']:.2g}{' (edge)' if r['rate_at_edge_of_grid'] else ''}",
    "training loss": lambda r: f"{r['train_loss_mean']:.4f} ± {r['train_loss_sd']:.4f}",
    "test accuracy": lambda r: f"{r['test_accuracy_mean']:.4f} ± {r['test_accuracy_sd']:.4f}",
    "steps/s": lambda r: f"{r['steps_per_second']:,.0f}",
    "optax's": lambda r: f"{r['steps_per_second_optax']:,.0f}",
    "compile s": lambda r: f"{r['compile_seconds']:.2f}",
    "from optax": lambda r: f"{r['largest_difference']:.1e}",
    "verdict": lambda r: "same rule" if r["same_as_optax"] else "NOT THE SAME",
}
INTRODUCTION = (
    f"Each optimizer trained a linear classifier at {len(RATES)} learning rates from {RATES[0]:g} to {RATES[-1]:g}, "
    "with the same seeds, starts and minibatches for all. The table shows it at the rate with the lowest mean training "
    "loss: mean and standard deviation over seeds, steps a second beside optax's in the same loop, and the largest "
    "absolute difference of any parameter from the optax twin along the whole path in float64."
)


def title(args: argparse.Namespace, dataset: jc.data.Dataset) -> str:
    return f"Race on {dataset.name}: linear classifier, {args.loss} loss, {args.epochs} epochs, batch {args.batch_size}"


def cells(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [[show(result) for show in COLUMNS.values()] for result in results.values()]


def watch(names: dict[str, None], quiet: bool) -> Iterator[str]:
    """The names one by one, saying on stderr which is under way, where somebody is there to read it."""
    if quiet or not sys.stderr.isatty():
        yield from names
        return
    from rich.progress import track

    yield from track(names, description="race", console=Console(stderr=True), transient=True)
