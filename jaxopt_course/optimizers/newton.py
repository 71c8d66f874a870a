r"""Newton's method: the exact Hessian for few parameters, products with it for many."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxopt_course.annotations import Array, Float
from jaxopt_course.optimizers.hyperparameters import Rate, learning_rate_at
from jaxopt_course.optimizers.leaves import next_count, start_count
from jaxopt_course.optimizers.line_search import MAX_EVALS, LineSearch, scaled, strong_wolfe
from jaxopt_course.optimizers.searched import (
    Optimizer,
    Search,
    ask,
    found,
    may_move,
    search_along,
    start_search,
    widened,
)
from jaxopt_course.status import Status


class NewtonState(NamedTuple):
    count: Array | None
    search: Search
    num_shifts: Array
    lowest_curvature: Array


def newton(learning_rate: Rate = 1.0, *, line_search: LineSearch | None = strong_wolfe) -> Optimizer:
    rate = learning_rate_at(learning_rate)

    def init(params: Any) -> NewtonState:
        search = start_search(params)
        nan = jnp.full((), jnp.nan, search.step_size.dtype)
        if line_search is None:
            search = search._replace(evaluation=None)
        return NewtonState(start_count(params, learning_rate), search, jnp.zeros((), jnp.int32), nan)

    def update(grads: Any, state: NewtonState, params: Any = None, **keywords: Any) -> tuple[Any, NewtonState]:
        if not jax.tree.leaves(params):
            return grads, state
        asked = ask("newton", grads, params, **keywords)
        w, unravel = ravel_pytree(widened(params))
        g, _ = ravel_pytree(widened(grads))
        hessian = jax.hessian(lambda w: asked.value_fn(unravel(w)))(w)
        step, lowest, shifted = newton_direction(hessian, g)
        direction = unravel(step)
        length = jnp.asarray(rate(state.count), w.dtype)
        usable = jnp.all(jnp.isfinite(hessian))
        if line_search is None:
            going = usable & jnp.all(jnp.isfinite(step)) & may_move(asked)
            length = jnp.where(going, length, 0)
            search = state.search._replace(step_size=length)
            status = state.search.status * 0
        else:
            moved = search_along(
                line_search,
                asked._replace(budget=jnp.where(usable, MAX_EVALS if asked.budget is None else asked.budget, 0)),
                direction,
                length,
            )
            search, length, status = found(state.search, moved, moved.status), moved.length, moved.status
        search = search._replace(status=jnp.where(usable, status, Status.HESSIAN_NOT_FINITE).astype(jnp.int32))
        updates = scaled(length, direction, params)
        return updates, NewtonState(
            next_count(state.count), search, state.num_shifts + shifted.astype(jnp.int32), lowest
        )

    return Optimizer(init, update)


def newton_direction(hessian: Float[Array, "n n"], g: Float[Array, "n"]) -> tuple[Array, Array, Array]:
    """-H^-1 g by Cholesky where H is positive definite; else with the absolute values of its eigenvalues."""
    tiny = jnp.finfo(g.dtype).eps
    factor = jnp.linalg.cholesky(hessian)
    pivots = jnp.diagonal(factor) ** 2
    definite = jnp.min(pivots) > tiny * jnp.max(pivots)  # False where a pivot is NaN

    def solve() -> tuple[Array, Array]:
        return -jax.scipy.linalg.cho_solve((factor, True), g), jnp.min(pivots)

    def reflect() -> tuple[Array, Array]:
        finite = jnp.where(jnp.all(jnp.isfinite(hessian)), hessian, jnp.eye(len(g), dtype=g.dtype))
        values, vectors = jnp.linalg.eigh(finite)
        sizes = jnp.abs(values)
        sizes = jnp.maximum(sizes, jnp.maximum(jnp.sqrt(tiny) * jnp.max(sizes), jnp.finfo(g.dtype).tiny))
        return -vectors @ ((vectors.T @ g) / sizes), values[0]

    step, lowest = lax.cond(definite, solve, reflect)
    return step, lowest, ~definite


class NewtonCGState(NamedTuple):
    count: Array | None
    search: Search
    num_products: Array
    num_negative: Array


def newton_cg(
    learning_rate: Rate = 1.0,
    *,
    line_search: LineSearch = strong_wolfe,
    preconditioner: Callable[[Any, Any], Any] | None = None,
    max_products: int | None = None,
) -> Optimizer:
    rate = learning_rate_at(learning_rate)

    def init(params: Any) -> NewtonCGState:
        zero = jnp.zeros((), jnp.int32)
        return NewtonCGState(start_count(params, learning_rate), start_search(params), zero, zero)

    def update(grads: Any, state: NewtonCGState, params: Any = None, **keywords: Any) -> tuple[Any, NewtonCGState]:
        if not jax.tree.leaves(params):
            return grads, state
        asked = ask("newton_cg", grads, params, **keywords)
        wide = widened(params)
        _, product = jax.linearize(jax.grad(asked.value_fn), wide)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        most = max_products or min(2 * size + 10, 500)
        most = jnp.where(may_move(asked), most, 0)
        inverse = (lambda v: preconditioner(params, v)) if preconditioner else (lambda v: v)
        cg = truncated_cg(product, widened(grads), inverse, most)
        step = search_along(
            line_search, asked, cg.direction, jnp.asarray(rate(state.count), state.search.step_size.dtype)
        )
        return scaled(step.length, cg.direction, params), NewtonCGState(
            next_count(state.count),
            found(state.search, step, step.status),
            state.num_products + cg.num_products,
            state.num_negative + cg.negative.astype(jnp.int32),
        )

    return Optimizer(init, update)


class CG(NamedTuple):
    direction: Any
    residual: Any
    conjugate: Any
    rho: Array
    steepest: Array  # curvature
    num_products: Array
    negative: Array


def truncated_cg(product, grads, inverse, most) -> CG:
    norm = optax.tree.norm
    vdot, axpy, scale = optax.tree.vdot, optax.tree.add_scale, optax.tree.scale
    goal = jnp.minimum(0.5, jnp.sqrt(norm(grads))) * norm(grads)
    start = inverse(grads)
    rho = vdot(grads, start)
    first = CG(
        optax.tree.zeros_like(grads),
        grads,
        scale(-1, start),
        rho,
        jnp.zeros_like(rho),
        jnp.zeros((), jnp.int32),
        jnp.array(False),
    )

    def body(cg: CG) -> CG:
        p = cg.conjugate
        hp = product(p)
        php, pp = vdot(p, hp), vdot(p, p)
        steepest = jnp.maximum(cg.steepest, jnp.abs(php) / pp)
        negative = ~(php > jnp.finfo(php.dtype).eps * steepest * pp)
        curvature = jnp.maximum(jnp.abs(php), jnp.sqrt(jnp.finfo(php.dtype).eps) * steepest * pp)
        alpha = cg.rho / jnp.where(negative, curvature, php)
        residual = axpy(cg.residual, alpha, hp)
        y = inverse(residual)
        rho = vdot(residual, y)
        return CG(
            axpy(cg.direction, alpha, p),
            residual,
            optax.tree.sub(scale(rho / cg.rho, p), y),
            rho,
            steepest,
            cg.num_products + 1,
            negative,
        )

    def going(cg: CG) -> Array:
        return (norm(cg.residual) > goal) & ~cg.negative & (cg.num_products < most)

    return lax.while_loop(going, body, first)
