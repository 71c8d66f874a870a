"""When is it over: the tests of a solve, in the order in which they count, and the words for how it ended."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array
from jaxopt_course.status import Status

BOTTOM = -1e20  # what falls below has no minimum
PATIENCE = 10  # steps in a row that gain nothing but rounding


class Stopping(NamedTuple):
    """Tolerances and budgets, as data.

    `near`: the scaled gradient below which a small step or decrease is success; `ceiling`: the value above which it is
    none, that of the start.
    """

    gtol: Any
    ftol: Any
    xtol: Any
    near: Any
    ceiling: Any
    target: Any
    max_steps: Any
    max_evals: Any


class Facts(NamedTuple):
    """What the tests look at after a step."""

    value: Array
    grad_norm: Array
    decrease: Array
    moved: Array
    stride: Array  # the Euclidean norm of the update
    size: Array  # and of the parameters
    num_steps: Array
    num_evals: Array
    reported: Array  # by the optimizer
    stalled: Array  # steps in a row without progress


def first_status(value: Array, grad_norm: Array, stopping: Stopping) -> Array:
    """Before any step: a start may be the end."""
    return _first_true(
        [
            *_not_finite(value, grad_norm),
            (value <= stopping.target, Status.TARGET_REACHED),
            (grad_norm <= stopping.gtol, Status.GRADIENT_NORM),
            (stopping.max_evals <= 1, Status.MAX_EVALS),
            (stopping.max_steps <= 0, Status.MAX_STEPS),
        ]
    )


def next_status(facts: Facts, stopping: Stopping) -> Array:
    """After a step. Success needs a small gradient and no climb, whatever else became small."""
    scale = jnp.maximum(1, jnp.abs(facts.value))
    near = (facts.grad_norm <= stopping.near * scale) & (facts.value <= stopping.ceiling)
    small_step = facts.moved & (facts.stride <= stopping.xtol * jnp.maximum(1, facts.size))
    small_decrease = facts.moved & (jnp.abs(facts.decrease) <= stopping.ftol * scale)
    tired = facts.stalled >= PATIENCE
    exhausted = (facts.reported == Status.LINE_SEARCH_FAILED) | (facts.reported == Status.ROUNDOFF_LIMITED) | tired
    return _first_true(
        [
            *_not_finite(facts.value, facts.grad_norm),
            (facts.value <= stopping.target, Status.TARGET_REACHED),
            (facts.grad_norm <= stopping.gtol, Status.GRADIENT_NORM),
            (near & small_step, Status.SMALL_STEP),
            (near & (small_decrease | exhausted), Status.SMALL_DECREASE),
            (facts.num_evals >= stopping.max_evals, Status.MAX_EVALS),
            (facts.reported != Status.RUNNING, facts.reported),
            (tired, Status.ROUNDOFF_LIMITED),
            (facts.num_steps >= stopping.max_steps, Status.MAX_STEPS),
        ]
    )


def rounding(value: Array) -> Array:
    """The change of a value that may be its rounding."""
    return 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)


def _not_finite(value: Array, grad_norm: Array) -> list[tuple[Array, Any]]:
    return [
        (value < BOTTOM, Status.UNBOUNDED),
        (~jnp.isfinite(value), Status.OBJECTIVE_NOT_FINITE),
        (~jnp.isfinite(grad_norm), Status.GRADIENT_NOT_FINITE),
    ]


def _first_true(cases: list[tuple[Any, Any]]) -> Array:
    answer = jnp.int32(Status.RUNNING)
    for condition, status in reversed(cases):
        answer = jnp.where(condition, jnp.int32(status), answer)
    return answer


MEANING = {
    Status.RUNNING: "still running",
    Status.GRADIENT_NORM: "the gradient is within gtol",
    Status.SMALL_STEP: "the step is within xtol and the gradient small",
    Status.SMALL_DECREASE: "the decrease is within ftol and the gradient small",
    Status.TARGET_REACHED: "the value is at the target",
    Status.MAX_STEPS: "max_steps were taken; raise it to go on",
    Status.MAX_EVALS: "max_evals are used up; raise it to go on",
    Status.OBJECTIVE_NOT_FINITE: "the objective is not finite; look at the start, or take shorter steps",
    Status.GRADIENT_NOT_FINITE: "the gradient is not finite where the objective is; gradcheck finds the entry",
    Status.HESSIAN_NOT_FINITE: "the Hessian is not finite where the gradient is; lbfgs needs none",
    Status.LINE_SEARCH_FAILED: "no lower point on the way down: a kink, rounding inside f, or a wrong gradient",
    Status.NON_DESCENT: "even the direction down the gradient does not go down",
    Status.ROUNDOFF_LIMITED: "no progress is possible at this precision; try float64, or scale the problem",
    Status.UNBOUNDED: "the objective falls without bound",
    Status.INTERRUPTED: "interrupted",
}


def describe(result: Any) -> str:
    """A line for a person; for a batch of solves, how many ended how."""
    if isinstance(result.status, jax.core.Tracer):
        return f"a result under trace: {tuple(result)}"
    statuses = np.asarray(result.status)
    if statuses.ndim:
        counts = Counter(Status(int(status)).name for status in statuses.ravel())
        return f"{statuses.size} solves: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())
    status = Status(int(statuses))
    steps, evals = int(result.num_steps), int(result.num_evals)
    curvature = float(getattr(result.state, "lowest_curvature", np.nan))
    saddle = (
        f"; a saddle, or a maximum: the lowest curvature is {curvature:.3g}" if status > 0 and curvature < 0 else ""
    )
    return (
        f"{status.name} after {steps} step{'s' * (steps != 1)} and {evals} evaluation{'s' * (evals != 1)}: value "
        f"{float(result.value):.9g}, largest gradient entry {float(result.grad_norm):.2e} ({MEANING[status]}{saddle})"
    )
