"""How do I move: optimizers as pure functions with optax's interface. They know no problem and no loop."""

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

__all__ = [
    "AdagradState",
    "AdamState",
    "MomentumState",
    "RMSPropState",
    "SGDState",
    "adagrad",
    "adam",
    "momentum",
    "rmsprop",
    "sgd",
]
