"""Solves of problems of every scale, with kinks, without second derivatives by hand: where they end and what they
say."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course import Status

SEARCHING: dict[str, Any] = {"lbfgs": jc.lbfgs(), "newton": jc.newton(), "newton_cg": jc.newton_cg()}
each_search = pytest.mark.parametrize("name", SEARCHING)


def rosenbrock(w: Any) -> Any:
    return 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2


@each_search
def test_the_units_of_value_and_parameters_change_neither_the_end_nor_the_claim(name: str) -> None:
    def scaled(w: Any, units: Any) -> Any:
        return units[0] * rosenbrock(w / units[1])

    solve = jax.jit(lambda units: jc.minimize(scaled, SEARCHING[name], jnp.array([-1.2, 1.0]) * units[1], data=units))
    plain = solve(jnp.ones(2))
    assert plain.status > 0
    for units in ([2.0**-40, 1.0], [1.0, 2.0**30], [2.0**40, 2.0**-30]):
        result = solve(jnp.array(units))
        assert result.status == plain.status
        np.testing.assert_allclose(result.params / units[1], plain.params, rtol=1e-6)
        assert abs(int(result.num_evals) - int(plain.num_evals)) <= 3


@each_search
def test_a_minimum_ten_decades_away_is_reached(name: str) -> None:
    result = jc.minimize(lambda x: -jnp.log(x) - jnp.log(1e10 - x), SEARCHING[name], jnp.array(3.0))
    assert result.status > 0
    np.testing.assert_allclose(result.params, 5e9, rtol=1e-6)


@each_search
def test_a_likelihood_that_starts_far_above_its_minimum_is_solved(name: str) -> None:
    """Nearly all of the fall comes first: what is left is then small beside it, but the parameters are far away."""
    data = np.exp(np.random.default_rng(0).normal(25, 2, 200))

    def negative_log_likelihood(p: Any, x: Any) -> Any:
        return jnp.sum(0.5 * ((x - p[0]) / p[1]) ** 2 + jnp.log(p[1]))

    result = jc.minimize(negative_log_likelihood, SEARCHING[name], jnp.ones(2), data=data)
    least = len(data) * (0.5 + np.log(data.std()))
    assert result.status > 0
    assert result.value == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-16, 1e-8, 1e8, 1e16])
def test_the_first_trial_finds_the_scale_in_few_evaluations(scale: float) -> None:
    solve = jax.jit(lambda w, s: jc.minimize(lambda w, s: jnp.sum(jnp.cosh(w / s - 2)), jc.lbfgs(), w, data=s))
    for start in (0.0, 3 * scale, min(1.0, 30 * scale)):
        result = solve(jnp.full(2, start), jnp.array(scale))
        assert result.status > 0
        assert result.num_evals <= 60
        np.testing.assert_allclose(result.params / scale, 2, rtol=1e-6)


@each_search
def test_at_the_floor_of_float32_a_solve_stops_at_once(name: str) -> None:
    data = jnp.asarray(1e4 + np.random.default_rng(0).standard_normal(500), jnp.float32)
    result = jc.minimize(lambda c: jnp.sum((data - c) ** 2), SEARCHING[name], jnp.float32(0))
    assert result.status > 0
    assert result.num_evals <= 60
    assert abs(float(result.params) - np.asarray(data, float).mean()) <= 2e-3


@pytest.mark.parametrize("method", [jc.newton(), jc.newton_cg(), jc.newton(line_search=None)])
def test_a_function_with_a_rule_of_its_own_has_a_hessian(method: Any) -> None:
    @jax.custom_vjp
    def f(x: Any) -> Any:
        return jnp.sum(jnp.cosh(x))

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.sinh(x),))
    result = jc.minimize(f, method, jnp.array([1.0, 2.0]))
    assert result.status > 0
    np.testing.assert_allclose(result.params, 0, atol=1e-6)


@each_search
def test_parameters_are_finite_where_the_hessian_is_not(name: str) -> None:
    def f(x: Any) -> Any:
        return jnp.sum(jnp.array([0.0, 0.0, 1.0]) * (x[0] - 1) ** jnp.arange(3.0)) + (x[1] - 5) ** 4

    result = jc.minimize(f, SEARCHING[name], jnp.array([3.0, 0.0]))
    assert np.all(np.isfinite(result.params))
    assert result.value == pytest.approx(float(f(result.params)), rel=1e-12)
    assert result.status > 0 or result.status == Status.HESSIAN_NOT_FINITE


def lying(w: Any) -> Any:
    @jax.custom_jvp
    def f(w: Any) -> Any:
        return jnp.sum((w - 1) ** 2)

    f.defjvp(lambda primals, tangents: (f(*primals), -2 * jnp.sum((primals[0] - 1) * tangents[0])))
    return f(w)


CAUSES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a kink": (lambda w: jnp.sum(jnp.abs(w - 0.3)), "a kink"),
    "a wrong gradient": (lying, "a wrong gradient"),
    "rounding": (lambda w: 1e9 + jnp.sum(jnp.cosh(w)) - 2, "rounding"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_message_names_the_likely_cause(cause: str) -> None:
    f, words = CAUSES[cause]
    start = jnp.array([1.0, 2.0], jnp.float32 if cause == "rounding" else float)
    result = jc.minimize(f, jc.lbfgs(), start, gtol=1e-30)
    assert result.status in (Status.LINE_SEARCH_FAILED, Status.ROUNDOFF_LIMITED), str(result)
    assert f"the likely cause is {words}" in str(result)


@each_search
def test_a_kink_beside_a_slope_is_no_question_of_precision(name: str) -> None:
    result = jc.minimize(
        lambda w: jnp.abs(w[0]) + 0.1 * w[1] ** 2 + w[1], SEARCHING[name], jnp.array([1.0, 3.0]), max_steps=100
    )
    if result.status == Status.ROUNDOFF_LIMITED:  # at the minimum, which lies in the kink, that is what it is
        assert "a kink" in str(result)
        np.testing.assert_allclose(result.params, [0, -5], atol=1e-12)
    else:
        assert result.status in (Status.LINE_SEARCH_FAILED, Status.MAX_STEPS), str(result)
    assert result.value < 3.9 - 0.5


def test_a_start_below_any_bound_is_not_unbounded() -> None:
    f: Callable[[Any], Any] = lambda w: 1e21 * jnp.sum((w / 1e10 - 1) ** 2) - 3e21  # noqa: E731
    for optimizer in (jc.lbfgs(), jc.newton(), jc.sgd(0.01)):
        result = jc.minimize(f, optimizer, jnp.array([2e10, -1e10]), max_steps=200)
        assert result.status != Status.UNBOUNDED
    assert jc.minimize(f, jc.lbfgs(), jnp.array([2e10, -1e10])).status > 0
