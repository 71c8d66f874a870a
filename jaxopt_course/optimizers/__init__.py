"""Optimizers as pure functions with optax's interface, independent of the problem and of the training loop."""

from jaxopt_course.optimizers.first_order import (
    AdagradState,
    AdamState,
    MomentumState,
    RMSPropState,
    SGDState,
    adagrad,
    adam,
    momentum,
    rmsprop,
    sgd,
)
from jaxopt_course.optimizers.lbfgs import History, LBFGSState, inverse_hessian_product, lbfgs
from jaxopt_course.optimizers.line_search import Evaluation, Step, armijo, strong_wolfe
from jaxopt_course.optimizers.newton import NewtonCGState, NewtonState, newton, newton_cg
from jaxopt_course.optimizers.searched import Search

__all__ = [
    "AdagradState",
    "AdamState",
    "Evaluation",
    "History",
    "LBFGSState",
    "MomentumState",
    "NewtonCGState",
    "NewtonState",
    "RMSPropState",
    "SGDState",
    "Search",
    "Step",
    "adagrad",
    "adam",
    "armijo",
    "inverse_hessian_product",
    "lbfgs",
    "momentum",
    "newton",
    "newton_cg",
    "rmsprop",
    "sgd",
    "strong_wolfe",
]


def __dir__() -> list[str]:
    return __all__
