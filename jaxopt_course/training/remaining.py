"""The remaining gain at a point, estimated from curvature.

A success is decided by this estimate if the optimizer itself knows no curvature, or only that of its last steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_course.annotations import Array, Params, Updates
from jaxopt_course.dtypes import largest_entry, norm
from jaxopt_course.optimizers.inner_solve import System, residual_gain, scaled_system, truncated_cg
from jaxopt_course.optimizers.searched import decrement
from jaxopt_course.optimizers.separable import Separable

MAX_PRODUCTS = 30  # most products with the Hessian in one estimate
RESIDUAL = 1e-3  # residual at which the inner solve ends, relative to the gradient


class Remaining(NamedTuple):
    """An estimate of the remaining gain at a point and of the distance to the minimum; inf if unknown.

    `gain`: the value minus that of the minimum; `distance`: Euclidean, units of the parameters; `relative`: the largest
    entry of the step to the minimum, each relative to the size of its parameter or to its change since the start,
    whichever is larger.
    """

    gain: Array
    distance: Array
    relative: Array


def remaining(
    grad_fn: Callable[[Params], Updates],
    params: Params,
    start: Params,
    otherwise: Remaining,
    separable: Separable | None = None,
) -> Remaining:
    r"""Estimate the gain of a Newton step from this point, by conjugate gradients on products with the Hessian.

    $$\tfrac12 g^T H^{-1} g \approx -\tfrac12 g^T d + \frac{|r|^2}{2 \mu}, \qquad H d = -g + r$$

    The second term bounds the gain that the residual r of the inner solve may hide; mu is the lowest curvature in the
    solve. With negative curvature the gain is unknown. If there are at most as many parameters as allowed products, the
    Hessian is formed and scaled to a diagonal of ones, so that the residual hides little, whatever the units.

    Args:
      grad_fn: `params -> gradient`, like the parameters.
      params: real floating-point arrays.
      start: the start of the solve.
      otherwise: the result for a gradient that JAX cannot differentiate, such as that of a callback.
      separable: bounds and penalties; parameters that they hold do not move.

    Returns:
      The estimate; it does not depend on the units of the objective, and only weakly on those of the parameters.

    Source: Nocedal and Wright (2006), "Numerical optimization", section 7.1.
    """
    try:
        grads, product = jax.linearize(grad_fn, params)
    except (ValueError, TypeError, NotImplementedError):  # JAX's errors for functions without a forward derivative
        return otherwise
    dtype = otherwise.gain.dtype
    moves = None
    if separable is not None:
        grads = separable.subgradient(params, grads)
        moves = separable.free(params, grads)
    grads = optax.tree.cast(grads, dtype)

    def among_free(v: Updates) -> Updates:
        change = optax.tree.cast(product(optax.tree.cast_like(v, params)), dtype)
        return change if moves is None else jax.tree.map(lambda c, free: jnp.where(free, c, 0), change, moves)

    few = sum(leaf.size for leaf in jax.tree.leaves(grads)) <= MAX_PRODUCTS
    system = scaled_system(among_free, grads) if few else System(among_free, grads, lambda v: v)
    inner = truncated_cg(system.product, system.grads, lambda v: v, MAX_PRODUCTS, RESIDUAL)
    way = system.to_params(inner.solution)
    gain = decrement(optax.tree.vdot(grads, way)) + residual_gain(inner, dtype)
    known = ~inner.negative & jnp.isfinite(inner.largest)
    found = Remaining(gain, norm(way, dtype), relative_size(way, params, start, dtype))
    return jax.tree.map(lambda estimate: jnp.where(known, estimate, jnp.inf), found)


def relative_size(step: Updates, params: Params, start: Params, dtype: Any) -> Array:
    """Return the largest entry of a step relative to its parameter, or to the parameter's change since the start.

    Units below sqrt(eps) times the largest one are replaced by that, because such parameters may be 0 at the minimum.
    """

    def unit(w: Array, w0: Array) -> Array:
        return jnp.maximum(jnp.abs(w), jnp.abs(w - w0)).astype(dtype)

    units = jax.tree.map(unit, params, start)
    least = jnp.sqrt(jnp.finfo(dtype).eps) * largest_entry(units, dtype)
    parts = jax.tree.map(lambda s, u: jnp.abs(s).astype(dtype) / jnp.maximum(u, least), step, units)
    return largest_entry(parts, dtype)
