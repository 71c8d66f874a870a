"""Minima within bounds and under L1 penalties, against scipy, scikit-learn, exact solutions and the conditions."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxopt_course as jc

RNG = np.random.default_rng(1)
SOLVERS = {"lbfgs": jc.lbfgs(), "newton": jc.newton(), "newton_cg": jc.newton_cg()}
A, B = RNG.normal(size=(60, 20)), RNG.normal(size=60)
INF = np.inf


def squares(w: Any, data: Any) -> Any:
    return jnp.sum((data[0] @ w - data[1]) ** 2)


def left(grad: Any, w: Any, lower: Any, upper: Any, strength: Any = 0.0) -> Any:
    """The smallest subgradient of f + strength |w| within the bounds, by NumPy."""
    lowest = np.where(w <= lower, -INF, np.where(w > 0, strength, -strength))
    highest = np.where(w >= upper, INF, np.where(w < 0, -strength, strength))
    return np.maximum(grad + lowest, 0) + np.minimum(grad + highest, 0)


@pytest.mark.parametrize("name", SOLVERS)
def test_nonnegative_least_squares_as_exactly_as_scipy(name: str) -> None:
    expected, _ = scipy.optimize.nnls(A, B)
    data = jnp.array(A), jnp.array(B)
    result = jc.minimize(squares, SOLVERS[name], jnp.ones(20), data=data, bounds=(0, None), gtol=1e-10)
    assert result.status > 0
    assert np.max(np.abs(result.params - expected)) <= 1e-10
    assert np.array_equal(result.params == 0, expected == 0)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(3))
def test_a_box_of_four_dimensions_by_trying_every_active_set(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(4, 4))
    hessian, slope = root @ root.T + 0.1 * np.eye(4), 3 * rng.normal(size=4)
    lower, upper = -rng.uniform(0, 1, 4), rng.uniform(0, 1, 4)
    best, best_value = np.zeros(4), INF
    for held in itertools.product((-1, 0, 1), repeat=4):
        w = np.where(np.array(held) < 0, lower, upper)
        free = np.array(held) == 0
        if free.any():
            rest = slope + hessian[:, ~free] @ w[~free]
            w[free] = np.linalg.solve(hessian[np.ix_(free, free)], -rest[free])
        value = w @ (hessian @ w) / 2 + slope @ w
        if np.all((lower <= w) & (w <= upper)) and value < best_value:
            best, best_value = w, float(value)
    objective = lambda w: jnp.vdot(w, hessian @ w) / 2 + jnp.vdot(slope, w)  # noqa: E731
    result = jc.minimize(objective, SOLVERS[name], jnp.zeros(4), bounds=(lower, upper), gtol=1e-12)
    assert np.max(np.abs(result.params - best)) <= 1e-10


HOCK_SCHITTKOWSKI: dict[str, Any] = {
    "1": (lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, (-2, 1), ((-INF, -1.5), INF), 0.0),
    "2": (lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, (-2, 1), ((-INF, 1.5), INF), 0.0504261879),
    "3": (lambda x: x[1] + 1e-5 * (x[1] - x[0]) ** 2, (10, 1), ((-INF, 0), INF), 0.0),
    "4": (lambda x: (x[0] + 1) ** 3 / 3 + x[1], (1.125, 0.125), ((1, 0), INF), 8 / 3),
    "5": (
        lambda x: jnp.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1,
        (0, 0),
        ((-1.5, -3), (4, 3)),
        -np.sqrt(3) / 2 - np.pi / 3,
    ),
    "38": (
        lambda x: (
            100 * (x[1] - x[0] ** 2) ** 2
            + (1 - x[0]) ** 2
            + 90 * (x[3] - x[2] ** 2) ** 2
            + (1 - x[2]) ** 2
            + 10.1 * ((x[1] - 1) ** 2 + (x[3] - 1) ** 2)
            + 19.8 * (x[1] - 1) * (x[3] - 1)
        ),
        (-3, -1, -3, -1),
        (-10, 10),
        0.0,
    ),
    "45": (lambda x: 2 - jnp.prod(x) / 120, (2, 2, 2, 2, 2), (0, (1, 2, 3, 4, 5)), 1.0),
    "110": (
        lambda x: jnp.sum(jnp.log(x - 2) ** 2 + jnp.log(10 - x) ** 2) - jnp.prod(x) ** 0.2,
        (9,) * 10,
        (2.001, 9.999),
        -45.77846971,
    ),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("number", HOCK_SCHITTKOWSKI)
def test_the_problems_of_hock_and_schittkowski_with_bounds_alone(number: str, solver: str) -> None:
    f, first, (low, high), expected = HOCK_SCHITTKOWSKI[number]
    start, lower, upper = jnp.array(first, float), np.array(low, float), np.array(high, float)
    inside = lambda x: jnp.where(jnp.all((x >= lower) & (x <= upper)), f(x), jnp.nan)  # noqa: E731
    result = jc.minimize(inside, SOLVERS[solver], start, bounds=(lower, upper))
    residual = left(np.asarray(jax.grad(f)(result.params)), result.params, lower, upper)
    assert result.status > 0, str(result)
    assert np.max(np.abs(residual)) <= 1e-4
    if number != "2":  # which has a second minimum, 4.9412
        assert abs(result.value - expected) <= 1e-7 * max(1, abs(expected))
    else:
        assert min(abs(result.value - expected), abs(result.value - 4.9412293)) <= 1e-6


@pytest.mark.parametrize("optimizer", [*SOLVERS.values(), jc.sgd(1e-3), jc.adam(0.02)])
def test_nothing_outside_is_ever_evaluated(optimizer: Any) -> None:
    seen: list[Any] = []
    lower, upper = np.array([-0.5, -INF]), np.array([INF, 0.3])

    def objective(w: Any) -> Any:
        jax.debug.callback(lambda w: seen.append(np.array(w)), w)
        return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2

    result = jc.minimize(objective, optimizer, jnp.array([-3.0, 4.0]), bounds=(lower, upper), max_steps=40)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert len(seen) >= 10
    assert all(np.all((lower <= w) & (w <= upper)) for w in seen)


@pytest.mark.parametrize("optimizer", [jc.sgd(3e-3), jc.momentum(1e-3), jc.adam(0.01), jc.rmsprop(1e-3)])
def test_first_order_rules_are_projected(optimizer: Any) -> None:
    expected, _ = scipy.optimize.nnls(A, B)
    data = jnp.array(A), jnp.array(B)
    result = jc.minimize(squares, optimizer, jnp.ones(20), data=data, bounds=(0, None), max_steps=3000)
    assert np.max(np.abs(result.params - expected)) <= 1e-3
    assert np.array_equal(result.params == 0, expected == 0)


def test_trees_prefixes_none_and_fixed_parameters() -> None:
    def f(w: Any) -> Any:
        return jnp.sum((w["a"] - 3) ** 2) + (w["b"]["c"] - 5) ** 2 + jnp.sum((w["b"]["d"] + 2) ** 2)

    start = {"a": jnp.zeros((2, 2)), "b": {"c": jnp.array(0.0), "d": jnp.zeros(3)}}
    upper = {"a": jnp.array([[1.0, INF], [2.0, 4.0]]), "b": 4}
    lower = {"a": None, "b": {"c": 4.0, "d": -1}}
    for solver in SOLVERS.values():
        params = jc.minimize(f, solver, start, bounds=(lower, upper)).params
        np.testing.assert_allclose(params["a"], [[1, 3], [2, 3]], atol=1e-9)
        assert params["b"]["c"] == 4
        assert np.all(params["b"]["d"] == -1)


def test_bounds_are_data() -> None:
    def end(upper: Any) -> Any:
        return jc.minimize(lambda w: jnp.sum((w - 1) ** 2), jc.lbfgs(), jnp.zeros(2), bounds=(None, upper)).params

    ends = jax.jit(jax.vmap(end))(jnp.array([0.2, 0.7, 5.0]))
    np.testing.assert_allclose(ends, [[0.2] * 2, [0.7] * 2, [1.0] * 2], atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_linear_function_ends_in_a_corner(name: str) -> None:
    slopes = jnp.array([1.0, -2.0, 0.5])
    result = jc.minimize(lambda w: jnp.vdot(slopes, w), SOLVERS[name], jnp.ones(3), bounds=(0.0, 10.0))
    assert result.status == jc.Status.GRADIENT_NORM
    assert np.array_equal(result.params, [0.0, 10.0, 0.0])


@pytest.mark.parametrize("term", [lambda t: {"bounds": (t + 2, t)}, lambda t: {"l1": -t}])
def test_what_is_known_only_under_jit_and_wrong_is_no_success(term: Any) -> None:
    def end(t: Any) -> Any:
        return jc.minimize(lambda w: jnp.sum((w - 1) ** 2), jc.lbfgs(), jnp.zeros(2), **term(t))

    for result in (jax.jit(end)(1.0), jax.vmap(end)(jnp.ones(1))):
        assert np.all(result.status == jc.Status.OBJECTIVE_NOT_FINITE)
    assert np.isnan(jax.jit(jax.grad(lambda t: end(t).value))(1.0))


def test_float32_ends_at_its_own_floor() -> None:
    data = jnp.array(A, jnp.float32), jnp.array(B, jnp.float32)
    expected, _ = scipy.optimize.nnls(A, B)
    for solver in SOLVERS.values():
        result = jc.minimize(squares, solver, jnp.ones(20, jnp.float32), data=data, bounds=(0.0, None))
        assert result.status > 0, str(result)
        assert np.max(np.abs(np.asarray(result.params) - expected)) <= 1e-3
        assert result.params.dtype == jnp.float32


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(list(SOLVERS)), st.sampled_from([1e-9, 1.0, 1e9]))
def test_a_success_meets_the_conditions(seed: int, name: str, scale: float) -> None:
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.normal(size=(2, 6)), axis=0)
    data = jnp.array(rng.normal(size=(8, 6))), jnp.array(ends[0]), jnp.array(ends[1]), jnp.array(scale)
    lower, upper = ends
    f = _quartic_of(data[0])
    result = _SOLVED[name](data, jnp.array(rng.normal(size=6)))
    residual = left(scale * np.asarray(jax.grad(f)(result.params)), result.params, lower, upper)
    assert result.status > 0, str(result)
    assert np.max(np.abs(residual)) <= 1e-5 * scale


def _quartic_of(a: Any) -> Any:
    return lambda w: jnp.sum(jnp.cosh(a @ w)) + 0.1 * jnp.sum(w**4) + jnp.sum(jnp.sin(3 * w))


def _solver(name: str) -> Any:
    def run(data: Any, start: Any) -> Any:
        a, lower, upper, scale = data
        f = _quartic_of(a)
        return jc.minimize(lambda w: scale * f(w), SOLVERS[name], start, bounds=(lower, upper))

    return jax.jit(run)


_SOLVED = {name: _solver(name) for name in SOLVERS}


BAD: dict[str, Any] = {
    "no pair": ({"bounds": 3.0}, TypeError, r"bounds must be a pair \(lower, upper\)"),
    "scipy's pairs": ({"bounds": [(0, 1), (0, 1), (0, 1)]}, TypeError, "numpy.array"),
    "crossed": ({"bounds": (jnp.array([0.0, 2.0]), 1.0)}, ValueError, r"at most the upper one.*\[1\]"),
    "nan": ({"bounds": (np.nan, 1.0)}, ValueError, "at most the upper one"),
    "shape": ({"bounds": (jnp.zeros(3), None)}, ValueError, r"fit shape \(2,\), got \(3,\)"),
    "structure": ({"bounds": ({"a": 1.0}, None)}, ValueError, "prefix"),
    "negative strength": ({"l1": -1.0}, ValueError, "l1 must be at least 0"),
    "infinite strength": ({"l1": np.inf}, ValueError, "l1 must be at least 0"),
    "another optimizer": ({"l1": 1.0, "optimizer": jc.adam(0.1)}, TypeError, r"jc.lbfgs\(\) or jc.sgd"),
    "newton": ({"l1": 1.0, "optimizer": jc.newton()}, TypeError, r"jc.lbfgs\(\) or jc.sgd"),
    "complex": ({"bounds": (0, 1), "params": jnp.zeros(2, complex)}, TypeError, "need real parameters"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("own_errors")
def test_what_cannot_be_meant_is_refused(name: str) -> None:
    options, kind, message = BAD[name]
    arguments = {"optimizer": jc.lbfgs(), "params": jnp.zeros(2)} | options
    with pytest.raises(kind, match=message):
        jc.minimize(lambda w: jnp.sum((w - 1) ** 2).real, **arguments)


def lasso(w: Any, data: Any) -> Any:
    return jnp.sum((data[0] @ w - data[1]) ** 2) / (2 * len(data[1]))


@pytest.mark.parametrize("positive", [False, True])
def test_the_lasso_has_scikit_learns_support(positive: bool) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = linear_model.Lasso(alpha=0.05, tol=1e-14, max_iter=10**6, fit_intercept=False, positive=positive)
    expected = model.fit(A, B).coef_
    bounds = (0, None) if positive else None
    data = jnp.array(A), jnp.array(B)
    result = jc.minimize(lasso, jc.lbfgs(), jnp.ones(20), data=data, l1=0.05, bounds=bounds, gtol=1e-9)
    assert np.array_equal(result.params != 0, expected != 0)
    assert 0 < np.sum(expected != 0) < 20
    assert np.max(np.abs(result.params - expected)) <= 1e-8
    assert abs(result.value - (lasso(expected, data) + 0.05 * np.sum(np.abs(expected)))) <= 1e-14
    grad = np.asarray(jax.grad(lasso)(result.params, data))
    lower = 0 if positive else -INF
    assert np.max(np.abs(left(grad, result.params, lower, INF, 0.05))) <= 1e-8


def test_proximal_gradient_descent_finds_the_same() -> None:
    data = jnp.array(A), jnp.array(B)
    ends = [
        jc.minimize(lasso, rule, jnp.ones(20), data=data, l1=0.05, max_steps=5000) for rule in (jc.lbfgs(), jc.sgd(0.3))
    ]
    assert np.array_equal(ends[0].params == 0, ends[1].params == 0)
    assert np.max(np.abs(ends[0].params - ends[1].params)) <= 1e-7


def test_logistic_regression_with_a_free_bias_as_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels = np.where(A @ RNG.normal(size=20) + 0.5 * RNG.normal(size=60) > 0.3, 1, -1)
    model = linear_model.LogisticRegression(
        l1_ratio=1, C=0.5, solver="saga", tol=1e-12, max_iter=10**6, fit_intercept=True
    ).fit(A, labels)

    def risk(params: Any) -> Any:
        return jnp.sum(jnp.logaddexp(0.0, -labels * (A @ params["w"] + params["b"])))

    start = {"w": jnp.zeros(20), "b": jnp.array(0.0)}
    result = jc.minimize(risk, jc.lbfgs(), start, l1={"w": 2.0, "b": 0.0})
    assert result.status > 0
    assert np.array_equal(result.params["w"] != 0, model.coef_[0] != 0)
    assert np.max(np.abs(result.params["w"] - model.coef_[0])) <= 1e-5
    assert abs(result.params["b"] - model.intercept_[0]) <= 1e-5
    assert result.params["b"] != 0


def test_a_path_of_strengths_under_vmap_and_no_strength_at_all() -> None:
    data = jnp.array(A), jnp.array(B)

    def fitted(strength: Any) -> Any:
        return jc.minimize(lasso, jc.lbfgs(), jnp.zeros(20), data=data, l1=strength).params

    largest = float(jnp.max(jnp.abs(jax.grad(lasso)(jnp.zeros(20), data))))
    path = jax.jit(jax.vmap(fitted))(largest * jnp.array([1.001, 0.5, 0.1, 0.0]))
    counts = np.sum(path != 0, axis=1)
    assert counts[0] == 0
    assert np.all(np.diff(counts) > 0)
    assert counts[-1] == 20
    assert np.max(np.abs(path[-1] - np.linalg.lstsq(A, B)[0])) <= 1e-7


def test_the_record_says_what_is_left_of_the_gradient() -> None:
    data = jnp.array(A), jnp.array(B)
    result = jc.minimize(lasso, jc.lbfgs(), jnp.ones(20), data=data, l1=0.05, trace=True, max_steps=5)
    expected = left(np.asarray(jax.grad(lasso)(result.params, data)), result.params, -INF, INF, 0.05)
    assert abs(result.grad_norm - np.max(np.abs(expected))) <= 1e-12
    assert result.trace.grad_norm[5] == result.grad_norm
    assert result.trace.value[5] == result.value
