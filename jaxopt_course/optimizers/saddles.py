"""The way out of a saddle: along negative curvature, as far as curvature and the scale of the parameters say.

Near a saddle the gradient is next to 0, and a step that takes its length from the gradient leads nowhere. Along a
direction v of length 1 with v'Hv = -c < 0 the model falls by c t^2 / 2 however small the gradient is.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, Updates
from jaxopt_course.dtypes import norm, rounding, vdot
from jaxopt_course.optimizers.line_search import LineSearch, Step
from jaxopt_course.optimizers.searched import FIRST_MOVE, SearchInputs, search_along


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
    bend, far = jnp.maximum(-curvature.astype(dtype), 0), first_trial(inputs, curvature, radius)
    fall, promise = 0.5 * bend * far * far, -0.5 * vdot(inputs.grad, direction, dtype)
    nothing = jnp.maximum(rounding(inputs.value).astype(dtype), jnp.sqrt(jnp.finfo(dtype).eps) * fall)
    leaves = (bend > 0) & (promise <= nothing)
    leaves = lax.stop_gradient(leaves & (first_length > 0) & (fall > 0) & jnp.isfinite(fall))

    # The slope at the start says nothing: the search is told that of the parabola, on average over the first trial.
    def way(d: Array, v: Array) -> Array:
        return jnp.where(leaves, far.astype(d.dtype) * v.astype(d.dtype), d)

    def told(g: Array, d: Array) -> Array:
        return jnp.where(leaves, g - 0.5 * bend.astype(g.dtype) * d.astype(g.dtype), g)

    direction, length = jax.tree.map(way, direction, out), jnp.where(leaves, 1, first_length)
    grads = jax.tree.map(told, inputs.grad, direction)
    step = search_along(line_search, inputs._replace(grad=grads), direction, length)
    own = jax.tree.map(lambda new, old: jnp.where(step.length > 0, new, old), step.point.grad, inputs.grad)
    return direction, step._replace(point=step.point._replace(grad=own))  # the gradient of the start if it did not move


def first_trial(inputs: SearchInputs, curvature: Array, radius: Array) -> Array:
    """How far to go first: the radius, a tenth of the size of the parameters, or where the fall exceeds rounding."""
    dtype = radius.dtype
    bend = jnp.where(curvature < 0, -curvature, jnp.inf).astype(dtype)
    seen = jnp.sqrt(8 * rounding(inputs.value).astype(dtype) / bend)
    return jnp.maximum(jnp.maximum(FIRST_MOVE * norm(inputs.params, dtype), radius), seen)
