"""Our own losses, penalties, scores and optimizers under our own gradient check."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxopt_course as jc
from tests.tables import RULES

KEY = jax.random.key(0)
SCORES = jax.random.normal(KEY, (5, 4))
LABELS = jnp.array([0, 3, 1, 1, 2])
PARAMS = {"W": jax.random.normal(jax.random.key(1), (4, 3)), "b": jnp.linspace(-0.5, 0.5, 4)}
INPUTS = jax.random.normal(jax.random.key(2), (5, 3))
LOSSES = {
    "multiclass_hinge": jc.losses.multiclass_hinge,
    "crammer_singer_hinge": jc.losses.crammer_singer_hinge,
    "softmax_cross_entropy": jc.losses.softmax_cross_entropy,
}
PENALTIES = {"none": None, "l1": jc.losses.l1_penalty, "l2": jc.losses.l2_penalty}


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, dtype: Any) -> None:
    for scale in (1.0, 30.0):
        jc.gradcheck(LOSSES[name], (scale * SCORES).astype(dtype), LABELS).raise_if_failed()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_objectives(name: str, penalty: str) -> None:
    strength = 0.0 if penalty == "none" else 0.1
    objective = jc.empirical_risk(jc.scores.linear, LOSSES[name], PENALTIES[penalty], strength)
    jc.gradcheck(objective, PARAMS, (INPUTS, LABELS)).raise_if_failed()


def test_the_objective_of_a_strength() -> None:
    def of_strength(strength: Any) -> Any:
        objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, strength)
        return objective(PARAMS, (INPUTS, LABELS))

    jc.gradcheck(jax.jit(of_strength), 0.1).raise_if_failed()


def test_the_hessian_of_the_softmax_objective() -> None:
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, 0.1)
    jc.gradgradcheck(objective, PARAMS, (INPUTS, LABELS)).raise_if_failed()


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_with_respect_to_hyperparameters_and_start(name: str) -> None:
    """What three steps of the rule end at, as a function of the learning rate and all else, and of where they began."""

    def end(everything: Any) -> Any:
        hyperparameters, params = everything
        optimizer = RULES[name].make(**hyperparameters)
        state = optimizer.init(params)
        for _ in range(3):
            grads = jax.tree.map(lambda p: 2 * p + jnp.sin(p), params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    hyperparameters = jax.tree.map(jnp.float64, RULES[name].example) | (
        {"eps": jnp.float64(1e-3)} if "eps" in RULES[name].example else {}
    )
    jc.gradcheck(jax.jit(end), (hyperparameters, {"w": jnp.array([0.7, -1.3])})).raise_if_failed()


def test_training_steps_as_a_function_of_the_learning_rate() -> None:
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
    plan = jnp.array([[0, 1], [2, 3], [4, 0]])

    def final_loss(learning_rate: Any) -> Any:
        optimizer = jc.adam(learning_rate)
        carry = jc.training.init_carry(optimizer, PARAMS)
        carry, _ = jc.training.train_steps(objective, optimizer, carry, (INPUTS, LABELS), plan)
        return objective(carry.params, (INPUTS, LABELS))

    report = jc.gradcheck(jax.jit(final_loss), 0.05)
    assert report.ok, report
