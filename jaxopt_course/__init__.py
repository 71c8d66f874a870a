"""Optimization for deep learning as pure JAX functions: data, scores, losses, gradients, and the way to the minimum."""

import importlib
from typing import Any

from jaxopt_course import (
    comparison,
    contract,
    data,
    diagnosis,
    gradients,
    landscape,
    optimizers,
    problems,
    sweeps,
    training,
)
from jaxopt_course.comparison import conventions, parity, torch_optimizer
from jaxopt_course.contract import check_optimizer
from jaxopt_course.diagnosis import Cause, Diagnosis, diagnose
from jaxopt_course.gradients import GradientReport, grad_check_sparse, gradcheck, gradgradcheck, numerical_gradient
from jaxopt_course.optimizers import (
    adagrad,
    adam,
    armijo,
    lbfgs,
    momentum,
    newton,
    newton_cg,
    rmsprop,
    sgd,
    strong_wolfe,
)
from jaxopt_course.problems import accuracy, empirical_risk, losses, mgh, nearest_neighbor, scores, surfaces
from jaxopt_course.status import Status
from jaxopt_course.sweeps import RaceResult, SweepResult, race, sweep
from jaxopt_course.training import Result, TrainResult, minimize, train

__version__ = "0.1.0"

__all__ = [
    "Cause",
    "Diagnosis",
    "GradientReport",
    "RaceResult",
    "Result",
    "Status",
    "SweepResult",
    "TrainResult",
    "accuracy",
    "adagrad",
    "adam",
    "armijo",
    "check_optimizer",
    "comparison",
    "contract",
    "conventions",
    "data",
    "diagnose",
    "diagnosis",
    "empirical_risk",
    "grad_check_sparse",
    "gradcheck",
    "gradgradcheck",
    "gradients",
    "landscape",
    "lbfgs",
    "losses",
    "mgh",
    "minimize",
    "momentum",
    "nearest_neighbor",
    "newton",
    "newton_cg",
    "numerical_gradient",
    "optimizers",
    "parity",
    "plots",
    "problems",
    "race",
    "rmsprop",
    "scores",
    "sgd",
    "strong_wolfe",
    "surfaces",
    "sweep",
    "sweeps",
    "torch_optimizer",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name == "plots":  # on first use: it loads matplotlib
        return importlib.import_module("jaxopt_course.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
