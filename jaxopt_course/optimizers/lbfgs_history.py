r"""The history of L-BFGS: steps, gradient changes, and the inverse Hessian approximation built from them.

The product with the inverse Hessian has no loop. Byrd, Nocedal and Schnabel's compact form of the matrix needs one pass
over the pairs for inner products and one to combine them; the two-loop recursion needs two of each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, ArrayLike, Params, PyTree, Updates
from jaxopt_course.dtypes import at_least_32_bits, vdot, working_dtype


class History(NamedTuple):
    """Up to m steps s and gradient changes y, in a ring buffer of m + 1 slots; the slot to be written next is empty.

    `pairs`: all s and all y, like the parameters with leading axes `[2, m + 1, ...]`; `scale[m + 1]`: 1 / sqrt(s'y), 0
    in an empty slot; `inverse_r[m + 1, m + 1]`: the inverse of R, where R_ij = s_i'y_j for i not newer than j, else 0;
    `yy`: y_i'y_j; both for the scaled pairs, which have s_i'y_i = 1; `num_stored`: pairs so far, int32.
    """

    pairs: PyTree
    scale: Array
    inverse_r: Array
    yy: Array
    num_stored: Array


def empty_history(params: Params, memory_size: int) -> History:
    """Return an empty history with a capacity of `memory_size` pairs."""
    slots, dtype = memory_size + 1, working_dtype(params)

    def zeros(p: ArrayLike) -> Array:
        return jnp.zeros((2, slots, *jnp.shape(p)), at_least_32_bits(jnp.result_type(p)))

    square = jnp.zeros((slots, slots), dtype)
    return History(jax.tree.map(zeros, params), jnp.zeros(slots, dtype), square, square, jnp.zeros((), jnp.int32))


def inverse_hessian_product(grads: Updates, history: History) -> Updates:
    r"""The L-BFGS approximation of the inverse Hessian times a vector; the vector itself if the history is empty.

    $$H g = \gamma g + S w - \gamma Y u, \qquad u = R^{-1} S^T g, \qquad
      w = R^{-T} (D u + \gamma Y^T Y u - \gamma Y^T g)$$

    with $\gamma = s^T y / y^T y$ of the newest pair and D the diagonal of R; for scaled pairs D is the identity.

    Args:
      grads: g, like the parameters, in at least 32 bits.
      history: the pairs.

    Returns:
      H g, like `grads`.

    Example:
      >>> import jax.numpy as jnp
      >>> curvature = jnp.array([1.0, 10.0, 100.0])
      >>> history = empty_history(curvature, memory_size=3)
      >>> for s in jnp.eye(3):
      ...     history = remember(history, s, curvature * s)
      >>> print(inverse_hessian_product(curvature, history).round(4))
      [1. 1. 1.]

    Source: Byrd, Nocedal, Schnabel (1994), "Representations of quasi-Newton matrices and their use in limited memory
    methods", theorem 2.2; the matrix is that of Nocedal (1980), "Updating quasi-Newton matrices with limited storage".
    """
    slots = jnp.int32(len(history.scale))
    newest = lax.rem(history.num_stored + slots - 1, slots)
    gamma = jnp.where(history.num_stored > 0, 1 / history.yy[newest, newest], 1)
    sg, yg = _products(history, grads)
    u = history.inverse_r @ sg
    w = (u + gamma * (history.yy @ u - yg)) @ history.inverse_r
    coefficients = jnp.concatenate([history.scale * w, -gamma * history.scale * u])

    def combine(g: Array, pairs: Array) -> Array:
        rows = pairs.reshape(len(coefficients), -1)
        return gamma.astype(g.dtype) * g + (coefficients.astype(g.dtype) @ rows).reshape(g.shape)

    return jax.tree.map(combine, grads, history.pairs)


def remember(history: History, s: Updates, y: Updates) -> History:
    """Add a pair to the history, replacing the oldest if it is full; a pair with s'y <= eps |s| |y| is skipped.

    Args:
      history: the pairs so far.
      s: a step, like the parameters, in at least 32 bits.
      y: the change of the gradient over that step.

    Returns:
      The new history; its `num_stored` shows whether the pair was added.

    Source: Byrd, Nocedal, Schnabel (1994), section 3: R gains a column, and so does its inverse.
    """
    slots, dtype = len(history.scale), history.scale.dtype
    slot = lax.rem(history.num_stored, jnp.int32(slots))
    ss, curvature, square = (vdot(a, b, dtype) for a, b in ((s, s), (s, y), (y, y)))
    sy, yy = _products(history, y)
    own, gamma = lax.rsqrt(curvature), curvature / square
    curved = curvature > jnp.finfo(dtype).eps * jnp.sqrt(square) * jnp.sqrt(ss)
    in_range = jnp.isfinite(own) & jnp.isfinite(gamma) & jnp.isfinite(1 / gamma) & jnp.all(jnp.isfinite(sy + yy))
    good = curved & in_range

    def write(pairs: Array, s: Array, y: Array) -> Array:  # only after the products, so that it is in place, not a copy
        pair = jnp.where(good, jnp.stack([s, y]), 0)[:, None]
        return lax.dynamic_update_slice_in_dim(pairs, pair, slot, 1)

    numbers = jnp.arange(slots, dtype=jnp.int32)
    here, oldest = numbers == slot, numbers == lax.rem(slot + 1, jnp.int32(slots))
    column = jnp.where(here, 1, -own * (history.inverse_r @ sy))
    yy = own * jnp.where(here, own * square, yy)
    changed = (
        jnp.where(oldest, 0, jnp.where(here, own, history.scale)),
        jnp.where(oldest[:, None] | oldest[None], 0, jnp.where(here[None], column[:, None], history.inverse_r)),
        jnp.where(here[None], yy[:, None], jnp.where(here[:, None], yy[None], history.yy)),
        history.num_stored + 1,
    )
    pairs = jax.tree.map(write, history.pairs, s, y)
    return History(pairs, *(jnp.where(good, new, old) for new, old in zip(changed, history[1:], strict=True)))


def forget(history: History, when: Array) -> History:
    """Empty the history where `when` is true."""
    emptied = {name: jnp.where(when, 0, getattr(history, name)) for name in ("scale", "inverse_r", "num_stored")}
    return history._replace(**emptied)


def _products(history: History, v: Updates) -> tuple[Array, Array]:
    """Return S'v and Y'v for the scaled pairs; 0 for empty slots, whatever they contain."""
    slots, dtype = len(history.scale), history.scale.dtype
    leaves = zip(jax.tree.leaves(history.pairs), jax.tree.leaves(v), strict=True)
    raw = sum((pairs.reshape(2 * slots, -1) @ leaf.reshape(-1)).astype(dtype) for pairs, leaf in leaves)
    scale = jnp.stack([history.scale] * 2)
    sv, yv = jnp.where(scale > 0, scale * jnp.reshape(raw, (2, slots)), 0)
    return sv, yv
