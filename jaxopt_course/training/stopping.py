"""Stopping tests of a solve, in order of priority, and the description of its result.

A success is a claim about the remaining gain, not about the length of the last step. `gain` estimates how far the value
is above the minimum: half of the Newton decrement, the same for a quasi-Newton direction, corrected by the line search,
or the estimate by conjugate gradients (`remaining`). It is compared with the decrease since the start and with the
rounding of the value, so that a claim does not depend on a factor or a constant of the objective, nor on units.
"""

from collections import Counter
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array
from jaxopt_course.dtypes import rounding
from jaxopt_course.status import Case, Obstacle, Status, first_true
from jaxopt_course.training.remaining import Remaining

if TYPE_CHECKING:
    from jaxopt_course.training.solve import Result

PATIENCE = 10  # most consecutive steps that lower neither the value nor the gradient
LITTLE_PATIENCE = 2  # the same, if the remaining gain is almost 0
NEGLIGIBLE = 1e-18  # remaining gain relative to the decrease since the start that counts as 0
LITTLE = 1e-8  # the same that counts as almost 0 if no lower point is found; at least 4 units of rounding
NOTHING_LOWER = (Status.LINE_SEARCH_FAILED, Status.ROUNDOFF_LIMITED, Status.NON_DESCENT)  # no lower point was found
NEAR = 1e-3  # largest distance of the minimum, relative to each parameter or to its change since the start
NOT_FAR = 0.03  # the same, if the remaining gain is also small relative to the value
SMALL = 1e-8  # remaining gain relative to the value


class Stopping(NamedTuple):
    """Tolerances and budgets as data; a tolerance that was not given is None."""

    gtol: Array | float | None
    ftol: Array | float | None
    xtol: Array | float | None
    target: Array | float
    max_steps: Array | int
    max_evals: Array | int

    @property
    def is_default(self) -> bool:
        return self.gtol is None and self.ftol is None and self.xtol is None

    @property
    def needs_gain(self) -> bool:
        """Whether a success may depend on the remaining gain."""
        return self.is_default or self.ftol is not None or self.xtol is not None


class Facts(NamedTuple):
    """The quantities used by the tests after a step."""

    value: Array
    grad_norm: Array
    left: Remaining
    size: Array  # Euclidean norm of the parameters
    start_value: Array
    largest_grad: Array  # largest norm since the start
    stalled: Array  # consecutive steps without progress
    optimizer_status: Array
    num_steps: Array
    num_evals: Array


def first_status(value: Array, grad_norm: Array, stopping: Stopping) -> Array:
    """Return the status before the first step: the start may already satisfy a test."""
    return first_true(
        [
            *_not_finite(value, grad_norm),
            (value <= stopping.target, Status.TARGET_REACHED),
            (grad_norm <= (0 if stopping.gtol is None else stopping.gtol), Status.GRADIENT_NORM),
            (stopping.max_evals <= 1, Status.MAX_EVALS),
            (stopping.max_steps <= 0, Status.MAX_STEPS),
        ],
        Status.RUNNING,
    )


def next_status(facts: Facts, stopping: Stopping, *, informed: bool, descends: bool) -> tuple[Array, Array]:
    """Return the status after a step, and whether an exact estimate of the remaining gain is worth its cost.

    `informed`: the optimizer itself knows the remaining gain from the curvature at the point. Another rule may have
    chosen a step that gains nothing, such as the first of a warm-up, or may know only the curvature of its last steps,
    which can differ much from the curvature in other directions. `facts.left` is then a guess, and a success must be
    confirmed. `descends`: the optimizer accepts only lower points, so that many consecutive steps without progress mean
    that no progress is possible.
    """
    failed = reduce(jnp.logical_or, [facts.optimizer_status == status for status in NOTHING_LOWER])
    tired = facts.stalled >= PATIENCE
    # If a search finds no lower point at any length, the distance of the minimum is not in doubt.
    near = facts.left._replace(relative=jnp.where(failed, 0, facts.left.relative))
    successes = success_cases(facts._replace(left=near), stopping, failed)
    status = first_true(
        [
            *_not_finite(facts.value, facts.grad_norm),
            (facts.value <= stopping.target, Status.TARGET_REACHED),
            (facts.grad_norm <= (0 if stopping.gtol is None else stopping.gtol), Status.GRADIENT_NORM),
            (facts.optimizer_status == Status.UNBOUNDED, Status.UNBOUNDED),
            *(successes if informed else []),
            (facts.num_evals >= stopping.max_evals, Status.MAX_EVALS),
            (facts.optimizer_status != Status.RUNNING, facts.optimizer_status),
            *([(tired, Status.ROUNDOFF_LIMITED)] if descends else []),
            (facts.num_steps >= stopping.max_steps, Status.MAX_STEPS),
        ],
        Status.RUNNING,
    )
    if informed or not successes:
        return status, jnp.array(False)
    at_end = reduce(jnp.logical_or, [status == end for end in (Status.RUNNING, Status.MAX_STEPS, *NOTHING_LOWER)])
    return status, at_end & (first_true(successes, Status.RUNNING) > 0)


def success_status(facts: Facts, stopping: Stopping, ended: Array) -> Array:
    """Return the success that follows from the remaining gain, or RUNNING."""
    return first_true(success_cases(facts, stopping, ended), Status.RUNNING)


def success_cases(facts: Facts, stopping: Stopping, ended: Array) -> list[Case]:
    """Return the success cases that depend on the remaining gain.

    `ended`: no lower point was found, or no step is left.
    """
    gained = jnp.maximum(facts.start_value - facts.value, 0)
    no_climb = facts.value <= facts.start_value + rounding(facts.start_value)
    if not stopping.is_default:
        cases: list[Case] = []
        if stopping.ftol is not None:
            scale = jnp.maximum(jnp.abs(facts.value), gained)
            cases += [(no_climb & (facts.left.gain <= stopping.ftol * scale), Status.SMALL_DECREASE)]
        if stopping.xtol is not None:
            cases += [(no_climb & (facts.left.distance <= stopping.xtol * facts.size), Status.SMALL_STEP)]
        return cases
    eps = jnp.finfo(facts.value.dtype).eps
    little, lost = little_left(facts.left.gain, facts.value, facts.start_value)
    nothing = facts.left.gain <= NEGLIGIBLE * gained
    over = (
        (little & (facts.stalled >= LITTLE_PATIENCE)) | (lost & (facts.stalled >= PATIENCE)) | (ended & (little | lost))
    )
    # Across a kink the curvature looks infinite and the remaining gain too small, but then the gradient is not small.
    # If the start is far above all later values, every later gain looks small, but then the minimum is not near.
    small = facts.left.gain <= SMALL * jnp.abs(facts.value)
    near = (facts.left.relative <= NEAR) | (small & (facts.left.relative <= NOT_FAR))
    sound = no_climb & near & (facts.grad_norm <= eps**0.25 * facts.largest_grad)
    return [(sound & nothing, Status.GRADIENT_NORM), (sound & over, Status.SMALL_DECREASE)]


def little_left(gain: Array, value: Array, start_value: Array) -> tuple[Array, Array]:
    """Whether the remaining gain is small relative to the gain since the start, and whether it is lost in rounding."""
    part = jnp.maximum(LITTLE, 4 * jnp.finfo(value.dtype).eps)
    return gain <= part * jnp.maximum(start_value - value, 0), gain <= rounding(value) / 8


def _not_finite(value: Array, grad_norm: Array) -> list[Case]:
    return [
        (value == -jnp.inf, Status.UNBOUNDED),
        (~jnp.isfinite(value), Status.OBJECTIVE_NOT_FINITE),
        (~jnp.isfinite(grad_norm), Status.GRADIENT_NOT_FINITE),
    ]


MEANING = {
    Status.RUNNING: "still running",
    Status.GRADIENT_NORM: "the gradient is within gtol, or the remaining gain is negligible",
    Status.SMALL_STEP: "the minimum is estimated to be within xtol",
    Status.SMALL_DECREASE: "the estimated remaining gain is within ftol, or almost 0",
    Status.TARGET_REACHED: "the value is at the target",
    Status.MAX_STEPS: "max_steps were taken; raise it to continue",
    Status.MAX_EVALS: "max_evals are used up; raise it to continue",
    Status.OBJECTIVE_NOT_FINITE: "the objective is not finite; check the start, or take shorter steps",
    Status.GRADIENT_NOT_FINITE: "the gradient is not finite, but the objective is; gradcheck finds the entry",
    Status.HESSIAN_NOT_FINITE: "the Hessian is not finite, but the gradient is; lbfgs does not need the Hessian",
    Status.LINE_SEARCH_FAILED: "no lower point was found along a descent direction",
    Status.NON_DESCENT: "even the negative gradient is not a descent direction",
    Status.ROUNDOFF_LIMITED: "the possible gain of a step is below the rounding of the value or of the parameters",
    Status.UNBOUNDED: "the objective falls without bound",
    Status.INTERRUPTED: "interrupted",
}
REASONS = {
    Obstacle.ROUNDING: "rounding: try float64, or subtract a large constant from the objective",
    Obstacle.KINK: "a kink: the slope jumps within the shortest step",
    Obstacle.SCALE: "scale: the value rises steeply even at the shortest step; rescale the parameters",
    Obstacle.WRONG_GRADIENT: "a wrong gradient: the value rises where the gradient predicts a fall; run gradcheck",
    Obstacle.NOT_FINITE: "the objective is not finite at any trial",
    Obstacle.UPHILL: "the direction goes up",
}


def describe(result: "Result") -> str:
    """Describe a result in one line; for a batch of solves, count the statuses."""
    if isinstance(result.status, jax.core.Tracer):
        return f"a result under trace: {tuple(result)}"
    statuses = np.asarray(result.status)
    if statuses.ndim:
        counts = Counter(Status(int(status)).name for status in statuses.ravel())
        return f"{statuses.size} solves: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())
    status = Status(int(statuses))
    steps, evals = int(result.num_steps), int(result.num_evals)
    return (
        f"{status.name} after {steps} step{'s' * (steps != 1)} and {evals} evaluation{'s' * (evals != 1)}: value "
        f"{float(result.value):.9g}, largest gradient entry {float(result.grad_norm):.2e} ({MEANING[status]}"
        f"{_reason(result, status)})"
    )


def _reason(result: "Result", status: Status) -> str:
    """Describe what the optimizer's state adds: a saddle, or why no lower point was found."""
    curvature = float(getattr(result.state, "lowest_curvature", np.nan))
    saddle = f"; a saddle, or a maximum: the lowest curvature is {curvature:.3g}" if curvature < 0 else ""
    search = getattr(result.state, "search", None)
    obstacle = Obstacle(int(search.obstacle)) if search is not None and status < 0 else Obstacle.NONE
    failed = status in NOTHING_LOWER
    likely = f"; the likely cause is {REASONS[obstacle]}" if failed and obstacle in REASONS else ""
    return (saddle if status > 0 or failed else "") + likely
