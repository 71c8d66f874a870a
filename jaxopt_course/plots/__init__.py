"""What did it look like? Data in, a matplotlib Figure out; nothing is computed here."""

from jaxopt_course.plots.figures import confusion_matrix, learning_curves, rate_robustness, templates

__all__ = ["confusion_matrix", "learning_curves", "rate_robustness", "templates"]
