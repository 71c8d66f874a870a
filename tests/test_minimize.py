"""The solver: where it ends, what it says of it, what it costs, and that it is a pure function like any other."""

import gc
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course import Status

SEARCHING: dict[str, Any] = {"lbfgs": jc.lbfgs(), "newton": jc.newton(), "newton_cg": jc.newton_cg()}
each_search = pytest.mark.parametrize("name", SEARCHING)


def rosenbrock(w: Any) -> Any:
    return jnp.sum(100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2)


START = jnp.array([-1.2, 1.0, -0.5, 0.8])


def counted(f: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """The function, and a list that grows at each evaluation of it inside compiled code."""
    calls: list[int] = []

    @jax.custom_jvp
    def mark(x: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return x

    mark.defjvp(lambda primals, tangents: (mark(*primals), tangents[0]))
    return lambda *args: f(mark(args[0]), *args[1:]), calls


@each_search
def test_reaches_the_minimum_and_says_so(name: str) -> None:
    result = jc.minimize(lambda w: jnp.sum((w - jnp.arange(3.0)) ** 4) + jnp.sum(w**2), SEARCHING[name], jnp.ones(3))
    value, grad = jax.value_and_grad(lambda w: jnp.sum((w - jnp.arange(3.0)) ** 4) + jnp.sum(w**2))(result.params)
    assert result.status == Status.GRADIENT_NORM
    assert result.value == pytest.approx(float(value), rel=1e-14)
    assert result.grad_norm == pytest.approx(float(jnp.max(jnp.abs(grad))), rel=1e-6, abs=1e-15)
    assert result.grad_norm <= 1.5e-8


@each_search
def test_evaluations_are_counted_and_none_is_done_twice(name: str) -> None:
    objective, calls = counted(rosenbrock)
    result = jc.minimize(objective, SEARCHING[name], START)
    jax.effects_barrier()
    if name == "lbfgs":  # the others evaluate more inside their Hessians
        assert len(calls) == result.num_evals
    assert result.num_evals >= result.num_steps + 1
    assert result.num_evals == 1 + result.state.search.num_evals


@each_search
def test_aux_is_that_of_the_end(name: str) -> None:
    def objective(w: Any, shift: Any) -> Any:
        return rosenbrock(w) + jnp.sum(shift), {"w": w, "twice": 2 * w, "count": jnp.int32(3)}

    shift = jnp.ones(2)
    result = jc.minimize(objective, SEARCHING[name], START[:2], data=shift, has_aux=True)
    np.testing.assert_array_equal(result.aux["w"], result.params)
    np.testing.assert_array_equal(result.aux["twice"], 2 * result.params)
    assert result.aux["count"].dtype == jnp.int32
    assert result.value == pytest.approx(2, abs=1e-12)
    stuck = jc.minimize(objective, SEARCHING[name], START[:2], data=shift, has_aux=True, max_steps=0)
    np.testing.assert_array_equal(stuck.aux["w"], START[:2])


def test_every_test_of_the_end_has_its_own_status() -> None:
    f: Callable[[Any], Any] = lambda w: 1e3 + jnp.sum(jnp.cosh(w) + 0.1 * w)  # noqa: E731
    solve = partial(jc.minimize, f, jc.lbfgs(), jnp.array([1.0, 2.0]))
    assert solve(gtol=1e-6).status == Status.GRADIENT_NORM
    assert solve(gtol=0, ftol=1e-3, xtol=0).status == Status.SMALL_DECREASE
    assert solve(gtol=0, ftol=0, xtol=1e-3).status == Status.SMALL_STEP
    assert solve(target=1003.5).status == Status.TARGET_REACHED
    assert solve(target=1003.5).value <= 1003.5
    assert solve(max_steps=2).status == Status.MAX_STEPS
    assert solve(max_steps=2).num_steps == 2
    assert solve(max_evals=3).status == Status.MAX_EVALS
    assert solve(max_evals=1).num_steps == 0
    assert solve(max_steps=0).status == Status.MAX_STEPS


def walled(w: Any) -> Any:
    return jnp.where(w[0] < 0.01, jnp.nan, rosenbrock(w))


@each_search
@pytest.mark.parametrize("budget", [1, 2, 3, 5, 9])
def test_the_budget_is_never_exceeded(name: str, budget: int) -> None:
    result = jc.minimize(walled, SEARCHING[name], jnp.array([3.0, -2.0]), max_evals=budget)
    assert result.num_evals <= budget
    assert result.status == Status.MAX_EVALS


def test_a_small_step_alone_is_no_success() -> None:
    """Where scipy's default says success: a decrease within tolerance, far from where the gradient is small."""
    problem = jc.mgh.PROBLEMS["jennrich_sampson"]
    result = jc.minimize(problem.fn, jc.sgd(1e-20), problem.start, max_steps=50, ftol=1e-3, xtol=1e-3)
    assert result.status == Status.MAX_STEPS


@each_search
def test_the_trace_is_the_history_and_needs_no_callback(name: str) -> None:
    solve = partial(jc.minimize, rosenbrock, SEARCHING[name], max_steps=60, trace=True)
    result = solve(START)
    n, trace = int(result.num_steps), result.trace
    assert trace.value.shape == trace.num_evals.shape == (61,)
    assert trace.value[0] == rosenbrock(START)
    assert trace.value[n] == result.value
    assert trace.grad_norm[n] == result.grad_norm
    assert trace.num_evals[n] == result.num_evals
    assert np.all(np.diff(trace.value[: n + 1]) <= 1e-12)
    assert np.all(np.diff(trace.num_evals[: n + 1]) >= 1)
    assert np.all(trace.step_size[1 : n + 1] > 0)
    assert np.all(np.isnan(trace.value[n + 1 :]))
    assert "callback" not in str(jax.make_jaxpr(solve)(START))
    assert jc.minimize(rosenbrock, SEARCHING[name], START).trace is None


OPTAX: dict[str, Any] = {
    "sgd": optax.sgd(1e-2, momentum=0.5),
    "adam": optax.adam(0.1),
    "lbfgs": optax.lbfgs(),
    "halved": optax.chain(jc.lbfgs(), optax.scale(0.5)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), jc.lbfgs()),
}


@pytest.mark.parametrize("name", OPTAX)
def test_any_optimizer_of_optax_works_in_it(name: str) -> None:
    f: Callable[[Any], Any] = lambda w: jnp.sum(jnp.cosh(w["a"])) + jnp.sum((w["b"] - 1) ** 2)  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):
        result = jc.minimize(f, OPTAX[name], {"a": jnp.ones(3), "b": jnp.zeros(())}, max_steps=2000, gtol=1e-6)
    assert result.status == Status.GRADIENT_NORM, str(result)
    np.testing.assert_allclose(result.params["a"], 0, atol=1e-6)
    np.testing.assert_allclose(result.params["b"], 1, atol=1e-6)


@pytest.mark.parametrize("name", ["lbfgs", "halved"])
def test_evaluations_inside_a_search_are_counted(name: str) -> None:
    objective, calls = counted(rosenbrock)
    with jax.numpy_dtype_promotion("standard"):
        result = jc.minimize(objective, OPTAX[name], START)
    jax.effects_barrier()
    assert len(calls) == result.num_evals


def test_the_best_point_is_kept_where_the_way_is_lost() -> None:
    f: Callable[[Any], Any] = lambda w: jnp.sum(w**2)  # noqa: E731
    solve = partial(jc.minimize, f, jc.sgd(1.1), jnp.array([1.0]), max_steps=10)
    assert solve().value == 1
    assert solve(best=False).value > 30
    assert solve().status == solve(best=False).status == Status.MAX_STEPS
    overflow = jc.minimize(lambda w: jnp.sum(jnp.exp(w)), jc.sgd(-1.0 * -1e4), jnp.array([1.0]), max_steps=10)
    assert np.isfinite(overflow.value)


def problems(count: int) -> tuple[Any, Any]:
    """Logistic regressions with data and starts of their own; the last but one is all NaN."""
    rng = np.random.default_rng(0)
    inputs, signs = rng.standard_normal((count, 12, 4)), np.sign(rng.standard_normal((count, 12)))
    inputs[-2] = np.nan
    return jnp.asarray(rng.standard_normal((count, 4))), (jnp.asarray(inputs), jnp.asarray(signs))


def logistic(w: Any, data: Any) -> Any:
    inputs, signs = data
    return jnp.mean(jnp.logaddexp(0.0, -signs * (inputs @ w))) + 1e-2 * jnp.sum(w**2)


@each_search
def test_256_lanes_equal_256_solves_and_one_of_them_is_nan(name: str) -> None:
    starts, data = problems(256)
    solve = jax.jit(lambda w, data: jc.minimize(logistic, SEARCHING[name], w, data=data)._replace(state=None))
    together = jax.jit(jax.vmap(solve))(starts, data)
    alone = [solve(w, jax.tree.map(lambda leaf, i=i: leaf[i], data)) for i, w in enumerate(starts)]
    statuses = np.array([int(result.status) for result in alone])
    np.testing.assert_array_equal(together.status, statuses)
    assert statuses[-2] == Status.OBJECTIVE_NOT_FINITE
    assert np.all(np.delete(statuses, -2) == Status.GRADIENT_NORM)
    np.testing.assert_array_equal(together.params[-2], starts[-2])
    np.testing.assert_allclose(together.params, np.stack([r.params for r in alone]), atol=1e-7)
    steps = np.array([int(result.num_steps) for result in alone])
    assert np.mean(np.asarray(together.num_steps) == steps) > 0.95  # rounding may cost or save one a step
    assert re.fullmatch(r"256 solves: 255 GRADIENT_NORM, 1 OBJECTIVE_NOT_FINITE", str(together))


@each_search
def test_float32_goes_to_its_own_floor(name: str) -> None:
    start = START.astype(jnp.float32)
    result = jc.minimize(rosenbrock, SEARCHING[name], start, gtol=0.0)
    assert result.params.dtype == result.value.dtype == result.grad_norm.dtype == jnp.float32
    assert result.status in (Status.SMALL_DECREASE, Status.SMALL_STEP, Status.GRADIENT_NORM, Status.ROUNDOFF_LIMITED)
    assert result.value < 1e-8 or abs(float(result.value) - 3.70142861) < 1e-5  # the local minimum
    assert jc.minimize(rosenbrock, SEARCHING[name], start).status > 0


@each_search
@pytest.mark.parametrize("gtol", [0.0, None])
def test_how_a_solve_ends_at_the_floor_does_not_depend_on_rounding(name: str, gtol: float | None) -> None:
    starts = np.asarray(START) * (1 + 3e-7 * np.random.default_rng(0).standard_normal((200, 4)))
    solve = lambda w: jc.minimize(rosenbrock, SEARCHING[name], w, gtol=gtol)._replace(state=None)  # noqa: E731
    result = jax.jit(jax.vmap(solve))(starts.astype(np.float32))
    assert np.all((result.status > 0) | ((result.status == Status.ROUNDOFF_LIMITED) & (gtol == 0))), str(result)
    assert np.all(np.minimum(result.value, abs(result.value - 3.70142861)) < 1e-5)


def test_a_pytree_equals_its_vector() -> None:
    tree = {"a": START[:1].reshape(1, 1), "b": (START[1:3], START[3])}

    def in_tree(w: Any) -> Any:
        return rosenbrock(jnp.concatenate([w["a"].ravel(), w["b"][0], w["b"][1][None]]))

    for optimizer in SEARCHING.values():
        whole, parts = jc.minimize(rosenbrock, optimizer, START), jc.minimize(in_tree, optimizer, tree)
        assert whole.num_evals == parts.num_evals
        np.testing.assert_allclose(parts.params["b"][0], whole.params[1:3], rtol=1e-6)


def test_the_objective_is_traced_a_few_times_and_then_never() -> None:
    traces = []

    def objective(w: Any) -> Any:
        traces.append(1)
        return rosenbrock(w)

    optimizer = jc.lbfgs()
    jc.minimize(objective, optimizer, START)
    first = len(traces)
    assert first <= 4, f"traced {first} times"
    jc.minimize(objective, optimizer, START + 1, target=1e-3, max_steps=7)
    assert len(traces) == first
    jax.jit(partial(jc.minimize, objective, optimizer))(START)
    assert len(traces) <= 2 * first


def test_a_solve_has_a_derivative_forwards() -> None:
    """Through as many steps as it takes: reverse mode cannot pass a loop of unknown length, forward mode can."""
    solution = lambda a: jc.minimize(lambda w: jnp.sum(jnp.cosh(w) - a * w), jc.lbfgs(), jnp.zeros(2)).params  # noqa: E731
    point, slope = jax.jvp(solution, (jnp.array(0.7),), (jnp.array(1.0),))
    np.testing.assert_allclose(point, np.arcsinh(0.7), rtol=1e-7)
    assert np.all(np.isfinite(slope))


def test_gradients_through_a_fixed_number_of_steps_are_finite() -> None:
    optimizer = jc.newton(line_search=None)

    def after_ten(a: Any) -> Any:
        f: Callable[[Any], Any] = lambda w: jnp.sum(jnp.cosh(w) - a * w)  # noqa: E731

        def step(carry: Any, _: Any) -> Any:
            w, state = carry
            value, grad = jax.value_and_grad(f)(w)
            updates, state = optimizer.update(grad, state, w, value=value, grad=grad, value_fn=f)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.zeros(2)
        return jnp.sum(jax.lax.scan(step, (w, optimizer.init(w)), None, 10)[0][0])

    np.testing.assert_allclose(jax.grad(after_ten)(0.7), 2 / np.sqrt(1 + 0.7**2), rtol=1e-6)


@pytest.mark.parametrize("optimizer", [jc.lbfgs(), jc.sgd(0.1)])
def test_a_nan_in_a_large_gradient_is_seen(optimizer: Any) -> None:
    """The largest entry of 64 x 64, taken by XLA's maximum on a CPU, was not NaN where one was."""
    f: Callable[[Any], Any] = lambda w: jnp.sum(jnp.where(w > 0, jnp.sqrt(jnp.abs(w)), w))  # noqa: E731
    result = jc.minimize(f, optimizer, jnp.ones((64, 64)).at[3, 4].set(0))
    assert result.status == Status.GRADIENT_NOT_FINITE


COMPLEX: dict[str, Any] = SEARCHING | {"sgd": jc.sgd(0.3), "adam": jc.adam(0.1), "optax.lbfgs": optax.lbfgs()}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_parameters_are_optimized_by_every_rule(name: str) -> None:
    f: Callable[[Any], Any] = lambda w: jnp.sum(jnp.abs(w["z"] - (1 + 2j)) ** 2) + (w["x"] - 3) ** 2  # noqa: E731
    start = {"z": jnp.zeros(3, complex), "x": jnp.array(0.0)}
    with jax.numpy_dtype_promotion("standard"):
        result = jc.minimize(f, COMPLEX[name], start, max_steps=2000)
    assert result.status > 0, str(result)
    assert result.value.dtype == jnp.float64
    assert result.params["z"].dtype == jnp.complex128
    np.testing.assert_allclose(result.params["z"], 1 + 2j, rtol=2e-4)  # 1e-8 of what was gained
    np.testing.assert_allclose(result.params["x"], 3, rtol=2e-4)


@pytest.mark.parametrize("name", ["lbfgs", "newton", "newton_cg"])
def test_a_solve_goes_on_from_a_result_as_if_it_had_not_stopped(name: str) -> None:
    whole = jc.minimize(rosenbrock, SEARCHING[name], START, max_steps=12)
    half = jc.minimize(rosenbrock, SEARCHING[name], START, max_steps=5)
    both = jc.minimize(rosenbrock, SEARCHING[name], half.params, state=half, max_steps=7)
    np.testing.assert_allclose(both.params, whole.params, rtol=1e-9)
    again = jc.minimize(rosenbrock, SEARCHING[name], half.params, state=half.state, max_steps=7)
    np.testing.assert_array_equal(again.params, both.params)


def test_a_state_may_come_from_another_rate_from_optax_and_from_training() -> None:
    first = jc.minimize(rosenbrock, jc.adam(0.1), START, max_steps=30)
    with jax.numpy_dtype_promotion("standard"):
        theirs = jc.minimize(rosenbrock, optax.adam(0.1, eps=1e-7), START, max_steps=30)
    slower = [jc.minimize(rosenbrock, jc.adam(0.01), first.params, state=s, max_steps=50) for s in (first, theirs)]
    assert slower[0].value < first.value
    np.testing.assert_allclose(slower[0].params, slower[1].params, rtol=1e-6)
    with pytest.raises(ValueError, match=r"minimize: "):
        jc.minimize(rosenbrock, jc.lbfgs(), START, state=first)
    with pytest.raises(ValueError, match=r"float64\[4\].*float64\[2\]"):
        jc.minimize(rosenbrock, jc.adam(0.1), START[:2], state=first)


@pytest.mark.parametrize("gtol", [1e-7, 1e-12])
@each_search
def test_a_tolerance_that_is_asked_for_is_not_overruled(name: str, gtol: float) -> None:
    def zakharov(w: Any) -> Any:
        s = jnp.sum(0.5 * jnp.arange(1, len(w) + 1, dtype=w.dtype) * w)
        return jnp.sum(w**2) + s**2 + s**4

    for f, start in ((zakharov, START.astype(jnp.float32)), (lambda w: jnp.sum(w**4), START)):
        result = jc.minimize(f, SEARCHING[name], start, gtol=gtol)
        assert (result.status > 0) == bool(result.grad_norm <= gtol), str(result)
        assert result.status <= 0 or result.status == Status.GRADIENT_NORM
    assert result.status > 0


def test_a_new_factory_call_is_the_same_program_and_objectives_are_not_kept() -> None:
    traces = []

    def objective(w: Any) -> Any:
        traces.append(1)
        return jnp.sum((w - 1) ** 2)

    for _ in range(3):
        jc.minimize(objective, jc.lbfgs(), START)
        jc.minimize(objective, jc.lbfgs(memory_size=10), START)
    assert len(traces) <= 3
    kept = []
    for _ in range(3):
        big = jnp.ones(1000)
        f = lambda w, big=big: jnp.sum((w - jnp.mean(big)) ** 2)  # noqa: E731
        jc.minimize(f, jc.lbfgs(), START)
        kept.append(weakref.ref(f))
    del f, big
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


def test_tolerances_may_be_traced() -> None:
    loose = jax.jit(lambda gtol: jc.minimize(rosenbrock, SEARCHING["lbfgs"], START, gtol=gtol).num_steps)
    assert loose(1.0) < loose(1e-6)


def test_nothing_to_optimize() -> None:
    result = jc.minimize(lambda w: jnp.float64(3), jc.lbfgs(), {})
    assert (result.params, float(result.value), result.num_steps) == ({}, 3.0, 0)
    for optimizer in SEARCHING.values():
        state = optimizer.init({})
        assert optimizer.update({}, state, {}) == ({}, state)


def test_what_is_wrong_is_said() -> None:
    solve = partial(jc.minimize, rosenbrock, jc.lbfgs())
    with pytest.raises(ValueError, match=r"gtol must be at least 0, got -1"):
        solve(START, gtol=-1.0)
    with pytest.raises(ValueError, match=r"ftol must be at least 0, got nan"):
        solve(START, ftol=float("nan"))
    with pytest.raises(ValueError, match=r"max_evals must be at least 1, got 0"):
        solve(START, max_evals=0)
    with pytest.raises(TypeError, match=r"params\['a'\] is int64"):
        jc.minimize(lambda w: jnp.sum(w["a"]), jc.lbfgs(), {"a": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"need real parameters, params is complex128"):
        jc.lbfgs().init(jnp.ones(3, complex))
    with pytest.raises(TypeError, match=r"minimize: jc.lbfgs is a factory; call it: jc.lbfgs\(\)"):
        jc.minimize(rosenbrock, jc.lbfgs, START)
    with pytest.raises(ValueError, match=r"must return a scalar, got shape \(4,\)"):
        jc.minimize(lambda w: w**2, jc.lbfgs(), START)


def test_a_result_is_a_line_to_read() -> None:
    line = str(jc.minimize(rosenbrock, jc.lbfgs(), START, max_steps=1))
    assert re.match(r"MAX_STEPS after 1 step and \d+ evaluations: value [\d.]+, largest gradient entry", line)
    assert "raise it" in line
    seen = []
    jax.jit(lambda w: seen.append(str(jc.minimize(rosenbrock, jc.lbfgs(), w))))(START)
    assert "trace" in seen[0]


def test_sharded_data_give_the_same_solve() -> None:
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
jax.config.update("jax_enable_x64", True)
import jaxopt_course as jc
rng = np.random.default_rng(0)
x, y = rng.standard_normal((64, 5)), rng.integers(0, 3, 64)
objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, 1e-3)
mesh = Mesh(np.array(jax.devices()), ("data",))
rows = NamedSharding(mesh, P("data"))
whole, parts = (jnp.asarray(x), jnp.asarray(y)), (jax.device_put(x, rows), jax.device_put(y, rows))
assert len(parts[0].sharding.device_set) == 8
for optimizer in (jc.lbfgs(), jc.newton_cg()):
    a, b = (jc.minimize(objective, optimizer, jnp.zeros((3, 5)), data=data) for data in (whole, parts))
    assert a.status == b.status == jc.Status.GRADIENT_NORM, (str(a), str(b))
    np.testing.assert_allclose(a.params, b.params, atol=1e-7)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PATH": ""}
    ran = subprocess.run([sys.executable, "-c", code], env=flags, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


EXPLICIT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxopt_course as jc
rng = np.random.default_rng(0)
x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 16), (64,)))

def plain(params, data):
    return jnp.mean((data[0] @ params["w"] + params["b"] - data[1]) ** 2)

def gathered(params, data):
    assert jax.typeof(params["w"]).sharding.spec == P("d")
    return plain({"w": jax.sharding.reshard(params["w"], P()), "b": params["b"]}, data)

optimizers = {"lbfgs": jc.lbfgs(), "newton": jc.newton(), "newton_cg": jc.newton_cg(), "adam": jc.adam(0.1)}
start = {"w": jnp.zeros(16), "b": jnp.zeros(())}
residual = np.linalg.lstsq(np.c_[x, np.ones(64)], y)[1][0] / 64
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    rows, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    params = {"w": jax.device_put(start["w"], rows), "b": jax.device_put(start["b"], whole)}
    data = jax.device_put((x, y), (rows, rows))
    f = gathered if kind == AxisType.Explicit else plain
    for name, optimizer in optimizers.items():
        with jax.set_mesh(mesh):
            result = jc.minimize(f, optimizer, params, data=data, max_steps=200)
        np.testing.assert_allclose(result.value, residual, rtol=1e-3 if name == "adam" else 1e-5)
        assert result.params["w"].sharding == params["w"].sharding, result.params["w"].sharding
        like = [leaf for leaf in jax.tree.leaves(result.state) if leaf.shape[-1:] == (16,)]
        assert len(like) == {"lbfgs": 1, "adam": 2}.get(name, 0)
        for leaf in like:
            assert leaf.sharding.spec == P(*[None] * (leaf.ndim - 1), "d"), (kind, name, leaf.sharding)

def solve(params, data):
    result = jc.minimize(gathered, jc.newton(), params, data=data)
    return result, result.value + jnp.sum(params["w"])

with jax.set_mesh(mesh):
    result, value = jax.jit(solve)(params, data)
assert result.params["w"].sharding == params["w"].sharding
np.testing.assert_allclose(value, residual, rtol=1e-5)
with jax.set_mesh(mesh):
    again = jc.minimize(gathered, jc.newton(), result.params, data=data, max_steps=1, state=result)
np.testing.assert_allclose(again.value, residual, rtol=1e-5)

with jax.set_mesh(mesh):
    within = jc.minimize(gathered, jc.lbfgs(), params, data=data, bounds=({"w": -0.1, "b": None}, 0.1))
    sparse = jc.minimize(gathered, jc.lbfgs(), params, data=data, l1={"w": 0.1, "b": 0.0})
    slope = jax.grad(lambda data: jc.minimize(gathered, jc.newton(), params, data=data).value)(data)[1]
assert 0 < np.sum(np.abs(within.params["w"]) == np.float32(0.1)) <= 16 and within.status > 0
assert 0 < np.sum(sparse.params["w"] == 0) < 16 and sparse.status > 0
fitted = np.c_[x, np.ones(64)] @ np.linalg.lstsq(np.c_[x, np.ones(64)], y)[0]
np.testing.assert_allclose(slope, 2 * (y - fitted) / 64, atol=1e-5)
"""


def test_parameters_and_data_on_a_mesh_of_either_kind() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PATH": ""}
    ran = subprocess.run([sys.executable, "-c", EXPLICIT], env=flags, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]


@jax.tree_util.register_pytree_node_class
class Network:
    """A callable module as Equinox has them: an activation and a missing bias among its leaves."""

    def __init__(self, weights: Any, activation: Any, bias: Any = None):
        self.weights, self.activation, self.bias = weights, activation, bias

    def __call__(self, x: Any) -> Any:
        return self.activation(x @ self.weights[0]) @ self.weights[1]

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return (self.weights, self.activation, self.bias), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Network":
        return cls(*children)


def test_a_model_with_functions_among_its_leaves() -> None:
    optimizer = jc.lbfgs()
    keys = jax.random.split(jax.random.key(0), 3)
    weights = (jax.random.normal(keys[0], (2, 4)), jax.random.normal(keys[1], (4,)))
    inputs = jax.random.normal(keys[2], (32, 2))

    def loss(model: Any, inputs: Any) -> Any:
        return jnp.mean((model(inputs) - jnp.sin(inputs[:, 0])) ** 2)

    def loss_of_weights(weights: Any, inputs: Any) -> Any:
        return loss(Network(weights, jnp.tanh), inputs)

    model = Network(weights, jnp.tanh)
    result = jc.minimize(loss, optimizer, model, data=inputs, max_steps=20)
    again = jc.minimize(loss, optimizer, result.params, data=inputs, max_steps=20, state=result)
    expected = jc.minimize(loss_of_weights, optimizer, weights, data=inputs, max_steps=20)
    assert result.params.activation is jnp.tanh
    assert result.params.bias is None
    chex.assert_trees_all_close(result.params.weights, expected.params, rtol=1e-6)
    assert again.value <= result.value < loss(model, inputs)


def test_a_model_with_another_activation_is_another_program() -> None:
    f: Callable[[Any], Any] = lambda m: (m(jnp.ones(2)) - 0.5) ** 2 + jc.losses.l2_penalty(m.weights)  # noqa: E731
    weights = (0.1 * jnp.ones((2, 3)), jnp.ones(3))
    ends = [jc.minimize(f, jc.lbfgs(), Network(weights, g)).params for g in (jnp.tanh, jax.nn.relu)]
    assert ends[0].activation is jnp.tanh
    assert ends[1].activation is jax.nn.relu
    with pytest.raises(TypeError, match=r"params.*is int32|params.*is int64"):
        jc.minimize(f, jc.lbfgs(), Network((*weights, jnp.arange(2)), jnp.tanh))
