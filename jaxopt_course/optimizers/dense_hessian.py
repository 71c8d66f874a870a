"""Newton's model from a dense Hessian: the descent direction, its predicted gain, and the escape from a saddle."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, Float
from jaxopt_course.optimizers.searched import decrement


class NewtonModel(NamedTuple):
    """The quadratic model with gradient g and Hessian H.

    `direction`: -H^-1 g, or its replacement if H is not positive definite; `gain`: the decrease to the minimum of the
    model, inf if it has no minimum; `lowest`: the lowest curvature, as defined in `NewtonState`; `definite`: whether H
    is positive definite; `escape`: a direction of length 1 along which the curvature is `lowest` and the value does not
    rise, 0 if no curvature is negative.
    """

    direction: Float[Array, " n"]
    gain: Float[Array, ""]
    lowest: Float[Array, ""]
    definite: Array
    escape: Float[Array, " n"]


def hessian_scale(hessian: Float[Array, "n n"]) -> Float[Array, " n"]:
    """Return s such that s_i H_ij s_j has a diagonal of ones, which removes the units of the parameters.

    If a diagonal entry is far smaller than its row allows, which happens only in an indefinite Hessian, the entry is
    probably rounding and is not used as a scale. The largest entry of the row is then scaled to 1 instead.
    """
    eps, sizes = jnp.finfo(hessian.dtype).eps, jnp.abs(hessian)
    diagonal = jnp.diagonal(sizes)
    scale = jnp.where(diagonal > eps**2 * jnp.max(diagonal), lax.rsqrt(diagonal), 0)
    telling = (scale > 0) & (scale * jnp.max(sizes * scale[None], axis=1) <= eps**-0.4)  # 1 if H is semidefinite
    across = jnp.max(jnp.where(telling[None], sizes * scale[None], 0), axis=1)
    across = jnp.where(across > 0, across, jnp.sqrt(jnp.max(sizes, axis=1)))
    return jnp.where(telling, scale, jnp.where(across > 0, 1 / jnp.where(across > 0, across, 1), 1))


class Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of a scaled Hessian.

    `sizes`: absolute eigenvalues, at least their rounding error, and 1 if all are 0; `vectors`: eigenvectors in
    columns, that of the lowest eigenvalue first; `lowest`: the curvature along the first eigenvector in the units of
    the unscaled Hessian, 0 if it is not negative beyond rounding.
    """

    sizes: Float[Array, " n"]
    vectors: Float[Array, "n n"]
    lowest: Float[Array, ""]


def spectrum(scaled_hessian: Float[Array, "n n"], scale: Float[Array, " n"]) -> Spectrum:
    """Return the spectrum that replaces a Hessian that is not positive definite."""
    values, vectors = jnp.linalg.eigh(scaled_hessian)
    largest = jnp.max(jnp.abs(values))
    noise = 4 * len(scale) * jnp.finfo(values.dtype).eps * largest
    sizes = jnp.where(largest > 0, jnp.maximum(jnp.abs(values), noise), 1)
    lowest = values[0] / jnp.sum((scale * vectors[:, 0]) ** 2)
    return Spectrum(sizes, vectors, jnp.where(values[0] < -noise, lowest, 0))


def newton_model(hessian: Float[Array, "n n"], g: Float[Array, " n"], radius: Float[Array, ""]) -> NewtonModel:
    """Return the model at a point. If H is not positive definite, its direction is no longer than `radius`.

    H is first scaled by `hessian_scale`. If H is not positive definite, its eigenvalues are replaced by their absolute
    values, and the gain is known only if H is positive semidefinite and not 0.
    """
    eps = jnp.finfo(g.dtype).eps
    scale = hessian_scale(hessian)
    scaled_hessian, scaled_g = scale[:, None] * hessian * scale[None], scale * g
    factor = jnp.linalg.cholesky(scaled_hessian)
    pivots = jnp.diagonal(factor) ** 2
    definite = jnp.all(pivots > eps * jnp.max(pivots))  # False where a pivot is NaN

    def solve() -> tuple[Array, Array, Array]:
        step = jax.scipy.linalg.cho_solve((factor, True), scaled_g)
        return step, jnp.min(pivots / scale**2), jnp.zeros_like(g)

    def reflect() -> tuple[Array, Array, Array]:
        # Under vmap both branches run. Where this branch is not needed, it decomposes the identity, which is cheap.
        sizes, vectors, lowest = spectrum(jnp.where(definite, jnp.eye(len(g), dtype=g.dtype), scaled_hessian), scale)
        along = vectors.T @ scaled_g
        step = vectors @ jnp.where(along == 0, 0, along / sizes)
        out = jnp.where(along[0] > 0, -scale, scale) * vectors[:, 0]
        return step, lowest, jnp.where(lowest < 0, out, 0)

    direction, lowest, out = lax.cond(definite, solve, reflect)
    direction = -scale * direction
    convex = (lowest >= 0) & (jnp.max(jnp.abs(jnp.diagonal(hessian))) > 0)
    gain = lax.stop_gradient(jnp.where(convex, decrement(jnp.dot(g, direction)), jnp.inf))
    direction = limit_length(radius, direction, definite)
    out, far = lax.stop_gradient(out), lax.stop_gradient(_length(out))
    return NewtonModel(direction, gain, lowest.astype(radius.dtype), definite, out / jnp.where(far > 0, far, 1))


def limit_length(radius: Array, direction: Float[Array, " n"], definite: Array) -> Float[Array, " n"]:
    """Shorten the direction to the radius, unless the Hessian was positive definite."""
    length = lax.stop_gradient(_length(direction))
    cut = jnp.where(definite | (length <= radius), 1, radius.astype(direction.dtype) / length)
    return lax.stop_gradient(cut) * direction


def _length(v: Float[Array, " n"]) -> Float[Array, ""]:
    """Return the Euclidean norm, even if its square overflows or underflows; the norm of infinity is infinity."""
    size = jnp.max(jnp.abs(v), initial=0)
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    return size * jnp.linalg.norm(v / size)
