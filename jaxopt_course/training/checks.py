"""Argument checks shared by the loops. Each message says what was given, what is expected and what to do."""

import inspect
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import PyTree
from jaxopt_course.arrays import check_arrays

MAX_LISTED = 8  # most arrays that a message lists
SHORT_NAMES = {"jaxopt_course": "jc", "optax": "optax"}


def whole_number(caller: str, name: str, value: Any, least: int) -> int:
    """Return `value` as an int. Accepts ints, NumPy integers and floats without a fractional part, at least `least`.

    Raises:
      TypeError: a bool, or not a number.
      ValueError: a number with a fractional part, or below `least`.
    """
    array = np.asarray(value) if isinstance(value, int | float | np.generic | np.ndarray | jax.Array) else None
    if array is None or array.ndim or array.dtype.kind not in "iuf":
        raise TypeError(f"{caller}: {name} must be a whole number, got {_brief(value)}")
    number = array.item()
    if number != number or number in (float("inf"), -float("inf")) or number != int(number):
        raise ValueError(f"{caller}: {name} must be a whole number, got {number}")
    if number < least:
        raise ValueError(f"{caller}: {name} must be at least {least}, got {int(number)}")
    return operator.index(int(number))


def check_optimizer_argument(caller: str, optimizer: Any) -> None:
    """Raise TypeError if the argument is not an optimizer; the message says if it is a factory that was not called."""
    if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return
    if callable(optimizer):
        name = _dotted_name(optimizer)
        raise TypeError(f"{caller}: {name} is a factory; call it: {name}({_example_arguments(optimizer)})")
    raise TypeError(
        f"{caller}: the optimizer must have init and update, such as jc.adam(0.01) or optax.adam(0.01); "
        f"got {_brief(optimizer)}"
    )


def check_key_argument(caller: str, key: Any) -> None:
    """Raise TypeError or ValueError if the argument is not a single `jax.random` key."""
    try:
        shape = np.shape(jax.random.key_data(key))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{caller}: key must be a random key, such as jax.random.key(0); got {_brief(key)}") from error
    if len(shape) != 1:
        raise ValueError(f"{caller}: key must be one random key, got an array of keys of shape {shape[:-1]}")


def check_objective_argument(caller: str, objective: Any, *argument_names: str) -> None:
    """Raise TypeError if the argument is not a function that accepts one argument for each name."""
    wanted = f"({', '.join(argument_names)})"
    if not callable(objective):
        raise TypeError(f"{caller}: the objective must be a function {wanted} -> scalar, got {_brief(objective)}")
    try:
        signature = inspect.signature(objective)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    try:
        signature.bind(*argument_names)
    except TypeError as error:
        raise TypeError(
            f"{caller}: the objective is called as objective{wanted}, but {_dotted_name(objective)} takes "
            f"{signature}: {error}"
        ) from error


def check_objective_value(caller: str, returned: Any, has_aux: bool) -> None:
    """Raise ValueError if an objective did not return a floating-point scalar, or `(scalar, aux)` with `has_aux`."""
    if has_aux:
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise ValueError(
                f"{caller}: with has_aux=True the objective must return (value, aux), got {_brief(returned)}"
            )
        returned = returned[0]
    elif isinstance(returned, tuple | list | dict) or returned is None:
        hint = "; for (value, aux) pass has_aux=True" if isinstance(returned, tuple) else ""
        raise ValueError(f"{caller}: the objective must return a scalar, got {_brief(returned)}{hint}")
    if jnp.shape(returned) != ():
        raise ValueError(
            f"{caller}: the objective must return a scalar, got shape {jnp.shape(returned)}; take the mean"
        )
    if not jnp.issubdtype(jnp.result_type(returned), jnp.floating):
        raise ValueError(
            f"{caller}: the objective must return a real floating-point scalar, got {jnp.result_type(returned)}"
        )


def check_not_traced(caller: str, **trees: PyTree) -> None:
    """Raise TypeError if a tree contains a tracer, because the caller is then under jit, vmap or grad."""
    for name, tree in trees.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
            raise TypeError(
                f"{caller}: {name} is traced. {caller} is a Python loop and does not run under jit, vmap or grad; "
                "use the pure function training.train_steps instead"
            )


def num_examples_of(caller: str, data: PyTree) -> int:
    """Return N, the length of the first axis, which is the same for every array of the data.

    Raises:
      ValueError: no data, leaves that are not arrays of numbers, or arrays of different lengths.
    """
    check_arrays(f"{caller}: data", data)
    leaves = {f"data{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(data)}
    if not leaves:
        raise ValueError(f"{caller}: the data has no arrays")
    for name, leaf in leaves.items():
        _check_array(f"{caller}: {name}", leaf, len(leaves))
    lengths = {leaf.shape[0] for leaf in leaves.values()}
    if len(lengths) > 1:
        listed = ", ".join(f"{name} {leaf.shape}" for name, leaf in [*leaves.items()][:MAX_LISTED])
        more = f" and {len(leaves) - MAX_LISTED} more" if len(leaves) > MAX_LISTED else ""
        raise ValueError(
            f"{caller}: every array of the data must have the same number of examples first, got {listed}{more}"
        )
    return int(lengths.pop())


def _check_array(name: str, leaf: Any, num_leaves: int) -> None:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        lists = "; lists are trees: convert them with numpy.asarray" if num_leaves > 1 else ""
        raise ValueError(f"{name} is a {type(leaf).__name__}, expected an array with a leading axis of examples{lists}")
    if not leaf.shape:
        raise ValueError(f"{name} is a scalar of dtype {leaf.dtype}, expected a leading axis of examples")
    if isinstance(leaf.dtype, np.dtype) and leaf.dtype.kind in "OSUMm":
        raise ValueError(f"{name} has dtype {leaf.dtype}, expected numbers or booleans")


def _brief(value: Any) -> str:
    """Return a short description of a value of any size."""
    if isinstance(value, bool | int | float | str | None | np.bool_):
        return f"{type(value).__name__} {value!r}"[:80]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"


def _dotted_name(function: Any) -> str:
    """Return the name as a user writes it: `jc.adam`, `optax.adam`."""
    function = getattr(function, "func", function)  # of a partial
    name = getattr(function, "__qualname__", type(function).__name__)
    package = str(getattr(function, "__module__", "")).split(".")[0]
    return f"{SHORT_NAMES[package]}.{name}" if package in SHORT_NAMES else name


def _example_arguments(factory: Any) -> str:
    try:
        parameters = [*inspect.signature(factory).parameters.values()]
    except (TypeError, ValueError):
        return ""
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if parameters and parameters[0].name == "learning_rate" and parameters[0].default is not None and needed[1:] == []:
        return "0.01"
    return ", ".join("0.01" if name == "learning_rate" else name for name in needed)
