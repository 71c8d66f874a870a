"""Line searches: what they promise at every accepted step, and what they say where nothing can be accepted."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxopt_course as jc
from jaxopt_course import Status
from jaxopt_course.optimizers import Step
from jaxopt_course.optimizers.line_search import MAX_EVALS

C1, C2 = 1e-4, 0.9
FIRST_LENGTHS = (1e-3, 1e-1, 1e1, 1e3)
BUDGETS = (0, 1, 2, 5, MAX_EVALS)
SEARCHES = {"strong_wolfe": jc.strong_wolfe, "armijo": jc.armijo}

each_search = pytest.mark.parametrize("name", SEARCHES)


def more_thuente_1(t: Any, beta: float = 2.0) -> Any:
    return -t / (t**2 + beta)


def more_thuente_2(t: Any, beta: float = 0.004) -> Any:
    return (t + beta) ** 5 - 2 * (t + beta) ** 4


def more_thuente_3(t: Any, beta: float = 0.01, waves: int = 39) -> Any:
    middle = (t - 1) ** 2 / (2 * beta) + beta / 2
    valley = jnp.where(t <= 1 - beta, 1 - t, jnp.where(t >= 1 + beta, t - 1, middle))
    return valley + 2 * (1 - beta) / (waves * np.pi) * jnp.sin(waves * np.pi / 2 * t)


def yanai(t: Any, beta_1: float, beta_2: float) -> Any:
    def weight(beta: float) -> float:
        return float(np.sqrt(1 + beta**2) - beta)

    return weight(beta_1) * jnp.sqrt((1 - t) ** 2 + beta_2**2) + weight(beta_2) * jnp.sqrt(t**2 + beta_1**2)


class Published(NamedTuple):
    """A test function of Moré and Thuente (1994), "Line search algorithms with guaranteed sufficient decrease"."""

    fn: Callable[[Any], Any]
    mu: float
    eta: float


MORE_THUENTE = {
    "5.1": Published(more_thuente_1, 0.001, 0.1),
    "5.2": Published(more_thuente_2, 0.1, 0.1),
    "5.3": Published(more_thuente_3, 0.1, 0.1),
    "5.4a": Published(partial(yanai, beta_1=0.001, beta_2=0.001), 0.001, 0.001),
    "5.4b": Published(partial(yanai, beta_1=0.01, beta_2=0.001), 0.001, 0.001),
    "5.4c": Published(partial(yanai, beta_1=0.001, beta_2=0.01), 0.001, 0.001),
}


class Ray(NamedTuple):
    """A function of t and its derivative, what a Wolfe search along it must say, and whether it can get flat."""

    value_and_slope: Callable[[Any], tuple[Any, Any]]
    status: Status = Status.RUNNING
    flat: bool = True


def ray(fn: Callable[[Any], Any], status: Status = Status.RUNNING, flat: bool = True) -> Ray:
    return Ray(jax.value_and_grad(fn), status, flat)


def lying(fn: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Any]]:
    def value_and_slope(t: Any) -> tuple[Any, Any]:
        value, slope = jax.value_and_grad(fn)(t)
        return value, -slope

    return value_and_slope


RAYS = {
    **{name: ray(published.fn) for name, published in MORE_THUENTE.items()},
    "a minimum before a cliff": ray(lambda t: jnp.where(t < 1, (t - 0.7) ** 2, jnp.inf)),
    "straight to a cliff": ray(lambda t: jnp.where(t < 1, -t, jnp.inf), flat=False),
    "undefined beyond 1": ray(lambda t: -jnp.log(1 - t) - 3 * t),
    "undefined in between": ray(lambda t: jnp.where(jnp.abs(t - 0.5) < 0.2, jnp.nan, (t - 2) ** 2)),
    "flat beyond 1": ray(lambda t: jnp.where(t < 1, (t - 1) ** 2, 0)),
    "a plateau behind a slope": ray(lambda t: jnp.maximum(0.5 - t, 0)),
    "a kink": ray(lambda t: jnp.abs(t - 1), flat=False),
    "a jump up": ray(lambda t: jnp.where(t < 1, (t - 2) ** 2, (t - 2) ** 2 + 10)),
    "a jump down": ray(lambda t: jnp.where(t < 1, (t - 2) ** 2 + 10, (t - 2) ** 2)),
    "steep": ray(lambda t: (1e8 * t - 1) ** 2),
    "steeper than floats": ray(lambda t: jnp.exp(1000 * t) - 2000 * t),
    "level far out": ray(lambda t: jnp.exp(-t)),
    "steeper up to a wall": ray(lambda t: jnp.sqrt(1 - t), flat=False),
    "minus infinity": ray(lambda t: jnp.where(t < 1, -t, -jnp.inf), Status.UNBOUNDED),
    "linear": ray(lambda t: -t, Status.UNBOUNDED),
    "concave": ray(lambda t: -t - t**2, Status.UNBOUNDED),
    "uphill": ray(lambda t: (t + 1) ** 2, Status.NON_DESCENT),
    "level": ray(lambda t: t**2, Status.NON_DESCENT),
    "undefined slope": ray(lambda t: jnp.where(t > 0, t, jnp.nan), Status.NON_DESCENT),
    "a lie at 0": Ray(lying(lambda t: t), Status.LINE_SEARCH_FAILED),
    "a lie at 1": Ray(lying(lambda t: 1 + t + t**2), Status.LINE_SEARCH_FAILED, flat=False),
}
NAMES, BRANCHES = list(RAYS), [r.value_and_slope for r in RAYS.values()]


def along(index: Any, t: Any) -> tuple[Any, Any]:
    return jax.lax.switch(index, BRANCHES, t)


evaluated = jax.jit(jax.vmap(along))
EVERY = [a.ravel() for a in np.meshgrid(range(len(RAYS)), FIRST_LENGTHS, BUDGETS, indexing="ij")]
ROW, FIRST, BUDGET = (EVERY[0].astype(np.int32), EVERY[1], EVERY[2].astype(np.int32))
START, START_SLOPE = (np.asarray(a) for a in evaluated(ROW, np.zeros(len(ROW))))
CAN_BE_FLAT = np.array([r.flat for r in RAYS.values()])[ROW]


def searched(
    name: str, value_and_slope: Callable[[Any], Any], first: Any, budget: Any = None, **constants: Any
) -> tuple[Any, Any, Step]:
    zero = jnp.array(0.0)
    value, slope = value_and_slope(zero)
    keywords = {"first_length": first, "budget": budget, **constants}
    return value, slope, SEARCHES[name](value_and_slope, zero, value, slope, jnp.array(1.0), **keywords)


@pytest.fixture(scope="module")
def steps() -> Callable[[str], Step]:
    """Every ray from every first length within every budget, in one call."""
    found: dict[str, Step] = {}

    def of(name: str) -> Step:
        if name not in found:
            run = jax.jit(jax.vmap(lambda row, *asked: searched(name, partial(along, row), *asked)[2]))
            found[name] = jax.device_get(run(ROW, FIRST, BUDGET))
        return found[name]

    return of


def noise(value: Any) -> Any:
    return 8 * np.finfo(value.dtype).eps * np.abs(value)


def sufficient(start: Any, slope: Any, t: Any, new: Any, new_slope: Any, c1: Any) -> Any:
    """Enough decrease: Armijo's condition, or Hager and Zhang's where the values are equal but for rounding."""
    approximate = (new <= start + noise(start)) & (new_slope <= (2 * c1 - 1) * slope)
    return (new <= start + c1 * t * slope) | approximate


def where(condition: Any) -> list[tuple[str, float, int]]:
    """The cases of a mask, to read in a failure."""
    return [(NAMES[ROW[i]], float(FIRST[i]), int(BUDGET[i])) for i in np.flatnonzero(condition)]


@pytest.mark.parametrize(("mu", "eta"), sorted({(p.mu, p.eta) for p in MORE_THUENTE.values()}))
def test_more_and_thuentes_functions_with_their_constants(mu: float, eta: float) -> None:
    c1, c2 = (mu, eta) if mu < eta else (0.999 * mu, eta)  # ours must differ
    for fn in (p.fn for p in MORE_THUENTE.values() if (p.mu, p.eta) == (mu, eta)):
        run = jax.vmap(partial(searched, "strong_wolfe", jax.value_and_grad(fn), c1=c1, c2=c2))
        start, start_slope, step = jax.device_get(jax.jit(run)(np.array(FIRST_LENGTHS)))
        value, slope = jax.device_get(jax.jit(jax.vmap(jax.value_and_grad(fn)))(step.length))
        assert not np.any(step.status)
        np.testing.assert_allclose(step.point.value, value, rtol=1e-12)
        assert np.all(np.abs(slope) <= c2 * np.abs(start_slope) + 1e-12)
        assert np.all(sufficient(start, start_slope, step.length, value, slope, c1))
        assert np.max(step.num_evals) <= 20


@each_search
def test_what_it_returns_is_there(name: str, steps: Callable[[str], Step]) -> None:
    step = steps(name)
    value, slope = evaluated(ROW, step.length)
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-300)
    close(step.point.value, value)
    close(step.point.grad, slope)
    close(step.slope, slope)


@each_search
def test_never_above_the_start_and_never_beyond_the_budget(name: str, steps: Callable[[str], Step]) -> None:
    step = steps(name)
    assert where(step.point.value > START + noise(START)) == []
    assert where(step.num_evals > BUDGET) == []
    assert where((BUDGET == 0) & (step.length > 0)) == []
    assert where((step.length == 0) & (step.status == Status.RUNNING)) == []


@each_search
def test_says_how_it_ended(name: str, steps: Callable[[str], Step]) -> None:
    step = steps(name)
    expected = np.array([r.status for r in RAYS.values()])[ROW]
    if name == "armijo":  # it never looks beyond the first length
        unbounded = (NAMES.index("minus infinity") == ROW) & (FIRST >= 1)
        expected = np.where((expected == Status.UNBOUNDED) & ~unbounded, Status.RUNNING, expected)
    assert where((BUDGET == MAX_EVALS) & (step.status != expected)) == []
    assert where((expected == Status.NON_DESCENT) & (step.num_evals > 0)) == []


def test_strong_wolfe_holds_unless_evaluations_ran_out(steps: Callable[[str], Step]) -> None:
    step = steps("strong_wolfe")
    value, slope = (np.asarray(a) for a in evaluated(ROW, step.length))
    accepted = (step.status == Status.RUNNING) & (step.length > 0)
    enough = sufficient(START, START_SLOPE, step.length, value, slope, C1)
    flat = np.abs(slope) <= C2 * np.abs(START_SLOPE)
    assert where(accepted & ~enough) == []
    assert where(accepted & ~flat & CAN_BE_FLAT & ((step.num_evals < BUDGET - 1) | (BUDGET == MAX_EVALS))) == []


def test_armijos_condition_holds_within_the_first_length(steps: Callable[[str], Step]) -> None:
    step = steps("armijo")
    accepted = (step.status == Status.RUNNING) & (step.length > 0)
    assert where(accepted & ~(step.point.value <= START + C1 * step.length * START_SLOPE)) == []
    assert where(step.length > FIRST) == []


@each_search
def test_max_evals_is_never_exceeded(name: str) -> None:
    fn = jax.value_and_grad(partial(yanai, beta_1=0.01, beta_2=0.001))
    for max_evals in (1, 3):
        run = jax.jit(jax.vmap(partial(searched, name, fn, max_evals=max_evals)))
        value, _, step = run(np.logspace(-8, 8, 64))
        assert np.max(step.num_evals) <= max_evals
        assert np.all(step.point.value <= value + noise(np.asarray(value)))


@each_search
def test_every_evaluation_is_counted_and_none_is_made_up(name: str) -> None:
    """In NumPy, along a direction of powers of two, so that each point is rounded once: equal to the last bit."""
    rng = np.random.default_rng(0)
    target, width = rng.standard_normal(5), 2.0 ** rng.integers(0, 6, 5)
    seen: list[np.ndarray] = []

    def in_numpy(w: Any) -> tuple[Any, Any, Any]:
        w = np.array(w)
        seen.append(w)
        z = (w - target) * width
        root = np.sqrt(1 + z**2)
        return np.sum(root), z / root * width, {"mean": np.mean(w), "z": z}

    def value_and_grad(w: Any) -> tuple[Any, Any]:
        scalar, like = jax.ShapeDtypeStruct((), w.dtype), jax.ShapeDtypeStruct(w.shape, w.dtype)
        value, grad, aux = jax.pure_callback(in_numpy, (scalar, like, {"mean": scalar, "z": like}), w)
        return (value, aux), grad

    @jax.jit
    def run(w: Any, value: Any, grad: Any, direction: Any, first: Any) -> Step:
        return SEARCHES[name](value_and_grad, w, value, grad, direction, first_length=first, has_aux=True)

    moved = 0
    for first in (1e-6, 0.1, 1.0, 1e4):
        w = rng.standard_normal(5)
        value, grad, _ = in_numpy(w)
        direction = -np.exp2(np.round(np.log2(np.abs(grad)))) * np.sign(grad)
        seen.clear()
        step = jax.device_get(run(w, value, grad, direction, first))
        assert step.num_evals == len(seen)
        assert step.status == Status.RUNNING
        moved += step.num_evals > 1
        value, grad, aux = in_numpy(w + step.length * direction)
        chex.assert_trees_all_equal(step.point, type(step.point)(value, grad, aux))
        np.testing.assert_allclose(step.slope, grad @ direction, rtol=1e-14)
    assert moved >= 2


def random_problem(seed: int, *lead: int, dtype: Any = np.float64) -> tuple[Any, ...]:
    """The start, the target and the curvatures of a function that is smooth and bounded below."""
    start, target, logarithm = np.random.default_rng(seed).standard_normal((3, *lead, 6))
    return tuple(leaf.astype(dtype) for leaf in (start, target, np.exp(2 * logarithm)))


def smooth(w: Any, target: Any, curvature: Any) -> Any:
    return jnp.sum(curvature * (jnp.sqrt(1 + (w - target) ** 2) + jnp.sin(w)))


@partial(jax.jit, static_argnums=0)
def down_the_gradient(name: str, w: Any, target: Any, curvature: Any, first: Any) -> Step:
    value_and_grad = jax.value_and_grad(partial(smooth, target=target, curvature=curvature))
    value, grad = value_and_grad(w)
    return SEARCHES[name](value_and_grad, w, value, grad, -grad, first_length=first)


@each_search
def test_vmap_equals_a_loop(name: str) -> None:
    problems, firsts = random_problem(0, 64), np.logspace(-4, 4, 64)
    together = jax.vmap(partial(down_the_gradient, name))(*problems, firsts)
    one_by_one = [down_the_gradient(name, *(leaf[i] for leaf in (*problems, firsts))) for i in range(64)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    np.testing.assert_array_equal(together.status, 0)
    np.testing.assert_array_equal(together.num_evals, stacked.num_evals)
    np.testing.assert_allclose(together.length, stacked.length, rtol=1e-6)
    np.testing.assert_allclose(together.point.value, stacked.point.value, rtol=1e-6)


@each_search
def test_float32_stays_float32_where_float64_is_on(name: str) -> None:
    problem = random_problem(2, dtype=np.float32)
    for first in (100.0, jnp.array(100.0), jnp.array(100.0, jnp.bfloat16)):
        step = down_the_gradient(name, *problem, first)
        chex.assert_type([step.length, step.slope, step.point.value, step.point.grad], jnp.float32)
        chex.assert_type([step.num_evals, step.status], jnp.int32)
        assert step.status == Status.RUNNING


@each_search
def test_a_tree_equals_its_flattened_vector(name: str) -> None:
    tree = {"b": jnp.array(0.3), "W": jnp.arange(4.0).reshape(2, 2), "deep": [jnp.full((1, 1), -2.0)]}
    flat, unravel = ravel_pytree(tree)

    def fn(w: Any) -> Any:
        return sum(jnp.sum(jnp.cosh(leaf - 1)) for leaf in jax.tree.leaves(w))

    step, expected = (
        jax.jit(
            lambda w, first: SEARCHES[name](
                jax.value_and_grad(fn),
                w,
                fn(w),
                jax.grad(fn)(w),
                jax.tree.map(lambda g: -g, jax.grad(fn)(w)),
                first_length=first,
            )
        )(w, 10.0)
        for w in (tree, flat)
    )
    chex.assert_trees_all_close(step.point.grad, unravel(expected.point.grad), rtol=1e-12)
    np.testing.assert_allclose(step.length, expected.length, rtol=1e-12)
    assert step.num_evals == expected.num_evals > 1


def test_at_the_rounding_floor_of_float32_it_never_fails() -> None:
    """A convex function whose minimum is 1, from points nearer and nearer to it, along Newton's direction and -g."""

    def at(offset: Any, target: Any, curvature: Any, distance: Any, newton: Any) -> tuple[Any, Any, Step]:
        def fn(w: Any) -> Any:
            return 1 + jnp.sum(curvature * (w - target) ** 2)

        value_and_grad, w = jax.value_and_grad(fn), target + distance * offset
        value, grad = value_and_grad(w)
        return value, grad, jc.strong_wolfe(value_and_grad, w, value, grad, -grad / jnp.where(newton, 2 * curvature, 1))

    problems = random_problem(1, 576, dtype=np.float32)
    distances, newton = np.tile(np.logspace(0, -8, 9, dtype=np.float32), 64), np.arange(576) < 288
    value, grad, step = jax.device_get(jax.jit(jax.vmap(at))(*problems, distances, newton))
    there = np.all(grad == 0, axis=1)
    assert set(step.status[~there].tolist()) <= {Status.RUNNING, Status.ROUNDOFF_LIMITED}
    assert set(step.status[there].tolist()) <= {Status.NON_DESCENT}
    assert np.all(step.point.value <= value + noise(value))
    took = step.status[newton & ~there & (distances > 1e-6)]
    assert np.mean(took == Status.RUNNING) > 0.9  # Hager and Zhang's condition goes on where Armijo's is lost


@partial(jax.jit, static_argnums=0)
def along_a_polynomial(name: str, coefficients: Any, wall: Any, first: Any, budget: Any) -> Any:
    def fn(t: Any) -> Any:
        value = jnp.polyval(jnp.flip(coefficients), t)
        return jnp.where((t >= wall[0]) & (t <= wall[1]), jnp.nan, value)

    zero, one = jnp.array(0.0), jnp.array(1.0)
    value, slope = jax.value_and_grad(fn)(zero)
    step = SEARCHES[name](jax.value_and_grad(fn), zero, value, slope, one, first_length=first, budget=budget)
    return value, slope, step, jax.value_and_grad(fn)(step.length)


@each_search
@given(
    slope=st.floats(-1e3, -1e-3),
    rest=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=3),
    value=st.floats(-1e3, 1e3),
    wall=st.tuples(st.floats(-6, 3), st.floats(0, 3)),
    first=st.floats(-3, 3),
    budget=st.integers(0, MAX_EVALS),
)
@settings(max_examples=150)
def test_polynomials_with_walls(
    name: str, slope: float, rest: list[float], value: float, wall: tuple[float, float], first: float, budget: int
) -> None:
    coefficients = np.array([value, slope, *rest, 0.0])[:5]
    lower = 10.0 ** wall[0]
    walls = np.array([lower, lower * 10.0 ** wall[1]])
    start, start_slope, step, (new, new_slope) = jax.device_get(
        along_a_polynomial(name, coefficients, walls, 10.0**first, np.int32(budget))
    )
    assert step.num_evals <= budget
    assert new <= start + noise(start)
    np.testing.assert_allclose(step.point.value, new, rtol=1e-9, atol=1e-9)
    if step.status == Status.RUNNING and name == "strong_wolfe":
        gave_up = step.num_evals >= budget - 1 or lower / step.length - 1 < 1e-14
        assert sufficient(start, start_slope, step.length, new, new_slope, C1)
        assert gave_up or np.abs(new_slope) <= C2 * np.abs(start_slope)
    elif step.status == Status.RUNNING:
        assert new <= start + C1 * step.length * start_slope
        assert 0 < step.length <= 10.0**first
    elif step.status == Status.UNBOUNDED:
        falls_forever = coefficients[np.flatnonzero(coefficients)[-1]] < 0
        turns = np.roots(np.polyder(np.flip(coefficients)))  # or, as documented, for 25 decades at least
        assert falls_forever or not np.any((turns.real > 0) & (turns.real < 1e24 * 10.0**first))
        assert walls[1] < step.length
    else:
        assert step.length == 0
        assert budget < MAX_EVALS


@each_search
def test_a_direction_of_zeros_is_not_followed(name: str) -> None:
    w = jnp.arange(3.0)
    value_and_grad = jax.value_and_grad(jnp.sum)
    step = jax.jit(lambda w: SEARCHES[name](value_and_grad, w, *value_and_grad(w), jnp.zeros(3)))(w)
    assert (step.status, step.num_evals, step.length) == (Status.NON_DESCENT, 0, 0)


@pytest.mark.parametrize(
    "constants",
    [{"c1": 0.0}, {"c1": -0.1}, {"c1": 0.5}, {"c1": np.nan}, {"c2": 1.0}, {"c2": 1e-4}, {"c1": 0.2, "c2": 0.1}],
    ids=str,
)
def test_strong_wolfe_refuses_constants_out_of_range(constants: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="strong_wolfe: need 0 < c1"):
        jc.strong_wolfe(jax.value_and_grad(jnp.cosh), 1.0, jnp.array(1.0), jnp.array(1.0), jnp.array(-1.0), **constants)


@pytest.mark.parametrize("c1", [0.0, -0.1, 1.0, np.nan])
def test_armijo_refuses_constants_out_of_range(c1: float) -> None:
    with pytest.raises(ValueError, match="armijo: need 0 < c1"):
        jc.armijo(jax.value_and_grad(jnp.cosh), 1.0, jnp.array(1.0), jnp.array(1.0), jnp.array(-1.0), c1=c1)


@each_search
@pytest.mark.parametrize("max_evals", [0, -1])
def test_refuses_to_search_without_an_evaluation(name: str, max_evals: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: max_evals must be at least 1, got {max_evals}"):
        SEARCHES[name](
            jax.value_and_grad(jnp.cosh), 1.0, jnp.array(1.0), jnp.array(1.0), jnp.array(-1.0), max_evals=max_evals
        )
