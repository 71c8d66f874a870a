"""Parity: equal rules are equal, planted differences are named, and nothing is blamed that is not to blame."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.comparison import Parity, ParityReport
from jaxopt_course.comparison.conventions import LIBRARIES
from tests.planted_optimizers import PAIRS, SINGLES, Adam, Momentum, Planted

STEPS = 20
RULES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
RNG = np.random.default_rng(0)
CURVATURE = 10.0 ** RNG.uniform(-3, 1, 12)
CURVATURE[0] = 0  # a dead feature
NOISE = RNG.standard_normal((50, 12)) * CURVATURE
START = RNG.standard_normal(12)


def bowl(w: Any, noise: Any) -> Any:
    curvature = jnp.asarray(CURVATURE, w.dtype)
    return jnp.sum(0.5 * curvature * w * w + noise * w)


def compare(a: Any, b: Any, **options: Any) -> ParityReport:
    return jc.parity(a, b, bowl, START, list(jnp.asarray(NOISE)), **{"num_steps": STEPS, **options})


def blamed(report: ParityReport) -> list[set[str]]:
    return [set(cause.groups) for cause in report.causes]


# The conventions themselves


def stock(rule: str, library: str) -> Any:
    """The library's own, where there is one; Keras is proven equal to its convention elsewhere."""
    convention = jc.conventions.get(rule, library).with_values(learning_rate=1e-2)
    if library == "torch":
        torch = pytest.importorskip("torch")
        call = str(convention.calls["torch"]).replace("(", "(w, ", 1)
        return jc.torch_optimizer(lambda w: eval(call, {"torch": torch, "w": w}))
    return eval(str(convention.calls["optax"]), {"optax": optax}) if library == "optax" else convention.make()


EPS, START_AT, SECOND, DECAY = "epsilon", "initial accumulator", "second moment", "weight decay"
EXPECTED: dict[str, dict[tuple[str, str], set[str]]] = {
    "adagrad": {
        ("lecture", "optax"): {START_AT, EPS},
        ("lecture", "torch"): {EPS},
        ("lecture", "keras"): {START_AT, EPS},
        ("optax", "torch"): {START_AT, EPS},
        ("torch", "keras"): {START_AT, EPS},
    },
    "rmsprop": {
        ("lecture", "optax"): {SECOND, EPS},
        ("lecture", "torch"): {EPS},
        ("lecture", "keras"): {SECOND, EPS},
        ("optax", "torch"): {SECOND, EPS},
        ("optax", "keras"): {EPS},
        ("torch", "keras"): {SECOND, EPS},
    },
    "adam": {pair: {EPS} for pair in itertools.combinations(LIBRARIES, 2) if pair != ("optax", "torch")},
    "adamw": {
        ("lecture", "optax"): {EPS, DECAY},
        ("lecture", "torch"): {EPS},
        ("lecture", "keras"): {EPS, DECAY},
        ("optax", "torch"): {DECAY},
        ("optax", "keras"): {EPS, DECAY},
        ("torch", "keras"): {EPS, DECAY},
    },
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pair", list(itertools.combinations(LIBRARIES, 2)), ids="-".join)
def test_every_pair_of_libraries(rule: str, pair: tuple[str, str]) -> None:
    report = compare(stock(rule, pair[0]), stock(rule, pair[1]), names=pair)
    expected = EXPECTED.get(rule, {}).get(pair)
    if expected is None:
        assert report.verdict is Parity.EQUAL, report
        assert report.ulps < 64
        assert "the same rule" in str(report)
    else:
        assert report.verdict is Parity.DIFFERENT, report
        assert blamed(report) == [expected], report
        assert report.certain
        assert report.removed is not None
        assert report.removed.max() < 1e-12 < report.shared.max()


@pytest.mark.parametrize("rule", ["momentum", "nesterov"])
def test_where_the_learning_rate_stands_shows_under_a_schedule(rule: str) -> None:
    rate = lambda count: 0.05 / (1.0 + count) ** 0.7  # noqa: E731
    lecture, keras = (jc.conventions.get(rule, name).make(learning_rate=rate) for name in ("lecture", "keras"))
    report = compare(lecture, keras)
    assert blamed(report) == [{"learning rate's place"}]
    assert report.certain
    assert compare(lecture, stock_momentum(rate, rule == "nesterov")).verdict is Parity.EQUAL


def stock_momentum(rate: Any, nesterov: bool) -> Any:
    return optax.sgd(rate, momentum=0.9, nesterov=nesterov)


def test_a_geometric_schedule_has_two_explanations() -> None:
    """0.9 ** t outside a velocity of 0.9 is 0.9 ** t inside one of 0.81, and neither is claimed for certain."""
    rate = lambda count: 1e-2 * 0.9**count  # noqa: E731
    lecture, keras = (jc.conventions.get("momentum", name).make(learning_rate=rate) for name in ("lecture", "keras"))
    report = compare(lecture, keras)
    assert {"learning rate's place"} in blamed(report)
    assert {"momentum"} in blamed(report)
    assert not report.certain


# Planted differences


def planted(case: Planted) -> tuple[ParityReport, set[str]]:
    make, common, changed, groups = case
    return compare(make(**common), make(**(common | changed))), groups


def name_of(case: Planted) -> str:
    make, common, changed, _ = case
    shown = ",".join(f"{name}={value}" for name, value in (common | changed).items())
    return f"{make.__name__}-{shown}".replace(" ", "")


@pytest.mark.parametrize("case", SINGLES, ids=name_of)
def test_planted_difference(case: Planted) -> None:
    report, groups = planted(case)
    assert report.verdict is Parity.DIFFERENT
    assert blamed(report) == [groups], report
    assert report.certain


@pytest.mark.parametrize("case", PAIRS, ids=name_of)
def test_planted_pair(case: Planted) -> None:
    report, groups = planted(case)
    assert report.verdict is Parity.DIFFERENT
    assert blamed(report) == [groups], report
    assert report.certain


def test_there_are_enough_of_them() -> None:
    assert len(SINGLES) >= 40
    assert len(PAIRS) >= 20
    assert {case[0] for case in SINGLES} == {case[0] for case in PAIRS} == {Adam, Momentum}


@pytest.mark.parametrize("make", [Adam, Momentum])
def test_nothing_planted(make: Callable[..., Any]) -> None:
    twin = optax.adam(1e-2) if make is Adam else optax.sgd(1e-2, momentum=0.9)
    report = compare(make(), twin)
    assert report.verdict is Parity.EQUAL_HERE  # its code is NumPy's: nothing says that it stays what it is
    assert report.identified == (True, True)
    assert not report.causes
    assert "a: it is Python code that JAX cannot trace" in str(report)


# What no known convention explains


class Odd(Adam):
    """An Adam that does something nobody has a name for."""

    def __init__(self, what: Callable[[np.ndarray, np.ndarray, int], np.ndarray]):
        super().__init__()
        self.what = what

    def __call__(self, params: Any, grads: Any, step: int) -> np.ndarray:
        w = np.asarray(params)
        return w + self.what(super().__call__(w, grads, step) - w, w, step)


ODD: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "clips its updates": lambda u, w, t: np.clip(u, -5e-3, 5e-3),
    "forgets an entry": lambda u, w, t: np.where(np.arange(len(u)) == len(u) - 1, 0.0, u),
    "doubles far away": lambda u, w, t: np.where(np.abs(w) > 1, 2 * u, u),
    "a cubic pull": lambda u, w, t: u - 1e-3 * w**3,
    "a ripple": lambda u, w, t: u * (1 + 1e-6 * np.sin(1e3 * w)),
    "a constant drift": lambda u, w, t: u + 1e-5,
    "normed": lambda u, w, t: u / max(np.linalg.norm(u), 1e-30) * 1e-2,
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_unknown_is_not_explained(what: str) -> None:
    report = compare(Odd(ODD[what]), optax.adam(1e-2), names=("odd", "adam"))
    assert report.verdict is Parity.DIFFERENT
    assert not report.causes
    assert report.identified == (False, True)
    assert "not explained by the known differences: odd is no rule that we know" in str(report)


@pytest.mark.parametrize("name", ["lion", "adabelief", "yogi", "adamax", "adan", "lamb", "adadelta", "signum"])
def test_other_rules_are_not_explained(name: str) -> None:
    report = compare(optax.adam(1e-2), getattr(optax, name)(1e-2), num_steps=10)
    assert report.verdict is Parity.DIFFERENT
    assert not report.causes


def test_a_rule_that_changes_late_is_seen() -> None:
    late = optax.adam(lambda count: jnp.where(count < 15, 1e-2, 2e-2))
    report = compare(optax.adam(1e-2), late)
    assert blamed(report) == [{"learning rate"}]
    assert report.first_difference is not None
    assert report.first_difference.step == 16


# Precisions


NEAR_MISSES = {
    "adagrad": (jc.adagrad(1e-2), optax.adagrad(1e-2), {START_AT, EPS}),
    "adagrad from 0": (jc.adagrad(1e-2), optax.adagrad(1e-2, 0.0, eps=1e-7), {EPS}),
    "adagrad from 0, eps squared": (jc.adagrad(1e-2), optax.adagrad(1e-2, 0.0, eps=1e-14), {EPS}),
    "rmsprop": (jc.rmsprop(1e-2), optax.rmsprop(1e-2, decay=0.99, eps=1e-7), {EPS}),
    "rmsprop, eps squared": (jc.rmsprop(1e-2), optax.rmsprop(1e-2, decay=0.99, eps=1e-14), {EPS}),
    "adam": (jc.adam(1e-2), optax.adam(1e-2), {EPS}),
    "adam, eps in the root": (jc.adam(1e-2), optax.adam(1e-2, eps=0.0, eps_root=1e-14), {EPS}),
    "adam, hat": (jc.adam(1e-2), jc.conventions.get("adam", "keras").make(learning_rate=1e-2), {EPS}),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_told_from_equal(case: str, dtype: Any) -> None:
    """In float32 the path may not show it; then that is what is said, and the rules are still told apart."""
    a, b, groups = NEAR_MISSES[case]
    report = jc.parity(a, b, bowl, START.astype(dtype), list(jnp.asarray(NOISE, dtype)), num_steps=STEPS)
    assert blamed(report) == [groups]
    if dtype is np.float64:
        assert report.verdict is Parity.DIFFERENT
        assert report.certain
    else:
        hidden = report.shared.max() <= report.rtol
        assert report.verdict is (Parity.EQUAL_HERE if hidden else Parity.DIFFERENT)
        assert ("does not show here" in str(report)) == hidden


def test_equal_in_float32_too() -> None:
    report = jc.parity(
        jc.adam(1e-2, eps=1e-8), optax.adam(1e-2), bowl, START.astype(np.float32), list(jnp.asarray(NOISE, np.float32))
    )
    assert report.verdict is Parity.EQUAL
    assert report.dtype == "float32"


def test_float64_arrays_where_jax_computes_in_float32() -> None:
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        report = jc.parity(optax.adam(1e-2), jc.adam(1e-2, eps=1e-8), lambda w: jnp.sum(w * w), np.array([1.0, -2.0]))
    assert report.verdict is Parity.EQUAL, str(report)
    assert report.dtype == "float32"


HALVING = optax.exponential_decay(0.1, 10, 0.5)  # optax computes it in float32, and XLA rounds it in two ways


@pytest.mark.parametrize("num_steps", [12, 60])
def test_the_rounding_of_a_schedule_is_no_difference(num_steps: int) -> None:
    def not_compiled(w: Any, g: Any, step: int) -> Any:
        return w - np.float64(HALVING(jnp.int32(step))) * g

    report = compare(optax.sgd(HALVING), jc.sgd(HALVING), num_steps=num_steps)
    assert report.verdict is Parity.EQUAL, str(report)
    report = compare(optax.sgd(HALVING), not_compiled, num_steps=num_steps)
    assert (report.first_difference, report.causes, report.identified) == (None, (), (True, True)), str(report)
    shifted = optax.exponential_decay(0.1 * (1 + 1e-6), 10, 0.5)
    report = compare(optax.sgd(HALVING), jc.sgd(shifted), num_steps=num_steps)
    assert report.verdict is Parity.DIFFERENT
    assert blamed(report) == [{"learning rate"}]


G0 = (CURVATURE * START + NOISE[0])[3]  # an entry of the first gradient
TRACED: list[bool] = []  # whether each call was a trace


def noted(grads: Any, state: Any, params: Any = None) -> Any:
    TRACED.append(isinstance(grads, jax.core.Tracer))
    return jax.tree.map(lambda g: -0.1 * g, grads), state


def by_value(grads: Any, state: Any, params: Any = None) -> Any:
    rate = 0.1 if float(jnp.max(jnp.abs(grads))) < 1e9 else 0.2
    return jax.tree.map(lambda g: -rate * g, grads), state


def test_all_steps_are_compiled_or_none() -> None:
    """Not after some steps, nor after some time: the two differ by rounding."""
    stateless = partial(optax.GradientTransformation, lambda params: optax.EmptyState())
    assert compare(stateless(noted), optax.sgd(0.1), num_steps=100).verdict is Parity.EQUAL
    assert 0 < sum(TRACED) <= len(TRACED) < 12  # hundreds of steps, and a few to inspect the program
    report = compare(stateless(by_value), optax.sgd(0.1), num_steps=100)  # JAX cannot trace it
    assert report.first_difference is None
    assert report.verdict is Parity.EQUAL_HERE


def test_why_an_optimizer_is_unknown() -> None:
    def refusing(grads: Any, state: Any, params: Any = None) -> Any:
        if float(jnp.max(jnp.abs(grads))) > 1e3:
            raise ValueError("a gradient beyond 1000")
        return -0.1 * grads, state

    stateless = partial(optax.GradientTransformation, lambda params: optax.EmptyState())
    exploding = stateless(lambda g, state, params=None: (-0.1 * g / (jnp.abs(g) > 0), state))
    causes = {
        "on probe gradients it raises ValueError: a gradient beyond 1000": stateless(refusing),
        "its updates on probe gradients are not finite": exploding,
        "are those of no combination of known conventions": stateless(lambda g, s, params=None: (-0.1 * g**3, s)),
        "it does not follow here the rule": stateless(lambda g, s, params=None: (-0.1 * g * (1.0 + (g == G0)), s)),
    }
    for said, optimizer in causes.items():
        report = compare(optimizer, optax.sgd(0.1), names=("mine", "optax"))
        assert said in report.why_unknown[0]
        assert f"mine: {report.why_unknown[0]}" in str(report)
        assert report.identified == (False, True)
        assert report.verdict is not Parity.EQUAL


def test_a_transformation_that_remembers_is_refused() -> None:
    counts = itertools.count(1)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        rate = 0.1 / next(counts)
        return jax.tree.map(lambda g: -rate * g, grads), state

    with pytest.raises(ValueError, match="mine remembers earlier runs"):
        compare(
            optax.GradientTransformation(lambda params: optax.EmptyState(), update),
            optax.sgd(0.1),
            names=("mine", "optax"),
        )


def test_moments_in_sixteen_bits_are_blamed() -> None:
    """After one large gradient optax's second moment stays, and its steps stay small."""
    noise = list(jnp.asarray(NOISE, jnp.bfloat16).at[0].multiply(100))
    start = START.astype(jnp.bfloat16)
    report = jc.parity(jc.adam(0.1, eps=1e-8), optax.adam(0.1), bowl, start, noise * 10, num_steps=200)
    assert report.verdict is Parity.DIFFERENT
    assert blamed(report) == [{"moment dtype"}]
    assert not report.certain
    assert "float32 in a, bfloat16 in b" in str(report)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_moment_dtype_of_optax(dtype: str) -> None:
    report = compare(optax.adam(1e-2), optax.adam(1e-2, mu_dtype=dtype))
    assert blamed(report) == [{"moment dtype"}]
    assert report.certain


# What can be compared, and what is said


def test_a_tree_names_leaf_index_and_slot() -> None:
    params = {"W": np.ones((2, 3)), "b": np.ones(2)}

    def objective(p: Any) -> Any:
        return jnp.sum(jnp.array([[1.0, 2.0, 1e-6], [3.0, 1.0, 2.0]]) * p["W"]) + jnp.sum(p["b"] ** 2)

    report = jc.parity(optax.adam(1e-2), optax.adam(1e-2, eps=1e-6), objective, params)
    assert report.first_difference is not None
    assert (report.first_difference.step, report.first_difference.path, report.first_difference.slot) == (
        1,
        "['W']",
        "denominator",
    )
    assert "step 1, params['W'][0, 2], denominator: 1.01e-06 and 2e-06" in str(report)
    decayed = jc.parity(optax.adam(1e-2), optax.adamw(1e-2), objective, params)
    assert decayed.first_difference is not None
    assert decayed.first_difference.slot == "parameters"
    slower = jc.parity(optax.adam(1e-2), optax.adam(1e-2, b1=0.8), objective, params)
    assert slower.first_difference is not None
    assert slower.first_difference.slot == "first moment"


def test_functions_on_trees_and_without_batches() -> None:
    params = {"w": np.array([1.0, -2.0]), "s": np.array(0.5)}

    def objective(p: Any) -> Any:
        return jnp.sum(p["w"] ** 2) + p["s"] ** 2

    def descent(p: Any, g: Any, step: int) -> Any:
        return {name: p[name] - 0.1 * g[name] for name in ("w", "s")}

    assert jc.parity(descent, optax.sgd(0.1), objective, params, num_steps=5).verdict is Parity.EQUAL
    report = jc.parity(descent, optax.sgd(0.1, momentum=0.5), objective, params, num_steps=5)
    assert blamed(report) == [{"momentum"}]
    assert report.first_difference is not None
    assert report.first_difference.step == 2


def test_a_function_that_remembers_is_refused() -> None:
    calls = []

    def remembers(w: Any, g: Any, step: int) -> Any:
        calls.append(step)
        return w - 0.1 / len(calls) * g

    with pytest.raises(ValueError, match="mine remembers earlier runs"):
        compare(remembers, optax.sgd(0.1), names=("mine", "optax"))


def test_torch_adapter_keeps_dtypes() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (np.float64, np.float32, jnp.bfloat16):
        adapter = jc.torch_optimizer(lambda w: torch.optim.Adam(w, lr=0.1))
        w = {"a": np.ones(3, dtype)}
        new, state, updates = adapter.step(w, adapter.start(w), w, 0)
        assert new["a"].dtype == updates["a"].dtype == dtype
        np.testing.assert_allclose(new["a"].astype(float), 0.9, rtol=1e-2)
        assert {"first moment", "second moment", "step count"} <= adapter.slots(state).keys()


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="an optimizer is an optax transformation"):
        compare(optax.sgd(0.1), "adam")
    with pytest.raises(TypeError, match="must be floating point"):
        jc.parity(optax.sgd(0.1), optax.sgd(0.1), jnp.sum, np.arange(3))


def test_many_leaves_and_odd_shapes() -> None:
    params = {"empty": np.zeros((0, 3)), "scalar": np.array(2.0), "deep": [(np.ones((2, 1, 2)),)]}

    def objective(p: Any) -> Any:
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))

    assert jc.parity(optax.adam(0.1), jc.adam(0.1, eps=1e-8), objective, params, num_steps=3).verdict is Parity.EQUAL


def test_not_finite_is_different() -> None:
    report = compare(optax.sgd(1e-2), lambda w, g, step: w / 0.0 if step == 3 else w - 1e-2 * g)
    assert report.verdict is Parity.DIFFERENT
    assert report.first_difference is not None
    assert report.first_difference.step == 4


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"num_steps": -1}, {"batches": []}])
def test_from_nothing_nothing_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one step, on at least one batch"):
        jc.parity(optax.sgd(0.1), optax.adam(0.1), lambda w, _=None: jnp.sum(w), jnp.ones(2), **options)
