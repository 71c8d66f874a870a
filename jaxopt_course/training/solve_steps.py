"""The steps of a solve: what continues from one to the next, and the loop over them."""

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
    """Parameters, the objective there, and the largest absolute entry of its gradient."""

    params: Params
    value: Array
    grad: Updates
    grad_norm: Array
    aux: PyTree


class _Carry(NamedTuple):
    """What continues from step to step; `checks` asks for a `_checked` estimate, not before step `next_check`."""

    here: _Point
    best: _Point | None  # without its gradient; None where the optimizer never climbs
    state: OptState
    start_value: Array
    left: Remaining
    num_steps: Array
    num_evals: Array  # of value and gradient
    least_grad: Array
    largest_grad: Array
    stalled: Array  # steps since the value fell or the gradient was the smallest yet
    next_check: Array
    checks: Array
    status: Array
    looked: Array  # at the curvature of the end
    trace: SolveTrace | None


class Solve(NamedTuple):
    """What stays the same from step to step."""

    start: Params
    value_and_aux: Callable[[Params], tuple[Array, PyTree]]
    optimizer: AnyOptimizer
    stopping: Stopping
    keep_best: bool
    dtype: Any  # of scalars
    separable: Separable | None = None  # bounds and penalties; the objective is called within the bounds only

    def within(self, params: Params) -> Params:
        """The nearest parameters within the bounds."""
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
        """The gradient, or what bounds and penalties leave of it."""
        return grad if self.separable is None else self.separable.subgradient(params, grad)

    def grad_norm(self, params: Params, grad: Updates) -> Array:
        return largest_entry(self.steepest(params, grad), self.dtype)


def solved(solve: Solve, state: OptState, trace_length: int | None, piece: Any = None) -> tuple[_Carry, Any]:
    """Run the loop from the start to its end; `here` of the carry is then the point to return.

    A piece with `carry` and `until` is run from that carry, or from the start where it is None, to that step; then the
    carry to go on from is returned too.
    """
    carry = (
        _init_carry(solve, solve.start, state, trace_length) if piece is None or piece.carry is None else piece.carry
    )
    step = partial(_step, solve)

    def in_piece(carry: _Carry) -> Array:
        return jnp.array(True) if piece is None else carry.num_steps < piece.until

    def goes_on(carry: _Carry) -> Array:
        """Whether to take another step, or after a success to evaluate the curvature at the end once more."""
        next_step = _is_running(carry) & ~carry.checks & in_piece(carry)
        return next_step | ((carry.status > 0) & ~carry.looked)

    if jax.tree.leaves(solve.start):
        if not is_informed(carry.state) and solve.stopping.needs_gain:
            carry = lax.while_loop(
                lambda c: _is_running(c) & (in_piece(c) | c.checks),
                lambda c: _checked_if_due(solve, lax.while_loop(goes_on, step, c)),
                carry,
            )
        else:
            carry = lax.while_loop(goes_on, step, carry)
    return _ended(solve, carry), None if piece is None else carry


def _ended(solve: Solve, carry: _Carry) -> _Carry:
    """The carry whose `here` is the point to return: the best one, unless the last was a success."""
    end = carry.here
    if carry.best is not None:
        best = carry.best._replace(grad=end.grad)
        end = _where((carry.status > 0) | ~(best.value < end.value), end, best)
    lost = (carry.status > 0) & ~jnp.isfinite(largest_entry(end.params, solve.dtype))  # an objective finite at infinity
    return carry._replace(here=end, status=jnp.where(lost, jnp.int32(Status.UNBOUNDED), carry.status))


def _init_carry(solve: Solve, params: Params, state: OptState, trace_length: int | None) -> _Carry:
    """The carry before the first step."""
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
        checks=jnp.array(False),
        status=first_status(here.value, here.grad_norm, solve.stopping),
        looked=jnp.array(not hasattr(state, "lowest_curvature")),
        trace=blank_trace(trace_length, here.value, here.grad_norm),
    )


def _first_state(solve: Solve, params: Params) -> OptState:
    """The optimizer's state before the first step; one that may choose its size is told what an evaluation costs."""
    for_operations = getattr(solve.optimizer.init, "for_operations", None)
    if for_operations is None or solve.separable is not None:
        return solve.optimizer.init(params)
    return for_operations(params, operations_of(solve.value_fn, params))


def _is_running(carry: _Carry) -> Array:
    return carry.status == Status.RUNNING


def _step(solve: Solve, carry: _Carry) -> _Carry:
    """One update, and what it found. After a success it stays where it is, and records the curvature there."""
    here, running, old = carry.here, _is_running(carry), last_search(carry.state)
    keywords: dict[str, Any] = {"value": here.value, "grad": here.grad, "value_fn": solve.value_fn}
    if old is not None:
        budget = jnp.where(running, solve.stopping.max_evals - carry.num_evals, 0)  # a lane that has ended waits
        keywords |= {"value_and_grad_fn": solve.value_and_grad_fn, "has_aux": True, "budget": budget}
    if solve.separable is not None:
        keywords["separable"] = solve.separable
    update = optax.with_extra_args_support(solve.optimizer).update
    updates, state = update(here.grad, carry.state, here.params, **keywords)
    params, search = solve.within(optax.apply_updates(here.params, updates)), last_search(state)
    if search is None or search.evaluation is None:
        new = solve.at(params)
        num_evals = carry.num_evals + running.astype(jnp.int32) + inner_evaluations(state, carry.state)
    else:  # where it did not move, it returns what it was given, but for aux
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
    """The carry after a step to a new point. A point that is not finite ends the solve, at the one before.

    `descends`: the optimizer evaluates the objective where its step leads, and accepts lower points only.
    """
    here, running, search = carry.here, _is_running(carry), last_search(state)
    stride = norm(updates, solve.dtype)
    progress = (here.value - new.value > rounding(here.value)) | (new.grad_norm < carry.least_grad)
    num_steps = carry.num_steps + running.astype(jnp.int32)
    stalled = jnp.where(progress, 0, carry.stalled + 1)
    facts = Facts(
        value=new.value,
        grad_norm=new.grad_norm,
        left=_left(solve, carry, new, updates, search),
        size=norm(here.params, solve.dtype),
        start_value=carry.start_value,
        largest_grad=carry.largest_grad,
        stalled=stalled,
        optimizer_status=jnp.int32(Status.RUNNING) if search is None else search.status,
        num_steps=num_steps,
        num_evals=num_evals,
    )
    status, checks = next_status(facts, solve.stopping, informed=is_informed(state), descends=descends)
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
        checks=checks & ((num_steps >= carry.next_check) | (status != Status.RUNNING)) & running,
        status=jnp.where(running, status, carry.status),
        looked=carry.looked | ~running,
        trace=carry.trace and recorded(carry.trace, num_steps, now.value, now.grad_norm, size, num_evals),
    )


def _left(solve: Solve, carry: _Carry, new: _Point, updates: Updates, search: Search | None) -> Remaining:
    """What is left to gain: as the optimizer says, else a guess by the curvature along its last step."""
    stride, unknown = norm(updates, solve.dtype), jnp.full((), jnp.inf, solve.dtype)
    if not solve.stopping.needs_gain:
        return Remaining(unknown, unknown, unknown)
    if search is not None:  # whose direction, a step of length 1, leads to the minimum of its model
        moved, whole = search.step_size > 0, jnp.where(search.step_size > 0, search.step_size, 1)
        little, lost = little_left(search.gain, new.value, carry.start_value)
        part = lax.cond(  # of use only where this may be the end
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


def _checked_if_due(solve: Solve, carry: _Carry) -> _Carry:
    last_look = (carry.status == Status.MAX_STEPS) & (last_search(carry.state) is None)
    due = last_look | (carry.checks & (carry.status <= 0))
    due &= carry.num_evals < solve.stopping.max_evals
    return lax.cond(due, partial(_checked, solve), lambda c: c, carry)


def _checked(solve: Solve, carry: _Carry) -> _Carry:
    """Estimate with the Hessian what is left to gain at the lowest point, and end there if that is next to nothing."""
    here, ended, num_evals = carry.here, ~_is_running(carry), carry.num_evals + 1
    if carry.best is not None:
        here = _where(carry.best.value < here.value, carry.best._replace(grad=here.grad), here)
    left = remaining(jax.grad(solve.value_fn), here.params, solve.start, carry.left, solve.separable)
    size = norm(here.params, solve.dtype)
    # Nothing lower was found at any length: then a parameter whose minimum is 0 need not be near in its own units.
    overall = jnp.where(ended & (carry.status != Status.MAX_STEPS), left.distance / size, jnp.inf)
    facts = Facts(
        value=here.value,
        grad_norm=here.grad_norm,
        left=left._replace(relative=jnp.fmin(left.relative, overall)),
        size=size,
        start_value=carry.start_value,
        largest_grad=jnp.full_like(here.value, jnp.inf),  # the Hessian is exact: a kink is not mistaken for curvature
        stalled=carry.stalled,
        optimizer_status=jnp.int32(Status.RUNNING),
        num_steps=carry.num_steps,
        num_evals=num_evals,
    )
    found = success_status(facts, solve.stopping, ended)
    success, spent = found > 0, num_evals >= solve.stopping.max_evals
    state, search, pause = carry.state, last_search(carry.state), carry.num_steps
    if search is not None:  # whose count stays that of the solve
        state, pause = state._replace(search=search._replace(num_evals=search.num_evals + 1)), carry.num_steps // 4
    return carry._replace(
        here=_where(success, here, carry.here),
        state=state,
        status=jnp.where(success, found, jnp.where(_is_running(carry) & spent, Status.MAX_EVALS, carry.status)),
        num_evals=num_evals,
        trace=carry.trace and with_evals(carry.trace, carry.num_steps, num_evals),
        checks=jnp.array(False),
        next_check=carry.num_steps + pause + PATIENCE,
    )


def _where(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
