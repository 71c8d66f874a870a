"""The training loop: it does what a plain Python loop does, compiles once, loses nothing and says what went wrong."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.dtypes import has_finite_norm
from jaxopt_course.training import NonFiniteError, Snapshot, gradient_norm
from tests.tables import RULES

KEY = jax.random.key(0)


@functools.cache
def problem() -> tuple[Any, Any, Any]:
    data = jc.data.load("synthetic", image_shape=(3, 3), num_train=50, num_test=10, num_classes=3)
    inputs, labels = data.train
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, 1e-3)
    params = jc.scores.init_linear(KEY, 3, 9)
    return objective, params, (jnp.asarray(inputs, float), jnp.asarray(labels))


def python_loop(optimizer: Any, batches: list[Any]) -> tuple[Any, Any, list[float], list[float]]:
    """What every tutorial writes: the reference."""
    objective, params, (inputs, labels) = problem()
    optimizer = optax.with_extra_args_support(optimizer)
    state, losses, norms = optimizer.init(params), [], []

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(objective)(params, batch)
        updates, state = optimizer.update(
            grads, state, params, value=value, grad=grads, value_fn=lambda p: objective(p, batch)
        )
        return optax.apply_updates(params, updates), state, value, optax.tree.norm(grads)

    for rows in batches:
        params, state, value, norm = step(params, state, (inputs[rows], labels[rows]))
        losses.append(float(value))
        norms.append(float(norm))
    return params, state, losses, norms


OPTIMIZERS = {
    **{name: rule.make(**rule.example) for name, rule in RULES.items()},
    "optax.adam": optax.adam(1e-2),
    "optax.sgd": optax.sgd(optax.cosine_decay_schedule(0.1, 20)),
    "optax.lbfgs": optax.lbfgs(),
    "optax.chain": optax.chain(optax.clip(0.1), optax.adamw(1e-2)),
}


@pytest.mark.parametrize(
    ("name", "drop_last"), [*((name, True) for name in OPTIMIZERS), ("adam", False), ("sgd", False)]
)
def test_equals_a_plain_python_loop(name: str, drop_last: bool) -> None:
    objective, params, data = problem()
    plan = jc.data.minibatches(KEY, 50, 16, 2, drop_last=drop_last)
    batches = [rows for full, last in zip(*plan, strict=True) for rows in [*full, last] if len(rows)]
    with jax.numpy_dtype_promotion("standard"):
        expected, state, losses, norms = python_loop(OPTIMIZERS[name], batches)
        result = jc.train(
            objective, OPTIMIZERS[name], params, data, key=KEY, batch_size=16, num_epochs=2, drop_last=drop_last
        )
    chex.assert_trees_all_close(result.params, expected, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(result.state, state, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.trace.loss, losses, rtol=1e-9)
    np.testing.assert_allclose(result.trace.grad_norm, norms, rtol=1e-9)
    assert len(losses) == (6 if drop_last else 8)
    assert not result.trace.skipped.any()


@pytest.mark.parametrize(("chunk_size", "num_steps"), [(1, 4), (4, 20), (7, 20), (1000, 20), (4, 0)])
def test_chunks_do_not_show(chunk_size: int, num_steps: int) -> None:
    objective, params, data = problem()
    arguments: dict[str, Any] = {"key": KEY, "batch_size": 16, "num_steps": num_steps}
    whole = jc.train(objective, OPTIMIZERS["adam"], params, data, **arguments)
    pieces = jc.train(objective, OPTIMIZERS["adam"], params, data, **arguments, chunk_size=chunk_size)
    chex.assert_trees_all_equal(pieces, whole)
    assert len(pieces.trace.loss) == num_steps


def test_compiles_once_for_any_number_of_calls_and_steps() -> None:
    _, params, data = problem()
    traces = 0

    def objective(params: Any, batch: Any) -> Any:
        nonlocal traces
        traces += 1
        return jnp.mean((batch[0] @ params["W"].T) ** 2) + jnp.sum(params["b"] ** 2)

    optimizer = jc.adam(1e-2)
    counts = []
    for num_steps in (20, 20, 7, 13, 1):
        jc.train(objective, optimizer, params, data, key=KEY, batch_size=16, num_steps=num_steps, chunk_size=5)
        counts.append(traces)
    assert counts[0] <= 2  # once for the value, once more at most for the line search's value_fn
    assert len(set(counts)) == 1


def test_leaves_the_given_parameters_and_data_alone() -> None:
    objective, params, data = problem()
    before = jax.tree.map(np.array, (params, data))
    jc.train(objective, OPTIMIZERS["momentum"], params, data, key=KEY, batch_size=16, num_epochs=2)
    chex.assert_trees_all_equal(jax.tree.map(np.array, (params, data)), before)


def test_numpy_data_and_other_trees_of_data() -> None:
    def objective(w: Any, batch: dict[str, Any]) -> Any:
        return jnp.mean((w * batch["x"] - batch["y"]) ** 2)

    x = np.linspace(-1, 1, 40)
    data = {"x": x, "y": 3 * x}
    result = jc.train(objective, jc.sgd(0.5), jnp.array(0.0), data, key=KEY, batch_size=8, num_epochs=30)
    np.testing.assert_allclose(result.params, 3, rtol=1e-6)


def test_aux_is_stacked_in_the_trace() -> None:
    def objective(w: Any, x: Any) -> Any:
        value = jnp.mean((w - x) ** 2)
        return value, {"first": x[0], "twice": 2 * value}

    x = jnp.arange(12.0)
    arguments: dict[str, Any] = {"key": KEY, "batch_size": 4, "num_epochs": 3}
    result = jc.train(objective, jc.sgd(0.1), jnp.array(0.0), x, **arguments, has_aux=True, chunk_size=4)
    np.testing.assert_allclose(result.trace.aux["twice"], 2 * result.trace.loss)
    plan = jc.data.minibatches(KEY, 12, 4, 3).full.reshape(-1, 4)
    np.testing.assert_array_equal(result.trace.aux["first"], x[plan[:, 0]])
    without = jc.train(lambda w, x: objective(w, x)[0], jc.sgd(0.1), jnp.array(0.0), x, **arguments)
    chex.assert_trees_all_close(result.params, without.params, rtol=1e-14)


def test_evaluations_stand_at_the_start_every_so_often_and_at_the_end() -> None:
    objective, params, data = problem()
    seen: list[Any] = []

    def evaluate(params: Any) -> dict[str, Any]:
        seen.append(float(params["W"][0, 0]))
        return {"loss": objective(params, data), "W00": params["W"][0, 0]}

    result = jc.train(
        objective,
        OPTIMIZERS["sgd"],
        params,
        data,
        key=KEY,
        batch_size=16,
        num_steps=25,
        eval_fn=evaluate,
        eval_every=10,
    )
    assert result.trace.eval_steps.tolist() == [0, 10, 20, 25]
    np.testing.assert_array_equal(result.trace.evals["W00"], seen)
    assert result.trace.evals["loss"][-1] < result.trace.evals["loss"][0]
    at_ten = jc.train(objective, OPTIMIZERS["sgd"], params, data, key=KEY, batch_size=16, num_steps=10)
    np.testing.assert_allclose(at_ten.params["W"][0, 0], seen[1], rtol=1e-14)


def test_callback_sees_every_chunk() -> None:
    objective, params, data = problem()
    snapshots: list[Snapshot] = []
    result = jc.train(
        objective,
        OPTIMIZERS["sgd"],
        params,
        data,
        key=KEY,
        batch_size=16,
        num_steps=10,
        chunk_size=4,
        callback=lambda s: snapshots.append(jax.tree.map(np.array, s)),
    )
    assert [int(s.step) for s in snapshots][-1] == 10
    assert all(
        0 < b - a <= 4 for a, b in zip([0, *(s.step for s in snapshots)], [s.step for s in snapshots], strict=False)
    )
    np.testing.assert_allclose(snapshots[-1].loss, result.trace.loss[-1])
    chex.assert_trees_all_equal(snapshots[-1].params, jax.tree.map(np.array, result.params))


def poisoned(at: float) -> Any:
    """A mean square whose gradient is infinite for the batch that holds the example with value `at`."""

    def objective(params: Any, x: Any) -> Any:
        trouble = jnp.where(jnp.any(x == at), jnp.inf, 1.0)
        return jnp.mean((params["good"] - x) ** 2) + jnp.sum(params["bad"] * trouble) * 1e-3

    return objective


def test_a_non_finite_step_stops_with_its_number_and_leaf_and_loses_nothing() -> None:
    x = jnp.arange(40.0)
    plan = jc.data.minibatches(KEY, 40, 4, 1).full[0]
    culprit = float(x[plan[6, 2]])
    params = {"good": jnp.array(0.0), "bad": jnp.zeros(3)}
    arguments: dict[str, Any] = {"key": KEY, "batch_size": 4, "num_epochs": 3, "chunk_size": 4}
    with pytest.raises(NonFiniteError, match=r"step 7 of 30.*gradient\['bad'\] \(3 of 3 entries\)") as caught:
        jc.train(poisoned(culprit), jc.sgd(0.01), params, x, **arguments)
    assert caught.value.step == 7
    assert len(caught.value.result.trace.loss) == 6
    before = jc.train(poisoned(-1.0), jc.sgd(0.01), params, x, key=KEY, batch_size=4, num_steps=6)
    chex.assert_trees_all_equal(caught.value.result.params, before.params)
    chex.assert_trees_all_equal(caught.value.result.state, before.state)


def test_a_non_finite_step_is_skipped_and_counted_when_asked() -> None:
    x = jnp.arange(40.0)
    plan = jc.data.minibatches(KEY, 40, 4, 3).full.reshape(-1, 4)
    culprit = float(x[plan[6, 2]])
    params = {"good": jnp.array(0.0), "bad": jnp.zeros(3)}
    result = jc.train(
        poisoned(culprit),
        jc.momentum(lambda count: 0.01),
        params,
        x,
        key=KEY,
        batch_size=4,
        num_epochs=3,
        on_nonfinite="skip",
    )
    expected = np.any(x[plan] == culprit, axis=1)
    np.testing.assert_array_equal(result.trace.skipped, expected)
    assert expected.sum() == 3
    assert int(result.state.count) == 30 - 3
    chex.assert_tree_all_finite(result.params)
    np.testing.assert_array_equal(np.isfinite(result.trace.loss), ~expected)


def test_a_loss_that_is_nan_names_the_loss() -> None:
    with pytest.raises(NonFiniteError, match=r"step 1 of 5: loss nan.*not finite: the loss"):
        jc.train(lambda w, x: w * jnp.nan, jc.sgd(0.1), jnp.array(1.0), jnp.ones(4), key=KEY, batch_size=2, num_steps=5)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_parameters_that_overflow_in_the_last_step_do_not_pass(on_nonfinite: str) -> None:
    arguments: dict[str, Any] = {"key": KEY, "batch_size": 2, "num_steps": 1, "on_nonfinite": on_nonfinite}
    with pytest.raises(
        NonFiniteError, match=r"after the last step, 1, these are not finite: params\['w'\] \(1 of 1 entries\)"
    ) as caught:
        jc.train(
            lambda p, x: jnp.sum(1e300 * p["w"] * x), jc.sgd(1e300), {"w": jnp.array(1.0)}, jnp.ones(4), **arguments
        )
    assert len(caught.value.result.trace.loss) == 1


def test_labels_out_of_range_stop_training() -> None:
    objective, params, (inputs, labels) = problem()
    with pytest.raises(NonFiniteError, match=r"loss nan.*labels are out of range, the first is labels\[\d+\] = 7"):
        jc.train(
            objective, OPTIMIZERS["sgd"], params, (inputs, labels.at[3].set(7)), key=KEY, batch_size=16, num_epochs=3
        )


def test_sweep_under_vmap_equals_runs_one_by_one() -> None:
    objective, params, data = problem()
    rates, keys = jnp.array([0.01, 1.0]), jax.random.split(KEY, 2)

    def run(rate: Any, key: Any) -> Any:
        optimizer = jc.adam(rate)
        plan = jc.data.minibatches(key, 50, 16, 4).full.reshape(-1, 16)
        return jc.training.train_steps(objective, optimizer, jc.training.init_carry(optimizer, params), data, plan)

    carry, record = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(rates, keys)
    for i, optimizer in enumerate([jc.adam(float(rate)) for rate in rates]):
        for j, key in enumerate(keys):
            single = jc.train(objective, optimizer, params, data, key=key, batch_size=16, num_epochs=4)
            lane = jax.tree.map(lambda leaf, at=(i, j): leaf[at], carry.params)
            chex.assert_trees_all_close(lane, single.params, rtol=1e-9)
            np.testing.assert_allclose(record.loss[i, j], single.trace.loss, rtol=1e-9)


def test_one_lane_that_diverges_leaves_the_others_alone() -> None:
    def objective(w: Any, x: Any) -> Any:
        return jnp.mean((w * x) ** 4)

    x, plan = jnp.ones(8), jc.data.minibatches(KEY, 8, 4, 20).full.reshape(-1, 4)

    def run(rate: Any) -> Any:
        optimizer = jc.sgd(rate)
        start = jc.training.init_carry(optimizer, jnp.array(1.0))
        return jc.training.train_steps(objective, optimizer, start, x, plan)

    rates = jnp.array([1e-2, 1e3, 2e-2])
    carry, record = jax.jit(jax.vmap(run))(rates)
    assert carry.alive.tolist() == [True, False, True]
    assert bool(jnp.all(jnp.isfinite(carry.params)))
    for lane in (0, 2):
        alone, _ = jax.jit(run)(rates[lane])
        np.testing.assert_array_max_ulp(np.asarray(carry.params[lane]), np.asarray(alone.params), maxulp=1)
    stopped = int(np.argmax(record.skipped[1]))
    assert bool(jnp.all(record.skipped[1, stopped:]))


def test_training_can_be_differentiated() -> None:
    objective, params, data = problem()
    plan = jc.data.minibatches(KEY, 50, 16, 2).full.reshape(-1, 16)

    def final_loss(rate: Any) -> Any:
        optimizer = jc.momentum(rate)
        carry, _ = jc.training.train_steps(objective, optimizer, jc.training.init_carry(optimizer, params), data, plan)
        return objective(carry.params, data)

    slope, h, final_loss = jax.jit(jax.grad(final_loss))(0.01), 1e-6, jax.jit(final_loss)
    np.testing.assert_allclose(slope, (final_loss(0.01 + h) - final_loss(0.01 - h)) / (2 * h), rtol=1e-5)
    assert slope < 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("x64", [True, False])
def test_dtypes_of_parameters_are_kept(dtype: Any, x64: bool) -> None:
    with jax.enable_x64(x64):
        _, params, data = problem()
        params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
        data = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == float else jnp.int32), data)
        objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
        result = jc.train(objective, jc.adam(0.1), params, data, key=KEY, batch_size=16, num_epochs=20)
        chex.assert_trees_all_equal_dtypes(result.params, params)
        assert result.trace.loss[-3:].mean() < 0.8 * result.trace.loss[0]


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_gradient_norm_where_squares_leave_the_range(scale: float) -> None:
    grads = {"a": scale * jnp.array([3.0, 0.0]), "b": scale * jnp.array(4.0)}
    np.testing.assert_allclose(jax.jit(gradient_norm)(grads), 5 * scale, rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_whether_the_norm_is_finite_in_one_pass(dtype: Any) -> None:
    largest, tiny = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).tiny)
    with jax.enable_x64(dtype == jnp.float64):
        for entry in (0.0, tiny, 1.0, largest**0.6, largest / 20, largest, jnp.inf, jnp.nan):
            grads = {"a": jnp.full(100, entry, dtype), "b": jnp.ones(1, dtype)}
            assert jax.jit(has_finite_norm, static_argnums=1)(grads, float) == jnp.isfinite(gradient_norm(grads))


def test_gradient_norm_of_nothing_of_zero_of_16_bits_and_of_nan() -> None:
    assert gradient_norm({}) == 0
    assert gradient_norm(jnp.zeros(3)) == 0
    np.testing.assert_allclose(gradient_norm(jnp.full(4, 6e4, jnp.float16)), 1.2e5, rtol=1e-3)
    assert np.isnan(gradient_norm(jnp.array([1.0, jnp.nan])))
    assert np.isinf(gradient_norm(jnp.array([1.0, jnp.inf])))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "num_steps or num_epochs"),
    ({"num_steps": 1, "num_epochs": 1}, "num_steps or num_epochs"),
    ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
    ({"num_steps": 1, "chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ({"num_steps": 1, "batch_size": 51}, "from 1 to the 50 examples"),
    ({"num_steps": 1, "batch_size": 0}, "from 1 to the 50 examples"),
    ({"num_steps": 1, "on_nonfinite": "ignore"}, '"stop" or "skip"'),
    ({"num_steps": 1, "eval_every": 5}, "needs an eval_fn"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    objective, params, data = problem()
    with pytest.raises(ValueError, match=message):
        jc.train(objective, jc.sgd(0.1), params, data, **{"key": KEY, "batch_size": 16, **arguments})


def test_wrong_data_objectives_and_parameters(own_errors: None) -> None:
    objective, params, (inputs, labels) = problem()
    go = functools.partial(jc.train, key=KEY, batch_size=4, num_steps=1)
    with pytest.raises(ValueError, match=r"same number of examples first, got data\[0\] \(50, 9\), data\[1\] \(49,\)"):
        go(objective, jc.sgd(0.1), params, (inputs, labels[:-1]))
    with pytest.raises(ValueError, match="data is empty"):
        go(objective, jc.sgd(0.1), params, (inputs[:0], labels[:0]))
    with pytest.raises(ValueError, match="the data has no arrays"):
        go(objective, jc.sgd(0.1), params, ())
    with pytest.raises(ValueError, match=r"must return a scalar, got shape \(4,\)"):
        go(lambda p, b: jnp.sum(b[0], axis=1) * p["b"][0], jc.sgd(0.1), params, (inputs, labels))
    with pytest.raises(TypeError, match=r"params\['b'\] is int"):
        go(objective, optax.sgd(0.1), {"W": params["W"], "b": jnp.arange(3)}, (inputs, labels))


def test_labels_beyond_32_bits_do_not_wrap_into_range() -> None:
    objective, params, data = problem()
    inputs, labels = (np.asarray(leaf) for leaf in data)
    wide = labels.astype(np.int64)
    with jax.enable_x64(False):
        small = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (params, inputs))
        jc.train(objective, OPTIMIZERS["sgd"], small[0], (small[1], wide), key=KEY, batch_size=16, num_steps=1)
        wide[3] += 2**32
        with pytest.raises(ValueError, match="int64 values beyond int32"):
            jc.train(objective, OPTIMIZERS["sgd"], small[0], (small[1], wide), key=KEY, batch_size=16, num_steps=1)


def test_progress_bar_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    objective, params, data = problem()
    jc.train(objective, OPTIMIZERS["sgd"], params, data, key=KEY, batch_size=16, num_steps=8, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    jc.train(objective, OPTIMIZERS["sgd"], params, data, key=KEY, batch_size=16, num_steps=8)
    assert capsys.readouterr() == ("", "")  # no terminal, no bar
