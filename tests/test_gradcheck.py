"""Gradient checks: what other checkers get wrong, wrong input, and everything a function may use."""

import functools
import gc
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course.gradients import GradientCheckError, Verdict, analytic, numerical
from jaxopt_course.gradients.subject import arithmetic, random_weights, split_arguments

PASS, KINK, FAIL = Verdict.PASS, Verdict.KINK, Verdict.FAIL
INCONCLUSIVE, CONSTANT, NONFINITE = Verdict.INCONCLUSIVE, Verdict.CONSTANT, Verdict.NONFINITE
X = jnp.linspace(0.1, 1.0, 7)


def with_gradient(f: Callable[[Any], Any], gradient: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """f with a reverse mode of one's own: `gradient(x, cotangent)`."""
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), x), lambda x, c: (gradient(x, c),))
    return g


def with_tangent(f: Callable[[Any], Any], tangent: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """f with a forward mode of one's own: `tangent(x, dx)`."""
    g = jax.custom_jvp(f)
    g.defjvp(lambda p, t: (f(*p), tangent(p[0], t[0])))
    return g


def sum_of_sines(x: Any) -> Any:
    return jnp.sum(jnp.sin(x))


def sum_of_squares(x: Any) -> Any:
    return jnp.sum(x**2)


def sines_with_wrong(places: Any) -> Callable[[Any], Any]:
    """The sum of sines; at some places of the flattened gradient there is a zero."""
    return with_gradient(sum_of_sines, lambda x, c: (c * jnp.cos(x)).ravel().at[places].set(0).reshape(x.shape))


def million(dtype: Any = jnp.float32) -> Any:
    return jax.random.normal(jax.random.key(0), (1000, 1000), dtype)


# What other checkers pass though it is wrong.


def test_small_gradients_are_not_swallowed() -> None:
    f = with_gradient(lambda x: 1e-6 * jnp.sum(x**2), lambda x, c: 0 * x)
    assert jc.gradcheck(f, X).verdict is FAIL


@pytest.mark.parametrize("mode", ["auto", "dense", "sparse", "directional"])
@pytest.mark.parametrize("summed", [True, False])
def test_one_zero_among_400_sines(mode: str, summed: bool) -> None:
    f = with_gradient(sum_of_sines if summed else jnp.sin, lambda x, c: (c * jnp.cos(x)).at[17].set(0))
    report = jc.gradcheck(f, jnp.linspace(0.1, 1.0, 400), mode=mode)
    assert report.verdict is FAIL
    assert {entry.index for entry in report.wrong} == {(17,)}


@pytest.mark.parametrize(
    ("n", "dtype"), [(600, jnp.float32), (2000, jnp.float32), (200_000, jnp.float64)], ids=["600", "2000", "200000"]
)
def test_a_forward_mode_of_zero(n: int, dtype: Any) -> None:
    f = with_tangent(jnp.sin, lambda x, t: 0 * t)
    assert jc.gradcheck(f, jnp.linspace(0.1, 1.0, n, dtype=dtype)).verdict is FAIL


def test_a_reverse_mode_of_zero_for_a_mean_over_a_million() -> None:
    f = with_gradient(lambda x: jnp.mean(x**2), lambda x, c: 0 * x)
    report = jc.gradcheck(f, million())
    assert report.verdict is FAIL
    assert report.leaves[0].wrong == 1_000_000
    assert any("the whole leaf is wrong" in note for note in report.notes)


def test_a_zero_hessian_where_f_is_zero() -> None:
    def cubic(x: Any) -> Any:
        return jnp.sum(x**3 - x)

    flat = with_tangent(jax.grad(cubic), lambda x, t: 0 * t)
    f = with_tangent(cubic, lambda x, t: jnp.vdot(flat(x), t))
    x = jnp.array([1.0, 1.0, 0.0])
    assert f(x) == 0
    assert jc.gradcheck(f, x).ok
    assert jc.gradgradcheck(f, x).verdict is FAIL


# What other checkers fail though it is right.


def test_a_right_sum_over_a_million_in_float32() -> None:
    assert jc.gradcheck(sum_of_squares, million()).verdict is PASS


@pytest.mark.parametrize(
    ("dtype", "n"),
    [(jnp.bfloat16, 40), (jnp.float16, 40), (jnp.float32, 40), (jnp.bfloat16, 1_100_000), (jnp.float32, 1_100_000)],
    ids=lambda value: str(value) if isinstance(value, int) else jnp.dtype(value).name,
)
def test_coarse_dtypes(dtype: Any, n: int) -> None:
    x = jnp.linspace(0.1, 1.0, n).astype(dtype)
    assert jc.gradcheck(sum_of_sines, x).verdict is PASS
    f = with_gradient(sum_of_sines, lambda x, c: c * jnp.cos(x) * (1 + 1e-3))
    assert jc.gradcheck(f, x).verdict is FAIL


def test_leaves_and_outputs_without_gradient_are_skipped_and_named() -> None:
    params = {"x": jnp.ones(3), "n": jnp.int32(3), "on": True, "key": jax.random.key(0)}
    report = jc.gradcheck(lambda p: {"f": jnp.sum(p["x"] ** 3), "count": p["n"] + 1}, params)
    assert report.verdict is PASS
    assert {leaf.path for leaf in report.leaves} == {"params['x']"}
    assert {text.split()[0] for text in report.skipped} == {"params['n']", "params['on']", "params['key']"}
    assert "params['n'] (int32)" in str(report)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: jnp.sum(jax.nn.relu(x)), [0.0, 1.0]),
        (lambda x: jnp.sum(jnp.abs(x)), [0.0, 1.0]),
        (lambda x: jnp.sum(jnp.maximum(0.0, 1 - x)), [1 - 1e-6, 0.5]),
    ],
    ids=["relu", "abs", "hinge"],
)
def test_kinks(f: Callable[[Any], Any], x: list[float]) -> None:
    assert jc.gradcheck(f, jnp.array(x)).verdict in (PASS, KINK)
    assert jc.gradcheck(f, jnp.array(x, jnp.float32)).verdict in (PASS, KINK)
    steeper = with_gradient(f, lambda x, c: 3 * c * jax.grad(f)(x) + 3 * c)
    assert jc.gradcheck(steeper, jnp.array(x)).verdict is FAIL


def constant_gradient(slope: float, x: Any, c: Any) -> Any:
    return slope * c * jnp.ones_like(x)


def test_a_gradient_outside_the_one_sided_slopes_of_a_kink_fails() -> None:
    for slope, verdict in ((-0.01, FAIL), (0.0, KINK), (0.5, KINK), (1.0, KINK), (1.01, FAIL)):
        f = with_gradient(lambda x: jnp.sum(jax.nn.relu(x)), functools.partial(constant_gradient, slope))
        assert jc.gradcheck(f, jnp.zeros(1)).verdict is verdict, slope


def test_a_few_kinks_among_a_million_are_set_aside() -> None:
    x = million().at[3, 7].set(0).at[900, 1].set(0)
    report = jc.gradcheck(lambda x: jnp.sum(jax.nn.relu(x)), x)
    assert report.verdict is KINK
    (said,) = [note for note in report.notes if "at a kink" in note]
    assert int(said.split()[0]) in (2, 3, 4)  # those two, and perhaps one that is almost there


# The other verdicts.


def test_a_function_that_differs_each_time() -> None:
    rng = np.random.default_rng(0)
    assert jc.gradcheck(lambda x: jnp.sum(x**2) * rng.normal(), X).verdict is Verdict.NONDETERMINISTIC


def test_a_stochastic_function_takes_its_key() -> None:
    def dropout(x: Any, key: Any) -> Any:
        return jnp.sum(jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x**2, 0))

    assert jc.gradcheck(dropout, X, jax.random.key(0)).verdict is PASS
    with jax.enable_x64(False):  # where the draw in float64 is another one
        assert jc.gradcheck(dropout, jnp.asarray(X, jnp.float32), jax.random.key(0)).verdict in (PASS, INCONCLUSIVE)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: jnp.sum(jnp.log(x)), -X),
        (lambda x: jnp.sum(jnp.sqrt(x)), 0 * X),
        (jnp.linalg.norm, 0 * X),
        (sum_of_squares, X.at[3].set(jnp.nan)),
        (lambda x: jnp.sum(jnp.exp(x.astype(jnp.float32))), X.at[3].set(89.0)),
    ],
    ids=["nan", "infinite gradient", "nan gradient", "nan at the point", "overflow"],
)
def test_not_finite(f: Callable[[Any], Any], x: Any) -> None:
    assert jc.gradcheck(f, x).verdict is NONFINITE


def test_where_the_gradient_is_not_finite() -> None:
    (leaf,) = jc.gradcheck(lambda p: jnp.sum(jnp.sqrt(p["w"])), {"w": jnp.ones((2, 3)).at[1, 2].set(0)}).leaves
    assert (leaf.path, leaf.worst.index, leaf.wrong) == ("params['w']", (1, 2), 1)


def test_a_constant_tests_nothing() -> None:
    report = jc.gradcheck(lambda x: 3.0 + 0 * jnp.sum(x), X)
    assert report.verdict is CONSTANT
    assert not report.ok
    unused = jc.gradcheck(lambda p: jnp.sum(p["a"] ** 2), {"a": X, "b": X})
    assert unused.ok
    assert [leaf.verdict for leaf in unused.leaves] == [PASS, CONSTANT]
    assert jc.gradcheck(lambda x: jnp.sum(jax.lax.stop_gradient(x) ** 2), X).verdict is FAIL


def test_what_cannot_be_told_is_not_passed() -> None:
    kinks_everywhere = jc.gradcheck(lambda x: jnp.sum(jnp.abs(x) + x), jnp.zeros(20_000))
    assert kinks_everywhere.verdict is INCONCLUSIVE
    noise = jc.gradcheck(lambda x: 1e9 + 1e-6 * jnp.sum(jnp.sin(x)), X)
    assert noise.verdict in (INCONCLUSIVE, CONSTANT)
    lost = jc.gradcheck(lambda x: jnp.sum(jnp.sin(1e4 * x)), jnp.asarray(X, jnp.float32))
    assert lost.verdict in (PASS, INCONCLUSIVE)  # right, but for the digits that float32 loses in its argument
    assert lost.verdict is PASS or any("right in float64" in note for note in lost.notes)


def test_compiled_and_plain_that_differ() -> None:
    def f(x: Any) -> Any:
        return jnp.sum(x**2) * (1.0 if isinstance(x, jax.core.Tracer) else 1.1)

    assert jc.gradcheck(f, X).verdict is FAIL


def test_forward_and_reverse_that_differ() -> None:
    report = jc.gradcheck(lambda x: jnp.sum(linear_with_wrong_tangent(x)), X)
    assert report.verdict is FAIL
    assert next(row for row in report.consistency if "forward" in row.name).verdict is FAIL


def test_what_is_not_a_number_when_compiled_agrees_with_nothing() -> None:
    def f(x: Any) -> Any:
        return jnp.sum(x**2) + (jnp.nan if isinstance(x, jax.core.Tracer) else 0.0)

    assert not jc.gradcheck(f, X).ok
    report = jc.gradcheck(f, X, grad_fn=lambda x: 2 * x)
    assert not report.ok


def test_a_plain_function_is_let_go_after_its_check() -> None:
    def f(x: Any) -> Any:
        return sum_of_sines(x)

    alive = weakref.ref(f)
    assert jc.gradcheck(f, X).ok
    del f
    gc.collect()
    assert alive() is None


def linear_with_wrong_tangent(x: Any) -> Any:
    @jax.custom_jvp
    def f(x: Any) -> Any:
        return 3 * x

    def tangent(primals: Any, tangents: Any) -> Any:
        (x,), (t,) = primals, tangents
        dx = jax.custom_derivatives.linear_call(lambda r, t: 3.01 * t, lambda r, t: 3 * t, (), t)
        return f(x), dx

    f.defjvp(tangent)
    return f(x)


# Where it is wrong.


@pytest.mark.parametrize("places", [[123_456], list(range(7, 1_000_000, 100_000))], ids=["one", "ten"])
def test_wrong_entries_among_a_million_are_found(places: list[int]) -> None:
    report = jc.gradcheck(sines_with_wrong(jnp.array(places)), million())
    assert report.verdict is FAIL
    assert sorted(entry.index for entry in report.wrong) == [divmod(place, 1000) for place in places]
    assert {entry.path for entry in report.wrong} == {"params"}
    (found,) = [note for note in report.notes if "bisection" in note]
    evaluations = int(found.split("in ")[1].split()[0])
    assert evaluations <= max(100, 1.2 * 2 * len(places) * np.log2(1e6 / len(places)))


def test_a_whole_leaf_among_others_is_named() -> None:
    def f(p: Any) -> Any:
        return sum_of_sines(p["a"]) + sum_of_squares(p["b"]["c"])

    wrong = with_gradient(f, lambda p, c: {"a": c * jnp.cos(p["a"]), "b": {"c": 3 * c * p["b"]["c"]}})
    report = jc.gradcheck(wrong, {"a": million(), "b": {"c": million()[:100]}})
    assert report.verdict is FAIL
    assert [(leaf.path, leaf.verdict, leaf.wrong) for leaf in report.leaves] == [
        ("params['a']", PASS, 0),
        ("params['b']['c']", FAIL, 100_000),
    ]


def test_a_small_error_in_one_entry_of_a_jacobian() -> None:
    W = jax.random.normal(jax.random.key(1), (4, 3))

    def gradient(x: Any, c: Any) -> Any:
        return (W.at[2, 1].mul(1 + 1e-3)).T @ c

    report = jc.gradcheck(with_gradient(lambda x: W @ x, gradient), jnp.ones(3))
    assert report.verdict is FAIL
    assert [entry.place for entry in report.wrong] == ["d f[2] / d params[1]"]
    assert report.wrong[0].relative_error == pytest.approx(1e-3, rel=0.01)


def test_no_error_hides_behind_another_of_the_opposite_sign() -> None:
    for seed in range(20):
        f = with_gradient(lambda x: jnp.sum(x), lambda x, c: jnp.ones_like(x).at[:2].set(0))
        assert jc.gradcheck(f, X, mode="directional", num_directions=1, key=jax.random.key(seed)).verdict is FAIL


def test_sparse_mode_says_what_it_may_miss() -> None:
    report = jc.gradcheck(sum_of_sines, jnp.linspace(0.1, 1.0, 400), mode="sparse", num_checks=100)
    assert report.ok
    (note,) = [note for note in report.notes if "probability" in note]
    checked = report.leaves[0].checked
    assert 100 <= checked <= 102
    assert f"{1 - checked / 400:.2%}" in note


def test_a_mended_helper_is_seen() -> None:
    scale = [1.01]
    helper = with_gradient(sum_of_sines, lambda x, c: c * scale[0] * jnp.cos(x))

    def f(x: Any) -> Any:
        return helper(x)

    assert jc.gradcheck(f, X).verdict is FAIL
    scale[0] = 1.0
    assert jc.gradcheck(f, X).verdict is PASS


# What a function may use.


def scanned(x: Any) -> Any:
    return jax.lax.scan(lambda c, x: (jnp.tanh(c + x), c * x), jnp.zeros((), x.dtype) + 0.3, x)[1]


def looped(x: Any) -> Any:
    return jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (jnp.sin(c[0]), c[1] + 1), (x, 0))[0]


def shifted_logsumexp(x: Any) -> Any:
    largest = jax.lax.stop_gradient(jnp.max(x))
    return jnp.log(jnp.sum(jnp.exp(x - largest))) + largest


def branching(x: Any) -> Any:
    return jnp.sum(x**2) if x[0] > 0 else jnp.sum(x)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "jitted": jax.jit(sum_of_sines),
    "vmapped": jax.vmap(jnp.sin),
    "custom_vjp": with_gradient(sum_of_sines, lambda x, c: c * jnp.cos(x)),
    "custom_jvp": with_tangent(jnp.sin, lambda x, t: t * jnp.cos(x)),
    "stop_gradient": shifted_logsumexp,
    "scan": scanned,
    "while_loop": looped,
    "Python branch": branching,
    "NumPy constant": lambda x: x @ np.arange(7).astype(x.dtype),
    "tree": lambda x: {"a": jnp.sin(x), "b": [x[0] * x[1]]},
    "complex inside": lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x.astype(complex))) ** 2),
    "not vectorisable": lambda x: jnp.sum(jax.pure_callback(np.sin, x, jax.lax.stop_gradient(x)) * 0 + jnp.sin(x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    f = FUNCTIONS[name]
    assert jc.gradcheck(f, X).verdict is PASS
    assert jc.gradcheck(f, jnp.asarray(X, jnp.float32)).ok


def test_a_while_loop_with_a_wrong_tangent() -> None:
    def f(x: Any) -> Any:
        sine = with_tangent(jnp.sin, lambda x, t: t * jnp.cos(x) * 1.001)
        return jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (sine(c[0]), c[1] + 1), (x, 0))[0]

    assert jc.gradcheck(f, X).verdict is FAIL


def test_functions_that_need_a_key_word_and_more_arguments() -> None:
    def f(scale: Any, x: Any, power: int, name: str) -> tuple[Any, str]:
        return scale * jnp.sum(x**power), name

    assert jc.gradcheck(f, 2.0, X, 3, "cubes", has_aux=True).ok
    report = jc.gradcheck(f, jnp.float64(2.0), X, 3, "cubes", has_aux=True, argnums=(1, 0))
    assert report.ok
    assert [leaf.path for leaf in report.leaves] == ["args[0]", "args[1]"]


def test_complex_parameters_follow_the_convention_of_jax() -> None:
    z = jnp.array([1 + 2j, 3 - 1j])

    def f(z: Any) -> Any:
        return jnp.sum(jnp.abs(z) ** 2 * jnp.real(z))

    assert jc.gradcheck(f, z).verdict is PASS
    assert jc.gradgradcheck(f, z).verdict is PASS
    conjugated = with_gradient(f, lambda z, c: c.astype(complex) * jnp.conj(jax.grad(f)(z)))
    report = jc.gradcheck(conjugated, z)
    assert report.verdict is FAIL
    assert {entry.path for entry in report.wrong} == {"params.imag"}


def test_a_gradient_in_numpy_of_a_function_in_numpy() -> None:
    x = np.linspace(0.1, 1.0, 5)
    assert jc.gradcheck(lambda x: np.sum(np.asarray(x) ** 2), x, grad_fn=lambda x: 2 * np.asarray(x)).verdict is PASS
    assert jc.gradcheck(lambda x: np.sum(np.asarray(x) ** 2), x, grad_fn=lambda x: 3 * np.asarray(x)).verdict is FAIL


def test_f_keeps_the_dtype_of_the_user() -> None:
    seen = set()

    def f(x: Any) -> Any:
        seen.add((jnp.dtype(x.dtype).name, isinstance(x, jax.core.Tracer)))
        return jnp.sum(x**2)

    x = jnp.asarray(X, jnp.bfloat16)
    before = np.array(x)
    assert jc.gradcheck(f, x).ok
    assert ("bfloat16", False) in seen
    assert ("bfloat16", True) in seen
    assert all(name == "bfloat16" or traced for name, traced in seen)
    np.testing.assert_array_equal(np.array(x), before)


def test_sharded_parameters() -> None:
    code = """
import jax, jax.numpy as jnp, numpy as np, jaxopt_course as jc
assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
W = jax.device_put(jnp.arange(64.0).reshape(16, 4) / 64, split)
f = jax.jit(lambda W: jnp.mean(jnp.tanh(W @ jnp.ones(4)) ** 2))
for mode in ("dense", "directional"):
    report = jc.gradcheck(f, W, mode=mode)
    assert report.ok, report
wrong = jax.custom_vjp(f)
wrong.defvjp(lambda W: (f(W), W), lambda W, c: (c * jax.grad(f)(W).at[9, 2].set(0),))
report = jc.gradcheck(wrong, W, mode="directional")
assert [entry.index for entry in report.wrong] == [(9, 2)], report
assert jc.gradgradcheck(f, W[:2]).ok
print("done")
"""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PATH": "", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert ran.stdout.strip() == "done", ran.stderr[-2000:]


# Cost.


def test_how_often_f_is_traced_does_not_depend_on_how_much_there_is_to_check() -> None:
    counts = []
    for n in (10, 7840):
        traces: list[int] = []

        @jax.jit
        def f(x: Any, traces: list[int] = traces) -> Any:
            traces.append(1)
            return sum_of_sines(x)

        x = jnp.linspace(0.1, 1.0, n)
        assert jc.gradcheck(f, x).ok
        counts.append(len(traces))
        assert jc.gradcheck(f, x).ok
        assert len(traces) == counts[-1]  # a jitted f is compiled once for all checks
    assert counts[0] == counts[1] == 1


def test_the_memory_of_a_directional_check_of_ten_million() -> None:
    n = 10_000_000
    with jax.enable_x64(False):
        args = split_arguments("test", sum_of_sines, (jnp.linspace(0.1, 1.0, n, dtype=jnp.float32),), 0, False)
        weights = random_weights(args, np.random.default_rng(0))
        point = numerical.Point(args.moving, args.data, weights, args.sizes, None)
        used: list[Any] = []
        with arithmetic(True):
            value: Any = numerical.compiled(numerical.value_at, args, True)
            used.append(value.lower(point, (np.int32(0), np.int32(n), 1e-3)).compile())
        for modes in np.eye(3, dtype=bool).tolist():
            run: Any = numerical.compiled(analytic.linearise, args, False, analytic.Modes(*modes))
            point = point._replace(cotangents=[np.ones(1, np.float32)])
            used.append(run.lower(point).compile())
        held = n  # the weights of a second direction
        for program in used:
            memory = program.memory_analysis()
            total = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes + held
            assert total <= 4 * 4 * n


def sleepy_sines(x: Any) -> Any:
    def wait(_: Any) -> Any:
        time.sleep(0.01)
        return np.zeros((), x.dtype)

    waited = jax.pure_callback(wait, jax.ShapeDtypeStruct((), x.dtype), x[0], vmap_method="sequential")
    return sum_of_sines(x) + jax.lax.stop_gradient(waited)


def test_a_budget_of_evaluations() -> None:
    x = jnp.linspace(0.1, 1.0, 300)
    report = jc.gradcheck(sum_of_sines, x, max_evals=200)
    assert report.evaluations <= 210
    assert report.verdict is INCONCLUSIVE
    (leaf,) = report.leaves
    assert 0 < leaf.speaks_for < 300
    assert leaf.speaks_for + leaf.inconclusive == 300
    assert any("not reached" in note and 'mode="directional"' in note for note in report.notes)
    wrong = jc.gradcheck(sines_with_wrong(jnp.arange(300)), x, max_evals=200)
    assert wrong.verdict is FAIL


def test_a_slow_function_is_checked_within_the_default_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerical, "PATIENCE", 3.0)
    f = with_gradient(sleepy_sines, lambda x, c: c * jnp.cos(x))
    report = jc.gradcheck(f, jnp.linspace(0.1, 1.0, 300))
    assert (report.verdict, report.mode) == (PASS, "directional")
    assert report.evaluations < 100
    assert "too slow" in report.reason


# The report.


def test_a_pass_says_how_many_entries_it_speaks_for() -> None:
    def f(p: Any) -> Any:
        return jnp.nanmean(p["x"] ** 2) + 1e-22 * p["y"][0] + p["y"][1] ** 2 + 0 * jnp.sum(p["unused"])

    x = jnp.array([1.0, jnp.nan, 2.0, jnp.nan])
    report = jc.gradcheck(jax.jit(f), {"x": x, "y": jnp.ones(3), "unused": jnp.ones(2)})
    leaves = {leaf.path: leaf for leaf in report.leaves}
    assert report.verdict is PASS
    assert (leaves["params['x']"].speaks_for, leaves["params['x']"].held) == (2, 2)
    assert leaves["params['y']"].speaks_for + leaves["params['y']"].inconclusive == 2
    assert leaves["params['y']"].unmoved == 1
    assert leaves["params['unused']"].verdict is CONSTANT
    assert any("held fixed" in note for note in report.notes)
    assert "2 of 4" in str(report)
    said = report.to_dict()["leaves"]
    assert {leaf["path"]: leaf["speaks_for"] for leaf in said}["params['x']"] == 2


def test_the_report_is_a_tree_a_table_and_a_dictionary() -> None:
    report = jc.gradcheck(sines_with_wrong(jnp.array([2])), X)
    assert isinstance(report, jc.GradientReport)
    doubled = jax.tree.map(lambda number: 2 * number, report)
    assert doubled.evaluations == 2 * report.evaluations
    assert doubled.leaves[0].path == "params"
    said = json.loads(json.dumps(report.to_dict()))
    assert said["verdict"] == "FAIL"
    assert said["ok"] is False
    assert said["wrong"][0]["index"] == [2]
    with pytest.raises(GradientCheckError, match=r"params\[2\]") as caught:
        report.raise_if_failed()
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report is report
    good = jc.gradcheck(sum_of_sines, X)
    assert good.raise_if_failed() is good


def test_the_report_says_which_mode_and_why() -> None:
    assert "few enough to check each" in str(jc.gradcheck(sum_of_sines, X))
    assert "more than 10,000" in str(jc.gradcheck(sum_of_sines, jnp.linspace(0.1, 1.0, 10_001)))
    assert "as requested" in str(jc.gradcheck(sum_of_sines, X, mode="sparse"))


# Wrong input.


def total(p: Any) -> Any:
    return jnp.sum(p["w"])


WRONG_INPUT: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: jc.gradcheck(jnp.sum, jnp.arange(3)), TypeError, r"nothing to differentiate.*params \(int64\)"),
    (lambda: jc.gradcheck(jnp.sum, {}), TypeError, "it is empty"),
    (lambda: jc.gradcheck(lambda x: x > 0, X), TypeError, "returns nothing that can be differentiated"),
    (lambda: jc.gradcheck(jnp.sin, X, grad_fn=jnp.cos), ValueError, r"one real number.*float64\[7\]"),
    (lambda: jc.gradcheck(jnp.sum, X, grad_fn=lambda x: x[:3]), ValueError, r"\(3,\) for params of shape \(7,\)"),
    (lambda: jc.gradcheck(total, {"w": X}, grad_fn=lambda p: {"v": X}), ValueError, r"no gradient for params\['w'\]"),
    (lambda: jc.gradcheck(total, {"w": X}, grad_fn=lambda p: p | {"v": X}), ValueError, "which params does not have"),
    (lambda: jc.gradcheck(jnp.sum, X, grad_fn=lambda x: jnp.arange(7)), TypeError, "expected floating point"),
    (lambda: jc.gradcheck(jnp.sum, X, mode="fast"), ValueError, "mode must be one of auto, dense"),
    (lambda: jc.gradcheck(jnp.sum, X, rtol=-1.0), ValueError, "relative error"),
    (lambda: jc.gradcheck(jnp.sum, X, num_checks=0), ValueError, "at least one"),
    (lambda: jc.gradcheck(jnp.sum, X, argnums=1), ValueError, "argnums = 1, but f was given 1"),
]


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(("call", "error", "said"), WRONG_INPUT, ids=range(len(WRONG_INPUT)))
def test_wrong_input(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_an_objective_that_raises_says_so() -> None:
    def f(x: Any) -> Any:
        raise KeyError("bias")

    with pytest.raises(KeyError, match="bias") as caught:
        jc.gradcheck(f, X)
    assert any("raised by f itself" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="while_loop") as refused:
        jc.gradgradcheck(looped, X)
    assert any("reverse mode" in note for note in refused.value.__notes__)


# Second order.


def test_a_right_hessian_of_everything() -> None:
    params = {"W": jnp.arange(6.0).reshape(2, 3) + 0.3, "b": jnp.ones(2), "n": jnp.int32(2)}
    report = jc.gradgradcheck(lambda p: jnp.sum(jnp.sin(p["W"]) ** 2 * p["b"][0]) + jnp.sum(p["b"] ** 3), params)
    assert report.verdict is PASS
    assert len(report.consistency) >= 5
    assert {row.verdict for row in report.consistency} <= {PASS, INCONCLUSIVE}
    assert jc.gradgradcheck(lambda x: jnp.sum(3 * x), X).verdict is CONSTANT


def test_an_asymmetric_hessian() -> None:
    skew = jnp.zeros((7, 7)).at[0, 1].set(1e-2).at[1, 0].set(-1e-2)
    gradient = with_tangent(jax.grad(sum_of_sines), lambda x, t: -jnp.sin(x) * t + skew @ t)
    report = jc.gradgradcheck(with_tangent(sum_of_sines, lambda x, t: jnp.vdot(gradient(x), t)), X)
    assert report.verdict is FAIL
    assert next(row for row in report.consistency if "symmetry" in row.name).verdict is FAIL


def test_a_consistent_hessian_of_a_wrong_gradient() -> None:
    f = with_tangent(sum_of_sines, lambda x, t: jnp.vdot(jnp.cos(x) + 0.1, t))
    report = jc.gradgradcheck(f, X)
    assert report.verdict is FAIL
    assert next(row for row in report.consistency if row.name == "gradient against f").verdict is FAIL
