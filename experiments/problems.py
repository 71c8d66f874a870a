"""The problem of a race: a classifier of images, or a problem that a Python file defines."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_course as jc
from experiments.arguments import BATCH_SIZE, UsageError
from experiments.loading import load_file
from experiments.runs import sha256

RATES = np.logspace(-4, 1, 21)  # four per decade
LOSSES = {"softmax": jc.losses.softmax_cross_entropy, "hinge": jc.losses.multiclass_hinge}
ACTIVATIONS = {"relu": (jax.nn.relu, 2.0), "tanh": (jnp.tanh, 1.0)}  # with the gain of the initial weights
NEEDED = ("objective", "init", "data")
BROUGHT = {  # arguments that have no effect if a file defines the problem, with their defaults
    "data": "digits",
    "loss": "softmax",
    "model": "linear",
    "activation": "relu",
    "l2": 1e-4,
}


class Classifier(NamedTuple):
    """A classifier of images, for figures of what was learned."""

    dataset: jc.data.Dataset
    score_fn: Callable[[Any, Any], jax.Array]
    is_linear: bool


class Problem(NamedTuple):
    """The arguments of `jc.race` that are the same for all optimizers; `about` is for the manifest."""

    title: str
    about: dict[str, Any]
    objective: Callable[[Any, Any], Any]
    init: Any
    data: Any
    grid: Mapping[str, Any]
    eval_fn: Callable[[Any], Any] | None
    batch_size: int
    classifier: Classifier | None = None


def load_problem(args: argparse.Namespace) -> Problem:
    """Load the problem from the file if one is given, else make it from images.

    Raises:
      UsageError: the file lacks a definition, an argument has no effect with a file, or a batch exceeds the data.
    """
    problem = of_images(args) if args.problem is None else of_file(args)
    count = min((len(leaf) for leaf in jax.tree.leaves(problem.data) if np.ndim(leaf)), default=0)
    if problem.batch_size > count:
        what = "training images" if problem.classifier else f"examples of {args.problem}"
        raise UsageError(f"--batch-size {problem.batch_size} is more than the {count} {what}")
    return problem


def of_images(args: argparse.Namespace) -> Problem:
    dataset = jc.data.load(args.data, root=args.root)
    classes, features = len(dataset.class_names), dataset.train[0].shape[1]
    train, test = ((jnp.asarray(x, float), jnp.asarray(labels)) for x, labels in (dataset.train, dataset.test))
    if args.model == "linear":
        name, score_fn = "linear classifier", jc.scores.linear
        init = partial(jc.scores.init_linear, num_classes=classes, num_features=features)
    else:
        activation, gain = ACTIVATIONS[args.activation]
        name, score_fn = f"{args.activation} network of one hidden layer", partial(jc.scores.mlp, activation=activation)
        init = partial(jc.scores.init_mlp, num_classes=classes, num_features=features, gain=gain)

    def eval_fn(params: Any) -> dict[str, jax.Array]:
        return {"test_accuracy": jc.accuracy(score_fn(params, test[0]), test[1])}

    return Problem(
        f"{dataset.name}: {name}, {args.loss} loss",
        describe(dataset),
        jc.empirical_risk(score_fn, LOSSES[args.loss], jc.losses.l2_penalty, args.l2),
        init,
        train,
        {"learning_rate": RATES},
        eval_fn,
        args.batch_size or BATCH_SIZE,
        Classifier(dataset, score_fn, args.model == "linear"),
    )


def of_file(args: argparse.Namespace) -> Problem:
    """The problem that a Python file defines by the names `objective`, `init`, `data`, and optional names."""
    path = args.problem
    if void := [f"--{name}" for name, value in BROUGHT.items() if getattr(args, name) != value]:
        raise UsageError(f"{path} defines its own objective, start and data: leave out {', '.join(void)}")
    module = load_file(path)
    if missing := [name for name in NEEDED if not hasattr(module, name)]:
        raise UsageError(
            f"{path} does not define {', '.join(missing)}; a problem is objective(params, batch) -> scalar, init(key) "
            "-> params, and data, a tree of arrays with a leading axis of examples; it may define grid = {name: values}"
            ", eval_fn(params) -> tree of scalars, batch_size"
        )
    for name in ("objective", "eval_fn"):
        if (value := getattr(module, name, None)) is not None and not callable(value):
            raise UsageError(f"{path}: {name} must be a function, it is a {type(value).__name__}")
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(module.data)]
    if not leaves or any(leaf.dtype == object or leaf.ndim == 0 for leaf in leaves):
        raise UsageError(f"{path}: data must be a tree of arrays with a leading axis of examples")
    batch_size = args.batch_size or getattr(module, "batch_size", BATCH_SIZE)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"{path}: batch_size must be a whole number >= 1, it is {batch_size!r:.60}")
    return Problem(
        path.name,
        {"name": path.stem, "source": str(path), "sha256": sha256(leaves), "train": len(leaves[0])},
        module.objective,
        module.init,
        module.data,
        getattr(module, "grid", {"learning_rate": RATES}),
        getattr(module, "eval_fn", None),
        batch_size,
    )


def describe(dataset: jc.data.Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "source": dataset.source,
        "sha256": sha256([*dataset.train, *dataset.test]),
        "train": len(dataset.train[0]),
        "test": len(dataset.test[0]),
        "image_shape": dataset.image_shape,
    }
