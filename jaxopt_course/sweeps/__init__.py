"""Sweeps of hyperparameters and races of optimizers, with statistics over seeds."""

from jaxopt_course.sweeps.points import Points, choice, log_uniform, product, random, uniform
from jaxopt_course.sweeps.race import race
from jaxopt_course.sweeps.race_result import Comparison, RaceResult, StepsRatio
from jaxopt_course.sweeps.result import Best, MethodResult, SweepResult
from jaxopt_course.sweeps.sweep import SweepProgress, sweep

__all__ = [
    "Best",
    "Comparison",
    "MethodResult",
    "Points",
    "RaceResult",
    "StepsRatio",
    "SweepProgress",
    "SweepResult",
    "choice",
    "log_uniform",
    "product",
    "race",
    "random",
    "sweep",
    "uniform",
]


def __dir__() -> list[str]:
    return __all__
