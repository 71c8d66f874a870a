"""Training runs with a planted, known problem: quadratics with chosen curvature, noise and rate.

$$L(w) = \\tfrac12 \\sum_i h_i w_i^2 + x \\cdot w, \\qquad x \\text{ of mean 0 over the data}$$

Curvature and noise are part of the data, so that all runs with the same rule and batch size share compiled programs.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_course as jc

N, SIZE, HALF = 512, 12, 6


class Rule(NamedTuple):
    """A rule, its stability limit lambda eta, the ratio of its steady rate to its plain rate, and its rate."""

    optimizer: Any
    limit: float
    steady: float
    rate: float


def frozen(optimizer: Any) -> Any:
    """The rule for leaf a only; leaf b does not change."""
    return optax.partition({"a": optimizer, "b": optax.set_to_zero()}, {"a": "a", "b": "b"})


RULES = {
    "sgd": Rule(jc.sgd(1e-3), 2.0, 1.0, 1e-3),
    "momentum": Rule(jc.momentum(30.0, 0.9), 3.8, 10.0, 30.0),
    "nesterov": Rule(optax.sgd(0.1, momentum=0.9, nesterov=True), 3.8 / 2.8, 10.0, 0.1),
}
FROZEN = {name: rule._replace(optimizer=frozen(rule.optimizer)) for name, rule in RULES.items()}
BATCHES = (1, 32, N)


class Plant(NamedTuple):
    """A planted run: its cause, the factor if theory predicts one, and other causes that also apply."""

    cause: str
    rule: str
    factor: float | None
    also: set[str]
    result: Any


def objective(params: Any, batch: Any) -> Any:
    w = jnp.concatenate([params["a"], params["b"]])
    return jnp.sum(batch["h"][0] * w**2) / 2 + jnp.mean(batch["x"] @ w)


@jax.jit
def held_out_loss(params: Any) -> Any:
    """A held-out loss in the first entries whose minimum lies between ones and zeros."""
    return jnp.mean((params["a"] - 0.5) ** 2)


def plant(cause: str, seed: int, rules: Sequence[str] = tuple(RULES), batches: Sequence[int] = BATCHES) -> Plant:
    """Make run number `seed` with a cause, with one of the rules and one of the batch sizes.

    NOISE_LIMITED needs a batch that is smaller than the data.
    """
    rng = np.random.default_rng([seed, *map(ord, cause)])
    name, batch = str(rng.choice(list(rules))), int(rng.choice(batches))
    rule, steps, noise, factor, also, eval_fn = RULES[name], 300, 0.0, None, set(), None
    kappa = rng.uniform(2, 5)
    h = np.concatenate([[1, 1 / kappa], rng.uniform(1 / kappa, 1, SIZE - 2)])
    rng.shuffle(h)
    over = rng.uniform(0.55, 0.85)  # the rate over the stability limit
    unit = 10 ** rng.uniform(-3, 3)
    w0 = rng.choice([-1, 1], SIZE) * rng.uniform(0.5, 1.5, SIZE)  # in units in which all entries have equal loss
    if cause == "RATE_TOO_HIGH":
        over = factor = float(rng.choice([1.1, 1.5, 3, 10, 30]))
        noise = float(rng.choice([0, 0.01]))
    elif cause == "EDGE_OF_STABILITY":
        over = factor = rng.uniform(0.93, 0.999)
    elif cause == "RATE_TOO_LOW":
        over = 1 / float(rng.choice([20, 100, 1000])) if name == "sgd" else 1e-3
        steps = int(np.clip(0.5 * kappa / (over * rule.limit * rule.steady), 20, 400))
    elif cause == "NOISE_LIMITED":
        batch, steps = int(rng.choice([size for size in batches if size < N])), 600
        over, noise, factor = rng.uniform(0.1, 0.6), float(rng.choice([1, 10])) * math.sqrt(batch), 2.0 * batch
        also = {"RATE_TOO_HIGH"} if over > 0.5 else set()
    elif cause == "ILL_CONDITIONED":
        factor = 10 ** rng.uniform(4, 5)
        h = np.concatenate([[1], np.full(HALF - 1, 1 / factor), [0.9], np.full(HALF - 1, 1 / factor)])
    elif cause == "SADDLE":
        over = rng.uniform(0.1, 0.5) if name == "sgd" else rng.uniform(0.02, 0.05)
        bend = min(0.5, 12 / (steps * rule.steady * over * rule.limit))
        h[-1], w0[-1] = -bend, w0[-1] * float(rng.choice([1e-8, 1e-12]))
        factor = 1 + bend * over * rule.limit * rule.steady
    elif cause == "DEAD_PARAMETERS":
        factor = 1.0
        if rng.random() < 0.5:
            h[HALF:] = 0
        else:
            rule = FROZEN[name]
    elif cause == "MIXED_SCALES":
        ratio = 10 ** rng.uniform(3.2, 4)
        h[0], h[HALF] = 1, 1
        h[HALF:] /= ratio
        factor, steps = ratio, 100
    elif cause == "OVERFITTING":
        over, eval_fn, unit = 0.005 if name == "sgd" else 3e-4, held_out_loss, 1.0
        h, w0 = np.ones(SIZE), np.ones(SIZE)
        also = {"RATE_TOO_LOW"}
    else:
        noise = 1e-5 * math.sqrt(min(batch, 32))
    scale = over * rule.limit / rule.rate
    size = unit / np.sqrt(np.where(h == 0, 1, np.abs(h)))
    size = np.minimum(size, 1e3 * unit)
    x = rng.standard_normal((N, SIZE)) * noise * unit * scale
    data = {"h": np.tile(h * scale, (N, 1)).astype(np.float32), "x": (x - x.mean(0)).astype(np.float32)}
    params = dict(zip("ab", jnp.split(jnp.asarray(w0 * size, jnp.float32), 2), strict=True))
    try:
        result = jc.train(
            objective, rule.optimizer, params, data, key=jax.random.key(seed), batch_size=batch, num_steps=steps,
            probe_every=max(1, steps // 10), eval_fn=eval_fn, eval_every=max(1, steps // 20) if eval_fn else None,
        )  # fmt: skip
    except jc.training.NonFiniteError as error:
        result = error.result
    return Plant(cause, name, factor, also, result)
