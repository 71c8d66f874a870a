"""Is the gradient right?"""

from jaxopt_course.gradients.check import gradcheck
from jaxopt_course.gradients.finite_differences import SpotCheck, grad_check_sparse, numerical_gradient
from jaxopt_course.gradients.report import Entry, GradientCheckError, GradientReport, LeafReport, Verdict
from jaxopt_course.gradients.second_order import gradgradcheck

__all__ = [
    "Entry",
    "GradientCheckError",
    "GradientReport",
    "LeafReport",
    "SpotCheck",
    "Verdict",
    "grad_check_sparse",
    "gradcheck",
    "gradgradcheck",
    "numerical_gradient",
]
