"""The objective, which is the mean loss over a batch plus a penalty, and the accuracy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_course.annotations import Array, ArrayLike, Float, Shaped
from jaxopt_course.dtypes import widest
from jaxopt_course.problems.labels import check_labels, in_range

Objective = Callable[[Any, tuple[ArrayLike, ArrayLike]], Array]


def empirical_risk(
    score_fn: Callable[[Any, Any], Array],
    loss_fn: Callable[[Array, Any], Array],
    penalty: Callable[[Any], Array] | None = None,
    strength: float | Array = 0.0,
) -> Objective:
    r"""The lecture's full objective: data loss plus regularization.

    $$L(W) = \frac{1}{N} \sum_{i=1}^{N} L_i\bigl(f(x_i, W), y_i\bigr) + \lambda R(W)$$

    Create the objective once and reuse it: each call returns a new function, which is compiled separately.

    Args:
      score_fn: `(params, inputs) -> scores[B, C]`, such as `scores.linear`.
      loss_fn: `(scores, labels) -> losses[B]`, one number for each example; the mean is taken here.
      penalty: `params -> scalar`, such as `losses.l2_penalty`.
      strength: lambda, a number or a traced scalar, not negative.

    Returns:
      `objective(params, batch) -> scalar` with `batch = (inputs, labels)`.

    Raises:
      ValueError: a negative strength, a strength without a penalty, and, when the objective is called, a batch that is
        empty or whose loss is not one number for each example.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxopt_course import losses, scores
      >>> objective = empirical_risk(scores.linear, losses.softmax_cross_entropy, losses.l2_penalty, 1e-3)
      >>> batch = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
      >>> W = jnp.zeros((2, 2))
      >>> for _ in range(20):
      ...     W = W - 1.0 * jax.grad(objective)(W, batch)
      >>> f"{objective(jnp.zeros((2, 2)), batch):.3f} -> {objective(W, batch):.3f}"
      '0.693 -> 0.062'

    Source: the lecture's "Regularization" and "Recap"; Vapnik (1991), "Principles of risk minimization", eq. 3.
    """
    known = not isinstance(strength, jax.core.Tracer)
    if penalty is None and not (known and float(strength) == 0):
        raise ValueError(f"empirical_risk: strength = {strength} without a penalty; pass one, e.g. losses.l2_penalty")
    if known and not 0 <= float(strength) < float("inf"):
        raise ValueError(f"empirical_risk: strength must be finite and not negative, got {strength}")

    def objective(params: Any, batch: tuple[ArrayLike, ArrayLike]) -> Array:
        inputs, labels = batch
        losses = jnp.asarray(loss_fn(score_fn(params, inputs), labels))
        if losses.shape != jnp.shape(labels):
            raise ValueError(
                f"empirical_risk: loss_fn returned shape {losses.shape} for labels of shape {jnp.shape(labels)}; "
                "expected one loss for each example (the mean is taken here)"
            )
        if losses.size == 0:
            raise ValueError("empirical_risk: the batch is empty, so its mean loss is undefined")
        risk = jnp.mean(losses)
        if penalty is None:
            return risk
        cost = jnp.asarray(penalty(params))
        dtype = widest(risk.dtype, cost.dtype)
        return risk.astype(dtype) + jnp.asarray(strength, dtype) * cost.astype(dtype)

    return objective


def accuracy(scores: Float[ArrayLike, "*batch C"], labels: Shaped[ArrayLike, "..."]) -> Float[Array, ""]:
    """The fraction of examples whose highest score is at their label.

    If scores tie, the first counts. A row that contains a NaN counts as wrong. Under `jit`, a label out of range makes
    the accuracy NaN.

    Args:
      scores: `[..., C]`, floating point.
      labels: `[...]`, integers in 0..C-1.

    Returns:
      A scalar between 0 and 1.

    Raises:
      ValueError: labels that are not integers, out of range, or of another shape than the rows of scores; no examples.

    Example:
      >>> import jax.numpy as jnp
      >>> print(accuracy(jnp.array([[0.2, 0.8], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]), jnp.array([1, 0, 1, 1])))
      0.75
    """
    scores, labels = check_labels("accuracy", scores, labels)
    if labels.size == 0:
        raise ValueError("accuracy: no examples, so the accuracy is undefined")
    right = (jnp.argmax(scores, axis=-1).astype(labels.dtype) == labels) & ~jnp.any(jnp.isnan(scores), axis=-1)
    return jnp.where(jnp.all(in_range(scores, labels)), jnp.mean(right, dtype=float), jnp.nan)
