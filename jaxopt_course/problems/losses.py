"""From scores to a loss for each example, and the penalties on the parameters.

Every loss takes `(scores, labels)` in this order and returns one number for each example; `empirical_risk` takes the
mean, and nothing else does. They are safe for scores of any size and for infinite ones: a wrong class at -inf counts
for nothing, the right class at -inf gives a loss of +inf.

Labels that are out of range raise ValueError where their values are known. Under `jit`, where they are not, the loss of
such an example is NaN. Scores of 16 bits are widened to float32, and so are the losses made of them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_course.annotations import Array, ArrayLike, Float, Shaped
from jaxopt_course.dtypes import at_least_32_bits, check_floating, widest
from jaxopt_course.problems.labels import check_labels, in_range, is_correct_class


def multiclass_hinge(
    scores: Float[ArrayLike, "*batch C"], labels: Shaped[ArrayLike, "..."], *, margin: float = 1.0
) -> Float[Array, "*batch"]:
    r"""The lecture's multiclass SVM loss: every wrong class that comes within the margin costs (Weston-Watkins).

    $$L_i = \sum_{j \ne y_i} \max(0,\ s_j - s_{y_i} + \Delta)$$

    At the kink, where a margin is met exactly, the subgradient is 0.

    Args:
      scores: `[..., C]`, floating point.
      labels: `[...]`, integers in 0..C-1.
      margin: the lecture's Delta, in units of score.

    Returns:
      A loss for each example, `[...]`.

    Raises:
      ValueError: labels that are not integers, out of range, or of another shape than the rows of scores.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> scores = jnp.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])  # cat, car, frog
      >>> [round(float(loss), 1) for loss in multiclass_hinge(scores, jnp.array([0, 1, 2]))]
      [2.9, 0.0, 12.9]

      A step against the gradient brings it down:

      >>> mean_loss = lambda scores: multiclass_hinge(scores, jnp.array([0, 1, 2])).mean()
      >>> better = scores - 3.0 * jax.grad(mean_loss)(scores)
      >>> f"{mean_loss(scores):.2f} -> {mean_loss(better):.2f}"
      '5.27 -> 2.60'

    Source: Weston and Watkins (1999), "Support vector machines for multi-class pattern recognition", ESANN, eq. 5;
    the lecture's "Multiclass SVM loss" with these very scores.
    """
    scores, labels = check_labels("multiclass_hinge", scores, labels)
    gaps, right = _wrong_minus_right(_widen(scores), labels)
    return _finish(jnp.sum(_positive_part(gaps + margin), axis=-1), right, scores, labels)


def crammer_singer_hinge(
    scores: Float[ArrayLike, "*batch C"], labels: Shaped[ArrayLike, "..."], *, margin: float = 1.0
) -> Float[Array, "*batch"]:
    r"""The hinge of the worst offender alone: another loss than `multiclass_hinge`, which sums over all wrong classes.

    $$L_i = \max\bigl(0,\ \max_{j \ne y_i} s_j - s_{y_i} + \Delta\bigr)$$

    At the kink the subgradient is 0; wrong classes that tie share it.

    Args:
      scores: `[..., C]`, floating point.
      labels: `[...]`, integers in 0..C-1.
      margin: Delta, in units of score.

    Returns:
      A loss for each example, `[...]`.

    Raises:
      ValueError: as for `multiclass_hinge`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> scores = jnp.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
      >>> [round(float(loss), 1) for loss in crammer_singer_hinge(scores, jnp.array([0, 1, 2]))]
      [2.9, 0.0, 6.6]
      >>> mean_loss = lambda scores: crammer_singer_hinge(scores, jnp.array([0, 1, 2])).mean()
      >>> better = scores - 3.0 * jax.grad(mean_loss)(scores)
      >>> f"{mean_loss(scores):.2f} -> {mean_loss(better):.2f}"
      '3.17 -> 2.07'

    Source: Crammer and Singer (2001), "On the algorithmic implementation of multiclass kernel-based vector machines",
    JMLR 2, eq. 3; it is what optax and jaxopt call the multiclass hinge loss.
    """
    scores, labels = check_labels("crammer_singer_hinge", scores, labels)
    gaps, right = _wrong_minus_right(_widen(scores), labels)
    worst = jnp.where(jnp.any(jnp.isnan(gaps), axis=-1), jnp.nan, jnp.max(gaps, axis=-1))
    return _finish(_positive_part(worst + margin), right, scores, labels)


def softmax_cross_entropy(
    scores: Float[ArrayLike, "*batch C"], labels: Shaped[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    r"""Minus the log of the probability that softmax gives the right class, in nats.

    $$L_i = -\log \frac{e^{s_{y_i}}}{\sum_j e^{s_j}} = \log\bigl(1 + e^{z_i}\bigr), \qquad
      z_i = \log \sum_{j \ne y_i} e^{s_j} - s_{y_i}$$

    The second form is the one computed. A confident right answer keeps all its digits: a loss of 1e-20 is 1e-20, where
    the first form rounds to 0.

    Args:
      scores: `[..., C]`, floating point.
      labels: `[...]`, integers in 0..C-1.

    Returns:
      A loss for each example, `[...]`.

    Raises:
      ValueError: as for `multiclass_hinge`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> scores = jnp.array([[3.2, 5.1, -1.7]])
      >>> print(softmax_cross_entropy(scores, jnp.array([0])).round(2))
      [2.04]
      >>> mean_loss = lambda scores: softmax_cross_entropy(scores, jnp.array([0])).mean()
      >>> better = scores - 3.0 * jax.grad(mean_loss)(scores)
      >>> f"{mean_loss(scores):.3f} -> {mean_loss(better):.3f}"
      '2.040 -> 0.036'

    Source: the lecture's "Softmax classifier" with these very scores (it prints 0.89, the base-10 logarithm); Bishop
    (2006), "Pattern Recognition and Machine Learning", eq. 4.108.
    """
    scores, labels = check_labels("softmax_cross_entropy", scores, labels)
    wide = _widen(scores)
    is_correct = is_correct_class(wide, labels)
    right = jnp.sum(jnp.where(is_correct, wide, 0), axis=-1)
    anchor = jax.lax.stop_gradient(jnp.where(jnp.isfinite(right), right, 0))
    gaps = jnp.where(is_correct, -jnp.inf, wide - jnp.expand_dims(anchor, -1))
    log_odds_against = _logsumexp(gaps) + (anchor - right)
    return _finish(jnp.logaddexp(log_odds_against, jnp.zeros_like(right)), right, scores, labels)


def l2_penalty(params: Any) -> Float[Array, ""]:
    r"""The sum of squares of every entry of every leaf, without a factor of one half; the bias counts too.

    $$R(W) = \sum_{k, l} W_{k, l}^2$$

    Args:
      params: any tree of floating-point arrays; 16-bit leaves are summed in float32, complex ones by |w|^2.

    Returns:
      A scalar.

    Raises:
      TypeError: a leaf that is not floating point; it is named.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"W": jnp.array([[3.0, -4.0]]), "b": jnp.array([1.0])}
      >>> float(l2_penalty(params))
      26.0
      >>> smaller = jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.grad(l2_penalty)(params))
      >>> round(float(l2_penalty(smaller)), 2)
      16.64

    Source: the lecture's "Regularization", L2.
    """
    return _sum_over_leaves(lambda w: (w * jnp.conj(w)).real, params)


def l1_penalty(params: Any) -> Float[Array, ""]:
    r"""The sum of absolute values of every entry of every leaf; the subgradient at 0 is 0.

    $$R(W) = \sum_{k, l} |W_{k, l}|$$

    Args:
      params: any tree of floating-point arrays; 16-bit leaves are summed in float32.

    Returns:
      A scalar.

    Raises:
      TypeError: a leaf that is not floating point; it is named.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"W": jnp.array([[3.0, -4.0]]), "b": jnp.array([0.0])}
      >>> float(l1_penalty(params))
      7.0
      >>> smaller = jax.tree.map(lambda w, g: w - 0.5 * g, params, jax.grad(l1_penalty)(params))
      >>> float(l1_penalty(smaller))
      6.0

    Source: the lecture's "Regularization", L1.
    """
    return _sum_over_leaves(lambda w: jnp.where(w == 0, 0, jnp.abs(w)), params)  # jnp.abs has slope 1 at 0


def _widen(x: Array) -> Array:
    """At least 32 bits, so that sums and exponentials keep their digits."""
    return x.astype(at_least_32_bits(x.dtype))


def _wrong_minus_right(scores: Array, labels: Array) -> tuple[Array, Array]:
    """s_j - s_y, with -inf at the right class and at every class that scores -inf; and s_y itself."""
    is_correct = is_correct_class(scores, labels)
    right = jnp.sum(jnp.where(is_correct, scores, 0), axis=-1)
    excluded = is_correct | jnp.isneginf(scores)
    return jnp.where(excluded, -jnp.inf, scores - jnp.expand_dims(right, -1)), right


def _positive_part(x: Array) -> Array:
    """max(0, x) with slope 0 at 0. Not by a maximum: XLA's, fused into a sum on a CPU, takes NaN for 0 in long rows."""
    return jnp.where(x <= 0, 0, x)


def _logsumexp(scores: Array) -> Array:
    """log sum exp over the last axis; where every term is -inf, the lowest finite number and a gradient of zero."""
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.sum(jnp.exp(scores - jnp.expand_dims(top, -1)), axis=-1)
    lowest = jnp.finfo(scores.dtype).min
    return jnp.where(total == 0, lowest, jnp.log(jnp.where(total == 0, 1, total)) + top)


def _finish(losses: Array, right: Array, scores: Array, labels: Array) -> Array:
    """+inf where the right class is impossible, NaN where it scores NaN or the label names no class."""
    losses = losses + jnp.where(jnp.isneginf(right), jnp.inf, 0).astype(losses.dtype)
    return jnp.where(in_range(scores, labels) & ~jnp.isnan(right), losses, jnp.nan)


def _sum_over_leaves(term: Any, params: Any) -> Array:
    check_floating(params)
    sums = [jnp.sum(term(_widen(jnp.asarray(leaf)))) for leaf in jax.tree.leaves(params)]
    dtype = widest(*(s.dtype for s in sums)) if sums else float
    return sum((s.astype(dtype) for s in sums), jnp.zeros((), dtype))
