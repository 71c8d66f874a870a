"""The landscape of an objective: fields, paths, critical points, and the exact theory of the quadratic."""

from jaxopt_course.landscape import quadratic_theory
from jaxopt_course.landscape.critical_points import (
    Classification,
    Escape,
    classify,
    escape_time,
    extreme_curvatures,
)
from jaxopt_course.landscape.fields import GradientField, basins, descend, gradient_field
from jaxopt_course.landscape.lanczos import Extreme, extremes
from jaxopt_course.landscape.quadratic_theory import Settings, predict
from jaxopt_course.landscape.walks import Paths, paths, settled

__all__ = [
    "Classification",
    "Escape",
    "Extreme",
    "GradientField",
    "Paths",
    "Settings",
    "basins",
    "classify",
    "descend",
    "escape_time",
    "extreme_curvatures",
    "extremes",
    "gradient_field",
    "paths",
    "predict",
    "quadratic_theory",
    "settled",
]


def __dir__() -> list[str]:
    return __all__
