r"""How far along a direction: functions that return a step and what they learned on the way.

    search(value_and_grad_fn, params, value, grads, direction, ...) -> Step

With $\phi(t) = f(w + t d)$, a search looks for a length t that lowers $\phi$ enough. It evaluates value and gradient
together, never accepts a trial that is not finite, and hands on what it learned at the accepted point, so that nothing
is computed twice. Other constants are a `functools.partial` away: `lbfgs(line_search=partial(strong_wolfe, c2=0.1))`.

A search of your own takes the same arguments: `first_length`, the first t to try; `budget`, None or a traced bound on
the evaluations, where 0 means that it must not move; `has_aux`, whether `value_and_grad_fn` returns
`((value, aux), grads)`; and under bounds or penalties `longest`, the largest t to try, at which a step may end
whatever the slope.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import Array, Params, PyTree, Updates
from jaxopt_course.dtypes import at_least_32_bits, change_by_rounding, rounding, vdot, widened
from jaxopt_course.optimizers.trials import falls_straight, inside, more_telling, obstacle, outwards, ray_curvature
from jaxopt_course.status import Obstacle, Status

MAX_EVALS = 25  # of one search; a bracket is halved at every third trial


SLOPE_EVALS = 2  # of a search, while only slopes tell where the minimum is: their rounding may mislead them


class Evaluation(NamedTuple):
    """The objective at a point: its `value`, its `grad`, and `aux`, what it returned beside the value."""

    value: Array
    grad: Updates
    aux: PyTree = None


class Step(NamedTuple):
    """What a line search learned.

    `length`: the accepted t, 0 where there was none; `slope`: the directional derivative there; `point`: the
    `Evaluation` there, whose aux means nothing where there was none; `num_evals`: how often value and gradient were
    evaluated; `status`: `Status.RUNNING` where all is well; `curvature`: the mean second derivative of phi between the
    start and the accepted or the last trial, NaN where it is not known; `obstacle`: an `Obstacle`, where none was
    found.
    """

    length: Array
    slope: Array
    point: Any
    num_evals: Array
    status: Array
    curvature: Array | float = float("nan")
    obstacle: Array | int = 0


LineSearch = Callable[..., Step]

SEARCHING, RETURNING, ACCEPTED, FAILED, BOTTOMLESS = range(5)


class _Search(NamedTuple):
    """A trial is `[length, value, slope]`."""

    length: Array  # of the next trial
    low: Array  # the best trial so far, at first the start
    high: Array  # the other end of the bracket, at first infinitely far
    telling: Array  # the last two trials that rose although the fall they promised stands out from rounding, [2, 3]
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
    r"""A length at which the value has fallen enough and the slope is flat enough: the strong Wolfe conditions.

    $$\phi(t) \le \phi(0) + c_1 t \phi'(0), \qquad |\phi'(t)| \le c_2 |\phi'(0)|$$

    Where the fall of the value is lost in its rounding, the first condition is replaced by Hager and Zhang's, which
    asks the slope instead: $\phi(t) \le \phi(0) + \epsilon$ and $\phi'(t) \le (2 c_1 - 1) \phi'(0)$, with $\epsilon$
    eight units of rounding of $\phi(0)$. Trials go outwards, as far as the slope says, until a minimum is bracketed,
    and then to the least point of the cubic through both ends, every third time to the middle. The bounds on a single
    move start at a factor of ten and are squared from trial to trial, so that a first trial that is wrong by 16
    decades in either direction costs few evaluations.

    Args:
      value_and_grad_fn: `params -> (value, grads)`, such as `jax.value_and_grad(f)`.
      params: any tree of floating-point arrays; where the ray starts.
      value: f there, a scalar.
      grads: its gradient, like the parameters.
      direction: d, like the parameters, in at least 32 bits.
      first_length: the first t to try; 1 suits Newton's and quasi-Newton directions.
      c1: the part of the promised decrease to insist on, in (0, 1/2).
      c2: the part of the slope that may remain, in (c1, 1).
      max_evals: most evaluations; the last of them goes back to the best trial, where no trial was good.
      budget: a traced bound on the evaluations, or None.
      has_aux: whether `value_and_grad_fn` returns `((value, aux), grads)`.
      longest: a traced bound on t, or None; at it the slope does not matter.

    Returns:
      A `Step`. Its `status` is 0 where it found a lower point, even one whose slope is not flat when evaluations ran
      out; else NON_DESCENT (d does not go down), UNBOUNDED (the value is -inf, or it fell over 25 decades of t and its
      slope never rose), ROUNDOFF_LIMITED (what d promises is below the rounding of f, or below what the rounding of
      the parameters makes of it) or LINE_SEARCH_FAILED; `obstacle` then tells the likely reason.

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
        length = jnp.where(bracketed, inside(new_low, new_high, num_evals, noise), outwards(low, trial, num_evals))
        if longest is not None:
            length = jnp.minimum(length, longest)
        straight = ~bracketed & falls_straight(trial, start, first)
        width = jnp.abs(new_high[0] - new_low[0])
        narrow = bracketed & (width <= 4 * jnp.finfo(t.dtype).eps * jnp.maximum(new_low[0], new_high[0]))
        lower = new_low[1] < start[1]  # if so, one evaluation is kept to go back there
        overshot = jnp.isfinite(slope) & (slope > 0) & (num_evals < SLOPE_EVALS)  # slopes tell where values do not
        hopeless = ~lower & ~overshot & (-t * start[2] <= noise / 1000)  # shorter steps promise even less
        over = straight | narrow | hopeless | (phi == -jnp.inf) | (num_evals >= most - lower.astype(jnp.int32))
        accepted = (better & (flat | (over & lower))) | (search.phase == RETURNING)
        phase = jnp.where(over, jnp.where(lower, RETURNING, FAILED), SEARCHING)
        return _Search(
            length=jnp.where(over, new_low[0], length),
            low=new_low,
            high=new_high,
            telling=more_telling(search.telling, trial, start, noise),
            curvature=ray_curvature(search.curvature, trial, start),
            grad=grad,
            aux=aux,
            num_evals=num_evals,
            phase=jnp.where(accepted, ACCEPTED, jnp.where(phi == -jnp.inf, BOTTOMLESS, phase)).astype(jnp.int32),
        )

    search = lax.while_loop(lambda s: s.phase <= RETURNING, body, search)
    unbounded = falls_straight(search.low, start, first) | (search.phase == BOTTOMLESS)
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
    r"""Shorten until the value has fallen by a part of what the slope promises.

    $$\phi(t) \le \phi(0) + c_1 t \phi'(0)$$

    After a trial that is too long comes the least point of the parabola through $\phi(0)$, $\phi'(0)$ and $\phi(t)$,
    but at least a tenth and at most a half of t. It never goes beyond the first length: for Newton's directions, or
    where evaluations are dear and slopes do not matter.

    Args:
      value_and_grad_fn: `params -> (value, grads)`, such as `jax.value_and_grad(f)`.
      params: any tree of floating-point arrays; where the ray starts.
      value: f there, a scalar.
      grads: its gradient, like the parameters.
      direction: d, like the parameters, in at least 32 bits.
      first_length: the first and longest t to try.
      c1: the part of the promised decrease to insist on, in (0, 1).
      max_evals: most evaluations.
      budget: a traced bound on the evaluations, or None.
      has_aux: whether `value_and_grad_fn` returns `((value, aux), grads)`.
      longest: a traced bound on t, or None; at it the slope does not matter.

    Returns:
      A `Step`, with a status as `strong_wolfe`'s.

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
        armijo = (phi <= start[1] + c1 * t * start[2]) & (phi < start[1])  # which rounding may make equal
        accepted = armijo & jnp.isfinite(phi) & jnp.isfinite(slope)
        least = -0.5 * start[2] * t**2 / (phi - start[1] - t * start[2])  # where the parabola is lowest
        length = jnp.where(jnp.isfinite(least), jnp.clip(least, 0.1 * t, 0.5 * t), 0.2 * t)
        over = search.num_evals + 1 >= most
        phase = jnp.where(phi == -jnp.inf, BOTTOMLESS, jnp.where(over, FAILED, SEARCHING))
        phase = jnp.where(accepted, ACCEPTED, phase)
        telling = more_telling(search.telling, trial, start, rounding(start[1]))
        curvature = ray_curvature(search.curvature, trial, start)
        counts = search.num_evals + 1, phase.astype(jnp.int32)
        return _Search(length, trial, trial, telling, curvature, grad, aux, *counts)

    search = lax.while_loop(lambda s: s.phase == SEARCHING, body, search)
    return _end(search, start, first, params, grads, search.phase == BOTTOMLESS)


def _check(name: str, max_evals: int, legal: bool, expected: str) -> None:
    if not legal:
        raise ValueError(f"{name}: need {expected}")
    if max_evals < 1:
        raise ValueError(f"{name}: max_evals must be at least 1, got {max_evals}")


def scaled(length: Array, direction: Updates, params: Params) -> Updates:
    """The updates of a step: length times direction, in the parameters' dtypes; 0 for length 0, whatever the
    direction."""

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
    """Before the first trial; over already where none is allowed, or the direction does not go down."""
    dtype = at_least_32_bits(value.dtype)
    start = jnp.stack([jnp.zeros((), dtype), value.astype(dtype), vdot(grads, direction, dtype)])
    shapes = jax.eval_shape(value_and_grad_fn, params)[0][1] if has_aux else None
    return _Search(
        length=jnp.asarray(first_length, dtype),
        low=start,
        high=jnp.full_like(start, jnp.inf),
        telling=jnp.full((2, 3), jnp.nan, dtype),
        curvature=jnp.full((), jnp.nan, dtype),
        grad=widened(grads),
        aux=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
        num_evals=jnp.zeros((), jnp.int32),
        phase=jnp.where(allowed & (start[2] < 0), SEARCHING, FAILED).astype(jnp.int32),
    )


def _end(search: _Search, start: Array, first: Array, params: Params, grads: Updates, unbounded: Array) -> Step:
    accepted, noise = search.phase == ACCEPTED, rounding(start[1])
    moved = lax.cond(accepted, lambda: noise, lambda: change_by_rounding(params, widened(grads), noise.dtype))
    lost = -first * start[2] <= jnp.maximum(noise, moved)  # what the first trial should have gained
    why = jnp.where(lost, jnp.int32(Status.ROUNDOFF_LIMITED), jnp.int32(Status.LINE_SEARCH_FAILED))
    why = jnp.where(start[2] < 0, why, jnp.int32(Status.NON_DESCENT))
    status = jnp.where(accepted, jnp.int32(Status.RUNNING), why)
    status = jnp.where(unbounded, jnp.int32(Status.UNBOUNDED), status)
    t, phi, slope = jnp.where(accepted, search.low, start)
    grad = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), search.grad, widened(grads))
    curvature = jnp.where(accepted, (slope - start[2]) / t, search.curvature)
    why_not = jnp.where(status < 0, obstacle(search.telling, search.high, start), jnp.int32(Obstacle.NONE))
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
