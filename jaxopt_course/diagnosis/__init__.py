"""Diagnose what limits a training run, with numbers, from the probes of the run."""

from jaxopt_course.diagnosis.causes import Cause, Diagnosis, Finding
from jaxopt_course.diagnosis.diagnose import diagnose
from jaxopt_course.diagnosis.evidence import Estimate, Evidence, Looks, Moment

__all__ = ["Cause", "Diagnosis", "Estimate", "Evidence", "Finding", "Looks", "Moment", "diagnose"]


def __dir__() -> list[str]:
    return __all__
