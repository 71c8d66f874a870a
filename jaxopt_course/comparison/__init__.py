"""Is it the same rule as theirs? Conventions as data, where two optimizers part and why, and a contract for any."""

from jaxopt_course.comparison import conventions
from jaxopt_course.comparison.check_optimizer import ContractError, ContractReport, Outcome, check_optimizer
from jaxopt_course.comparison.compare import parity
from jaxopt_course.comparison.parity_report import Cause, Parity, ParityReport, Parting
from jaxopt_course.comparison.subjects import Subject, torch_optimizer

__all__ = [
    "Cause",
    "ContractError",
    "ContractReport",
    "Outcome",
    "Parity",
    "ParityReport",
    "Parting",
    "Subject",
    "check_optimizer",
    "conventions",
    "parity",
    "torch_optimizer",
]
