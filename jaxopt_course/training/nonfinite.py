"""The error for a step that is not finite, and its message."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Batch, Objective, Params, PyTree
from jaxopt_course.training.history import TrainResult


class NonFiniteError(FloatingPointError):
    """A loss or gradient was not finite. `step` counts from 1; `result` holds the results from before that step."""

    def __init__(self, message: str, step: int, result: TrainResult):
        super().__init__(message)
        self.step = step
        self.result = result


class NonFiniteStep(NamedTuple):
    """The parameters and the batch of a step that was not taken, with its loss and gradient norm."""

    params: Params
    batch: Batch
    loss: float
    grad_norm: float


def explain(step: NonFiniteStep, objective: Objective, has_aux: bool) -> str:
    """Describe what was not finite, by leaf, and what to do."""
    size = f"loss {step.loss:g}, gradient norm {step.grad_norm:g}"
    try:
        grads = jax.grad(objective, has_aux=has_aux)(step.params, step.batch)
    except ValueError as error:  # raised only if values are known, for example for a label out of range
        return f"{size}. On this batch the objective raises: {error}"
    loss = [] if np.isfinite(step.loss) else ["the loss"]
    gradient = not_finite_leaves("gradient", grads[0] if has_aux else grads)
    bad = [*loss, *gradient, *not_finite_leaves("params", step.params)]
    return (
        f"{size}; not finite: {', '.join(bad)}. The parameters from before this step are in error.result.params. "
        'Try a smaller learning rate, or on_nonfinite="skip".'
    )


def not_finite_leaves(name: str, tree: PyTree) -> list[str]:
    """Return the leaves with entries that are not finite, by path."""
    return [
        f"{name}{jax.tree_util.keystr(path)} ({int(jnp.sum(~jnp.isfinite(leaf)))} of {leaf.size} entries)"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not bool(jnp.all(jnp.isfinite(leaf)))
    ]
