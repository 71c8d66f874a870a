"""Training runs on real images with planted problems: the runs, and the changes that spoil them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_course as jc
from jaxopt_course import Cause

BATCH_SIZE, RHO = 64, 0.9
RATES = np.logspace(-4, 0.5, 19)  # four per decade
EXAMPLES, PRODUCTS = 512, 16  # for the curvature at a start
SCALE = 1e3  # factor by which a leaf is scaled
HIDDEN, CHANNELS = 64, (8, 16)

Make = Callable[[Any], optax.GradientTransformation]
Model = tuple[Callable[[jax.Array], Any], Callable[[Any, Any], jax.Array], str, str, tuple[str, ...]]


class Setup(NamedTuple):
    """A training run; a `rate` of NaN is not tuned yet.

    Names of leaves of the parameters: `first` is the leaf to freeze, `last` the leaf to scale. In a start at a saddle,
    all leaves except `kept` are 0.
    """

    objective: Callable[[Any, Any], jax.Array]
    init: Callable[[jax.Array], Any]
    make: Make
    data: Any
    first: str
    last: str
    kept: tuple[str, ...] = ()
    rate: float = math.nan
    batch_size: int = BATCH_SIZE


class Spoil(NamedTuple):
    """A change of a run: its description, the causes of which one should be found, and the change itself."""

    said: str
    causes: tuple[Cause, ...]
    change: Callable[[Setup], Setup]


def setup(dataset: jc.data.Dataset, model: str) -> Setup:
    """Softmax regression on images of norm sqrt(D) with a linear, MLP or convolutional model, trained by momentum."""
    inputs = np.asarray(dataset.train[0], np.float32)
    images = inputs * np.sqrt(inputs.shape[1]) / np.maximum(np.linalg.norm(inputs, axis=1, keepdims=True), 1e-6)
    init, score_fn, first, last, kept = MODELS[model](dataset)
    data = jnp.asarray(images), jnp.asarray(dataset.train[1])
    objective = jc.empirical_risk(score_fn, jc.losses.softmax_cross_entropy)
    return Setup(objective, init, partial(jc.momentum, rho=RHO), data, first, last, kept)


def linear(dataset: jc.data.Dataset) -> Model:
    features = dataset.train[0].shape[1]
    init = partial(jc.scores.init_linear, num_classes=len(dataset.class_names), num_features=features)
    return init, jc.scores.linear, "W", "b", ()


def mlp(dataset: jc.data.Dataset) -> Model:
    classes, features = len(dataset.class_names), dataset.train[0].shape[1]

    def init(key: jax.Array) -> Any:
        layers = jc.scores.init_mlp(key, classes, features, HIDDEN, gain=1.0)
        return {f"{layer} {name}": leaf for layer, leaves in layers.items() for name, leaf in leaves.items()}

    def score_fn(params: Any, images: Any) -> jax.Array:
        layers = {layer: {name: params[f"{layer} {name}"] for name in "Wb"} for layer in ("hidden", "output")}
        return jc.scores.mlp(layers, images, activation=jnp.tanh)

    return init, score_fn, "hidden W", "output b", ()


def conv(dataset: jc.data.Dataset) -> Model:
    """Two convolutions with a stride of 2, tanh after each, and a linear layer.

    Three layers of zeros have no curvature, and no optimizer leaves that point. Two layers of zeros are a saddle, so
    the first layer is kept.
    """
    shape = (*dataset.image_shape, 1)[:3]
    height, width, depth = shape
    classes, flat = len(dataset.class_names), -(-height // 4) * -(-width // 4) * CHANNELS[1]
    kernels = {"first kernel": (5, depth, CHANNELS[0]), "second kernel": (3, *CHANNELS)}

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        params: Any = {}
        for k, (name, (side, inside, outside)) in zip(keys, kernels.items(), strict=False):
            inputs = side * side * inside
            params[name] = jax.random.normal(k, (inputs, outside)) / np.sqrt(inputs)
            params[name.replace("kernel", "bias")] = jnp.zeros(outside)
        return params | {"W": jax.random.normal(keys[2], (flat, classes)) / np.sqrt(flat), "b": jnp.zeros(classes)}

    def score_fn(params: Any, images: Any) -> jax.Array:
        x = images.reshape(-1, *shape).astype(params["W"].dtype)
        for name, (side, _, _) in kernels.items():
            bias = params[name.replace("kernel", "bias")]
            x = jnp.tanh(patches(x, side) @ params[name] + bias[None, None, None])
        return x.reshape(len(x), -1) @ params["W"] + params["b"][None]

    return init, score_fn, "first kernel", "b", ("first kernel", "first bias")


def patches(x: jax.Array, side: int) -> jax.Array:
    """The inputs of each output of a convolution with a stride of 2: `[N, H / 2, W / 2, side * side * C]`."""
    half, (_, height, width, _) = side // 2, x.shape
    x = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    shifts = [(i, j) for i in range(side) for j in range(side)]
    return jnp.concatenate([x[:, i : i + height : 2, j : j + width : 2] for i, j in shifts], axis=-1)


MODELS = {"linear": linear, "mlp": mlp, "conv": conv}


def rescaled(run: Setup) -> Setup:
    """The last leaf in units of a thousandth: the same function, with the rate scaled to its new largest curvature."""

    def objective(params: Any, batch: Any) -> jax.Array:
        return run.objective(params | {run.last: params[run.last] * SCALE}, batch)

    def init(key: jax.Array) -> Any:
        params = run.init(key)
        return params | {run.last: params[run.last] / SCALE}

    scaled = run._replace(objective=objective, init=init)
    return scaled._replace(rate=run.rate * steepest(run) / steepest(scaled))


def steepest(run: Setup) -> float:
    """The largest curvature at a start, on some of the examples."""
    some = jax.tree.map(lambda leaf: leaf[:EXAMPLES], run.data)

    @jax.jit
    def largest(params: Any) -> jax.Array:
        key = jax.random.key(1)
        _, highest = jc.landscape.extreme_curvatures(lambda w: run.objective(w, some), params, key, PRODUCTS)
        return jnp.asarray(highest.value)

    return float(largest(run.init(jax.random.key(0))))


def at_saddle(run: Setup) -> Setup:
    def init(key: jax.Array) -> Any:
        return {name: leaf if name in run.kept else jnp.zeros_like(leaf) for name, leaf in run.init(key).items()}

    return run._replace(init=init)


def with_rate(run: Setup, factor: float) -> Setup:
    return run._replace(rate=factor * run.rate)


def frozen(run: Setup) -> Setup:
    def make(learning_rate: Any) -> optax.GradientTransformation:
        def labels(params: Any) -> dict[str, str]:
            return {name: "frozen" if name == run.first else "moves" for name in params}

        return optax.partition({"moves": run.make(learning_rate), "frozen": optax.set_to_zero()}, labels)

    return run._replace(make=make)


SPOILS = {
    "rate": Spoil("learning rate x 10", (Cause.RATE_TOO_HIGH, Cause.NOISE_LIMITED), partial(with_rate, factor=10)),
    "slow": Spoil("learning rate / 30", (Cause.RATE_TOO_LOW,), partial(with_rate, factor=1 / 30)),
    "batch": Spoil("batch of 1", (Cause.NOISE_LIMITED,), lambda run: run._replace(batch_size=1)),
    "layer": Spoil("a bias scaled by 1,000", (Cause.MIXED_SCALES,), rescaled),
    "saddle": Spoil("two layers zero", (Cause.SADDLE,), at_saddle),
    "frozen": Spoil("a layer frozen", (Cause.DEAD_PARAMETERS,), frozen),
}


def spoils_of(model: str) -> list[str]:
    """The spoils that apply to a model; a linear model has no saddle."""
    return [name for name in SPOILS if name != "saddle" or model != "linear"]


def tuned_rate(run: Setup, key: jax.Array, steps: int) -> float:
    """The rate with the lowest final loss, of four per decade."""
    tuned = jc.sweep(
        run.objective, run.make, {"learning_rate": RATES}, run.init, run.data, key=key, num_seeds=2,
        batch_size=run.batch_size, num_steps=steps, progress=False,
    )  # fmt: skip
    return float(tuned.best().hyperparameters["learning_rate"])


def trained(run: Setup, key: jax.Array, steps: int) -> jc.TrainResult:
    """Train the run with probes; if it becomes non-finite, the result up to there."""
    start, order = jax.random.split(key)
    try:
        return jc.train(
            run.objective, run.make(run.rate), run.init(start), run.data, key=order, batch_size=run.batch_size,
            num_steps=steps, probe_every=max(1, steps // 30), progress=False,
        )  # fmt: skip
    except jc.training.NonFiniteError as error:
        return error.result
