"""Steps as pure functions: no row is clamped, no mask dropped, complex parameters descend, meshes change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.training import init_carry, train_steps

ROOT = Path(__file__).parent.parent
POINTS = jnp.linspace(-1.0, 1.0, 8)
PLAN = jnp.arange(8, dtype=jnp.int32).reshape(4, 2)
SGD = jc.sgd(0.1)


def objective(w: Any, x: Any) -> Any:
    return jnp.mean((w * x - 3.0 * x) ** 2)


def steps(data: Any = POINTS, plan: Any = PLAN, *rows: Any, fn: Any = objective, **options: Any) -> Any:
    return train_steps(fn, SGD, init_carry(SGD, jnp.array(0.0)), data, plan, *rows, **options)


def test_arrays_of_different_lengths_are_refused_with_both_paths() -> None:
    with pytest.raises(ValueError, match=r"got data\['x'\] \(8,\), data\['y'\] \(4,\)"):
        steps({"x": POINTS, "y": POINTS[:4]})
    with pytest.raises(ValueError, match=r"got data\[0\] \(4, 2\), data\[1\] \(3, 2\)"):
        steps((POINTS.reshape(4, 2), jnp.zeros((3, 2))), None)
    with pytest.raises(ValueError, match="data is a scalar of dtype"):
        steps(jnp.array(1.0))
    with pytest.raises(ValueError, match="no arrays"):
        steps(())


@pytest.mark.parametrize("index", [8, 1000, -1])
def test_indices_out_of_range_are_refused_or_make_the_loss_nan(index: int) -> None:
    plan = PLAN.at[2, 1].set(index)
    with pytest.raises(ValueError, match=rf"plan\[2, 1\] = {index} is no index of the 8 examples"):
        steps(plan=plan)
    carry, record = jax.jit(lambda plan: steps(plan=plan))(plan)
    assert np.isnan(record.loss[2])
    assert record.skipped.tolist() == [False, False, True, True]
    np.testing.assert_allclose(carry.params, steps(plan=PLAN[:2])[0].params)
    labels = jnp.arange(8, dtype=jnp.int32)
    whole = jax.jit(
        lambda plan: steps(labels, plan, fn=lambda w, x: w * jnp.sum(x == 0).astype(float), on_nonfinite="skip")
    )(plan)
    assert whole[1].skipped.tolist() == [False, False, True, False]


@pytest.mark.parametrize("rows", [(-1, 2), (0, 5), (-3, 9)])
def test_rows_of_the_plan_out_of_range(rows: Any) -> None:
    with pytest.raises(ValueError, match="rows of the 4 steps"):
        steps(POINTS, PLAN, *rows)
    within = [min(max(row, 0), 4) for row in rows]
    traced = jax.jit(lambda first, last: steps(POINTS, PLAN, first, last))(*rows)
    jax.tree.map(np.testing.assert_allclose, traced, steps(POINTS, PLAN, *within))


RULES = {
    "sgd": jc.sgd(0.1),
    "momentum": jc.momentum(0.05),
    "adam": jc.adam(0.1),
    "rmsprop": jc.rmsprop(0.05),
    "adagrad": jc.adagrad(0.5),
    "optax.sgd": optax.sgd(0.1),
    "optax.adam": optax.adam(0.1),
}


@pytest.mark.parametrize("name", RULES)
def test_complex_parameters_descend(name: str) -> None:
    target = {"z": jnp.array([1 + 2j, -1 - 0.5j]), "x": jnp.array(0.5)}

    def distance(params: Any, _: Any) -> Any:
        return jnp.sum(jnp.abs(params["z"] - target["z"]) ** 2) + (params["x"] - target["x"]) ** 2

    with jax.numpy_dtype_promotion("standard"):
        start = jax.tree.map(jnp.zeros_like, target)
        result = jc.train(distance, RULES[name], start, POINTS, key=jax.random.key(0), batch_size=8, num_steps=150)
        assert float(distance(result.params, None)) < 0.02
        norm = 2 * np.sqrt(float(distance(start, None)))
    np.testing.assert_allclose(result.trace.grad_norm[0], norm)


MASKED = np.ma.masked_array([1.0, 2.0, 1e6, 4.0], [False, False, True, False])
MISREAD: dict[str, tuple[Any, str]] = {
    "masked": (MASKED, "mask would be dropped"),
    "matrix": (np.ones((2, 1)).view(np.matrix), "np.matrix"),
    "objects": (np.array([1.0, None], object), "dtype object"),
    "records": (np.zeros(2, [("a", float)]), "dtype"),
    "dates": (np.zeros(2, "datetime64[s]"), "dtype datetime64"),
    "text": ("abc", "is text"),
}


@pytest.mark.parametrize("kind", MISREAD)
def test_what_jax_would_misread_is_refused(kind: str) -> None:
    leaf, message = MISREAD[kind]
    with pytest.raises(ValueError, match=rf"data\['x'\].*{message}"):
        steps({"x": leaf}, jnp.zeros((1, 1), jnp.int32))
    with pytest.raises(ValueError, match=rf"params\['w'\].*{message}"):
        init_carry(SGD, {"w": leaf})
    if isinstance(leaf, np.ndarray):
        with pytest.raises(ValueError, match=message):
            jc.train(objective, SGD, jnp.array(0.0), leaf, key=jax.random.key(0), batch_size=1, num_steps=1)


def test_a_mask_of_nothing_is_taken() -> None:
    whole = np.ma.masked_array(np.asarray(POINTS), np.zeros(8, bool))
    trained = [
        jc.train(objective, SGD, jnp.array(0.0), data, key=jax.random.key(0), batch_size=4, num_steps=4).params
        for data in (whole, POINTS)
    ]
    np.testing.assert_array_equal(*trained)


@pytest.mark.parametrize(
    ("returned", "has_aux", "message"),
    [
        (lambda w: (w, w), False, "pass has_aux=True"),
        (lambda w: None, False, "got NoneType None"),
        (lambda w: w, True, r"must return \(value, aux\)"),
        (lambda w: jnp.stack([w, w]), False, r"got shape \(2,\); take the mean"),
    ],
)
def test_objectives_that_return_something_else(returned: Any, has_aux: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps(fn=lambda w, x: returned(w), has_aux=has_aux)


PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxopt_course as jc
jax.config.update("jax_enable_x64", True)

x, plan, answers = jnp.linspace(-1.0, 1.0, 64), jnp.arange(8, dtype=jnp.int32).reshape(4, 2), {}
mean = lambda w, b: jnp.mean((w * b - 3.0 * b) ** 2)
shared = lambda w, b: lax.pmean(mean(w, b), "d")

def run(objective, optimizer, data, plan=plan):
    carry = jc.training.init_carry(optimizer, jnp.array(0.0))
    return jc.training.train_steps(objective, optimizer, carry, data, plan)

auto = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
everyones = jnp.concatenate([plan + 8 * i for i in range(8)], axis=1)
for name, make in {"sgd": jc.sgd, "adam": jc.adam, "momentum": jc.momentum}.items():
    optimizer, found = make(0.1), {}
    found["one"] = run(mean, optimizer, x, everyones)
    found["shard_map"] = jax.jit(jax.shard_map(
        lambda x: run(shared, optimizer, x), mesh=auto, in_specs=P("d"), out_specs=P()))(x)
    with jax.set_mesh(explicit):
        on_mesh = jax.device_put(x, NamedSharding(explicit, P("d")))
        found["explicit"] = jax.jit(lambda x: run(mean, optimizer, x, everyones))(on_mesh)
        trained = jc.train(mean, optimizer, jnp.array(0.0), on_mesh, key=jax.random.key(0), batch_size=8, num_steps=4)
    plain = jc.train(mean, optimizer, jnp.array(0.0), x, key=jax.random.key(0), batch_size=8, num_steps=4)
    answers[f"{name} train"] = [[float(trained.params)], [float(plain.params)]]
    for kind in ("shard_map", "explicit"):
        answers[f"{name} {kind}"] = [
            [float(f[0].params), *f[1].loss.tolist(), *f[1].grad_norm.tolist()] for f in (found[kind], found["one"])]
print("ANSWER" + json.dumps(answers))
"""


def test_steps_on_a_mesh_are_those_of_one_device() -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    for name, (found, expected) in json.loads(ran.stdout.split("ANSWER")[1]).items():
        np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=name)
