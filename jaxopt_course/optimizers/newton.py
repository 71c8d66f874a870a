r"""Newton's method: with the exact Hessian for few parameters, with Hessian-vector products for many.

`newton` factors the Hessian, and replaces the eigenvalues by their absolute values if it is not positive definite.
`newton_cg` ends its inner solve at a direction of negative curvature and follows that direction.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxopt_course.annotations import Array, Float, Optimizer, Params, Updates
from jaxopt_course.dtypes import norm, widened
from jaxopt_course.optimizers.composite import model_minimum
from jaxopt_course.optimizers.dense_hessian import NewtonModel, limit_length, newton_model
from jaxopt_course.optimizers.hyperparameters import Rate, cached_factory, learning_rate_at
from jaxopt_course.optimizers.inner_solve import System, inexact_gain, saddle_escape, scaled_system, truncated_cg
from jaxopt_course.optimizers.leaves import next_count, start_count
from jaxopt_course.optimizers.line_search import LineSearch, scaled, strong_wolfe
from jaxopt_course.optimizers.models import hessian_model, inexact_model
from jaxopt_course.optimizers.saddles import search_or_escape
from jaxopt_course.optimizers.searched import (
    Search,
    decrement,
    full_step,
    init_search,
    next_search,
    resolve_failed_search,
    search_inputs,
    steepest_after_reset,
    total_count,
)
from jaxopt_course.optimizers.separable import Separable, ravelled
from jaxopt_course.status import Status

SMALL_SIZE = 32  # most parameters for which the Hessian is formed to scale the inner solve, one product for each


class NewtonState(NamedTuple):
    """`count`: as in `SGDState`; `search`: the last step; `num_shifts`: Hessians not positive definite so far, int32.

    `lowest_curvature`: of the Hessian at the start of the last step. If it was positive definite, this is its smallest
    pivot; else the curvature along the most negative direction of the scaled Hessian, 0 if that is lost in rounding;
    NaN before the first step. `radius`: largest length of the next step along directions without positive curvature.
    `reset_status`: the line-search status because of which the next step follows the negative gradient, else 0, int32.
    """

    count: Array | None  # type: ignore[assignment]  # optax's name; tuple.count is not used
    search: Search
    num_shifts: Array
    lowest_curvature: Array
    radius: Array
    reset_status: Array


@cached_factory
def newton(learning_rate: Rate = 1.0, *, line_search: LineSearch | None = strong_wolfe) -> Optimizer:
    r"""Newton's method with the exact Hessian, as in the lecture.

    $$w \leftarrow w - t H^{-1} g, \qquad H = \nabla^2 f(w)$$

    Without a line search, t is `learning_rate`; with one, `learning_rate` is the first length to try. H is scaled to a
    diagonal of ones, so that the units of the parameters do not matter. If H is positive definite, the system is solved
    by Cholesky factorization. Otherwise the eigenvalues are replaced by their absolute values, $Q |\Lambda| Q^T$, and
    the step is limited to twice the length of the last one; `num_shifts` counts these cases. Near a saddle, where such
    a step would gain nothing, the search follows the direction of lowest curvature instead, and its first trial is at
    least a tenth of the size of the parameters.

    `update` needs `params`, `value=` and `value_fn=`, which `minimize` and `train` pass. It costs n products with the
    Hessian and n^3/3 operations for n parameters; `newton_cg` needs neither.

    Args:
      learning_rate: t, a number, traced scalar or schedule, without unit; 1 is the full Newton step.
      line_search: `strong_wolfe`, a function like it, or None for a step of exactly t, the pure method.

    Returns:
      The optimizer; its state is `NewtonState`.

    Raises:
      ValueError: a learning rate that is below 0 or not finite; in `update`, missing keywords.
      TypeError: parameters that are not real floating point.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> f = lambda w: w[0] ** 2 + 25.0 * w[1] ** 2
      >>> optimizer, w = newton(), jnp.array([4.0, 1.0])
      >>> value, grad = jax.value_and_grad(f)(w)
      >>> updates, state = optimizer.update(grad, optimizer.init(w), w, value=value, grad=grad, value_fn=f)
      >>> f"{value:.1f} -> {f(optax.apply_updates(w, updates)):.1f}"
      '41.0 -> 0.0'

    Source: the lecture's "Second-Order Optimization"; Nocedal and Wright (2006), "Numerical optimization", section 3.4;
    absolute eigenvalues after Dauphin et al. (2014), "Identifying and attacking the saddle point problem".
    """
    rate = learning_rate_at(learning_rate)

    def init(params: Params) -> NewtonState:
        search = init_search(params)
        if line_search is None:
            search = search._replace(evaluation=None)
        size, dtype = jnp.asarray(optax.tree.norm(lax.stop_gradient(widened(params)))), search.step_size.dtype
        radius, unknown = jnp.where(size > 0, size, 1).astype(dtype), jnp.full((), jnp.nan, dtype)
        zero = jnp.zeros((), jnp.int32)
        return NewtonState(start_count(params, learning_rate), search, zero, unknown, radius, zero)

    def update(
        grads: Updates, state: NewtonState, params: Params = None, **keywords: Any
    ) -> tuple[Updates, NewtonState]:
        if not jax.tree.leaves(grads):
            return grads, state
        inputs = search_inputs("newton", grads, params, **keywords)
        w, unravel = ravel_pytree(widened(params))
        g, _ = ravel_pytree(widened(grads))
        _, product = jax.linearize(lambda w: ravel_pytree(jax.grad(inputs.value_fn)(unravel(w)))[0], w)
        hessian = jax.vmap(product, out_axes=1)(jnp.eye(len(w), dtype=w.dtype))
        usable = jnp.all(jnp.isfinite(hessian))
        hessian = jnp.where(usable, hessian, 0)
        if inputs.separable is None:
            model = newton_model(hessian, g, state.radius)
        else:
            model = _model_within(hessian, w, g, inputs.separable.ravelled(w.dtype), state.radius)
        direction, first = unravel(model.direction), jnp.asarray(rate(state.count), w.dtype)
        inputs = inputs.frozen_where(~usable)
        if line_search is None:
            step = full_step(inputs, first)
        else:
            direction, first = steepest_after_reset(direction, first, state.reset_status, inputs)
            escape_curvature = jnp.where((state.reset_status < 0) | ~jnp.any(model.escape != 0), 0, model.lowest)
            direction, step = search_or_escape(
                line_search, inputs, direction, first, unravel(model.escape), escape_curvature, state.radius
            )
        after = resolve_failed_search(step, model.gain, state.reset_status, inputs)
        status = jnp.where(usable, after.status, jnp.int32(Status.HESSIAN_NOT_FINITE))
        reached = lax.stop_gradient(step.length * norm(direction, step.length.dtype))
        return scaled(step.length, direction, params), NewtonState(
            next_count(state.count),
            next_search(state.search, step, status, jnp.where(usable, model.gain, jnp.inf)),
            total_count(state.num_shifts, (~model.definite).astype(jnp.int32)),
            model.lowest,
            jnp.where(reached > 0, 2 * reached, state.radius).astype(state.radius.dtype),
            after.reset_status,
        )

    return Optimizer(init, update)


class NewtonCGState(NamedTuple):
    """`count`: as in `SGDState`; `search`: the last step; `num_products`: products with the Hessian; `num_negative`:
    inner solves with negative curvature; `largest_grad`: the largest Euclidean norm of the gradient, the scale of the
    forcing sequence; `reset_status`: as in `NewtonState`. The counts and the largest norm are since `init`.
    """

    count: Array | None  # type: ignore[assignment]  # optax's name; tuple.count is not used
    search: Search
    num_products: Array
    num_negative: Array
    largest_grad: Array
    reset_status: Array


@cached_factory
def newton_cg(
    learning_rate: Rate = 1.0,
    *,
    line_search: LineSearch = strong_wolfe,
    preconditioner: Callable[[Any, Any], Any] | None = None,
    max_products: int | None = None,
) -> Optimizer:
    r"""Newton's method for many parameters: conjugate gradients solve for the step, to a tolerance set by the gradient.

    $$w \leftarrow w + t d, \qquad |H d + g| \le \min\bigl(\tfrac12, \sqrt{|g| / |g|_{max}}\bigr)\, |g|$$

    Here |g|_max is the largest gradient so far, so that the units of the objective do not matter. The inner solve
    multiplies with the Hessian; a product costs about as much as a gradient. At a direction p of negative curvature the
    solve ends, with a step along p as long as if the curvature were positive. Near a saddle, the line search follows p,
    and its first trial is at least a tenth of the size of the parameters.

    For at most 32 parameters, and if neither `preconditioner` nor `max_products` is given, the inner solve scales the
    Hessian to a diagonal of ones, which costs one product for each parameter. For more parameters the Hessian is never
    formed.

    `update` needs `params`, `value=` and `value_fn=`, which `minimize` and `train` pass.

    Args:
      learning_rate: the first length to try, a number, traced scalar or schedule; 1 is the full Newton step.
      line_search: `strong_wolfe`, or a function like it.
      preconditioner: `(params, v) -> v` like v, a positive definite approximation of the inverse Hessian times v.
      max_products: most products with the Hessian in one step; the default is 2 n + 10, and at most 500.

    Returns:
      The optimizer; its state is `NewtonCGState`.

    Raises:
      ValueError: a hyperparameter out of range; in `update`, missing keywords.
      TypeError: parameters that are not real floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxopt_course as jc
      >>> scales = jnp.logspace(0, 3, 1000)
      >>> f = lambda w: jnp.sum(jnp.cosh(w) * scales) / 1000
      >>> result = jc.minimize(f, newton_cg(), jnp.ones(1000))
      >>> f"{f(jnp.ones(1000)):.0f} -> {result.value:.0f}, {f(jnp.zeros(1000)):.0f} at best"
      '224 -> 145, 145 at best'

    Source: Nocedal and Wright (2006), "Numerical optimization", algorithm 7.1; Dembo, Eisenstat, Steihaug (1982),
    "Inexact Newton methods", for the forcing sequence.
    """
    rate = learning_rate_at(learning_rate)
    if max_products is not None and max_products < 1:
        raise ValueError(f"max_products must be at least 1, got {max_products}")

    def init(params: Params) -> NewtonCGState:
        zero, search = jnp.zeros((), jnp.int32), init_search(params)
        count, largest_grad = start_count(params, learning_rate), jnp.zeros_like(search.step_size)
        return NewtonCGState(count, search, zero, zero, largest_grad, zero)

    def update(
        grads: Updates, state: NewtonCGState, params: Params = None, **keywords: Any
    ) -> tuple[Updates, NewtonCGState]:
        if not jax.tree.leaves(grads):
            return grads, state
        inputs = search_inputs("newton_cg", grads, params, **keywords)
        wide, dtype = widened(params), state.search.step_size.dtype
        _, linear = jax.linearize(jax.grad(inputs.value_fn), wide)
        size = sum(leaf.size for leaf in jax.tree.leaves(grads))
        most = max_products or min(2 * size + 10, 500)

        def product(v: Updates) -> Updates:
            return optax.tree.cast(linear(optax.tree.cast_like(v, wide)), dtype)

        def inverse(v: Updates) -> Updates:
            return v if preconditioner is None else preconditioner(params, v)

        g = optax.tree.cast(grads, dtype)
        grad_norm = norm(g, dtype)
        largest_grad = jnp.maximum(state.largest_grad, grad_norm)
        forcing = jnp.minimum(0.5, jnp.sqrt(grad_norm / jnp.where(largest_grad > 0, largest_grad, 1)))
        allowed = jnp.where(inputs.is_active, most, 0)
        few = size <= SMALL_SIZE and preconditioner is None and max_products is None
        if inputs.separable is not None:
            inexact = _inexact_step_within(product, inputs.params, g, inputs.separable, forcing, allowed, few)
        else:
            system = scaled_system(product, g) if few else System(product, g, lambda v: v)
            inexact = _inexact_step(system, g, inverse, allowed, forcing)
        inexact = inexact._replace(num_products=inexact.num_products + few * size)
        first = jnp.asarray(rate(state.count), dtype)
        inputs = inputs.frozen_where(~inexact.usable)
        direction, first = steepest_after_reset(inexact.direction, first, state.reset_status, inputs)
        gain = jnp.where(inexact.usable, inexact.gain, jnp.inf)
        escape_curvature = jnp.where(inexact.usable & (state.reset_status == 0), inexact.escape_curvature, 0)
        direction, step = search_or_escape(
            line_search, inputs, direction, first, inexact.escape, escape_curvature, jnp.zeros((), dtype)
        )
        after = resolve_failed_search(step, gain, state.reset_status, inputs)
        status = jnp.where(inexact.usable, after.status, jnp.int32(Status.HESSIAN_NOT_FINITE))
        return scaled(step.length, direction, params), NewtonCGState(
            next_count(state.count),
            next_search(state.search, step, status, gain),
            total_count(state.num_products, inexact.num_products),
            total_count(state.num_negative, inexact.negative.astype(jnp.int32)),
            largest_grad,
            after.reset_status,
        )

    return Optimizer(init, update)


class _InexactStep(NamedTuple):
    """Result of an inexact solve.

    `direction`; `gain`: the gain of its model, inf if the model has no minimum; `usable`: whether the Hessian is
    finite; `negative`: whether the solve met negative curvature; `escape`: a direction of negative curvature;
    `escape_curvature`: the curvature along it, 0 if there is none; `num_products`: products with the Hessian.
    """

    direction: Updates
    gain: Array
    usable: Array
    negative: Array
    escape: Updates
    escape_curvature: Array
    num_products: Array


def _inexact_step(
    system: System, g: Updates, inverse: Callable[[Updates], Updates], allowed: Array, forcing: Array
) -> _InexactStep:
    inner = truncated_cg(system.product, system.grads, inverse, allowed, forcing)
    solution = system.to_params(inner.solution)
    slope = optax.tree.vdot(g, solution)
    usable = jnp.isfinite(inner.largest) & jnp.isfinite(slope)
    escape, escape_curvature = saddle_escape(inner, system.to_params, g, slope.dtype)
    converged = (inner.num_products < allowed) & ~inner.negative
    gain = decrement(slope) + inexact_gain(inner, system.product, converged, slope.dtype)
    gain = jnp.where(escape_curvature == 0, gain, jnp.inf)
    return _InexactStep(solution, gain, usable, inner.negative, escape, escape_curvature, inner.num_products)


def _inexact_step_within(
    product: Callable[[Updates], Updates],
    params: Params,
    g: Updates,
    h: Separable,
    forcing: Array,
    allowed: Array,
    few: bool,
) -> _InexactStep:
    """Like `_inexact_step` under bounds: a step to the minimum of the model within them, without a saddle escape."""
    flat, unravel = ravel_pytree(g)

    def of_vector(v: Array) -> Array:
        return ravelled(product(unravel(v)), flat.dtype)

    if few:
        hessian = jax.vmap(of_vector, out_axes=1)(jnp.eye(len(flat), dtype=flat.dtype))
        model = inexact_model(lambda v: hessian @ v, forcing, allowed)
    else:
        model = inexact_model(of_vector, forcing, allowed)
    target = model_minimum(ravelled(params, flat.dtype), flat, h.ravelled(flat.dtype), model, allowed > 0)
    usable, negative = jnp.all(jnp.isfinite(target.direction)), jnp.isinf(target.gain)
    direction, none = unravel(target.direction), jnp.zeros((), flat.dtype)
    return _InexactStep(direction, target.gain, usable, negative, optax.tree.zeros_like(g), none, target.num_products)


def _model_within(
    hessian: Float[Array, "n n"], w: Float[Array, " n"], g: Float[Array, " n"], h: Separable, radius: Float[Array, ""]
) -> NewtonModel:
    """Return the model of `newton` under bounds, with the direction to its minimum within them."""
    free = h.free(w, h.subgradient(w, g))
    model, lowest, definite = hessian_model(hessian, free)
    target = model_minimum(w, g, h, model, jnp.array(True))
    curved = jnp.any(free & (jnp.diagonal(hessian) != 0)) | ~jnp.any(free)
    gain = jnp.where((lowest >= 0) & curved, target.gain, jnp.inf)
    direction = limit_length(radius, target.direction, definite)
    return NewtonModel(direction, gain, lowest.astype(radius.dtype), definite, jnp.zeros_like(g))
