"""Full-batch solves: from a start to a minimum in one compiled loop, with an ending that has a name and is true."""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxopt_course.annotations import Array
from jaxopt_course.dtypes import check_floating, vdot, working_dtype
from jaxopt_course.optimizers import NewtonState, Search
from jaxopt_course.status import Status
from jaxopt_course.training.steps import on_device, scalar_and_aux
from jaxopt_course.training.stopping import Facts, Stopping, describe, first_status, next_status, rounding

Tolerance = int | float | Array | None


class SolveTrace(NamedTuple):
    """The history of a solve, `[max_steps + 1]` each: row i is after i steps. Rows beyond the last step are NaN.

    `value`; `grad_norm`, the largest absolute entry of the gradient; `step_size`, the length that a search accepted in
    units of its direction, or the Euclidean norm of the update of an optimizer that does not search; `num_evals` so
    far, 0 beyond the last step.
    """

    value: Array
    grad_norm: Array
    step_size: Array
    num_evals: Array


class Result(NamedTuple):
    """Where a solve ended and how; `str(result)` says it in a line.

    `params`, `value`, `grad_norm` (the largest absolute entry of the gradient), `status` (a `Status`; positive is
    success), `num_steps`, `num_evals` (of value and gradient; products with a Hessian are counted in `state`), `aux`
    (what the objective returned beside its value, at `params`), `trace` (a `SolveTrace`, if asked for) and `state` (the
    optimizer's, with its counters).
    """

    params: Any
    value: Array
    grad_norm: Array
    status: Array
    num_steps: Array
    num_evals: Array
    aux: Any = None
    trace: Any = None
    state: Any = None

    def __str__(self) -> str:
        return describe(self)


class _Point(NamedTuple):
    """Parameters, the objective there, and the largest absolute entry of its gradient."""

    params: Any
    value: Array
    grad: Any
    grad_norm: Array
    aux: Any


class _Carry(NamedTuple):
    here: _Point
    best: _Point | None  # without its gradient; None where the optimizer searches: it never climbs
    state: Any
    num_steps: Array
    num_evals: Array
    least_norm: Array
    stalled: Array  # steps since the value fell or the gradient was the smallest yet
    status: Array
    looked: Array  # at the curvature of the end
    trace: SolveTrace | None


def minimize(
    objective: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    params: Any,
    *,
    data: Any = None,
    max_steps: int | Array = 1000,
    max_evals: int | Array | None = None,
    gtol: Tolerance = None,
    ftol: Tolerance = None,
    xtol: Tolerance = None,
    target: Tolerance = None,
    has_aux: bool = False,
    trace: bool = False,
    best: bool = True,
) -> Result:
    r"""Minimize a function of all the data at once, until its gradient is small or nothing more can be gained.

    $$w_{t+1} = w_t + u_t, \qquad u_t, \sigma_{t+1} = \mathrm{update}\bigl(\nabla f(w_t), \sigma_t, w_t\bigr)$$

    One compiled loop; calls with the same objective, optimizer and shapes compile once. It is a pure function, so it
    goes inside `jit`, and under `vmap` every lane stops at its own end. It ends with the first of these that is true:

    - TARGET_REACHED: the value is at most `target`;
    - GRADIENT_NORM: the largest absolute entry of the gradient is at most `gtol`;
    - SMALL_STEP, SMALL_DECREASE: the step was no longer than `xtol` max(1, |w|), or the value fell by no more than
      `ftol` max(1, |f|), or no lower point can be found; *and* the gradient is at most sqrt(eps) max(1, |f|), *and*
      the value is not above that of the start. A small step alone is never called success;
    - a failure: a budget used up, something not finite, no lower point along a direction that goes down
      (LINE_SEARCH_FAILED, or ROUNDOFF_LIMITED where the decrease that is left is below the rounding of the value),
      a value that falls without bound.

    Optimizers that search for their step hand on the evaluation at its end, and nothing is computed twice; for others
    there is one evaluation a step.

    Args:
      objective: `params -> scalar`, or `(params, data) -> scalar` with data; `(scalar, aux)` with `has_aux`.
      optimizer: ours or any of optax's; it is handed `value`, `grad` and `value_fn` at each step.
      params: any tree of floating-point arrays, the start.
      data: any tree of arrays, sharded or not, or None.
      max_steps: most steps.
      max_evals: most evaluations of value and gradient; no bound unless given.
      gtol: units of value per unit of parameter; sqrt(eps) of the parameters' dtype unless given: 1.5e-8 in float64,
        3.5e-4 in float32.
      ftol: relative; 4 eps unless given.
      xtol: relative; eps unless given.
      target: units of value; none unless given.
      has_aux: whether the objective returns `(value, aux)`.
      trace: keep value, gradient norm, step size and evaluations of every step.
      best: return the point with the lowest value where the solve did not succeed; else the last one that was finite.

    Returns:
      `Result(params, value, grad_norm, status, num_steps, num_evals, aux, trace, state)`; `str(result)` is a line to
      read. With `newton`, `result.state.lowest_curvature` is that of the end: a negative one tells a saddle.

    Raises:
      ValueError: a tolerance or budget out of range, an objective that is not scalar.
      TypeError: parameters that are not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxopt_course as jc
      >>> valley = jc.mgh.PROBLEMS["rosenbrock"]
      >>> result = jc.minimize(valley.fn, jc.lbfgs(), jnp.array(valley.start))
      >>> print(jc.Status(int(result.status)).name, result.params.round(3))
      GRADIENT_NORM [1. 1.]
      >>> f"{valley.fn(valley.start):.1f} -> {result.value:.6f}"
      '24.2 -> 0.000000'

    Source: the lecture's "L-BFGS": "if you can afford to do full batch updates"; stopping after Gill, Murray and Wright
    (1981), "Practical optimization", section 8.2.3, with the gradient asked in every case.
    """
    check_floating(params)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
    eps = max((float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params)), default=2.0**-52)
    at_least = {"gtol": (gtol, 0), "ftol": (ftol, 0), "xtol": (xtol, 0)}
    for name, (value, least) in (at_least | {"max_steps": (max_steps, 0), "max_evals": (max_evals, 1)}).items():
        if isinstance(value, int | float) and not value >= least:
            raise ValueError(f"minimize: {name} must be at least {least}, got {value}")
    stopping = Stopping(
        gtol=math.sqrt(eps) if gtol is None else gtol,
        ftol=4 * eps if ftol is None else ftol,
        xtol=eps if xtol is None else xtol,
        near=math.sqrt(eps),
        ceiling=math.inf,
        target=-math.inf if target is None else target,
        max_steps=max_steps,
        max_evals=np.iinfo(np.int32).max if max_evals is None else max_evals,
    )
    return _solve(
        objective,
        optimizer,
        params,
        jax.tree.map(on_device, data),
        stopping,
        with_data=data is not None,
        has_aux=has_aux,
        trace_length=int(max_steps) + 1 if trace else None,
        keep_best=best,
    )


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("with_data", "has_aux", "trace_length", "keep_best"))
def _solve(
    objective: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    params: Any,
    data: Any,
    stopping: Stopping,
    *,
    with_data: bool,
    has_aux: bool,
    trace_length: int | None,
    keep_best: bool,
) -> Result:
    dtype = working_dtype(params)
    update = optax.with_extra_args_support(optimizer).update

    def value_and_aux(params: Any) -> tuple[Array, Any]:
        returned = objective(params, data) if with_data else objective(params)
        return scalar_and_aux("minimize", returned, has_aux)

    value_and_grad = jax.value_and_grad(value_and_aux, has_aux=True)

    def evaluated(params: Any) -> _Point:
        (value, aux), grad = value_and_grad(params)
        return _Point(params, value.astype(dtype), grad, _largest(grad, dtype), aux)

    def body(carry: _Carry) -> _Carry:
        here, running, old = carry.here, carry.status == Status.RUNNING, _search(carry.state)
        keywords: dict[str, Any] = {"value": here.value, "grad": here.grad, "value_fn": lambda w: value_and_aux(w)[0]}
        if old is not None:
            left = jnp.where(running, stopping.max_evals - carry.num_evals, 0)  # a lane that has ended waits
            keywords |= {"value_and_grad_fn": value_and_grad, "has_aux": True, "budget": left}
        updates, state = update(here.grad, carry.state, here.params, **keywords)
        params, search = optax.apply_updates(here.params, updates), _search(state)
        if search is None or search.evaluation is None:
            new, num_evals = evaluated(params), carry.num_evals + 1 + _inner_evaluations(state, carry.state)
        else:  # where it did not move, it hands on what it was given, but for aux
            found = search.evaluation
            grad = optax.tree.cast_like(found.grad, here.grad)  # of 16 bits it was, wide it came
            aux = _where(search.step_size > 0, found.aux, here.aux)
            new = _Point(params, found.value, grad, _largest(grad, dtype), aux)
            num_evals = carry.num_evals + search.num_evals - carry.state.search.num_evals
        if isinstance(state, NewtonState):  # at the end it looks once more, and stays where it is
            lowest, state = state.lowest_curvature, _where(running, _without_evaluation(state), carry.state)
            state = state._replace(lowest_curvature=lowest)
        return _next(carry, new, updates, state, num_evals, stopping)

    here, state, none = evaluated(params), optimizer.init(params), jnp.zeros((), jnp.int32)
    stopping = stopping._replace(ceiling=here.value + rounding(here.value))
    search = _search(state)
    climbs = search is None or search.evaluation is None
    state = _without_evaluation(state)
    carry = _Carry(
        here=here,
        best=here._replace(grad=None) if keep_best and climbs else None,
        state=state,
        num_steps=none,
        num_evals=none + 1,
        least_norm=here.grad_norm,
        stalled=none,
        status=first_status(here.value, here.grad_norm, stopping),
        looked=jnp.array(not isinstance(state, NewtonState)),
        trace=_blank_trace(trace_length, here),
    )
    if jax.tree.leaves(params):
        carry = lax.while_loop(lambda c: (c.status == Status.RUNNING) | ((c.status > 0) & ~c.looked), body, carry)
    end = carry.here._replace(grad=None)
    if carry.best is not None:
        end = _where((carry.status > 0) | ~(carry.best.value < end.value), end, carry.best)
    lost = (carry.status > 0) & ~jnp.isfinite(_largest(end.params, dtype))  # with an objective that is finite out there
    counts = jnp.where(lost, jnp.int32(Status.UNBOUNDED), carry.status), carry.num_steps, carry.num_evals
    return Result(end.params, end.value, end.grad_norm, *counts, end.aux, carry.trace, carry.state)


def _next(carry: _Carry, new: _Point, updates: Any, state: Any, num_evals: Array, stopping: Stopping) -> _Carry:
    """The carry after a step to a new point. A point that is not finite ends the solve, at the one before."""
    here, dtype, running, search = carry.here, new.value.dtype, carry.status == Status.RUNNING, _search(state)
    stride = jnp.sqrt(vdot(updates, updates, dtype))
    progress = (here.value - new.value > rounding(here.value)) | (new.grad_norm < carry.least_norm)
    looks = search is not None and search.evaluation is not None  # before it steps: then it never climbs
    stalled = jnp.where(progress, 0, carry.stalled + 1) if looks else carry.stalled
    num_steps = carry.num_steps + running.astype(jnp.int32)
    facts = Facts(
        value=new.value,
        grad_norm=new.grad_norm,
        decrease=here.value - new.value,
        moved=jnp.array(True) if search is None else search.step_size > 0,
        stride=stride,
        size=jnp.sqrt(vdot(here.params, here.params, dtype)),
        num_steps=num_steps,
        num_evals=num_evals,
        reported=jnp.int32(Status.RUNNING) if search is None else search.status,
        stalled=stalled,
    )
    now, best, size = new, carry.best, stride if search is None else search.step_size
    if not looks:
        finite = jnp.isfinite(new.value) & jnp.isfinite(new.grad_norm)
        now = _where(finite & running, new, here)
        if best is not None:
            best = _where(finite & (new.value < best.value), new._replace(grad=None), best)
    return _Carry(
        here=now,
        best=best,
        state=_without_evaluation(state),
        num_steps=num_steps,
        num_evals=num_evals,
        least_norm=jnp.minimum(carry.least_norm, now.grad_norm),
        stalled=stalled,
        status=jnp.where(running, next_status(facts, stopping), carry.status),
        looked=carry.looked | ~running,
        trace=carry.trace and _recorded(carry.trace, num_steps, now, size, num_evals),
    )


def _search(state: Any) -> Search | None:
    """What the optimizer itself says of its step; None where it does not search, or where others stand around it."""
    search = getattr(state, "search", None)
    return search if isinstance(search, Search) else None


def _without_evaluation(state: Any) -> Any:
    """The state without the evaluation at the new point, which the carry holds already."""
    search = _search(state)
    return state if search is None else state._replace(search=search._replace(evaluation=None))


def _inner_evaluations(new: Any, old: Any) -> Array:
    """Evaluations inside an update that only its state tells of: our searches in a chain, and those of optax."""

    def ours(state: Any) -> list[Array]:
        parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, Search))
        return [part.num_evals for part in parts if isinstance(part, Search)]

    theirs = [jnp.asarray(count, jnp.int32) for _, count in optax.tree.get_all_with_path(new, "num_linesearch_steps")]
    return sum([*ours(new), *theirs], jnp.zeros((), jnp.int32)) - sum(ours(old), jnp.zeros((), jnp.int32))


def _blank_trace(length: int | None, start: _Point) -> SolveTrace | None:
    if length is None:
        return None
    blank, none = jnp.full(length, jnp.nan, start.value.dtype), jnp.zeros(length, jnp.int32)
    return _recorded(SolveTrace(blank, blank, blank, none), 0, start, jnp.zeros_like(start.value), 1)


def _recorded(trace: SolveTrace, row: Any, point: _Point, step_size: Array, num_evals: Any) -> SolveTrace:
    values = (point.value, point.grad_norm, step_size, num_evals)
    return SolveTrace(*(rows.at[row].set(value) for rows, value in zip(trace, values, strict=True)))


def _largest(tree: Any, dtype: Any) -> Array:
    """The largest absolute entry, or NaN. Compared as integers: XLA's maximum of floats on a CPU may lose a NaN."""

    def largest(leaf: Array) -> Array:
        sizes = jnp.abs(lax.stop_gradient(leaf))
        bits = lax.bitcast_convert_type(sizes, jnp.dtype(f"int{8 * sizes.dtype.itemsize}"))
        return lax.bitcast_convert_type(jnp.max(bits, initial=0), sizes.dtype).astype(dtype)

    return reduce(jnp.maximum, map(largest, jax.tree.leaves(tree)), jnp.zeros((), dtype))


def _where(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
