"""Per-example losses of scores, and penalties on the parameters.

Every loss takes `(scores, labels)` in this order and returns one number for each example; only `empirical_risk` takes
the mean. The losses accept scores of any size, including infinite ones: a wrong class at -inf contributes nothing; the
right class at -inf or a wrong one at +inf gives a loss of +inf, and so does a gap between scores beyond the largest
number of their dtype. Gradients are those of the limit. If a score is NaN, or the right class and a wrong one are both
at +inf, the loss and the whole gradient of the example are NaN.

Labels that are out of range raise ValueError if their values are known. Under `jit` they are not known, and the loss
and the gradient of such an example are NaN. Scores of 16 bits are widened to float32, and the losses computed from them
are float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxopt_course.annotations import Array, ArrayLike, Float, Params, PyTree, Shaped
from jaxopt_course.dtypes import at_least_32_bits, check_floating, widest
from jaxopt_course.problems.labels import check_labels, in_range, is_correct_class

__all__ = ["crammer_singer_hinge", "l1_penalty", "l2_penalty", "multiclass_hinge", "softmax_cross_entropy"]


def __dir__() -> list[str]:
    return __all__


def multiclass_hinge(
    scores: Float[ArrayLike, "*batch C"], labels: Shaped[ArrayLike, "..."], *, margin: float = 1.0
) -> Float[Array, "*batch"]:
    r"""The lecture's multiclass SVM loss (Weston-Watkins): the sum of margin violations over all wrong classes.

    $$L_i = \sum_{j \ne y_i} \max(0,\ s_j - s_{y_i} + \Delta)$$

    At the kink, where the margin is met exactly, the subgradient is 0.

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

      A step along the negative gradient decreases the loss:

      >>> mean_loss = lambda scores: multiclass_hinge(scores, jnp.array([0, 1, 2])).mean()
      >>> better = scores - 3.0 * jax.grad(mean_loss)(scores)
      >>> f"{mean_loss(scores):.2f} -> {mean_loss(better):.2f}"
      '5.27 -> 2.60'

    Source: Weston and Watkins (1999), "Support vector machines for multi-class pattern recognition", ESANN, eq. 5;
    the lecture's "Multiclass SVM loss" with these very scores.
    """
    scores, labels = check_labels("multiclass_hinge", scores, labels)
    scores, excluded, right = _rivals(scores, labels)
    gaps = jnp.where(excluded, -jnp.inf, scores - jnp.expand_dims(right, -1))
    return _finish(jnp.sum(_positive_part(gaps + margin), axis=-1), scores, right)


def crammer_singer_hinge(
    scores: Float[ArrayLike, "*batch C"], labels: Shaped[ArrayLike, "..."], *, margin: float = 1.0
) -> Float[Array, "*batch"]:
    r"""Hinge loss of the highest-scoring wrong class only; `multiclass_hinge` sums over all wrong classes instead.

    $$L_i = \max\bigl(0,\ \max_{j \ne y_i} s_j - s_{y_i} + \Delta\bigr)$$

    At the kink the subgradient is 0; wrong classes with equal scores share the subgradient.

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
    scores, excluded, right = _rivals(scores, labels)
    worst = jnp.max(jnp.where(excluded, -jnp.inf, scores), axis=-1)
    return _finish(_positive_part(_minus(worst, right) + margin), scores, right)


def softmax_cross_entropy(
    scores: Float[ArrayLike, "*batch C"], labels: Shaped[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    r"""Negative log of the softmax probability of the right class, in nats.

    $$L_i = -\log \frac{e^{s_{y_i}}}{\sum_j e^{s_j}} = \log\bigl(1 + e^{z_i}\bigr), \qquad
      z_i = \log \sum_{j \ne y_i} e^{s_j} - s_{y_i}$$

    The second form is the one computed. It keeps all digits of small losses: a loss of 1e-20 is 1e-20, but the first
    form rounds it to 0.

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
    return _cross_entropy(_widen(scores), labels)


def l2_penalty(params: Params) -> Float[Array, ""]:
    r"""The sum of squares of all entries of all leaves, including the bias, without a factor of one half.

    $$R(W) = \sum_{k, l} W_{k, l}^2$$

    Args:
      params: any tree of floating-point arrays; 16-bit leaves are summed in float32, complex ones as |w|^2.

    Returns:
      A scalar.

    Raises:
      TypeError: a leaf that is not floating point; the message names it.

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
    return _sum_over_leaves(lambda w: w.real**2 + w.imag**2 if jnp.iscomplexobj(w) else w * w, params)


def l1_penalty(params: Params) -> Float[Array, ""]:
    r"""The sum of absolute values of all entries of all leaves; the subgradient at 0 is 0.

    $$R(W) = \sum_{k, l} |W_{k, l}|$$

    Args:
      params: any tree of floating-point arrays; 16-bit leaves are summed in float32.

    Returns:
      A scalar.

    Raises:
      TypeError: a leaf that is not floating point; the message names it.

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
    return _sum_over_leaves(_magnitude, params)


def _widen(x: Array) -> Array:
    """Cast to at least 32 bits, so that sums and exponentials are accurate."""
    return x.astype(at_least_32_bits(x.dtype))


@jax.custom_jvp
def _cross_entropy(scores: Array, labels: Array) -> Array:
    return _cross_entropy_and_slopes(scores, labels)[0]


@_cross_entropy.defjvp
def _cross_entropy_jvp(primals: tuple[Array, Array], tangents: tuple[Array, PyTree]) -> tuple[Array, Array]:
    losses, slopes = _cross_entropy_and_slopes(*primals)
    return losses, jnp.sum(slopes * tangents[0], axis=-1)


def _cross_entropy_and_slopes(scores: Array, labels: Array) -> tuple[Array, Array]:
    """Return losses and their gradient in one pass: q p_j for a wrong class j, -q for the right one, q = 1 - softmax_y.

    p is the softmax over the wrong classes only. A NaN score of a wrong class propagates through the sum.
    """
    is_correct = is_correct_class(scores, labels)
    right = jnp.sum(jnp.where(is_correct, scores, 0), axis=-1)
    top = jax.lax.stop_gradient(jnp.max(jnp.where(is_correct, -jnp.inf, scores), axis=-1))
    has_loss = in_range(scores, labels) & ~jnp.isnan(right) & ~(jnp.isposinf(top) & jnp.isposinf(right))
    level = jnp.where(jnp.isneginf(top), 0, top)
    rivals = jnp.where(is_correct, 0, jnp.exp(_minus(scores, jnp.expand_dims(level, -1))))
    total = jnp.sum(rivals, axis=-1)
    some = jnp.where(total == 0, 1, total)
    log_odds_against = jnp.where(total == 0, -jnp.inf, jnp.log(some) + _minus(level, right))
    losses = jnp.logaddexp(log_odds_against, jnp.zeros_like(right))
    losses = jnp.where(has_loss, jnp.where(jnp.isneginf(right), losses + jnp.inf, losses), jnp.nan)
    odds = jnp.expand_dims(jnp.where(has_loss, jax.nn.sigmoid(log_odds_against), jnp.nan), -1)
    return losses, odds * jnp.where(is_correct, -1, rivals / jnp.expand_dims(some, -1))


def _rivals(scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Return widened scores, a mask of the excluded classes (the right one, and wrong ones at -inf), and right scores.

    A row has no loss if a score is NaN, the label is out of range, or the right class and a wrong one are at +inf. Its
    scores are then all NaN; they are multiplied by NaN so that the gradient of the row is NaN too.
    """
    scores = _widen(scores)
    is_correct = is_correct_class(scores, labels)
    two_infinities = jnp.any(jnp.isposinf(scores) & ~is_correct, -1) & jnp.any(jnp.isposinf(scores) & is_correct, -1)
    has_loss = in_range(scores, labels) & ~jnp.any(jnp.isnan(scores), axis=-1) & ~two_infinities
    scores = scores * jnp.expand_dims(jnp.where(has_loss, 1, jnp.nan).astype(scores.dtype), -1)
    right = jnp.sum(jnp.where(is_correct, scores, 0), axis=-1)
    return scores, is_correct | jnp.isneginf(scores), right


def _positive_part(x: Array) -> Array:
    """Return max(0, x) with slope 0 at 0.

    It does not use a maximum: on a CPU, XLA's maximum fused into a sum turns NaN into 0 in long rows.
    """
    return jnp.where(x <= 0, 0, x)


@jax.custom_jvp
def _minus(a: Array, b: Array) -> Array:
    """Return a - b, or 0 if both are the same infinity; the slopes are 1 and -1 everywhere."""
    return jnp.where(a == b, 0, a - b)


@_minus.defjvp
def _minus_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _minus(*primals), tangents[0] - tangents[1]


def _finish(losses: Array, scores: Array, right: Array) -> Array:
    """Set losses to +inf if the right class is at -inf, and to NaN in rows of NaN, because a maximum on a CPU may lose
    a NaN.
    """
    losses = losses + jnp.where(jnp.isneginf(right), jnp.inf, 0).astype(losses.dtype)
    return jnp.where(jnp.isnan(scores[..., 0]), jnp.nan, losses)


def _magnitude(w: Array) -> Array:
    """Return |w| with slope 0 at 0 and slope NaN at NaN; the slopes of `jnp.abs` there are 1 and -1."""
    if jnp.iscomplexobj(w):
        return jnp.where(w == 0, 0, jnp.abs(w))
    return w * jax.lax.stop_gradient(jnp.sign(w))


def _sum_over_leaves(term: Callable[[Array], Array], params: Params) -> Array:
    check_floating(params)
    sums = [jnp.sum(term(_widen(jnp.asarray(leaf)))) for leaf in jax.tree.leaves(params)]
    dtype = widest(*(s.dtype for s in sums)) if sums else float
    return sum((s.astype(dtype) for s in sums), jnp.zeros((), dtype))
