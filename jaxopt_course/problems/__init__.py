"""Objectives: scores, losses, penalties, the empirical risk, test functions; and the nearest-neighbour classifier."""

from jaxopt_course.problems import losses, mgh, nearest_neighbor, scores, surfaces
from jaxopt_course.problems.risk import accuracy, empirical_risk

__all__ = ["accuracy", "empirical_risk", "losses", "mgh", "nearest_neighbor", "scores", "surfaces"]


def __dir__() -> list[str]:
    return __all__
