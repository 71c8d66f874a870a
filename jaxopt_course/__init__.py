"""Optimization for deep learning as pure JAX functions: data, scores, losses, gradients and optimizers."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxopt_course import (
        comparison,
        contract,
        data,
        diagnosis,
        gradients,
        lab,
        landscape,
        optimizers,
        plots,
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
else:  # a subpackage is imported when one of its names is first used; type checkers see only the names above
    _NAMES = {
        "comparison": ("conventions", "parity", "torch_optimizer"),
        "contract": ("check_optimizer",),
        "data": (),
        "diagnosis": ("Cause", "Diagnosis", "diagnose"),
        "gradients": ("GradientReport", "grad_check_sparse", "gradcheck", "gradgradcheck", "numerical_gradient"),
        "lab": (),
        "landscape": (),
        "optimizers": (
            *("sgd", "momentum", "adagrad", "rmsprop", "adam", "newton", "newton_cg", "lbfgs"),
            *("armijo", "strong_wolfe"),
        ),
        "plots": (),
        "problems": ("accuracy", "empirical_risk", "losses", "mgh", "nearest_neighbor", "scores", "surfaces"),
        "status": ("Status",),
        "sweeps": ("RaceResult", "SweepResult", "race", "sweep"),
        "training": ("Result", "TrainResult", "minimize", "train"),
    }
    _ROOMS = {name: room for room, names in _NAMES.items() for name in names}

    def __getattr__(name: str) -> object:
        if name in _NAMES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]


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
    "lab",
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
