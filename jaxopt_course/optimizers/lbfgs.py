r"""L-BFGS: quasi-Newton steps that use the curvature of the last few steps.

`inverse_hessian_product(grads, history)` is the kernel, `remember` and `forget` update a history, and `lbfgs` combines
them as an optax optimizer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxopt_course.annotations import Array, Optimizer, Params, Updates
from jaxopt_course.dtypes import norm, vdot, widened
from jaxopt_course.optimizers.composite import model_minimum
from jaxopt_course.optimizers.hyperparameters import cached_factory
from jaxopt_course.optimizers.lbfgs_history import (
    History,
    empty_history,
    forget,
    inverse_hessian_product,
    remember,
)
from jaxopt_course.optimizers.line_search import LineSearch, Step, scaled, strong_wolfe
from jaxopt_course.optimizers.models import quasi_newton_model
from jaxopt_course.optimizers.searched import (
    Search,
    SearchInputs,
    decrement,
    gain_along,
    init_search,
    next_search,
    search_along,
    search_inputs,
    steepest_descent,
    total_count,
)
from jaxopt_course.optimizers.separable import Separable, ravelled
from jaxopt_course.status import Status


class LBFGSState(NamedTuple):
    """`history`: the pairs; `search`: the last step; `num_skipped`: pairs skipped because of too little curvature;
    `num_resets`: how often the history was dropped because no lower point was found along its direction;
    `reset_status`: the line-search status that caused the last reset, 0 after a successful step. These three are int32;
    the counts are since `init`. `last_gain`: the remaining gain estimated from the last step alone; `search.gain` is
    the larger of the last two estimates.
    """

    history: History
    search: Search
    num_skipped: Array
    num_resets: Array
    reset_status: Array
    last_gain: Array

    @property
    def takes_penalties(self) -> bool:
        """Whether the optimizer can set parameters to exactly 0."""
        return True

    @property
    def estimates_gain(self) -> bool:
        """Whether `search.gain` uses only the curvature of the last steps, so that a success must be confirmed."""
        return True


DEFAULT_PAIRS, MAX_PAIRS = 10, 100  # pairs kept if the cost of an evaluation is unknown; largest number of pairs
PAIR_COST_FRACTION = 0.25  # of the operations of an evaluation: cost limit for all pairs in a step
OPERATIONS_PER_PAIR = 24  # for each parameter in a step: 8 operations, times 3 because memory access is slower


@cached_factory
def lbfgs(memory_size: int | None = None, line_search: LineSearch = strong_wolfe) -> Optimizer:
    r"""Quasi-Newton method with an inverse Hessian built from the last m steps, and a line search for each step length.

    $$w \leftarrow w - t H g, \qquad s = w_{new} - w, \qquad y = g_{new} - g$$

    H is defined in `inverse_hessian_product`, and the first trial is t = 1. While there are no pairs, the direction is
    -g/|g|, and the first trial has the scale of the parameters, 0.1 max|w|, or |f|/|g| if they are 0; neither depends
    on the units of f or w. A pair is skipped if s'y <= eps |s| |y|. If no lower point is found along -H g, the history
    is dropped and the next step follows the negative gradient; if that also fails, the state's `search.status` gives
    the reason.

    `update` needs `params`, `value=` and `value_fn=`, which `minimize` and `train` pass. The pair is computed within
    one step from two gradients of the same function, so it is also valid on minibatches and inside `optax.chain`.

    Args:
      memory_size: m, pairs kept, at least 1; each takes twice the memory of the parameters. The default is 10, and in
        `minimize` as many as cost a quarter of an evaluation, from 10 to 100 (under bounds and penalties 10).
      line_search: `strong_wolfe`, or a function like it.

    Returns:
      The optimizer; its state is `LBFGSState`.

    Raises:
      ValueError: a memory_size below 1; in `update`, missing keywords.
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
    if isinstance(memory_size, bool) or not isinstance(memory_size, int | None):
        raise TypeError(f"memory_size must be a whole number, got {type(memory_size).__name__}: {memory_size!r}")
    if memory_size is not None and memory_size < 1:
        raise ValueError(f"memory_size must be at least 1, got {memory_size}")

    def sized(params: Params, memory_size: int) -> LBFGSState:
        search, zero = init_search(params), jnp.zeros((), jnp.int32)
        return LBFGSState(empty_history(params, memory_size), search, zero, zero, zero, search.gain)

    def init(params: Params) -> LBFGSState:
        return sized(params, memory_size or DEFAULT_PAIRS)

    if memory_size is None:  # for a loop that knows the cost of an evaluation, or continues from a state
        init.for_operations = lambda params, ops: sized(params, affordable_pairs(params, ops))  # type: ignore[attr-defined]
        init.like = lambda params, state: sized(params, len(state.history.scale) - 1)  # type: ignore[attr-defined]

    def update(grads: Updates, state: LBFGSState, params: Params = None, **keywords: Any) -> tuple[Updates, LBFGSState]:
        if not jax.tree.leaves(grads):
            return grads, state
        inputs, history = search_inputs("lbfgs", grads, params, **keywords), state.history
        chosen = _search_direction(history, widened(grads), inputs)
        direction = chosen.direction
        step = search_along(line_search, inputs, direction, chosen.first_length)
        updates = scaled(step.length, direction, params)
        new = remember(history, widened(updates), optax.tree.sub(step.point.grad, inputs.grad))
        moved, has_pairs = step.length > 0, history.num_stored > 0
        skipped = moved & (new.num_stored == history.num_stored)
        reset = ~moved & inputs.is_active & has_pairs & (step.status != Status.UNBOUNDED)
        running, lost = jnp.int32(Status.RUNNING), jnp.int32(Status.ROUNDOFF_LIMITED)
        status = jnp.where(reset, running, step.status)  # the next step goes down the gradient
        twice = (status == Status.LINE_SEARCH_FAILED) & (state.reset_status == lost)  # the first failure told why
        has_model = has_pairs | (state.reset_status < 0)
        gain = remaining_gain(chosen, step, has_pairs, has_model)
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


def affordable_pairs(params: Params, operations: float) -> int:
    """Return the number of pairs to keep if an evaluation of value and gradient takes `operations`."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return int(
        min(max(PAIR_COST_FRACTION * operations / (OPERATIONS_PER_PAIR * max(size, 1)), DEFAULT_PAIRS), MAX_PAIRS)
    )


class _SearchDirection(NamedTuple):
    """The search `direction`, the first length to try, the slope along it, and the gain that the model predicts."""

    direction: Updates
    first_length: Array
    slope: Array
    gain: Array


def _search_direction(history: History, grads: Updates, inputs: SearchInputs) -> _SearchDirection:
    """Return -H g and length 1; without pairs, -g/|g| and a length in the scale of the parameters.

    Under bounds and penalties, the direction leads to the minimum of the model.
    """
    if inputs.separable is not None:
        return _composite_direction(history, grads, inputs, inputs.separable)

    def quasi_newton() -> tuple[Updates, Array]:
        return optax.tree.scale(-1, inverse_hessian_product(grads, history)), jnp.ones((), history.scale.dtype)

    direction, first = lax.cond(history.num_stored > 0, quasi_newton, lambda: steepest_descent(grads, inputs))
    slope = vdot(inputs.grad, direction, history.scale.dtype)
    return _SearchDirection(direction, first, slope, decrement(slope))


def _composite_direction(
    history: History, grads: Updates, inputs: SearchInputs, separable: Separable
) -> _SearchDirection:
    dtype = history.scale.dtype
    steepest = separable.subgradient(inputs.params, grads)
    _, first = steepest_descent(steepest, inputs)
    model = quasi_newton_model(history, norm(steepest, dtype) / first)
    flat, unravel = ravel_pytree(grads)
    target = model_minimum(
        ravelled(inputs.params, dtype), flat.astype(dtype), separable.ravelled(dtype), model, inputs.is_active
    )
    direction = unravel(target.direction.astype(flat.dtype))
    return _SearchDirection(direction, jnp.ones((), dtype), inputs.slope_along(direction), target.gain)


def remaining_gain(chosen: _SearchDirection, step: Step, has_pairs: Array, has_model: Array) -> Array:
    """Return the remaining gain: the estimate of the model, or that of the search if it is larger.

    If no trial was lower, a curvature that is not positive is attributed to rounding, and the model's estimate is used.
    """
    along = gain_along(chosen.slope, step.curvature)
    along = jnp.where((step.length == 0) & has_model & jnp.isinf(along), 0, along)
    along = jnp.where(chosen.slope <= 0, along, jnp.inf)
    return jnp.maximum(jnp.where(has_pairs, chosen.gain, 0), along)
