"""Hashes of the NumPy arrays that a function reaches, which may change in place after the function was compiled."""

import functools
import hashlib
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import numpy as np

LIBRARIES = {"jaxopt_course", "jax", "optax"}  # their global variables do not change


def reached_contents(function: FunctionType) -> tuple[tuple[int, str], ...]:
    """Return the `id` and a hash of every NumPy array that a function reaches.

    These are the arrays in its closure, in its default arguments and in the global variables that it names, also inside
    tuples, lists and dicts, and the arrays that functions found in these places reach. Global functions of other
    modules are not followed, and neither are the global variables of this library, JAX and optax.
    """
    seen, waiting, found = {id(function)}, [function], []
    while waiting:
        current = waiting.pop()
        for value in _values(current):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, FunctionType):
                waiting.append(value)
            elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
                found.append((id(value), _hash(value)))
    return tuple(found)


def _values(function: FunctionType) -> Iterator[Any]:
    """Yield the values in the closure, the defaults and the global variables of a function."""
    for cell in function.__closure__ or ():
        try:
            yield from _members(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield from _members(default)
    namespace = function.__globals__
    if str(namespace.get("__name__")).split(".")[0] in LIBRARIES:
        return
    for name in _names(function.__code__):
        for value in _members(namespace.get(name)):
            if not isinstance(value, FunctionType) or value.__globals__ is namespace:
                yield value


def _members(value: Any) -> tuple[Any, ...]:
    if isinstance(value, tuple | list):
        return tuple(value)
    return tuple(value.values()) if isinstance(value, dict) else (value,)


@functools.lru_cache(maxsize=1024)
def _names(code: CodeType) -> frozenset[str]:
    """Return the names that a code object looks up, including those of nested functions."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return frozenset(code.co_names).union(*inner)


def _hash(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
