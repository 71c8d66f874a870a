"""Compare update rules: conventions as data, and where two optimizers first differ and why."""

from jaxopt_course.comparison import conventions
from jaxopt_course.comparison.compare import parity
from jaxopt_course.comparison.paths import FirstDifference
from jaxopt_course.comparison.report import Cause, Parity, ParityReport
from jaxopt_course.comparison.steppers import Stepper, torch_optimizer

__all__ = [
    "Cause",
    "FirstDifference",
    "Parity",
    "ParityReport",
    "Stepper",
    "conventions",
    "parity",
    "torch_optimizer",
]


def __dir__() -> list[str]:
    return __all__
