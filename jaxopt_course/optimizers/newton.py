r"""Newton's method: with the exact Hessian for few parameters, with products for many.

`newton` factors the Hessian, and takes absolute eigenvalues where it is not definite; `newton_cg` stops its inner solve
where it meets negative curvature, and goes along it.
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
from jaxopt_course.optimizers.dense_hessian import NewtonModel, cut_to, newton_model
from jaxopt_course.optimizers.hyperparameters import Rate, cached_factory, learning_rate_at
from jaxopt_course.optimizers.inner_solve import System, gain_after, scaled_system, truncated_cg, way_out
from jaxopt_course.optimizers.leaves import next_count, start_count
from jaxopt_course.optimizers.line_search import LineSearch, scaled, strong_wolfe
from jaxopt_course.optimizers.models import hessian_model, inexact_model
from jaxopt_course.optimizers.saddles import search_out
from jaxopt_course.optimizers.searched import (
    Search,
    decrement,
    full_step,
    init_search,
    next_search,
    retreat,
    search_inputs,
    total_count,
    unless_retreating,
)
from jaxopt_course.optimizers.separable import Separable, ravelled
from jaxopt_course.status import Status

FEW = 32  # parameters: as many products with the Hessian find its diagonal


class NewtonState(NamedTuple):
    """`count`: as in `SGDState`; `search`: the last step; `num_shifts`: Hessians not positive definite so far, int32.

    `lowest_curvature`: of the Hessian at the parameters that the last step started from; where it was positive definite
    its least pivot, else that along its most negative direction once scaled, 0 where that is lost in rounding, and NaN
    before the first step;
    `radius`: how far a step may go next along directions without positive curvature; `reset_status`: the line-search
    status after which the next step goes down the gradient, else 0, int32.
    """

    count: Array | None  # type: ignore[assignment]  # optax's name; tuple.count is not used
    search: Search
    num_shifts: Array
    lowest_curvature: Array
    radius: Array
    reset_status: Array


@cached_factory
def newton(learning_rate: Rate = 1.0, *, line_search: LineSearch | None = strong_wolfe) -> Optimizer:
    r"""The lecture's Newton step, with the exact Hessian.

    $$w \leftarrow w - t H^{-1} g, \qquad H = \nabla^2 f(w)$$

    t is `learning_rate`, or what the line search makes of it: then it is the first length tried. H is scaled to a
    diagonal of ones, so that the units of the parameters do not matter, and solved by Cholesky where it is positive
    definite. Any other loses the signs of its eigenvalues, $Q |\Lambda| Q^T$, and its step is cut to twice the length
    of the last one; such shifts are counted. Near a saddle, where such a step would gain nothing, it goes along the
    lowest curvature instead, and looks for a minimum from a tenth of the size of the parameters on.

    `update` needs `params`, `value=` and `value_fn=`, which `minimize` and `train` pass. It costs n products with the
    Hessian and n^3/3 operations for n parameters; `newton_cg` costs neither.

    Args:
      learning_rate: t, a number, traced scalar or schedule; no unit: 1 is Newton's own step.
      line_search: `strong_wolfe`, a function like it, or None for a step of exactly t, the pure method.

    Returns:
      The optimizer; its state is `NewtonState`.

    Raises:
      ValueError: a learning rate that is not finite and > 0; in `update`, keywords that are missing.
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
            direction, first = unless_retreating(direction, first, state.reset_status, inputs)
            bend = jnp.where((state.reset_status < 0) | ~jnp.any(model.escape != 0), 0, model.lowest)
            direction, step = search_out(
                line_search, inputs, direction, first, unravel(model.escape), bend, state.radius
            )
        after = retreat(step, model.gain, state.reset_status, inputs)
        status = jnp.where(usable, after.status, jnp.int32(Status.HESSIAN_NOT_FINITE))
        reached = lax.stop_gradient(step.length * norm(direction, step.length.dtype))
        return scaled(step.length, direction, params), NewtonState(
            next_count(state.count),
            next_search(state.search, step, status, jnp.where(usable, model.gain, jnp.inf)),
            total_count(state.num_shifts, (~model.definite).astype(jnp.int32)),
            model.lowest,
            jnp.where(reached > 0, 2 * reached, state.radius).astype(state.radius.dtype),
            after.remembered,
        )

    return Optimizer(init, update)


class NewtonCGState(NamedTuple):
    """`count`: as in `SGDState`; `search`: the last step; `num_products`: products with the Hessian; `num_negative`:
    inner solves that met negative curvature; `largest_grad`: the largest Euclidean norm of the gradient, which sets the
    scale of the forcing sequence; `reset_status`: as in `NewtonState`. Counts and the norm since `init`.
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
    r"""Newton's method for many parameters: the step is solved for by conjugate gradients, and only as well as it pays.

    $$w \leftarrow w + t d, \qquad |H d + g| \le \min\bigl(\tfrac12, \sqrt{|g| / |g|_{max}}\bigr)\, |g|$$

    Here |g|_max is the largest gradient so far, so that the units of the objective do not matter. The inner solve
    multiplies with the Hessian, which costs about what a gradient costs. Where it meets a direction p of negative
    curvature it ends, and goes along p as far as it would if the curvature were positive; near a saddle it looks for a
    minimum along p, from a tenth of the size of the parameters on.

    For at most 32 parameters the inner solve works in units in which the Hessian has a diagonal of ones, which costs a
    product for each parameter, unless `preconditioner` or `max_products` is given. For more parameters the Hessian is
    never formed.

    `update` needs `params`, `value=` and `value_fn=`, which `minimize` and `train` pass.

    Args:
      learning_rate: the first length that is tried, a number, traced scalar or schedule; 1 is Newton's own step.
      line_search: `strong_wolfe`, or a function like it.
      preconditioner: `(params, v) -> v` like v, a positive definite approximation of the inverse Hessian times v.
      max_products: most products with the Hessian in one step; 2 n + 10 and at most 500 unless given.

    Returns:
      The optimizer; its state is `NewtonCGState`.

    Raises:
      ValueError: a hyperparameter out of range; in `update`, keywords that are missing.
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
        few = size <= FEW and preconditioner is None and max_products is None
        if inputs.separable is not None:
            course = _course_within(product, inputs.params, g, inputs.separable, forcing, allowed, few)
        else:
            system = scaled_system(product, g) if few else System(product, g, lambda v: v)
            course = _course(system, g, inverse, allowed, forcing)
        course = course._replace(num_products=course.num_products + few * size)
        first = jnp.asarray(rate(state.count), dtype)
        inputs = inputs.frozen_where(~course.usable)
        direction, first = unless_retreating(course.direction, first, state.reset_status, inputs)
        gain = jnp.where(course.usable, course.gain, jnp.inf)
        bend = jnp.where(course.usable & (state.reset_status == 0), course.bend, 0)
        direction, step = search_out(line_search, inputs, direction, first, course.out, bend, jnp.zeros((), dtype))
        after = retreat(step, gain, state.reset_status, inputs)
        status = jnp.where(course.usable, after.status, jnp.int32(Status.HESSIAN_NOT_FINITE))
        return scaled(step.length, direction, params), NewtonCGState(
            next_count(state.count),
            next_search(state.search, step, status, gain),
            total_count(state.num_products, course.num_products),
            total_count(state.num_negative, course.negative.astype(jnp.int32)),
            largest_grad,
            after.remembered,
        )

    return Optimizer(init, update)


class _Course(NamedTuple):
    """Where an inexact solve leads: the `direction`, the `gain` of its model, inf where it has no minimum, whether the
    Hessian is `usable`, whether curvature was `negative`, the way `out` of a saddle and the curvature along it, `bend`,
    0 where there is none; and the products that it took."""

    direction: Updates
    gain: Array
    usable: Array
    negative: Array
    out: Updates
    bend: Array
    num_products: Array


def _course(
    system: System, g: Updates, inverse: Callable[[Updates], Updates], allowed: Array, forcing: Array
) -> _Course:
    inner = truncated_cg(system.product, system.grads, inverse, allowed, forcing)
    solution = system.back(inner.solution)
    slope = optax.tree.vdot(g, solution)
    usable = jnp.isfinite(inner.largest) & jnp.isfinite(slope)
    out, bend = way_out(inner, system.back, g, slope.dtype)
    converged = (inner.num_products < allowed) & ~inner.negative
    gain = decrement(slope) + gain_after(inner, system.product, converged, slope.dtype)
    gain = jnp.where(bend == 0, gain, jnp.inf)
    return _Course(solution, gain, usable, inner.negative, out, bend, inner.num_products)


def _course_within(
    product: Callable[[Updates], Updates],
    params: Params,
    g: Updates,
    h: Separable,
    forcing: Array,
    allowed: Array,
    few: bool,
) -> _Course:
    """The same under bounds: to the minimum of the model within them. It knows no way out of a saddle."""
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
    return _Course(direction, target.gain, usable, negative, optax.tree.zeros_like(g), none, target.num_products)


def _model_within(
    hessian: Float[Array, "n n"], w: Float[Array, " n"], g: Float[Array, " n"], h: Separable, radius: Float[Array, ""]
) -> NewtonModel:
    """The model of `newton` under bounds: to its minimum within them."""
    free = h.free(w, h.subgradient(w, g))
    model, lowest, definite = hessian_model(hessian, free)
    target = model_minimum(w, g, h, model, jnp.array(True))
    curved = jnp.any(free & (jnp.diagonal(hessian) != 0)) | ~jnp.any(free)
    gain = jnp.where((lowest >= 0) & curved, target.gain, jnp.inf)
    direction = cut_to(radius, target.direction, definite)
    return NewtonModel(direction, gain, lowest.astype(radius.dtype), definite, jnp.zeros_like(g))
