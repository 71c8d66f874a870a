"""Is it the same rule as theirs? Conventions as data; where two optimizers first differ, and why."""

from jaxopt_course.comparison import conventions
from jaxopt_course.comparison.compare import parity
from jaxopt_course.comparison.parity_report import Cause, Parity, ParityReport, Parting
from jaxopt_course.comparison.subjects import Subject, torch_optimizer

__all__ = [
    "Cause",
    "Parity",
    "ParityReport",
    "Parting",
    "Subject",
    "conventions",
    "parity",
    "torch_optimizer",
]
