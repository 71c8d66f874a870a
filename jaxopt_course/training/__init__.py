"""Training loops and solvers; only these call the objective."""

from jaxopt_course.training.checkpoint import CheckpointWriteError
from jaxopt_course.training.checkpoint_file import CheckpointError
from jaxopt_course.training.history import Trace, TrainResult
from jaxopt_course.training.interrupts import Interrupted
from jaxopt_course.training.minimize import minimize
from jaxopt_course.training.nonfinite import NonFiniteError
from jaxopt_course.training.pieces import SolveSnapshot
from jaxopt_course.training.run import Snapshot
from jaxopt_course.training.solve import Result
from jaxopt_course.training.solve_trace import SolveTrace
from jaxopt_course.training.steps import Carry, Record, gradient_norm, init_carry, train_step, train_steps
from jaxopt_course.training.train import train

__all__ = [
    "Carry",
    "CheckpointError",
    "CheckpointWriteError",
    "Interrupted",
    "NonFiniteError",
    "Record",
    "Result",
    "Snapshot",
    "SolveSnapshot",
    "SolveTrace",
    "Trace",
    "TrainResult",
    "gradient_norm",
    "init_carry",
    "minimize",
    "train",
    "train_step",
    "train_steps",
]


def __dir__() -> list[str]:
    return __all__
