"""Numerical gradients against mpmath at 50 digits, against autodiff, and against what theory says of their error."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxopt_course as jc
from jaxopt_course.gradients import NumericalGradientWarning

METHODS = ("forward", "central", "richardson", "complex_step")
mpmath.mp.dps = 50


def polynomial(x: Any, xp: Any = jnp) -> Any:
    """Analytic, and in terms that both JAX and mpmath know."""
    return xp.exp(x[0] * x[1]) / (1 + x[2] ** 2) + xp.sin(x[0]) * xp.cosh(x[2])


def exact_gradient(x: np.ndarray) -> np.ndarray:
    point = [mpmath.mpf(float(v)) for v in x]
    orders = np.eye(3, dtype=int).tolist()
    return np.array([float(mpmath.diff(lambda *p: polynomial(p, mpmath), point, tuple(n))) for n in orders])


# Relative to the largest entry, with some room over what the order and the rounding allow.
ACCURACY = {
    ("forward", jnp.float64): 1e-6,
    ("central", jnp.float64): 1e-9,
    ("richardson", jnp.float64): 1e-11,
    ("complex_step", jnp.float64): 1e-14,
    ("forward", jnp.float32): 1e-2,
    ("central", jnp.float32): 1e-3,
    ("richardson", jnp.float32): 1e-3,
    ("complex_step", jnp.float32): 1e-5,
    ("forward", jnp.float16): 0.5,
    ("central", jnp.float16): 0.2,
    ("forward", jnp.bfloat16): 1.0,
    ("central", jnp.bfloat16): 0.5,
}


@pytest.mark.parametrize(("method", "dtype"), ACCURACY, ids=lambda v: v if isinstance(v, str) else jnp.dtype(v).name)
@pytest.mark.parametrize("x", [(0.5, -1.25, 0.75), (0.0, 1.0, -0.5), (1.5, 0.25, 0.0)])
def test_against_fifty_digits(method: str, dtype: Any, x: tuple[float, ...]) -> None:
    gradient = jc.numerical_gradient(polynomial, jnp.array(x, dtype), method=method)
    assert gradient.dtype == (dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32)
    exact = exact_gradient(np.array(x))
    np.testing.assert_allclose(gradient, exact, atol=ACCURACY[method, dtype] * np.abs(exact).max())


@pytest.mark.parametrize(("method", "order"), [("forward", 1), ("central", 2), ("richardson", 4), ("complex_step", 2)])
def test_the_error_falls_with_the_order_of_the_method(method: str, order: int) -> None:
    x, steps = jnp.array([0.5, -1.25, 0.75]), np.array([0.08, 0.04, 0.02])
    exact = exact_gradient(np.array(x))
    errors = [np.abs(jc.numerical_gradient(polynomial, x, h=h, method=method) - exact).max() for h in steps]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(steps))
    np.testing.assert_allclose(slopes, order, atol=0.15)


@pytest.mark.parametrize(("method", "dtype"), [("forward", jnp.float64), ("central", jnp.float32)])
def test_the_error_grows_as_rounding_over_the_step(method: str, dtype: Any) -> None:
    x = jnp.linspace(0.3, 1.7, 40).astype(dtype)
    eps = float(jnp.finfo(dtype).eps)
    steps = eps ** np.array([0.8, 0.7, 0.6])
    exact = np.cos(np.asarray(x, float))

    def f(x: Any) -> Any:
        return jnp.sin(x)

    errors = []
    for h in steps:
        jacobian = np.asarray(jc.numerical_gradient(f, x, h=float(h), method=method), float)
        errors.append(np.sqrt(np.mean((np.diag(jacobian) - exact) ** 2)))
        assert errors[-1] < 3 * eps / h
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-1, abs=0.35)


@pytest.mark.filterwarnings("ignore::jaxopt_course.gradients.NumericalGradientWarning")
def test_the_default_step_is_near_the_best() -> None:
    x = jnp.array([0.5, -1.25, 0.75])
    exact = exact_gradient(np.array(x))
    for method in ("forward", "central", "richardson"):

        def error(h: float | None, method: str = method) -> float:
            return float(np.abs(jc.numerical_gradient(polynomial, x, h=h, method=method) - exact).max())

        best = min(error(10.0**power) for power in np.arange(-10, 0, 0.5))
        assert error(None) < 100 * best


@pytest.mark.parametrize(
    "f", [jax.nn.softplus, jax.nn.logsumexp, jax.nn.log_sigmoid, jax.nn.relu], ids=lambda f: f.__name__
)
def test_complex_steps_of_what_has_no_complex_continuation(f: Callable[[Any], Any]) -> None:
    x = jnp.array([0.3, -1.2, 2.0])

    def total(x: Any) -> Any:
        return jnp.sum(f(x))

    np.testing.assert_allclose(jc.numerical_gradient(total, x, method="complex_step"), jax.grad(total)(x), rtol=1e-8)


@pytest.mark.parametrize(
    ("f", "x", "method", "said"),
    [
        (jnp.log, 1e-6, "central", "not finite at params"),
        (jnp.log, 1e-6, "forward", "leaves the domain"),
        (lambda x: 1 / x, 1e-3, "richardson", "from another difference"),
        (lambda x: jnp.sin(1e4 * x), 0.3, "central", "from another difference"),
    ],
    ids=["central", "forward", "richardson", "too large"],
)
def test_steps_that_are_too_large_are_told(f: Callable[[Any], Any], x: float, method: str, said: str) -> None:
    with pytest.warns(NumericalGradientWarning, match=said):
        jc.numerical_gradient(f, jnp.asarray(x, jnp.float32), method=method)


TREE = {"W": jnp.arange(6.0).reshape(2, 3) / 7, "b": [jnp.float64(0.3), jnp.array([])], "none": None}


@pytest.mark.parametrize("method", METHODS)
def test_trees_and_outputs_of_every_shape(method: str) -> None:
    def scalar(p: Any) -> Any:
        return jnp.sum(jnp.sin(p["W"]) * p["b"][0])

    def several(p: Any) -> Any:
        return {"a": jnp.sin(p["W"]) * p["b"][0], "c": (p["b"][0] ** 2,)}

    gradient = jc.numerical_gradient(scalar, TREE, method=method)
    jax.tree.map(lambda n, a: np.testing.assert_allclose(n, a, rtol=1e-5), gradient, jax.grad(scalar)(TREE))
    jacobian = jc.numerical_gradient(several, TREE, method=method)
    expected = jax.jacobian(several)(TREE)
    assert jax.tree.map(jnp.shape, jacobian) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(lambda n, a: np.testing.assert_allclose(n, a, rtol=1e-5, atol=1e-7), jacobian, expected)


@pytest.mark.parametrize("method", ["forward", "central", "richardson"])
def test_complex_parameters(method: str) -> None:
    def f(z: Any) -> Any:
        return jnp.sum(jnp.abs(z) ** 2 * jnp.real(z))

    z = jnp.array([1 + 2j, 3 - 1j])
    np.testing.assert_allclose(jc.numerical_gradient(f, z, method=method), jax.grad(f)(z), rtol=1e-5)
    with pytest.raises(TypeError, match="complex f of complex parameters"):
        jc.numerical_gradient(lambda z: z**2, z, method=method)
    np.testing.assert_allclose(
        jc.numerical_gradient(lambda x: jnp.exp(1j * x.astype(complex)), jnp.array([0.3]), method=method),
        [[1j * np.exp(0.3j)]],
        rtol=1e-5,
    )


def test_it_is_jitted_vmapped_and_traced_once() -> None:
    traces = []

    def f(x: Any) -> Any:
        traces.append(1)
        return jnp.sum(x**3)

    X = jnp.arange(12.0).reshape(4, 3) / 5
    for x in X:
        np.testing.assert_allclose(jc.numerical_gradient(f, x), 3 * x**2, atol=1e-8)
    once = len(traces)
    assert once <= 8
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda x: jc.numerical_gradient(f, x)))(X), 3 * X**2, atol=1e-8)
    step = jax.jit(lambda h: jc.numerical_gradient(f, X[0], h=h))(1e-5)
    np.testing.assert_allclose(step, 3 * X[0] ** 2, atol=1e-8)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4))
def test_of_a_square_it_is_exact_to_rounding(entries: list[float]) -> None:
    x = jnp.array(entries)
    numerical = jc.numerical_gradient(lambda x: jnp.sum(x**2), x)
    np.testing.assert_allclose(numerical, 2 * x, atol=1e-9 * (1 + float(jnp.sum(x**2))))


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: jc.numerical_gradient(jnp.sum, jnp.arange(3)), TypeError, "must be floating point"),
        (lambda: jc.numerical_gradient(jnp.sum, jnp.ones(3), method="best"), ValueError, "forward, central"),
        (lambda: jc.numerical_gradient(jnp.sum, jnp.ones(3), h=0.0), ValueError, "one positive number"),
        (lambda: jc.numerical_gradient(jnp.sum, jnp.ones(3), h=jnp.ones(3)), ValueError, "one positive number"),
        (lambda: jc.numerical_gradient(jnp.sum, jnp.ones(3, jnp.float16), method="complex_step"), TypeError, "float16"),
        (lambda: jc.numerical_gradient(lambda x: abs(x), jnp.ones(3), method="complex_step"), TypeError, "real part"),
    ],
    ids=["integers", "method", "zero", "vector", "float16", "abs"],
)
def test_wrong_input(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


# The lecture's spot check.


def cubes(x: Any) -> Any:
    return jnp.sum(x**3)


def test_the_spot_check_returns_and_prints_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    x = jnp.arange(1.0, 13.0).reshape(3, 4)
    rows = jc.grad_check_sparse(cubes, x, (3 * x**2).at[1, 2].mul(1.01), num_checks=12, key=jax.random.key(1))
    assert sorted(row.index for row in rows) == sorted(np.ndindex(3, 4))
    for index, numerical, analytic, error in rows:
        assert numerical == pytest.approx(3 * float(x[index]) ** 2, rel=1e-5)
        assert error == pytest.approx(abs(numerical - analytic) / max(abs(numerical), abs(analytic)))
        assert (error > 5e-3) == (index == (1, 2))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["place", "numerical", "analytic", "relative", "error"]
    assert len(printed) == 13
    assert any(line.split()[:2] == ["x[1,", "2]"] for line in printed)


def test_the_spot_check_draws_by_its_key() -> None:
    x = jnp.linspace(1.0, 2.0, 50)
    drawn = [
        [row.index for row in jc.grad_check_sparse(cubes, x, 3 * x**2, key=jax.random.key(seed))] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10


def test_the_spot_check_of_a_tree_and_of_coarse_parameters() -> None:
    x = {"W": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(1, jnp.float32)}
    rows = jc.grad_check_sparse(
        lambda p: cubes(p["W"]).astype(p["b"].dtype) + cubes(p["b"]), x, jax.tree.map(lambda v: 3 * v, x)
    )
    assert {row.index for row in rows} == {("W", 0, 0), ("W", 0, 1), ("W", 1, 0), ("W", 1, 1), ("b", 0)}
    assert max(row.relative_error for row in rows) < 1e-6


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: jc.grad_check_sparse(jnp.sin, x, x), ValueError, r"one real number, got float64\[3\]"),
        (lambda x: jc.grad_check_sparse(cubes, x, x[:2]), ValueError, r"shape \(2,\) for params"),
        (lambda x: jc.grad_check_sparse(cubes, jnp.arange(3), x), TypeError, "nothing to differentiate"),
        (lambda x: jc.grad_check_sparse(cubes, x, x, h=-1.0), ValueError, "h > 0"),
        (lambda x: jc.grad_check_sparse(cubes, 1e12 * x, x), ValueError, "is lost in the precision of f"),
    ],
    ids=["vector", "shapes", "integers", "step", "lost"],
)
def test_wrong_input_of_the_spot_check(call: Callable[[Any], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call(jnp.ones(3))
