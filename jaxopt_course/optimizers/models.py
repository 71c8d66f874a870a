"""Quadratic models of `lbfgs`, `newton` and `newton_cg` on flat vectors, for steps under bounds and penalties."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, Float, Updates
from jaxopt_course.optimizers.composite import Model, ModelStep
from jaxopt_course.optimizers.dense_hessian import hessian_scale, spectrum
from jaxopt_course.optimizers.inner_solve import residual_gain, truncated_cg
from jaxopt_course.optimizers.lbfgs_history import History


def quasi_newton_model(history: History, first_curvature: Array) -> Model:
    r"""Return the model with the L-BFGS Hessian B in compact form; without pairs, B = `first_curvature` I.

    $$B = \theta I - W M W^T, \qquad W = [Y \; \theta S], \qquad
      M^{-1} = \begin{pmatrix} -D & L^T \\ L & \theta S^T S \end{pmatrix}$$

    Among the free parameters, Woodbury's formula inverts B with a system of 2 m equations.

    Source: Byrd, Lu, Nocedal and Zhu (1995), "A limited memory algorithm for bound constrained optimization", eqs. 3.2
    and 5.11.
    """
    slots, dtype = len(history.scale), first_curvature.dtype
    leaves = [pairs.reshape(2 * slots, -1).astype(dtype) for pairs in jax.tree.leaves(history.pairs)]
    scale = jnp.stack([history.scale] * 2).reshape(-1, 1).astype(dtype)
    s, y = jnp.where(scale > 0, scale * jnp.concatenate(leaves, axis=1), 0).reshape(2, slots, -1)
    numbers, used = jnp.arange(slots, dtype=jnp.int32), history.scale > 0
    newest = lax.rem(history.num_stored + slots - 1, jnp.int32(slots))
    theta = jnp.where(history.num_stored > 0, history.yy[newest, newest].astype(dtype), first_curvature)
    age = lax.rem(newest - numbers + slots, jnp.int32(slots))  # 0 for the newest
    lower = jnp.where(age[:, None] < age[None], s @ y.T, 0)
    ss = theta * (s @ s.T) + jnp.diag(jnp.where(used, 0, 1).astype(dtype))
    middle = jnp.block([[-jnp.eye(slots, dtype=dtype), lower.T], [lower, ss]])
    w = jnp.concatenate([y, theta * s])
    factors = jax.scipy.linalg.lu_factor(middle)

    def product(v: Array) -> Array:
        return theta * v - w.T @ jax.scipy.linalg.lu_solve(factors, w @ v)

    def newton_step(free: Array, q: Array) -> ModelStep:
        among = jnp.where(free[None], w, 0)
        inner = jnp.linalg.solve(middle - among @ among.T / theta, among @ q)
        step = -(q + among.T @ inner / theta) / theta
        return ModelStep(step, jnp.array(True), jnp.zeros((), dtype), jnp.int32(1))

    return Model(product, newton_step)


def hessian_model(hessian: Float[Array, "n n"], free: Array) -> tuple[Model, Array, Array]:
    """Return the model with the Hessian, the lowest curvature, and whether the Hessian was positive definite.

    If the Hessian is not positive definite among the free parameters, its eigenvalues are replaced by their absolute
    values. Parameters that are held at the start of the step are decoupled: only the curvature among the others
    determines how fast the solve converges. The lowest curvature is the one that `newton` reports.
    """
    eps, eye = jnp.finfo(hessian.dtype).eps, jnp.eye(len(hessian), dtype=hessian.dtype)
    scale = hessian_scale(hessian)
    scaled = jnp.where(free[:, None] & free[None], scale[:, None] * hessian * scale[None], eye)
    pivots = jnp.diagonal(jnp.linalg.cholesky(scaled)) ** 2
    definite = jnp.all(pivots > eps * jnp.max(pivots))  # False where a pivot is NaN

    def as_it_is() -> tuple[Array, Array]:
        return scaled, jnp.min(jnp.where(free, pivots / scale**2, jnp.inf))

    def reflected() -> tuple[Array, Array]:
        sizes, vectors, lowest = spectrum(jnp.where(definite, eye, scaled), scale)
        return (vectors * sizes[None]) @ vectors.T, lowest

    positive, lowest = lax.cond(definite, as_it_is, reflected)

    def product(v: Array) -> Array:
        return (positive @ (v / scale)) / scale

    def newton_step(free: Array, q: Array) -> ModelStep:
        factor = jnp.linalg.cholesky(jnp.where(free[:, None] & free[None], positive, eye))
        step = -scale * jax.scipy.linalg.cho_solve((factor, True), scale * q)
        return ModelStep(jnp.where(free, step, 0), jnp.array(True), jnp.zeros((), q.dtype), jnp.int32(1))

    return Model(product, newton_step), lowest, definite


def inexact_model(product: Callable[[Array], Array], forcing: Array, most: Array | int) -> Model:
    """Return the model with the Hessian given by its products.

    Systems among the free parameters are solved by conjugate gradients to the relative residual `forcing`.
    """

    def newton_step(free: Array, q: Array) -> ModelStep:
        def among_free(v: Updates) -> Updates:
            return jnp.where(free, product(v), 0)

        inner = truncated_cg(among_free, q, lambda v: v, most, forcing)
        return ModelStep(inner.solution, ~inner.negative, residual_gain(inner, q.dtype), inner.num_products)

    return Model(product, newton_step, most_rounds=10)
