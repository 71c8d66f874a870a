"""Scalar formulas of the adaptive rules, without overflow or underflow: squares, their sums and roots, 1 - b^t."""

import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array
from jaxopt_course.optimizers.hyperparameters import Scalar


def clipped(g: Array) -> Array:
    """Limit the entries of the gradient to +-2^63 (float64: 2^511), so that their squares are finite.

    One array is compared with constants. On a CPU, XLA repeats such an operation in each pass that reads its result; an
    operation on several arrays becomes a pass over memory of its own.
    """
    if jnp.iscomplexobj(g):
        return lax.complex(clipped(g.real), clipped(g.imag))
    limit = g.dtype.type(2.0 ** (jnp.finfo(g.dtype).maxexp // 2 - 1))
    return lax.clamp(-limit, g, limit)


def square(g: Array) -> Array:
    """Return the square of the clipped gradient, |g|^2 for a complex one; NaN where the gradient is infinite.

    With a finite square, the rule would make a step of ordinary length along an infinite gradient.
    """
    if jnp.iscomplexobj(g):
        return square(g.real) + square(g.imag)
    g, zero_or_nan = clipped(g), 0 * g
    return g * g + zero_or_nan


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
