"""Common parts of the optimizers with a line search: their inputs, their fallback, and their record of a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import Array, Params, PyTree, Updates
from jaxopt_course.dtypes import check_floating, largest_entry, norm, rounding, vdot, widened, working_dtype
from jaxopt_course.optimizers.leaves import check_match
from jaxopt_course.optimizers.line_search import MAX_EVALS, Evaluation, LineSearch, Step
from jaxopt_course.optimizers.separable import Separable
from jaxopt_course.status import Obstacle, Status

FIRST_STEP_FRACTION = 0.1  # of the largest parameter: length of the first trial along the negative gradient


class Search(NamedTuple):
    """Record of the last step, part of the state of every optimizer with a line search.

    `step_size`: the accepted length in units of the direction, 0 if no trial was accepted; `num_evals`: evaluations of
    value and gradient since `init`, int32; `status`: a `Status`, 0 while there is no failure, int32; `obstacle`: an
    `Obstacle`, if no lower point was found, int32; `gain`: an estimate of how far the value at the start of the step
    was above the minimum, inf if the curvature does not determine it; `evaluation`: value, gradient and aux at the new
    parameters, with the value inf before the first step.
    """

    step_size: Array
    num_evals: Array
    status: Array
    obstacle: Array
    gain: Array
    evaluation: Evaluation | None


class SearchInputs(NamedTuple):
    """The checked keywords of `update`: the objective at the parameters and around them.

    `grad` is in at least 32 bits. `budget` limits the evaluations of this step; 0 forbids moving, None sets no limit.
    `separable` holds bounds and penalties; if it is given, `value` includes the penalty, but gradients and functions do
    not.
    """

    params: Params
    value: Array
    grad: Updates
    value_fn: Callable[[Params], Array]
    value_and_grad_fn: Callable[[Params], tuple[Any, Updates]]
    has_aux: bool
    budget: Array | None
    separable: Separable | None = None

    def frozen_where(self, frozen: Array) -> "SearchInputs":
        """Return these inputs with a budget of 0 where `frozen`: no evaluations, and no move."""
        return self._replace(budget=jnp.where(frozen, 0, MAX_EVALS if self.budget is None else self.budget))

    @property
    def is_active(self) -> Array:
        """Whether this step may move; False if it is frozen, such as a finished lane of a batch."""
        return jnp.asarray(True if self.budget is None else self.budget > 0)

    @property
    def steepest(self) -> Updates:
        """The gradient; with bounds or penalties, the smallest subgradient."""
        return self.grad if self.separable is None else self.separable.subgradient(self.params, self.grad)

    def slope_along(self, direction: Updates) -> Array:
        """The derivative of the value along a direction."""
        ahead = self.grad
        if self.separable is not None:
            ahead = optax.tree.add(ahead, self.separable.slopes_along(self.params, direction, ahead=True))
        return vdot(ahead, direction, working_dtype(self.params))


def init_search(params: Params) -> Search:
    """Return the record before the first step."""
    check_real(params)
    dtype = working_dtype(params)
    nowhere = Evaluation(jnp.full((), jnp.inf, dtype), widened(jax.tree.map(jnp.zeros_like, params)))
    zero = jnp.zeros((), jnp.int32)
    return Search(jnp.zeros((), dtype), zero, zero, zero, jnp.full((), jnp.inf, dtype), nowhere)


def search_inputs(
    name: str,
    grads: Updates,
    params: Params,
    value: Any = None,
    grad: Updates = None,
    value_fn: Callable[[Params], Any] | None = None,
    value_and_grad_fn: Callable[[Params], tuple[Any, Updates]] | None = None,
    has_aux: bool = False,
    budget: Any = None,
    separable: Separable | None = None,
    **_: Any,
) -> SearchInputs:
    """Check the keywords of `update`, and derive the missing optional ones."""
    missing = [key for key, given in (("params", params), ("value", value), ("value_fn", value_fn)) if given is None]
    if missing or value_fn is None:
        raise ValueError(
            f"{name}: update needs params, value= and value_fn=; {', '.join(missing)} not given. The optimizer "
            "evaluates the objective along its direction: call update(grads, state, params, value=f(params), "
            "grad=grads, value_fn=f), or use jaxopt_course.minimize, which passes them"
        )
    check_match(grads, "parameters", params)
    check_real(params)
    wide, value = widened(grads if grad is None else grad), jnp.asarray(value)
    derived = value_and_grad_fn or jax.value_and_grad(value_fn)
    return SearchInputs(params, value, wide, value_fn, derived, has_aux, budget, separable)


def search_along(line_search: LineSearch, inputs: SearchInputs, direction: Updates, first_length: Any) -> Step:
    """Run the line search along a direction. If the first length is 0, as in a warm-up, the step is 0."""
    inputs = inputs.frozen_where(first_length <= 0)
    if inputs.separable is not None:
        step = _search_composite(line_search, inputs, inputs.separable, direction, first_length)
    else:
        step = line_search(
            inputs.value_and_grad_fn,
            inputs.params,
            inputs.value,
            inputs.grad,
            direction,
            first_length=first_length,
            has_aux=inputs.has_aux,
            budget=inputs.budget,
        )
    return step._replace(status=jnp.where(first_length <= 0, jnp.int32(Status.RUNNING), step.status))


def _search_composite(
    line_search: LineSearch, inputs: SearchInputs, separable: Separable, direction: Updates, first_length: Any
) -> Step:
    """Run the line search for f + h, at most to the first bound, and with a penalty at most to length 1.

    At length 1, the model has set parameters to exactly 0.
    """
    longest = separable.longest(inputs.params, direction).astype(inputs.value.dtype)
    if separable.strength is not None:
        longest = jnp.minimum(longest, 1)

    def evaluate(params: Params) -> tuple[tuple[Array, PyTree], Updates]:
        value, grad = inputs.value_and_grad_fn(params)
        value, aux = value if inputs.has_aux else (value, None)
        behind = separable.slopes_along(params, direction, ahead=False)
        return (value + separable.penalty(params, value.dtype), (aux, grad)), optax.tree.add(widened(grad), behind)

    step = line_search(
        evaluate,
        inputs.params,
        inputs.value,
        optax.tree.add(inputs.grad, separable.slopes_along(inputs.params, direction, ahead=True)),
        direction,
        first_length=jnp.minimum(first_length, longest),
        has_aux=True,
        budget=inputs.budget,
        longest=longest,
    )
    aux, grad = step.point.aux
    grad = jax.tree.map(lambda new, old: jnp.where(step.length > 0, new, old), widened(grad), inputs.grad)
    return step._replace(point=Evaluation(step.point.value, grad, aux if inputs.has_aux else None))


def steepest_descent(grads: Updates, inputs: SearchInputs) -> tuple[Updates, Array]:
    """Return -g/|g|, and a first length that does not depend on units: in the scale of the parameters, or |f|/|g| if
    they are 0.
    """
    dtype = working_dtype(inputs.params)
    size, grad_norm = largest_entry(inputs.params, dtype), norm(grads, dtype)
    grad_norm = jnp.where(grad_norm > 0, grad_norm, 1)
    fall = jnp.abs(inputs.value).astype(dtype) / grad_norm
    first = jnp.where(size > 0, FIRST_STEP_FRACTION * size, jnp.where(fall > 0, fall, 1))
    return jax.tree.map(lambda g: g / -grad_norm.astype(g.dtype), grads), first


def steepest_after_reset(
    direction: Updates, first_length: Array, reset_status: Array, inputs: SearchInputs
) -> tuple[Updates, Array]:
    """Return the direction and its first length; after a reset, those of steepest descent.

    A reset follows a search that found no lower point.
    """

    def steepest() -> tuple[Updates, Array]:
        downhill, first = steepest_descent(inputs.steepest, inputs)
        if inputs.separable is not None:
            length = first / norm(inputs.steepest, first.dtype)
            downhill = inputs.separable.proximal_direction(inputs.params, inputs.grad, length)
            first = jnp.ones_like(first)
        return optax.tree.cast_like(downhill, direction), first.astype(first_length.dtype)

    return lax.cond(reset_status < 0, steepest, lambda: (direction, first_length))


class FailedSearch(NamedTuple):
    """The `status` to report after a search, and the `reset_status`: that of the failure behind a reset, else 0."""

    status: Array
    reset_status: Array


def resolve_failed_search(step: Step, gain: Array, reset_status: Array, inputs: SearchInputs) -> FailedSearch:
    """Decide on a reset: the next step follows the negative gradient if a search failed and gain may be left.

    Gain may be left if the estimated gain is above rounding, or if the search failed for a reason other than rounding.
    If the search along the negative gradient fails too, that failure is reported; if the first failure was due to
    rounding, its status is reported instead.
    """
    failed = (step.status == Status.LINE_SEARCH_FAILED) | (step.status == Status.ROUNDOFF_LIMITED)
    unexplained = (gain > rounding(inputs.value.astype(gain.dtype))) | (step.status == Status.LINE_SEARCH_FAILED)
    resets = (step.length == 0) & failed & unexplained & inputs.is_active & (reset_status == 0)
    running, lost = jnp.int32(Status.RUNNING), jnp.int32(Status.ROUNDOFF_LIMITED)
    status = jnp.where((step.status == Status.LINE_SEARCH_FAILED) & (reset_status == lost), lost, step.status)
    return FailedSearch(jnp.where(resets, running, status), jnp.where(resets, step.status, running))


def full_step(inputs: SearchInputs, length: Array) -> Step:
    """Return a step of the given length, without an evaluation."""
    length = jnp.where(inputs.is_active, length, 0)
    none = jnp.zeros((), jnp.int32)
    return Step(length, jnp.full_like(length, jnp.nan), None, none, none)


def next_search(search: Search, step: Step, status: Array, gain: Array) -> Search:
    """Return the record after a step."""
    dtype = search.step_size.dtype
    point = step.point and step.point._replace(value=step.point.value.astype(dtype))
    obstacle = jnp.asarray(step.obstacle, jnp.int32)
    lost = (status == Status.ROUNDOFF_LIMITED) & (obstacle != Obstacle.KINK)  # the status may be of an earlier search
    return Search(
        step_size=step.length.astype(dtype),
        num_evals=total_count(search.num_evals, step.num_evals),
        status=status.astype(jnp.int32),
        obstacle=jnp.where(lost, jnp.int32(Obstacle.ROUNDING), obstacle),
        gain=gain.astype(dtype),
        evaluation=point,
    )


def total_count(before: Array, new: Array) -> Array:
    """Return the sum of two counts, int32, saturating at the largest int32 instead of wrapping around."""
    total = before + new
    return jnp.where(total < before, jnp.iinfo(jnp.int32).max, total)


def gain_along(slope: Array, curvature: Array | float) -> Array:
    r"""Return the decrease to the minimum of a parabola, $\phi'(0)^2 / (2 \phi'')$; inf if it has no minimum.

    A gain that underflows is replaced by the smallest normal number.
    """
    curvature = jnp.asarray(curvature, slope.dtype)
    gain = jnp.where(curvature > 0, slope * (slope / jnp.where(curvature > 0, 2 * curvature, 1)), jnp.inf)
    return jnp.maximum(gain, jnp.finfo(slope.dtype).tiny)


def decrement(slope: Array) -> Array:
    """Return half of the Newton decrement from the slope along Newton's direction; inf if it is not a descent
    direction.
    """
    return jnp.where(slope <= 0, jnp.maximum(-0.5 * slope, jnp.finfo(slope.dtype).tiny), jnp.inf)


def check_real(params: Params) -> None:
    """Raise TypeError for the first leaf that is not a real floating-point array."""
    check_floating(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"second-order optimizers need real parameters, params{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}; use jaxopt_course.minimize, which accepts complex ones, or optimize the "
                "real and imaginary parts as two arrays"
            )
