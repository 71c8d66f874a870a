"""How much is left to gain at a point, by curvature: what a success rests on where the optimizer itself has seen none,
or only what its last steps tell of it."""

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

MAX_PRODUCTS = 30  # with the Hessian, in one estimate
RESIDUAL = 1e-3  # of the gradient, at which the inner solve ends


class Remaining(NamedTuple):
    """An estimate of how far a point lies above the minimum, and of how far away that is; inf where it is unknown.

    `gain`: units of value; `distance`: Euclidean, units of the parameters; `relative`: the largest entry of the way to
    the minimum, each in units of its parameter's size or of its way from the start, whichever is larger.
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
    r"""Estimate what Newton's method would gain from here, by conjugate gradients on products with the Hessian.

    $$\tfrac12 g^T H^{-1} g \approx -\tfrac12 g^T d + \frac{|r|^2}{2 \mu}, \qquad H d = -g + r$$

    The second term bounds what the residual r of the inner solve may hide, with the lowest curvature that the solve
    has met for mu. Negative curvature leaves the gain unknown. For as many parameters as products are allowed, the
    Hessian is formed and scaled to a diagonal of ones: then it hides little, whatever the units.

    Args:
      grad_fn: `params -> gradient`, like the parameters.
      params: real floating-point arrays.
      start: where the solve began.
      otherwise: the answer for a gradient that JAX cannot differentiate, such as that of a callback.
      separable: bounds and penalties; parameters that they hold stay where they are.

    Returns:
      The estimate; it does not depend on units of the objective, and little on those of the parameters.

    Source: Nocedal and Wright (2006), "Numerical optimization", section 7.1.
    """
    try:
        grads, product = jax.linearize(grad_fn, params)
    except (ValueError, TypeError, NotImplementedError):  # JAX's errors for what has no forward derivative
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
    """The largest entry of a step in units of its parameter, or of the parameter's way from the start.

    Entries below sqrt(eps) of the largest parameter count in units of that: they may be 0 at the minimum.
    """

    def unit(w: Array, w0: Array) -> Array:
        return jnp.maximum(jnp.abs(w), jnp.abs(w - w0)).astype(dtype)

    units = jax.tree.map(unit, params, start)
    least = jnp.sqrt(jnp.finfo(dtype).eps) * largest_entry(units, dtype)
    parts = jax.tree.map(lambda s, u: jnp.abs(s).astype(dtype) / jnp.maximum(u, least), step, units)
    return largest_entry(parts, dtype)
