"""Every first-order rule: equal to the lecture, to optax and to torch along the path, and sound in every dtype."""

import ast
import functools
import inspect
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxopt_course as jc
from jaxopt_course.optimizers import squares
from tests.tables import FLOATS, RULES, TOLERANCE, TREES, Rule

each_rule = pytest.mark.parametrize("name", RULES)
each_float = pytest.mark.parametrize("dtype", FLOATS)


def example(name: str) -> Any:
    return RULES[name].make(**RULES[name].example)


def scheduled(name: str) -> Any:
    """The same with its learning rate as a schedule, so that the state counts."""
    rate = RULES[name].example["learning_rate"]
    return RULES[name].make(**{**RULES[name].example, "learning_rate": lambda count: rate})


def random_tree(tree: Any, rng: np.random.Generator, lead: tuple[int, ...] = ()) -> Any:
    return jax.tree.map(lambda s: rng.standard_normal(lead + s), tree, is_leaf=is_shape)


def is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(n, int) for n in node)


class Quadratic:
    """Noisy gradients curvature * (w - target) + noise[t], with features of many scales, and one of them dead."""

    def __init__(self, tree: Any, seed: int, steps: int, dtype: Any):
        rng = np.random.default_rng(seed)
        cast = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, dtype))
        self.start, self.target = cast(random_tree(tree, rng)), cast(random_tree(tree, rng))
        self.curvature = cast(jax.tree.map(lambda x: 10.0 ** -np.abs(x), random_tree(tree, rng)))
        self.noise = cast(random_tree(tree, rng, (steps,)))
        for leaf, noise in zip(jax.tree.leaves(self.curvature), jax.tree.leaves(self.noise), strict=True):
            if leaf.ndim:
                leaf[..., 0] = 0
                noise[..., 0] = 0

    def data(self) -> tuple[Any, ...]:
        return self.start, self.target, self.curvature, self.noise


def gradient(w: Any, target: Any, curvature: Any, noise: Any) -> Any:
    return jax.tree.map(lambda w, a, c, e: c * (w - a) + e, w, target, curvature, noise)


def jax_path(
    make: Callable[..., Any], hyper: dict[str, Any], start: Any, target: Any, curvature: Any, noise: Any
) -> Any:
    optimizer = make(**hyper)

    def step(carry: tuple[Any, Any], noise: Any) -> tuple[tuple[Any, Any], Any]:
        w, state = carry
        updates, state = optimizer.update(gradient(w, target, curvature, noise), state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    start = jax.tree.map(jnp.asarray, start)
    return jax.lax.scan(step, (start, optimizer.init(start)), noise)[1]


jitted_path = jax.jit(jax_path, static_argnums=0)


def lecture_path(make: Callable[..., Any], hyper: dict[str, float], problem: Quadratic) -> Any:
    def one_leaf(start: Any, target: Any, curvature: Any, noise: Any) -> Any:
        stepper = make(np.asarray(start, float), **hyper)
        w, path = next(stepper), []
        for e in noise:
            w = stepper.send(np.float64(curvature) * (w - target) + e)
            path.append(w)
        return np.array(path)

    return jax.tree.map(one_leaf, *problem.data())


def torch_path(name: str, hyper: dict[str, float], problem: Quadratic) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    class_name, arguments = RULES[name].torch_twin
    start, target, curvature, noise = (
        [torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(tree)] for tree in problem.data()
    )
    optimizer = getattr(torch.optim, class_name)(start, **arguments(**hyper))
    if name == "adam_uncorrected":
        for w in start:  # a step count so high that the correction is 1
            zeros = {"exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
            optimizer.state[w] = {"step": torch.tensor(2.0**30), **zeros}
    paths = [np.zeros(e.shape) for e in noise]
    for t in range(len(noise[0])):
        for w, a, c, e in zip(start, target, curvature, noise, strict=True):
            w.grad = c * (w - a) + e[t]
        optimizer.step()
        for w, path in zip(start, paths, strict=True):
            path[t] = w.numpy()
    return paths


def largest_relative_difference(ours: Any, theirs: Any) -> float:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return max(np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in wide)


def drawn(rule: Rule, examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Trees, seeds and hyperparameters of a rule, drawn by hypothesis."""
    trees, seeds = st.sampled_from(list(TREES.values())), st.integers(0, 10**6)
    case = given(tree=trees, seed=seeds, hyper=st.fixed_dictionaries(rule.hyperparameters))
    return lambda check: settings(max_examples=examples)(case(check))


@each_rule
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_lecture_and_optax_along_the_path(name: str, dtype: Any) -> None:
    rule, (steps, tolerance) = RULES[name], TOLERANCE[dtype]

    @drawn(rule, examples=12)
    def check(tree: Any, seed: int, hyper: dict[str, float]) -> None:
        problem = Quadratic(tree, seed, steps, dtype)
        ours = jitted_path(rule.make, hyper, *problem.data())
        chex.assert_trees_all_equal_dtypes(ours, problem.noise)
        with jax.numpy_dtype_promotion("standard"):
            optax_path = jitted_path(rule.optax_twin, hyper, *problem.data())
        assert largest_relative_difference(ours, lecture_path(rule.lecture, hyper, problem)) <= tolerance
        assert largest_relative_difference(ours, optax_path) <= tolerance

    with jax.enable_x64(dtype == jnp.float64):
        check()


@each_rule
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_torch_along_the_path(name: str, dtype: Any) -> None:
    rule, (steps, tolerance) = RULES[name], TOLERANCE[dtype]
    pytest.importorskip("torch")

    @drawn(rule, examples=5)
    def check(tree: Any, seed: int, hyper: dict[str, float]) -> None:
        problem = Quadratic(tree, seed, steps, dtype)
        ours = jitted_path(rule.make, hyper, *problem.data())
        assert largest_relative_difference(ours, torch_path(name, hyper, problem)) <= tolerance

    with jax.enable_x64(dtype == jnp.float64):
        check()


def test_near_misses_are_told_apart() -> None:
    """What stands close to a rule and is not it: were these equal, the tests above would prove nothing."""
    problem = Quadratic(TREES["classifier"], 0, 50, np.float64)
    twins = {
        "adagrad": [
            lambda h: optax.adagrad(h["learning_rate"]),
            lambda h: optax.adagrad(h["learning_rate"], 0.0, eps=1e-14),
        ],
        "rmsprop": [lambda h: optax.rmsprop(h["learning_rate"], decay=h["decay"], eps=1e-7)],
        "adam": [
            lambda h: optax.adam(h["learning_rate"]),
            lambda h: optax.adam(h["learning_rate"], eps=0.0, eps_root=1e-14),
        ],
        "momentum": [lambda h: optax.ema(h["rho"], debias=False)],
    }
    for name, near_misses in twins.items():
        ours = jax_path(RULES[name].make, RULES[name].example, *problem.data())
        for near_miss in near_misses:
            with jax.numpy_dtype_promotion("standard"):
                theirs = jax_path(lambda miss=near_miss, **hyper: miss(hyper), RULES[name].example, *problem.data())
            assert largest_relative_difference(ours, theirs) > 1e-9


@each_rule
def test_a_traced_hyperparameter_equals_a_number(name: str) -> None:
    problem = Quadratic(TREES["classifier"], 1, 100, np.float64)
    hyper = RULES[name].example
    chex.assert_trees_all_close(
        jax_path(RULES[name].make, hyper, *problem.data()),
        jitted_path(RULES[name].make, hyper, *problem.data()),
        rtol=1e-12,
    )


@each_rule
def test_descends(name: str) -> None:
    def f(w: Any) -> Any:
        return jnp.sum(jnp.array([1.0, 25.0]) * w**2)

    optimizer, w = example(name), jnp.array([1.0, 1.0])
    state = optimizer.init(w)
    for _ in range(100):
        updates, state = optimizer.update(jax.grad(f)(w), state, w)
        w = optax.apply_updates(w, updates)
    assert f(w) < 0.05 * f(jnp.array([1.0, 1.0]))


@each_rule
@each_float
@pytest.mark.parametrize("x64", [True, False])
def test_state_keeps_structure_shape_and_dtype(name: str, dtype: Any, x64: bool) -> None:
    with jax.enable_x64(x64):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        optimizer = scheduled(name)
        params = {"W": jnp.ones((2, 3), dtype), "b": jnp.ones((), dtype), "frozen": None}
        state = optimizer.init(params)
        updates, after = jax.jit(optimizer.update)(params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        scanned, _ = jax.lax.scan(
            lambda s, g: (optimizer.update(g, s)[1], None), state, jax.tree.map(lambda p: jnp.stack([p] * 3), params)
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(scanned, state)
        assert int(scanned.count) == 3
        assert scanned.count.dtype == jnp.int32
        wide = dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32
        assert all(leaf.dtype == wide for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32)


@each_rule
def test_traced_hyperparameters_of_any_dtype_leave_dtypes_alone(name: str) -> None:
    params = {"a": jnp.ones(3, jnp.float32), "b": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(2, jnp.float64)}

    def step(hyper: dict[str, Any]) -> Any:
        optimizer = RULES[name].make(**hyper)
        return optimizer.update(params, optimizer.init(params), params)

    for dtype in FLOATS:
        hyper = {key: jnp.asarray(value, dtype) for key, value in RULES[name].example.items()}
        updates, state = jax.jit(step)(hyper)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, RULES[name].make(**RULES[name].example).init(params))


@each_rule
def test_jit_equals_no_jit_and_vmap_equals_a_loop(name: str) -> None:
    optimizer = example(name)
    grads = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))

    def two_steps(g: Any) -> Any:
        _, state = optimizer.update(g, optimizer.init(g))
        return optimizer.update(0.5 * g, state)

    one_by_one = [two_steps(g) for g in grads]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    chex.assert_trees_all_close(jax.vmap(two_steps)(grads), stacked, rtol=1e-14)
    chex.assert_trees_all_close(jax.jit(two_steps)(grads[0]), one_by_one[0], rtol=1e-14)


@each_rule
def test_a_tree_equals_its_flattened_vector(name: str) -> None:
    tree = jax.tree.map(jnp.asarray, random_tree(TREES["nested"], np.random.default_rng(0)))
    vector, unravel = ravel_pytree(tree)
    optimizer = example(name)
    as_tree, _ = optimizer.update(tree, optimizer.init(tree))
    as_vector, _ = optimizer.update(vector, optimizer.init(vector))
    chex.assert_trees_all_equal(as_tree, unravel(as_vector))


@each_rule
def test_traces_once_for_every_value_of_every_hyperparameter(name: str) -> None:
    params = jnp.ones(3)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(hyper: dict[str, Any], state: Any) -> Any:
        return RULES[name].make(**hyper).update(params, state, params)

    state = example(name).init(params)
    for scale in (1.0, 0.5, 0.25):
        _, state = step({key: scale * value for key, value in RULES[name].example.items()}, state)


@each_rule
@each_float
@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 6e4])
def test_no_nan_for_any_gradient(name: str, dtype: Any, size: float) -> None:
    optimizer = RULES[name].make(**{**RULES[name].example, "learning_rate": 1e-3})
    params = jnp.ones(3, dtype)
    state = optimizer.init(params)
    for _ in range(5):
        updates, state = optimizer.update(jnp.full(3, size, dtype), state, params)
        params = optax.apply_updates(params, updates)
    assert bool(jnp.all(jnp.isfinite(params)))
    assert size or bool(jnp.all(params == 1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_second_moment_of_16_bit_parameters_decays(dtype: Any) -> None:
    """In bfloat16, 0.999 is 1: optax.adam's second moment stays at 0.1 for ever."""
    optimizer = jc.adam()
    state = optimizer.init(jnp.ones(1, dtype))
    _, state = optimizer.update(jnp.full(1, 10, dtype), state)
    state, _ = jax.lax.scan(lambda s, g: (optimizer.update(g, s)[1], None), state, jnp.zeros((3000, 1), dtype))
    np.testing.assert_allclose(state.nu, 0.1 * 0.999**3000, rtol=1e-4)


@pytest.mark.parametrize("b", [0.0, 0.5, 0.9, 0.999, 0.9999])
@pytest.mark.parametrize("t", [1, 2, 10, 1000, 2**31 - 1])
@pytest.mark.parametrize("x64", [True, False])
def test_one_minus_power_keeps_its_digits(b: float, t: int, x64: bool) -> None:
    with mpmath.workdps(50):
        exact = float(1 - mpmath.mpf(b) ** t)
    with jax.enable_x64(x64):
        value = squares.one_minus_power(b, jnp.asarray(t, jnp.int32))
        np.testing.assert_allclose(float(value), exact, rtol=1e-14 if x64 else 5e-7)


@each_rule
def test_gradients_through_ten_steps_are_finite_with_a_dead_feature(name: str) -> None:
    curvature = jnp.array([1.0, 25.0, 0.0])

    def after_ten(hyper: dict[str, Any], w: Any) -> Any:
        optimizer = RULES[name].make(**hyper)
        state = optimizer.init(w)
        for _ in range(10):
            updates, state = optimizer.update(curvature * w, state, w)
            w = optax.apply_updates(w, updates)
        return jnp.sum(curvature * w**2)

    large_eps = {"eps": 1e-2} if "eps" in RULES[name].example else {}
    hyper = {key: jnp.asarray(value) for key, value in {**RULES[name].example, **large_eps}.items()}
    w = jnp.array([1.0, 1.0, 1.0])
    meta = jax.jit(jax.grad(after_ten, argnums=(0, 1)))(hyper, w)
    chex.assert_tree_all_finite(meta)
    h = 1e-6
    for key in hyper:
        up, down = (after_ten({**hyper, key: hyper[key] * (1 + s * h)}, w) for s in (1, -1))
        np.testing.assert_allclose(meta[0][key], (up - down) / (2 * h * hyper[key]), rtol=1e-4, atol=1e-5)


def after_three(make: Callable[..., Any], hyper: dict[str, Any], w: Any, curvature: Any) -> Any:
    optimizer = make(**hyper)
    state = optimizer.init(w)
    for _ in range(3):
        updates, state = optimizer.update(curvature * w, state, w)
        w = optax.apply_updates(w, updates)
    return w


def lecture_slopes(name: str, hyper: dict[str, float], w: np.ndarray, curvature: np.ndarray) -> dict[str, np.ndarray]:
    """Derivatives of the lecture's formulas by complex steps, exact to rounding, also at the end of a range."""
    slopes = {}
    for key in hyper:
        stepper = RULES[name].lecture(w.astype(complex), **{**hyper, key: hyper[key] + 1e-30j})
        at = next(stepper)
        for _ in range(3):
            at = stepper.send(curvature * at)
        slopes[key] = at.imag / 1e-30
    return slopes


@each_rule
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_meta_gradients_are_right_where_hyperparameters_are_zero(name: str, dtype: Any) -> None:
    w, curvature = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.3, 7.0])
    example = RULES[name].example
    cases = [example, dict.fromkeys(example, 0.0), *({**example, key: 0.0} for key in example)]
    end = functools.partial(after_three, RULES[name].make)
    modes = [jax.jit(mode(end)) for mode in (jax.jacfwd, jax.jacrev)]
    for hyper in cases:
        expected = lecture_slopes(name, hyper, w, curvature)
        given = {key: jnp.asarray(value, dtype) for key, value in hyper.items()}
        for mode in modes:
            found = mode(given, jnp.asarray(w, dtype), jnp.asarray(curvature, dtype))
            for key in hyper:
                tolerance = 1e-10 if dtype == jnp.float64 else 2e-4
                np.testing.assert_allclose(found[key], expected[key], rtol=tolerance, atol=tolerance, err_msg=key)
            dead = mode(given, jnp.asarray(w, dtype), jnp.asarray([1.0, 0.0, 7.0], dtype))
            chex.assert_tree_all_finite(dead)


SQUARING: dict[str, dict[str, float]] = {
    "adagrad": {},
    "rmsprop": {"decay": 0.5},
    "adam": {"b1": 0.5, "b2": 0.5},
    "adam_uncorrected": {"b1": 0.5, "b2": 0.5},
}
HUGE = [  # what overflows when squared, and what has the same direction and does not
    (jnp.float32, 1e20, 1e10),
    (jnp.float32, -3e38, -1e10),
    (jnp.bfloat16, 1e30, 1e10),
    (jnp.float64, 1e200, 1e10),
    (jnp.complex64, 1e20 - 3e38j, 1e10 - 1e10j),
    (jnp.complex128, 1e300j, 1e10j),
]


@pytest.mark.parametrize("name", SQUARING)
@pytest.mark.parametrize(("dtype", "huge", "large"), HUGE, ids=str)
def test_a_gradient_whose_square_overflows_does_not_stop_its_entry(
    name: str, dtype: Any, huge: Any, large: Any
) -> None:
    """The rules do not depend on the scale of the gradient, and all but AdaGrad forget it."""
    hyper = {**RULES[name].example, **SQUARING[name]}
    optimizer, params = RULES[name].make(**hyper), jnp.ones(2, dtype)
    large_gradient, huge_gradient = (jnp.asarray([g, 1.0], dtype) for g in (large, huge))
    tolerance = 1e-5 + 2 * float(jnp.finfo(dtype).eps)
    with jax.numpy_dtype_promotion("standard" if jnp.iscomplexobj(params) else "strict"):
        expected, _ = optimizer.update(large_gradient, optimizer.init(params), params)
        found, state = jax.jit(optimizer.update)(huge_gradient, optimizer.init(params), params)
        np.testing.assert_allclose(np.asarray(found, complex), np.asarray(expected, complex), rtol=tolerance)
        gradients = jnp.concatenate([jnp.stack([huge_gradient] * 5), jnp.ones((1500, 2), dtype)])
        state, updates = jax.lax.scan(lambda s, g: optimizer.update(g, s)[::-1], state, gradients)
    chex.assert_tree_all_finite((state, updates))
    if name != "adagrad":
        np.testing.assert_allclose(np.asarray(updates[-1], complex), -hyper["learning_rate"], rtol=tolerance)


@pytest.mark.parametrize("name", SQUARING)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_is_not_finite_is_not_hidden(name: str, bad: float) -> None:
    optimizer = example(name)
    for gradient in (jnp.array([bad, 1.0]), jnp.array([bad + 1j, 1.0])):
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(gradient), gradient)
        assert bool(jnp.isnan(updates[0]))
        assert bool(jnp.isfinite(updates[1]))


@pytest.mark.parametrize("name", SQUARING)
def test_a_gradient_whose_square_underflows(name: str) -> None:
    """1e-30 in float32: with an ordinary epsilon the step is right, with none it is short, never long or NaN."""
    with jax.enable_x64(False):
        g = jnp.asarray([1e-30], jnp.float32)
        optimizer = RULES[name].make(**RULES[name].example)
        found, _ = optimizer.update(g, optimizer.init(g), g)
        stepper = RULES[name].lecture(np.zeros(1), **RULES[name].example)
        next(stepper)
        np.testing.assert_allclose(found, stepper.send(np.array([1e-30])), rtol=1e-5)
        optimizer = RULES[name].make(**{**RULES[name].example, "eps": 0.0})
        found, _ = optimizer.update(g, optimizer.init(g), g)
        assert -RULES[name].example["learning_rate"] < float(found[0]) < 0


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "rmsprop", "adam"])
def test_complex_parameters_follow_optax(name: str) -> None:
    rng = np.random.default_rng(0)
    params, grads = (jnp.asarray(rng.standard_normal(4) + 1j * rng.standard_normal(4)) for _ in range(2))
    results = []
    for make in (RULES[name].make, RULES[name].optax_twin):
        optimizer, w = make(**RULES[name].example), params
        with jax.numpy_dtype_promotion("standard"):
            state = optimizer.init(w)
            for _ in range(5):
                updates, state = optimizer.update(grads * w, state, w)
                w = optax.apply_updates(w, updates)
        results.append(w)
    chex.assert_trees_all_close(*results, rtol=1e-12)


@each_rule
def test_schedules_start_at_count_zero(name: str) -> None:
    schedule = optax.exponential_decay(0.1, transition_steps=1, decay_rate=0.5)
    hyper = {**RULES[name].example, "learning_rate": schedule}
    problem = Quadratic(TREES["classifier"], 3, 40, np.float64)
    with jax.numpy_dtype_promotion("standard"):
        ours = jax_path(RULES[name].make, hyper, *problem.data())
        if name == "adagrad":  # its twin takes the rate as a number: undo the schedule by hand
            theirs = jax_path(
                lambda **h: optax.chain(jc.adagrad(1.0, h["eps"]), optax.scale_by_schedule(schedule)),
                hyper,
                *problem.data(),
            )
        elif name == "adam_uncorrected":  # its twin's count is set far ahead, the schedule's with it
            theirs = jax_path(
                lambda **h: optax.chain(
                    RULES[name].optax_twin(1.0, h["b1"], h["b2"], h["eps"]), optax.scale_by_schedule(schedule)
                ),
                hyper,
                *problem.data(),
            )
        else:
            theirs = jax_path(RULES[name].optax_twin, hyper, *problem.data())
    assert largest_relative_difference(ours, theirs) <= 1e-12


@each_rule
def test_inside_a_chain_with_clipping_and_decay(name: str) -> None:
    problem = Quadratic(TREES["classifier"], 4, 60, np.float64)

    def chained(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **hyper: optax.chain(
            optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-2), make(**hyper)
        )

    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = (
            jax_path(chained(make), RULES[name].example, *problem.data())
            for make in (RULES[name].make, RULES[name].optax_twin)
        )
    assert largest_relative_difference(ours, theirs) <= 1e-12


@each_rule
def test_inside_multi_steps(name: str) -> None:
    optimizer = optax.MultiSteps(example(name), every_k_schedule=2)
    params = jnp.ones(3)
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        nothing, state = jax.jit(optimizer.update)(jnp.array([1.0, 2.0, 3.0]), state, params)
        updates, state = jax.jit(optimizer.update)(jnp.array([3.0, 2.0, 1.0]), state, params)
    expected, _ = example(name).update(jnp.full(3, 2.0), example(name).init(params), params)
    assert not jnp.any(nothing)
    chex.assert_trees_all_close(updates, expected, rtol=1e-14)


@each_rule
def test_inside_inject_hyperparams(name: str) -> None:
    params, hyper = {"w": jnp.ones(3)}, RULES[name].example
    make = {
        "nesterov": functools.partial(jc.momentum, nesterov=True),
        "adam_uncorrected": functools.partial(jc.adam, bias_correction=False),
    }
    injected = optax.inject_hyperparams(make.get(name, RULES[name].make))(**hyper)
    state = injected.init(params)
    assert set(hyper) <= set(state.hyperparams)
    updates, state = jax.jit(injected.update)(params, state, params)
    expected, _ = example(name).update(params, example(name).init(params), params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-12)
    state.hyperparams["learning_rate"] = 2 * state.hyperparams["learning_rate"]
    doubled, _ = jax.jit(injected.update)(params, injected.init(params)._replace(hyperparams=state.hyperparams), params)
    chex.assert_trees_all_close(doubled, jax.tree.map(lambda u: 2 * u, expected), rtol=1e-12)


@each_rule
def test_inside_flax_train_state(name: str) -> None:
    train_state = pytest.importorskip("flax.training.train_state")
    params = {"w": jnp.array([1.0, -2.0])}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=example(name))
    state = jax.jit(lambda s: s.apply_gradients(grads=s.params))(state)
    updates, _ = example(name).update(params, example(name).init(params), params)
    chex.assert_trees_all_close(state.params, optax.apply_updates(params, updates), rtol=1e-14)
    assert state.step == 1


def test_masked_leaves_are_left_alone() -> None:
    optimizer = optax.masked(jc.adam(), {"w": True, "steps": False})
    params = {"w": jnp.ones(2), "steps": jnp.arange(3)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert bool(jnp.all(updates["w"] < 0))
    chex.assert_trees_all_equal(updates["steps"], params["steps"])


@each_rule
@pytest.mark.parametrize("empty", [{}, [], None, {"a": None}], ids=str)
def test_empty_parameters_are_a_no_op(name: str, empty: Any) -> None:
    optimizer = example(name)
    updates, state = optimizer.update(empty, optimizer.init(empty), empty)
    assert updates == empty
    assert len(jax.tree.leaves(state)) == (1 if name in ("adam", "adam_uncorrected") else 0)  # the count


@each_rule
def test_the_count_stops_at_the_largest_int32(name: str) -> None:
    optimizer, params = scheduled(name), jnp.ones(2)
    state = optimizer.init(params)._replace(count=jnp.asarray(2**31 - 1, jnp.int32))
    updates, state = jax.jit(optimizer.update)(params, state, params)
    assert int(state.count) == 2**31 - 1
    assert bool(jnp.all(jnp.isfinite(updates) & (updates < 0)))


OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "learning_rate": (-1e-3, float("nan"), float("inf"), np.float32(-1), jnp.asarray(-1e-3)),
    "rho": (-0.1, 1.0, float("nan")),
    "decay": (-0.1, 1.0, float("nan")),
    "b1": (-0.1, 1.0, float("nan")),
    "b2": (-0.1, 1.0, float("nan"), jnp.asarray(1.0)),
    "eps": (-1e-9, float("nan"), float("inf")),
}


@each_rule
def test_hyperparameters_out_of_range_raise_at_once(name: str, own_errors: None) -> None:
    for key in RULES[name].example:
        for value in OUT_OF_RANGE[key]:
            with pytest.raises(ValueError, match=f"{key} must be .* got"):
                RULES[name].make(**{**RULES[name].example, key: value})
        with pytest.raises(ValueError, match="vmap"):
            RULES[name].make(**{**RULES[name].example, key: np.array([0.1, 0.2])})
        for nonsense in ("0.1", None, True):
            with pytest.raises(TypeError, match=key):
                RULES[name].make(**{**RULES[name].example, key: nonsense})


@each_rule
def test_wrong_trees_and_dtypes_name_the_leaf(name: str) -> None:
    optimizer = example(name)
    with pytest.raises(TypeError, match=r"params\['layer'\]\['steps'\] is int"):
        optimizer.init({"layer": {"W": jnp.ones(2), "steps": jnp.arange(2)}})
    params = {"W": jnp.ones((2, 3)), "b": jnp.ones(2)}
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"\['W'\]: shape \(3, 2\) in the gradients, shape \(2, 3\)"):
        optimizer.update({"W": jnp.ones((3, 2)), "b": jnp.ones(2)}, state, params)
    with pytest.raises(ValueError, match=r"\['b'\]: no leaf in the gradients"):
        optimizer.update({"W": jnp.ones((2, 3))}, state, params)
    with pytest.raises(ValueError, match="different kinds"):
        optimizer.update([jnp.ones((2, 3))], state, (jnp.ones((2, 3)),))
    if len(jax.tree.leaves(state)) > 1:
        with pytest.raises(
            ValueError, match=r"\['b'\]: shape \(\) in the gradients, shape \(2,\) in the optimizer state"
        ):
            optimizer.update({"W": jnp.ones((2, 3)), "b": jnp.ones(())}, state)


@pytest.mark.parametrize("rule", [jc.sgd, jc.momentum, jc.adagrad, jc.rmsprop, jc.adam], ids=lambda rule: rule.__name__)
def test_a_rule_is_at_most_20_lines_of_code(rule: Callable[..., Any]) -> None:
    source = inspect.getsource(inspect.unwrap(rule))
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    docstring = function.body[0]
    inside = range(docstring.lineno, (docstring.end_lineno or 0) + 1)
    lines = [line for number, line in enumerate(source.splitlines(), 1) if line.strip() and number not in inside]
    assert len(lines) <= 20


def test_rules_stand_in_historical_order() -> None:
    lines = [
        inspect.getsourcelines(inspect.unwrap(rule))[1]
        for rule in (jc.sgd, jc.momentum, jc.adagrad, jc.rmsprop, jc.adam)
    ]
    assert lines == sorted(lines)
