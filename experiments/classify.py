"""Nearest neighbour against linear classifiers: no training and slow predictions, or training and fast predictions.

Hyperparameters (k, the learning rate) are chosen on a held-out part of the training set. Then every classifier is
trained on the whole training set and evaluated once on the test set.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.problems import LOSSES, describe
from experiments.report import Picture, Table, facts, html_page, print_blocks
from experiments.runs import Run, start_run

RATES = np.logspace(-4, 0, 9)  # for Adam, two per decade
HELD_OUT = 0.2
TIMED_ROUNDS = 3
SHOWN = 8  # neighbours, or mistakes, in a row of images
WRONG = 3  # misclassified test images whose neighbours are shown
METRICS = {"l2": "Nearest neighbour, L2", "l1": "Nearest neighbour, L1"}
LINEAR = {"softmax": "Softmax", "hinge": "SVM"}
WHAT_IT_IS = {
    "patch10": "patch10 (patches of ten photographs, to tell which one; not CIFAR-10)",
    "synthetic": "synthetic (random templates and noise)",
}


class Problem(NamedTuple):
    """Images as pixels for nearest neighbour and standardised for the linear classifiers, in the same order."""

    pixels: jc.data.Dataset
    features: jc.data.Dataset
    fit: np.ndarray  # indices of the training part while hyperparameters are chosen
    held_out: np.ndarray


class Classifier(NamedTuple):
    """A trained classifier and how it was trained; `scores[B, C]` are the scores of the test images."""

    label: str
    model: Any
    scores: np.ndarray
    chosen: str
    tried: list[dict[str, Any]]
    training_seconds: float
    prediction_seconds: float
    neighbors: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def predicted(self) -> np.ndarray:
        return np.argmax(self.scores, axis=1)


def run(args: argparse.Namespace) -> int:
    """Train all four classifiers, write the folder, print the table."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    with start_run("classify", asked, args.out) as folder:
        problem = load_problem(args)
        folder.note(dtype="uint8 pixels; float32 for the linear classifiers", data=describe(problem.pixels))
        classifiers = {metric: nearest(problem, metric, args.k) for metric in METRICS}
        classifiers |= {loss: linear(problem, loss, args) for loss in LINEAR}
        results = [judge(classifier, problem) for classifier in classifiers.values()]
        table = Table(
            list(COLUMNS),
            [[cell(r) for cell in COLUMNS.values()] for r in results],
            title(problem),
            NOTE + REMARKS.get(args.data, ""),
        )
        folder.write_csv("metrics.csv", [row for classifier in classifiers.values() for row in classifier.tried])
        folder.write_arrays("params.npz", {f"{n}/{leaf}": classifiers[n].model[leaf] for n in LINEAR for leaf in "Wb"})
        pictures = draw(folder, problem, classifiers)
        page = html_page(
            title(problem), INTRODUCTION, [table, *pictures], facts(folder.manifest, problem.pixels.source)
        )
        (folder.folder / "report.html").write_text(page, encoding="utf-8")
        folder.note(results=results)
        if args.json:
            print(json.dumps({"folder": str(folder.folder), "results": results}))
        elif not args.quiet:
            print_blocks(table, f"{folder.folder}/report.html")
    return 0


def load_problem(args: argparse.Namespace) -> Problem:
    pixels, features = (jc.data.load(args.data, root=args.root, raw=raw) for raw in (True, False))
    count = len(pixels.train[1])
    order = np.random.default_rng(args.seed).permutation(count)
    fit, held_out = np.split(order, [count - max(1, round(HELD_OUT * count))])
    for name, value in (("--k", max(args.k)), ("--batch-size", args.batch_size)):
        if value > len(fit):
            raise UsageError(f"{name} {value} is more than the {len(fit)} images that remain for choosing it")
    return Problem(pixels, features, fit, held_out)


def nearest(problem: Problem, metric: str, ks: list[int]) -> Classifier:
    images, labels = problem.pixels.train
    classes = len(problem.pixels.class_names)
    model = jc.nearest_neighbor.train(images[problem.fit], labels[problem.fit], num_classes=classes)
    indices, _ = jc.nearest_neighbor.neighbors(model, images[problem.held_out], k=max(ks), metric=metric)
    tried = []
    for k in sorted(set(ks)):
        found = accuracy(jc.nearest_neighbor.vote(model, indices[:, :k]), labels[problem.held_out])
        tried.append({"classifier": METRICS[metric], "setting": "k", "value": k, "validation_accuracy": found})
    k = int(best(tried))
    model, training_seconds = timed(lambda: jc.nearest_neighbor.train(images, labels, num_classes=classes))
    test = jnp.asarray(problem.pixels.test[0])
    scores, seconds = timed(lambda: jc.nearest_neighbor.scores(model, test, k=k, metric=metric))
    shown = min(max(k, SHOWN), len(images))
    near = jax.device_get(jc.nearest_neighbor.neighbors(model, test, k=shown, metric=metric))
    label = METRICS[metric]
    return Classifier(label, model, np.asarray(scores), f"k = {k}", tried, training_seconds, seconds, near)


def linear(problem: Problem, loss: str, args: argparse.Namespace) -> Classifier:
    objective = jc.empirical_risk(jc.scores.linear, LOSSES[loss], jc.losses.l2_penalty, args.l2)
    images, labels = problem.features.train
    fit = jax.tree.map(lambda part: jnp.asarray(part[problem.fit]), (images, labels))
    start_key, order_key = jax.random.split(jax.random.key(args.seed))
    params = jc.scores.init_linear(start_key, len(problem.features.class_names), images.shape[1])
    plan = jc.data.minibatches(order_key, len(fit[0]), args.batch_size, args.epochs).full.reshape(-1, args.batch_size)

    def trained(rate: jax.Array, data: Any, plan: jax.Array) -> Any:
        optimizer = jc.adam(rate)
        return jc.training.train_steps(objective, optimizer, jc.training.init_carry(optimizer, params), data, plan)[
            0
        ].params

    every = jax.jit(jax.vmap(trained, (0, None, None)))(jnp.asarray(RATES, jnp.float32), fit, plan)  # lanes of one run
    tried = []
    for number, rate in enumerate(RATES):
        lane = jax.tree.map(lambda leaf, at=number: leaf[at], every)
        found = accuracy(jc.scores.linear(lane, images[problem.held_out]), labels[problem.held_out])
        tried.append(
            {"classifier": LINEAR[loss], "setting": "rate", "value": float(rate), "validation_accuracy": found}
        )
    chosen = best(tried)
    optimizer, data = jc.adam(chosen), (jnp.asarray(images), jnp.asarray(labels))

    def train(epochs: int) -> Any:
        options = {"batch_size": args.batch_size, "num_epochs": epochs, "progress": False}
        return jc.train(objective, optimizer, params, data, key=order_key, **options).params

    train(1)  # compiles
    began = time.perf_counter()
    model = jax.block_until_ready(train(args.epochs))
    training_seconds = time.perf_counter() - began
    scoring, test = jax.jit(jc.scores.linear), jnp.asarray(problem.features.test[0])
    scores, seconds = timed(lambda: scoring(model, test))
    model = jax.tree.map(np.asarray, model)
    return Classifier(LINEAR[loss], model, np.asarray(scores), f"rate {chosen:.2g}", tried, training_seconds, seconds)


def accuracy(scores: jax.Array, labels: np.ndarray) -> float:
    return float(jc.accuracy(scores, labels))


def best(tried: list[dict[str, Any]]) -> float:
    """The first value with the highest accuracy on the held-out part."""
    return max(tried, key=lambda row: row["validation_accuracy"])["value"]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call and its median time without compilation."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(TIMED_ROUNDS):
        began = time.perf_counter()
        returned = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return returned, float(np.median(seconds))


def judge(classifier: Classifier, problem: Problem) -> dict[str, Any]:
    labels = problem.pixels.test[1]
    return {
        "classifier": classifier.label,
        "chosen": classifier.chosen,
        "validation_accuracy": validation(classifier),
        "test_accuracy": accuracy(jnp.asarray(classifier.scores), labels),
        "training_seconds": classifier.training_seconds,
        "prediction_seconds_per_image": classifier.prediction_seconds / len(labels),
        "model_bytes": sum(int(leaf.nbytes) for leaf in jax.tree.leaves(classifier.model)),
    }


def validation(classifier: Classifier) -> float:
    return max(row["validation_accuracy"] for row in classifier.tried)


def draw(folder: Run, problem: Problem, classifiers: dict[str, Classifier]) -> list[Picture]:
    """Draw the figures, each with its caption."""
    dataset, about = problem.pixels, WHAT_IT_IS.get(problem.pixels.name, problem.pixels.name)
    metric = max(METRICS, key=lambda name: validation(classifiers[name]))
    shown = classifiers[metric]
    figures = {
        "neighbors.png": (
            neighbor_figure(dataset, shown, f"{shown.label}: what is most similar? ({dataset.name})"),
            f"Test images of {about} and their {SHOWN} nearest training images by {metric.upper()} on pixels, "
            f"nearest first: the first test image of each class, then the first {WRONG} that were misclassified, each "
            "with its class at the left. Under a test "
            f"image the class it was given ({shown.chosen}), under a neighbour its class and its distance. A dashed "
            "frame marks what is of another class than the test image.",
        )
    }
    weights = {label: classifiers[loss].model["W"] for loss, label in LINEAR.items()}
    colours = "red speaks for the class, blue against it" if len(dataset.image_shape) == 2 else "zero is mid-grey"
    figures["templates.png"] = (
        jc.plots.templates(
            weights, dataset.image_shape, dataset.class_names, title=f"Rows of W as images ({dataset.name})"
        ),
        f"The learned rows of W on {about}, standardised pixels, as images, one for each class: {colours}.",
    )
    figures["mistakes.png"] = (
        mistake_figure(dataset, classifiers, f"The most confident mistakes ({dataset.name})"),
        f"Test images of {about} that each classifier got wrong with the greatest confidence: the class they were "
        "given, and in brackets the true one. Confidence is the share of votes of nearest neighbour, then the smaller "
        "distance (written); the probability of softmax; the lead over the true class's score of the SVM.",
    )
    return [Picture(folder.write_figure(name, figure), caption) for name, (figure, caption) in figures.items()]


def neighbor_figure(dataset: jc.data.Dataset, classifier: Classifier, title: str) -> Any:
    assert classifier.neighbors is not None
    (images, labels), (tests, truth) = dataset.train, dataset.test
    wrong = classifier.predicted != truth
    first = [np.flatnonzero(truth == number)[0] for number in np.unique(truth)]
    chosen = [*first, *[i for i in np.flatnonzero(wrong) if i not in first][:WRONG]]
    rows, captions, marked = [], [], []
    for at in chosen:
        indices, distances = (part[at][:SHOWN] for part in classifier.neighbors)
        rows.append(np.concatenate([tests[[at]], images[indices]]).reshape(-1, *dataset.image_shape))
        near = [f"{dataset.class_names[labels[i]]}\n{d:,.0f}" for i, d in zip(indices, distances, strict=True)]
        captions.append([dataset.class_names[classifier.predicted[at]], *near])
        marked.append([bool(wrong[at]), *(labels[indices] != truth[at]).tolist()])
    columns = ["test image", *map(str, range(1, len(rows[0])))]
    top = float(images.max())
    names = [dataset.class_names[truth[at]] for at in chosen]
    return jc.plots.image_grid(rows, captions, names=names, top=top, title=title, marked=marked, columns=columns)


def mistake_figure(dataset: jc.data.Dataset, classifiers: dict[str, Classifier], title: str) -> Any:
    tests, truth = dataset.test
    rows, captions = [], []
    for name, classifier in classifiers.items():
        confidence, shown = confidences(name, classifier, truth)
        wrong = np.flatnonzero(classifier.predicted != truth)
        worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
        rows.append(tests[worst].reshape(-1, *dataset.image_shape))
        given = [dataset.class_names[classifier.predicted[i]] for i in worst]
        captions.append(
            [f"{g} {shown(i)}\n({dataset.class_names[truth[i]]})" for i, g in zip(worst, given, strict=True)]
        )
    names = [
        classifier.label.replace(", ", ",\n").replace("Nearest neighbour", "Nearest\nneighbour")
        for classifier in classifiers.values()
    ]
    return jc.plots.image_grid(rows, captions, names=names, top=float(dataset.train[0].max()), title=title)


def confidences(name: str, classifier: Classifier, truth: np.ndarray) -> tuple[np.ndarray, Callable[[int], str]]:
    """The confidence of a classifier on each test image, and a function that formats it."""
    scores = classifier.scores
    top = scores.max(axis=1)
    if name == "softmax":
        probability = np.asarray(jax.nn.softmax(scores.astype(np.float64), axis=1)).max(axis=1)
        return probability, lambda i: f"{probability[i]:.0%}"
    if name == "hinge":
        lead = top - scores[np.arange(len(truth)), truth]
        return lead, lambda i: f"+{lead[i]:.1f}"
    assert classifier.neighbors is not None
    distance = classifier.neighbors[1][:, 0]
    return top - distance / (1 + distance.max()) / 1e3, lambda i: f"at {distance[i]:,.0f}"


def size(count: int) -> str:
    return f"{count / 2**20:,.2f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "classifier": lambda r: r["classifier"],
    "chosen": lambda r: r["chosen"],
    "validation": lambda r: f"{r['validation_accuracy']:.4f}",
    "test accuracy": lambda r: f"{r['test_accuracy']:.4f}",
    "training s": lambda r: f"{r['training_seconds']:.4f}",
    "prediction us/image": lambda r: f"{1e6 * r['prediction_seconds_per_image']:,.2f}",
    "model": lambda r: size(r["model_bytes"]),
}
NOTE = (
    f"Chosen: by the accuracy on {HELD_OUT:.0%} of the training images (validation), then trained on all of them. "
    "Times without compiling, predictions of all test images at once."
)
INTRODUCTION = (
    "Nearest neighbour stores the training images as pixels. It needs no training, but every prediction compares with "
    "all of them. A linear classifier, on standardised pixels, is trained first; then an image costs one product with "
    "a small matrix, and the training images are no longer needed."
)


REMARKS = {
    "patch10": " Held-out patches overlap with training patches, test patches do not: validation accuracy is too high."
}


def title(problem: Problem) -> str:
    name = WHAT_IT_IS.get(problem.pixels.name, problem.pixels.name)
    return (
        f"Classifiers on {name}: {len(problem.pixels.train[1]):,} training, {len(problem.pixels.test[1]):,} test images"
    )
