"""What a whole Hessian tells of a step: the direction down, what it would gain, and the way out of a saddle."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, Float
from jaxopt_course.optimizers.searched import decrement


class NewtonModel(NamedTuple):
    """The parabola with gradient g and Hessian H.

    `direction`: -H^-1 g, or what stands for it where H is not positive definite; `gain`: what the model has left to
    gain, inf where it has no minimum; `lowest`: the lowest curvature, as `NewtonState` says; `definite`: whether H is
    positive definite; `escape`: a direction of length 1 along which the curvature is `lowest` and the value does not
    rise, 0 where no curvature is negative.
    """

    direction: Float[Array, " n"]
    gain: Float[Array, ""]
    lowest: Float[Array, ""]
    definite: Array
    escape: Float[Array, " n"]


def hessian_scale(hessian: Float[Array, "n n"]) -> Float[Array, " n"]:
    """s such that s_i H_ij s_j has a diagonal of ones: the units of the parameters then do not matter.

    Where the diagonal is far below what its row says, as only an indefinite Hessian can have it, it is likely to be
    rounding and sets no scale: then the largest entry of the row becomes 1.
    """
    eps, sizes = jnp.finfo(hessian.dtype).eps, jnp.abs(hessian)
    diagonal = jnp.diagonal(sizes)
    scale = jnp.where(diagonal > eps**2 * jnp.max(diagonal), lax.rsqrt(diagonal), 0)
    telling = (scale > 0) & (scale * jnp.max(sizes * scale[None], axis=1) <= eps**-0.4)  # 1 if H is semidefinite
    across = jnp.max(jnp.where(telling[None], sizes * scale[None], 0), axis=1)
    across = jnp.where(across > 0, across, jnp.sqrt(jnp.max(sizes, axis=1)))
    return jnp.where(telling, scale, jnp.where(across > 0, 1 / jnp.where(across > 0, across, 1), 1))


class Spectrum(NamedTuple):
    """Of a scaled Hessian: `sizes`, absolute eigenvalues, at least their rounding, and 1 where all are 0; `vectors`, in
    columns, that of the lowest eigenvalue first; `lowest`: the curvature along it in the units of the Hessian itself, 0
    where that is not negative beyond rounding."""

    sizes: Float[Array, " n"]
    vectors: Float[Array, "n n"]
    lowest: Float[Array, ""]


def spectrum(scaled_hessian: Float[Array, "n n"], scale: Float[Array, " n"]) -> Spectrum:
    """What stands for a Hessian that is not positive definite."""
    values, vectors = jnp.linalg.eigh(scaled_hessian)
    largest = jnp.max(jnp.abs(values))
    noise = 4 * len(scale) * jnp.finfo(values.dtype).eps * largest
    sizes = jnp.where(largest > 0, jnp.maximum(jnp.abs(values), noise), 1)
    lowest = values[0] / jnp.sum((scale * vectors[:, 0]) ** 2)
    return Spectrum(sizes, vectors, jnp.where(values[0] < -noise, lowest, 0))


def newton_model(hessian: Float[Array, "n n"], g: Float[Array, " n"], radius: Float[Array, ""]) -> NewtonModel:
    """The model at a point; its direction is no longer than `radius` where H is not positive definite.

    H is scaled by `hessian_scale` first. Where it is not positive definite, its eigenvalues lose their signs, and the
    gain is known only if it is semidefinite and not 0.
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
        # Under vmap both branches run: this one then waits for the other, and has little to do where it is not asked.
        sizes, vectors, lowest = spectrum(jnp.where(definite, jnp.eye(len(g), dtype=g.dtype), scaled_hessian), scale)
        along = vectors.T @ scaled_g
        step = vectors @ jnp.where(along == 0, 0, along / sizes)
        out = jnp.where(along[0] > 0, -scale, scale) * vectors[:, 0]
        return step, lowest, jnp.where(lowest < 0, out, 0)

    direction, lowest, out = lax.cond(definite, solve, reflect)
    direction = -scale * direction
    convex = (lowest >= 0) & (jnp.max(jnp.abs(jnp.diagonal(hessian))) > 0)
    gain = lax.stop_gradient(jnp.where(convex, decrement(jnp.dot(g, direction)), jnp.inf))
    direction = cut_to(radius, direction, definite)
    out, far = lax.stop_gradient(out), lax.stop_gradient(_length(out))
    return NewtonModel(direction, gain, lowest.astype(radius.dtype), definite, out / jnp.where(far > 0, far, 1))


def cut_to(radius: Array, direction: Float[Array, " n"], definite: Array) -> Float[Array, " n"]:
    """The direction, no longer than the radius unless the Hessian was definite."""
    length = lax.stop_gradient(_length(direction))
    cut = jnp.where(definite | (length <= radius), 1, radius.astype(direction.dtype) / length)
    return lax.stop_gradient(cut) * direction


def _length(v: Float[Array, " n"]) -> Float[Array, ""]:
    """The Euclidean norm, also where its square is beyond all range; of 0 or infinity it is 0 or infinity."""
    size = jnp.max(jnp.abs(v), initial=0)
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    return size * jnp.linalg.norm(v / size)
