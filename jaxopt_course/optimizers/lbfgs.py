r"""L-BFGS: quasi-Newton steps with the curvature seen in the last few steps.

`inverse_hessian_product(grads, history)` is the kernel, `remember` and `forget` are how a history changes, `lbfgs` puts
them behind optax's interface. The product has no loop: Byrd, Nocedal and Schnabel's compact form of the same matrix
needs one pass over the pairs to take inner products and one to combine them, where the two-loop recursion needs two of
each.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import Array, ArrayLike, Optimizer, Params, PyTree, Updates
from jaxopt_course.dtypes import at_least_32_bits, vdot, widened, working_dtype
from jaxopt_course.optimizers.hyperparameters import cached_factory
from jaxopt_course.optimizers.line_search import LineSearch, Step, scaled, strong_wolfe
from jaxopt_course.optimizers.searched import (
    Search,
    SearchInputs,
    decrement,
    down_the_gradient,
    gain_along,
    init_search,
    next_search,
    search_along,
    search_inputs,
    total_count,
)
from jaxopt_course.status import Status


class History(NamedTuple):
    """Up to m steps s and changes of gradient y, in a ring of m + 1 slots of which the one to be written next is free.

    `pairs`: like the parameters with `[2, m + 1, ...]` before, all s and all y; `scale[m + 1]`: 1 / sqrt(s'y), 0 in a
    free slot; `inverse_r[m + 1, m + 1]`: the inverse of R, where R_ij = s_i'y_j for i not newer than j, else 0; `yy`:
    y_i'y_j; both of the scaled pairs, for which s_i'y_i = 1; `num_stored`: pairs so far, int32.
    """

    pairs: PyTree
    scale: Array
    inverse_r: Array
    yy: Array
    num_stored: Array


def empty_history(params: Params, memory_size: int) -> History:
    """A history of no pairs, with room for m."""
    slots, dtype = memory_size + 1, working_dtype(params)

    def zeros(p: ArrayLike) -> Array:
        return jnp.zeros((2, slots, *jnp.shape(p)), at_least_32_bits(jnp.result_type(p)))

    square = jnp.zeros((slots, slots), dtype)
    return History(jax.tree.map(zeros, params), jnp.zeros(slots, dtype), square, square, jnp.zeros((), jnp.int32))


def inverse_hessian_product(grads: Updates, history: History) -> Updates:
    r"""The L-BFGS approximation of the inverse Hessian times a vector; the vector itself where the history is empty.

    $$H g = \gamma g + S w - \gamma Y u, \qquad u = R^{-1} S^T g, \qquad
      w = R^{-T} (D u + \gamma Y^T Y u - \gamma Y^T g)$$

    with $\gamma = s^T y / y^T y$ of the newest pair and D the diagonal of R; of scaled pairs D is 1.

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
    """The history with a pair more, in place of the oldest where it is full; the same if s'y <= eps |s| |y|.

    Args:
      history: the pairs so far.
      s: a step, like the parameters, in at least 32 bits.
      y: the change of the gradient over it.

    Returns:
      The new history; its `num_stored` tells whether the pair was taken.

    Source: Byrd, Nocedal, Schnabel (1994), section 3: R grows by a column, and so does its inverse.
    """
    slots, dtype = len(history.scale), history.scale.dtype
    slot = lax.rem(history.num_stored, jnp.int32(slots))
    ss, curvature, square = (vdot(a, b, dtype) for a, b in ((s, s), (s, y), (y, y)))
    sy, yy = _products(history, y)
    own, gamma = lax.rsqrt(curvature), curvature / square
    curved = curvature > jnp.finfo(dtype).eps * jnp.sqrt(square) * jnp.sqrt(ss)
    in_range = jnp.isfinite(own) & jnp.isfinite(gamma) & jnp.isfinite(1 / gamma) & jnp.all(jnp.isfinite(sy + yy))
    good = curved & in_range

    def write(pairs: Array, s: Array, y: Array) -> Array:  # after the products, and only then: in place, without a copy
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
    """The history without its pairs, `when` that is so."""
    emptied = {name: jnp.where(when, 0, getattr(history, name)) for name in ("scale", "inverse_r", "num_stored")}
    return history._replace(**emptied)


def _products(history: History, v: Updates) -> tuple[Array, Array]:
    """S'v and Y'v of the scaled pairs; 0 for free slots, whatever lies in them."""
    slots, dtype = len(history.scale), history.scale.dtype
    leaves = zip(jax.tree.leaves(history.pairs), jax.tree.leaves(v), strict=True)
    raw = sum((pairs.reshape(2 * slots, -1) @ leaf.reshape(-1)).astype(dtype) for pairs, leaf in leaves)
    scale = jnp.stack([history.scale] * 2)
    sv, yv = jnp.where(scale > 0, scale * jnp.reshape(raw, (2, slots)), 0)
    return sv, yv


class LBFGSState(NamedTuple):
    """`history`: the pairs; `search`: the last step; `num_skipped`: pairs not taken for want of curvature;
    `num_resets`: how often the history was dropped because no lower point was found along its direction;
    `reset_status`: the line-search status that caused the last reset, 0 after a successful step; these are int32,
    counts since `init`. `last_gain`: what the last step alone tells of the gain that is left; `search.gain` is the
    larger of the last two.
    """

    history: History
    search: Search
    num_skipped: Array
    num_resets: Array
    reset_status: Array
    last_gain: Array


@cached_factory
def lbfgs(memory_size: int = 10, line_search: LineSearch = strong_wolfe) -> Optimizer:
    r"""Newton's method with an inverse Hessian made of the last m steps, and a search for the length of each.

    $$w \leftarrow w - t H g, \qquad s = w_{new} - w, \qquad y = g_{new} - g$$

    H is `inverse_hessian_product`'s and t = 1 the first trial. While there are no pairs the direction is -g/|g|, and
    the first trial has the scale of the parameters, 0.1 max|w|, or |f|/|g| where they are 0: neither depends on
    the units of f or w. A pair is skipped when s'y <= eps |s| |y|. Where no lower point is found along -H g, the
    history is dropped and the next step goes down the gradient; where that fails too, the state's `search.status` says
    why.

    `update` needs `params`, `value=` and `value_fn=`, which `minimize` and `train` pass. The pair is formed inside the
    step from two gradients of the same function, so it is sound on minibatches and inside `optax.chain` too.

    Args:
      memory_size: m, pairs kept, at least 1; each costs twice the memory of the parameters.
      line_search: `strong_wolfe`, or a function like it.

    Returns:
      The optimizer; its state is `LBFGSState`.

    Raises:
      ValueError: a memory_size below 1; in `update`, keywords that are missing.
      TypeError: a memory_size that is not a whole number; parameters that are not real floating point.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> f = lambda w: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
      >>> optimizer, w = lbfgs(), jnp.array([-1.2, 1.0])
      >>> state, step = optimizer.init(w), jax.jit(optimizer.update, static_argnames="value_fn")
      >>> for _ in range(40):
      ...     value, grad = jax.value_and_grad(f)(w)
      ...     updates, state = step(grad, state, w, value=value, grad=grad, value_fn=f)
      ...     w = optax.apply_updates(w, updates)
      >>> f"{f(jnp.array([-1.2, 1.0])):.1f} -> {f(w):.6f}"
      '24.2 -> 0.000000'

    Source: the lecture's "L-BFGS"; Liu and Nocedal (1989), "On the limited memory BFGS method for large scale
    optimization", algorithm 2.1.
    """
    if isinstance(memory_size, bool) or not isinstance(memory_size, int):
        raise TypeError(f"memory_size must be a whole number, got {type(memory_size).__name__}: {memory_size!r}")
    if memory_size < 1:
        raise ValueError(f"memory_size must be at least 1, got {memory_size}")

    def init(params: Params) -> LBFGSState:
        search, zero = init_search(params), jnp.zeros((), jnp.int32)
        return LBFGSState(empty_history(params, memory_size), search, zero, zero, zero, search.gain)

    def update(grads: Updates, state: LBFGSState, params: Params = None, **keywords: Any) -> tuple[Updates, LBFGSState]:
        if not jax.tree.leaves(grads):
            return grads, state
        inputs, history = search_inputs("lbfgs", grads, params, **keywords), state.history
        direction, first = direction_and_length(history, widened(grads), inputs)
        slope = vdot(inputs.grad, direction, history.scale.dtype)
        step = search_along(line_search, inputs, direction, first)
        updates = scaled(step.length, direction, params)
        new = remember(history, widened(updates), optax.tree.sub(step.point.grad, inputs.grad))
        moved, has_pairs = step.length > 0, history.num_stored > 0
        skipped = moved & (new.num_stored == history.num_stored)
        reset = ~moved & inputs.is_active & has_pairs & (step.status != Status.UNBOUNDED)
        running, lost = jnp.int32(Status.RUNNING), jnp.int32(Status.ROUNDOFF_LIMITED)
        status = jnp.where(reset, running, step.status)  # the next step goes down the gradient
        twice = (status == Status.LINE_SEARCH_FAILED) & (state.reset_status == lost)  # the first failure told why
        has_model = has_pairs | (state.reset_status < 0)
        gain = gain_left(slope, step, has_pairs, has_model)
        larger = jnp.maximum(gain, jnp.where(has_model, state.last_gain, 0))
        return updates, LBFGSState(
            forget(new, reset),
            next_search(state.search, step, jnp.where(twice, lost, status), larger),
            total_count(state.num_skipped, skipped.astype(jnp.int32)),
            total_count(state.num_resets, reset.astype(jnp.int32)),
            jnp.where(reset, step.status, running),
            gain.astype(state.last_gain.dtype),
        )

    return Optimizer(init, update)


def direction_and_length(history: History, grads: Updates, inputs: SearchInputs) -> tuple[Updates, Array]:
    """-H g and 1; where there are no pairs, -g/|g| and a length in the scale of the parameters."""

    def quasi_newton() -> tuple[Updates, Array]:
        return optax.tree.scale(-1, inverse_hessian_product(grads, history)), jnp.ones((), history.scale.dtype)

    return lax.cond(history.num_stored > 0, quasi_newton, lambda: down_the_gradient(grads, inputs))


def gain_left(slope: Array, step: Step, has_pairs: Array, has_model: Array) -> Array:
    """The model's estimate of what is left to gain, or that of the search where it is larger.

    Where no trial was lower, a curvature that is not positive is a matter of rounding, and the model's word stands.
    """
    along = gain_along(slope, step.curvature)
    along = jnp.where((step.length == 0) & has_model & jnp.isinf(along), 0, along)
    along = jnp.where(slope <= 0, along, jnp.inf)
    return jnp.maximum(jnp.where(has_pairs, decrement(slope), 0), along)
