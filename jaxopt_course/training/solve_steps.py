"""The steps of a solve: the carry, one step, and the loop over the steps."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import AnyOptimizer, Array, OptState, Params, PyTree, Updates
from jaxopt_course.dtypes import largest_entry, norm, rounding, vdot
from jaxopt_course.optimizers import Search
from jaxopt_course.optimizers.searched import gain_along
from jaxopt_course.optimizers.separable import Separable
from jaxopt_course.status import Status
from jaxopt_course.training.costs import operations_of
from jaxopt_course.training.remaining import Remaining, relative_size, remaining
from jaxopt_course.training.searches import (
    evaluates,
    inner_evaluations,
    is_informed,
    last_search,
    without_evaluation,
)
from jaxopt_course.training.solve_trace import SolveTrace, blank_trace, recorded, with_evals
from jaxopt_course.training.stopping import (
    PATIENCE,
    Facts,
    Stopping,
    first_status,
    little_left,
    next_status,
    success_status,
)


class _Point(NamedTuple):
    """Parameters, the objective at them, and the largest absolute entry of its gradient."""

    params: Params
    value: Array
    grad: Updates
    grad_norm: Array
    aux: PyTree


class _Carry(NamedTuple):
    """The state of the loop. `check_requested` asks for the estimate of `_check_success`, from step `next_check` on."""

    here: _Point
    best: _Point | None  # without its gradient; None if the optimizer never raises the value
    state: OptState
    start_value: Array
    left: Remaining
    num_steps: Array
    num_evals: Array  # of value and gradient
    least_grad: Array
    largest_grad: Array
    stalled: Array  # steps since the value fell or the gradient reached a new minimum
    next_check: Array
    check_requested: Array
    status: Array
    end_evaluated: Array  # whether the curvature at the end has been recorded
    trace: SolveTrace | None


class Solve(NamedTuple):
    """The constants of the loop."""

    start: Params
    value_and_aux: Callable[[Params], tuple[Array, PyTree]]
    optimizer: AnyOptimizer
    stopping: Stopping
    keep_best: bool
    dtype: Any  # of scalars
    separable: Separable | None = None  # bounds and penalties; the objective is called only within the bounds

    def within(self, params: Params) -> Params:
        """Return the nearest parameters within the bounds."""
        return params if self.separable is None else self.separable.project(params)

    def value_fn(self, params: Params) -> Array:
        inside = jax.tree.map(lambda w, p: w + lax.stop_gradient(p - w), params, self.within(params))
        return self.value_and_aux(inside if self.separable is not None else params)[0]

    def value_and_grad_fn(self, params: Params) -> tuple[tuple[Array, PyTree], Updates]:
        return jax.value_and_grad(self.value_and_aux, has_aux=True)(self.within(params))

    def at(self, params: Params) -> _Point:
        (value, aux), grad = self.value_and_grad_fn(params)
        value = value.astype(self.dtype)
        if self.separable is not None:
            value = value + self.separable.penalty(params, self.dtype)
        return _Point(params, value, grad, self.grad_norm(params, grad), aux)

    def steepest(self, params: Params, grad: Updates) -> Updates:
        """Return the gradient; with bounds or penalties, the smallest subgradient."""
        return grad if self.separable is None else self.separable.subgradient(params, grad)

    def grad_norm(self, params: Params, grad: Updates) -> Array:
        return largest_entry(self.steepest(params, grad), self.dtype)


def run_solve(solve: Solve, state: OptState, trace_length: int | None, piece: Any = None) -> tuple[_Carry, Any]:
    """Run the loop from the start to its end; `here` of the returned carry is the point to return.

    A piece with `carry` and `until` is run from that carry, or from the start if it is None, to that step. The carry
    for the next piece is then returned too.
    """
    carry = (
        _init_carry(solve, solve.start, state, trace_length) if piece is None or piece.carry is None else piece.carry
    )
    step = partial(_step, solve)

    def in_piece(carry: _Carry) -> Array:
        return jnp.array(True) if piece is None else carry.num_steps < piece.until

    def goes_on(carry: _Carry) -> Array:
        """Whether to take another step, or, after a success, to evaluate the curvature at the end."""
        next_step = _is_running(carry) & ~carry.check_requested & in_piece(carry)
        return next_step | ((carry.status > 0) & ~carry.end_evaluated)

    if jax.tree.leaves(solve.start):
        if not is_informed(carry.state) and solve.stopping.needs_gain:
            carry = lax.while_loop(
                lambda c: _is_running(c) & (in_piece(c) | c.check_requested),
                lambda c: _check_if_due(solve, lax.while_loop(goes_on, step, c)),
                carry,
            )
        else:
            carry = lax.while_loop(goes_on, step, carry)
    return _final_carry(solve, carry), None if piece is None else carry


def _final_carry(solve: Solve, carry: _Carry) -> _Carry:
    """Return the carry whose `here` is the point to return: the best point, or the last one if the solve succeeded."""
    end = carry.here
    if carry.best is not None:
        best = carry.best._replace(grad=end.grad)
        end = _where((carry.status > 0) | ~(best.value < end.value), end, best)
    lost = (carry.status > 0) & ~jnp.isfinite(largest_entry(end.params, solve.dtype))  # an objective finite at infinity
    return carry._replace(here=end, status=jnp.where(lost, jnp.int32(Status.UNBOUNDED), carry.status))


def _init_carry(solve: Solve, params: Params, state: OptState, trace_length: int | None) -> _Carry:
    """Return the carry before the first step."""
    here, none = solve.at(solve.within(params)), jnp.zeros((), jnp.int32)
    state = _first_state(solve, params) if state is None else state
    evaluates_there = evaluates(last_search(jax.eval_shape(solve.optimizer.init, params)))
    state = without_evaluation(state)
    unknown = jnp.full_like(here.value, jnp.inf)
    return _Carry(
        here=here,
        best=here._replace(grad=None) if solve.keep_best and not evaluates_there else None,
        state=state,
        start_value=here.value,
        left=Remaining(unknown, unknown, unknown),
        num_steps=none,
        num_evals=none + 1,
        least_grad=here.grad_norm,
        largest_grad=here.grad_norm,
        stalled=none,
        next_check=none,
        check_requested=jnp.array(False),
        status=first_status(here.value, here.grad_norm, solve.stopping),
        end_evaluated=jnp.array(not hasattr(state, "lowest_curvature")),
        trace=blank_trace(trace_length, here.value, here.grad_norm),
    )


def _first_state(solve: Solve, params: Params) -> OptState:
    """Return the initial optimizer state; an optimizer that can choose its size gets the cost of an evaluation."""
    for_operations = getattr(solve.optimizer.init, "for_operations", None)
    if for_operations is None or solve.separable is not None:
        return solve.optimizer.init(params)
    return for_operations(params, operations_of(solve.value_fn, params))


def _is_running(carry: _Carry) -> Array:
    return carry.status == Status.RUNNING


def _step(solve: Solve, carry: _Carry) -> _Carry:
    """Take one update and evaluate the new point. After a success, only record the curvature, without moving."""
    here, running, old = carry.here, _is_running(carry), last_search(carry.state)
    keywords: dict[str, Any] = {"value": here.value, "grad": here.grad, "value_fn": solve.value_fn}
    if old is not None:
        budget = jnp.where(running, solve.stopping.max_evals - carry.num_evals, 0)  # a finished lane does not move
        keywords |= {"value_and_grad_fn": solve.value_and_grad_fn, "has_aux": True, "budget": budget}
    if solve.separable is not None:
        keywords["separable"] = solve.separable
    update = optax.with_extra_args_support(solve.optimizer).update
    updates, state = update(here.grad, carry.state, here.params, **keywords)
    params, search = solve.within(optax.apply_updates(here.params, updates)), last_search(state)
    if search is None or search.evaluation is None:
        new = solve.at(params)
        num_evals = carry.num_evals + running.astype(jnp.int32) + inner_evaluations(state, carry.state)
    else:  # if it did not move, it returns its inputs, except for aux
        grad = optax.tree.cast_like(search.evaluation.grad, here.grad)
        aux = _where(search.step_size > 0, search.evaluation.aux, here.aux)
        new = _Point(params, search.evaluation.value, grad, solve.grad_norm(params, grad), aux)
        num_evals = carry.num_evals + search.num_evals - carry.state.search.num_evals
    if hasattr(state, "lowest_curvature"):
        lowest, state = state.lowest_curvature, _where(running, without_evaluation(state), carry.state)
        state = state._replace(lowest_curvature=lowest)
    return _next(solve, carry, new, updates, state, num_evals, descends=evaluates(search))


def _next(
    solve: Solve, carry: _Carry, new: _Point, updates: Updates, state: OptState, num_evals: Array, *, descends: bool
) -> _Carry:
    """Return the carry after a step to a new point. A point that is not finite ends the solve at the previous point.

    `descends`: the optimizer evaluates the objective at the end of its step, and accepts only lower points.
    """
    here, running, search = carry.here, _is_running(carry), last_search(state)
    stride = norm(updates, solve.dtype)
    progress = (here.value - new.value > rounding(here.value)) | (new.grad_norm < carry.least_grad)
    num_steps = carry.num_steps + running.astype(jnp.int32)
    stalled = jnp.where(progress, 0, carry.stalled + 1)
    facts = Facts(
        value=new.value,
        grad_norm=new.grad_norm,
        left=_estimate_remaining(solve, carry, new, updates, search),
        size=norm(here.params, solve.dtype),
        start_value=carry.start_value,
        largest_grad=carry.largest_grad,
        stalled=stalled,
        optimizer_status=jnp.int32(Status.RUNNING) if search is None else search.status,
        num_steps=num_steps,
        num_evals=num_evals,
    )
    status, check_requested = next_status(facts, solve.stopping, informed=is_informed(state), descends=descends)
    now, best, size = new, carry.best, stride if search is None else search.step_size
    if not descends:
        finite = jnp.isfinite(new.value) & jnp.isfinite(new.grad_norm)
        now = _where(finite & running, new, here)
        if best is not None:
            best = _where(finite & (new.value < best.value), new._replace(grad=None), best)
    return _Carry(
        here=now,
        best=best,
        state=without_evaluation(state),
        start_value=carry.start_value,
        left=facts.left,
        num_steps=num_steps,
        num_evals=num_evals,
        least_grad=jnp.minimum(carry.least_grad, now.grad_norm),
        largest_grad=jnp.maximum(carry.largest_grad, now.grad_norm),
        stalled=stalled,
        next_check=carry.next_check,
        check_requested=check_requested & ((num_steps >= carry.next_check) | (status != Status.RUNNING)) & running,
        status=jnp.where(running, status, carry.status),
        end_evaluated=carry.end_evaluated | ~running,
        trace=carry.trace and recorded(carry.trace, num_steps, now.value, now.grad_norm, size, num_evals),
    )


def _estimate_remaining(solve: Solve, carry: _Carry, new: _Point, updates: Updates, search: Search | None) -> Remaining:
    """Return the remaining gain as estimated by the optimizer, else from the curvature along its last step."""
    stride, unknown = norm(updates, solve.dtype), jnp.full((), jnp.inf, solve.dtype)
    if not solve.stopping.needs_gain:
        return Remaining(unknown, unknown, unknown)
    if search is not None:  # a step of length 1 along its direction leads to the minimum of its model
        moved, whole = search.step_size > 0, jnp.where(search.step_size > 0, search.step_size, 1)
        little, lost = little_left(search.gain, new.value, carry.start_value)
        part = lax.cond(  # needed only if this may be the end
            little | lost,
            lambda: relative_size(updates, carry.here.params, solve.start, solve.dtype),
            lambda: unknown,
        )
        return Remaining(
            search.gain,
            jnp.where(moved, stride / whole, carry.left.distance),
            jnp.where(moved, part / whole, carry.left.relative),
        )
    unit = optax.tree.scale(1 / stride, optax.tree.cast(updates, solve.dtype))
    change = optax.tree.cast(optax.tree.sub(new.grad, carry.here.grad), solve.dtype)
    curvature = vdot(unit, change, solve.dtype) / stride
    size = norm(solve.steepest(new.params, new.grad), solve.dtype)
    distance = jnp.where(curvature > 0, size / curvature, jnp.inf)
    return Remaining(gain_along(size, curvature), distance, jnp.zeros_like(distance))


def _check_if_due(solve: Solve, carry: _Carry) -> _Carry:
    last_look = (carry.status == Status.MAX_STEPS) & (last_search(carry.state) is None)
    due = last_look | (carry.check_requested & (carry.status <= 0))
    due &= carry.num_evals < solve.stopping.max_evals
    return lax.cond(due, partial(_check_success, solve), lambda c: c, carry)


def _check_success(solve: Solve, carry: _Carry) -> _Carry:
    """Estimate the remaining gain at the lowest point with the Hessian, and end there if it is negligible."""
    here, ended, num_evals = carry.here, ~_is_running(carry), carry.num_evals + 1
    if carry.best is not None:
        here = _where(carry.best.value < here.value, carry.best._replace(grad=here.grad), here)
    left = remaining(jax.grad(solve.value_fn), here.params, solve.start, carry.left, solve.separable)
    size = norm(here.params, solve.dtype)
    # If no lower point was found at any length, a parameter whose minimum is 0 need not be near relative to itself.
    overall = jnp.where(ended & (carry.status != Status.MAX_STEPS), left.distance / size, jnp.inf)
    facts = Facts(
        value=here.value,
        grad_norm=here.grad_norm,
        left=left._replace(relative=jnp.fmin(left.relative, overall)),
        size=size,
        start_value=carry.start_value,
        largest_grad=jnp.full_like(here.value, jnp.inf),  # the Hessian is exact, so a kink does not look like curvature
        stalled=carry.stalled,
        optimizer_status=jnp.int32(Status.RUNNING),
        num_steps=carry.num_steps,
        num_evals=num_evals,
    )
    found = success_status(facts, solve.stopping, ended)
    success, spent = found > 0, num_evals >= solve.stopping.max_evals
    state, search, pause = carry.state, last_search(carry.state), carry.num_steps
    if search is not None:  # its count of evaluations includes this one
        state, pause = state._replace(search=search._replace(num_evals=search.num_evals + 1)), carry.num_steps // 4
    return carry._replace(
        here=_where(success, here, carry.here),
        state=state,
        status=jnp.where(success, found, jnp.where(_is_running(carry) & spent, Status.MAX_EVALS, carry.status)),
        num_evals=num_evals,
        trace=carry.trace and with_evals(carry.trace, carry.num_steps, num_evals),
        check_requested=jnp.array(False),
        next_check=carry.num_steps + pause + PATIENCE,
    )


def _where(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
