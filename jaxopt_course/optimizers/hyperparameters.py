"""Hyperparameters: numbers are checked against their range, traced values are not.

A checked hyperparameter is a Python float, which adopts the dtype of the array it is combined with, or a traced scalar
of JAX's default floating dtype, which `leaves.map_leaves` casts to the dtype of each leaf.
"""

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Hashable
from types import FunctionType, NoneType
from typing import Any, ParamSpec, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, Optimizer

Scalar: TypeAlias = float | Array  # what a rule computes with
Number: TypeAlias = float | int | np.number | np.ndarray | Array  # what a caller gives: a number or a scalar array
Schedule: TypeAlias = Callable[[Array], Number]  # step count -> learning rate
Rate: TypeAlias = Number | Schedule

P = ParamSpec("P")
CACHE_SIZE = 256  # optimizers kept for each factory


def learning_rate_at(learning_rate: Rate) -> Callable[[Array | None], Scalar]:
    """Return `count -> learning rate` for a number, a traced scalar or a schedule. 0 is legal: warm-ups start at 0."""
    if callable(learning_rate):
        schedule: Callable[..., Number] = learning_rate
        return lambda count: _as_scalar("learning_rate(count)", schedule(count))
    rate = not_negative("learning_rate", learning_rate)
    return lambda count: rate


def not_negative(name: str, value: Number) -> Scalar:
    """Return the value as a checked hyperparameter, a finite number >= 0."""
    return _checked(name, value, lambda x: 0 <= x < np.inf, "a finite number >= 0")


def decay_rate(name: str, value: Number) -> Scalar:
    """Return the value as a checked hyperparameter in [0, 1)."""
    return _checked(name, value, lambda x: 0 <= x < 1, "a number in [0, 1)")


def _checked(name: str, value: Number, legal: Callable[[float], bool], expected: str) -> Scalar:
    scalar = _as_scalar(name, value)
    if isinstance(scalar, float) and not legal(scalar):  # NaN is never legal
        raise ValueError(f"{name} must be {expected}, got {scalar}")
    return scalar


def _as_scalar(name: str, value: Number) -> Scalar:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        raise TypeError(f"{name} must be a number or a scalar array, got {type(value).__name__}: {value!r}")
    if np.ndim(value) != 0:
        raise ValueError(
            f"{name} must be a scalar, got shape {np.shape(value)}; to run many values at once, vmap over it"
        )
    return jnp.asarray(value, float) if isinstance(value, jax.core.Tracer) else float(value)


def cached_factory(factory: Callable[P, Optimizer]) -> Callable[P, Optimizer]:
    """Make `factory` return the same optimizer for the same arguments, so that `jit` reuses functions compiled for it.

    Arguments that are compared: plain numbers, NumPy scalars, booleans and None, by type and value (1, 1.0 and True
    differ, and so do 0.0 and -0.0); functions that are module attributes or that close over nothing, by identity; and
    partials of these. A call with any other argument (an array, a tracer, a closure such as an optax schedule) makes
    a new optimizer, and the cache keeps no reference to that argument. The last `CACHE_SIZE` optimizers are kept.
    Thread-safe.

    Args:
      factory: hyperparameters -> optimizer. It must not make arrays, because under `jit` they would be tracers.

    Returns:
      The factory with the same signature and docstring.
    """
    signature = inspect.signature(factory)
    made: dict[Hashable, Optimizer] = {}
    lock = threading.Lock()

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Optimizer:
        try:
            key = _call_key(signature, args, kwargs)
        except TypeError:  # an argument that cannot be compared, or arguments that the factory does not accept
            return factory(*args, **kwargs)
        with lock:
            optimizer = made.pop(key, None) or factory(*args, **kwargs)
            made[key] = optimizer  # reinserted at the end: the most recently used is last
            if len(made) > CACHE_SIZE:
                del made[next(iter(made))]
        return optimizer

    return make


def _call_key(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return tuple((name, _key(value)) for name, value in bound.arguments.items())


def _key(value: Any) -> Hashable:
    """Return a key that two values share only if they are interchangeable. Raise TypeError if there is no such key."""
    if type(value) in (bool, int, float, NoneType) or isinstance(value, np.number | np.bool_):
        return type(value), repr(value)  # repr distinguishes -0.0 from 0.0, and makes NaN equal to itself
    if isinstance(value, functools.partial):
        options = tuple((name, _key(option)) for name, option in sorted(value.keywords.items()))
        return functools.partial, _key(value.func), tuple(map(_key, value.args)), options
    if isinstance(value, FunctionType) and (_closes_over_nothing(value) or _is_named(value)):
        return FunctionType, value
    raise TypeError(f"values of type {type(value).__name__} are not compared")


def _closes_over_nothing(function: FunctionType) -> bool:
    return function.__closure__ is None and not function.__defaults__ and not function.__kwdefaults__


def _is_named(function: FunctionType) -> bool:
    """Whether the function is an attribute of its module, which then keeps it alive."""
    return getattr(sys.modules.get(function.__module__), function.__qualname__, None) is function
