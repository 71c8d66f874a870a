"""Pure functions of training: one step, and a loop over the rows of a plan."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxopt_course.annotations import (
    AnyOptimizer,
    Array,
    Batch,
    Bool,
    Float,
    Int,
    Objective,
    OptState,
    Params,
    PyTree,
    Updates,
)
from jaxopt_course.arrays import check_arrays
from jaxopt_course.dtypes import check_floating, has_finite_norm, norm
from jaxopt_course.training.checks import check_objective_value, num_examples_of
from jaxopt_course.training.meshes import rows_of, vary_like, varying_axes, with_varying_axes


class Carry(NamedTuple):
    """The state of the loop. `alive` becomes False when `on_nonfinite="stop"` stops the run."""

    params: Params
    state: OptState
    alive: Bool[Array, ""]


class Record(NamedTuple):
    """The record of a step: the batch's loss and gradient norm before the step, and whether the step was skipped."""

    loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    skipped: Bool[Array, "..."]
    aux: PyTree = None


def init_carry(optimizer: AnyOptimizer, params: Params) -> Carry:
    """Return the carry before the first step.

    Raises TypeError or ValueError for a leaf of `params` that is not a floating-point array.

    Example:
      >>> carry = init_carry(optax.adam(0.1), jnp.ones(3))
      >>> print(carry.params, carry.state[0].count)
      [1. 1. 1.] 0
    """
    check_arrays("params", params)
    check_floating(params)
    return Carry(params, optimizer.init(params), jnp.array(True))


def train_step(
    objective: Objective,
    optimizer: AnyOptimizer,
    carry: Carry,
    batch: Batch,
    *,
    has_aux: bool = False,
    on_nonfinite: str = "stop",
    with_norm: bool = True,
    valid: Bool[Array, ""] | bool = True,
) -> tuple[Carry, Record]:
    """Take one step on one batch, unless the loss or the gradient is not finite. Pure.

    The optimizer gets the direction of steepest ascent: JAX's gradient, conjugated for complex parameters. Its keyword
    `grad` is JAX's gradient itself, as optax's line searches expect. If `valid` is False, the batch is not the
    requested one, and the step counts as one with a loss of NaN. Without `with_norm`, the norm is recorded as NaN,
    which saves time under `vmap`.

    Example:
      >>> optimizer, batch = optax.sgd(0.5), jnp.array([1.0, 3.0])
      >>> def objective(w, x):
      ...     return jnp.mean((w - x) ** 2) / 2
      >>> carry = init_carry(optimizer, jnp.zeros(()))
      >>> for _ in range(3):
      ...     carry, record = train_step(objective, optimizer, carry, batch)
      ...     print(f"{record.loss:.3f} -> {objective(carry.params, batch):.3f}")
      2.500 -> 1.000
      1.000 -> 0.625
      0.625 -> 0.531
    """
    if on_nonfinite not in ("stop", "skip"):
        raise ValueError(f'on_nonfinite must be "stop" or "skip", got {on_nonfinite!r}')

    def value_and_aux(params: Params) -> tuple[Array, PyTree]:
        return scalar_and_aux("train", objective(params, batch), has_aux)

    (value, aux), grads = jax.value_and_grad(value_and_aux, has_aux=True)(carry.params)
    if valid is not True:
        value = jnp.where(valid, value, jnp.nan)
    grad_norm = gradient_norm(grads) if with_norm else jnp.array(jnp.nan)
    finite = jnp.isfinite(grad_norm) if with_norm else has_finite_norm(grads, float)
    taken = jnp.isfinite(value) & finite & carry.alive

    def move() -> tuple[Params, OptState]:
        updates, state = optax.with_extra_args_support(optimizer).update(
            ascent_direction(grads),
            carry.state,
            carry.params,
            value=value,
            grad=grads,
            value_fn=lambda params: value_and_aux(params)[0],
        )
        return optax.apply_updates(carry.params, updates), state

    params, state = lax.cond(taken, move, lambda: (carry.params, carry.state))
    alive = carry.alive if on_nonfinite == "skip" else taken
    return Carry(params, state, alive), Record(value.astype(float), grad_norm.astype(float), ~taken, aux)


def train_steps(
    objective: Objective,
    optimizer: AnyOptimizer,
    carry: Carry,
    data: Batch,
    plan: Int[Array, "S B"] | None,
    first: int | Array = 0,
    last: int | Array | None = None,
    *,
    has_aux: bool = False,
    on_nonfinite: str = "stop",
    check_rows: bool = True,
    with_norm: bool = True,
) -> tuple[Carry, Record]:
    """Take the steps `first` to `last` of a plan of minibatches, by default all of them. Pure.

    Hyperparameters inside `optimizer` may be traced, so a sweep over learning rates and seeds is one `vmap`. With the
    default `first` and `last` the function can be differentiated, also with respect to hyperparameters.

    Args:
      objective: `(params, batch) -> scalar`, or `(scalar, aux)` with `has_aux`.
      optimizer: any optax transformation.
      carry: from `init_carry(optimizer, params)` or from earlier steps.
      data: any tree of arrays with a leading axis of N examples.
      plan: indices of examples `[S, B]`, int32, 0..N-1, such as `minibatches(...).full.reshape(-1, B)`; None if the
        data is already arranged in steps, `[S, B, ...]`. An index out of range is an error if the plan's values are
        known; in a traced plan it makes the loss of its step NaN.
      first: the first row of the plan to take; if it is traced, one compilation is enough for every `first` and `last`.
      last: the row to stop before.
      has_aux: whether the objective returns `(value, aux)`.
      on_nonfinite: "stop" freezes the carry at the first non-finite loss or gradient; "skip" skips such steps.
      check_rows: whether a traced plan is checked for rows out of range, which make the step's loss NaN; False for
        plans that are correct by construction, such as those of `minibatches`.
      with_norm: whether to record the gradient's norm; otherwise it is NaN, which makes a `vmap` over runs faster.

    Returns:
      The carry after the last step, and the `Record` of every step, `[S]`; rows outside `first` to `last` are 0.

    Raises:
      ValueError: leaves of `data` with different numbers of examples, or indices out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxopt_course as jc
      >>> points = jnp.linspace(-1.0, 1.0, 8)
      >>> objective = lambda w, x: jnp.mean((w * x - 3.0 * x) ** 2)
      >>> plan = jc.data.minibatches(jax.random.key(0), 8, 4, num_epochs=10).full.reshape(-1, 4)
      >>> def final_loss(learning_rate):
      ...     optimizer = jc.sgd(learning_rate)
      ...     carry = jc.training.init_carry(optimizer, jnp.array(0.0))
      ...     carry, _ = jc.training.train_steps(objective, optimizer, carry, points, plan)
      ...     return objective(carry.params, points)
      >>> rates = jnp.array([0.01, 0.1, 1.0])
      >>> print(jax.vmap(final_loss)(rates).round(2))
      [2.73 0.11 0.  ]
    """
    num_examples = num_examples_of("train_steps", data)
    steps = num_examples if plan is None else plan.shape[0]
    first, last = _check_rows(plan, num_examples, first, steps if last is None else last, steps)
    step = partial(train_step, objective, optimizer, has_aux=has_aux, on_nonfinite=on_nonfinite, with_norm=with_norm)

    def take(i: Array, carry: Carry) -> tuple[Carry, Record]:
        row = i if plan is None else plan[i]
        valid = True if plan is None or not check_rows else jnp.all((row >= 0) & (row < num_examples))
        return step(carry, jax.tree.map(lambda leaf: rows_of(leaf, row), data), valid=valid)

    manual = any(varying_axes(leaf) for leaf in jax.tree.leaves((carry, data, plan)))
    aux = jax.eval_shape(take, jnp.int32(0), carry)[1].aux if has_aux else None
    blank = Record(jnp.zeros(steps), jnp.zeros(steps), jnp.zeros(steps, bool), _stacked_zeros(aux, steps))
    if manual:  # the carry of a loop must vary over the same manual mesh axes at its start as at its end
        carry, record = with_varying_axes(take, carry)
        blank = jax.tree.map(vary_like, blank, record)

    def body(i: Array, so_far: tuple[Carry, Record]) -> tuple[Carry, Record]:
        carry, records = so_far
        carry, record = take(i, carry)
        return carry, jax.tree.map(lambda rows, row: rows.at[i].set(row), records, record)

    return lax.fori_loop(first, last, body, (carry, blank))


def _check_rows(plan: Array | None, num_examples: int, first: Any, last: Any, steps: int) -> tuple[Any, Any]:
    """Return `first` and `last` limited to the plan; raise ValueError if known values of these or of the plan are out
    of range.
    """
    if plan is not None and not isinstance(plan, jax.core.Tracer):
        known = np.asarray(plan)
        if known.size and not (known.min() >= 0 and known.max() < num_examples):
            at = tuple(map(int, np.argwhere((known < 0) | (known >= num_examples))[0]))
            raise ValueError(f"train_steps: plan{list(at)} = {known[at]} is no index of the {num_examples} examples")
    if isinstance(first, jax.core.Tracer) or isinstance(last, jax.core.Tracer):
        return jnp.maximum(first, 0), jnp.minimum(last, steps)
    if not (first >= 0 and last <= steps):
        raise ValueError(f"train_steps: first and last must be rows of the {steps} steps, got {first} and {last}")
    return first, last


def ascent_direction(grads: Updates) -> Updates:
    """Return the direction of steepest ascent: JAX's gradient, conjugated where it is complex."""
    return jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, grads)


def scalar_and_aux(caller: str, returned: Any, has_aux: bool) -> tuple[Array, PyTree]:
    """Return the output of an objective as `(value, aux)`; raise ValueError if the value is not a scalar."""
    check_objective_value(caller, returned, has_aux)
    return returned if has_aux else (returned, None)


def gradient_norm(grads: Updates) -> Float[Array, ""]:
    """Return the Euclidean norm over all leaves, at least in float32; correct even if its square is out of range.

    Example:
      >>> print(gradient_norm({"W": jnp.array([3e30]), "b": jnp.array([4e30])}))
      5e+30
    """
    return norm(grads, float)


def _stacked_zeros(shapes: Any, steps: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), shapes)
