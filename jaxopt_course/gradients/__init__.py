"""Gradient checks: numerical gradients, and checks of gradients and Hessians against differences."""

from jaxopt_course.gradients.check import gradcheck
from jaxopt_course.gradients.finite_differences import NumericalGradientWarning, numerical_gradient
from jaxopt_course.gradients.report import Entry, GradientCheckError, GradientReport, LeafReport, Verdict
from jaxopt_course.gradients.second_order import gradgradcheck
from jaxopt_course.gradients.spot_check import SpotCheck, grad_check_sparse

__all__ = [
    "Entry",
    "GradientCheckError",
    "GradientReport",
    "LeafReport",
    "NumericalGradientWarning",
    "SpotCheck",
    "Verdict",
    "grad_check_sparse",
    "gradcheck",
    "gradgradcheck",
    "numerical_gradient",
]


def __dir__() -> list[str]:
    return __all__
