r"""Derivatives of a minimum with respect to the values that the objective depends on, by implicit differentiation.

The gradient stays 0 as the minimum moves, so with $g(w, \theta) = \nabla_w f(w, \theta)$

$$H \, \dot w = -\frac{\partial g}{\partial \theta} \dot \theta, \qquad
  \frac{d}{d\theta} \min_w f = \frac{\partial f}{\partial \theta}$$

The derivative does not depend on the start or on the steps: if the solve ended early, one Newton step is taken to the
minimum first. Parameters that are held by a bound or a penalty stay there, and move with their bound; the equation is
solved for the others. The derivative is NaN if no minimum was found, if H is not positive definite beyond its rounding,
or if a held parameter is about to be released.

Source: Krantz and Parks (2003), "The implicit function theorem"; Bengio (2000), "Gradient-based optimization of
hyperparameters".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.flatten_util import ravel_pytree

from jaxopt_course.annotations import Array, Params, PyTree, Updates
from jaxopt_course.dtypes import standard_promotion, widened, working_dtype
from jaxopt_course.optimizers.inner_solve import truncated_cg
from jaxopt_course.optimizers.separable import Separable
from jaxopt_course.status import Status

MAX_DENSE = 256  # most parameters for which the Hessian is formed
CONDITION_MARGIN = 100  # eps times the condition of the Hessian is at most 1/100, for at least two correct digits
LOOSEST_RESIDUAL = 1e-6  # largest relative residual of a system that is solved iteratively
MAX_PRODUCTS_PER_PARAMETER = 10  # most products with the Hessian for each parameter


class Solution(NamedTuple):
    """The result of a solve. Only `params`, `value` and `aux` have derivatives.

    `grad_norm`: the largest entry of the gradient at the end; `largest_grad`: the largest during the solve; `record`:
    all other results.
    """

    params: Params
    value: Array
    aux: PyTree
    status: Array
    grad_norm: Array
    largest_grad: Array
    record: PyTree


class Values(NamedTuple):
    """The values that the minimum depends on: values that the objective closes over, its data, bounds and penalties."""

    closed_over: list[Any]
    data: tuple[PyTree, ...]
    separable: Separable | None


def with_derivatives(
    solve: Callable[..., Solution],
    value_and_aux: Callable[..., tuple[Array, PyTree]],
    start: Params,
    rest: PyTree,
    data: tuple[PyTree, ...],
    separable: Separable | None,
) -> Solution:
    """Return `solve(objective, start, rest, separable)`, with the derivatives of the minimum.

    The minimum is that of `value_and_aux(params, *data)` plus the separable term; `objective` is `value_and_aux` as a
    function of the parameters only. The derivatives are with respect to the data, to values that the objective closes
    over, and to bounds and strengths; those with respect to `start` and `rest` are 0.
    """
    closed, closed_over, dtypes = _closed_objective(value_and_aux, start, data)
    as_given = dtypes == _dtypes(start)

    def value_at(params: Params, values: Values) -> tuple[Array, PyTree]:
        return closed(values.closed_over, params, *values.data)

    def run_open(start: Params, rest: PyTree, values: Values) -> Solution:
        def objective(params: Params) -> tuple[Array, PyTree]:
            return value_at(params, values) if as_given else value_and_aux(params, *values.data)

        return solve(objective, start, rest, values.separable)

    values = Values(closed_over, data, separable)
    run, closed_over_by_run = _closed(run_open, start, rest, values)
    return _solution(_Closed(run, value_at, dtypes), values, closed_over_by_run, start, rest)


class _Closed:
    """A solve and its objective as closed functions, and the dtypes in which the parameters are differentiated.

    The derivative rule is defined outside this class and takes it as an argument: a new rule for each objective would
    refer to itself, and keep alive what the objective closes over.
    """

    def __init__(self, run: Callable[..., Solution], value_at: Callable[..., tuple[Array, PyTree]], dtypes: PyTree):
        self.run, self.value_at, self.dtypes = run, value_at, dtypes


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solution(closed: _Closed, values: Values, closed_over_by_run: list[Any], start: Params, rest: PyTree) -> Solution:
    return closed.run(closed_over_by_run, start, rest, values)


@_solution.defjvp
def _solution_jvp(closed: _Closed, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Solution, Solution]:
    end = _solution(closed, *primals)
    params = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), end.params, closed.dtypes)
    return end, _tangents(closed.value_at, end, params, primals[0], tangents[0])


def _tangents(
    value_at: Callable[..., tuple[Array, PyTree]], end: Solution, params: Params, values: Values, dots: Values
) -> Solution:
    """Return the tangents of the solution for tangents `dots` of the values; `params` are those at the end."""

    def grad_at(params: Params, values: Values) -> Updates:
        return jax.grad(lambda w: value_at(w, values)[0])(params)

    found = (end.status > 0) & (end.status != Status.TARGET_REACHED)
    accuracy = end.grad_norm / jnp.where(end.largest_grad > 0, end.largest_grad, 1)
    grads = grad_at(params, values)
    held = _held_parameters(params, grads, end, values.separable, dots.separable)

    def solved(params: Params, rhs: Updates) -> Updates:
        _, product = jax.linearize(lambda w: grad_at(w, values), params)

        def among_free(v: Updates) -> Updates:
            return jax.tree.map(lambda h, v, free: jnp.where(free, h, v), product(held.among_free(v)), v, held.free)

        return solved_linear(among_free, held.among_free(rhs), held.free, accuracy)

    def correction() -> Updates:
        return solved(params, optax.tree.scale(-1, optax.tree.add(grads, held.slope)))

    inaccurate = accuracy > jnp.sqrt(jnp.finfo(accuracy.dtype).eps)
    params = optax.tree.add(
        params, lax.stop_gradient(lax.cond(inaccurate, correction, lambda: optax.tree.zeros_like(params)))
    )
    one = jnp.where(found & held.clear, 1.0, jnp.nan)  # a factor, so that it also reaches the transposed system
    _, moves = jax.jvp(grad_at, (params, values), (held.dot, dots))
    rhs = optax.tree.scale(-one, optax.tree.add(moves, held.slope_dot))
    params_dot = optax.tree.add(solved(params, rhs), held.dot)
    _, (value_dot, aux_dot) = jax.jvp(value_at, (params, values), (held.dot, dots))
    if jax.tree.leaves(end.aux):
        _, (_, aux_dot) = jax.jvp(value_at, (params, values), (params_dot, dots))
    return Solution(
        params=optax.tree.cast_like(params_dot, end.params),
        value=(one * (value_dot.astype(end.value.dtype) + held.penalty_dot)).astype(end.value.dtype),
        aux=aux_dot,
        status=_zero_tangent(end.status),
        grad_norm=_zero_tangent(end.grad_norm),
        largest_grad=_zero_tangent(end.largest_grad),
        record=jax.tree.map(_zero_tangent, end.record),
    )


class _HeldParameters(NamedTuple):
    """Which parameters are held at the end of a solve, and the tangents that follow from it.

    `free`: which parameters are not held; `dot`: tangents of the held ones; `slope`: derivative of the penalty;
    `slope_dot`, `penalty_dot`: tangents of that derivative and of the penalty; `clear`: whether it is certain which
    parameters are held.
    """

    free: PyTree
    dot: Params
    slope: Updates
    slope_dot: Updates
    penalty_dot: Array
    clear: Array

    def among_free(self, tree: Updates) -> Updates:
        return jax.tree.map(lambda leaf, free: jnp.where(free, leaf, 0), tree, self.free)


def _held_parameters(
    params: Params, grads: Updates, end: Solution, separable: Separable | None, dots: Separable | None
) -> _HeldParameters:
    """Determine which parameters are held by bounds and penalties at the end of a solve."""
    nothing, dtype = optax.tree.zeros_like(params), end.value.dtype
    if separable is None or dots is None:
        free = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
        return _HeldParameters(free, nothing, nothing, nothing, jnp.zeros((), dtype), jnp.array(True))

    def like(tree: PyTree) -> PyTree:
        return nothing if tree is None else optax.tree.cast_like(tree, params)

    term = Separable(*(None if part is None else like(part) for part in separable))
    free = term.free(params, nothing)
    doubt = 10 * jnp.maximum(end.grad_norm, jnp.finfo(dtype).eps * end.largest_grad)
    margins = term.margins(params, grads)
    unclear = [jnp.any(~free & (m.astype(dtype) <= doubt)) for m, free in _paired(margins, free)]

    def with_bound(w: Array, low: Array, high: Array, low_dot: Array, high_dot: Array) -> Array:
        return jnp.where(w <= low, low_dot, jnp.where(w >= high, high_dot, 0))

    dot = jax.tree.map(with_bound, params, term.lower, term.upper, like(dots.lower), like(dots.upper))
    strength_dot = like(dots.strength)
    slope, slope_dot = (
        jax.tree.map(lambda w, s: s * jnp.sign(w), params, strength) for strength in (like(term.strength), strength_dot)
    )
    _, penalty_dot = jax.jvp(
        lambda w, s: term._replace(strength=s).penalty(w, dtype), (params, like(term.strength)), (dot, strength_dot)
    )
    return _HeldParameters(free, dot, slope, slope_dot, penalty_dot, ~jnp.any(jnp.stack([jnp.array(False), *unclear])))


def _paired(*trees: PyTree) -> Any:
    return zip(*map(jax.tree.leaves, trees), strict=True)


def solved_linear(product: Callable[[Updates], Updates], rhs: Updates, free: PyTree, accuracy: Array) -> Updates:
    """Solve H x = b; NaN if H is not positive definite beyond its rounding. The solution is differentiable.

    Args:
      product: `v -> H v`, linear and symmetric; the identity for parameters that are not `free`.
      rhs: b, like the parameters, in at least 32 bits.
      free: like the parameters, boolean.
      accuracy: relative residual at which an iterative solution is accepted.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(rhs))
    if size == 0:
        return rhs
    if size <= MAX_DENSE:
        return lax.custom_linear_solve(product, rhs, _dense, symmetric=True)
    accuracy = lax.stop_gradient(accuracy)

    def iterate(product: Callable[[Updates], Updates], rhs: Updates) -> Updates:
        return _by_conjugate_gradients(product, rhs, free, accuracy)

    return lax.custom_linear_solve(product, rhs, iterate, symmetric=True)


def _dense(product: Callable[[Updates], Updates], rhs: Updates) -> Updates:
    """Solve by Cholesky factorization of the Hessian, scaled to a diagonal of ones; the condition is in the 1-norm."""
    flat, unravel = ravel_pytree(rhs)
    eye = jnp.eye(len(flat), dtype=flat.dtype)
    eps = max(jnp.finfo(leaf.dtype).eps for leaf in jax.tree.leaves(rhs))
    hessian = jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(eye)
    diagonal = jnp.diagonal(hessian)
    scale = lax.rsqrt(jnp.where(diagonal > 0, diagonal, jnp.nan))
    scaled = scale[:, None] * (hessian + hessian.T) / 2 * scale[None]
    factor = jnp.linalg.cholesky(scaled)
    inverse = jax.scipy.linalg.cho_solve((factor, True), eye)
    condition = jnp.linalg.norm(scaled, 1) * jnp.linalg.norm(inverse, 1)
    sound = CONDITION_MARGIN * eps * condition <= 1  # False where it is NaN
    return unravel(jnp.where(sound, scale * (inverse @ (scale * flat)), jnp.nan))


def _by_conjugate_gradients(
    product: Callable[[Updates], Updates], rhs: Updates, free: PyTree, accuracy: Array
) -> Updates:
    """Solve by products with the Hessian, and check with a random right-hand side that the Hessian is not singular.

    A singular system may have a solution for `rhs`, which conjugate gradients then find; for a random right-hand side
    it has none.
    """
    dtype = working_dtype(rhs)
    leaves, structure = jax.tree.flatten(rhs)
    size = sum(leaf.size for leaf in leaves)
    eps = jnp.finfo(dtype).eps

    def wide_product(v: Updates) -> Updates:
        return optax.tree.cast(product(optax.tree.cast_like(v, rhs)), dtype)

    def solve(b: Updates, goal: Array | float) -> tuple[Updates, Array]:
        inner = truncated_cg(
            wide_product, optax.tree.scale(-1, b), lambda v: v, MAX_PRODUCTS_PER_PARAMETER * size, goal
        )
        ended = optax.tree.norm(inner.residual) <= goal * optax.tree.norm(b)
        return inner.solution, ended & ~inner.negative & (inner.lowest > CONDITION_MARGIN * eps * inner.largest)

    keys = jax.random.split(jax.random.key(0), len(leaves))
    random: Any = [
        jnp.where(free, jax.random.normal(key, leaf.shape, dtype), 0)
        for key, leaf, free in zip(keys, leaves, jax.tree.leaves(free), strict=True)
    ]
    solution, solved = solve(optax.tree.cast(rhs, dtype), jnp.clip(accuracy.astype(dtype), 10 * eps, LOOSEST_RESIDUAL))
    _, regular = solve(jax.tree.unflatten(structure, random), 0.1 / np.sqrt(size))  # shows even one singular direction
    sound = regular & (solved | (optax.tree.norm(rhs) == 0))
    return jax.tree.map(lambda x, b: jnp.where(sound, x, jnp.nan).astype(b.dtype), solution, rhs)


def _closed_objective(
    value_and_aux: Callable[..., Any], start: Params, data: tuple[PyTree, ...]
) -> tuple[Callable[..., Any], list[Any], PyTree]:
    """Return the closed objective, the values it closes over, and the dtypes of its parameters, 32 bits if possible."""
    try:
        with standard_promotion():
            wide = widened(start)
            return *_closed(value_and_aux, wide, *data), _dtypes(wide)
    except (TypeError, ValueError):  # the objective needs 16 bits, in an operation that does not promote
        return *_closed(value_and_aux, start, *data), _dtypes(start)


def _dtypes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


def _closed(fn: Callable[..., Any], *args: PyTree) -> tuple[Callable[..., Any], list[Any]]:
    """Return the function with its closed-over values as first argument, and these values."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    structure = jax.tree.structure(shape)

    def call(closed_over: list[Any], *args: PyTree) -> Any:
        flat = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, closed_over))(*jax.tree.leaves(args))
        return jax.tree.unflatten(structure, map(jnp.asarray, flat))

    return call, list(closed.consts)


def _zero_tangent(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)
