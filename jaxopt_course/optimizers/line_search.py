r"""Line searches: functions that find a step length along a direction.

    search(value_and_grad_fn, params, value, grads, direction, ...) -> Step

With $\phi(t) = f(w + t d)$, a search looks for a length t that lowers $\phi$ enough. It evaluates value and gradient
together and never accepts a trial that is not finite. It returns the value and gradient at the accepted point, so that
nothing is computed twice. To change constants, use `functools.partial`: `lbfgs(line_search=partial(strong_wolfe,
c2=0.1))`.

A custom search takes the same arguments: `first_length`, the first t to try; `budget`, None or a traced limit on the
number of evaluations, where 0 forbids moving; `has_aux`, whether `value_and_grad_fn` returns `((value, aux), grads)`;
and under bounds or penalties `longest`, the largest t to try, where a step may end whatever the slope.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import Array, Params, PyTree, Updates
from jaxopt_course.dtypes import at_least_32_bits, change_by_rounding, rounding, vdot, widened
from jaxopt_course.optimizers.trials import (
    extrapolate,
    falls_without_bound,
    informative_trials,
    interpolate,
    obstacle,
    ray_curvature,
)
from jaxopt_course.status import Obstacle, Status

MAX_EVALS = 25  # evaluations of one search; a bracket is halved at every third trial
SLOPE_EVALS = 2  # most evaluations that rely on slopes alone, whose rounding may be misleading


class Evaluation(NamedTuple):
    """The objective at a point: its `value`, its `grad`, and its auxiliary output `aux`."""

    value: Array
    grad: Updates
    aux: PyTree = None


class Step(NamedTuple):
    """The result of a line search.

    `length`: the accepted t, 0 if no trial was accepted; `slope`: the directional derivative at t; `point`: the
    `Evaluation` at t, whose aux is meaningless if no trial was accepted; `num_evals`: number of evaluations of value
    and gradient; `status`: `Status.RUNNING` if the search succeeded; `curvature`: the mean second derivative of phi
    between the start and the accepted or the last trial, NaN if it is not known; `obstacle`: an `Obstacle`, if no lower
    point was found.
    """

    length: Array
    slope: Array
    point: Any
    num_evals: Array
    status: Array
    curvature: Array | float = float("nan")
    obstacle: Array | int = 0


LineSearch = Callable[..., Step]

SEARCHING, RETURNING, ACCEPTED, FAILED, MINUS_INFINITY = range(5)


class _Search(NamedTuple):
    """A trial is `[length, value, slope]`."""

    length: Array  # of the next trial
    low: Array  # the best trial so far, at first the start
    high: Array  # the other end of the bracket, at first infinitely far
    informative: Array  # the last two trials that rose although their predicted fall exceeds rounding, [2, 3]
    curvature: Array  # of phi between the start and the last trial at which the slope had changed by half or more
    grad: Updates  # at the last trial
    aux: PyTree
    num_evals: Array
    phase: Array


def strong_wolfe(
    value_and_grad_fn: Callable[[Params], tuple[Any, Updates]],
    params: Params,
    value: Array,
    grads: Updates,
    direction: Updates,
    *,
    first_length: Any = 1.0,
    c1: float = 1e-4,
    c2: float = 0.9,
    max_evals: int = MAX_EVALS,
    budget: Array | None = None,
    has_aux: bool = False,
    longest: Array | None = None,
) -> Step:
    r"""Find a step length that satisfies the strong Wolfe conditions: sufficient decrease and a small enough slope.

    $$\phi(t) \le \phi(0) + c_1 t \phi'(0), \qquad |\phi'(t)| \le c_2 |\phi'(0)|$$

    If the decrease of the value is lost in rounding, the first condition is replaced by Hager and Zhang's condition on
    the slope: $\phi(t) \le \phi(0) + \epsilon$ and $\phi'(t) \le (2 c_1 - 1) \phi'(0)$, with $\epsilon$ eight units of
    rounding of $\phi(0)$. Trials extrapolate along the slope until a minimum is bracketed. Then each trial is the
    minimizer of the cubic through both ends of the bracket, and every third one its midpoint. The factor between two
    trials is limited to ten at first, and the limit is squared from trial to trial, so that a first trial that is wrong
    by 16 decades in either direction costs few evaluations.

    Args:
      value_and_grad_fn: `params -> (value, grads)`, such as `jax.value_and_grad(f)`.
      params: w, any tree of floating-point arrays; the start of the search.
      value: f at w, a scalar.
      grads: the gradient at w, like the parameters.
      direction: d, like the parameters, in at least 32 bits.
      first_length: the first t to try; 1 suits Newton's and quasi-Newton directions.
      c1: the required fraction of the predicted decrease, in (0, 1/2).
      c2: the fraction of the slope that may remain, in (c1, 1).
      max_evals: most evaluations; if no trial was accepted, the last one returns to the best trial.
      budget: a traced limit on the number of evaluations, or None.
      has_aux: whether `value_and_grad_fn` returns `((value, aux), grads)`.
      longest: a traced upper bound on t, or None; at this bound the slope condition is not required.

    Returns:
      A `Step`. Its `status` is 0 if a lower point was found, even if evaluations ran out before the slope condition
      held; else NON_DESCENT (d is not a descent direction), UNBOUNDED (the value is -inf, or it fell over 25 decades of
      t and its slope never rose), ROUNDOFF_LIMITED (the decrease predicted along d is below the rounding of f, or below
      the effect of rounding the parameters) or LINE_SEARCH_FAILED; `obstacle` then gives the likely reason.

    Raises:
      ValueError: c1, c2 or max_evals out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> f = lambda w: (w - 3.0) ** 4
      >>> w, slope = jnp.array(0.0), jax.grad(f)(0.0)
      >>> step = strong_wolfe(jax.value_and_grad(f), w, f(w), slope, -slope, first_length=1e-3, c2=0.1)
      >>> f"{f(w):.0f} -> {step.point.value:.4f} in {step.num_evals} evaluations"
      '81 -> 1.1442 in 3 evaluations'

    Source: Nocedal and Wright (2006), "Numerical optimization", algorithms 3.5 and 3.6 and eq. 3.59; Hager and Zhang
    (2005), "A new conjugate gradient method with guaranteed descent and an efficient line search", section 4.
    """
    _check("strong_wolfe", max_evals, 0 < c1 < 0.5 and c1 < c2 < 1, f"0 < c1 < 1/2 and c1 < c2 < 1, got {c1} and {c2}")
    most = jnp.int32(max_evals) if budget is None else jnp.minimum(max_evals, budget)
    search = _begin(value_and_grad_fn, params, value, grads, direction, first_length, has_aux, most > 0)
    start, first, noise = search.low, search.length, rounding(search.low[1])

    def body(search: _Search) -> _Search:
        low, high = search.low, search.high
        trial, grad, aux = _evaluate(value_and_grad_fn, params, search.length, direction, has_aux)
        t, phi, slope = trial
        armijo = phi <= start[1] + c1 * t * start[2]
        approximate = (phi <= start[1] + noise) & (slope <= (2 * c1 - 1) * start[2])
        better = (armijo | approximate) & (phi <= low[1] + noise) & jnp.isfinite(phi) & jnp.isfinite(slope)
        flat = jnp.abs(slope) <= -c2 * start[2]
        if longest is not None:
            flat |= (t >= longest) & (slope <= 0)
        turned = slope * (high[0] - low[0]) >= 0
        new_low = jnp.where(better, trial, low)
        new_high = jnp.where(better, jnp.where(turned, low, high), trial)

        num_evals = search.num_evals + 1
        bracketed = jnp.isfinite(new_high[0])
        length = jnp.where(
            bracketed, interpolate(new_low, new_high, num_evals, noise), extrapolate(low, trial, num_evals)
        )
        if longest is not None:
            length = jnp.minimum(length, longest)
        straight = ~bracketed & falls_without_bound(trial, start, first)
        width = jnp.abs(new_high[0] - new_low[0])
        narrow = bracketed & (width <= 4 * jnp.finfo(t.dtype).eps * jnp.maximum(new_low[0], new_high[0]))
        lower = new_low[1] < start[1]  # if so, one evaluation is reserved to return there
        overshot = jnp.isfinite(slope) & (slope > 0) & (num_evals < SLOPE_EVALS)  # slopes, where values are rounding
        hopeless = ~lower & ~overshot & (-t * start[2] <= noise / 1000)  # shorter steps predict even less
        over = straight | narrow | hopeless | (phi == -jnp.inf) | (num_evals >= most - lower.astype(jnp.int32))
        accepted = (better & (flat | (over & lower))) | (search.phase == RETURNING)
        phase = jnp.where(over, jnp.where(lower, RETURNING, FAILED), SEARCHING)
        return _Search(
            length=jnp.where(over, new_low[0], length),
            low=new_low,
            high=new_high,
            informative=informative_trials(search.informative, trial, start, noise),
            curvature=ray_curvature(search.curvature, trial, start),
            grad=grad,
            aux=aux,
            num_evals=num_evals,
            phase=jnp.where(accepted, ACCEPTED, jnp.where(phi == -jnp.inf, MINUS_INFINITY, phase)).astype(jnp.int32),
        )

    search = lax.while_loop(lambda s: s.phase <= RETURNING, body, search)
    unbounded = falls_without_bound(search.low, start, first) | (search.phase == MINUS_INFINITY)
    return _end(search, start, first, params, grads, unbounded)


def armijo(
    value_and_grad_fn: Callable[[Params], tuple[Any, Updates]],
    params: Params,
    value: Array,
    grads: Updates,
    direction: Updates,
    *,
    first_length: Any = 1.0,
    c1: float = 1e-4,
    max_evals: int = MAX_EVALS,
    budget: Array | None = None,
    has_aux: bool = False,
    longest: Array | None = None,
) -> Step:
    r"""Backtrack until the value has fallen by a fraction of the decrease that the slope predicts.

    $$\phi(t) \le \phi(0) + c_1 t \phi'(0)$$

    If a trial t is too long, the next trial is the minimizer of the parabola through $\phi(0)$, $\phi'(0)$ and
    $\phi(t)$, but at least a tenth and at most half of t. No trial is longer than the first. Use it for Newton's
    directions, or if evaluations are expensive and slopes do not matter.

    Args:
      value_and_grad_fn: `params -> (value, grads)`, such as `jax.value_and_grad(f)`.
      params: w, any tree of floating-point arrays; the start of the search.
      value: f at w, a scalar.
      grads: the gradient at w, like the parameters.
      direction: d, like the parameters, in at least 32 bits.
      first_length: the first and longest t to try.
      c1: the required fraction of the predicted decrease, in (0, 1).
      max_evals: most evaluations.
      budget: a traced limit on the number of evaluations, or None.
      has_aux: whether `value_and_grad_fn` returns `((value, aux), grads)`.
      longest: a traced upper bound on t, or None.

    Returns:
      A `Step`, with a status as in `strong_wolfe`.

    Raises:
      ValueError: c1 or max_evals out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> f = lambda w: (w - 3.0) ** 4
      >>> w, slope = jnp.array(0.0), jax.grad(f)(0.0)
      >>> step = armijo(jax.value_and_grad(f), w, f(w), slope, -slope)
      >>> f"{f(w):.0f} -> {step.point.value:.4f} in {step.num_evals} evaluations"
      '81 -> 8.0461 in 3 evaluations'

    Source: Armijo (1966), "Minimization of functions having Lipschitz continuous first partial derivatives"; Nocedal
    and Wright (2006), "Numerical optimization", algorithm 3.1 and section 3.5.
    """
    _check("armijo", max_evals, 0 < c1 < 1, f"0 < c1 < 1, got {c1}")
    most = jnp.int32(max_evals) if budget is None else jnp.minimum(max_evals, budget)
    search = _begin(value_and_grad_fn, params, value, grads, direction, first_length, has_aux, most > 0)
    start, first = search.low, search.length

    def body(search: _Search) -> _Search:
        trial, grad, aux = _evaluate(value_and_grad_fn, params, search.length, direction, has_aux)
        t, phi, slope = trial
        armijo = (phi <= start[1] + c1 * t * start[2]) & (phi < start[1])  # rounding may make the two values equal
        accepted = armijo & jnp.isfinite(phi) & jnp.isfinite(slope)
        least = -0.5 * start[2] * t**2 / (phi - start[1] - t * start[2])  # minimizer of the parabola
        length = jnp.where(jnp.isfinite(least), jnp.clip(least, 0.1 * t, 0.5 * t), 0.2 * t)
        over = search.num_evals + 1 >= most
        phase = jnp.where(phi == -jnp.inf, MINUS_INFINITY, jnp.where(over, FAILED, SEARCHING))
        phase = jnp.where(accepted, ACCEPTED, phase)
        informative = informative_trials(search.informative, trial, start, rounding(start[1]))
        curvature = ray_curvature(search.curvature, trial, start)
        counts = search.num_evals + 1, phase.astype(jnp.int32)
        return _Search(length, trial, trial, informative, curvature, grad, aux, *counts)

    search = lax.while_loop(lambda s: s.phase == SEARCHING, body, search)
    return _end(search, start, first, params, grads, search.phase == MINUS_INFINITY)


def _check(name: str, max_evals: int, legal: bool, expected: str) -> None:
    if not legal:
        raise ValueError(f"{name}: need {expected}")
    if max_evals < 1:
        raise ValueError(f"{name}: max_evals must be at least 1, got {max_evals}")


def scaled(length: Array, direction: Updates, params: Params) -> Updates:
    """Return the updates of a step, length times direction in the parameters' dtypes; exactly 0 for length 0."""

    def updates(d: Array, p: Array) -> Array:
        return jnp.where(length > 0, length.astype(d.dtype) * d, 0).astype(p.dtype)

    return jax.tree.map(updates, direction, params)


def _begin(
    value_and_grad_fn: Callable[[Params], tuple[Any, Updates]],
    params: Params,
    value: Array,
    grads: Updates,
    direction: Updates,
    first_length: Any,
    has_aux: bool,
    allowed: Array,
) -> _Search:
    """Return the initial state of a search.

    The search has already failed if no trial is allowed or the direction is not a descent direction.
    """
    dtype = at_least_32_bits(value.dtype)
    start = jnp.stack([jnp.zeros((), dtype), value.astype(dtype), vdot(grads, direction, dtype)])
    shapes = jax.eval_shape(value_and_grad_fn, params)[0][1] if has_aux else None
    return _Search(
        length=jnp.asarray(first_length, dtype),
        low=start,
        high=jnp.full_like(start, jnp.inf),
        informative=jnp.full((2, 3), jnp.nan, dtype),
        curvature=jnp.full((), jnp.nan, dtype),
        grad=widened(grads),
        aux=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
        num_evals=jnp.zeros((), jnp.int32),
        phase=jnp.where(allowed & (start[2] < 0), SEARCHING, FAILED).astype(jnp.int32),
    )


def _end(search: _Search, start: Array, first: Array, params: Params, grads: Updates, unbounded: Array) -> Step:
    accepted, noise = search.phase == ACCEPTED, rounding(start[1])
    moved = lax.cond(accepted, lambda: noise, lambda: change_by_rounding(params, widened(grads), noise.dtype))
    lost = -first * start[2] <= jnp.maximum(noise, moved)  # the predicted decrease of the first trial
    why = jnp.where(lost, jnp.int32(Status.ROUNDOFF_LIMITED), jnp.int32(Status.LINE_SEARCH_FAILED))
    why = jnp.where(start[2] < 0, why, jnp.int32(Status.NON_DESCENT))
    status = jnp.where(accepted, jnp.int32(Status.RUNNING), why)
    status = jnp.where(unbounded, jnp.int32(Status.UNBOUNDED), status)
    t, phi, slope = jnp.where(accepted, search.low, start)
    grad = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), search.grad, widened(grads))
    curvature = jnp.where(accepted, (slope - start[2]) / t, search.curvature)
    why_not = jnp.where(status < 0, obstacle(search.informative, search.high, start), jnp.int32(Obstacle.NONE))
    return Step(t, slope, Evaluation(phi, grad, search.aux), search.num_evals, status, curvature, why_not)


def _evaluate(
    value_and_grad_fn: Callable[[Params], tuple[Any, Updates]],
    params: Params,
    length: Array,
    direction: Updates,
    has_aux: bool,
) -> tuple[Array, Updates, PyTree]:
    value, grad = value_and_grad_fn(optax.apply_updates(params, scaled(length, direction, params)))
    (value, aux), grad = value if has_aux else (value, None), widened(grad)
    return jnp.stack([length, value.astype(length.dtype), vdot(grad, direction, length.dtype)]), grad, aux
