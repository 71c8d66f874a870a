"""What did it look like? Data in, a matplotlib Figure out; nothing is computed here."""

from jaxopt_course.plots.figures import (
    confusion_matrix,
    gradient_costs,
    learning_curves,
    rate_robustness,
    step_size_errors,
    templates,
)
from jaxopt_course.plots.images import image_rows
from jaxopt_course.plots.lab import write_lab
from jaxopt_course.plots.profiles import performance_profiles
from jaxopt_course.plots.solves import convergence_curves

__all__ = [
    "confusion_matrix",
    "convergence_curves",
    "gradient_costs",
    "image_rows",
    "learning_curves",
    "performance_profiles",
    "rate_robustness",
    "step_size_errors",
    "templates",
    "write_lab",
]
