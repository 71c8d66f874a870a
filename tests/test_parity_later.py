"""EQUAL means that nothing can change later; differences are judged by the scale of the path."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.comparison import Parity, ParityReport
from jaxopt_course.comparison.paths import relative_differences
from tests.tables import RULES

START = np.array([1.0, -2.0, 3.0])


def bowl(w: Any) -> Any:
    return jnp.sum(jnp.array([1.0, 0.1, 0.01], w.dtype) * w * w)


def compare(a: Any, b: Any, **options: Any) -> ParityReport:
    return jc.parity(a, b, bowl, START, **{"num_steps": 10, **options})


def switch(step: int, before: float, after: float) -> Any:
    return lambda count: jnp.where(count < step, before, after)


def made(rule: str, library: str, **given: float) -> Any:
    return jc.conventions.get(rule, library).make(learning_rate=0.1, **given)


# What can change later


PEAK = 123456


def counting_outside(where: str) -> Any:
    """Gradient descent that gets slower after 200 calls, which it counts outside its state."""
    calls, number, counter = [], 0, itertools.count()

    def in_closure() -> int:
        nonlocal number
        number += 1
        return number

    def in_list() -> int:
        calls.append(1)
        return len(calls)

    count = {"closure": in_closure, "list": in_list, "iterator": lambda: next(counter)}[where]

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rate = 0.1 if count() < 2000 else 0.01
        return jax.tree.map(lambda g: -rate * g, grads), state

    return optax.GradientTransformation(lambda _: (), update)


CHANGES: dict[str, tuple[Any, Any, str]] = {
    "at 200": (optax.sgd(0.1), optax.sgd(switch(200, 0.1, 0.01)), "b: its learning rate at step 201 is 0.01, not 0.1"),
    "at 2,000": (jc.adam(0.1), jc.adam(switch(2000, 0.1, 0.05)), "at step 2,001 is 0.05"),
    "at a million": (jc.sgd(switch(10**6, 0.1, 0.2)), optax.sgd(0.1), "a: its learning rate at step 1,000,001 is 0.2"),
    "at a billion": (optax.sgd(0.1), optax.sgd(switch(10**9, 0.1, 0.2)), "at step 1,000,000,001 is 0.2"),
    "in pieces": (
        optax.adam(0.1),
        optax.adam(optax.piecewise_constant_schedule(0.1, {31_337: 0.5})),
        "at step 31,338 is 0.05",
    ),
    "for a while": (
        optax.sgd(0.1),
        optax.sgd(lambda t: jnp.where((t >= 70_001) & (t < 70_002), 0.2, 0.1)),
        "at step 70,002 is 0.2",
    ),
    "every 50,000": (
        optax.sgd(0.1),
        optax.sgd(lambda t: jnp.where(t % 50_000 == 49_999, 0.0, 0.1)),
        "at step 50,000 is 0",
    ),
    "around a step": (
        optax.sgd(0.1),
        optax.sgd(lambda t: 0.1 - 0.1 * jnp.exp(-((t - 1.0 * PEAK) ** 2))),
        "at step 123,45",
    ),
    "slowly": (optax.sgd(0.1), optax.sgd(lambda t: 0.1 / (1.0 + 1e-14 * t)), "its learning rate at step"),
    "from a table": (
        optax.sgd(0.1),
        optax.sgd(lambda t: jnp.append(jnp.full(3000, 0.1), 0.3)[t]),
        "at step 3,001 is 0.3",
    ),
    "a decay rate": (
        optax.adam(0.1),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1, b1=switch(5000, 0.9, 0.8)),
        "b: at step 5,001 its update is no longer the rule's",
    ),
    "the memory": (
        optax.sgd(0.1, momentum=0.9),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=switch(700, 0.9, 0.5)),
        "b: at step 701 its update is no longer the rule's",
    ),
    "a clip at the norm": (
        optax.sgd(0.1),
        optax.chain(optax.clip_by_global_norm(1e30), optax.sgd(0.1)),
        "b: its program branches on values (lt)",
    ),
    "a clip": (
        optax.sgd(0.1),
        optax.chain(optax.clip(1e30), optax.sgd(0.1)),
        "b: its program branches on values",
    ),
    "a clip of updates": (
        jc.adam(0.1),
        optax.chain(jc.adam(0.1), optax.clip(1e3)),
        "b: its program branches on values",
    ),
    "a switch on the size": (
        lambda w, g, t: w - jnp.where(jnp.abs(g) < 1e25, 0.1, 0.01) * g,
        optax.sgd(0.1),
        "a: its program branches on values",
    ),
    "a switch on the parameters": (
        lambda w, g, t: w - jnp.where(w < 1e6, 0.1, 0.01) * g,
        optax.sgd(0.1),
        "a: its program branches on values",
    ),
    "a switch behind a shift": (
        lambda w, g, t: w - jnp.where(g * g - 1e50 > 0, 0.01, 0.1) * g,
        optax.sgd(0.1),
        "a: its program branches on values",
    ),
    "what saturates": (
        lambda w, g, t: w - 0.1 * g * jnp.tanh(1e60 * (1 + g * g)),
        optax.sgd(0.1),
        "applies tanh to values",
    ),
    "Python's own branch": (
        lambda w, g, t: w - (0.1 if t < 200 else 0.01) * g,
        optax.sgd(0.1),
        "a: its program cannot be traced: it decides in Python by a value",
    ),
    "NumPy": (
        lambda w, g, t: np.asarray(w) - 0.1 * np.asarray(g),
        optax.sgd(0.1),
        "cannot be traced: it makes a NumPy array of a value",
    ),
    **{
        f"a {where}": (optax.sgd(0.1), counting_outside(where), "b: it keeps something outside its state")
        for where in ("closure", "list", "iterator")
    },
    "a state that drifts": (
        optax.sgd(0.1),
        optax.GradientTransformation(
            lambda _: jnp.array(0.1), lambda g, rate, _: (jax.tree.map(lambda x: -rate * x, g), rate * (1 - 1e-14))
        ),
        "b: its state changes in an unknown way",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_may_change_later_is_equal_here_only(case: str) -> None:
    a, b, words = CHANGES[case]
    report = compare(a, b)
    assert report.verdict is Parity.EQUAL_HERE, report
    assert report.identified == (True, True)
    assert any(words in f"{doubt}" for doubt in report.doubts), report.doubts
    assert "the same rule as far as was seen, but:" in str(report)


SCHEDULE = optax.exponential_decay(0.1, 100, 0.5, staircase=True)
SAME: dict[str, tuple[Any, Any]] = {
    "SGD": (jc.sgd(0.1), optax.sgd(0.1)),
    "momentum": (jc.momentum(0.1), optax.sgd(0.1, momentum=0.9)),
    "RMSProp": (jc.rmsprop(0.1), optax.rmsprop(0.1, decay=0.99, eps=1e-7, eps_in_sqrt=False)),
    "AdaGrad of optax": (made("adagrad", "optax"), optax.adagrad(0.1)),
    "Adam": (jc.adam(0.1, eps=1e-8), optax.adam(0.1)),
    "AdamW": (made("adamw", "optax"), optax.adamw(0.1)),
    "AMSGrad, with its maximum": (made("amsgrad", "optax"), optax.amsgrad(0.1)),
    "NAdam": (optax.nadam(0.1), optax.nadam(0.1)),
    "hyperparameters in the state": (optax.inject_hyperparams(optax.adam)(learning_rate=0.1), optax.adam(0.1)),
    "one schedule": (jc.sgd(SCHEDULE), optax.sgd(SCHEDULE)),
    "one schedule with a switch": (
        jc.momentum(switch(300, 0.1, 0.01)),
        optax.sgd(switch(300, 0.1, 0.01), momentum=0.9),
    ),
    "AdaGrad as RMSProp with schedules": (RULES["adagrad"].make(0.1, 1e-7), RULES["adagrad"].optax_twin(0.1, 1e-7)),
    "a function": (lambda w, g, t: w - 0.1 * g, optax.sgd(0.1)),
    "Lion": (optax.lion(0.1), made("lion", "optax")),
    "Lion without decay": (
        optax.lion(0.1, b1=0.95, b2=0.98, weight_decay=0.0),
        made("lion", "keras", b1=0.95, b2=0.98),
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_what_cannot_change_is_equal(case: str) -> None:
    report = compare(*SAME[case])
    assert report.verdict is Parity.EQUAL, report
    assert "nothing in it can change later" in str(report)


@pytest.mark.parametrize(
    ("given", "group"),
    [
        ({"b1": 0.95}, "momentum"),
        ({"b2": 0.999}, "momentum"),
        ({"weight_decay": 1e-2}, "weight decay"),
        ({"learning_rate": 0.2}, "learning rate"),
    ],
)
def test_conventions_of_lion(given: dict[str, float], group: str) -> None:
    report = compare(optax.lion(0.1), optax.lion(**{"learning_rate": 0.1, **given}), num_steps=30)
    assert report.verdict is Parity.DIFFERENT
    assert [set(cause.groups) for cause in report.causes] == [{group}], report
    assert report.certain


def test_lion_and_adam_are_different_rules() -> None:
    report = compare(optax.lion(0.1), optax.adam(0.1))
    assert report.verdict is Parity.DIFFERENT
    assert not report.causes
    assert "they are different rules: no convention turns one into the other" in str(report)


def test_schedules_that_part_later_are_equal_here_only() -> None:
    report = compare(jc.sgd(SCHEDULE), optax.sgd(optax.exponential_decay(0.1, 100, 0.4, staircase=True)))
    assert report.verdict is Parity.EQUAL_HERE
    assert report.doubts == ("b: its learning rate at step 101 is 0.04, not 0.05",)


def test_a_torch_optimizer_is_known_unless_something_was_added() -> None:
    torch = pytest.importorskip("torch")

    def halved(params: Any) -> Any:
        opt = torch.optim.SGD(params, lr=0.1)
        opt.register_step_post_hook(lambda opt, *_: opt.param_groups[0].update(lr=0.1))
        return opt

    class Own(torch.optim.SGD):
        pass

    stock = jc.torch_optimizer(lambda params: torch.optim.SGD(params, lr=0.1))
    assert compare(stock, optax.sgd(0.1)).verdict is Parity.EQUAL
    for make in (halved, lambda params: Own(params, lr=0.1)):
        report = compare(jc.torch_optimizer(make), optax.sgd(0.1))
        assert report.verdict is Parity.EQUAL_HERE
        assert "a: it is Python code" in report.doubts[0]


# By the scale of the path


def problems(dtype: Any) -> tuple[Any, np.ndarray]:
    """20 quadratics of 4 parameters with minima beyond zero, as one objective on `[20, 4]`."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((20, 4))
    minima = -np.sign(start) * 10.0 ** rng.uniform(-3, 0.5, (20, 4))
    turns = np.linalg.qr(rng.standard_normal((20, 4, 4)))[0]
    hessians = np.einsum("pik,pk,pjk->pij", turns, 10.0 ** rng.uniform(-1, 0.5, (20, 4)), turns)

    def objective(w: Any) -> Any:
        off = w - jnp.asarray(minima, dtype)
        return 0.5 * jnp.einsum("pi,pij,pj->", off, jnp.asarray(hessians, dtype), off)

    return objective, start.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("library", ["optax", "torch"])
@pytest.mark.parametrize("name", RULES)
def test_twins_are_equal_while_parameters_cross_zero(name: str, library: str, dtype: Any) -> None:
    rule = RULES[name]
    twin = rule.optax_twin(**rule.example)
    if library == "torch":
        if name == "adam_uncorrected":
            pytest.skip("torch has no Adam without correction")
        torch, (kind, arguments) = pytest.importorskip("torch"), rule.torch_twin
        given = arguments(**rule.example) | ({"nesterov": True} if name == "nesterov" else {})
        twin = jc.torch_optimizer(lambda params: getattr(torch.optim, kind)(params, **given))
    objective, start = problems(dtype)
    report = jc.parity(rule.make(**rule.example), twin, objective, start, num_steps=300)
    assert report.verdict is Parity.EQUAL, report
    assert not report.causes


def test_rmsprop_through_zero() -> None:
    """An entry of 8e-8 on its way through zero, off by rounding of what it was before."""
    twin = optax.rmsprop(0.01, decay=0.9, eps=1e-7, eps_in_sqrt=False)
    path = np.array([0.5, 0.3, 8.02190276e-08, -0.2])[:, None]
    assert relative_differences(path, path + 1e-16).max() < 1e-15
    for start in (0.1, 0.25, 0.4):
        report = jc.parity(jc.rmsprop(0.01, decay=0.9), twin, lambda w: jnp.sum((w + 1) ** 2), np.array([start]))
        assert report.verdict is Parity.EQUAL, report


def test_a_small_entry_is_not_hidden_by_a_large_one() -> None:
    """Each entry has its own scale: one of 1e-9 that is wrong beside one of 1e9 that is right."""
    wrong = lambda w, g, t: w - 0.1 * g * jnp.array([1.0, 1.5])  # noqa: E731
    report = jc.parity(optax.sgd(0.1), wrong, lambda w: jnp.sum(w**2), np.array([1e9, 1e-9], np.float32), num_steps=3)
    assert report.verdict is Parity.DIFFERENT
    assert report.first_difference is not None
    assert report.first_difference.index == (1,)


def test_a_difference_is_seen_in_small_moves_too() -> None:
    report = jc.parity(optax.sgd(1e-9), optax.sgd(1.001e-9), lambda w: jnp.sum(w**2), np.array([1.0]), num_steps=3)
    assert report.verdict is Parity.DIFFERENT
    assert [set(cause.groups) for cause in report.causes] == [{"learning rate"}]


@pytest.mark.parametrize("b2", [0.9999, 0.99999])
def test_rounding_of_the_correction_is_no_difference(b2: float) -> None:
    """1 - b2^t loses digits in float32; both implementations are right."""
    ours, twin = jc.adam(0.01, b2=b2, eps=1e-8), optax.adam(0.01, b2=b2)
    report = jc.parity(ours, twin, bowl, START.astype(np.float32), num_steps=20)
    assert report.verdict is Parity.EQUAL, report


def test_rounding_in_a_long_memory_is_no_difference() -> None:
    ours, twin = jc.momentum(1e-4, 0.999), optax.sgd(1e-4, momentum=0.999)
    objective, start = problems(np.float32)
    assert jc.parity(ours, twin, objective, start, num_steps=100).verdict is Parity.EQUAL


# What is said


def test_numbers_stand_in_formulas_where_only_they_differ() -> None:
    text = str(compare(optax.adam(1e-2), optax.adam(1e-2, eps=1e-6)))
    assert "(sqrt(v / (1 - b2^t)) + 1e-08)" in text
    assert "(sqrt(v / (1 - b2^t)) + 1e-06)" in text
    assert "w = w - lr * m" in text
    lion = jc.conventions.explanation("adam", "optax")
    assert "sqrt(v / (1 - b2^t)) + 1e-07" in lion
    assert "1e-0" not in jc.conventions.explanation("adam", "keras").split("lecture's in")[0].split("! epsilon")[0]
