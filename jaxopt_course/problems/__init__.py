"""What is minimised: class scores, per-example losses, penalties, the risk made of them, and test functions."""

from jaxopt_course.problems import losses, mgh, scores, surfaces
from jaxopt_course.problems.risk import accuracy, empirical_risk

__all__ = ["accuracy", "empirical_risk", "losses", "mgh", "scores", "surfaces"]
