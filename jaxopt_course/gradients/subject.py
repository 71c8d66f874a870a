"""The function under examination: what of its arguments moves, and what it reads out.

Differentiable leaves are laid out as one row of real coordinates, leaf after leaf; a complex leaf takes two stretches,
its real parts and then its imaginary parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array

Leaves = list[Any]


class Part(NamedTuple):
    """A differentiable leaf and its place in the row of coordinates."""

    path: str  # for people
    place: str  # in the tree of the gradient
    shape: tuple[int, ...]
    dtype: Any
    first: int
    keys: tuple[Any, ...] = ()  # of the path

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_complex(self) -> bool:
        return bool(jnp.issubdtype(self.dtype, jnp.complexfloating))

    @property
    def last(self) -> int:
        return self.first + self.size * (2 if self.is_complex else 1)

    def index_of(self, coordinate: int) -> tuple[int, ...]:
        """The index in the leaf of a coordinate in the row."""
        return tuple(int(i) for i in np.unravel_index((coordinate - self.first) % self.size, self.shape))

    def component(self, coordinate: int) -> str:
        return "" if not self.is_complex else ".real" if coordinate - self.first < self.size else ".imag"


class Same:
    """Stands for an object among the static arguments of a compiled function: equal only to itself."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and (self.value is other.value)

    def __hash__(self) -> int:
        return id(self.value)


class Fresh(Same):
    """Equal to nothing that came before: what is compiled for it is compiled anew, and goes when it goes."""

    def __init__(self, value: Any):
        super().__init__(value)
        self.programs: dict[Any, Any] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Subject:
    """`f` with its arguments taken apart; hashable, so that the same question is compiled once."""

    f: Same
    treedef: Any
    kinds: tuple[Any, ...]  # of each leaf of the arguments: "moves", "data", or the leaf itself where it is no array
    has_aux: bool

    def arguments(self, moving: Leaves, data: Leaves) -> tuple[Any, ...]:
        rest = {"moves": iter(moving), "data": iter(data)}
        leaves = [next(rest[kind]) if isinstance(kind, str) else kind.value for kind in self.kinds]
        return jax.tree.unflatten(self.treedef, leaves)

    def __call__(self, moving: Leaves, data: Leaves) -> Any:
        out = self.f.value(*self.arguments(moving, data))
        return out[0] if self.has_aux else out

    def outputs(self, moving: Leaves, data: Leaves) -> Leaves:
        """The leaves that can be differentiated, of what f returns."""
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(self(moving, data))]
        return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]


class Skipped(NamedTuple):
    path: str
    place: str
    dtype: str


class Arguments(NamedTuple):
    subject: Subject
    moving: Leaves
    data: Leaves
    parts: tuple[Part, ...]
    skipped: tuple[Skipped, ...]

    @property
    def num_coordinates(self) -> int:
        return self.parts[-1].last


def take_apart(
    name: str, f: Callable[..., Any], args: Sequence[Any], argnums: int | tuple[int, ...], has_aux: bool
) -> Arguments:
    """Sort the leaves of the arguments. Python numbers that are not differentiated stay as they are, as in `jax.grad`.

    Raises TypeError where there is nothing to differentiate, ValueError where argnums names no argument.
    """
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not chosen or not all(-len(args) <= i < len(args) for i in chosen):
        raise ValueError(f"{name}: argnums = {argnums}, but f was given {len(args)} arguments")
    chosen = tuple(i % len(args) for i in chosen)
    kinds: list[Any] = []
    moving: Leaves = []
    data: Leaves = []
    parts: list[Part] = []
    skipped: list[Skipped] = []
    for (argument, *rest), leaf in jax.tree_util.tree_leaves_with_path(tuple(args)):
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        if argument.idx in chosen:
            inside = jax.tree_util.keystr(tuple(rest))
            path, place = f"params{inside}", inside
            if not isinstance(argnums, int):
                path, place = f"args[{argument.idx}]{inside}", f"[{chosen.index(argument.idx)}]{inside}"
            is_number = is_array or isinstance(leaf, bool | int | float | complex)
            dtype = jax.dtypes.result_type(leaf) if is_number else type(leaf).__name__
            if is_number and jnp.issubdtype(dtype, jnp.inexact):
                leaf = jnp.asarray(leaf)
                first = parts[-1].last if parts else 0
                keys = tuple(getattr(k, "key", getattr(k, "idx", getattr(k, "name", None))) for k in rest)
                parts.append(Part(path, place, leaf.shape, np.dtype(leaf.dtype), first, keys))
                kinds.append("moves")
                moving.append(leaf)
                continue
            skipped.append(Skipped(path, place, str(dtype)))
        kinds.append("data" if is_array else Same(leaf))
        if is_array:
            data.append(jnp.asarray(leaf))
    if not parts or parts[-1].last == 0:
        what = "it holds " + ", ".join(f"{s.path} ({s.dtype})" for s in skipped) if skipped else "it is empty"
        raise TypeError(f"{name}: there is nothing to differentiate in params: {what}; expected floating-point leaves")
    if parts[-1].last >= 2**31:
        raise ValueError(f"{name}: {parts[-1].last} coordinates; at most {2**31 - 1} can be checked at once")
    # What a jitted f does is fixed when it is first traced; a plain one may have been mended since, in what it calls.
    held = Same(f) if hasattr(f, "lower") else Fresh(f)
    subject = Subject(held, jax.tree.structure(tuple(args)), tuple(kinds), has_aux)
    return Arguments(subject, moving, data, tuple(parts), tuple(skipped))


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]


def run_plainly(title: str, args: Arguments) -> Leaves:
    """f as the user would call it: at the point, in his dtype, not compiled. [the differentiable outputs]"""
    try:
        outputs = args.subject.outputs(args.moving, args.data)
    except Exception as error:
        error.add_note(f"{title}: raised by f itself at the point that was to be checked")
        raise
    if not outputs or not sum(leaf.size for leaf in outputs):
        raise TypeError(f"{title}: f returns nothing that can be differentiated; expected floating-point numbers")
    return [np.asarray(leaf) for leaf in outputs]


def random_generator(key: Array | None) -> np.random.Generator:
    return np.random.default_rng([] if key is None else np.asarray(jax.random.key_data(key)).ravel().tolist())
