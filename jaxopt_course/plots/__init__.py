"""What did it look like? Data in, a matplotlib Figure out; nothing is computed here."""

from jaxopt_course.plots.figures import (
    confusion_matrix,
    gradient_costs,
    learning_curves,
    rate_robustness,
    step_size_errors,
    templates,
)

__all__ = [
    "confusion_matrix",
    "gradient_costs",
    "learning_curves",
    "rate_robustness",
    "step_size_errors",
    "templates",
]
