"""Trees of parameters: sharded over devices, with leaves that are no arrays, with gradients of None."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from tests.tables import RULES

each_rule = pytest.mark.parametrize("name", RULES)
ROOT = Path(__file__).parent.parent

SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from tests.tables import RULES

def made(name, rate):
    return RULES[name].make(**{**RULES[name].example, "learning_rate": rate})

def run(optimizer, params, steps=3):
    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(jax.tree.map(lambda x: 2 * x, w), state, w)
        return (optax.apply_updates(w, updates), state), None
    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0]

def bytes_on(device, tree):
    shards = [s for leaf in jax.tree.leaves(tree) if leaf.ndim for s in leaf.addressable_shards]
    return sum(s.data.nbytes for s in shards if s.device == device)

start = np.linspace(-1, 1, 1024).astype(np.float32).reshape(64, 16)
makers = {name: (lambda rate, name=name: made(name, rate)) for name in RULES}
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    for dtype in (jnp.float32, jnp.bfloat16, jnp.complex64):
        params = {"w": jax.device_put(start.astype(dtype), NamedSharding(mesh, P("d")))}
        for name, make in makers.items():
            optimizer = make(lambda count: 0.01)
            for init in (optimizer.init, jax.jit(optimizer.init)):
                state = init(params)
                for device in jax.devices():
                    assert bytes_on(device, state) == bytes_on(jax.devices()[0], optax.tree.zeros_like(state)), name
                for leaf in jax.tree.leaves(state):
                    assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(params["w"].sharding, 2), (name, leaf)
    params = {"w": jax.device_put(start, NamedSharding(mesh, P("d")))}
    for name, make in makers.items():
        for rate in (0.01, lambda count: 0.01):
            expected, _ = jax.jit(lambda w: run(make(rate), w))({"w": jnp.asarray(start)})
            w, state = jax.jit(lambda w: run(make(rate), w))(params)
            mapped = jax.shard_map(lambda w: run(make(rate), w), mesh=mesh, in_specs=P("d"), out_specs=(P("d"), P()))
            if all(leaf.ndim == 0 for leaf in jax.tree.leaves(state)):
                mapped = jax.jit(mapped)
                np.testing.assert_allclose(mapped(params)[0]["w"], expected["w"], rtol=1e-6)
            else:
                only_w = jax.shard_map(lambda w: run(make(rate), w)[0], mesh=mesh, in_specs=P("d"), out_specs=P("d"))
                np.testing.assert_allclose(jax.jit(only_w)(params)["w"], expected["w"], rtol=1e-6)
            np.testing.assert_allclose(w["w"], expected["w"], rtol=1e-6)
            assert w["w"].sharding.is_equivalent_to(params["w"].sharding, 2)
            for leaf in jax.tree.leaves(state):
                assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(params["w"].sharding, 2), (name, leaf)
"""


def test_moments_are_sharded_like_their_parameters() -> None:
    """Made outside `jit`, under it, in a scan and in `shard_map`, with implicit and explicit shardings."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, cwd=ROOT, check=True, timeout=300)


def model_and_gradients() -> tuple[Any, Any, Any]:
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(2, 1, 3, 1, activation=jax.nn.relu, key=jax.random.key(0))
    gradients = equinox.filter_grad(lambda m: jnp.sum(m(jnp.ones(2)) ** 2))(model)
    return equinox, model, gradients


@each_rule
def test_update_takes_a_whole_equinox_model(name: str) -> None:
    equinox, model, gradients = model_and_gradients()
    arrays = equinox.filter(model, equinox.is_inexact_array)
    rule = RULES[name].make(**RULES[name].example)
    for optimizer in (rule, optax.chain(optax.clip(0.5), optax.add_decayed_weights(1e-2), rule)):
        state = optimizer.init(arrays)
        expected, _ = optimizer.update(gradients, state, arrays)
        updates, _ = optimizer.update(gradients, state, model)
        chex.assert_trees_all_equal(updates, expected)
        moved = equinox.apply_updates(model, updates)
        assert moved.activation is model.activation
        assert not jnp.array_equal(moved.layers[0].weight, model.layers[0].weight)


@each_rule
def test_a_leaf_that_is_no_array_is_named(name: str) -> None:
    _, model, gradients = model_and_gradients()
    optimizer = RULES[name].make(**RULES[name].example)
    with pytest.raises(TypeError, match=r"params\.activation is of type .*equinox\.filter\(model"):
        optimizer.init(model)
    with pytest.raises(TypeError, match=r"params\['name'\] is of type str"):
        optimizer.init({"w": jnp.ones(2), "name": "a"})
    with pytest.raises(ValueError, match="do not match at"):
        optimizer.update({"w": gradients}, optimizer.init({"w": gradients}), model)


@each_rule
def test_a_gradient_of_none_leaves_its_parameter_alone(name: str) -> None:
    optimizer = RULES[name].make(**RULES[name].example)
    gradients = {"w": jnp.ones(2), "frozen": None}
    updates, _ = optimizer.update(gradients, optimizer.init(gradients), {"w": jnp.ones(2), "frozen": jnp.ones(3)})
    assert updates["frozen"] is None
    assert bool(jnp.all(updates["w"] < 0))
