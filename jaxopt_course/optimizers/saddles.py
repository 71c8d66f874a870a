"""The way out of a saddle: along negative curvature, as far as curvature and the scale of the parameters say.

Near a saddle the gradient is next to 0, and a step that takes its length from the gradient leads nowhere. Along a
direction v of length 1 with v'Hv = -c < 0 the model falls by c t^2 / 2 however small the gradient is.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import Array, Updates
from jaxopt_course.dtypes import norm, rounding, vdot
from jaxopt_course.optimizers.line_search import LineSearch, Step
from jaxopt_course.optimizers.searched import FIRST_MOVE, SearchInputs, search_along


class _Departure(NamedTuple):
    """A direction, its first length, and the gradient to tell the search."""

    direction: Updates
    first_length: Array
    grad: Updates


def search_out(
    line_search: LineSearch,
    inputs: SearchInputs,
    direction: Updates,
    first_length: Array,
    out: Updates,
    curvature: Array,
    radius: Array,
) -> tuple[Updates, Step]:
    """Search along negative curvature where the direction promises nothing beside it, else along the direction.

    Args:
      line_search: `strong_wolfe`, or a function like it.
      inputs: the objective at the parameters.
      direction: of the step that would be taken.
      first_length: its first length.
      out: a direction v of length 1, not uphill.
      curvature: v'Hv; there is no way out where it is not negative.
      radius: the length of the first trial along v at least, in units of the parameters.

    Returns:
      The direction that was searched, and the step.
    """
    dtype = radius.dtype
    bend, far, noise = (
        jnp.maximum(-curvature.astype(dtype), 0),
        first_trial(inputs, curvature, radius),
        rounding(inputs.value),
    )
    fall, promise = 0.5 * bend * far * far, -0.5 * vdot(inputs.grad, direction, dtype)
    leaves = (bend > 0) & (promise <= jnp.maximum(noise.astype(dtype), jnp.sqrt(jnp.finfo(dtype).eps) * fall))
    leaves = lax.stop_gradient(leaves & (first_length > 0) & jnp.isfinite(fall))

    def depart() -> _Departure:
        # The slope at the start says nothing: the search is told that of the parabola, on average over the first trial.
        step = optax.tree.scale(far, optax.tree.cast(out, dtype))
        told = optax.tree.add_scale(optax.tree.cast(inputs.grad, dtype), -0.5 * bend, step)
        one = jnp.ones_like(first_length)
        return _Departure(optax.tree.cast_like(step, direction), one, optax.tree.cast_like(told, inputs.grad))

    way = lax.cond(leaves, depart, lambda: _Departure(direction, first_length, inputs.grad))
    step = search_along(line_search, inputs._replace(grad=way.grad), way.direction, way.first_length)
    own = lax.cond(step.length > 0, lambda: step.point.grad, lambda: inputs.grad)  # where it did not move
    return way.direction, step._replace(point=step.point._replace(grad=own))


def first_trial(inputs: SearchInputs, curvature: Array, radius: Array) -> Array:
    """How far to go first: the radius, a tenth of the size of the parameters, or where the fall exceeds rounding."""
    dtype = radius.dtype
    bend = jnp.where(curvature < 0, -curvature, jnp.inf).astype(dtype)
    seen = jnp.sqrt(8 * rounding(inputs.value).astype(dtype) / bend)
    return jnp.maximum(jnp.maximum(FIRST_MOVE * norm(inputs.params, dtype), radius), seen)
