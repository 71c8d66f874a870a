"""What `jc.diagnose` says of runs whose trouble was planted, and what its probes measure against closed forms."""

import functools
from functools import partial
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from experiments.planted_runs import plant
from jaxopt_course.diagnosis import Evidence
from jaxopt_course.landscape.quadratic_theory import Settings, stability_limit
from jaxopt_course.training.response import Rule, linear_response
from jaxopt_course.training.vectors import Vectors

CASES = 50  # of each cause
KEY = jax.random.key(0)
H = np.array([100.0, 10.0, 1.0])


def bowl(w: Any, batch: Any) -> Any:
    return jnp.sum(jnp.asarray(H, w["a"].dtype) * w["a"] ** 2) / 2 + jnp.mean(batch @ w["a"])


def noise(count: int = 512, dtype: Any = jnp.float64) -> Any:
    x = jax.random.normal(KEY, (count, 3), dtype)
    return x - jnp.mean(x, axis=0, keepdims=True)


def trained(optimizer: Any, *, steps: int = 60, every: int | None = 20, **options: Any) -> Any:
    start = {"a": jnp.ones(3)}
    return jc.train(
        bowl, optimizer, start, noise(), key=KEY, batch_size=32, num_steps=steps, probe_every=every, **options
    )


def probes_of(result: Any) -> Any:
    return result.trace.probes


def test_planted_trouble_is_found_and_nothing_wrong_is_certain() -> None:
    missed, wrong, off = [], [], []
    for cause in jc.Cause:
        for seed in range(CASES):
            planted = plant(cause.name, seed)
            findings = jc.diagnose(planted.result).findings
            if findings[0].cause != cause:
                missed.append((cause.name, seed, findings))
            elif planted.factor is not None and not np.isclose(findings[0].factor, planted.factor, rtol=0.1):
                off.append((cause.name, seed, findings[0].factor, planted.factor))
            wrong += [(cause.name, seed, f) for f in findings if f.certain and f.cause not in {cause, *planted.also}]
    assert not wrong
    assert len(missed) <= 0.05 * CASES * len(jc.Cause), missed
    assert not off


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [
        (jc.sgd(0.01), stability_limit(100.0)),
        (jc.momentum(0.01, 0.9), stability_limit(100.0, 0.9)),
        (jc.momentum(0.01, 0.5, nesterov=True), stability_limit(100.0, 0.5, True)),
        (optax.sgd(0.01, momentum=0.9, nesterov=True), stability_limit(100.0, 0.9, True)),
        (optax.chain(optax.clip(1e6), optax.trace(0.8), optax.scale(-0.01)), stability_limit(100.0, 0.8)),
    ],
)
def test_the_stability_limit_is_read_from_what_a_rule_does(optimizer: Any, limit: float) -> None:
    probes = probes_of(trained(optimizer))
    assert np.allclose(probes.surveys.highest.value / 2, 0.01 / limit, rtol=1e-6)
    assert np.allclose(probes.surveys.highest_fresh / 2, 0.01 / limit, rtol=1e-6)
    assert np.allclose(probes.looks.sharpness[1:] / 2, 0.01 / limit, rtol=1e-3)
    assert probes.surveys.regular.all()


def test_adams_limit_is_38_over_the_rate_on_the_preconditioned_hessian() -> None:
    optimizer, params = jc.adam(0.01), {"a": jnp.ones(3)}
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        _, state = optimizer.update({"a": jnp.asarray(rng.standard_normal(3) * H)}, state, params)
    response = linear_response(Rule(Vectors(params), optimizer, params), state, jnp.asarray(H), KEY, jnp.array(True))
    second = np.asarray(state.nu["a"]) / (1 - 0.999**1000)
    assert np.allclose(response.alternating, 2 / 38 * 0.01 / np.sqrt(second), rtol=0.03)
    assert np.allclose(response.steady, 0.01 / np.sqrt(second), rtol=0.05)


def test_a_rule_that_mixes_entries_is_not_called_regular() -> None:
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.01))
    assert not probes_of(trained(clipped)).surveys.regular.any()
    assert not probes_of(trained(optax.lion(1e-3))).surveys.regular.any()
    assert not any(finding.certain for finding in jc.diagnose(trained(clipped)).findings)


def test_noise_and_gradient_are_those_of_the_data() -> None:
    result = trained(jc.sgd(1e-9), steps=400, every=4)
    pair = probes_of(result).looks.pair
    variance = float(jnp.sum(jnp.var(noise(), axis=0)))
    assert np.mean(pair.noise) == pytest.approx(variance / 32, rel=0.2)
    assert np.mean(pair.signal) == pytest.approx(np.sum(H**2), rel=0.01)
    left = probes_of(result).surveys.left[-1].sum(-1)
    assert np.mean(left) == pytest.approx(np.sum(H) / 2, rel=0.01)


@functools.cache
def network() -> tuple[Any, Any, Any]:
    """A small network on digits: objective, parameters, and 256 examples in float64."""
    images, labels = jc.data.load("digits").train
    data = jnp.asarray(images[:256, ::4], float) / 16, jnp.asarray(labels[:256])
    params = jc.scores.init_mlp(jax.random.key(3), 10, 16, 8)
    return jc.empirical_risk(partial(jc.scores.mlp, activation=jnp.tanh), jc.losses.softmax_cross_entropy), params, data


def test_sharpness_is_that_of_power_iteration_and_of_the_whole_hessian() -> None:
    objective, params, data = network()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    gradient = jax.grad(lambda w: objective(unravel(w), data))
    product = jax.jit(lambda v: jax.jvp(gradient, (flat,), (v,))[1])
    v = jax.random.normal(KEY, flat.shape)
    for _ in range(300):
        v = product(v) / jnp.linalg.norm(product(v))
    largest = float(v @ product(v))
    assert largest == pytest.approx(float(jnp.linalg.eigvalsh(jax.jacfwd(gradient)(flat))[-1]), rel=1e-6)
    result = jc.train(objective, jc.sgd(1e-9), params, data, key=KEY, batch_size=256, num_steps=2, probe_every=1)
    assert np.allclose(probes_of(result).surveys.highest.value / 1e-9, largest, rtol=1e-3)


def test_noise_scale_and_critical_batch_are_those_of_every_single_gradient() -> None:
    objective, params, data = network()
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def loss(w: Any, rows: Any) -> Any:
        return objective(unravel(w), rows)

    every = jax.vmap(jax.grad(loss), (None, 0))(flat, jax.tree.map(lambda leaf: leaf[:, None], data))
    mean, H = every.mean(0), jax.hessian(loss)(flat, data)
    apart = every - mean[None]
    scale = float(jnp.sum(apart**2) / len(every) / (mean @ mean))
    critical = float(jnp.sum((apart @ H) * apart) / len(every) / (mean @ H @ mean))
    result = jc.train(objective, jc.sgd(1e-9), params, data, key=KEY, batch_size=64, num_steps=2, probe_every=1)
    for moment in (seen := Evidence.of(result)).first, seen.last:
        assert moment.noise_scale.low < scale < moment.noise_scale.high
        assert moment.noise_scale.mean == pytest.approx(scale, rel=0.3)
        assert moment.critical_batch.low < critical < moment.critical_batch.high
        assert moment.trace.low < jnp.trace(H) < moment.trace.high
    assert (seen.looks.noise_scale > 0).all()
    assert (np.abs(seen.looks.cosine) < 1).all()


def test_the_trace_by_hutchinson() -> None:
    """Exact where the Hessian is diagonal; otherwise an estimate of several draws, of a single minibatch too."""
    for moment in (seen := Evidence.of(trained(jc.sgd(1e-6), steps=2, every=1))).first, seen.last:
        assert moment.trace.mean == pytest.approx(H.sum(), rel=1e-9)
    objective, params, data = network()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    trace = float(jnp.trace(jax.hessian(lambda w: objective(unravel(w), data))(flat)))
    result = jc.train(objective, jc.sgd(1e-9), params, data, key=KEY, batch_size=256, num_steps=2, probe_every=1)
    estimated = Evidence.of(result).first.trace
    assert estimated.low < trace < estimated.high
    assert estimated.mean == pytest.approx(trace, rel=0.2)
    assert estimated.high - estimated.low > 0.01 * trace


def test_an_update_is_set_beside_the_parameters() -> None:
    seen = Evidence.of(trained(jc.sgd(1e-3), steps=20, every=1))
    first = np.linalg.norm(1e-3 * H) / np.sqrt(3)
    assert seen.looks.update_ratio[0] == pytest.approx(first, rel=0.05)
    assert seen.looks.cosine[0] > 0.99


def test_the_figure_has_the_loss_and_three_panels_under_it() -> None:
    figure = jc.plots.diagnosis(trained(jc.momentum(0.001, 0.9)), title="a bowl")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss", "rate / stability limit", "noise scale / batch", "update / parameters"]
    with pytest.raises(jc.training.NonFiniteError) as failed:
        trained(jc.sgd(10.0), steps=300)
    figure = jc.plots.diagnosis(failed.value.result)
    assert figure.axes[1].get_ylim()[1] > 100
    with pytest.raises(ValueError, match="probe_every="):
        jc.plots.diagnosis(trained(jc.sgd(0.001), every=None))


def test_probes_change_nothing_of_the_run() -> None:
    probed = trained(jc.adam(0.01))
    plain = trained(jc.adam(0.01), every=None)
    assert np.array_equal(probed.trace.loss, plain.trace.loss)
    assert np.array_equal(probed.params["a"], plain.params["a"])
    assert plain.trace.probes is None


def test_a_resumed_run_has_the_probes_of_one_that_never_stopped(tmp_path: Any) -> None:
    whole = trained(jc.momentum(0.001, 0.9), steps=60)
    first = trained(jc.momentum(0.001, 0.9), steps=30, checkpoint_dir=tmp_path)
    assert probes_of(first).survey_steps.tolist() == [0, 30]
    again = trained(jc.momentum(0.001, 0.9), steps=60, checkpoint_dir=tmp_path)
    assert probes_of(again).steps.tolist() == [0, 20, 30, 40, 60]
    assert np.array_equal(again.trace.loss, whole.trace.loss)
    assert np.array_equal(again.params["a"], whole.params["a"])
    assert str(jc.diagnose(again)) == str(jc.diagnose(trained(jc.momentum(0.001, 0.9), checkpoint_dir=tmp_path)))
    with pytest.raises(jc.training.CheckpointError, match="probe_every"):
        trained(jc.momentum(0.001, 0.9), every=10, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_parameters(dtype: Any) -> None:
    data = noise(dtype=jnp.float32).astype(dtype)
    result = jc.train(
        bowl, jc.sgd(0.001), {"a": jnp.ones(3, dtype)}, data, key=KEY, batch_size=32, num_steps=40, probe_every=20
    )
    assert np.allclose(probes_of(result).surveys.highest.value / 2, 0.05, rtol=0.02)


def test_a_loss_without_a_forward_derivative() -> None:
    @jax.custom_vjp
    def squares(w: Any) -> Any:
        return jnp.sum(w**2)

    squares.defvjp(lambda w: (squares(w), w), lambda w, ct: (2 * w * ct,))

    def objective(w: Any, batch: Any) -> Any:
        return 50 * squares(w) + jnp.mean(batch @ w)

    result = jc.train(objective, jc.sgd(0.01), jnp.ones(3), noise(), key=KEY, batch_size=32, num_steps=4, probe_every=2)
    assert np.allclose(probes_of(result).surveys.highest.value / 2, 0.5, rtol=1e-6)


def test_streamed_data_and_aux() -> None:
    def with_aux(w: Any, batch: Any) -> Any:
        return bowl(w, batch), {"size": jnp.sum(w["a"])}

    result = jc.train(
        with_aux, jc.sgd(0.001), {"a": jnp.ones(3)}, np.asarray(noise()), key=KEY, batch_size=32, num_steps=40,
        probe_every=10, has_aux=True, max_data_bytes=32 * 3 * 8 * 8,
    )  # fmt: skip
    assert np.allclose(probes_of(result).surveys.highest.value / 2, 0.05)
    assert probes_of(result).steps.tolist() == [0, 10, 20, 30, 40]


def test_a_known_surface() -> None:
    surface = jc.surfaces.bowl(100.0, angle=0.4)
    over = Settings(1.7 * stability_limit(100.0, 0.9), 0.9)
    found = jc.diagnose(over, surface.fn, jnp.array([1.0, 1.0])).findings[0]
    assert (found.cause, found.certain) == (jc.Cause.RATE_TOO_HIGH, True)
    assert found.factor == pytest.approx(1.7)
    under = jc.diagnose(Settings(0.01), surface.fn, jnp.array([1.0, 1.0]))
    assert under.cause is jc.Cause.HEALTHY
    assert "0.5 times the stability limit" in str(under)
    well = jc.diagnose(Settings(0.1), jc.surfaces.SURFACES["double_well"].fn, jnp.zeros(2)).findings[0]
    assert (well.cause, well.factor) == (jc.Cause.SADDLE, pytest.approx(1.1))
    hill = jc.diagnose(Settings(0.1), jc.surfaces.SURFACES["hill"].fn, jnp.zeros(2))
    assert "no learning rate overshoots" in str(hill)


def test_what_cannot_be_diagnosed_is_said() -> None:
    with pytest.raises(ValueError, match="probe_every="):
        jc.diagnose(trained(jc.sgd(0.001), every=None))
    with pytest.raises(jc.training.NonFiniteError) as failed:
        jc.train(
            bowl, jc.sgd(0.1), {"a": jnp.full(3, 1e200)}, noise(), key=KEY, batch_size=8, num_steps=5, probe_every=1
        )
    with pytest.raises(ValueError, match="no probe at its end"):
        jc.diagnose(failed.value.result)
    with pytest.raises(TypeError, match="a function and a point"):
        jc.diagnose(Settings(0.1))
    with pytest.raises(ValueError, match="probe_every"):
        trained(jc.sgd(0.001), every=0)
    with pytest.raises(TypeError, match="real parameters"):
        jc.train(
            lambda w, x: jnp.mean(jnp.abs(x - w) ** 2), jc.sgd(0.1), jnp.array(1 + 1j), jnp.ones(8), key=KEY,
            batch_size=2, num_steps=2, probe_every=1,
        )  # fmt: skip
