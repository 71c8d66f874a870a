"""The pure half of training: one step, and a loop over the rows of a plan, as functions from data to data."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxopt_course.annotations import Array, Bool, Float, Int
from jaxopt_course.dtypes import at_least_32_bits, check_floating
from jaxopt_course.training.checks import check_objective_value

Objective = Callable[[Any, Any], Any]


class Carry(NamedTuple):
    """What continues from step to step. `alive` turns False where `on_nonfinite="stop"` stopped."""

    params: Any
    state: Any
    alive: Bool[Array, ""]


class Record(NamedTuple):
    """What a step leaves behind: the batch's loss and gradient norm before it, and whether it was not taken."""

    loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    skipped: Bool[Array, "..."]
    aux: Any = None


def start(optimizer: optax.GradientTransformation, params: Any) -> Carry:
    """The carry before the first step."""
    check_floating(params)
    return Carry(params, optimizer.init(params), jnp.array(True))


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    carry: Carry,
    batch: Any,
    *,
    has_aux: bool = False,
    on_nonfinite: str = "stop",
) -> tuple[Carry, Record]:
    """One step on one batch: value and gradient, then the update, unless something is not finite. Pure."""

    if on_nonfinite not in ("stop", "skip"):
        raise ValueError(f'on_nonfinite must be "stop" or "skip", got {on_nonfinite!r}')

    def value_and_aux(params: Any) -> tuple[Array, Any]:
        return scalar_and_aux("train", objective(params, batch), has_aux)

    (value, aux), grads = jax.value_and_grad(value_and_aux, has_aux=True)(carry.params)
    grad_norm = gradient_norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    taken = finite & carry.alive

    def move() -> tuple[Any, Any]:
        updates, state = optax.with_extra_args_support(optimizer).update(
            grads,
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
    optimizer: optax.GradientTransformation,
    carry: Carry,
    data: Any,
    plan: Int[Array, "S B"] | None,
    first: int | Array = 0,
    last: int | Array | None = None,
    *,
    has_aux: bool = False,
    on_nonfinite: str = "stop",
) -> tuple[Carry, Record]:
    """Take the steps `first` to `last` of a plan of minibatches, every one unless told otherwise. Pure.

    Everything is data: hyperparameters inside `optimizer` may be traced, so a sweep over learning rates and seeds is
    one `vmap`; with the default `first` and `last` it can be differentiated, hyperparameters included.

    Args:
      objective: `(params, batch) -> scalar`, or `(scalar, aux)` with `has_aux`.
      optimizer: any optax transformation.
      carry: from `start(optimizer, params)` or from the steps before.
      data: any tree of arrays with a leading axis of N examples.
      plan: indices of examples `[S, B]`, int32, 0..N-1, such as `minibatches(...).full.reshape(-1, B)`; None where the
        data is laid out in steps already, `[S, B, ...]`.
      first: the first row of the plan to take; it may be traced, and then one compile serves every `first` and `last`.
      last: the row to stop before.
      has_aux: whether the objective returns `(value, aux)`.
      on_nonfinite: "stop" freezes the carry at the first non-finite loss or gradient; "skip" passes over such steps.

    Returns:
      The carry after the last step, and the `Record` of every step, `[S]`; rows that were not asked for are 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxopt_course as jc
      >>> points = jnp.linspace(-1.0, 1.0, 8)
      >>> objective = lambda w, x: jnp.mean((w * x - 3.0 * x) ** 2)
      >>> plan = jc.data.minibatches(jax.random.key(0), 8, 4, num_epochs=10).full.reshape(-1, 4)
      >>> def final_loss(learning_rate):
      ...     optimizer = jc.sgd(learning_rate)
      ...     carry = jc.training.start(optimizer, jnp.array(0.0))
      ...     carry, _ = jc.training.train_steps(objective, optimizer, carry, points, plan)
      ...     return objective(carry.params, points)
      >>> rates = jnp.array([0.01, 0.1, 1.0])
      >>> print(jax.vmap(final_loss)(rates).round(2))
      [2.73 0.11 0.  ]
    """
    step = partial(train_step, objective, optimizer, has_aux=has_aux, on_nonfinite=on_nonfinite)

    def take(i: Array) -> Any:
        row = i if plan is None else plan[i]
        return jax.tree.map(lambda leaf: leaf.at[row].get(mode="clip"), data)

    aux = jax.eval_shape(step, carry, jax.eval_shape(take, jnp.int32(0)))[1].aux if has_aux else None
    steps = (jax.tree.leaves(data)[0] if plan is None else plan).shape[0]
    blank = Record(jnp.zeros(steps), jnp.zeros(steps), jnp.zeros(steps, bool), _stacked_zeros(aux, steps))

    def body(i: Array, so_far: tuple[Carry, Record]) -> tuple[Carry, Record]:
        carry, records = so_far
        carry, record = step(carry, take(i))
        return carry, jax.tree.map(lambda rows, row: rows.at[i].set(row), records, record)

    return lax.fori_loop(first, steps if last is None else last, body, (carry, blank))


def scalar_and_aux(caller: str, returned: Any, has_aux: bool) -> tuple[Array, Any]:
    """What an objective returned, as `(value, aux)`; ValueError where the value is no scalar."""
    check_objective_value(caller, returned, has_aux)
    return returned if has_aux else (returned, None)


def on_device(leaf: Any) -> Array:
    """The leaf as a JAX array."""
    return jnp.asarray(on_host(leaf) if isinstance(leaf, np.ndarray) else leaf)


def on_host(leaf: Any) -> np.ndarray:
    """The leaf as an array of a dtype of JAX's; integers beyond its default 32 bits raise, and do not wrap around."""
    array = np.asarray(leaf)
    narrow = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    if array.dtype.kind in "iu" and narrow.dtype != array.dtype and not np.array_equal(narrow, array):
        raise ValueError(f"the data holds {array.dtype} values beyond {narrow.dtype}; switch on jax_enable_x64")
    return narrow


def gradient_norm(grads: Any) -> Float[Array, ""]:
    """The Euclidean norm over all leaves, at least in float32; right also where its square would leave the range."""
    leaves = jax.tree.leaves(grads)
    plain = jnp.sqrt(_total(jnp.sum(s * s) for s in map(_sizes, leaves)))

    def scaled() -> Array:  # takes the sizes anew: shared with the line above they would be written to memory
        sizes = [_sizes(leaf).astype(float) for leaf in leaves]
        top = jnp.max(jnp.stack([jnp.max(s, initial=0) for s in sizes]))
        scale = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
        return scale * jnp.sqrt(_total(jnp.sum((s / scale) ** 2) for s in sizes))

    in_range = jnp.isfinite(plain) & (plain > 1e-16)
    return lax.cond(in_range, lambda: plain, scaled) if leaves else plain


def _sizes(leaf: Array) -> Array:
    return jnp.abs(leaf).astype(jnp.finfo(at_least_32_bits(leaf.dtype)).dtype)


def _total(terms: Iterable[Array]) -> Array:
    return sum((term.astype(float) for term in terms), jnp.zeros((), float))


def _stacked_zeros(shapes: Any, steps: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), shapes)
