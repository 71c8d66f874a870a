"""What the tests are crossed over: the rules, their twins, the trees, and how close is close enough."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from hypothesis import strategies as st

import jaxopt_course as jc
from experiments.contestants import optax_adagrad, optax_adam_uncorrected
from tests import references

RATE = st.floats(-4, -1).map(lambda x: 10.0**x)
EPS = st.floats(-10, -3).map(lambda x: 10.0**x)
DECAY = st.floats(0, 0.99)


class Rule(NamedTuple):
    """A rule with three twins that we did not derive from it. All take the same hyperparameters by the same names."""

    make: Callable[..., Any]
    lecture: Callable[..., Any]
    optax_twin: Callable[..., Any]
    torch_twin: tuple[str, Callable[..., dict[str, Any]]]
    hyperparameters: dict[str, st.SearchStrategy[float]]
    example: dict[str, float]


RULES = {
    "sgd": Rule(
        jc.sgd,
        references.sgd,
        optax.sgd,
        ("SGD", lambda learning_rate: {"lr": learning_rate}),
        {"learning_rate": RATE},
        {"learning_rate": 0.02},
    ),
    "momentum": Rule(
        jc.momentum,
        references.momentum,
        lambda learning_rate, rho: optax.sgd(learning_rate, momentum=rho),
        ("SGD", lambda learning_rate, rho: {"lr": learning_rate, "momentum": rho}),
        {"learning_rate": RATE, "rho": DECAY},
        {"learning_rate": 0.02, "rho": 0.5},
    ),
    "nesterov": Rule(
        lambda learning_rate, rho: jc.momentum(learning_rate, rho, nesterov=True),
        references.nesterov,
        lambda learning_rate, rho: optax.sgd(learning_rate, momentum=rho, nesterov=True),
        ("SGD", lambda learning_rate, rho: {"lr": learning_rate, "momentum": rho, "nesterov": True}),
        {"learning_rate": RATE, "rho": st.floats(1e-3, 0.99)},
        {"learning_rate": 0.02, "rho": 0.5},
    ),
    "adagrad": Rule(
        jc.adagrad,
        references.adagrad,
        optax_adagrad,
        ("Adagrad", lambda learning_rate, eps: {"lr": learning_rate, "eps": eps}),
        {"learning_rate": RATE, "eps": EPS},
        {"learning_rate": 0.3, "eps": 1e-7},
    ),
    "rmsprop": Rule(
        jc.rmsprop,
        references.rmsprop,
        lambda learning_rate, decay, eps: optax.rmsprop(learning_rate, decay=decay, eps=eps, eps_in_sqrt=False),
        ("RMSprop", lambda learning_rate, decay, eps: {"lr": learning_rate, "alpha": decay, "eps": eps}),
        {"learning_rate": RATE, "decay": DECAY, "eps": EPS},
        {"learning_rate": 0.02, "decay": 0.9, "eps": 1e-7},
    ),
    "adam": Rule(
        jc.adam,
        references.adam,
        lambda learning_rate, b1, b2, eps: optax.adam(learning_rate, b1, b2, eps=eps),
        ("Adam", lambda learning_rate, b1, b2, eps: {"lr": learning_rate, "betas": (b1, b2), "eps": eps}),
        {"learning_rate": RATE, "b1": DECAY, "b2": st.floats(0.5, 0.999), "eps": EPS},
        {"learning_rate": 0.05, "b1": 0.9, "b2": 0.999, "eps": 1e-7},
    ),
    "adam_uncorrected": Rule(
        lambda learning_rate, b1, b2, eps: jc.adam(learning_rate, b1, b2, eps, bias_correction=False),
        references.adam_uncorrected,
        optax_adam_uncorrected,
        ("Adam", lambda learning_rate, b1, b2, eps: {"lr": learning_rate, "betas": (b1, b2), "eps": eps}),
        {"learning_rate": RATE, "b1": DECAY, "b2": st.floats(0.5, 0.999), "eps": EPS},
        {"learning_rate": 0.05, "b1": 0.9, "b2": 0.999, "eps": 1e-7},
    ),
}

TREES: dict[str, Any] = {
    "scalar": (),
    "matrix": (3, 4),
    "classifier": {"W": (3, 4), "b": (3,)},
    "nested": [{"kernel": (2, 3), "gain": ()}, (5,), [(1, 2)]],
}

# Steps, and the largest difference along them relative to the largest parameter.
TOLERANCE = {jnp.float64: (1000, 1e-12), jnp.float32: (50, 5e-6)}

FLOATS = (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16)
