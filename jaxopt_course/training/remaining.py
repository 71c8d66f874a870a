"""How much is left to gain at a point: what the end of a solve by a rule that does not search for its step rests on."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_course.annotations import Array, Params, Updates
from jaxopt_course.dtypes import norm
from jaxopt_course.optimizers.newton import truncated_cg
from jaxopt_course.optimizers.searched import decrement, gain_along

MAX_PRODUCTS = 30  # with the Hessian, in one estimate
RESIDUAL = 1e-3  # of the gradient, at which the inner solve ends


class Remaining(NamedTuple):
    """An estimate of how far a point lies above the minimum, and of how far away that is; inf where it is unknown.

    `gain`: units of value; `distance`: Euclidean, units of the parameters.
    """

    gain: Array
    distance: Array


def remaining(grad_fn: Callable[[Params], Updates], params: Params, otherwise: Remaining) -> Remaining:
    r"""Estimate what Newton's method would gain from here, by conjugate gradients on products with the Hessian.

    $$\tfrac12 g^T H^{-1} g \approx -\tfrac12 g^T d + \frac{|r|^2}{2 \mu}, \qquad H d = -g + r$$

    The second term bounds what the residual r of the inner solve may hide, with the lowest curvature that the solve
    has met for mu. Negative curvature leaves the gain unknown.

    Args:
      grad_fn: `params -> gradient`, like the parameters.
      params: real floating-point arrays.
      otherwise: the answer for a gradient that JAX cannot differentiate, such as that of a callback.

    Returns:
      The estimate; it does not depend on units of the objective, and little on those of the parameters.

    Source: Nocedal and Wright (2006), "Numerical optimization", section 7.1.
    """
    try:
        grads, product = jax.linearize(grad_fn, params)
    except (ValueError, TypeError, NotImplementedError):  # JAX's errors for what has no forward derivative
        return otherwise
    dtype = otherwise.gain.dtype
    grads = optax.tree.cast(grads, dtype)
    inner = truncated_cg(
        lambda v: optax.tree.cast(product(optax.tree.cast_like(v, params)), dtype),
        grads,
        lambda v: v,
        MAX_PRODUCTS,
        RESIDUAL,
    )
    hidden = gain_along(norm(inner.residual, dtype), inner.lowest)
    gain = decrement(optax.tree.vdot(grads, inner.solution)) + jnp.where(jnp.isfinite(hidden), hidden, 0)
    known = ~inner.negative & jnp.isfinite(inner.largest)
    return Remaining(jnp.where(known, gain, jnp.inf), jnp.where(known, norm(inner.solution, dtype), jnp.inf))
