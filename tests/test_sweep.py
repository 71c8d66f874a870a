"""Sweeps: lanes equal to `train`, one compile a method, divergence, halving, evaluation, bad input, files."""

import functools
import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.sweeps.blocks import Rung, block_shape, plan_rungs
from jaxopt_course.sweeps.runs import MethodRun

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
DATA = RNG.standard_normal((50, 4)), RNG.integers(0, 3, 50).astype(np.int32)
OBJECTIVE = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
RATES = {"learning_rate": [1e-3, 0.1, 1.0]}


def init(key: jax.Array) -> Any:
    return jc.scores.init_linear(key, num_classes=3, num_features=4)


def swept(optimizers: Any = jc.sgd, grid: Any = RATES, objective: Any = OBJECTIVE, **options: Any) -> jc.SweepResult:
    start, data = options.pop("init", init), options.pop("data", DATA)
    length = {} if {"num_steps", "num_epochs"} & {*options} else {"num_epochs": 3}
    options = {"key": KEY, "num_seeds": 2, "batch_size": 8, **length, **options}
    return jc.sweep(objective, optimizers, grid, start, data, **options)


def keys(num_seeds: int, key: jax.Array = KEY) -> Iterator[jax.Array]:
    """(k_init, k_data) of every seed, as the documentation states them."""
    return (jax.random.split(jax.random.split(key, num_seeds)[s]) for s in range(num_seeds))


RULES: dict[str, tuple[Any, Any]] = {
    "sgd": (jc.sgd, {"learning_rate": [0.1, 1.0]}),
    "nesterov": (functools.partial(jc.momentum, nesterov=True), {"learning_rate": [0.1], "rho": [0.5, 0.9]}),
    "adam": (jc.adam, {"learning_rate": [0.1], "b1": [0.0, 0.9]}),
    "optax.adamw": (optax.adamw, {"learning_rate": [0.01], "weight_decay": [0.0, 0.1]}),
    "optax.lion": (optax.lion, {"learning_rate": [1e-3, 1e-2]}),
    "chain": (
        lambda rate, clip: optax.chain(optax.clip_by_global_norm(clip), jc.rmsprop(rate)),
        {"rate": [0.1], "clip": [0.1, 10.0]},
    ),
    "schedule": (lambda peak: jc.sgd(lambda count: peak / (1 + count)), {"peak": [0.1, 1.0]}),
    "accumulated": (lambda learning_rate: optax.MultiSteps(jc.sgd(learning_rate), 2), {"learning_rate": [0.1]}),
    "integer": (lambda steps: jc.sgd(lambda count: 0.1 / (1.0 + count.astype(float) / steps)), {"steps": [5, 50]}),
}


def test_a_lane_is_a_run_of_train_with_any_generator() -> None:
    key = jax.random.key(5, impl="rbg")
    with jax.numpy_dtype_promotion("standard"):
        result = swept({"sgd": jc.sgd}, {"learning_rate": [0.1]}, key=key, keep_params="all")
        for s, (k_init, k_data) in enumerate(keys(2, key)):
            run = jc.train(OBJECTIVE, jc.sgd(0.1), init(k_init), DATA, key=k_data, batch_size=8, num_epochs=3)
            np.testing.assert_allclose(result.curve("sgd")[0, s], run.trace.loss, rtol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_a_lane_is_a_run_of_train(name: str) -> None:
    """Every point and seed, with the keys as documented, whole epochs and a rest."""
    factory, grid = RULES[name]
    with jax.numpy_dtype_promotion("standard"):  # optax's rules need it
        result = swept({name: factory}, grid, drop_last=False, keep_params="all")
        points, curve = result.points(name), result.curve(name)
        for s, (k_init, k_data) in enumerate(keys(2)):
            start = init(k_init)
            for p in range(points.count):
                made = factory(**points.at(p))
                run = jc.train(OBJECTIVE, made, start, DATA, key=k_data, batch_size=8, num_epochs=3, drop_last=False)
                np.testing.assert_allclose(curve[p, s], run.trace.loss, rtol=1e-9)
                for ours, theirs in zip(
                    jax.tree.leaves(result.methods[name].params), jax.tree.leaves(run.params), strict=True
                ):
                    np.testing.assert_allclose(ours[p, s], theirs, rtol=1e-7, atol=1e-10)
                assert result.loss(name)[p, s] == pytest.approx(float(OBJECTIVE(run.params, DATA)), rel=1e-9)


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 5, 100])
def test_lanes_at_once_change_nothing(lanes: int) -> None:
    """One lane, seeds split, points split with a rest, everything at once."""
    evals = {"eval_fn": lambda params: {"b": params["b"]}, "eval_every": 5, "keep_params": "all"}
    a, b = (swept(num_seeds=3, num_steps=12, lanes=most, **evals) for most in (lanes, None))
    for ours, theirs in zip(jax.tree.leaves(a.as_record()), jax.tree.leaves(b.as_record()), strict=True):
        if not isinstance(ours, str):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    best = [swept(num_seeds=3, num_steps=12, lanes=most).best().params["W"] for most in (lanes, None)]
    np.testing.assert_allclose(best[0], best[1], rtol=1e-9)


def test_tracing_and_compiling_do_not_depend_on_points_seeds_and_lanes() -> None:
    def traces(points: int, seeds: int, lanes: int | None) -> tuple[int, int]:
        count = {"objective": 0, "factory": 0}

        def objective(params: Any, batch: Any) -> jax.Array:
            count["objective"] += 1
            return OBJECTIVE(params, batch)

        def factory(learning_rate: Any) -> Any:
            count["factory"] += 1
            return jc.sgd(learning_rate)

        swept(factory, {"learning_rate": np.linspace(0.01, 0.1, points)}, objective, num_seeds=seeds, lanes=lanes)
        return count["objective"], count["factory"]

    assert traces(2, 1, None) == traces(40, 5, None) == traces(40, 5, 7)


def test_a_second_sweep_compiles_nothing_of_the_steps() -> None:
    count = []

    def objective(params: Any, batch: Any) -> jax.Array:
        count.append(0)
        return OBJECTIVE(params, batch)

    swept(objective=objective)
    first = len(count)
    swept(objective=objective, grid={"learning_rate": [0.5, 0.6, 0.7]})
    assert len(count) - first < first / 2  # the shapes are checked anew, the steps are not traced again


def test_a_lane_that_diverges_freezes_and_is_dated_as_by_train() -> None:
    """Losses that overflow at different steps; the other lanes are as without them."""

    def objective(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.exp(jnp.sum(params["W"]) * jnp.sum(batch[0], axis=1)) + params["b"][0] ** 2)

    def start(key: jax.Array) -> Any:
        return {"W": 0.1 * jax.random.normal(key, (3, 4)), "b": jnp.ones(3)}

    grid = {"learning_rate": [1e-4, 10.0, 1e3]}
    result = swept(grid=grid, objective=objective, init=start, keep_params="all")
    alone = swept(grid={"learning_rate": [1e-4]}, objective=objective, init=start)
    np.testing.assert_allclose(result.curve("sgd")[0], alone.curve("sgd")[0], rtol=1e-12)
    for s, (k_init, k_data) in enumerate(keys(2)):
        for p, rate in enumerate(grid["learning_rate"]):
            where = {"label": "sgd", "learning_rate": rate, "seed": s}
            (row,) = (row for row in result.rows() if row.items() >= where.items())
            step, run = None, None
            try:
                run = jc.train(objective, jc.sgd(rate), start(k_init), DATA, key=k_data, batch_size=8, num_epochs=3)
            except jc.training.NonFiniteError as error:
                step, run = error.step, error.result
            taken = len(run.trace.loss)
            assert row["diverged_at"] == step
            assert row["steps"] == taken
            assert np.isfinite(row["loss"]) == (step is None)
            assert np.isfinite(result.curve("sgd")[p, s, :taken]).all()
            assert np.isinf(result.curve("sgd")[p, s, taken:]).all()
            kept = result.methods["sgd"].params["W"][p, s]
            np.testing.assert_allclose(kept, run.params["W"], rtol=1e-9)
    assert {row["diverged_at"] is None for row in result.rows()} == {True, False}
    assert result.best().hyperparameters == {"learning_rate": 1e-4}


def test_a_gradient_whose_square_overflows_is_no_divergence() -> None:
    def objective(params: Any, batch: Any) -> jax.Array:
        return 1e200 * jnp.mean((jnp.sum(params["W"]) - batch[0]) ** 2)

    result = swept(grid={"learning_rate": [1e-200]}, objective=objective, keep_params="all")
    (k_init, k_data), *_ = keys(2)
    run = jc.train(objective, jc.sgd(1e-200), init(k_init), DATA, key=k_data, batch_size=8, num_epochs=3)
    np.testing.assert_allclose(result.curve("sgd")[0, 0], run.trace.loss, rtol=1e-12)
    assert result.rows()[0]["diverged_at"] is None


def test_a_method_that_always_diverges_has_no_finite_best() -> None:
    methods = {"wild": lambda scale: optax.scale(1e300 * scale), "tame": jc.sgd}
    result = swept(methods, {"wild": {"scale": [1e300, 1e305]}, "tame": RATES})
    assert result.best("wild").loss_mean == np.inf
    assert result.best().label == "tame"
    assert "diverged" in str(result)


# --- halving -------------------------------------------------------------------------------------------------------


def test_rungs() -> None:
    assert plan_rungs(27, 81, 3) == [Rung(27, 0, 3), Rung(9, 3, 9), Rung(3, 9, 27), Rung(1, 27, 81)]
    assert plan_rungs(8, 100, 2) == [Rung(8, 0, 12), Rung(4, 12, 25), Rung(2, 25, 50), Rung(1, 50, 100)]
    assert plan_rungs(5, 10, None) == [Rung(5, 0, 10)]
    for points in range(1, 60):
        for halving in (1.2, 2, 3, 4.5):
            rungs = plan_rungs(points, 50, halving)
            assert rungs[0].first == 0
            assert rungs[-1].last == 50
            assert all(a.last == b.first < b.last and a.num_points > b.num_points for a, b in itertools.pairwise(rungs))


@pytest.mark.parametrize("lanes", [None, 3])
def test_halving_keeps_the_best_and_frees_the_others(lanes: int | None) -> None:
    rates = np.logspace(-4, 0, 27)
    whole = swept(grid={"learning_rate": rates}, num_steps=81)
    halved = swept(grid={"learning_rate": rates}, num_steps=81, halving=3, lanes=lanes, eval_fn=lambda p: p["b"][0])
    steps = halved.methods["sgd"].steps
    assert sorted(steps[:, 0].tolist()) == [3] * 18 + [9] * 6 + [27] * 2 + [81]
    (last,) = np.flatnonzero(steps[:, 0] == 81)
    assert halved.methods["sgd"].best == last
    np.testing.assert_allclose(halved.curve("sgd")[last], whole.curve("sgd")[last], rtol=1e-9)
    np.testing.assert_allclose(halved.best().params["W"].shape, (2, 3, 4))
    assert halved.best().loss_mean == pytest.approx(whole.loss("sgd")[last].mean(), rel=1e-9)
    for point, taken in enumerate(steps[:, 0]):  # every point is what it would be after so many steps
        np.testing.assert_allclose(halved.curve("sgd")[point, :, :taken], whole.curve("sgd")[point, :, :taken])
        assert np.isnan(halved.curve("sgd")[point, :, taken:]).all()


def test_halving_takes_a_fraction_of_the_work() -> None:
    """Steps of lanes that are computed, counted in the compiled calls, padding included."""
    setup: Any = swept_setup(num_steps=81, halving=3)
    run = MethodRun(setup, swept_method(np.logspace(-4, 0, 27)), 10**6, None)
    seeds, points = run.shape
    computed = run.total_steps() * seeds * points
    assert computed <= 0.4 * 27 * 2 * 81
    assert computed <= 1.5 * sum(rung.num_points * (rung.last - rung.first) for rung in run.rungs) * 2 + 81 * 2 * 8


def swept_method(rates: Any) -> Any:
    from jaxopt_course.sweeps.methods import Method

    return Method("sgd", jc.sgd, jc.sweeps.product(learning_rate=rates))


def swept_setup(num_steps: int, halving: float | None) -> Any:
    from jaxopt_course.sweeps.runs import Setup
    from jaxopt_course.training.feed import StepPlan

    starts = jax.vmap(init)(jax.random.split(KEY, 2))
    plan = StepPlan(jax.random.split(KEY, 2), 50, 8, True)
    return Setup(OBJECTIVE, False, DATA, plan, num_steps, starts, None, np.array([], int), None, halving, "best")


def test_a_lane_that_halving_drops_for_an_infinite_loss_is_dated() -> None:
    def objective(params: Any, batch: Any) -> jax.Array:
        value = params["b"][0]  # minibatches stay finite
        return value if len(batch[0]) == 8 else jnp.where(value < -5.0, jnp.inf, value)

    rates = [1e-3, 2e-3, 10.0]
    result = swept(grid={"learning_rate": rates}, objective=objective, num_steps=6, halving=3)
    dates = {(row["learning_rate"], row["steps"], row["diverged_at"]) for row in result.rows()}
    assert dates == {(1e-3, 2, None), (2e-3, 6, None), (10.0, 2, 2)}


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("lanes", [1, 2, 7, 16, 64, 1000])
def test_blocks_hold_at_most_so_many_lanes(devices: int, lanes: int) -> None:
    for points in (1, 3, 21, 100):
        for seeds in (1, 3, 5, 10):
            across, along, by_seeds = block_shape(seeds, plan_rungs(points, 50, None), lanes, devices)
            assert (across if by_seeds else along) % devices == 0
            assert across * along <= max(lanes, devices)


# --- points --------------------------------------------------------------------------------------------------------


def test_points_of_random_distributions() -> None:
    points = jc.sweeps.random(
        KEY, 2000, a=jc.sweeps.log_uniform(1e-4, 1.0), b=jc.sweeps.uniform(-1, 3), c=jc.sweeps.choice([1, 5])
    )
    assert points.count == 2000
    for values, low, high in ((np.log10(points["a"]), -4, 0), (points["b"], -1, 3)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        counts = np.histogram(values, 10, (low, high))[0]
        assert np.abs(counts - 200).max() < 60
    assert {*points["c"].tolist()} == {1, 5}
    again = jc.sweeps.random(KEY, 2000, b=jc.sweeps.uniform(-1, 3))
    np.testing.assert_array_equal(again["b"], points["b"])  # whatever else is drawn
    result = swept(jc.adam, jc.sweeps.random(KEY, 5, learning_rate=jc.sweeps.log_uniform(1e-3, 1.0)))
    assert result.loss("adam").shape == (5, 2)


def test_edges_of_a_grid_are_named() -> None:
    result = swept(jc.adam, {"learning_rate": [1e-6, 1e-5], "b1": [0.5], "b2": [0.9, 0.99, 0.999]}, num_steps=5)
    best = result.best()
    assert "learning_rate" in best.at_edge
    assert "b1" not in best.at_edge
    assert ("b2" in best.at_edge) == (best.hyperparameters["b2"] != 0.99)


# --- what goes in --------------------------------------------------------------------------------------------------


class Tuple(NamedTuple):
    W: Any
    b: Any


def test_models_of_flax_and_equinox_and_starts_for_all_seeds() -> None:
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(3, param_dtype=jnp.float64)(linen.tanh(linen.Dense(5, param_dtype=jnp.float64)(x)))

    net = Net()
    objective = jc.empirical_risk(net.apply, jc.losses.softmax_cross_entropy)
    flax_init = functools.partial(lambda key, x: net.init(key, x), x=jnp.asarray(DATA[0][:1]))
    result = swept(jc.adam, {"learning_rate": [1e-3, 0.1]}, objective, init=flax_init, num_epochs=20)
    assert result.best().loss_mean < 0.9 < result.start_loss.mean()

    start = Tuple(jnp.zeros((3, 4)), jnp.zeros(3))
    fixed = swept(jc.adam, {"learning_rate": [0.1]}, lambda p, batch: OBJECTIVE(p._asdict(), batch), init=start)
    assert fixed.start_loss[0] == fixed.start_loss[1]
    assert fixed.curve("adam")[0, 0, 1] != fixed.curve("adam")[0, 1, 1]  # other minibatches
    assert type(fixed.best().params) is Tuple


def test_an_equinox_model_is_a_tree_though_it_can_be_called() -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 3, 5, 1, activation=jnp.tanh, key=KEY)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def objective(params: Any, batch: Any) -> jax.Array:
        scores = jax.vmap(eqx.combine(params, static))(batch[0])
        return jnp.mean(jc.losses.softmax_cross_entropy(scores, batch[1]))

    for start in (arrays, lambda key: eqx.filter(eqx.nn.MLP(4, 3, 5, 1, key=key), eqx.is_inexact_array)):
        result = swept(jc.adam, {"learning_rate": [0.03]}, objective, init=start, num_epochs=20)
        assert result.best().loss_mean < result.start_loss.mean()
    with pytest.raises(TypeError, match=r"equinox.filter"):
        swept(jc.adam, {"learning_rate": [0.03]}, objective, init=model)


def test_a_start_made_by_numpy() -> None:
    def start(key: jax.Array) -> Any:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return {"W": rng.standard_normal((3, 4)), "b": np.zeros(3)}

    result = swept(init=start)
    assert result.start_loss[0] != result.start_loss[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hyperparameters_take_the_dtype_of_the_parameters(dtype: str) -> None:
    def start(key: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), init(key))

    data = jnp.asarray(DATA[0], dtype), DATA[1]
    for name, factory in {"adam": jc.adam, "optax": functools.partial(optax.sgd, momentum=0.9)}.items():
        result = swept({name: factory}, {"learning_rate": [0.1]}, init=start, data=data, num_epochs=10)
        assert result.best().params["W"].dtype == dtype
        assert result.best().loss_mean < result.start_loss.mean()


def test_aux_and_callbacks_and_evaluations() -> None:
    seen: list[Any] = []
    result = swept(
        objective=lambda params, batch: (OBJECTIVE(params, batch), jnp.zeros(3)),
        has_aux=True,
        num_steps=12,
        eval_fn=lambda params: {"norm": jnp.sum(params["W"] ** 2), "b": params["b"]},
        eval_every=5,
        callback=seen.append,
    )
    assert result.eval_steps.tolist() == [0, 5, 10, 12]
    evals = result.methods["sgd"].evals
    assert evals["norm"].shape == (3, 2, 4)
    assert evals["b"].shape == (3, 2, 4, 3)
    (k_init, k_data), *_ = keys(2)
    run = jc.train(OBJECTIVE, jc.sgd(0.1), init(k_init), DATA, key=k_data, batch_size=8, num_steps=12)
    assert evals["norm"][1, 0, -1] == pytest.approx(float(jnp.sum(run.params["W"] ** 2)))
    assert result.rows()[2]["eval/norm"] == evals["norm"][1, 0, -1]
    assert [snapshot.step for snapshot in seen] == sorted({snapshot.step for snapshot in seen})
    assert seen[-1].step == seen[-1].num_steps


@pytest.mark.parametrize("count", [0, 1])
def test_runs_of_no_and_of_one_step(count: int) -> None:
    result = swept(num_steps=count, eval_fn=lambda params: params["b"][0])
    assert result.curve("sgd").shape == (3, 2, count)
    assert (result.methods["sgd"].steps == count).all()
    if count == 0:
        np.testing.assert_allclose(result.loss("sgd"), result.start_loss[None, :].repeat(3, 0))


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown hyperparameter": ({"grid": {"rate": [0.1]}}, TypeError, "sgd has no hyperparameter rate; it takes learn"),
    "missing": ({"optimizers": jc.momentum, "grid": {"rho": [0.1]}}, TypeError, "momentum needs learning_rate"),
    "empty grid": ({"grid": {}}, ValueError, "the grid is empty"),
    "no values": ({"grid": {"learning_rate": []}}, ValueError, "learning_rate has no values"),
    "rank 2": ({"grid": {"learning_rate": np.ones((2, 2))}}, ValueError, "rank 1, got rank 2"),
    "rank 0": ({"grid": {"learning_rate": 0.1}}, (ValueError), "write \\[0.1\\]"),
    "NaN": ({"grid": {"learning_rate": [0.1, np.nan]}}, ValueError, r"learning_rate\[1\] is NaN"),
    "text": ({"grid": {"learning_rate": ["a"]}}, TypeError, "must be numbers"),
    "flag": ({"optimizers": jc.momentum, "grid": {**RATES, "nesterov": [True, False]}}, TypeError, "partial"),
    "structure": (
        {"optimizers": lambda depth: optax.chain(*[jc.sgd(0.1)] * int(depth)), "grid": {"depth": [1, 2]}},
        TypeError,
        "optimizer decides by depth",
    ),
    "refused value": ({"grid": {"learning_rate": [0.1, -1.0]}}, ValueError, "sgd refuses learning_rate=-1.0"),
    "distribution": ({"grid": {"learning_rate": jc.sweeps.uniform(0, 1)}}, TypeError, "sweeps.random"),
    "labels": ({"grid": {"adam": RATES}}, ValueError, r"labels of the optimizers, \['sgd'\]"),
    "mixed grid": ({"grid": {"sgd": RATES, "learning_rate": [0.1]}}, ValueError, "labels of the optimizers"),
    "no methods": ({"optimizers": {}}, ValueError, "there are no optimizers"),
    "an optimizer": ({"optimizers": jc.sgd(0.1)}, TypeError, "must be a factory.*already made"),
    "no optimizer": ({"optimizers": lambda learning_rate: 3}, TypeError, "must return an optimizer"),
    "no seeds": ({"num_seeds": 0}, ValueError, "num_seeds must be at least 1"),
    "no lanes": ({"lanes": 0}, ValueError, "lanes must be at least 1"),
    "halving": ({"halving": 1}, ValueError, "halving must be a number above 1"),
    "keep": ({"keep_params": "some"}, ValueError, "keep_params"),
    "key": ({"key": 0}, TypeError, "key must be a random key"),
    "batch": ({"batch_size": 51}, ValueError, "sweep: batch_size must be from 1 to the 50 examples"),
    "no length": ({"num_steps": None}, ValueError, "sweep: give either num_steps or num_epochs"),
    "eval": ({"eval_every": 3}, ValueError, "eval_every needs an eval_fn"),
    "init": ({"init": "zeros"}, TypeError, "init must be a function key -> params"),
    "integers": ({"init": lambda key: {"W": jnp.zeros((3, 4), int)}}, TypeError, "floating"),
    "shapes": (
        {"init": lambda key: {"W": jnp.zeros((3, 4 + int(jax.random.bits(key)) % 7)), "b": jnp.zeros(3)}},
        ValueError,
        r"same shapes for every seed.*\['W'\]",
    ),
    "objective": ({"objective": lambda params, batch: params["b"]}, ValueError, "must return a scalar"),
    "data": ({"data": (DATA[0], DATA[1][:-1])}, ValueError, "same number of examples"),
    "mask": ({"data": (np.ma.masked_less(DATA[0], 0), DATA[1])}, ValueError, "masked"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_anything_compiles(case: str, own_errors: None) -> None:
    arguments, kind, message = BAD[case]
    calls: list[Any] = []
    objective = arguments.get("objective", OBJECTIVE)

    def counted(params: Any, batch: Any) -> Any:
        calls.append(any(not isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)))
        return objective(params, batch)

    with pytest.raises(kind, match=message):
        swept(**{**arguments, "objective": counted})
    assert len(calls) <= 2  # tried on shapes at most


# --- what comes out ------------------------------------------------------------------------------------------------


def test_rows_are_a_table_for_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    result = swept({"SGD": jc.sgd, "Adam": jc.adam}, {"SGD": RATES, "Adam": {"learning_rate": [0.1], "b1": [0.0, 0.9]}})
    frame = pandas.DataFrame(result.rows())
    assert frame.shape == (10, 7)
    assert frame["diverged_at"].isna().all()
    means = frame[frame.label == "SGD"].groupby("learning_rate").loss.mean()
    assert means.idxmin() == result.best("SGD").hyperparameters["learning_rate"]
    json.dumps(result.rows())


@pytest.mark.parametrize("keep", ["best", "all", "none"])
def test_a_result_is_saved_and_loaded(keep: str, tmp_path: Path) -> None:
    result = swept({"a": jc.sgd, "b": jc.adam}, keep_params=keep, eval_fn=lambda p: (p["b"], [p["W"][0]]))
    result.save(tmp_path / "sweep.npz")
    loaded = jc.SweepResult.load(tmp_path / "sweep.npz")
    same: Any = jax.tree.structure(loaded.as_record())
    assert same == jax.tree.structure(result.as_record())
    for ours, theirs in zip(jax.tree.leaves(loaded.as_record()), jax.tree.leaves(result.as_record()), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=hasattr(theirs, "shape"))
    assert loaded.rows() == result.rows()
    assert str(loaded) == str(result)
    assert loaded.best().at_edge == result.best().at_edge
    assert not [*tmp_path.glob("*.part")]
    with pytest.raises(ValueError, match="holds a sweep"):
        jc.RaceResult.load(tmp_path / "sweep.npz")


def test_files_that_are_none_or_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.npz"
    swept().save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            jc.SweepResult.load(path)
        except ValueError:
            continue
        assert place < len(whole)  # a byte that the archive does not use, such as a date: nothing that is read changed
    for content in (b"", b"PK", whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"sweep\.npz"):
            jc.SweepResult.load(path)


def test_parameters_of_other_trees_come_back_by_path(tmp_path: Path) -> None:
    start = Tuple(jnp.zeros((3, 4), jnp.bfloat16), jnp.zeros(3))
    result = swept(objective=lambda p, batch: OBJECTIVE({"W": p.W.astype(float), "b": p.b}, batch), init=start)
    result.save(tmp_path / "sweep.npz")
    params = jc.SweepResult.load(tmp_path / "sweep.npz").best().params
    assert {*params} == {".W", ".b"}
    assert params[".W"].dtype == jnp.bfloat16


# --- killed, resumed, shared ---------------------------------------------------------------------------------------


def test_a_sweep_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by a signal after each compiled call in turn, with halving, two methods and split seeds."""
    from jaxopt_course.sweeps import sweep as module
    from jaxopt_course.training.interrupts import Signals

    monkeypatch.setattr(sys.modules[module.__module__], "SAVE_AFTER", 1e9)
    options = {"num_seeds": 3, "num_steps": 16, "halving": 2, "lanes": 2, "eval_fn": lambda p: p["b"], "eval_every": 6}
    methods = {"SGD": jc.sgd, "Adam": jc.adam}
    whole = swept(methods, **options)
    poll, calls, stops = Signals.poll, 0, list[jc.training.Interrupted]()

    def poll_now(self: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            self._received = 15
        return poll(self)

    monkeypatch.setattr(Signals, "poll", poll_now)
    while True:
        try:
            resumed = swept(methods, checkpoint_dir=tmp_path, **options)
            break
        except jc.training.Interrupted as error:
            stops.append(error)
    assert len(stops) >= 4
    assert {error.code for error in stops} == {143}
    assert "the same call continues" in str(stops[0])
    for ours, theirs in zip(jax.tree.leaves(resumed.as_record()), jax.tree.leaves(whole.as_record()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_signal_during_the_last_steps_of_a_method_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxopt_course.training.interrupts import Signals

    poll = Signals.poll

    def signalled(self: Any) -> Any:
        self._received = 15
        return poll(self)

    monkeypatch.setattr(Signals, "poll", signalled)
    with pytest.raises(jc.training.Interrupted, match="SIGTERM during SGD after 6 of 6 steps"):
        swept({"SGD": jc.sgd, "Adam": jc.adam}, num_steps=6, checkpoint_dir=tmp_path)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "grid": ({"grid": {"learning_rate": [1e-3, 0.1, 2.0]}}, r"grid\['learning_rate'\] has other values"),
    "data": ({"data": (DATA[0] + (np.arange(50) == 7)[:, None], DATA[1])}, "data.*other values among the examples"),
    "objective": (
        {"objective": jc.empirical_risk(jc.scores.linear, jc.losses.multiclass_hinge)},
        "its step is another one",
    ),
    "rule": ({"optimizers": {"sgd": lambda learning_rate: jc.sgd(2 * learning_rate)}}, "its step is another one"),
    "start": ({"init": lambda key: jax.tree.map(lambda leaf: leaf + 1, init(key))}, "starts.*other values"),
    "key": ({"key": jax.random.key(9)}, "its keys is"),
    "length": ({"num_epochs": 4}, "its num_steps is 18, here it is 24"),
    "batch": ({"batch_size": 9, "num_steps": 18}, "its batch_size is 8, here it is 9"),
}


def test_another_sweep_in_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    first = swept(checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(swept(checkpoint_dir=tmp_path).loss("sgd"), first.loss("sgd"))
    for name, (arguments, message) in OTHERS.items():
        print(name)
        with pytest.raises(jc.training.CheckpointError, match=message):
            swept(**{"checkpoint_dir": tmp_path, **arguments})


def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path) -> None:
    """SIGKILL again and again while a sweep saves all the time; the end is that of a sweep left alone."""
    code = f"""
import sys, numpy as np, jax
sys.path.insert(0, {str(ROOT)!r})
jax.config.update("jax_compilation_cache_dir", {str(tmp_path / "compiled")!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
import jaxopt_course as jc
import jaxopt_course.sweeps.sweep
sys.modules["jaxopt_course.sweeps.sweep"].SAVE_AFTER = 0.0
rng = np.random.default_rng(0)
data = rng.standard_normal((60, 5)), rng.integers(0, 3, 60).astype(np.int32)
objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
init = lambda key: jc.scores.init_linear(key, num_classes=3, num_features=5)
def say(at): print("at", at.step, flush=True)
result = jc.sweep(objective, {{"SGD": jc.sgd, "Adam": jc.adam}}, {{"learning_rate": [0.01, 0.1, 1.0]}}, init, data,
                  key=jax.random.key(0), batch_size=20, num_steps=60, lanes=4, eval_fn=lambda p: p["b"], eval_every=7,
                  checkpoint_dir=sys.argv[1] or None, callback=say)
result.save(sys.argv[2])
"""
    whole, resumed = tmp_path / "whole.npz", tmp_path / "resumed.npz"
    subprocess.run([sys.executable, "-c", code, "", whole], check=True, capture_output=True)
    kills = 0
    for calls in (2, 5, 9, 14, 1, 20, 10**6):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "saves", resumed], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for number, _ in enumerate(process.stdout, start=1):
            if number >= calls:
                process.kill()
                kills += 1
                break
        process.wait()
        process.stdout.close()
    assert kills >= 4
    a, b = (jc.SweepResult.load(path).as_record() for path in (whole, resumed))
    for ours, theirs in zip(jax.tree.leaves(b), jax.tree.leaves(a), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_two_processes_share_the_lanes(tmp_path: Path) -> None:
    """The same call in both, with halving and checkpoints; each ends with all of the result."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = f"""
import sys, numpy as np, jax
sys.path.insert(0, {str(ROOT)!r})
jax.distributed.initialize("localhost:{port}", 2, int(sys.argv[1]))
from jax.sharding import Mesh
from tests.test_sweep import swept, RATES
import jaxopt_course as jc
mesh = Mesh(np.array(jax.devices()), ("lanes",))
options = dict(num_seeds=3, keep_params="all", eval_fn=lambda p: p["b"], eval_every=5)
for more in ({{}}, {{"halving": 2}}):
    a, b = (swept(jc.adam, RATES, mesh=m, **more, **options) for m in (mesh, None))
    for x, y in zip(jax.tree.leaves(a.as_record()), jax.tree.leaves(b.as_record()), strict=True):
        if not isinstance(x, str): np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
c, d = (swept(jc.adam, RATES, mesh=mesh, checkpoint_dir={str(tmp_path / "saves")!r}) for _ in range(2))
np.testing.assert_array_equal(c.loss("adam"), d.loss("adam"))
"""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu", "PATH": ""}
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(who)], env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for who in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors


def test_devices_share_the_lanes(tmp_path: Path) -> None:
    code = f"""
import sys, numpy as np, jax
sys.path.insert(0, {str(ROOT)!r})
from jax.sharding import Mesh
from tests.test_sweep import swept, RATES, RULES
import jaxopt_course as jc
assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
options = dict(keep_params="all", eval_fn=lambda p: p["b"], eval_every=5)
for grid, seeds, more in (({{"learning_rate": np.linspace(0.01, 1, 11)}}, 2, {{}}), (RATES, 16, {{}}),
                          ({{"learning_rate": np.linspace(0.01, 1, 20)}}, 3, {{"halving": 2}})):
    a, b = (swept(jc.adam, grid, num_seeds=seeds, mesh=m, **more, **options) for m in (mesh, None))
    for x, y in zip(jax.tree.leaves(a.as_record()), jax.tree.leaves(b.as_record()), strict=True):
        if not isinstance(x, str): np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
c = swept(jc.adam, RATES, mesh=mesh, checkpoint_dir={str(tmp_path / "saves")!r})
d = swept(jc.adam, RATES, mesh=mesh, checkpoint_dir={str(tmp_path / "saves")!r})
np.testing.assert_array_equal(c.loss("adam"), d.loss("adam"))
"""
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
