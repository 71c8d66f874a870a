"""Derivatives of a minimum, against closed forms, the theorem in NumPy, jaxopt and problems solved again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc

RNG = np.random.default_rng(0)
X, Y = jnp.array(RNG.normal(size=(40, 5))), jnp.array(RNG.normal(size=40))
SOLVERS = {"lbfgs": jc.lbfgs(), "newton": jc.newton(), "newton_cg": jc.newton_cg(), "momentum": jc.momentum(0.03)}


def ridge(w: Any, data: Any) -> Any:
    x, y, strength = data
    return jnp.mean((x @ w - y) ** 2) + strength * jnp.vdot(w, w)


def ridge_minimum(data: Any) -> Any:
    x, y, strength = data
    return jnp.linalg.solve(x.T @ x / len(y) + strength * jnp.eye(x.shape[1]), x.T @ y / len(y))


def assert_close(found: Any, expected: Any, rtol: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) <= rtol * np.max(np.abs(b)) + 1e-13


@pytest.mark.parametrize("name", SOLVERS)
def test_ridge_regression_moves_as_its_closed_form(name: str) -> None:
    def fitted(data: Any) -> Any:
        return jc.minimize(ridge, SOLVERS[name], jnp.ones(5), data=data, max_steps=10_000).params

    data, rtol = (X, Y, jnp.array(0.1)), 1e-5 if name == "momentum" else 1e-7
    expected = jax.jacobian(ridge_minimum)(data)
    assert_close(jax.jit(jax.jacrev(fitted))(data), expected, rtol)
    assert_close(jax.jacfwd(fitted)(data), expected, rtol)


def test_closed_over_values_count_under_jit_and_vmap_and_twice() -> None:
    def length(strength: Any, solver: Any = SOLVERS["lbfgs"]) -> Any:
        result = jc.minimize(lambda w: ridge(w, (X, Y, strength)), solver, jnp.zeros(5))
        return jnp.vdot(result.params, result.params)

    def exact(strength: Any) -> Any:
        w = ridge_minimum((X, Y, strength))
        return jnp.vdot(w, w)

    strengths = jnp.array([0.01, 0.1, 1.0])
    assert_close(jax.vmap(jax.grad(length))(strengths), jax.vmap(jax.grad(exact))(strengths), 1e-7)
    assert_close(jax.jit(jax.vmap(jax.hessian(length)))(strengths), jax.vmap(jax.hessian(exact))(strengths), 1e-6)
    third = jax.grad(jax.grad(jax.grad(lambda s: length(s, jc.newton()))))
    assert_close(third(0.1), jax.grad(jax.grad(jax.grad(exact)))(0.1), 1e-6)


def test_the_value_at_the_minimum_has_its_derivatives_and_what_comes_beside_it() -> None:
    def with_size(w: Any, data: Any) -> Any:
        return ridge(w, data), {"size": jnp.vdot(w, w) * data[2]}

    def ends(strength: Any) -> Any:
        result = jc.minimize(with_size, jc.newton(), jnp.zeros(5), data=(X, Y, strength), has_aux=True)
        return result.value, result.aux["size"]

    def exact(strength: Any) -> Any:
        data = (X, Y, strength)
        value, aux = with_size(ridge_minimum(data), data)
        return value, aux["size"]

    assert_close(jax.jacrev(ends)(0.3), jax.jacrev(exact)(0.3), 1e-9)
    assert_close(jax.hessian(ends)(0.3), jax.hessian(exact)(0.3), 1e-9)


def test_logistic_regression_by_the_theorem_in_numpy() -> None:
    labels = np.sign(RNG.normal(size=40))

    def risk(w: Any, strength: Any) -> Any:
        return jnp.mean(jnp.logaddexp(0.0, -labels * (X @ w))) + strength * jnp.vdot(w, w) / 2

    def fitted(strength: Any) -> Any:
        return jc.minimize(risk, jc.lbfgs(), jnp.zeros(5), data=strength).params

    x, w = np.asarray(X), np.asarray(fitted(0.05))
    p = 1 / (1 + np.exp(-labels * (x @ w)))
    hessian = x.T @ (x * (p * (1 - p))[:, None]) / len(x) + 0.05 * np.eye(5)
    assert_close(jax.jacobian(fitted)(0.05), -np.linalg.solve(hessian, w), 1e-6)


@pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained")
def test_derivatives_agree_with_jaxopt() -> None:
    jaxopt = pytest.importorskip("jaxopt")
    theirs = jaxopt.LBFGS(lambda w, strength: ridge(w, (X, Y, strength)), tol=1e-12, maxiter=1000)
    ours = jax.jacobian(lambda s: jc.minimize(ridge, jc.lbfgs(), jnp.zeros(5), data=(X, Y, s)).params)(0.2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = jax.jacobian(lambda strength: theirs.run(jnp.zeros(5), strength).params)(0.2)
    assert_close(ours, expected, 1e-7)


def test_many_parameters_are_solved_for_by_iteration_twice_differentiable_too() -> None:
    n = 300
    x, y = jnp.array(RNG.normal(size=(n + 40, n))), jnp.array(RNG.normal(size=n + 40))

    def total(strength: Any) -> Any:
        return jnp.sum(jc.minimize(ridge, jc.newton_cg(), jnp.zeros(n), data=(x, y, strength)).params)

    def exact(strength: Any) -> Any:
        return jnp.sum(ridge_minimum((x, y, strength)))

    assert_close(jax.grad(total)(0.1), jax.grad(exact)(0.1), 1e-6)
    assert_close(jax.grad(jax.grad(total))(0.1), jax.grad(jax.grad(exact))(0.1), 1e-5)


def test_a_minimum_inside_the_objective_of_another() -> None:
    train, held_out = (X[:25], Y[:25]), (X[25:], Y[25:])

    def held_out_loss(fit: Any) -> Any:
        return lambda log_strength: jnp.mean((held_out[0] @ fit((*train, jnp.exp(log_strength))) - held_out[1]) ** 2)

    ours = held_out_loss(lambda data: jc.minimize(ridge, jc.newton(), jnp.zeros(5), data=data).params)
    exact = held_out_loss(ridge_minimum)
    for solver in (jc.lbfgs(), jc.newton()):
        nested, direct = (jc.minimize(f, solver, jnp.array(-3.0), max_steps=20) for f in (ours, exact))
        assert abs(nested.params - direct.params) <= 1e-5 * abs(direct.params)


def test_the_start_and_the_optimizer_do_not_matter() -> None:
    def fitted(start: Any, rate: Any) -> Any:
        return jc.minimize(ridge, jc.sgd(rate), start, data=(X, Y, 0.1), max_steps=5000).params

    for by_start in jax.jacrev(fitted, argnums=(0, 1))(jnp.ones(5), 0.1):
        assert np.all(by_start == 0)


SINGULAR = {
    "flat": lambda w, t: t * (w[0] + w[1] - 1) ** 2,
    "flat, many": lambda w, t: t * jnp.sum((jnp.append(w[1:-1], w[0] + w[-1]) - 1) ** 2),
    "saddle": lambda w, t: t * (w[0] ** 2 - w[1] ** 2),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_a_singular_hessian_has_no_derivative(name: str) -> None:
    start = jnp.zeros(2) if name == "saddle" else jnp.full(300 if "many" in name else 2, 0.3)

    def end(t: Any) -> Any:
        return jc.minimize(SINGULAR[name], jc.lbfgs(), start, data=t).params

    assert np.all(np.isnan(jax.jacrev(end)(2.0)))
    assert np.all(np.isnan(jax.jacfwd(end)(2.0)))


@pytest.mark.parametrize("options", [{"max_steps": 3}, {"max_evals": 2}, {"target": 10.0}])
def test_no_minimum_no_derivative(options: dict[str, Any]) -> None:
    def end(t: Any) -> Any:
        result = jc.minimize(lambda w: jnp.sum((w - t) ** 2), jc.sgd(1e-3), jnp.zeros(2), **options)
        return jnp.append(result.params, result.value)

    assert np.all(np.isnan(jax.jacrev(end)(2.0)))
    assert np.all(np.isnan(jax.jacfwd(end)(2.0)))


def test_one_lane_without_a_minimum_leaves_the_others_theirs() -> None:
    def end(t: Any) -> Any:
        return jc.minimize(lambda w: t * w**2 - w, jc.newton(), jnp.array(0.1), max_steps=20).params

    slopes = jax.vmap(jax.grad(end))(jnp.array([1.0, -1.0, 2.0]))
    assert_close(slopes[::2], jnp.array([-0.5, -0.125]), 1e-9)
    assert np.isnan(slopes[1])


def test_without_implicit_the_loop_itself_is_differentiated() -> None:
    def end(t: Any, implicit: bool) -> Any:
        objective = lambda w: jnp.sum((w - t) ** 2)  # noqa: E731
        return jc.minimize(objective, jc.sgd(0.1), jnp.zeros(2), max_steps=2, implicit=implicit).params

    assert_close(jax.jacfwd(lambda t: end(t, False))(3.0), jnp.full(2, 1 - 0.8**2), 1e-12)
    with pytest.raises(ValueError, match="everse-mode"):
        jax.jacrev(lambda t: end(t, False))(3.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_narrow_parameters(dtype: Any) -> None:
    def end(t: Any) -> Any:
        def objective(w: Any) -> Any:
            return jnp.sum((w * t.astype(w.dtype) - jnp.arange(5.0).astype(w.dtype)) ** 2)

        return jnp.sum(jc.minimize(objective, jc.lbfgs(), jnp.zeros(5, dtype)).params)

    assert abs(jax.grad(end)(dtype(2.0)) + 2.5) < 0.02


def test_complex_parameters_and_trees() -> None:
    def end(t: Any) -> Any:
        def objective(w: Any) -> Any:
            away = w["z"] - t * (1 + 2j)
            return (away * away.conj()).real + jnp.sum((w["x"] - t) ** 2)

        params = jc.minimize(objective, jc.lbfgs(), {"z": jnp.array(0j), "x": jnp.zeros(2)}).params
        return params["z"].imag + jnp.sum(params["x"])

    assert abs(jax.grad(end)(3.0) - 4.0) < 1e-9


def test_data_of_whole_numbers_is_no_obstacle() -> None:
    labels = jnp.array(RNG.integers(0, 3, 40))
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, 0.1)

    def total(images: Any) -> Any:
        params = jc.scores.init_linear(jax.random.key(0), num_classes=3, num_features=5)
        wide = jax.tree.map(lambda leaf: leaf.astype(images.dtype), params)
        result = jc.minimize(objective, jc.newton(), wide, data=(images, labels))
        return result.value

    # the bias is not penalized: one direction is flat, so parameters have no derivative, but the value has
    shift = jnp.array(RNG.normal(size=X.shape))
    numeric = (total(X + 1e-5 * shift) - total(X - 1e-5 * shift)) / 2e-5
    assert_close(jnp.vdot(jax.grad(total)(X), shift), numeric, 1e-5)


def again(f: Any, t: float, step: float = 1e-5) -> Any:
    return (f(t + step) - f(t - step)) / (2 * step)


@pytest.mark.parametrize("name", ["lbfgs", "newton", "newton_cg"])
def test_parameters_at_their_bounds_move_with_them(name: str) -> None:
    def ends(t: Any) -> Any:
        result = jc.minimize(ridge, SOLVERS[name], jnp.zeros(5), data=(X, t * Y, 0.1), bounds=(-0.05 * t**2, 0.02))
        return jnp.append(result.params, result.value)

    expected = again(ends, 1.0)
    assert 0 < np.sum(expected[:5] == 0) < 5
    assert_close(jax.jacfwd(ends)(1.0), expected, 1e-5)
    assert_close(jax.jacrev(ends)(1.0), expected, 1e-5)
    assert_close(jax.hessian(ends)(1.0), again(jax.jacfwd(ends), 1.0), 1e-5)


def test_the_support_of_a_lasso_is_held_and_its_strength_counts() -> None:
    def ends(t: Any) -> Any:
        result = jc.minimize(ridge, jc.lbfgs(), jnp.zeros(5), data=(X, Y, 0.01), l1=t)
        return jnp.append(result.params, result.value)

    assert 0 < np.sum(ends(0.15)[:5] == 0) < 5
    assert_close(jax.jacfwd(ends)(0.15), again(ends, 0.15), 1e-5)
    assert_close(jax.jacrev(ends)(0.15), again(ends, 0.15), 1e-5)


def test_at_the_edge_of_being_held_there_is_no_derivative() -> None:
    def end(t: Any) -> Any:
        return jc.minimize(lambda w: (w - t) ** 2, jc.newton(), jnp.array(1.5), bounds=(1.0, 2.0)).params

    slopes = [float(jax.grad(end)(t)) for t in (0.9, 1.0, 1.1)]
    assert slopes[0] == 0
    assert np.isnan(slopes[1])
    assert abs(slopes[2] - 1) < 1e-12
