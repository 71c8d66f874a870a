r"""L-BFGS: a Newton step with the curvature of the last few steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import Array
from jaxopt_course.dtypes import at_least_32_bits, widest
from jaxopt_course.optimizers.line_search import LineSearch, scaled, strong_wolfe
from jaxopt_course.optimizers.searched import Optimizer, Search, ask, found, search_along, start_search, widened
from jaxopt_course.status import Status


class History(NamedTuple):
    r"""The last m steps s and changes of gradient y, in the slots of a ring of m + 1; one slot is always free.

    The compact form of Byrd, Nocedal and Schnabel: with R_ij = s_i'y_j where i is not newer than j, else 0,

    $$H = \gamma I + [S, Y] \ldots$$

    `pairs`: like the parameters with `[2, m + 1, ...]` before, all s and all y; `scale[m + 1]`: 1 / sqrt(s'y), 0 in a
    slot that is free; `inverse_r`, `yy`: R^-1 and Y'Y of the scaled pairs; `count`: pairs stored so far.
    """

    pairs: Any
    scale: Array
    inverse_r: Array
    yy: Array
    count: Array


def empty_history(params: Any, memory_size: int) -> History:
    slots = memory_size + 1
    pairs = jax.tree.map(lambda p: jnp.zeros((2, slots, *jnp.shape(p)), at_least_32_bits(jnp.result_type(p))), params)
    dtype = widest(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(pairs)))
    square = jnp.zeros((slots, slots), dtype)
    return History(pairs, jnp.zeros(slots, dtype), square, square, jnp.zeros((), jnp.int32))


def inverse_hessian_product(grads: Any, history: History) -> Any:
    slots = len(history.scale)
    newest = (history.count - 1) % slots
    gamma = jnp.where(history.count > 0, 1 / history.yy[newest, newest], 1)
    sg, yg = _products(history, grads)
    u = history.inverse_r @ sg
    w = (u + gamma * (history.yy @ u - yg)) @ history.inverse_r
    coefficients = jnp.concatenate([history.scale * w, -gamma * history.scale * u])

    def combine(g: Array, pairs: Array) -> Array:
        rows = pairs.reshape(2 * slots, -1)
        return gamma.astype(g.dtype) * g + (coefficients.astype(g.dtype) @ rows).reshape(g.shape)

    return jax.tree.map(combine, grads, history.pairs)


def remember(history: History, s: Any, y: Any) -> History:
    slots, dtype = len(history.scale), history.scale.dtype
    slot = history.count % slots
    ss, curvature, square = (optax.tree.vdot(a, b).astype(dtype) for a, b in ((s, s), (s, y), (y, y)))
    sy, yy = _products(history, y)
    good = (curvature > jnp.finfo(dtype).eps * jnp.sqrt(square) * jnp.sqrt(ss)) & jnp.all(jnp.isfinite(sy + yy))

    def write(pairs: Array, s: Array, y: Array) -> Array:
        pair = jnp.where(good, jnp.stack([s, y]), 0)[:, None]
        return lax.dynamic_update_slice_in_dim(pairs, pair, slot, 1)

    own = lax.rsqrt(curvature)
    here, oldest = jnp.arange(slots) == slot, jnp.arange(slots) == (slot + 1) % slots
    last = jnp.where(here, 1, -own * (history.inverse_r @ sy))
    yy = own * jnp.where(here, own * square, yy)
    kept = (
        jnp.where(oldest, 0, jnp.where(here, own, history.scale)),
        jnp.where(oldest[:, None] | oldest, 0, jnp.where(here, last[:, None], history.inverse_r)),
        jnp.where(here, yy[:, None], jnp.where(here[:, None], yy, history.yy)),
        history.count + 1,
    )
    pairs = jax.tree.map(write, history.pairs, s, y)
    return History(pairs, *(jnp.where(good, a, b) for a, b in zip(kept, history[1:], strict=True)))


def forget(history: History, when) -> History:
    """An empty history in the same arrays."""
    return history._replace(
        scale=jnp.where(when, 0, history.scale),
        inverse_r=jnp.where(when, 0, history.inverse_r),
        count=jnp.where(when, 0, history.count),
    )


def _products(history: History, v: Any) -> tuple[Array, Array]:
    """S'v and Y'v of the scaled pairs; 0 for free slots, whatever lies in them."""
    slots = len(history.scale)
    dtype = history.scale.dtype
    leaves = zip(jax.tree.leaves(history.pairs), jax.tree.leaves(v), strict=True)
    both = sum((pairs.reshape(2 * slots, -1) @ x.reshape(-1)).astype(dtype) for pairs, x in leaves)
    both = both.reshape(2, slots)
    sv, yv = jnp.where(history.scale > 0, history.scale * both, 0)
    return sv, yv


class LBFGSState(NamedTuple):
    """`history`: the pairs; `search`: the last step; `num_skipped`: pairs not stored for want of curvature; `num_resets`:
    times the history was dropped because its direction led nowhere. Counters are int32, since `init`."""

    history: History
    search: Search
    num_skipped: Array
    num_resets: Array


def lbfgs(memory_size: int = 10, line_search: LineSearch = strong_wolfe) -> Optimizer:
    def init(params: Any) -> LBFGSState:
        zero = jnp.zeros((), jnp.int32)
        return LBFGSState(empty_history(params, memory_size), start_search(params), zero, zero)

    def update(grads: Any, state: LBFGSState, params: Any = None, **keywords: Any) -> tuple[Any, LBFGSState]:
        if not jax.tree.leaves(params):
            return grads, state
        asked, history = ask("lbfgs", grads, params, **keywords), state.history
        direction = optax.tree.scale(-1, inverse_hessian_product(widened(grads), history))
        slope = optax.tree.vdot(asked.grad, direction)
        first = jnp.where(history.count > 0, 1, jnp.minimum(1, lax.rsqrt(-slope)))  # min(1, 1 / |g|)
        step = search_along(line_search, asked, direction, first)
        updates = scaled(step.length, direction, params)
        moved = step.length > 0
        new = remember(history, widened(updates), optax.tree.sub(widened(step.point.grad), asked.grad))
        skipped = moved & (new.count == history.count)
        reset = ~moved & (history.count > 0) & (step.status != Status.UNBOUNDED)
        status = jnp.where(reset, Status.RUNNING, step.status)  # once more, down the gradient
        return updates, LBFGSState(
            forget(new, reset),
            found(state.search, step, status),
            state.num_skipped + skipped.astype(jnp.int32),
            state.num_resets + reset.astype(jnp.int32),
        )

    return Optimizer(init, update)
