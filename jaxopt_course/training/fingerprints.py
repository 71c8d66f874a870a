"""Fingerprints of functions and arrays: equal in every process for the same run, different for different runs.

A function is compared by its jaxpr: operations, parameters, literals and the values of all constants, without names,
addresses, source lines or placement on devices. Arrays are compared by the SHA-256 of every byte.
"""

import dataclasses
import enum
import hashlib
import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxopt_course.annotations import PyTree

HASH_LIMIT_BYTES = 64 * 2**30  # of one tree; for a larger tree, an evenly spread sample of this size is hashed
PIECE_BYTES = 2**24  # hashed at once: small enough to copy, large enough that the GIL is released
MAX_LISTED = 64  # most numbers and constants that a fingerprint lists to describe differences
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Names, placements and compiler hints do not change any number.
IGNORED_PARAMETERS = {"name", "inline", "keep_unused", "donated_invars", "ctx_mesh", "policy", "debug_info"}
IGNORED_ENDINGS = ("sharding", "shardings", "layout", "layouts", "src_info", "source_info")


class Cancelled(Exception):
    """The result of a hash is no longer wanted."""


def trace(function: Callable[..., Any], *args: PyTree) -> Any:
    """Return the jaxpr of `function`, traced again on the shapes and dtypes of `args`."""
    return jax.make_jaxpr(lambda *leaves: function(*leaves))(*args)  # a new function, because JAX caches traces


def constant_bytes(jaxpr: Any) -> int:
    """Return the bytes of the arrays that a traced function closes over, including those of nested functions."""
    return sum(np.size(value) * jnp.result_type(value).itemsize for value in _constants(jaxpr.jaxpr, jaxpr.consts))


def fingerprint_function(jaxpr: Any) -> dict[str, Any]:
    """Return the fingerprint of a traced function, as JSON.

    Two functions are equal if `hash` is equal. `numbers`, `operations` and `constants` describe the function, in order
    to name differences. `opaque` lists Python functions that it calls and that cannot be compared, such as the target
    of a `jax.pure_callback`.

    The rules of `custom_jvp` and `custom_vjp` are ignored if they are not applied: the traced function is the step
    itself, in which every derivative is already an operation.
    """
    writer = _Writer()
    writer.jaxpr(jaxpr.jaxpr, jaxpr.consts)
    return {
        "hash": writer.digest.hexdigest(),
        "numbers": [*writer.numbers][:MAX_LISTED],
        "operations": dict(writer.operations),
        "constants": writer.constants[:MAX_LISTED],
        "opaque": sorted(writer.opaque),
    }


def fingerprint_arrays(
    tree: PyTree, blocks: int = 1, limit: int | None = None, cancelled: threading.Event | None = None
) -> dict[str, Any]:
    """Return dtype, shape and hashes of every leaf of a tree of arrays, by path, as JSON.

    Each leaf is hashed in up to `blocks` ranges of rows, so that a difference can be located. If the tree takes more
    than `limit` bytes (by default `HASH_LIMIT_BYTES`), only the first rows of each range are hashed, and `rows_hashed`
    counts them.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    limit = HASH_LIMIT_BYTES if limit is None else limit
    share = limit / max(limit, sum(leaf.nbytes for leaf in leaves.values() if hasattr(leaf, "nbytes")))
    return {path: _fingerprint_array(leaf, blocks, share, cancelled) for path, leaf in leaves.items()}


def row_ranges(num_rows: int, blocks: int) -> list[tuple[int, int]]:
    """Return the ranges of rows that are hashed separately."""
    blocks = max(1, min(blocks, num_rows))
    edges = [num_rows * i // blocks for i in range(blocks + 1)]
    return [*itertools.pairwise(edges)]


def _fingerprint_array(leaf: Any, blocks: int, share: float, cancelled: threading.Event | None) -> dict[str, Any]:
    array = np.asarray(leaf)
    shape, rows = list(array.shape), array if array.ndim else array[None]
    hashes, hashed = [], 0
    for first, last in row_ranges(len(rows), blocks):
        last = first + max(min(1, last - first), int((last - first) * share))
        hashes.append(_hash_rows(rows[first:last], cancelled))
        hashed += last - first
    return {"dtype": array.dtype.name, "shape": shape, "blocks": hashes, "rows": len(rows), "rows_hashed": hashed}


def _hash_rows(rows: np.ndarray, cancelled: threading.Event | None) -> str:
    digest = hashlib.sha256()
    at_once = max(1, PIECE_BYTES // max(1, rows[:1].nbytes))
    for first in range(0, len(rows), at_once):
        if cancelled is not None and cancelled.is_set():
            raise Cancelled
        digest.update(_bytes(rows[first : first + at_once]))
    return digest.hexdigest()[:32]


def _bytes(array: np.ndarray) -> memoryview:
    """Return the bytes in row-major order, copied only if they are stored in another order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class _Writer:
    """Writes jaxprs in a canonical form into a hash, and collects operations, numbers and constants."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.numbers: dict[str, None] = {}
        self.operations: Counter[str] = Counter()
        self.constants: list[str] = []
        self.opaque: set[str] = set()

    def write(self, *words: object) -> None:
        self.digest.update("".join(f"{word}\0" for word in words).encode())

    def jaxpr(self, jaxpr: Any, consts: Any = ()) -> None:
        names: dict[Any, int] = {}
        for variables in (jaxpr.constvars, jaxpr.invars):
            self.write("inputs", *(self.define(variable, names) for variable in variables))
        for value in consts:
            self.array(value)
        for equation in jaxpr.eqns:
            primitive = equation.primitive.name
            self.operations[primitive] += 1
            self.write("operation", primitive)
            for atom in equation.invars:
                self.atom(atom, names)
            for key in sorted(equation.params):
                if key not in IGNORED_PARAMETERS and not key.endswith(IGNORED_ENDINGS):
                    self.write("parameter", key)
                    self.value(equation.params[key], primitive)
            self.write("outputs", *(self.define(variable, names) for variable in equation.outvars))
        self.write("results")
        for atom in jaxpr.outvars:
            self.atom(atom, names)

    def define(self, variable: Any, names: dict[Any, int]) -> str:
        names[variable] = len(names)
        return _type_name(variable.aval)

    def atom(self, atom: Any, names: dict[Any, int]) -> None:
        if hasattr(atom, "val"):
            self.literal(atom.val, atom.aval)
        else:
            self.write("variable", names[atom])

    def literal(self, value: Any, aval: Any) -> None:
        array = np.asarray(value)
        self.write("literal", _type_name(aval), array.astype(aval.dtype).tobytes().hex())
        if array.size == 1:
            self.numbers[f"{array.item():.8g}" if array.dtype.kind in "iuf" else f"{array.item()}"] = None

    def array(self, value: Any) -> None:
        if jnp.issubdtype(getattr(value, "dtype", np.dtype(bool)), jax.dtypes.prng_key):
            self.write("key", jax.random.key_impl(value))
            value = jax.random.key_data(value)
        array = np.asarray(value)
        kind, digest = f"{array.dtype.name}{list(array.shape)}", hashlib.sha256(_bytes(array)).hexdigest()[:32]
        self.write("constant", kind, digest)
        self.constants.append(f"{kind} {digest}")

    def value(self, value: Any, primitive: str) -> None:
        """Write a parameter of an operation, of any type."""
        if value is None or isinstance(value, bool | str | bytes | float | complex):
            self.write(type(value).__name__, repr(value))
        elif isinstance(value, int | np.integer):
            self.write("int", int(value))
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            self.array(value)
        elif hasattr(value, "jaxpr") and hasattr(value, "consts"):
            self.jaxpr(value.jaxpr, value.consts)
        elif hasattr(value, "eqns") and hasattr(value, "invars"):
            self.jaxpr(value)
        elif isinstance(value, Mesh | AbstractMesh):
            self.write("mesh", *value.shape.items())
        elif isinstance(value, enum.Enum):
            self.write(type(value).__name__, value.name)
        elif members := _members(value):
            self.write(type(value).__name__, len(members))
            for name, member in members:
                self.write(name)
                self.value(member, primitive)
        else:
            self.object(value, primitive)

    def object(self, value: Any, primitive: str) -> None:
        """Write an object by its name or its repr."""
        if callable(value) and not isinstance(value, type):
            if primitive.startswith("custom_"):  # a derivative rule that is not applied any more
                return
            name = _function_name(value)
            if not primitive.startswith("debug"):  # prints do not change any number
                self.opaque.add(f"{primitive} of {name}")
            self.write("function", name)
            return
        text = repr(value)
        if ADDRESS.search(text):
            self.opaque.add(f"{primitive} with {type(value).__name__}")
        self.write(type(value).__name__, ADDRESS.sub("", text))


def _members(value: Any) -> list[tuple[Any, Any]]:
    """Return the parts of a container in an order that is the same in every process; none for other values."""
    if isinstance(value, tuple | list):
        return [*enumerate(value), ("end", None)]
    if isinstance(value, dict) or hasattr(value, "items"):
        return [*sorted(((str(key), member) for key, member in value.items()), key=lambda item: item[0]), ("end", None)]
    if isinstance(value, set | frozenset):
        return [*((i, text) for i, text in enumerate(sorted(map(repr, value)))), ("end", None)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not callable(value):
        names = (field.name for field in dataclasses.fields(value) if field.name not in IGNORED_PARAMETERS)
        return [(n, getattr(value, n, None)) for n in names if not n.endswith(IGNORED_ENDINGS)] + [("end", None)]
    return []


def _constants(jaxpr: Any, consts: Any) -> Iterator[Any]:
    yield from consts
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr") and hasattr(inner, "consts"):
                    yield from _constants(inner.jaxpr, inner.consts)
                elif hasattr(inner, "eqns") and hasattr(inner, "invars"):
                    yield from _constants(inner, ())


def _type_name(aval: Any) -> str:
    return f"{getattr(aval, 'dtype', aval)}{list(getattr(aval, 'shape', ()))}"


def _function_name(function: Any) -> str:
    for attribute in ("callback_func", "func", "__wrapped__"):
        function = getattr(function, attribute, function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}.{name}"
