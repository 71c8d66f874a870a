"""Why does this run fail: findings with numbers, from the probes of a training run."""

from jaxopt_course.diagnosis.causes import Cause, Diagnosis, Finding
from jaxopt_course.diagnosis.diagnose import diagnose

__all__ = ["Cause", "Diagnosis", "Finding", "diagnose"]
