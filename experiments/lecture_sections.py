"""The lecture, section by section. Each is a function of the lesson, and its page shows the function that ran."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_course as jc
from experiments import gradcheck
from experiments.contestants import CONTESTANTS
from experiments.report import Block, Picture, Table
from experiments.runs import Run
from jaxopt_course.landscape import Paths, Settings, basins, descend, escape_time, gradient_field, predict, settled
from jaxopt_course.landscape.quadratic_theory import escape_steps, growth, noise_floor, stability_limit

SURFACES = jc.surfaces.SURFACES
RAVINE = SURFACES["bowl_100"]._replace(window=((-1.5, 4.5), (-1.3, 1.3)))
MILLIONTH = 1e-6  # of the distance from the minimum at the start
NAMES = {rule: contestant.label for rule, contestant in CONTESTANTS.items()} | {"adamw": "AdamW"}
LIBRARIES = ("optax", "torch", "keras")
BATCH = 64
L2 = 1e-3
SMALL = 1e-10  # largest entry of a gradient


class Lesson(NamedTuple):
    """What every section has at hand: images as pixels and as standardised features, and the folder to draw into."""

    folder: Run
    pixels: jc.data.Dataset
    features: jc.data.Dataset
    key: jax.Array
    quick: bool

    @property
    def train(self) -> tuple[jax.Array, jax.Array]:
        return jax.tree.map(jnp.asarray, (self.features.train[0].astype(float), self.features.train[1]))

    @property
    def test(self) -> tuple[jax.Array, jax.Array]:
        return jax.tree.map(jnp.asarray, (self.features.test[0].astype(float), self.features.test[1]))

    def start(self, scale: float = 1e-2) -> dict[str, jax.Array]:
        sizes = len(self.features.class_names), self.features.train[0].shape[1]
        return jc.scores.init_linear(self.key, *sizes, scale=scale, dtype=jnp.float64)

    def some(self, many: int, few: int = 10) -> int:
        """So many of something, or a few where it has to be quick."""
        return min(few, many) if self.quick else many

    def draw(self, name: str, figure: Any, caption: str) -> Picture:
        return Picture(self.folder.write_figure(f"{name}.png", figure, dpi=50 if self.quick else 150), caption)


class Shown(NamedTuple):
    """What a section comes to: a sentence with its number, the numbers by name, and what there is to look at."""

    found: str
    numbers: Mapping[str, float]
    blocks: list[Block]


softmax_risk = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, L2)


def paths(surface: jc.surfaces.Surface, rules: Mapping[str, Any], steps: int) -> dict[str, Paths]:
    """Where each rule goes from the surface's start."""
    return {name: jc.landscape.paths(surface, rule, surface.start, steps) for name, rule in rules.items()}


def steps_to(surface: jc.surfaces.Surface, path: Paths) -> float:
    """Steps after which the distance from the minimum stays below a millionth of the first; infinity if it does not.

    It must be there for the last tenth of the path: an end that is near by chance is no arrival.
    """
    distance = np.linalg.norm(path.params - surface.minimizers[0], axis=-1)
    count = float(settled(distance, MILLIONTH * distance[0]))
    return count if count <= 0.9 * len(distance) else math.inf


def counts(surface: jc.surfaces.Surface, walked: Mapping[str, Paths]) -> str:
    """What `steps_to` finds, in words; of a path that does not arrive, how far away its last tenth still gets."""
    words = []
    for name, path in walked.items():
        count, distance = steps_to(surface, path), np.linalg.norm(path.params - surface.minimizers[0], axis=-1)
        late = distance[-(len(distance) // 10 + 1) :].max() / distance[0]
        words.append(
            f"{name} {count:.0f}" if count < math.inf else f"{name} never in {len(distance) - 1:,} ({late:.0e})"
        )
    return ", ".join(words)


# Images, and two ways to tell them apart


def images(lesson: Lesson) -> Shown:
    pixels, labels = lesson.pixels.train
    rows = [pixels[labels == c][:10].reshape(-1, *lesson.pixels.image_shape) for c in np.unique(labels)]
    names, top = lesson.pixels.class_names, float(pixels.max())
    figure = jc.plots.image_grid(rows, names=names, top=top, title=f"The first of each class ({lesson.pixels.name})")
    caption = f"Training images of {lesson.pixels.name}, a row for each class."
    return Shown(
        f"{len(labels):,} training images and {len(lesson.pixels.test[1]):,} test images of {pixels.shape[1]} numbers.",
        {"training images": len(labels), "test images": len(lesson.pixels.test[1])},
        [lesson.draw("images", figure, caption)],
    )


def nearest_neighbor(lesson: Lesson) -> Shown:
    (pixels, labels), (tests, truth) = lesson.pixels.train, lesson.pixels.test
    model = jc.nearest_neighbor.train(pixels, labels)
    found = {metric: jc.nearest_neighbor.neighbors(model, tests, k=8, metric=metric) for metric in ("l1", "l2")}
    accuracy = {metric: float(np.mean(labels[near[:, 0]] == truth)) for metric, (near, _) in found.items()}
    some = [int(np.flatnonzero(truth == c)[0]) for c in np.unique(truth)]
    near, distance = (np.asarray(part)[some] for part in found["l2"])
    shape, names = lesson.pixels.image_shape, lesson.pixels.class_names
    rows = [np.concatenate([tests[[i]], pixels[near[row]]]).reshape(-1, *shape) for row, i in enumerate(some)]
    said = [["", *(f"{d:,.0f}" for d in row)] for row in distance]
    marked = [[False, *(labels[near[row]] != truth[i]).tolist()] for row, i in enumerate(some)]
    figure = jc.plots.image_grid(
        rows,
        said,
        names=[names[truth[i]] for i in some],
        top=float(pixels.max()),
        title=f"Test images and their nearest training images, L2 ({lesson.pixels.name})",
        marked=marked,
        columns=["test", *map(str, range(1, 9))],
    )
    caption = (
        f"The first test image of each class of {lesson.pixels.name}, and the eight nearest training images with their "
    )
    caption += "distances; a dashed frame: one of another class."
    return Shown(
        f"It gets {accuracy['l1']:.1%} of the test images right by L1 and {accuracy['l2']:.1%} by L2.",
        {f"accuracy, {metric}": value for metric, value in accuracy.items()},
        [lesson.draw("nearest_neighbor", figure, caption)],
    )


def linear_scores(lesson: Lesson) -> Shown:
    inputs, labels = (part[:3] for part in lesson.test)
    scores = np.asarray(jc.scores.linear(lesson.start(scale=0.1), inputs))
    names, pictures = lesson.pixels.class_names, lesson.pixels.test[0][:3].reshape(-1, *lesson.pixels.image_shape)
    truth = [names[label] for label in labels]
    table = Table(
        ["class", *(f"image of {t}" for t in truth)],
        [[n, *(f"{s:.2f}" for s in row)] for n, row in zip(names, scores.T, strict=True)],
    )
    figure = jc.plots.image_grid(
        [pictures],
        [truth],
        names=[""],
        top=float(lesson.pixels.train[0].max()),
        title=f"Three test images ({lesson.pixels.name})",
    )
    right = float(jc.accuracy(jc.scores.linear(lesson.start(scale=0.1), lesson.test[0]), lesson.test[1]))
    return Shown(
        f"With a random W the highest score is right for {right:.1%} of the test images: it has learned nothing yet.",
        {"accuracy of a random W": right},
        [lesson.draw("three_images", figure, f"The first three test images of {lesson.pixels.name}."), table],
    )


def losses(lesson: Lesson) -> Shown:
    classes = len(lesson.features.class_names)
    own = jnp.linspace(-3.0, 6.0, 181)
    scores, label = jnp.zeros((len(own), classes)).at[:, 0].set(own), jnp.zeros(len(own), int)
    kinds = {"multiclass SVM": jax.jit(jc.losses.multiclass_hinge), "softmax": jax.jit(jc.losses.softmax_cross_entropy)}
    lines = {name: np.asarray(loss(scores, label)) for name, loss in kinds.items()}
    title = f"Loss of one image, the other {classes - 1} scores being 0"
    labels = {"xlabel": "score of the true class", "ylabel": "loss"}
    figure = jc.plots.curves(np.asarray(own), lines, title=title, scale="symlog", **labels)
    three = jc.scores.linear(lesson.start(scale=0.1), lesson.test[0][:3])
    rows = [[name, *(f"{v:.4f}" for v in loss(three, lesson.test[1][:3]))] for name, loss in kinds.items()]
    blank = {"W": jnp.zeros((classes, lesson.train[0].shape[1])), "b": jnp.zeros(classes)}
    first = {
        name: float(jc.empirical_risk(jc.scores.linear, loss)(blank, lesson.train)) for name, loss in kinds.items()
    }
    return Shown(
        f"With W = 0 softmax must cost log {classes} = {math.log(classes):.4f} and the SVM {classes - 1}; "
        f"they cost {first['softmax']:.4f} and {first['multiclass SVM']:.4f}.",
        {f"loss of W = 0, {name}": value for name, value in first.items()},
        [
            lesson.draw(
                "losses",
                figure,
                "The SVM's loss is 0 from one above the rest on; that of softmax never is. Linear below 0.001.",
            ),
            Table(["loss", "image 1", "image 2", "image 3"], rows, note="The same three images, the same random W."),
        ],
    )


# The gradient


def gradient_check(lesson: Lesson) -> Shown:
    inputs, labels = (part[:BATCH] for part in lesson.train)
    batch, drawn = (inputs, labels), (np.asarray(inputs), np.asarray(labels))
    problem = gradcheck.Problem(lesson.features, lesson.start(), *drawn, L2, 1, lesson.key)
    walked = list(gradcheck.walk_over(softmax_risk, problem.params, batch))
    report = jc.gradcheck(softmax_risk, problem.params, batch, key=lesson.key)
    valleys = gradcheck.valleys(problem, lesson.folder, gradcheck.STEPS[:: 3 if lesson.quick else 1])
    least = {(row["dtype"], row["method"]): row for row in valleys.csv["valleys"]}["float64", "central"]
    return Shown(
        f"The check says {'right' if report.ok else 'WRONG'} after {report.evaluations} evaluations. Central "
        f"differences in float64 are best at h = {least['best_h']:.0e}, by theory {least['best_h_predicted']:.0e}, "
        f"with an error of {least['least_error']:.0e}.",
        {"best h": least["best_h"], "best h in theory": least["best_h_predicted"], "least error": least["least_error"]},
        [gradcheck.table(gradcheck.WALK, walked, "", gradcheck.WALK_NOTE), str(report), *valleys.blocks[1:]],
    )


def scalar_field(lesson: Lesson) -> Shown:
    hill = SURFACES["hill"]
    field = gradient_field(hill, (81, 81))
    worst = {n: float(np.abs(gradient_field(hill, (n, n)).error[1:-1, 1:-1]).max()) for n in (41, 81)}
    title = "h(x, y) = 2277 / (1 + (x^2 + y^2) / 16)"
    missed = jc.plots.heat_map(
        field,
        title="What np.gradient misses, 81 x 81 points",
        values=np.linalg.norm(field.error, axis=-1),
        label="size of the error",
    )
    return Shown(
        f"np.gradient is off by at most {worst[41]:.2f} m/km inside on 41 x 41 points and {worst[81]:.2f} on 81 x 81: "
        f"half the spacing, 1 / {worst[41] / worst[81]:.2f} of the error. Autodiff has no spacing.",
        {f"largest error, {n} x {n}": value for n, value in worst.items()},
        [
            lesson.draw(
                "field", jc.plots.heat_map(field, title=title), "The height of a mountain as colours: a scalar field."
            ),
            lesson.draw(
                "surface", jc.plots.surface_3d(field, title=title), "The height of the mountain as a surface in space."
            ),
            lesson.draw(
                "gradient",
                jc.plots.gradient_arrows(field, title=title),
                "The gradient of the height as arrows over contours: it points uphill.",
            ),
            lesson.draw(
                "gradient_error",
                missed,
                "Size of the error of np.gradient: most where the field bends, and at the edges.",
            ),
        ],
    )


# Descent


def gradient_descent(lesson: Lesson) -> Shown:
    bowl, rate, steps = SURFACES["bowl_10"], 0.05, lesson.some(60)
    walked = paths(bowl, {"gradient descent": jc.sgd(rate)}, steps)
    path, heights = walked["gradient descent"].params, walked["gradient descent"].values
    theory = predict(Settings(rate), np.diag([1.0, 10.0]), bowl.start, np.arange(steps + 1))
    field, title = gradient_field(bowl, (81, 81)), f"w = w - {rate} * gradient, {steps} steps"
    near = gradient_field(bowl, (61, 61), window=((-1.0, 5.0), (-1.5, 1.5)))
    flat = jc.plots.trajectories(field, walked, title=title, minimizers=bowl.minimizers, dots=True)
    return Shown(
        f"From {heights[0]:.1f} to {heights[-1]:.2g} in {steps} steps. The closed form of every step differs by at "
        f"most {np.abs(theory.mean - path).max():.0e}.",
        {"value": heights[-1], "difference from theory": float(np.abs(theory.mean - path).max())},
        [
            lesson.draw(
                "descent",
                flat,
                "Every step of descent, over the contours of a bowl ten times as steep one way as the other.",
            ),
            lesson.draw(
                "descent_3d",
                jc.plots.surface_3d(near, title=title, paths=walked, view=(48, -70)),
                "The same descent on the surface.",
            ),
        ],
    )


def learning_rates(lesson: Lesson) -> Shown:
    bowl = SURFACES["bowl_10"]
    limit = stability_limit(10.0)
    rates = {f"{part:g} of the limit": part * limit for part in (0.05, 0.4, 0.95, 1.02)}
    walked = paths(bowl, {name: jc.sgd(rate) for name, rate in rates.items()}, lesson.some(40))
    field, title = gradient_field(bowl, (81, 81)), f"Four learning rates; the limit is 2 / L = {limit:g}"
    factor = {name: float(growth(Settings(rate), [10.0])[0]) for name, rate in rates.items()}
    measured = {name: abs(path.params[-1, 1] / path.params[-2, 1]) for name, path in walked.items()}
    last = [*rates][-1]
    return Shown(
        f"At {last} every step is {measured[last]:.4f} times as far out as the one before; theory says "
        f"{factor[last]:.4f}.",
        {f"factor a step at {name}": value for name, value in measured.items()},
        [
            lesson.draw(
                "learning_rates",
                jc.plots.trajectories(field, walked, title=title, minimizers=bowl.minimizers),
                "Descents of one bowl: too small a rate crawls, too large a one climbs out.",
            )
        ],
    )


def learned_templates(lesson: Lesson) -> Shown:
    rates, steps = jnp.asarray([0.01, 0.1, 0.5]), lesson.some(200)

    def descend_at(rate: jax.Array, data: Any) -> Any:
        carry = jc.training.init_carry(jc.sgd(rate), lesson.start())
        full = jnp.broadcast_to(jnp.arange(len(data[1])), (steps, len(data[1])))
        return jc.training.train_steps(softmax_risk, jc.sgd(rate), carry, data, full)

    carry, record = jax.jit(jax.vmap(descend_at, (0, None)))(rates, lesson.train)
    curves = {f"rate {rate:g}": loss[None] for rate, loss in zip(rates, np.asarray(record.loss), strict=True)}
    params = jax.tree.map(lambda leaf: leaf[-1], carry.params)
    right = float(jc.accuracy(jc.scores.linear(params, lesson.test[0]), lesson.test[1]))
    name, names = lesson.features.name, lesson.features.class_names
    grey = len(lesson.features.image_shape) == 2
    colours = "red speaks for the class, blue against it" if grey else "zero is mid-grey"
    rows = jc.plots.templates({"W": np.asarray(params["W"])}, lesson.features.image_shape, names, title=f"W ({name})")
    figure = jc.plots.learning_curves(
        curves, title=f"Full-batch descent ({name})", xlabel="step", ylabel="softmax loss"
    )
    return Shown(
        f"After {steps} steps at rate {rates[-1]:g} the loss is {record.loss[-1, -1]:.3f}, and {right:.1%} of the test "
        "images are right.",
        {"loss": float(record.loss[-1, -1]), "test accuracy": right},
        [
            lesson.draw("full_batch", figure, f"Loss of all training images of {name}, regularised."),
            lesson.draw("templates", rows, f"The rows of W on {name} as images: {colours}."),
        ],
    )


def stochastic_gradients(lesson: Lesson) -> Shown:
    bowl, noise, rate, runs, steps = SURFACES["bowl_10"], 3.0, 0.05, 400, lesson.some(100)
    H, C = np.diag([1.0, 10.0]), noise**2 * np.eye(2)
    starts = np.tile(bowl.start, (runs, 1))
    walked = jc.landscape.paths(bowl, jc.sgd(rate), starts, steps, noise=noise, key=lesson.key)
    theory = predict(Settings(rate), H, bowl.start, np.arange(steps + 1), C)
    floor, last = noise_floor(Settings(rate), H, C), walked.values[:, -1]
    measured, error = float(last.mean()), float(last.std() / math.sqrt(runs))
    rings = {t: theory.covariance[t] for t in (steps // 20, steps // 5, steps) if t}
    title = f"{runs} noisy descents, their mean and 95% of them in theory"
    field = gradient_field(bowl, (81, 81), window=((-1.8, 4.4), (-1.3, 1.3)))
    figure = jc.plots.noisy_ensemble(field, walked, theory.mean, rings, title=title)
    return Shown(
        f"Noise keeps the mean value up: {measured:.3f} +- {error:.3f} over {runs} runs after {steps} steps, "
        f"{theory.value[-1]:.3f} in theory, which is {floor:.3f} in the long run.",
        {"mean value": measured, "in theory": theory.value[-1], "noise floor": floor},
        [
            lesson.draw(
                "noise",
                figure,
                "Each thin line is a noisy run; the mean (black) and the ellipses are by the closed form.",
            )
        ],
    )


# What goes wrong


def ravine(lesson: Lesson) -> Shown:
    bowl, rates = RAVINE, np.geomspace(1e-3, 0.05, lesson.some(60, 6))
    walked = paths(bowl, {"SGD (0.0195)": jc.sgd(0.0195), "SGD (0.002)": jc.sgd(0.002)}, lesson.some(60))
    plain = steps_to(bowl, paths(bowl, {"SGD": jc.sgd(0.0195)}, 1500)["SGD"])
    others = np.linspace(0, 0.98, lesson.some(40, 5))
    factor = np.array([[growth(Settings(rate, rho), [1.0, 100.0]).max() for rate in rates] for rho in others])
    needed = np.where(factor < 1, np.log(1e-6) / np.log(np.minimum(factor, 1 - 1e-12)), np.nan)
    limit = np.array([stability_limit(100.0, rho) for rho in others])
    best, contraction = jc.landscape.quadratic_theory.optimal(1.0, 100.0)
    path = predict(best, np.diag([1.0, 100.0]), bowl.start, np.arange(1500)).mean
    exact = float(settled(np.linalg.norm(path, axis=1), MILLIONTH * float(np.linalg.norm(path[0]))))
    title = "A ravine: curvatures 1 and 100"
    field = gradient_field(bowl, (81, 81))
    chart = jc.plots.learning_rate_map(
        rates,
        others,
        needed,
        title=title,
        other="momentum",
        limit=limit,
        best=(best.learning_rate, best.rho),
        label="steps a millionfold in the long run",
    )
    return Shown(
        f"The steep side allows no rate of {limit[0]:g} or above. At 0.0195 SGD takes {plain:.0f} steps to a millionth "
        f"of the distance. Momentum at its best settings, rate {best.learning_rate:.3f} and rho {best.rho:.2f}, takes "
        f"{exact:.0f} by the closed form; its contraction in the long run, {contraction:.3f} a step, alone would say "
        f"{math.log(MILLIONTH) / math.log(contraction):.0f}.",
        {"stability limit": limit[0], "steps of SGD": plain, "steps with the best momentum": exact},
        [
            lesson.draw(
                "ravine",
                jc.plots.trajectories(field, walked, title=title, dots=True),
                "SGD over the contours of a ravine: zig-zag near the limit, a crawl at a small rate.",
            ),
            lesson.draw(
                "ravine_map",
                chart,
                "log(1e-6) / log(contraction in the long run), by theory, without the transient; the star is the best.",
            ),
        ],
    )


def saddle(lesson: Lesson) -> Shown:
    surface, noise, rate = SURFACES["saddle"], 1e-3, 0.1
    rules = {"SGD": jc.sgd(rate), "momentum": jc.momentum(rate), "Adam": jc.adam(rate)}
    walked = paths(surface, rules, lesson.some(80))
    kind = jc.landscape.classify(surface.fn, jnp.zeros(2))
    keys = jax.random.split(lesson.key, 200)
    leave = jax.jit(jax.vmap(lambda key: escape_time(surface.fn, jnp.zeros(2), jc.sgd(rate), noise, key).steps))
    steps, theory = float(leave(keys).mean()), escape_steps(-1.0, noise, 1.0, rate)
    field = gradient_field(surface, (81, 81))
    near = np.linalg.norm(walked["SGD"].params, axis=1) < 0.5
    title = f"Past a saddle, learning rate {rate:g}"
    return Shown(
        f"At the origin: a {kind.kind}, curvatures {kind.lowest.value:g} and {kind.highest.value:g}. SGD "
        f"spends {near.sum()} of its {len(near) - 1} steps within 0.5 of it. From the saddle itself noise of {noise:g} "
        f"gets it away in {steps:.1f} steps, the mean of {len(keys)} runs; theory says {theory:.1f}.",
        {"steps to escape": steps, "in theory": theory, "steps near the saddle": float(near.sum())},
        [
            lesson.draw(
                "saddle",
                jc.plots.trajectories(field, walked, title=title, every=10),
                "Three rules from beside the ridge of a saddle, a dot every ten steps with their number: SGD all but "
                "stops at the middle.",
            ),
            lesson.draw(
                "saddle_3d",
                jc.plots.surface_3d(field, title=title, paths=walked, view=(50, -25)),
                "The same three paths on the saddle in space.",
            ),
        ],
    )


def local_minima(lesson: Lesson) -> Shown:
    surface, n = SURFACES["himmelblau"], lesson.some(300, 12)
    side = np.linspace(-5, 5, n)
    starts = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2))
    ends = descend(surface.fn, jc.sgd(0.01), starts, lesson.some(300))
    found = basins(ends, surface.minimizers).reshape(n, n)
    shares = np.bincount(found.ravel(), minlength=5) / found.size
    names = [f"({x:.1f}, {y:.1f})" for x, y in surface.minimizers] + ["none"]
    title = f"Where SGD ends from {found.size:,} starts"
    figure = jc.plots.basin_map(side, side, found, names, title=title, minimizers=surface.minimizers)
    return Shown(
        f"Four equal minima share the starts: {', '.join(f'{share:.1%}' for share in shares[:4])}; "
        f"{shares[4]:.1%} end elsewhere.",
        {f"share of {name}": share for name, share in zip(names, shares, strict=True)},
        [lesson.draw("basins", figure, "Basins of the four minima of Himmelblau's function: the start decides.")],
    )


# Every optimizer


def on_a_ravine(lesson: Lesson, name: str, rule: str, rules: Mapping[str, Any], bowl: Any = RAVINE) -> Shown:
    steps = lesson.some(1500)
    walked = paths(bowl, rules, steps)
    needed = {label: steps_to(bowl, path) for label, path in walked.items()}
    early = {label: path.params[: lesson.some(150)] for label, path in walked.items()}
    title = f"{name} in a ravine of curvatures 1 and 100, {lesson.some(150)} steps"
    figure = jc.plots.trajectories(gradient_field(bowl, (81, 81)), early, title=title, minimizers=bowl.minimizers)
    return Shown(
        f"Steps after which the distance stays below a millionth: {counts(bowl, walked)}.",
        {f"steps, {label}": count for label, count in needed.items()},
        [str(jc.conventions.get(rule, "lecture").formula), lesson.draw(f"rule_{rule}", figure, f"{title}.")],
    )


def momentum(lesson: Lesson) -> Shown:
    return on_a_ravine(lesson, "Momentum", "momentum", {"SGD": jc.sgd(0.0195), "momentum": jc.momentum(0.0195, 0.8)})


def nesterov(lesson: Lesson) -> Shown:
    both = {"momentum": jc.momentum(0.01, 0.9), "Nesterov": jc.momentum(0.01, 0.9, nesterov=True)}
    return on_a_ravine(lesson, "Nesterov's momentum", "nesterov", both)


def adagrad(lesson: Lesson) -> Shown:
    return on_a_ravine(lesson, "AdaGrad", "adagrad", {"SGD": jc.sgd(0.0195), "AdaGrad": jc.adagrad(0.5)})


def rmsprop(lesson: Lesson) -> Shown:
    rules = {"AdaGrad": jc.adagrad(0.1), "RMSProp": jc.rmsprop(0.1), "RMSProp, decay 0.9": jc.rmsprop(0.1, decay=0.9)}
    return on_a_ravine(lesson, "RMSProp", "rmsprop", rules)


def adam(lesson: Lesson) -> Shown:
    bowl = SURFACES["bowl_100_turned"]
    uncorrected = jc.adam(0.1, bias_correction=False)
    rules = {"RMSProp": jc.rmsprop(0.1), "Adam, no correction": uncorrected, "Adam": jc.adam(0.1)}
    shown = on_a_ravine(lesson, "Adam", "adam", rules, bowl)
    first = {label: float(np.ptp(path.params[:, 0])) for label, path in paths(bowl, rules, 1).items()}
    said = ", ".join(f"{label} {length:.3f}" for label, length in first.items())
    numbers = {**shown.numbers, **{f"first step, {label}": length for label, length in first.items()}}
    return Shown(f"First step of x at rate 0.1: {said}. {shown.found}", numbers, shown.blocks)


VALLEY = {
    "SGD": (jc.sgd, 0.0015),
    "momentum": (jc.momentum, 0.0005),
    "RMSProp": (jc.rmsprop, 0.01),
    "Adam": (jc.adam, 0.05),
}


def curved_valley(lesson: Lesson) -> Shown:
    surface, steps = SURFACES["rosenbrock"]._replace(window=((-1.6, 1.6), (-0.6, 1.8))), lesson.some(600)
    walked = paths(surface, {f"{name} ({rate})": make(rate) for name, (make, rate) in VALLEY.items()}, steps)
    field, stars, title = gradient_field(surface, (121, 121)), surface.minimizers, "Down a curved valley"
    still = lesson.draw("valley", jc.plots.trajectories(field, walked, title=title, minimizers=stars), title)
    moving = still.path.with_name("descent.gif")
    jc.plots.write_descent(moving, field, walked, title=title, minimizers=stars, frames=lesson.some(60, 3))
    away = {name: float(np.linalg.norm(path.params[-1] - stars[0])) for name, path in walked.items()}
    caption = (
        f"{', '.join(VALLEY)} on Rosenbrock's function, {steps} steps from one start. The learning rates, in brackets, "
        "are chosen for paths that can be told apart; they are nobody's best."
    )
    return Shown(
        f"Distance from the minimum after {steps} steps: {', '.join(f'{n} {d:.2g}' for n, d in away.items())}.",
        {f"distance, {name}": distance for name, distance in away.items()},
        [Picture(moving, caption, still.path)],
    )


def comparison(lesson: Lesson) -> Shown:
    rules = [rule for rule, library in jc.conventions.names() if library == "lecture"]
    lectures = {rule: jc.conventions.get(rule, "lecture") for rule in rules}
    switches = {rule: convention.switches for rule, convention in lectures.items()}
    tracks = {
        "first moment": lambda r: r.b1 > 0 or r.rho > 0,
        "second moment": lambda r: r.second != "none",
        "leaky": lambda r: r.second == "mean",
        "bias correction": lambda r: r.correct_first and r.correct_second,
    }
    rows = [[NAMES[rule], *("yes" if has(switches[rule]) else "no" for has in tracks.values())] for rule in rules]
    apart = [[NAMES[rule], *(parts_from_lecture(rule, library) for library in LIBRARIES)] for rule in rules]
    cells = [cell for row in apart for cell in row[1:] if cell != "-"]
    differing = len(cells) - cells.count("the same")
    return Shown(
        f"Of {len(cells)} rules of the same names in {', '.join(LIBRARIES)}, {differing} part from the lecture's in "
        "form or defaults.",
        {"rules": len(rows), "rules of other libraries": len(cells), "of these apart": differing},
        [
            Table(["optimizer", *tracks], rows, note="Read from the switches of each rule, as the library runs it."),
            "\n\n".join(f"{NAMES[rule]}\n{convention.formula}" for rule, convention in lectures.items()),
            Table(["optimizer", *LIBRARIES], apart, note=PARTING, left=4),
        ],
    )


PARTING = (
    "Where a rule of the same name parts from the lecture's, in its form or its defaults. 16-bit parameters are left "
    "out: the lecture's rules then keep their moments in float32, the others do not."
)


def parts_from_lecture(rule: str, library: str) -> str:
    if (rule, library) not in jc.conventions.names():
        return "-"
    mine, other = jc.conventions.get(rule, "lecture"), jc.conventions.get(rule, library)
    parts = jc.conventions.differences(mine.switches, other.switches)
    return ", ".join(part for part in parts if part != "moment dtype") or "the same"


def race(lesson: Lesson) -> Shown:
    rates, epochs, tuning, fresh = jnp.logspace(-4, 1, 11), lesson.some(15, 2), lesson.some(2, 1), lesson.some(5, 2)
    sizes, count = (len(lesson.features.class_names), lesson.train[0].shape[1]), len(lesson.train[1])
    first, order = jax.random.split(lesson.key, (2, tuning + fresh))
    starts = jax.vmap(lambda key: jc.scores.init_linear(key, *sizes, dtype=jnp.float64))(first)
    plans = jax.vmap(lambda key: jc.data.minibatches(key, count, BATCH, epochs).full.reshape(-1, BATCH))(order)

    def trained(make: Any, rate: jax.Array, start: Any, plan: jax.Array, data: Any) -> tuple[jax.Array, jax.Array]:
        carry = jc.training.init_carry(make(rate), start)
        carry, record = jc.training.train_steps(softmax_risk, make(rate), carry, data, plan)
        return record.loss.reshape(epochs, -1).mean(axis=1), jc.scores.linear(carry.params, lesson.test[0])

    curves, rows = {}, []
    for rule in [*CONTESTANTS.values()][: lesson.some(len(CONTESTANTS), 2)]:
        lanes = jax.vmap(jax.vmap(partial(trained, rule.make), (None, 0, 0, None)), (0, None, None, None))
        loss, scores = jax.device_get(jax.jit(lanes)(rates, starts, plans, lesson.train))  # [rates, seeds, ...]
        finals = np.where(np.isfinite(loss[:, :, -1]), loss[:, :, -1], np.inf)
        best = int(finals[:, :tuning].mean(axis=1).argmin())
        curves[rule.label] = loss[best, tuning:]
        right = np.mean(scores[best, tuning:].argmax(axis=-1) == np.asarray(lesson.test[1]))
        rows.append(
            [
                rule.label,
                f"{rates[best]:.2g}{' (edge)' if best in (0, len(rates) - 1) else ''}",
                f"{curves[rule.label][:, -1].mean():.4f} +- {curves[rule.label][:, -1].std(ddof=1):.4f}",
                f"{right:.4f}",
            ]
        )
    last = {label: curve[:, -1] for label, curve in curves.items()}
    title = f"Softmax on {lesson.features.name}, batches of {BATCH}, each rule at its best rate of {len(rates)}"
    figure = jc.plots.learning_curves(curves, title=title, ylabel="mean loss of the epoch", relative_to="best")
    caption = f"{title}: median and range over {fresh} fresh seeds, above the lowest of all."
    note = (
        f"Rates by {tuning} seeds; mean +- standard deviation over {fresh} others, with the same minibatches for all."
    )
    return Shown(
        f"Mean loss of the last of {epochs} epochs, on {fresh} seeds that had no part in choosing the rates: "
        f"{ahead(last)}",
        {f"loss, {label}": float(values.mean()) for label, values in last.items()},
        [
            lesson.draw("race", figure, caption),
            Table(["optimizer", "best rate", "last epoch's loss", "test accuracy"], rows, note=note),
        ],
    )


def ahead(losses: Mapping[str, np.ndarray]) -> str:
    """Who is lowest, if one is on every seed; otherwise that nobody is."""
    means = {label: float(values.mean()) for label, values in losses.items()}
    best, *others = sorted(means, key=lambda label: means[label])
    if others and all((losses[best] < losses[other]).all() for other in others):
        return f"{best} is lowest on every seed, {means[best]:.4f} on average ({others[0]}: {means[others[0]]:.4f})."
    among = [o for o in others if not (losses[best] < losses[o]).all()]
    return (
        f"nobody is lowest on every seed. {best} has the lowest mean, {means[best]:.4f}, but on some seed it is behind "
        f"{' and '.join(among)}; the highest mean is {max(means.values()):.4f}."
    )


# Second order


def newton(lesson: Lesson) -> Shown:
    surface, bowl, steps = SURFACES["rosenbrock"], SURFACES["bowl_10000"], lesson.some(60)
    walked = paths(surface, {"Newton": jc.newton(), "L-BFGS": jc.lbfgs(), "Adam": jc.adam(0.05)}, steps)
    once = float(paths(bowl, {"Newton": jc.newton(line_search=None)}, 1)["Newton"].values[-1])
    needed = {name: steps_to(surface, path) for name, path in walked.items()}
    upwards = {name: int((np.diff(path.values) > 0).sum()) for name, path in walked.items()}
    title = "Curvature known: Newton and L-BFGS"
    figure = jc.plots.trajectories(
        gradient_field(surface, (121, 121)), walked, title=title, minimizers=surface.minimizers, every=10
    )
    return Shown(
        f"In a bowl of condition 10,000 one Newton step leads from {float(bowl.fn(bowl.start)):.0f} to {once:.0e}. In "
        f"the curved valley, steps after which the distance stays below a millionth: {counts(surface, walked)}. Steps "
        f"that went up: {', '.join(f'{name} {count}' for name, count in upwards.items())}.",
        {"value after one step": once}
        | {f"steps, {name}": count for name, count in needed.items()}
        | {f"steps up, {name}": float(count) for name, count in upwards.items()},
        [
            lesson.draw(
                "newton",
                figure,
                "Rosenbrock's function, a dot every ten steps. The line searches of Newton and L-BFGS take no step "
                "that goes up; Adam has no search.",
            )
        ],
    )


def second_order_on_images(lesson: Lesson) -> Shown:
    methods = {"SGD": jc.sgd(0.3), "Adam": jc.adam(0.03), "L-BFGS": jc.lbfgs(), "Newton-CG": jc.newton_cg()}
    methods = dict([*methods.items()][: lesson.some(4, 3)])
    most = lesson.some(400, 5)

    def solve(rule: Any) -> jc.Result:
        start, data = lesson.start(), lesson.train
        solved = jc.minimize(softmax_risk, rule, start, data=data, max_steps=most, gtol=SMALL, trace=True)
        return jax.device_get(solved)

    results = {name: solve(rule) for name, rule in methods.items()}
    best = min(float(r.value) for r in results.values())
    above = {n: r.trace.value[: int(r.num_steps) + 1] - best for n, r in results.items()}
    evaluations = {n: r.trace.num_evals[: int(r.num_steps) + 1] for n, r in results.items()}
    figure = jc.plots.convergence_curves(
        above,
        {"evaluations of value and gradient": evaluations},
        title=f"Softmax on all of {lesson.features.name}",
        ylabel="loss above the least found",
        floor=1e-14,
    )
    products = {n: f"{r.state.num_products}" if n == "Newton-CG" else "-" for n, r in results.items()}
    rows = [
        [n, f"{r.num_steps}", f"{r.num_evals}", products[n], f"{r.grad_norm:.1e}", jc.Status(int(r.status)).name]
        for n, r in results.items()
    ]
    done = [n for n, r in results.items() if r.grad_norm <= SMALL]
    return Shown(
        f"Gradients with no entry above {SMALL:g} within {most} steps: {', '.join(done) or 'none'}. The least loss is "
        f"{best:.6f}.",
        {f"steps, {n}": float(r.num_steps) for n, r in results.items()} | {"least loss": best},
        [
            lesson.draw(
                "second_order",
                figure,
                "How far above the least loss found, after so many evaluations; products with the Hessian, which the "
                "table has, are not counted.",
            ),
            Table(
                ["method", "steps", "evaluations", "Hessian products", "largest entry of the gradient", "ended"], rows
            ),
        ],
    )
