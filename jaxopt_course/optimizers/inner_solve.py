"""Truncated conjugate gradients for Newton's system: the direction of `newton_cg`, and the gain it leaves."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxopt_course.annotations import Array, Updates
from jaxopt_course.dtypes import largest_entry, norm
from jaxopt_course.optimizers.dense_hessian import hessian_scale
from jaxopt_course.optimizers.searched import gain_along


class InnerSolve(NamedTuple):
    """State of conjugate gradients on H d = -g, with preconditioner M.

    `solution`: d; `residual`: r = H d + g; `conjugate`: the next direction p; `rho`: r'M r; `largest`, `lowest`: the
    extremes of the curvature |p'Hp| / p'p so far; `negative`: whether negative curvature ended the solve; `last`: the
    last direction p that was multiplied with H; `curvature`: p'Hp / p'p along it.
    """

    solution: Any
    residual: Any
    conjugate: Any
    rho: Array
    largest: Array
    lowest: Array
    num_products: Array
    negative: Array
    last: Any
    curvature: Array


def residual_gain(inner: InnerSolve, dtype: Any) -> Array:
    r"""Estimate the gain that the decrement of an inexact solve misses, $|r|^2 / (2 \mu)$; 0 if it is unknown.

    $\mu$ is the lowest curvature along the directions of the solve.
    """
    gain = gain_along(norm(inner.residual, dtype), inner.lowest)
    return jnp.where(jnp.isfinite(gain), gain, 0)


def inexact_gain(inner: InnerSolve, product: Callable[[Updates], Updates], converged: Array, dtype: Any) -> Array:
    """Estimate the gain that an inexact solve leaves: the larger of `residual_gain` and the gain along the residual.

    The second estimate takes one more product, and is made only if the solve has not `converged`: its lowest curvature
    may then be far above the curvature along the residual. That curvature is lost in rounding only below eps times the
    largest.
    """

    def along_the_residual() -> Array:
        size = norm(inner.residual, dtype)
        unit = optax.tree.scale(1 / jnp.where(size > 0, size, 1), inner.residual)
        curvature = optax.tree.vdot(unit, product(unit)).astype(dtype)
        return gain_along(size, jnp.maximum(curvature, jnp.finfo(dtype).eps * inner.largest))

    return jnp.maximum(
        residual_gain(inner, dtype), lax.cond(converged, lambda: jnp.zeros((), dtype), along_the_residual)
    )


class System(NamedTuple):
    """The system H d = -g in scaled units.

    `product`: v -> H v; `grads`: g; `to_params`: maps a solution to the units of the parameters.
    """

    product: Callable[[Any], Any]
    grads: Any
    to_params: Callable[[Any], Updates]


def scaled_system(product: Callable[[Updates], Updates], grads: Updates) -> System:
    """Return the system as flat vectors, scaled so that H has a diagonal of ones; the scale takes n products."""
    g, unravel = ravel_pytree(grads)
    hessian = jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0], out_axes=1)(jnp.eye(len(g), dtype=g.dtype))
    scale = hessian_scale(hessian)
    return System(lambda v: scale * (hessian @ (scale * v)), scale * g, lambda v: unravel(scale * v))


def saddle_escape(
    inner: InnerSolve, to_params: Callable[[Any], Updates], grads: Updates, dtype: Any
) -> tuple[Updates, Array]:
    """Return a direction of negative curvature, of length 1 and not uphill, and the curvature along it.

    The curvature is 0 if it is not negative beyond the rounding of the products.
    """
    p = to_params(inner.last)
    length, own = optax.tree.norm(p), optax.tree.norm(inner.last)  # the solve scaled the gradient to largest entry 1
    length, own = jnp.where(length > 0, length, 1), jnp.where(length > 0, own, 1)
    sign = jnp.where(optax.tree.vdot(grads, p) > 0, -1, 1)
    noise = 8 * math.sqrt(sum(leaf.size for leaf in jax.tree.leaves(grads))) * jnp.finfo(dtype).eps
    negative = inner.negative & (inner.curvature < -noise * inner.largest)
    curvature = inner.curvature * (own / length) ** 2
    return optax.tree.scale(sign / length, p), jnp.where(negative, curvature, 0)


def truncated_cg(
    product: Callable[[Updates], Updates],
    grads: Updates,
    inverse: Callable[[Updates], Updates],
    max_products: Array | int,
    forcing: Array | float,
) -> InnerSolve:
    """Solve H d = -g until the residual is at most `forcing` |g|, or the curvature is not positive.

    The solve is linear in g. It scales g to a largest entry of 1, because squares of small numbers would underflow.
    """
    vdot, size_of, scale, add_scale = optax.tree.vdot, optax.tree.norm, optax.tree.scale, optax.tree.add_scale
    top = largest_entry(grads, jax.tree.leaves(grads)[0].dtype)
    unit = jnp.where(top > 0, top, 1)
    grads = scale(1 / unit, grads)
    size = size_of(grads)
    goal, eps = forcing * size, jnp.finfo(size.dtype).eps

    def body(inner: InnerSolve) -> InnerSolve:
        p = inner.conjugate
        hp = product(p)
        curvature, length = vdot(p, hp), vdot(p, p)
        largest = jnp.maximum(inner.largest, jnp.abs(curvature) / length)
        negative = ~(curvature > eps * largest * length)
        positive = jnp.maximum(jnp.abs(curvature), jnp.sqrt(eps) * largest * length)
        alpha = jnp.where(positive == 0, 1, inner.rho / positive)
        residual = add_scale(inner.residual, alpha, hp)
        preconditioned = inverse(residual)
        rho = vdot(residual, preconditioned)
        return InnerSolve(
            add_scale(inner.solution, alpha, p),
            residual,
            add_scale(scale(-1, preconditioned), rho / inner.rho, p),
            rho,
            largest,
            jnp.minimum(inner.lowest, jnp.abs(curvature) / length),
            inner.num_products + 1,
            negative,
            p,
            curvature / length,
        )

    first = inverse(grads)
    none, rho = jnp.int32(0), vdot(grads, first)
    zero, far = jnp.zeros_like(rho), jnp.full_like(rho, jnp.inf)
    nowhere = optax.tree.zeros_like(grads)
    start = InnerSolve(nowhere, grads, scale(-1, first), rho, zero, far, none, jnp.array(False), nowhere, zero)
    inner = lax.while_loop(
        lambda inner: (size_of(inner.residual) > goal) & ~inner.negative & (inner.num_products < max_products),
        body,
        start,
    )
    return inner._replace(solution=scale(unit, inner.solution), residual=scale(unit, inner.residual))
