"""How a step or a solve ended: small integers that live inside `jit`; positive is success."""

from enum import IntEnum


class Status(IntEnum):
    """`RUNNING` is 0, success is positive, every failure has a negative number of its own.

    Success means that the gradient is small, `SMALL_STEP` and `SMALL_DECREASE` included, or that the value is at the
    target that was asked for.

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
