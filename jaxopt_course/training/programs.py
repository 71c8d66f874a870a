"""Compiled functions whose arguments are callables: compiled once for each callable, and freed together with it.

`jax.jit` with a callable as a static argument keeps alive every callable that it has seen, with the arrays that the
callable closes over, and refuses a callable without a hash. A `Program` splits callables into parts instead: their
arrays are data, functions are compared by identity and not kept alive, and everything else is compared by value.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import WeakSet, ref

import jax
import numpy as np

from jaxopt_course.annotations import ArrayLike, PyTree
from jaxopt_course.training.contents import reached_contents

MAX_COMPILED = 128  # most keys of one Program
MAX_KEPT_ALIVE = 16  # most of these keys that keep an object of the user alive


class Program:
    """A compiled function whose first argument is a tree of callables.

    `Program(fn, **options)` is `jax.jit(fn, **options)`, except for the first argument of `fn`, which is a tree of
    callables such as `(objective, optimizer)`.

    - Arrays in a callable that is a pytree (an Equinox module, a NamedTuple), in the arguments of a `partial`, and in
      the object of a bound method are data: other values of the same shape do not cause a new compilation.
    - NumPy arrays that a function reaches (`reached_contents`) are compared by content: if one has changed in place,
      the function is compiled again. They are hashed at every call, or once for many calls with `bound`.
    - Functions, and objects that do not define equality, are compared by identity and held by weak references: when one
      of them is garbage-collected, everything compiled for it is freed, with the arrays that it closed over. (The
      exception is a callable that its own derivative rule refers to, because JAX keeps the rule in the compiled
      program.)
    - Objects with equality and a hash are compared by type and value, objects with equality and no hash by identity.
    - Memory is bounded: a Program holds at most `MAX_COMPILED` keys, of which at most `MAX_KEPT_ALIVE` contain
      objects that a weak reference cannot represent. The least recently used key is dropped first.

    As with `jax.jit`, a change of anything else that a function closes over, such as a number, or an attribute of a
    callable object that is not a pytree, has no effect on what is already compiled. The same holds for every change of
    values reached by a function that was compiled by `jax.jit` itself.

    Args:
      fn: `fn(callables, *args, **kwargs)`, pure.
      **options: those of `jax.jit`; `donate_argnums` counts `callables` as argument 0.

    Example:
      >>> import jax.numpy as jnp
      >>> descend = Program(lambda objective, w: w - 0.1 * jax.grad(objective)(w))
      >>> objective, w = lambda w: jnp.sum((w - 3.0) ** 2), jnp.zeros(2)
      >>> for _ in range(20):
      ...     w = descend(objective, w)
      >>> f"{objective(jnp.zeros(2)):.1f} -> {objective(w):.4f}"
      '18.0 -> 0.0024'
    """

    def __init__(self, fn: Callable[..., Any], **options: Any):
        functools.update_wrapper(self, fn)
        self._fn, self._options = fn, options
        self._compiled: dict[_Key, _Compiled] = {}
        _PROGRAMS.add(self)
        self._clock = itertools.count()

    def __call__(self, callables: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Call the compiled function; compile it first if callables, shapes or static arguments are new."""
        return self.bound(callables)(*args, **kwargs)

    def bound(self, callables: PyTree) -> Callable[..., Any]:
        """Return the compiled function for the current state of these callables."""
        compiled, arrays = self._compiled_for(callables)
        return functools.partial(compiled, arrays)

    def lower(self, callables: PyTree, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Trace and lower for these arguments, as the method `lower` of a function from `jax.jit` does."""
        compiled, arrays = self._compiled_for(callables)
        return compiled.lower(arrays, *args, **kwargs)

    def __len__(self) -> int:
        """Return the number of keys held."""
        return len(self._compiled)

    def _compiled_for(self, callables: PyTree) -> tuple[Any, list[ArrayLike]]:
        """Return the compiled function for these callables, and the arrays in them, which are its first argument."""
        arrays: list[ArrayLike] = []
        try:
            key = _take_apart(callables, arrays, _is_partial)
            found = self._compiled.get(key)
        except (TypeError, ValueError):  # the static part of a pytree has no hash or no equality: do not split it
            arrays = []
            key = _take_apart(callables, arrays, callable)
            found = self._compiled.get(key)
        if found is None:
            found = self._add(key)
        found.last_use = next(self._clock)
        return found.call, arrays

    def _add(self, key: "_Key") -> "_Compiled":
        fn, held = self._fn, self._compiled
        for program in list(_PROGRAMS):  # JAX reuses the old content of a NumPy array while an older trace exists
            program._drop_outdated(key)

        @functools.wraps(fn)
        def call(arrays: list[ArrayLike], *args: Any, **kwargs: Any) -> Any:
            return fn(_put_together(key, iter(arrays)), *args, **kwargs)

        parts = (part.function if isinstance(part, _Holder) else part for part in _parts(key))
        watch = [ref(part(), lambda _: held.pop(key, None)) for part in parts if isinstance(part, ref)]
        new = _Compiled(jax.jit(call, **self._options), watch, _keeps_alive(key), next(self._clock))
        new = held.setdefault(key, new)  # another thread may have been first
        _drop_oldest(held, MAX_KEPT_ALIVE, lambda compiled: compiled.keeps_alive)
        _drop_oldest(held, MAX_COMPILED, lambda compiled: True)
        return new

    def _drop_outdated(self, key: "_Key") -> None:
        """Free functions compiled when an array that this key reaches had other contents."""
        now = dict(pair for holder in _holders(key) for pair in holder.contents)
        for other in list(self._compiled) if now else ():
            then = (pair for holder in _holders(other) for pair in holder.contents)
            if any(now.get(array, content) != content for array, content in then):
                self._compiled.pop(other, None)


_PROGRAMS: WeakSet[Program] = WeakSet()


class _Compiled:
    """The entry of one key: the compiled function, and the weak references that free it."""

    __slots__ = ("call", "keeps_alive", "last_use", "watch")

    def __init__(self, call: Any, watch: list[Any], keeps_alive: bool, last_use: int):
        self.call, self.watch, self.keeps_alive, self.last_use = call, watch, keeps_alive, last_use


class _Key(NamedTuple):
    """Callables without their arrays: the tree's structure, and a part for each leaf."""

    structure: Any
    parts: tuple[Any, ...]


class _Nested(NamedTuple):
    """A part for a leaf that was itself split into parts: `make` builds the leaf from the tree of `key`."""

    make: Callable[[Any], Any]
    key: _Key


class _Holder(NamedTuple):
    """A part for a function that reaches NumPy arrays, which may change."""

    function: ref
    contents: tuple[tuple[int, str], ...]


class _Value(NamedTuple):
    """A part for a leaf compared by type and value; `text` distinguishes 0.0 from -0.0."""

    kind: type
    text: str | None
    value: Any


class _IdentityRef(ref):
    """A weak reference compared by the identity of its referent."""

    __slots__ = ("_id",)
    _id: int

    def __new__(cls, target: Any) -> "_IdentityRef":
        self = super().__new__(cls, target)
        self._id = id(target)
        return self

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _IdentityRef) and self() is not None and self() is other())


class _Identity:
    """A part that keeps its leaf alive, compared by identity, for leaves that do not support weak references."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value


_ARRAY = object()  # the part of a leaf that is data
_PARTIALS = (functools.partial, jax.tree_util.Partial)


def _is_partial(x: Any) -> bool:
    return type(x) in _PARTIALS


def _take_apart(tree: PyTree, arrays: list[ArrayLike], is_leaf: Callable[[Any], bool]) -> _Key:
    """Return the key of a tree of callables, and append its arrays to `arrays`."""
    leaves, structure = jax.tree.flatten(tree, is_leaf)
    return _Key(structure, tuple([_part_of(leaf, arrays, is_leaf) for leaf in leaves]))


def _part_of(leaf: Any, arrays: list[ArrayLike], is_leaf: Callable[[Any], bool]) -> Any:
    kind: Any = type(leaf)
    if kind is FunctionType:
        contents = reached_contents(leaf)
        return _Holder(ref(leaf), contents) if contents else ref(leaf)
    if _is_array(leaf):
        arrays.append(leaf)
        return _ARRAY
    if kind in _PARTIALS:
        return _Nested(_partial, _take_apart((leaf.func, leaf.args, leaf.keywords), arrays, is_leaf))
    if kind is MethodType:
        return _Nested(_method, _take_apart((leaf.__func__, leaf.__self__), arrays, is_leaf))
    try:
        if kind.__eq__ is object.__eq__:
            return ref(leaf)
        if kind.__hash__ is None or not _has_hash(leaf):
            return _IdentityRef(leaf)
    except TypeError:  # weak references are not supported
        return _Identity(leaf)
    return _Value(kind, repr(leaf) if kind in (float, complex) else None, leaf)


def _put_together(key: _Key, arrays: Iterator[ArrayLike]) -> PyTree:
    """Return the tree of a key, with these arrays in it."""
    return key.structure.unflatten([_leaf_of(part, arrays) for part in key.parts])


def _leaf_of(part: Any, arrays: Iterator[ArrayLike]) -> Any:
    if part is _ARRAY:
        return next(arrays)
    if isinstance(part, _Nested):
        return part.make(_put_together(part.key, arrays))
    if isinstance(part, _Holder):
        return part.function()
    return part() if isinstance(part, ref) else part.value


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        numeric = leaf.dtype.kind == "b" or jax.dtypes.issubdtype(leaf.dtype, np.number)
        return numeric and not isinstance(leaf, np.ma.MaskedArray)
    return isinstance(leaf, jax.Array)


def _has_hash(leaf: Any) -> bool:
    try:
        hash(leaf)
    except TypeError:
        return False
    return True


def _partial(taken: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> Any:
    func, args, keywords = taken
    return functools.partial(func, *args, **keywords)


def _method(taken: tuple[Any, Any]) -> Any:
    return MethodType(*taken)


def _parts(key: _Key) -> Iterator[Any]:
    for part in key.parts:
        yield from _parts(part.key) if isinstance(part, _Nested) else (part,)


def _holders(key: _Key) -> Iterator[_Holder]:
    return (part for part in _parts(key) if isinstance(part, _Holder))


def _keeps_alive(key: _Key) -> bool:
    """Whether the key has a strong reference to an object of the user: a value, or the static part of a pytree."""
    nested = any(_keeps_alive(part.key) for part in key.parts if isinstance(part, _Nested))
    return nested or _has_aux_data(key.structure) or any(isinstance(p, _Value | _Identity) for p in key.parts)


def _has_aux_data(structure: Any) -> bool:
    kind, aux_data = structure.node_data() or (None, None)  # a leaf has no node
    return (aux_data is not None and kind is not dict) or any(map(_has_aux_data, structure.children()))


def _drop_oldest(held: "dict[_Key, _Compiled]", most: int, counts: "Callable[[_Compiled], bool]") -> None:
    """Drop the least recently used entries for which `counts` is true, until at most `most` of them are left."""
    entries = sorted((item for item in list(held.items()) if counts(item[1])), key=lambda item: item[1].last_use)
    for key, _ in entries[: max(0, len(entries) - most)]:
        held.pop(key, None)
