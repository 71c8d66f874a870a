"""Status codes of a step or a solve: integers, so that they can be used inside `jit`. Positive codes are successes."""

from collections.abc import Sequence
from enum import IntEnum
from functools import reduce
from typing import Any

import jax.numpy as jnp

Case = tuple[Any, Any]  # a condition, and the `Status` or `Obstacle` that holds if the condition is true


class Status(IntEnum):
    """Status of a step or a solve: `RUNNING` is 0, successes are positive, and every failure has its own negative code.

    `GRADIENT_NORM`: the gradient is within `gtol`; if no tolerance was given, the estimated remaining gain is
    negligible. `SMALL_DECREASE`, `SMALL_STEP`: the same for `ftol` and `xtol`; if no tolerance was given,
    `SMALL_DECREASE` means that no lower point was found and that almost nothing remains to be gained.
    `TARGET_REACHED`: the value is at `target`. `jaxopt_course.minimize` defines each precisely.

    Example:
      >>> Status(1).name, Status(1) > 0
      ('GRADIENT_NORM', True)
    """

    RUNNING = 0
    GRADIENT_NORM = 1
    SMALL_STEP = 2
    SMALL_DECREASE = 3
    TARGET_REACHED = 4
    MAX_STEPS = -1
    MAX_EVALS = -2
    OBJECTIVE_NOT_FINITE = -4
    GRADIENT_NOT_FINITE = -5
    HESSIAN_NOT_FINITE = -6
    LINE_SEARCH_FAILED = -7
    NON_DESCENT = -8
    ROUNDOFF_LIMITED = -9
    UNBOUNDED = -10
    INTERRUPTED = -11


class Obstacle(IntEnum):
    """The likely reason why a line search found no lower point, estimated from its trials; 0 if it found one.

    `ROUNDING`: the decrease expected at the trials is below the rounding of the value. `KINK`: the slope jumps within
    the shortest step, as it does across a kink. `SCALE`: the value rises steeply even at the shortest step, because the
    scale of the parameters is shorter still. `WRONG_GRADIENT`: the value does not follow the slope that the gradient
    predicts. `NOT_FINITE`: the value or the gradient was not finite at the last trial, and no earlier trial tells more.
    `UPHILL`: the direction is not a descent direction.

    Example:
      >>> Obstacle(2).name
      'KINK'
    """

    NONE = 0
    ROUNDING = 1
    KINK = 2
    SCALE = 3
    WRONG_GRADIENT = 4
    NOT_FINITE = 5
    UPHILL = 6


def first_true(cases: Sequence[Case], otherwise: Any) -> Any:
    """Return the status of the first case whose condition is true, int32; `otherwise` if none is."""
    return reduce(
        lambda rest, case: jnp.where(case[0], jnp.int32(case[1]), rest), reversed(cases), jnp.int32(otherwise)
    )
