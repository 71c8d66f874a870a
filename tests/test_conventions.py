"""Conventions: each equal to the library it names, its calls and formulas true, its records what was measured."""

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.comparison.conventions import LIBRARIES, TABLE, explanation
from tests import references

STEPS = 30
RULES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
KERAS = Path(__file__).parent / "keras_trajectories.json"
each = pytest.mark.parametrize("key", TABLE, ids="-".join)


def problem() -> tuple[np.ndarray, np.ndarray]:
    """A start, and gradients of many sizes with a dead entry."""
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((STEPS, 6)) * 10.0 ** np.arange(-3, 3)
    grads[:, 0] = 0
    return rng.standard_normal(6), grads


def walk(optimizer: Any) -> np.ndarray:
    start, grads = problem()
    w, rows = jnp.asarray(start), []
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(w)
        for g in grads:
            updates, state = optimizer.update(jnp.asarray(g), state, w)
            w = w + updates
            rows.append(np.asarray(w))
    return np.array(rows)


def torch_walk(call: str) -> np.ndarray:
    torch = pytest.importorskip("torch")
    start, grads = problem()
    w, rows = torch.tensor(start, requires_grad=True), []
    optimizer = eval(call.replace("(", "([w], ", 1), {"torch": torch, "w": w})
    for g in grads:
        w.grad = torch.tensor(g)
        optimizer.step()
        rows.append(w.detach().numpy().copy())
    return np.array(rows)


def optax_walk(call: str) -> np.ndarray:
    call, _, counted = call.partition(" with state = ")
    optimizer = eval(call, {"optax": optax})
    if counted:
        tree = optax.tree.set(optimizer.init(jnp.zeros(6)), count=2**30)
        optimizer = optax.GradientTransformation(lambda _: tree, optimizer.update)
    return walk(optimizer)


@each
def test_equals_every_call_it_names(key: tuple[str, str]) -> None:
    convention = jc.conventions.get(*key)
    assert convention.calls[key[1]] if key[1] != "lecture" else any(convention.calls.values())
    ours = walk(convention.make())
    if convention.calls["optax"]:
        np.testing.assert_allclose(optax_walk(convention.calls["optax"]), ours, rtol=1e-12, atol=1e-14)
    if convention.calls["torch"]:
        np.testing.assert_allclose(torch_walk(convention.calls["torch"]), ours, rtol=1e-12, atol=1e-14)


def keras_walk(call: str) -> np.ndarray:
    keras = pytest.importorskip("keras")
    keras.config.set_floatx("float64")
    start, grads = problem()
    w, rows = keras.Variable(start, dtype="float64"), []
    optimizer = eval(call, {"keras": keras})
    optimizer.build([w])
    for g in grads:
        optimizer.apply([keras.ops.convert_to_tensor(g)], [w])
        rows.append(np.asarray(w.value).copy())
    return np.array(rows)


STORED: dict[str, Any] = json.loads(KERAS.read_text())


@pytest.mark.parametrize("rule", STORED)
def test_equals_what_keras_did(rule: str) -> None:
    """Keras 3.15.1 with its JAX backend; the steps were stored, for it is seldom installed."""
    stored, convention = STORED[rule], jc.conventions.get(rule, "keras")
    assert convention.calls["keras"] == stored["call"]
    ours = walk(convention.make())
    np.testing.assert_allclose(ours[np.array(stored["steps"]) - 1], stored["w"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("key", [key for key in TABLE if TABLE[key].calls["keras"]], ids="-".join)
def test_equals_its_call_in_keras(key: tuple[str, str]) -> None:
    pytest.importorskip("keras")
    convention = jc.conventions.get(*key)
    np.testing.assert_allclose(
        keras_walk(str(convention.calls["keras"])), walk(convention.make()), rtol=1e-12, atol=1e-14
    )


def test_every_rule_of_keras_is_stored() -> None:
    assert STORED.keys() == {rule for rule, library in TABLE if library == "keras"}


OURS: dict[str, Any] = {
    "sgd": jc.sgd,
    "momentum": jc.momentum,
    "nesterov": functools.partial(jc.momentum, nesterov=True),
    "adagrad": jc.adagrad,
    "rmsprop": jc.rmsprop,
    "adam": jc.adam,
    "adam_uncorrected": functools.partial(jc.adam, bias_correction=False),
}


@pytest.mark.parametrize("rule", OURS)
def test_the_lecture_is_what_is_on_the_slides(rule: str) -> None:
    convention = jc.conventions.get(rule, "lecture")
    given = {name: value for name, value in convention.defaults.items() if name not in ("weight_decay", "initial")}
    if rule == "rmsprop":
        given.pop("rho")
    start, grads = problem()
    stepper = getattr(references, rule)(start, **given)
    next(stepper)
    path = np.array([stepper.send(g) for g in grads])
    np.testing.assert_allclose(walk(convention.make()), path, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(walk(OURS[rule](**given)), path, rtol=1e-12, atol=1e-14)


# What is nearly right


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b)))


def test_near_misses_are_misses() -> None:
    lecture = {rule: walk(jc.conventions.get(rule, "lecture").make(learning_rate=1e-2)) for rule in RULES}
    misses = {
        "adagrad": ["optax.adagrad(1e-2)", "optax.adagrad(1e-2, 0.0, eps=1e-7)", "optax.adagrad(1e-2, 0.0, eps=1e-14)"],
        "rmsprop": ["optax.rmsprop(1e-2, decay=0.99, eps=1e-7)", "optax.rmsprop(1e-2, decay=0.99, eps=1e-14)"],
        "adam": ["optax.adam(1e-2)", "optax.adam(1e-2, eps=0.0, eps_root=1e-14)"],
    }
    for rule, calls in misses.items():
        for call in calls:
            assert largest(optax_walk(call), lecture[rule]) > 1e-9, call
    keras = walk(jc.conventions.get("adam", "keras").make(learning_rate=1e-2))
    assert largest(keras, lecture["adam"]) > 1e-7


DEFAULTS = {
    ("adagrad", "optax"): {"eps": 1e-7, "initial": 0.1},
    ("adagrad", "torch"): {"eps": 1e-10, "initial": 0.0, "learning_rate": 1e-2},
    ("adagrad", "keras"): {"eps": 1e-7, "initial": 0.1, "learning_rate": 1e-3},
    ("rmsprop", "lecture"): {"decay": 0.99, "eps": 1e-7},
    ("rmsprop", "optax"): {"decay": 0.9, "eps": 1e-8},
    ("rmsprop", "torch"): {"decay": 0.99, "eps": 1e-8, "learning_rate": 1e-2},
    ("rmsprop", "keras"): {"decay": 0.9, "eps": 1e-7},
    ("adam", "optax"): {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    ("adam", "keras"): {"eps": 1e-7, "learning_rate": 1e-3},
    ("adamw", "optax"): {"weight_decay": 1e-4},
    ("adamw", "torch"): {"weight_decay": 1e-2},
    ("adamw", "keras"): {"weight_decay": 4e-3},
    ("sgd", "torch"): {"learning_rate": 1e-3},
    ("sgd", "keras"): {"learning_rate": 1e-2},
}


@pytest.mark.parametrize("key", DEFAULTS, ids="-".join)
def test_defaults(key: tuple[str, str]) -> None:
    defaults = jc.conventions.get(*key).defaults
    assert {name: defaults[name] for name in DEFAULTS[key]} == DEFAULTS[key]


def test_dampening_is_not_applied_at_the_first_step() -> None:
    ours = walk(jc.conventions.get("momentum", "torch").make(learning_rate=0.1, dampening=0.3))
    theirs = torch_walk("torch.optim.SGD(lr=0.1, momentum=0.9, dampening=0.3)")
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_momentum_of_rmsprop() -> None:
    """Optax's holds the learning rate, torch's does not; with a constant one nobody sees it."""
    rate = lambda count: 0.1 / (1.0 + count)  # noqa: E731
    optaxs = walk(jc.conventions.get("rmsprop", "optax").make(learning_rate=rate, rho=0.5))
    np.testing.assert_allclose(optaxs, walk(optax.rmsprop(rate, momentum=0.5)), rtol=1e-12)
    theirs = torch_walk("torch.optim.RMSprop(lr=0.1, momentum=0.5)")
    np.testing.assert_allclose(
        walk(jc.conventions.get("rmsprop", "torch").make(learning_rate=0.1, rho=0.5)), theirs, rtol=1e-12
    )


# How it is written


def test_formulas() -> None:
    get = jc.conventions.get
    assert get("rmsprop", "optax").formula.splitlines()[-1] == "w = w - lr * g / sqrt(v + eps)"
    assert (
        get("adam", "keras").formula.splitlines()[-1]
        == "w = w - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)"
    )
    assert "(v_0 = 0.1)" in get("adagrad", "keras").formula
    assert get("momentum", "keras").formula == "velocity = rho * velocity + lr * g\nw = w - velocity"
    assert r"\frac{g}{\sqrt{v} + \epsilon}" in get("adagrad", "lecture").latex
    assert len({TABLE[key].formula for key in TABLE if key[0] == "adam"}) == 2  # the lecture's, and Keras'


def test_latex_is_latex() -> None:
    from matplotlib.mathtext import MathTextParser

    for convention in TABLE.values():
        for line in convention.latex.split(" \\\\\n"):
            MathTextParser("agg").parse(f"${line}$")


@each
def test_explanation_marks_what_differs(key: tuple[str, str]) -> None:
    text = explanation(*key)
    marked = [line for line in text.splitlines() if line.startswith("!")]
    assert bool(marked) == (key[1] != "lecture" and key not in (("amsgrad", "optax"), ("lion", "optax")))
    assert key[1] in text.splitlines()[0]
    if key == ("adam", "keras"):
        assert any("epsilon" in line and "on the uncorrected moment" in line for line in marked)


def test_names_and_what_is_no_name() -> None:
    assert {rule for rule, _ in jc.conventions.names()} == {*RULES, "adam_uncorrected", "amsgrad", "lion"}
    assert set(itertools.product(RULES, LIBRARIES)) <= set(jc.conventions.names())
    with pytest.raises(KeyError, match=r"adam_uncorrected.* is known of lecture"):
        jc.conventions.get("adam_uncorrected", "torch")
    with pytest.raises(TypeError, match="torch's adam has no alpha; it has learning_rate, b1"):
        jc.conventions.get("adam", "torch").make(alpha=0.9)
    with pytest.raises(ValueError, match="eps"):
        jc.conventions.get("adam", "torch").make(eps=-1.0)


def test_sixteen_bits_are_kept_as_each_library_keeps_them() -> None:
    params = jnp.ones(3, jnp.bfloat16)
    kept = {library: jc.conventions.get("adam", library).make().init(params).nu.dtype for library in LIBRARIES}
    assert kept == {"lecture": jnp.float32} | dict.fromkeys(LIBRARIES[1:], jnp.bfloat16)


def test_hyperparameters_may_be_traced() -> None:
    start, grads = problem()

    @jax.jit
    def first(rate: Any, b1: Any, eps: Any) -> Any:
        optimizer = jc.conventions.get("adam", "keras").make(learning_rate=rate, b1=b1, eps=eps)
        w = jnp.asarray(start)
        return optimizer.update(jnp.asarray(grads[0]), optimizer.init(w), w)[0]

    static = walk(jc.conventions.get("adam", "keras").make(learning_rate=0.1, b1=0.8, eps=1e-3))[0] - start
    np.testing.assert_allclose(first(0.1, 0.8, 1e-3), static, atol=1e-14)
