"""Optimization for deep learning as pure JAX functions: data, scores, losses, gradients, and the way to the minimum."""

import importlib
from typing import Any

from jaxopt_course import data, optimizers, problems, training
from jaxopt_course.optimizers import adagrad, adam, momentum, rmsprop, sgd
from jaxopt_course.problems import accuracy, empirical_risk, losses, scores
from jaxopt_course.training import TrainResult, train

__version__ = "0.1.0"

__all__ = [
    "TrainResult",
    "accuracy",
    "adagrad",
    "adam",
    "data",
    "empirical_risk",
    "losses",
    "momentum",
    "optimizers",
    "plots",
    "problems",
    "rmsprop",
    "scores",
    "sgd",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name == "plots":  # on first use: it loads matplotlib
        return importlib.import_module("jaxopt_course.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
