"""What a solve says when something is wrong: every fault, by every method, eager, under jit, vmap and scan.

The faults are the branches of one objective, chosen by its data, so that a method is compiled once a mode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxopt_course as jc
from jaxopt_course import Status

METHODS: dict[str, Any] = {
    "lbfgs": jc.lbfgs(),
    "lbfgs, armijo": jc.lbfgs(line_search=jc.armijo),
    "newton": jc.newton(),
    "newton_cg": jc.newton_cg(),
    "pure newton": jc.newton(line_search=None),
    "sgd": jc.sgd(0.1),
    "optax.adam": optax.adam(0.1),
}
CROSSED = ("lbfgs", "newton", "newton_cg")  # with every mode; the rest with two
SEARCHING = ("lbfgs", "lbfgs, armijo", "newton", "newton_cg")
WITH_HESSIAN = ("newton", "newton_cg", "pure newton")


class Fault(NamedTuple):
    """An objective of two parameters, where to start, and the endings that tell the truth, by method or for all."""

    fn: Callable[[Any], Any]
    start: tuple[float, float]
    endings: dict[str, set[Status]]


@jax.custom_jvp
def lying(w: Any) -> Any:
    return jnp.sum(w**2)


@lying.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return lying(*primals), -2 * jnp.sum(primals[0] * tangents[0])  # the sign is wrong


def everyone(*statuses: Status) -> dict[str, set[Status]]:
    return only(tuple(METHODS), *statuses)


def only(methods: tuple[str, ...], *statuses: Status) -> dict[str, set[Status]]:
    return {name: set(statuses) for name in methods}


UNBOUNDED = only(SEARCHING, Status.UNBOUNDED) | {
    "lbfgs, armijo": {Status.UNBOUNDED, Status.MAX_STEPS}
}  # it never goes far

FAULTS = {
    "NaN at the start": Fault(lambda w: jnp.sum(w) * jnp.nan, (1, 1), everyone(Status.OBJECTIVE_NOT_FINITE)),
    "inf at the start": Fault(lambda w: jnp.sum(w**2) + jnp.inf, (1, 1), everyone(Status.OBJECTIVE_NOT_FINITE)),
    "gradient inf at the start": Fault(lambda w: jnp.sum(jnp.sqrt(w)), (0, 1), everyone(Status.GRADIENT_NOT_FINITE)),
    "zero gradient at a minimum": Fault(lambda w: jnp.sum(w**2), (0, 0), everyone(Status.GRADIENT_NORM)),
    "zero gradient at a saddle": Fault(lambda w: w[0] ** 2 - w[1] ** 2, (0, 0), everyone(Status.GRADIENT_NORM)),
    "constant": Fault(lambda w: 3 + 0 * jnp.sum(w), (1, 2), everyone(Status.GRADIENT_NORM)),
    "NaN beyond the minimum": Fault(
        lambda w: jnp.sum(w - 0.1 * jnp.log(w)), (1, 2), only(SEARCHING, Status.GRADIENT_NORM, Status.SMALL_DECREASE)
    ),
    "a cliff beside the minimum": Fault(
        lambda w: jnp.where(w[0] > -0.1, jnp.sum((w - 0.1) ** 2), jnp.inf),
        (1, 2),
        only(SEARCHING, Status.GRADIENT_NORM),
    ),
    "linear": Fault(lambda w: -jnp.sum(w), (1, 2), UNBOUNDED),
    "concave": Fault(lambda w: -jnp.sum(w**2), (1, 2), UNBOUNDED | only(("sgd",), Status.MAX_STEPS)),
    "minus infinity": Fault(
        lambda w: jnp.sum(jnp.where(w > 0.5, w**2, -jnp.inf)), (1, 2), only(SEARCHING, Status.UNBOUNDED)
    ),
    "a gradient that lies": Fault(lying, (1, 2), only(SEARCHING, Status.LINE_SEARCH_FAILED)),
    "no such precision": Fault(
        lambda w: 1 + 1e11 * jnp.sum((w**2 - 2) ** 2),
        (1, 2),
        only(SEARCHING, Status.GRADIENT_NORM, Status.SMALL_DECREASE, Status.ROUNDOFF_LIMITED),
    ),
    "a kink": Fault(
        lambda w: jnp.sum(jnp.abs(w - 0.3)), (1, 2), only(SEARCHING, Status.LINE_SEARCH_FAILED, Status.ROUNDOFF_LIMITED)
    ),
    "Hessian not finite": Fault(
        lambda w: jnp.sum(w) + jnp.sum(jnp.abs(w) ** 1.5), (0, 0), only(WITH_HESSIAN, Status.HESSIAN_NOT_FINITE)
    ),
    "singular Hessian": Fault(
        lambda w: (w[0] + w[1] - 1) ** 2, (1, 2), everyone(Status.GRADIENT_NORM, Status.SMALL_DECREASE)
    ),
}
STARTS = jnp.array([fault.start for fault in FAULTS.values()], float)
WHICH = jnp.arange(len(FAULTS))


def objective(w: Any, which: Any) -> Any:
    return lax.switch(which, [fault.fn for fault in FAULTS.values()], w)


def solver(name: str) -> Callable[[Any, Any], Any]:
    return lambda start, which: jc.minimize(objective, METHODS[name], start, data=which, max_steps=300)


def every_eager(name: str) -> Any:
    results = [solver(name)(start, which) for start, which in zip(STARTS, WHICH, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def every_jitted(name: str) -> Any:
    solve = jax.jit(solver(name))
    results = [solve(start, which) for start, which in zip(STARTS, WHICH, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


MODES: dict[str, Callable[[str], Any]] = {
    "eager": every_eager,
    "jit": every_jitted,
    "vmap": lambda name: jax.vmap(solver(name))(STARTS, WHICH),
    "scan": lambda name: lax.scan(lambda _, row: (None, solver(name)(*row)), None, (STARTS, WHICH))[1],
}


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name in METHODS for mode in MODES if name in CROSSED or mode in ("jit", "vmap")]
)
def test_the_named_status_each_time(name: str, mode: str) -> None:
    with jax.numpy_dtype_promotion("standard" if "optax" in name else "strict"):
        result = MODES[mode](name)
    seen = {}
    for i, (label, fault) in enumerate(FAULTS.items()):
        status, start = Status(int(result.status[i])), np.array(fault.start)
        if status not in fault.endings.get(name, set(Status)):
            seen[label] = status.name
        params, value = np.asarray(result.params[i]), float(result.value[i])
        if status in (Status.OBJECTIVE_NOT_FINITE, Status.GRADIENT_NOT_FINITE) and label.endswith("start"):
            np.testing.assert_array_equal(params, start)
            assert result.num_evals[i] <= 2
            assert result.num_steps[i] == 0
            continue
        assert np.all(np.isfinite(params)), label
        assert np.isfinite(value), label
        assert value <= float(fault.fn(jnp.asarray(start, float))) * (1 + 1e-12), f"{label}: worse than the start"
        if status > 0:  # no false success: what Newton's method would still gain is next to nothing
            gradient, hessian = jax.grad(fault.fn)(jnp.asarray(params)), jax.hessian(fault.fn)(jnp.asarray(params))
            gain = 0.5 * abs(gradient @ np.linalg.pinv(hessian) @ gradient)
            gained = float(fault.fn(jnp.asarray(start, float))) - value
            assert gain <= 1e-8 * gained + 1e-15 * abs(value), label
    assert seen == {}


@pytest.mark.parametrize("name", CROSSED)
def test_where_a_tolerance_cannot_be_met_rounding_is_named(name: str) -> None:
    result = jc.minimize(FAULTS["no such precision"].fn, METHODS[name], jnp.array([1.0, 2.0]), gtol=1e-9)
    assert result.status in (Status.ROUNDOFF_LIMITED, Status.LINE_SEARCH_FAILED)
    assert "rounding" in str(result)


def test_newton_reports_the_saddle() -> None:
    result = jc.minimize(lambda w: w[0] ** 2 - w[1] ** 2, jc.newton(), jnp.zeros(2))
    assert result.num_steps == 0
    assert result.state.lowest_curvature == pytest.approx(-2)
    assert "saddle" in str(result)
    minimum = jc.minimize(lambda w: jnp.sum(w**2), jc.newton(), jnp.zeros(2))
    assert minimum.state.lowest_curvature == pytest.approx(2)
    assert "saddle" not in str(minimum)


def test_uphill_twice_running_is_non_descent() -> None:
    """Through a chain that turns the gradient round, so that even -g goes up."""
    f: Callable[[Any], Any] = lambda w: jnp.sum(jnp.cosh(w))  # noqa: E731
    straight = jc.lbfgs()
    turned = optax.chain(optax.scale(-1.0), straight)
    w = jnp.array([1.0, 2.0])
    state: Any = turned.init(w)
    value, grad = jax.value_and_grad(f)(w)
    updates, state = turned.update(grad, state, w, value=value, grad=grad, value_fn=f)
    assert state[1].search.status == Status.NON_DESCENT
    np.testing.assert_array_equal(updates, 0)
