"""What is minimised: class scores, losses, penalties, the risk made of them; and nearest neighbour, which is not."""

from jaxopt_course.problems import losses, mgh, nearest_neighbor, scores
from jaxopt_course.problems.risk import accuracy, empirical_risk

__all__ = ["accuracy", "empirical_risk", "losses", "mgh", "nearest_neighbor", "scores"]
