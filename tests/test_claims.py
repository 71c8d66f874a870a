"""A success is a claim: over offsets, scales, units, dtypes and rules, none is false, and few ends are needlessly
humble.

Each base function has the minimum 0, so that at any point the true distance to the minimum is known in float64. All
functions, offsets, scales and units are lanes of one program for each rule and dtype.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxopt_course as jc
from jaxopt_course import Status

OFFSETS = (0.0, -1e4, 1e6, 1e12)
SCALES = (1e-9, 1e-3, 1.0, 1e9)
UNITS = (1e-6, 1.0, 1e6)
DTYPES = (np.float32, np.float64)
FALSE = 1e-6  # of what was there to gain: success further above the minimum, and beyond rounding, is false
REACHED = 1e-9  # of what was there to gain: an end as near and not called success is needlessly humble


class Base(NamedTuple):
    """A function of two parameters with the minimum 0, where to start, and a rate at which gradient descent
    converges."""

    fn: Callable[[Any], Any]
    start: tuple[float, float]
    rate: float


BASES = {
    "bowl": Base(lambda w: jnp.sum(jnp.array([0.5, 2.0], w.dtype) * (w - 1) ** 2), (3.0, -2.0), 0.2),
    "ravine": Base(lambda w: jnp.sum(jnp.array([0.5, 50.0], w.dtype) * w**2), (1.0, 1.0), 0.009),
    "coshes": Base(lambda w: jnp.sum(jnp.expm1(w) + jnp.expm1(-w)), (1.0, -2.0), 0.1),
    "quartic": Base(lambda w: jnp.sum((w - 0.5) ** 4 + (w - 0.5) ** 2), (1.5, -0.5), 0.1),
    "rosenbrock": Base(lambda w: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2, (-1.2, 1.0), 1e-3),
}
FUNCTIONS = [base.fn for base in BASES.values()]


class Lane(NamedTuple):
    """f(w) = offset + scale base(w / unit)."""

    which: Any
    offset: Any
    scale: Any
    unit: Any
    start: Any
    rate: Any  # in the units of the lane


def lanes(dtype: Any) -> Lane:
    rows = []
    for (which, base), offset, scale, unit in product(enumerate(BASES.values()), OFFSETS, SCALES, UNITS):
        rate = base.rate * unit**2 / scale
        rows.append(Lane(which, offset, scale, unit, np.array(base.start) * unit, rate))
    columns = Lane(*(np.array(column) for column in zip(*rows, strict=True)))
    return columns._replace(
        which=columns.which.astype(np.int32),
        **{name: getattr(columns, name).astype(dtype) for name in ("offset", "scale", "unit", "start", "rate")},
    )


def objective(w: Any, lane: Lane) -> Any:
    return lane.offset + lane.scale * lax.switch(lane.which, FUNCTIONS, w / lane.unit)


def warm_up(rate: Any) -> Callable[[Any], Any]:
    return lambda count: rate * jnp.minimum(1, count / 20).astype(rate.dtype)


def restarted(rate: Any) -> Callable[[Any], Any]:
    return lambda count: rate * (0.5 * (1 + jnp.cos(jnp.pi * (count % 25) / 24))).astype(rate.dtype)


# Adaptive rules move by their rate whatever the gradient: theirs is in the unit of the parameters.
RULES: dict[str, Callable[[Lane], Any]] = {
    "sgd": lambda lane: jc.sgd(lane.rate),
    "sgd, tiny rate": lambda lane: jc.sgd(1e-3 * lane.rate),
    "sgd, twice the limit": lambda lane: jc.sgd(20 * lane.rate),
    "sgd, warm-up": lambda lane: jc.sgd(warm_up(lane.rate)),
    "sgd, cosine restarts": lambda lane: jc.sgd(restarted(lane.rate)),
    "sgd, accumulated": lambda lane: optax.MultiSteps(jc.sgd(lane.rate), 4),
    "momentum": lambda lane: jc.momentum(0.2 * lane.rate),
    "adam": lambda lane: jc.adam(0.05 * lane.unit, eps=0.0),
    "adam, warm-up": lambda lane: jc.adam(warm_up(0.05 * lane.unit), eps=0.0),
    "rmsprop": lambda lane: jc.rmsprop(0.01 * lane.unit, eps=0.0),
    "adagrad": lambda lane: jc.adagrad(0.5 * lane.unit, eps=0.0),
    "lbfgs": lambda _: jc.lbfgs(),
    "newton": lambda _: jc.newton(),
    "newton_cg": lambda _: jc.newton_cg(),
    "pure newton": lambda _: jc.newton(line_search=None),
}


def solved(rule: str, dtype: Any) -> tuple[Lane, Any]:
    every = lanes(dtype)

    @jax.jit
    @jax.vmap
    def solve(lane: Lane) -> Any:
        result = jc.minimize(objective, RULES[rule](lane), lane.start, data=lane)
        return result._replace(state=None)

    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(dtype == np.float64):
        return every, jax.device_get(solve(every))


def gaps(every: Lane, params: Any) -> np.ndarray:
    """How far the points lie above the minimum, in float64."""
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf, every)
    base = jax.vmap(lambda which, w: lax.switch(which, FUNCTIONS, w))(wide.which, params / wide.unit[:, None])
    return np.asarray(wide.scale * base)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("rule", RULES)
def test_no_success_is_false_and_few_ends_are_needlessly_humble(rule: str, dtype: Any) -> None:
    every, result = solved(rule, dtype)
    status, params = np.asarray(result.status), np.asarray(result.params, np.float64)
    assert np.all(np.isfinite(params))
    at_start, at_end = gaps(every, every.start.astype(np.float64)), gaps(every, params)
    rounding = 4 * np.finfo(dtype).eps * (np.abs(every.offset.astype(float)) + at_end)
    false = (status > 0) & (at_end > FALSE * at_start + rounding)
    humble = (status < 0) & (at_end <= REACHED * at_start)
    counts = {Status(int(code)).name: int(np.sum(status == code)) for code in np.unique(status)}
    print(f"{rule}, {np.dtype(dtype).name}: {counts}; {false.sum()} false, {humble.sum()} needlessly humble")
    assert not np.any(false), lines(every, result, at_end / at_start, false)
    assert humble.sum() <= 0.05 * len(status), lines(every, result, at_end / at_start, humble)


def lines(every: Lane, result: Any, left: np.ndarray, where: np.ndarray) -> str:
    """The first few of the cases of a mask, to read in a failure; `left` is relative to what was there to gain."""
    names, rows = list(BASES), np.flatnonzero(where)[:6]
    return "\n".join(
        f"{names[every.which[i]]} offset {every.offset[i]:g} scale {every.scale[i]:g} unit {every.unit[i]:g}: "
        f"{Status(int(result.status[i])).name} after {result.num_steps[i]} steps, {left[i]:.2e} left"
        for i in rows
    )
