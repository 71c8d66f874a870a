"""What is minimised: class scores, per-example losses, penalties, and the empirical risk made of them."""

from jaxopt_course.problems import losses, mgh, scores
from jaxopt_course.problems.risk import accuracy, empirical_risk

__all__ = ["accuracy", "empirical_risk", "losses", "mgh", "scores"]
