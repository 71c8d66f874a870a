"""Escape from a saddle: a line search along negative curvature, with a first trial in the scale of the parameters.

Near a saddle the gradient is close to 0, and a step whose length is proportional to the gradient makes no progress.
Along a direction v of length 1 with v'Hv = -c < 0, the model falls by c t^2 / 2 however small the gradient is.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, Updates
from jaxopt_course.dtypes import norm, rounding, vdot
from jaxopt_course.optimizers.line_search import LineSearch, Step
from jaxopt_course.optimizers.searched import FIRST_STEP_FRACTION, SearchInputs, search_along


def search_or_escape(
    line_search: LineSearch,
    inputs: SearchInputs,
    direction: Updates,
    first_length: Array,
    escape: Updates,
    curvature: Array,
    radius: Array,
) -> tuple[Updates, Step]:
    """Search along `direction`, or along negative curvature if the decrease predicted along `direction` is negligible.

    Args:
      line_search: `strong_wolfe`, or a function like it.
      inputs: the objective at the parameters.
      direction: the direction of the regular step.
      first_length: the first length to try along `direction`.
      escape: a direction v of length 1, not uphill.
      curvature: v'Hv; v is not used if it is not negative.
      radius: the smallest length of the first trial along v, in units of the parameters.

    Returns:
      The direction that was searched, and the step.
    """
    dtype = radius.dtype
    descent_curvature, far = jnp.maximum(-curvature.astype(dtype), 0), first_trial(inputs, curvature, radius)
    fall, promise = 0.5 * descent_curvature * far * far, -0.5 * vdot(inputs.grad, direction, dtype)
    nothing = jnp.maximum(rounding(inputs.value).astype(dtype), jnp.sqrt(jnp.finfo(dtype).eps) * fall)
    leaves = (descent_curvature > 0) & (promise <= nothing)
    leaves = lax.stop_gradient(leaves & (first_length > 0) & (fall > 0) & jnp.isfinite(fall))

    # The slope at the start is not informative: the search gets the mean slope of the model over the first trial.
    def searched_direction(d: Array, v: Array) -> Array:
        return jnp.where(leaves, far.astype(d.dtype) * v.astype(d.dtype), d)

    def searched_grad(g: Array, d: Array) -> Array:
        return jnp.where(leaves, g - 0.5 * descent_curvature.astype(g.dtype) * d.astype(g.dtype), g)

    direction, length = jax.tree.map(searched_direction, direction, escape), jnp.where(leaves, 1, first_length)
    grads = jax.tree.map(searched_grad, inputs.grad, direction)
    step = search_along(line_search, inputs._replace(grad=grads), direction, length)
    own = jax.tree.map(lambda new, old: jnp.where(step.length > 0, new, old), step.point.grad, inputs.grad)
    return direction, step._replace(point=step.point._replace(grad=own))  # without a step, the gradient at the start


def first_trial(inputs: SearchInputs, curvature: Array, radius: Array) -> Array:
    """Return the length of the first trial along negative curvature.

    It is the largest of: the radius, a tenth of the norm of the parameters, and the length at which the fall exceeds
    rounding.
    """
    dtype = radius.dtype
    descent_curvature = jnp.where(curvature < 0, -curvature, jnp.inf).astype(dtype)
    seen = jnp.sqrt(8 * rounding(inputs.value).astype(dtype) / descent_curvature)
    return jnp.maximum(jnp.maximum(FIRST_STEP_FRACTION * norm(inputs.params, dtype), radius), seen)
