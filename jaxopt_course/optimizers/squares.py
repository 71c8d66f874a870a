"""Scalar formulas of the adaptive rules, without overflow or underflow: squares, their sums and roots, 1 - b^t."""

import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array
from jaxopt_course.optimizers.hyperparameters import Scalar


def bounded(g: Array) -> Array:
    """Limit finite entries of the gradient to +-2^63 (float64: 2^511), so that their squares are finite.

    An infinite entry becomes NaN, because the rule would divide infinity by infinity.
    """
    if jnp.iscomplexobj(g):
        return lax.complex(bounded(g.real), bounded(g.imag))
    limit = 2.0 ** (jnp.finfo(g.dtype).maxexp // 2 - 1)
    size = jnp.abs(g)
    beyond = size > limit
    return jnp.where(beyond, g * (limit / jnp.where(beyond, size, 1)), g)  # inf * 0 is NaN


def square(g: Array) -> Array:
    """Return g^2, or |g|^2 for a complex gradient."""
    return (g * jnp.conj(g)).real if jnp.iscomplexobj(g) else g * g


def saturated(s: Array) -> Array:
    """Limit a sum of squares to the largest finite number."""
    largest = jnp.finfo(s.dtype).max.astype(s.dtype)
    return jnp.where(s > largest, largest, s)


def safe_sqrt(v: Array) -> Array:
    """Return sqrt(v + tiny), where tiny is the smallest normal number: at v = 0 the derivative is then 0, not NaN."""
    return jnp.sqrt(v + jnp.finfo(v.dtype).tiny)


def one_minus_power(b: Scalar, t: Array) -> Array:
    """Return 1 - b^t without cancellation, with finite derivatives at b = 0.

    In float32 the plain form has an error of 6e-6 at t = 1 with b = 0.999. The form for b >= 1/2 divides by b in its
    derivative, so it is not used near b = 0.
    """
    t, rest = t.astype(float), 1 - b
    return jnp.where(b < 0.5, 1 - b**t, -jnp.expm1(t * jnp.log1p(-jnp.where(b < 0.5, 0.5, rest))))
