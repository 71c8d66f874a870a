"""`train(state=)` goes on from any state of the same rule; wrong arguments get a message that says what to do."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.training.states import continued_state

KEY = jax.random.key(0)
X = np.linspace(-1, 1, 14)
OPTIONS: dict[str, Any] = {"key": KEY, "batch_size": 2}


def objective(params: Any, x: Any) -> Any:
    return jnp.mean((params["w"] * x - 3 * x) ** 2)


def params() -> Any:
    return {"w": jnp.array(0.5)}


@pytest.mark.parametrize("conversion", ["ours", "ours to optax", "optax to ours"])
def test_training_goes_on_from_a_state(conversion: str) -> None:
    """An epoch, then the same epoch again with another rate, as a plain loop takes them."""
    ours, theirs = [lambda rate: jc.adam(rate, eps=1e-8), optax.adam]
    makers = {"ours": (ours, ours), "ours to optax": (ours, theirs), "optax to ours": (theirs, ours)}[conversion]
    with jax.numpy_dtype_promotion("standard"):
        first = jc.train(objective, makers[0](0.1), params(), X, num_epochs=1, **OPTIONS)
        second = jc.train(objective, makers[1](0.01), first.params, X, num_epochs=1, state=first, **OPTIONS)
        w, state = params(), ours(0.1).init(params())
        for optimizer in (ours(0.1), ours(0.01)):
            for rows in jc.data.minibatches(KEY, 14, 2, 1).full[0]:
                updates, state = optimizer.update(jax.grad(objective)(w, jnp.asarray(X)[rows]), state, w)
                w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(second.params["w"], w["w"], rtol=1e-9)
    chex.assert_tree_all_finite(first.state)  # not used up


TWINS: list[tuple[Any, Any]] = [
    (jc.momentum(0.1), optax.sgd(0.1, momentum=0.9)),
    (jc.adagrad(0.1), optax.adagrad(0.1)),
    (jc.rmsprop(0.1), optax.rmsprop(0.1)),
    (jc.adam(0.1), optax.chain(optax.clip(1.0), optax.adam(optax.linear_schedule(0.1, 0.0, 9)))),
]


@pytest.mark.parametrize(("ours", "theirs"), TWINS, ids=["momentum", "adagrad", "rmsprop", "adam in a chain"])
def test_states_are_converted_by_field_there_and_back(ours: Any, theirs: Any) -> None:
    state = jax.tree.map(lambda leaf: leaf + 2, ours.init(params()))
    back = continued_state("f", continued_state("f", state, theirs, params()), ours, params())
    chex.assert_trees_all_equal(back, state)


def test_a_state_of_another_rule_tree_or_dtype_is_refused() -> None:
    adam = jc.adam(0.1)
    wrong: list[tuple[Any, Any, str]] = [
        (jc.momentum(0.1).init(params()), adam, r"the optimizer's state has \.count, but the given has not"),
        (adam.init(params()), jc.rmsprop(0.1), r"the given state has mu\['w'\], but the optimizer's has not"),
        (adam.init({"w": jnp.zeros(2)}), adam, r"state\.mu\['w'\] is float64\[2\].* has float64\[\] there"),
        (adam.init({"w": jnp.zeros((), jnp.float32)}), optax.adam(0.1), r"is float32\[\].* has float64\[\]"),
        (adam.init({"v": jnp.zeros(())}), adam, r"has \.mu\['w'\], but the given has not"),
    ]
    for state, optimizer, message in wrong:
        with pytest.raises(ValueError, match=message):
            jc.train(objective, optimizer, params(), X, num_steps=1, state=state, **OPTIONS)


@pytest.mark.usefixtures("own_errors")
def test_whole_numbers_and_fractions_of_epochs() -> None:
    def steps(**options: Any) -> int:
        return len(jc.train(objective, optimizer, params(), X, **{**OPTIONS, **options}).trace.loss)

    optimizer = jc.sgd(0.1)
    assert steps(num_epochs=0.5) == 4  # of 7: 3.5, to even
    assert steps(num_epochs=np.float32(1.0)) == 7
    assert steps(num_epochs=1.9) == 13
    assert steps(num_steps=1e1, chunk_size=5.0, batch_size=np.float64(2)) == 10
    assert steps(num_steps=np.int64(3), max_data_bytes=1e9) == 3
    names = ("num_steps", "batch_size", "chunk_size", "keep", "max_data_bytes", "eval_every", "checkpoint_every")
    for name in names:
        others = {"num_steps": 1, "eval_fn": lambda w: w, "checkpoint_dir": "nowhere"}
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got 1.5"):
            steps(**{**others, name: 1.5})
        for value in (True, "3"):
            with pytest.raises(TypeError, match=f"{name} must be a whole number, got "):
                steps(**{**others, name: value})
    for epochs in (-1, np.nan, np.inf, 0.01):
        with pytest.raises(ValueError, match="num_epochs"):
            steps(num_epochs=epochs)
    with pytest.raises(TypeError, match="num_epochs must be a number, got bool"):
        steps(num_epochs=True)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "our factory": ({"optimizer": jc.adam}, TypeError, r"jc\.adam is a factory; call it: jc\.adam\(0\.01\)"),
    "lbfgs": ({"optimizer": jc.lbfgs}, TypeError, r"jc\.lbfgs is a factory; call it: jc\.lbfgs\(\)"),
    "optax's factory": ({"optimizer": optax.adam}, TypeError, r"call it: optax\.adam\(0\.01\)"),
    "no optimizer": ({"optimizer": "adam"}, TypeError, "must have init and update.*got str 'adam'"),
    "key": ({"key": 0}, TypeError, r"such as jax\.random\.key\(0\); got int 0"),
    "keys": ({"key": jax.random.split(KEY)}, ValueError, r"one random key, got an array of keys of shape \(2,\)"),
    "list": ({"data": [0.5] * 5000}, ValueError, r"data\[0\] is a float, expected an array.*numpy\.asarray"),
    "text": ({"data": np.array(["a"] * 14)}, ValueError, "data has dtype <U1"),
    "one argument": ({"objective": lambda w: w["w"]}, TypeError, r"objective\(params, batch\), but .* takes \(w\)"),
    "not a function": ({"objective": 3.0}, TypeError, "must be a function .* got float 3.0"),
    "aux": ({"objective": lambda w, x: (w["w"], x)}, ValueError, r"got a tuple of 2; for \(value, aux\) pass has_aux"),
    "no aux": ({"has_aux": True}, ValueError, r"must return \(value, aux\), got an array float64\[\]"),
    "integer": ({"objective": lambda w, x: jnp.int32(w["w"])}, ValueError, "floating-point scalar, got int32"),
}


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(("wrong", "kind", "message"), WRONG.values(), ids=WRONG)
def test_messages(wrong: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"objective": objective, "optimizer": jc.sgd(0.1), "params": params(), "data": X, "num_steps": 1}
    with pytest.raises(kind, match=message) as caught:
        jc.train(**{**arguments, **OPTIONS, **wrong})
    assert len(str(caught.value)) < 300


@pytest.mark.usefixtures("own_errors")
@pytest.mark.filterwarnings("ignore:Some donated buffers")
def test_under_a_transformation_train_steps_is_named() -> None:
    def final(w: Any = 0.0, rate: Any = 0.1, seed: Any = KEY, scale: Any = 1.0) -> Any:
        def scaled(params: Any, x: Any) -> Any:
            return scale * objective(params, x)

        result = jc.train(scaled, jc.sgd(rate), {"w": w}, jnp.asarray(X), key=seed, batch_size=2, num_steps=1)
        return result.params["w"]

    two = jnp.ones(2)
    for call in (
        lambda: jax.vmap(lambda w: final(w=w))(two),
        lambda: jax.grad(lambda w: final(w=w))(0.5),
        lambda: jax.jit(lambda w: final(w=w))(0.5),
        lambda: jax.vmap(lambda key: final(seed=key))(jax.random.split(KEY)),
        lambda: jax.vmap(lambda rate: final(w=jnp.ones(()), rate=rate))(two),
        lambda: jax.vmap(lambda scale: final(w=jnp.ones(()), scale=scale))(two),
    ):
        with pytest.raises(
            TypeError, match=r"does not run under jit, vmap or grad; use the pure function training\.train_steps"
        ):
            call()
