"""An example of a user's own problem and rule for the race: three spirals, a flax network, and sign momentum.

    python -m experiments race --problem experiments/examples/spirals.py \
        --optimizers adam optax.lion experiments/examples/spirals.py:sign_momentum

Needs flax. Source of the data: CS231n, "Putting it together: Minimal Neural Network Case Study".
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.tanh(nn.Dense(32)(x)))


def spirals(rng: np.random.Generator, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in the plane, and the index of the spiral arm of each."""
    labels = np.repeat(np.arange(3), per_class)
    radius = np.tile(np.linspace(0, 1, per_class), 3)
    angle = 4 * (labels + radius) + 0.2 * rng.standard_normal(len(labels))
    points = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    return points.astype(np.float32), labels.astype(np.int32)


model = Network()
data = spirals(np.random.default_rng(0), 100)
held_out = spirals(np.random.default_rng(1), 100)
batch_size = 50
grid = {"learning_rate": [1e-3, 1e-2, 1e-1]}


def init(key):
    return model.init(key, jnp.zeros((1, 2)))


def objective(params, batch):
    inputs, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, inputs), labels).mean()


def eval_fn(params):
    inputs, labels = held_out
    return {"held_out_accuracy": jnp.mean(jnp.argmax(model.apply(params, inputs), axis=1) == labels)}


def sign_momentum(learning_rate, decay=0.9):
    return optax.chain(optax.trace(decay), optax.scale_by_sign(), optax.scale_by_learning_rate(learning_rate))
