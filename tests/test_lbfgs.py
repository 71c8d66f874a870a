"""L-BFGS: the product against textbook references, the history under bad pairs, and the paths that it takes."""

import functools
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxopt_course as jc
from jaxopt_course import Status
from jaxopt_course.optimizers import Evaluation, History, Step
from jaxopt_course.optimizers.lbfgs import empty_history, forget, inverse_hessian_product, remember
from tests.references_second_order import Pairs, dense_inverse_hessian, two_loop_product
from tests.tables import FLOATS

SHAPES = ((1, 2), (5, 1), (5, 3), (20, 10))  # the size of the vector, the pairs kept
PRODUCT_TOLERANCE = {np.float64: 1e-10, np.float32: 1e-3}

product, remembered = jax.jit(inverse_hessian_product), jax.jit(remember)


def random_pair(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A step and what a Hessian with eigenvalues around 1 to 10 makes of it, another Hessian for every pair."""
    s, root = rng.standard_normal(size), 0.3 * rng.standard_normal((size, size))
    return s, s * rng.uniform(1, 10, size) + root @ root.T @ s


def without_curvature(rng: np.random.Generator, size: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    s, y = random_pair(rng, size)
    spoilt, first = y.copy(), np.arange(size) == 0
    spoilt[rng.integers(size)] = np.nan if "nan" in kind else np.inf
    return {
        "no step": (0 * s, y),
        "no change": (s, 0 * y),
        "negative": (s, -y),
        "orthogonal": (s * first, y * ~first),
        "nan in y": (s, spoilt),
        "inf in y": (s, spoilt),
        "nan in s": (spoilt, y),
        "inf in s": (spoilt, y),
        "all nan": (np.nan * s, np.nan * y),
    }[kind]


BAD_PAIRS = (
    "no step",
    "no change",
    "negative",
    "orthogonal",
    "nan in y",
    "inf in y",
    "nan in s",
    "inf in s",
    "all nan",
)


def filled(pairs: Pairs, size: int, memory_size: int, dtype: Any = np.float64) -> History:
    history = empty_history(jnp.zeros(size, dtype), memory_size)
    for s, y in pairs:
        history = remembered(history, s.astype(dtype), y.astype(dtype))
    return history


def relative_error(ours: Any, theirs: Any) -> float:
    return float(np.max(np.abs(np.asarray(ours, np.float64) - theirs)) / np.max(np.abs(theirs)))


@pytest.mark.parametrize("dtype", PRODUCT_TOLERANCE)
def test_product_equals_the_two_loop_recursion_and_the_dense_matrix(dtype: Any) -> None:
    @given(
        shape=st.sampled_from(SHAPES),
        seed=st.integers(0, 10**6),
        kinds=st.one_of(
            st.lists(st.just("good"), max_size=12),
            st.lists(st.just("good"), min_size=30, max_size=40),
            st.lists(st.sampled_from(("good", *BAD_PAIRS)), max_size=30),
        ),
    )
    @settings(max_examples=60)
    def check(shape: tuple[int, int], seed: int, kinds: list[str]) -> None:
        (size, memory_size), rng = shape, np.random.default_rng(seed)
        pairs = [random_pair(rng, size) if k == "good" else without_curvature(rng, size, k) for k in kinds]
        history = filled(pairs, size, memory_size, dtype)
        kept = [pair for pair, kind in zip(pairs, kinds, strict=True) if kind == "good"][-memory_size:]
        g = rng.standard_normal(size)
        ours = product(g.astype(dtype), history)
        assert ours.dtype == dtype
        assert history.num_stored == kinds.count("good")
        assert relative_error(ours, two_loop_product(g, kept)) <= PRODUCT_TOLERANCE[dtype]
        assert relative_error(ours, dense_inverse_hessian(kept, size) @ g) <= PRODUCT_TOLERANCE[dtype]

    check()


@pytest.mark.parametrize("num_pairs", [1, 3, 4, 50])
def test_the_matrix_is_symmetric_positive_definite_and_satisfies_the_secant_equation(num_pairs: int) -> None:
    rng = np.random.default_rng(num_pairs)
    pairs = [random_pair(rng, 8) for _ in range(num_pairs)]
    history = filled(pairs, 8, 3)
    matrix = jax.jit(jax.vmap(inverse_hessian_product, in_axes=(0, None)))(jnp.eye(8), history)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12, atol=1e-14)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    np.testing.assert_allclose(matrix, dense_inverse_hessian(pairs[-3:], 8), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(product(pairs[-1][1], history), pairs[-1][0], rtol=1e-10, atol=1e-12)


def test_a_full_memory_knows_a_quadratic_by_heart() -> None:
    """With steps along the eigenvectors, all pairs together are the inverse Hessian."""
    rng = np.random.default_rng(0)
    vectors, values = np.linalg.qr(rng.standard_normal((6, 6)))[0], np.geomspace(1e-3, 1e3, 6)
    history = filled([(v, value * v) for v, value in zip(vectors.T, values, strict=True)], 6, 6)
    g = rng.standard_normal(6)
    np.testing.assert_allclose(product(g, history), vectors @ (vectors.T @ g / values), rtol=1e-8)


TREE = {"W": jnp.zeros((3, 2)), "b": jnp.zeros(()), "deep": [jnp.zeros((1, 4)), (jnp.zeros(1),)]}


def test_a_tree_equals_its_flattened_vector() -> None:
    flat, unravel = ravel_pytree(TREE)
    rng, split = np.random.default_rng(1), lambda v: unravel(jnp.asarray(v))
    pairs = [random_pair(rng, len(flat)) for _ in range(5)]
    history = empty_history(TREE, 3)
    for s, y in pairs:
        history = remembered(history, split(s), split(y))
    g = rng.standard_normal(len(flat))
    ours = product(split(g), history)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, TREE)
    chex.assert_trees_all_close(ours, unravel(product(g, filled(pairs, len(flat), 3))), rtol=1e-12)


def test_leaves_of_several_dtypes() -> None:
    """Scalars are kept in the widest dtype, and every leaf in its own."""
    rng = np.random.default_rng(2)
    dtypes = {"b": np.float64, "w": np.float32}

    def split(v: np.ndarray) -> Any:
        return {name: jnp.asarray(part, dtypes[name]) for name, part in zip(dtypes, np.split(v, 2), strict=True)}

    pairs = [random_pair(rng, 6) for _ in range(4)]
    history, g = empty_history(split(np.zeros(6)), 2), rng.standard_normal(6)
    for s, y in pairs:
        history = remembered(history, split(s), split(y))
    ours = product(split(g), history)
    assert {name: leaf.dtype for name, leaf in ours.items()} == dtypes
    assert relative_error(np.concatenate([*ours.values()]), two_loop_product(g, pairs[-2:])) < 1e-5
    assert history.scale.dtype == np.float64


@pytest.mark.parametrize("kind", BAD_PAIRS)
def test_a_pair_without_curvature_is_as_if_it_had_never_been(kind: str) -> None:
    for stored in (0, 2, 3, 7):
        rng = np.random.default_rng(stored)
        pairs, g = [random_pair(rng, 5) for _ in range(stored)], rng.standard_normal(5)
        history = filled(pairs, 5, 3)
        after = remembered(history, *without_curvature(rng, 5, kind))
        chex.assert_trees_all_equal(after[1:], history[1:])
        chex.assert_trees_all_equal(product(g, after), product(g, history))
        chex.assert_tree_all_finite(after)
        good = random_pair(rng, 5)
        chex.assert_trees_all_equal(product(g, remembered(after, *good)), product(g, remembered(history, *good)))


def test_the_curvature_asked_for_is_relative_to_the_lengths() -> None:
    """s'y <= eps |s| |y| is skipped whatever the units; a cosine of four eps is taken."""
    eps = np.finfo(np.float64).eps
    for scale in (1e-40, 1.0, 1e40):
        for cosine, taken in ((0.25 * eps, 0), (4 * eps, 1)):
            s, y = np.array([scale, 0.0]), np.array([cosine, 1.0]) / scale
            assert remembered(empty_history(jnp.asarray(s), 2), s, y).num_stored == taken


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pairs_at_the_ends_of_the_range_never_spoil_a_product(dtype: Any) -> None:
    """Sizes are powers of the largest number. Whatever is made of such a pair, H g is a number where g is near 1 and so
    is the curvature's root, and the pair can be forgotten."""
    top, ones, powers = (
        np.log10(np.finfo(dtype).max),
        np.ones(5, dtype),
        (-0.9, -0.7, -0.5, -0.3, 0, 0.3, 0.5, 0.7, 0.9),
    )
    spoilt, kept = [], []
    for power_s, power_y in itertools.product(powers, powers):
        s, y = (dtype(10.0 ** (power * top)) * ones for power in (power_s, power_y))
        history = remembered(filled([(ones, 2 * ones)], 5, 3, dtype), s, y)
        cleared = forget(history, jnp.array(True))
        again = remembered(cleared, ones, 2 * ones)
        if abs(power_s - power_y) < 0.9 and not np.all(np.isfinite(product(ones, history))):
            spoilt.append((power_s, power_y))
        if not (np.allclose(product(ones, cleared), 1) and np.allclose(product(ones, again), 0.5)):
            kept.append((power_s, power_y))
    assert (spoilt, kept) == ([], [])


def test_forgetting() -> None:
    rng = np.random.default_rng(3)
    history, g = filled([random_pair(rng, 5) for _ in range(7)], 5, 3), rng.standard_normal(5)
    kept, cleared = (jax.jit(forget)(history, jnp.array(when)) for when in (False, True))
    chex.assert_trees_all_equal(kept, history)
    chex.assert_trees_all_equal_shapes_and_dtypes(cleared, history)
    assert cleared.num_stored == 0
    np.testing.assert_array_equal(product(g, cleared), g)
    pairs = [random_pair(rng, 5) for _ in range(2)]
    for s, y in pairs:
        cleared = remembered(cleared, s, y)
    assert relative_error(product(g, cleared), two_loop_product(g, pairs)) < 1e-12


LBFGS = jc.lbfgs()  # one for many tests, so that they share what is compiled


# Searches of our own


def exact_on_quadratics(
    value_and_grad_fn: Any, params: Any, value: Any, grads: Any, direction: Any, **asked: Any
) -> Step:
    """The least point of the ray: where the slope, a line through its values at 0 and 1, is 0."""
    has_aux, budget = asked["has_aux"], asked["budget"]
    dot, along = optax.tree.vdot, partial(optax.tree.add_scale, params)
    slope, other = dot(grads, direction), dot(value_and_grad_fn(along(1.0, direction))[1], direction)
    t = slope / (slope - other)
    t = t if budget is None else jnp.where(budget > 1, t, 0)
    value, grads = value_and_grad_fn(along(t, direction))
    value, aux = value if has_aux else (value, None)
    return Step(t, dot(grads, direction), Evaluation(value, grads, aux), jnp.int32(2), jnp.int32(Status.RUNNING))


def fixed(
    rate: float, value_and_grad_fn: Any, params: Any, value: Any, grads: Any, direction: Any, **asked: Any
) -> Step:
    """That part of a quasi-Newton step, or of min(1, 1/|g|) times the gradient while there are no pairs."""
    first = jnp.where(asked["first_length"] == 1, 1, jnp.minimum(1, optax.tree.norm(grads)))
    t = jnp.asarray(rate * first)
    value, grads = value_and_grad_fn(optax.tree.add_scale(params, t, direction))
    value, aux = value if asked["has_aux"] else (value, None)
    slope = optax.tree.vdot(grads, direction)
    return Step(t, slope, Evaluation(value, grads, aux), jnp.int32(1), jnp.int32(Status.RUNNING))


def quadratic(w: Any, data: Any) -> Any:
    matrix, b = data
    return 0.5 * w @ matrix @ w - b @ w


EXACT = jc.lbfgs(10, exact_on_quadratics)


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_exact_steps_end_on_a_quadratic_in_as_many_steps_as_dimensions(seed: int) -> None:
    """Nocedal and Wright (2006), theorem 6.4: with exact steps the directions are conjugate."""
    rng, n = np.random.default_rng(seed), 8
    vectors = np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = vectors @ np.diag(rng.uniform(1, 50, n)) @ vectors.T
    b, start = rng.standard_normal((2, n))
    result = jc.minimize(quadratic, EXACT, start, data=(matrix, b), gtol=1e-7)
    assert result.status == Status.GRADIENT_NORM
    assert result.num_steps <= n + 1
    np.testing.assert_allclose(result.params, np.linalg.solve(matrix, b), atol=1e-6)


def valley(w: Any, weights: Any) -> Any:
    """Convex, and not a quadratic."""
    return jnp.sum(weights * jnp.log(jnp.cosh(w - 1))) + 0.5 * jnp.sum(weights * w**2) + 0.1 * jnp.sum(w) ** 4


WEIGHTS = np.geomspace(0.1, 10, 8)
FN = partial(valley, weights=WEIGHTS)


def solve(w: Any, weights: Any) -> Any:
    return jc.minimize(valley, LBFGS, w, data=weights, gtol=1e-9)


def one_update(optimizer: Any, fn: Callable[[Any], Any], state: Any, w: Any, **keywords: Any) -> Any:
    value, grad = jax.value_and_grad(fn)(w)
    full = optax.with_extra_args_support(optimizer)
    return full.update(grad, state, w, value=value, grad=grad, value_fn=fn, **keywords)


update = jax.jit(one_update, static_argnums=(0, 1))


def path(optimizer: Any, fn: Callable[[Any], Any], start: Any, steps: int) -> Any:
    """Parameters after every step of the plain loop, and the last state."""

    def step(carry: Any, _: None) -> Any:
        w, state = carry
        updates, state = one_update(optimizer, fn, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    (_, state), ws = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return ws, state


jitted_path = jax.jit(path, static_argnums=(0, 1, 3))
START = jnp.linspace(-2, 2, 8)


@pytest.mark.parametrize("memory_size", [1, 4])
def test_equals_optax_along_the_path_of_fixed_steps(memory_size: int) -> None:
    """30 steps, so that a memory of 4 is overwritten several times. The first is scaled by min(1, 1 / |g|)."""
    rate = 0.2
    ours = jc.lbfgs(memory_size, partial(fixed, rate))
    theirs = optax.chain(optax.scale_by_lbfgs(memory_size, scale_init_precond=True), optax.scale(-rate))
    minimum, norms = solve(START, WEIGHTS).params, []
    for distance in (0.01, 0.3):
        start = minimum + distance * jnp.cos(jnp.arange(8.0))
        norms.append(float(jnp.linalg.norm(jax.grad(FN)(start))))
        ws, state = jitted_path(ours, FN, start, 30)
        with jax.numpy_dtype_promotion("standard"):
            expected, _ = jitted_path(theirs, FN, start, 30)
        assert state.history.num_stored == 30  # where curvature is not positive the rules part
        np.testing.assert_allclose(ws, expected, rtol=1e-9, atol=1e-10)
        assert np.linalg.norm(ws[-1] - minimum) < 0.2 * np.linalg.norm(start - minimum)
    assert norms[0] < 1 < norms[1]


def test_equals_a_loop_over_the_textbook_on_lists() -> None:
    ours, _ = jitted_path(jc.lbfgs(4, partial(fixed, 0.2)), FN, START, 25)
    w, gradient, pairs = START, jax.jit(jax.grad(FN)), cast(Pairs, [])
    g = np.asarray(gradient(w))
    for expected in ours:
        first = 1.0 if pairs else min(1.0, 1 / float(np.linalg.norm(g)))
        s = -0.2 * first * two_loop_product(g, pairs)
        new_g = np.asarray(gradient(w + s))
        pairs, w, g = [*pairs, (s, new_g - g)][-4:], w + s, new_g
        np.testing.assert_allclose(expected, w, rtol=1e-10, atol=1e-10)


# End points


def cross_entropy(w: Any, data: Any) -> Any:
    X, labels, reg = data
    chosen = jnp.take_along_axis(jax.nn.log_softmax(X @ w), labels[:, None], axis=1)
    return -jnp.mean(chosen) + reg * jnp.sum(w**2)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    datasets = pytest.importorskip("sklearn.datasets")
    X, labels = datasets.load_digits(return_X_y=True)
    return X[:500] / 16, labels[:500].astype(np.int32)


def test_ends_where_scikit_learn_ends_on_the_digits() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    (X, labels), reg = digits(), 1e-2
    result = jc.minimize(cross_entropy, jc.lbfgs(), np.zeros((64, 10)), data=(X, labels, reg), gtol=1e-8)
    model = linear_model.LogisticRegression(C=1 / (2 * reg * len(X)), fit_intercept=False, tol=1e-10, max_iter=10_000)
    assert result.status == Status.GRADIENT_NORM
    np.testing.assert_allclose(result.params, model.fit(X, labels).coef_.T, atol=1e-5)


@pytest.mark.parametrize("start", [np.linspace(-2, 2, 8), np.full(8, 10.0)], ids=["near", "far"])
def test_ends_where_scipy_ends(start: np.ndarray) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    value_and_grad = jax.jit(jax.value_and_grad(FN))
    theirs = optimize.minimize(
        lambda w: tuple(map(np.asarray, value_and_grad(w))),
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    ours = solve(jnp.asarray(start), WEIGHTS)
    assert ours.status > 0
    np.testing.assert_allclose(ours.params, theirs.x, atol=1e-7)
    assert int(ours.num_evals) <= 1.5 * theirs.nfev + 5


@pytest.mark.parametrize("gtol", [1e-9, None])
def test_what_the_end_costs_does_not_depend_on_rounding(gtol: float | None) -> None:
    """There the values tell nothing any more: a search that believed their rounding took up to 25 evaluations."""
    starts = np.linspace(-2, 2, 8) * (1 + 1e-12 * np.random.default_rng(0).standard_normal((200, 8)))
    result = jax.jit(jax.vmap(lambda w: jc.minimize(FN, LBFGS, w, gtol=gtol)._replace(state=None)))(starts)
    assert np.all(result.status == Status.GRADIENT_NORM)
    assert np.ptp(result.num_evals) <= 3, np.unique(result.num_evals, return_counts=True)


# Inside optax, train and the transformations of jax


def rosenbrock(w: Any) -> Any:
    return jnp.sum((1 - w[:-1]) ** 2 + 100 * (w[1:] - w[:-1] ** 2) ** 2)


VALLEY = jnp.array([-1.2, 1.0, -0.5, 1.5])


def test_inside_a_chain_the_pair_is_that_of_the_search() -> None:
    """The chain goes half as far as the search; the pair is still a step with the change of the gradient over it."""
    ws, (state, _) = jitted_path(optax.chain(LBFGS, optax.scale(0.5)), FN, START, 6)
    full, _ = update(LBFGS, FN, LBFGS.init(START), START)
    np.testing.assert_allclose(ws[0] - START, 0.5 * full, rtol=1e-12)
    s, grad = 2 * (ws[-1] - ws[-2]), jax.grad(FN)
    np.testing.assert_allclose(product(grad(ws[-2] + s) - grad(ws[-2]), state.history), s, rtol=1e-8)
    assert np.all(np.diff(jax.vmap(FN)(ws)) < 0)


def test_optaxs_loop_takes_value_and_gradient_from_the_state() -> None:
    optimizer = LBFGS
    value_and_grad = optax.value_and_grad_from_state(rosenbrock)

    def step(carry: Any, _: None) -> Any:
        w, state = carry
        value, grad = value_and_grad(w, state=state)
        updates, state = optimizer.update(grad, state, w, value=value, grad=grad, value_fn=rosenbrock)
        w = optax.apply_updates(w, updates)
        return (w, state), (w, value)

    (_, state), (ws, values) = jax.jit(lambda c: jax.lax.scan(step, c, length=12))((VALLEY, optimizer.init(VALLEY)))
    plain, plain_state = jitted_path(optimizer, rosenbrock, VALLEY, 12)
    np.testing.assert_allclose(ws, plain, rtol=1e-9)
    chex.assert_trees_all_close(state.search.evaluation, plain_state.search.evaluation, rtol=1e-7)
    np.testing.assert_allclose(values, jax.vmap(rosenbrock)(jnp.stack([VALLEY, *ws[:-1]])), rtol=1e-12)
    evaluation = Evaluation(jnp.array(7.0), jnp.arange(4.0))  # made up, so that it can come from nowhere else
    made_up = state._replace(search=state.search._replace(evaluation=evaluation))
    chex.assert_trees_all_equal(value_and_grad(ws[-1], state=made_up), (evaluation.value, evaluation.grad))


def test_trains_on_minibatches() -> None:
    X, labels = digits()
    data = (X, labels, np.zeros(len(X)))

    def objective(w: Any, batch: Any) -> Any:
        X, labels, _ = batch
        return cross_entropy(w, (X, labels, 1e-3))

    key = jax.random.key(0)
    result = jc.train(objective, jc.lbfgs(5), jnp.zeros((64, 10)), data, key=key, batch_size=100, num_epochs=4)
    assert np.all(np.isfinite(result.trace.loss))
    assert not np.any(result.trace.skipped)
    chex.assert_tree_all_finite((result.params, result.state))
    assert objective(result.params, data) < 0.2 * objective(jnp.zeros((64, 10)), data)


MIXED = {"W": jnp.ones((2, 2), jnp.float32), "b": jnp.zeros((), jnp.float64), "c": jnp.ones((1, 3), jnp.bfloat16)}


def mixed_loss(w: Any) -> Any:
    return sum(jnp.sum(jnp.cosh(leaf.astype(float) - 2)) for leaf in jax.tree.leaves(w))


def test_states_keep_their_structure_shapes_and_dtypes() -> None:
    state = LBFGS.init(MIXED)
    updates, after = jax.eval_shape(partial(one_update, LBFGS, mixed_loss), state, MIXED)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, MIXED)
    ws, _ = jitted_path(LBFGS, mixed_loss, MIXED, 10)  # a scan refuses what is not stable
    assert mixed_loss(jax.tree.map(lambda leaf: leaf[-1], ws)) < 8.01


def test_numpy_parameters_are_welcome() -> None:
    w = np.asarray(START)
    chex.assert_trees_all_equal(update(LBFGS, FN, LBFGS.init(w), w), update(LBFGS, FN, LBFGS.init(START), START))


def test_jit_equals_not_jit() -> None:
    _, state = jitted_path(LBFGS, rosenbrock, VALLEY, 12)
    chex.assert_trees_all_close(
        one_update(LBFGS, rosenbrock, state, VALLEY), update(LBFGS, rosenbrock, state, VALLEY), rtol=1e-9, atol=1e-11
    )


def test_vmap_equals_a_loop() -> None:
    starts = 3 * np.random.default_rng(4).standard_normal((16, 8))
    weights = np.exp(np.random.default_rng(5).standard_normal((16, 8)))
    together = jax.vmap(solve)(starts, weights)
    one_by_one = [solve(w, a) for w, a in zip(starts, weights, strict=True)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    np.testing.assert_array_equal(together.status, stacked.status)
    assert np.all(together.status > 0)
    assert np.max(np.abs(together.num_steps - stacked.num_steps)) <= 1
    np.testing.assert_allclose(together.params, stacked.params, atol=1e-7)


def test_is_traced_once_for_all_starts() -> None:
    traces: list[None] = []

    def fn(w: Any) -> Any:
        traces.append(None)
        return jnp.sum(jnp.cosh(w - 1))

    jc.minimize(fn, LBFGS, np.zeros(3))
    count = len(traces)
    for start in (np.ones(3), jnp.full(3, -4.0), np.array([1e3, 0.0, np.nan])):
        jc.minimize(fn, LBFGS, start)
    assert len(traces) == count

    step = jax.jit(chex.assert_max_traces(lambda state, w: one_update(LBFGS, rosenbrock, state, w), n=1))
    state, w = LBFGS.init(VALLEY), VALLEY
    for _ in range(3):
        updates, state = step(state, w)
        w = optax.apply_updates(w, updates)


def test_counters_count() -> None:
    def refusing(*args: Any, **asked: Any) -> Step:
        """A fixed step, but from the fifth evaluation no lower point is found."""
        step = fixed(0.1, *args, **asked)
        stuck = args[1][0] < 0.7
        status = jnp.where(stuck, jnp.int32(Status.LINE_SEARCH_FAILED), step.status)
        return step._replace(length=jnp.where(stuck, 0, step.length), status=status)

    ws, state = jitted_path(jc.lbfgs(3, refusing), lambda w: 0.5 * jnp.sum(w**2), np.array([1.0, 0.0]), 10)
    assert ws[-1, 0] == ws[-3, 0] < 0.7
    assert (state.num_resets, state.num_skipped, state.history.num_stored) == (1, 0, 0)
    assert state.search.status == Status.LINE_SEARCH_FAILED
    assert state.search.num_evals == 10

    concave, state = jitted_path(jc.lbfgs(3, partial(fixed, 0.1)), lambda w: -jnp.sum(w**2), np.ones(2), 5)
    assert (state.num_resets, state.num_skipped, state.history.num_stored) == (0, 5, 0)
    chex.assert_tree_all_finite(concave)


def test_no_budget_no_change() -> None:
    """A lane that has ended waits: a budget of 0 moves nothing and forgets nothing."""
    _, state = jitted_path(LBFGS, rosenbrock, VALLEY, 12)
    updates, after = update(LBFGS, rosenbrock, state, VALLEY, budget=jnp.int32(0))
    np.testing.assert_array_equal(updates, 0)
    chex.assert_trees_all_equal(after.history[1:], state.history[1:])
    assert (after.num_resets, after.search.num_evals) == (state.num_resets, state.search.num_evals)


@pytest.mark.parametrize("dtype", [d for d in FLOATS if jnp.finfo(d).bits == 16])
def test_16_bit_parameters(dtype: Any) -> None:
    """Gradients from none to the largest of float16: numbers throughout, and updates in the parameters' dtype."""

    @jax.jit
    def losses(scale: Any, start: Any) -> Any:
        def fn(w: Any) -> Any:
            return jnp.sum(scale * jnp.sqrt(1 + w.astype(jnp.float32) ** 2))

        ws, state = path(jc.lbfgs(3), fn, start, 5)
        return ws, state, jax.vmap(fn)(ws), fn(start)

    start = jnp.array([0.5, -2.0, 3.0], dtype)
    for scale in (0.0, 1e-4, 1.0, 6e4):
        ws, state, values, before = losses(np.float32(scale), start)
        assert ws.dtype == dtype
        chex.assert_tree_all_finite((ws, state.history, state.search.evaluation, values))
        assert not np.isnan(state.search.gain)  # it is inf while nothing is known
        assert np.all(np.diff(np.array([before, *values])) <= 1e-6 * before)
        assert values[-1] <= before / 1.5 or scale == 0


@pytest.mark.parametrize("empty", [{}, [], None, {"a": None}], ids=str)
def test_empty_parameters_are_a_no_op(empty: Any) -> None:
    optimizer, state = LBFGS, LBFGS.init(empty)
    updates, after = optimizer.update(empty, state, empty, value=jnp.array(0.0), value_fn=lambda w: jnp.array(0.0))
    assert updates == empty
    chex.assert_trees_all_equal(after, state)
    assert jc.minimize(lambda w: jnp.array(1.0), optimizer, empty).status > 0


def test_forward_derivatives_through_ten_steps() -> None:
    """A while loop has no reverse mode; its forward derivative, by a weight of the objective, is the difference."""
    optimizer = jc.lbfgs(3)

    def after_ten(log_weight: Any) -> Any:
        def fn(w: Any) -> Any:
            return (1 - w[0]) ** 2 + jnp.exp(log_weight) * (w[1] - w[0] ** 2) ** 2

        ws, state = path(optimizer, fn, jnp.array([-1.2, 1.0]), 10)
        return ws[-1], state.search.evaluation.value

    at, h = jnp.log(20.0), 1e-6
    with_derivatives = jax.jit(lambda at: jax.jvp(after_ten, (at,), (jnp.ones(()),)))
    _, derivatives = with_derivatives(at)
    chex.assert_tree_all_finite(derivatives)
    (up, _), (down, _) = with_derivatives(at + h), with_derivatives(at - h)
    differences = jax.tree.map(lambda up, down: (up - down) / (2 * h), up, down)
    chex.assert_trees_all_close(derivatives, differences, rtol=1e-4, atol=1e-6)


def test_arguments_out_of_range_raise(own_errors: None) -> None:
    with pytest.raises(ValueError, match="memory_size must be at least 1, got 0"):
        jc.lbfgs(0)
    for nonsense in (True, 1.5, "10"):
        with pytest.raises(TypeError, match="memory_size must be a whole number"):
            jc.lbfgs(nonsense)  # type: ignore[arg-type]


def test_missing_keywords_are_named() -> None:
    optimizer, w = jc.lbfgs(), jnp.ones(2)
    state = optimizer.init(w)
    with pytest.raises(ValueError, match="value, value_fn not given"):
        optimizer.update(w, state, w)
    with pytest.raises(ValueError, match="; value_fn not given"):
        optimizer.update(w, state, w, value=jnp.array(1.0))
    with pytest.raises(ValueError, match=r"lbfgs: update needs params.*params, value, value_fn not given"):
        optimizer.update(w, state)


def test_wrong_trees_and_dtypes_name_the_leaf() -> None:
    optimizer, keywords = jc.lbfgs(), {"value": jnp.array(1.0), "value_fn": lambda w: jnp.sum(w["W"])}
    with pytest.raises(TypeError, match=r"params\['n'\] is int"):
        optimizer.init({"W": jnp.ones(2), "n": jnp.arange(2)})
    with pytest.raises(TypeError, match=r"real parameters, params\['z'\] is complex128"):
        optimizer.init({"W": jnp.ones(2), "z": jnp.ones(2, complex)})
    params = {"W": jnp.ones((2, 3)), "b": jnp.ones(2)}
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"\['W'\]: shape \(3, 2\) in the gradients, shape \(2, 3\)"):
        optimizer.update({"W": jnp.ones((3, 2)), "b": jnp.ones(2)}, state, params, **keywords)
    with pytest.raises(ValueError, match=r"\['b'\]: no leaf in the gradients"):
        optimizer.update({"W": jnp.ones((2, 3))}, state, params, **keywords)
