"""Who turns the crank: the loops that own the objective."""

from jaxopt_course.training.minimize import Result, SolveTrace, minimize
from jaxopt_course.training.steps import Carry, Record, gradient_norm, start, train_step, train_steps
from jaxopt_course.training.train import NonFiniteError, Snapshot, Trace, TrainResult, train

__all__ = [
    "Carry",
    "NonFiniteError",
    "Record",
    "Result",
    "Snapshot",
    "SolveTrace",
    "Trace",
    "TrainResult",
    "gradient_norm",
    "minimize",
    "start",
    "train",
    "train_step",
    "train_steps",
]
