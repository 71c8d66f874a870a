"""Newton's methods: one step on a quadratic, sound where the Hessian is not, cheap where parameters are many."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxopt_course as jc
from jaxopt_course import Status
from jaxopt_course.optimizers.dense_hessian import newton_model
from jaxopt_course.optimizers.inner_solve import residual_gain, truncated_cg
from tests.tables import FLOATS

METHODS: dict[str, Callable[..., Any]] = {"newton": jc.newton, "newton_cg": jc.newton_cg}
each_method = pytest.mark.parametrize("name", METHODS)
seeds = st.integers(0, 10**6)


@jax.jit
def compiled_direction(hessian: Any, g: Any, radius: Any) -> Any:
    """Without the gain, which has a test of its own."""
    direction, _, lowest, definite, _ = newton_model(hessian, g, radius)
    return direction, lowest, definite


def test_the_gain_is_newtons_decrement_where_the_model_has_a_minimum() -> None:
    g, far = jnp.array([3.0, -4.0]), jnp.array(1e3)
    for hessian, expected in (
        (np.diag([2.0, 8.0]), 9 / 4 + 16 / 16),
        (np.diag([2e-9, 8.0]), 9 / 4e-9 + 1),
        (np.diag([2.0, -8.0]), np.inf),
        (np.zeros((2, 2)), np.inf),
    ):
        assert newton_model(jnp.asarray(hessian), g, far).gain == pytest.approx(expected, rel=1e-9)


def symmetric(seed: int, values: Any) -> np.ndarray:
    """A matrix with these eigenvalues, in a random basis."""
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return Q @ np.diag(values) @ Q.T


def step(optimizer: Any, f: Callable[[Any], Any], w: Any) -> tuple[Any, Any]:
    value, grad = jax.value_and_grad(f)(w)
    updates, state = optimizer.update(grad, optimizer.init(w), w, value=value, grad=grad, value_fn=f)
    return optax.apply_updates(w, updates), state


@pytest.mark.parametrize("line_search", [jc.strong_wolfe, jc.armijo, None])
def test_a_quadratic_of_any_tree_takes_one_step(line_search: Any) -> None:
    tree = {"W": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones(()), jnp.ones(2)]}
    H = jnp.asarray(symmetric(0, np.logspace(-2, 3, 9)))
    f: Callable[[Any], Any] = lambda w: 0.5 * (ravel_pytree(w)[0] - 1) @ H @ (ravel_pytree(w)[0] - 1)  # noqa: E731
    there, state = step(jc.newton(line_search=line_search), f, tree)
    np.testing.assert_allclose(ravel_pytree(there)[0], 1, atol=1e-10)
    chex.assert_trees_all_equal_structs(there, tree)
    assert state.num_shifts == 0
    assert state.search.step_size == 1
    assert state.lowest_curvature > 0


def test_the_pure_method_is_the_lecture_formula() -> None:
    f: Callable[[Any], Any] = lambda w: jnp.sum(jnp.cosh(w)) + w[0] * w[1]  # noqa: E731
    w = jnp.array([0.3, -0.4, 1.0])
    optimizer, path = jc.newton(0.5, line_search=None), [w]
    for _ in range(5):
        path.append(step(optimizer, f, path[-1])[0])
    expected = np.asarray(w)
    for point in path[1:]:
        H = np.diag(np.cosh(expected)) + np.eye(3)[[1, 0, 2]] * np.array([[1], [1], [0]])
        g = np.sinh(expected) + np.array([expected[1], expected[0], 0])
        expected = expected - 0.5 * np.linalg.solve(H, g)
        np.testing.assert_allclose(point, expected, rtol=1e-12)


def test_the_pure_method_may_run_away_and_that_is_no_success_and_no_rounding() -> None:
    """On sqrt(1 + w^2) it goes from w to -w^3, up to where any gradient is small beside the value."""
    start = jnp.array([1.0001])
    result = jc.minimize(lambda w: jnp.sum(jnp.sqrt(1 + w**2)), jc.newton(line_search=None), start)
    assert result.status == Status.MAX_STEPS
    assert result.value <= jnp.sqrt(1 + start[0] ** 2)


@pytest.mark.parametrize("curvature", [-1e-3, -1e-250])
def test_a_step_whose_square_is_beyond_all_range_is_cut_and_not_lost(curvature: float) -> None:
    direction, _, _ = compiled_direction(curvature * jnp.eye(4), jnp.full(4, 0.1), jnp.array(2.0))
    np.testing.assert_allclose(direction, -1, rtol=1e-12)


def test_a_schedule_is_counted() -> None:
    f: Callable[[Any], Any] = lambda w: jnp.sum(w**2)  # noqa: E731
    optimizer = jc.newton(lambda count: jnp.where(count == 0, 0.5, 0.25), line_search=None)
    result = jc.minimize(f, optimizer, jnp.ones(2), max_steps=2)
    np.testing.assert_allclose(result.params, (1 - 0.5) * (1 - 0.25))
    assert result.state.count == 2


@settings(max_examples=40)
@given(seed=seeds, values=st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_a_definite_hessian_is_solved(seed: int, values: list[float]) -> None:
    H, g = symmetric(seed, values), np.random.default_rng(seed).standard_normal(4)
    direction, lowest, definite = compiled_direction(jnp.asarray(H), jnp.asarray(g), jnp.array(1e-3))
    np.testing.assert_allclose(direction, -np.linalg.solve(H, g), rtol=1e-8, atol=1e-10)
    assert definite
    assert min(values) * (1 - 1e-8) <= lowest


@settings(max_examples=40)
@given(seed=seeds, values=st.lists(st.floats(-100, 100), min_size=4, max_size=4), radius=st.floats(1e-3, 1e3))
def test_any_other_loses_the_signs_of_its_eigenvalues(seed: int, values: list[float], radius: float) -> None:
    values[0] = -1 - abs(values[0])
    H, g = symmetric(seed, values), np.random.default_rng(seed).standard_normal(4)
    direction, lowest, definite = compiled_direction(jnp.asarray(H), jnp.asarray(g), jnp.array(radius))
    scale = 1 / np.sqrt(np.abs(np.diag(H)))
    sizes, Q = np.linalg.eigh(scale[:, None] * H * scale)
    assume(np.all(np.abs(np.diag(H)) > 0.1) and np.all(np.abs(sizes) > 1e-3))
    expected = -scale * (Q @ ((Q.T @ (scale * g)) / np.abs(sizes)))
    expected *= min(1, radius / np.linalg.norm(expected))
    np.testing.assert_allclose(direction, expected, rtol=1e-6, atol=1e-8)
    assert not definite
    assert min(values) * (1 + 1e-9) <= lowest < 0
    assert direction @ g < 0
    assert np.linalg.norm(direction) <= radius * (1 + 1e-9)


@settings(max_examples=20)
@given(seed=seeds, units=st.lists(st.floats(-6, 6), min_size=4, max_size=4), sign=st.sampled_from([1.0, -1.0]))
def test_units_do_not_matter(seed: int, units: list[float], sign: float) -> None:
    H, g = symmetric(seed, [sign, 2.0, 3.0, 4.0]), np.random.default_rng(seed).standard_normal(4)
    D = 10.0 ** np.array(units)
    one, _, definite = compiled_direction(jnp.asarray(H), jnp.asarray(g), jnp.array(1e300))
    other, _, same = compiled_direction(jnp.asarray(D[:, None] * H * D), jnp.asarray(D * g), jnp.array(1e300))
    assert definite == same == (sign > 0)
    np.testing.assert_allclose(D * other, one, rtol=1e-6)


@pytest.mark.parametrize("H", [np.zeros((4, 4)), np.diag([1.0, 0, 0, 0]), np.ones((4, 4))])
def test_a_singular_hessian_still_goes_down(H: np.ndarray) -> None:
    g = np.array([1.0, -2, 3, 0.5])
    direction, lowest, _ = compiled_direction(jnp.asarray(H), jnp.asarray(g), jnp.array(1.0))
    assert np.all(np.isfinite(direction))
    assert direction @ g < 0
    assert lowest == pytest.approx(0, abs=1e-14)


def test_shifts_are_counted_and_the_saddle_is_left() -> None:
    f: Callable[[Any], Any] = lambda w: w[0] ** 2 - w[1] ** 2 + 0.25 * w[1] ** 4  # noqa: E731
    result = jc.minimize(f, jc.newton(), jnp.array([1.0, 1e-3]))
    assert result.status == Status.GRADIENT_NORM
    assert result.value == pytest.approx(-1)
    assert 1 <= result.state.num_shifts < result.num_steps
    assert result.state.lowest_curvature > 0


@each_method
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("aside", [1e-3, 1e-9, 1e-12])
def test_a_saddle_is_left_however_near_it_comes(name: str, aside: float, unit: float, offset: float) -> None:
    """The gradient there is next to nothing: how far to go the curvature and the size of the parameters tell."""

    def f(w: Any) -> Any:
        x, y = w / unit - 7
        return offset + x**2 - y**2 + 0.25 * y**4

    result = jc.minimize(f, METHODS[name](), unit * jnp.array([8.0, 7.0 + aside]))
    assert result.status > 0, str(result)
    np.testing.assert_allclose(result.params / unit, [7, 7 + np.sqrt(2)], atol=1e-5 if offset == 0 else 1e-3)
    assert result.num_evals < 25


def test_a_tolerance_that_holds_at_a_saddle_ends_there_and_the_result_names_it() -> None:
    f: Callable[[Any], Any] = lambda w: w[0] ** 2 - w[1] ** 2 + 0.25 * w[1] ** 4  # noqa: E731
    for start, gtol in ((jnp.zeros(2), None), (jnp.array([1.0, 1e-9]), 1e-6)):
        result = jc.minimize(f, jc.newton(), start, gtol=gtol)
        assert result.status == Status.GRADIENT_NORM
        assert result.state.lowest_curvature == pytest.approx(-2)
        assert "a saddle" in str(result)


def test_a_diagonal_that_is_rounding_sets_no_scale() -> None:
    """At (1, 1) Beale's Hessian has a diagonal entry of 0 beside others near 10, which rounding makes 1e-26."""
    problem = jc.mgh.PROBLEMS["beale"]
    starts = problem.start * (1 + 1e-13 * np.random.default_rng(0).standard_normal((100, 2)))
    solve = jax.jit(jax.vmap(lambda w: jc.minimize(problem.fn, jc.newton(), w)._replace(state=None)))
    result = solve(starts)
    assert np.all(result.status == Status.GRADIENT_NORM), str(result)
    assert np.max(result.value) < 1e-20
    assert np.max(result.num_evals) <= 15


def test_negative_curvature_is_gone_along() -> None:
    f: Callable[[Any], Any] = lambda w: w[0] ** 2 - w[1] ** 2 + 0.25 * w[1] ** 4  # noqa: E731
    result = jc.minimize(f, jc.newton_cg(), jnp.array([1.0, 1e-3]))
    assert result.value == pytest.approx(-1)
    assert result.state.num_negative >= 1


@settings(max_examples=20)
@given(seed=seeds)
def test_conjugate_gradients_meet_the_forcing_sequence(seed: int) -> None:
    H, g = symmetric(seed, np.logspace(-1, 1, 8)), 1e-6 * np.random.default_rng(seed).standard_normal(8)
    inner = compiled_cg(jnp.asarray(H), jnp.asarray(g))
    norm = float(np.linalg.norm(g))
    assert np.linalg.norm(H @ inner.solution + g) <= 0.03 * norm * (1 + 1e-6)
    np.testing.assert_allclose(inner.residual, H @ inner.solution + g, atol=1e-12 * norm)
    assert not inner.negative
    assert inner.num_products <= 9


@jax.jit
def compiled_cg(H: Any, g: Any) -> Any:
    return truncated_cg(lambda v: H @ v, g, lambda v: v, jnp.int32(100), 0.03)


def test_the_residual_of_an_ended_inner_solve_hides_gain() -> None:
    curvatures, g = jnp.array([1.0, 10.0, 100.0]), jnp.ones(3)
    all_of_it = float(jnp.sum(g**2 / curvatures) / 2)
    for most, complete in ((2, False), (3, True)):
        inner = truncated_cg(lambda v: curvatures * v, g, lambda v: v, jnp.int32(most), 1e-12)
        seen, hidden = float(-g @ inner.solution / 2), float(residual_gain(inner, g.dtype))
        assert seen + hidden <= all_of_it * (1 + 1e-9)
        assert (hidden > seen / 2) is not complete
        assert complete is (seen == pytest.approx(all_of_it, rel=1e-9))


def test_newton_cg_claims_no_more_than_its_inner_solves_know() -> None:
    """The Hessian at the end has a condition of 1e16, and conjugate gradients end early."""
    problem = jc.mgh.PROBLEMS["meyer"]
    result = jc.minimize(problem.fn, jc.newton_cg(), problem.start, max_steps=3000)
    left, gained = float(result.value) - problem.minima[0].value, float(problem.fn(problem.start) - result.value)
    assert result.status != Status.GRADIENT_NORM or left <= 1e-18 * gained
    assert left <= 1e-8 * gained


@pytest.mark.parametrize("name", ["meyer", "powell_badly_scaled", "linear_rank_one"])
def test_newton_cg_ends_alike_however_its_inner_solves_are_rounded(name: str) -> None:
    """Conditions of 1e14 to 1e16, and a Hessian of rank one."""
    problem, rng = jc.mgh.PROBLEMS[name], np.random.default_rng(0)
    starts = problem.start * (1 + 1e-13 * rng.standard_normal((50, *problem.start.shape)))
    solve = lambda w: jc.minimize(problem.fn, jc.newton_cg(), w, max_steps=3000)._replace(state=None)  # noqa: E731
    result, least = jax.jit(jax.vmap(solve))(starts), problem.minima[0].value
    assert np.all(result.status > 0), str(result)
    np.testing.assert_allclose(result.value, least, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [8, 60])
def test_a_claim_of_newton_cg_holds_where_its_inner_solve_has_not_met_the_lowest_curvature(size: int) -> None:
    """Curvatures of 1 to 1e-12: what is left lies along the lowest of them, where the gradient is least."""
    curvatures = jnp.geomspace(1, 1e-12, size)
    f: Callable[[Any], Any] = lambda w: jnp.sum(curvatures * (jnp.cosh(w) - 1))  # noqa: E731
    for rng in map(np.random.default_rng, range(5)):
        start = jnp.asarray(rng.standard_normal(size))
        result = jc.minimize(f, jc.newton_cg(), start)
        assert result.status <= 0 or result.value <= 1.01e-8 * f(start), str(result)
        assert result.status != Status.GRADIENT_NORM or result.value <= 1e-17 * f(start), str(result)


def test_conjugate_gradients_on_what_has_no_curvature() -> None:
    g = jnp.array([3.0, 4.0])
    flat = compiled_cg(jnp.zeros((2, 2)), g)
    np.testing.assert_array_equal(flat.solution, -g)
    concave = compiled_cg(-2 * jnp.eye(2), g)
    assert flat.negative
    assert concave.negative
    np.testing.assert_allclose(concave.solution, -g / 2)  # as far as with the curvature's sign turned


def test_a_preconditioner_saves_products() -> None:
    scales = jnp.logspace(0, 5, 200)
    f: Callable[[Any], Any] = lambda w: 0.5 * jnp.sum(scales * w**2) + jnp.sum(w**4)  # noqa: E731
    plain = jc.minimize(f, jc.newton_cg(), jnp.ones(200))
    helped = jc.minimize(f, jc.newton_cg(preconditioner=lambda w, v: v / (scales + 12 * w**2)), jnp.ones(200))
    assert plain.status == helped.status == Status.GRADIENT_NORM
    assert helped.state.num_products <= helped.num_steps * 2 < plain.state.num_products


def test_a_million_parameters() -> None:
    scales = jnp.linspace(1, 100, 10**6, dtype=jnp.float32)
    f: Callable[[Any], Any] = lambda w: jnp.mean(scales * (jnp.cosh(w) - 1))  # noqa: E731
    start = jnp.ones(10**6, jnp.float32)
    result = jc.minimize(f, jc.newton_cg(), start, gtol=1e-8)
    assert result.status > 0
    assert result.value < 1e-6 * f(start)


@each_method
def test_jit_equals_not_jit_and_vmap_equals_loop(name: str) -> None:
    f: Callable[[Any], Any] = lambda w: jnp.sum(jnp.cosh(w)) - w[0] * w[1]  # noqa: E731
    optimizer = METHODS[name]()
    once = partial(step, optimizer, f)
    starts = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
    plain, compiled = once(starts[0]), jax.jit(once)(starts[0])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), plain, compiled)
    lanes = jax.jit(jax.vmap(once))(starts)
    for i, start in enumerate(starts):
        alone = jax.jit(once)(start)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), alone[0], lanes[0][i])
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), optimizer.init(starts[0]))
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), compiled[1])


def bowl(size: float, w: Any) -> Any:
    return size * jnp.sum((w - 0.5) ** 2)


def test_many_lanes_of_a_middling_size_end() -> None:
    """Two matrix factorizations of a batch that ran at once waited for each other's threads, for ever."""
    targets = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64)))
    solve = lambda t: jc.minimize(lambda w: jnp.sum(jnp.cosh(w - t)) + (w[0] * w[1]) ** 2, jc.newton(), t + 1)  # noqa: E731
    result = jax.jit(jax.vmap(solve))(targets)
    assert np.all(np.asarray(result.status) == Status.GRADIENT_NORM)


@each_method
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_keeps_its_dtype_and_its_reason(name: str, dtype: Any) -> None:
    for size in (0.0, 1e-4, 1.0, 6e4 if dtype != jnp.float16 else 6e3):
        there, _ = step(METHODS[name](), partial(bowl, size), jnp.zeros(3, dtype))
        assert there.dtype == dtype
        assert np.all(np.isfinite(np.asarray(there, float)))
        np.testing.assert_allclose(np.asarray(there, float), 0.5 * (size > 0), atol=5e-3)


@each_method
def test_it_trains_on_minibatches_and_in_a_chain(name: str) -> None:
    digits = jc.data.load("digits")
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, 1e-2)
    images, labels = digits.train[0][:, :16].astype(float), digits.train[1]
    params = jnp.zeros((10, 16))
    chain = optax.chain(METHODS[name](), optax.scale(0.5))
    for optimizer in (METHODS[name](), chain):
        key = jax.random.key(0)
        result = jc.train(objective, optimizer, params, (images, labels), key=key, batch_size=200, num_steps=6)
        assert np.all(np.diff(result.trace.loss[[0, -1]]) < -0.1)


@each_method
def test_what_is_wrong_is_said(name: str) -> None:
    make = METHODS[name]
    with pytest.raises(ValueError, match="learning_rate must be a finite number >= 0, got -1"):
        make(-1.0)
    optimizer, w = make(), jnp.ones(2)
    with pytest.raises(ValueError, match=rf"{name}: update needs params, value= and value_fn=; value, value_fn not"):
        optimizer.update(w, optimizer.init(w), w)
    with pytest.raises(TypeError, match="need real parameters, params is complex128"):
        optimizer.init(jnp.ones(2, complex))
    with pytest.raises(ValueError, match=r"gradients and parameters do not match"):
        optimizer.update(jnp.ones(3), optimizer.init(w), w, value=jnp.array(0.0), value_fn=jnp.sum)
    with pytest.raises(ValueError, match="max_products must be at least 1"):
        jc.newton_cg(max_products=0)


def test_newton_cg_ends_where_scikit_learn_ends() -> None:
    from sklearn.linear_model import LogisticRegression

    images, labels = jc.data.load("digits").train
    images, strength = images[:400, ::3].astype(float), 1e-2
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, strength)
    ours = jc.minimize(
        objective, jc.newton_cg(), jnp.zeros((10, images.shape[1])), data=(images, labels[:400]), gtol=1e-10
    )
    theirs = LogisticRegression(C=1 / (2 * strength * 400), fit_intercept=False, tol=1e-10, max_iter=1000)
    theirs.fit(images, labels[:400])
    np.testing.assert_allclose(ours.params, theirs.coef_, atol=1e-6)
