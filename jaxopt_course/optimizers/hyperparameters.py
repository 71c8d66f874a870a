"""Hyperparameters: checked where their value is known, left alone where it is traced, always safe to compute with.

What comes out is a Python float, which takes the dtype of the array it meets, or a traced scalar of JAX's default
floating dtype, which `leaves.map_leaves` casts to each leaf.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array

Scalar = float | Array
Schedule = Callable[[Array], Any]
Rate = Any  # a number, a traced scalar, or a schedule


def learning_rate_at(learning_rate: Rate) -> Callable[[Any], Scalar]:
    """`count -> learning rate`, for a number, a traced scalar or a schedule alike."""
    if callable(learning_rate):
        return lambda count: _as_scalar("learning_rate(count)", learning_rate(count))
    rate = positive("learning_rate", learning_rate)
    return lambda count: rate


def positive(name: str, value: Any) -> Scalar:
    return _checked(name, value, lambda x: 0 < x < np.inf, "a finite number > 0")


def not_negative(name: str, value: Any) -> Scalar:
    return _checked(name, value, lambda x: 0 <= x < np.inf, "a finite number >= 0")


def decay_rate(name: str, value: Any) -> Scalar:
    return _checked(name, value, lambda x: 0 <= x < 1, "a number in [0, 1)")


def _checked(name: str, value: Any, legal: Callable[[float], bool], expected: str) -> Scalar:
    scalar = _as_scalar(name, value)
    if isinstance(scalar, float) and not legal(scalar):  # NaN is never legal
        raise ValueError(f"{name} must be {expected}, got {scalar}")
    return scalar


def _as_scalar(name: str, value: Any) -> Scalar:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        raise TypeError(f"{name} must be a number or a scalar array, got {type(value).__name__}: {value!r}")
    if np.ndim(value) != 0:
        raise ValueError(
            f"{name} must be a scalar, got shape {np.shape(value)}; to run many values at once, vmap over it"
        )
    return jnp.asarray(value, float) if isinstance(value, jax.core.Tracer) else float(value)
