"""The checked function: its differentiable leaves, the readings of its outputs, and its float64 form.

Differentiable leaves are arranged as one row of real coordinates, leaf after leaf; a complex leaf takes two ranges, its
real parts and then its imaginary parts. The outputs are reduced to M real readings, each with a cotangent.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, ArrayLike, PyTree

Leaves: TypeAlias = Sequence[ArrayLike]
Number: TypeAlias = ArrayLike | np.generic | float | int
Function: TypeAlias = Callable[..., PyTree]

JACOBIAN = 2**22  # up to this many entries of a Jacobian, each component of the outputs is a reading
MOST_OUTPUTS = 1024
PROJECTIONS = 4  # number of random mixtures of the outputs that are read if there are more
UNIT = 96  # weights are int8 and mean weight / 96, so that a direction takes one byte per coordinate


class Part(NamedTuple):
    """A differentiable leaf and its place in the row of coordinates."""

    path: str  # for messages
    place: str  # in the tree of the gradient
    shape: tuple[int, ...]
    dtype: np.dtype
    first: int
    keys: tuple[object, ...] = ()  # of the path

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
        """Return the index in the leaf of a coordinate in the row."""
        return tuple(int(i) for i in np.unravel_index((coordinate - self.first) % self.size, self.shape))

    def component(self, coordinate: int) -> str:
        return "" if not self.is_complex else ".real" if coordinate - self.first < self.size else ".imag"


class ByIdentity:
    """A static argument of a compiled function that is compared by the identity of its object."""

    def __init__(self, value: PyTree):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and (self.value is other.value)

    def __hash__(self) -> int:
        return id(self.value)


class NeverEqual(ByIdentity):
    """A static argument that equals no earlier one: functions are compiled again for it, and are freed with it."""

    def __init__(self, value: PyTree):
        super().__init__(value)
        self.programs: dict[tuple[object, ...], Function] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Subject:
    """`f` with its arguments split into leaves; hashable, so that the same subject is compiled once."""

    f: ByIdentity
    treedef: jax.tree_util.PyTreeDef
    kinds: tuple[
        str | ByIdentity, ...
    ]  # of each leaf of the arguments: "moves", "data", or the leaf itself if it is not an array
    has_aux: bool

    def arguments(self, moving: Leaves, data: Leaves) -> tuple[PyTree, ...]:
        rest = {"moves": iter(moving), "data": iter(data)}
        leaves = [next(rest[kind]) if isinstance(kind, str) else kind.value for kind in self.kinds]
        return jax.tree.unflatten(self.treedef, leaves)

    def outputs(self, moving: Leaves, data: Leaves) -> Leaves:
        """Return the leaves of the output of f that can be differentiated."""
        out = self.f.value(*self.arguments(moving, data))
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(out[0] if self.has_aux else out)]
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
    sizes: np.ndarray  # [L]: the root mean square of each leaf

    @property
    def num_coordinates(self) -> int:
        return self.parts[-1].last

    def like_weights(self, row: np.ndarray) -> Leaves:
        """Split a row with a number for each coordinate into leaves; `[2, *shape]` for a complex leaf."""
        pieces = np.split(row, [part.first for part in self.parts[1:]])
        return [x.reshape((2, *p.shape) if p.is_complex else p.shape) for x, p in zip(pieces, self.parts, strict=True)]


class Readings(NamedTuple):
    """The reduction of outputs to M real numbers: cotangents [M, *shape] of each output, and a name for each reading.

    `each`: whether the readings are the single components of the outputs; otherwise they are random mixtures.
    """

    cotangents: Leaves
    labels: tuple[str, ...]
    each: bool

    def of(self, outputs: Leaves) -> ArrayLike:
        return read(outputs, None if self.each else self.cotangents)


def split_arguments(
    name: str, f: Function, args: Sequence[PyTree], argnums: int | tuple[int, ...], has_aux: bool
) -> Arguments:
    """Sort the leaves of the arguments. Python numbers that are not differentiated are not converted, as in `jax.grad`.

    Raises TypeError if there is nothing to differentiate, ValueError if argnums does not name an argument.
    """
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not chosen or not all(-len(args) <= i < len(args) for i in chosen):
        raise ValueError(f"{name}: argnums = {argnums}, but f was given {len(args)} arguments")
    places = {i % len(args): "" if isinstance(argnums, int) else f"[{k}]" for k, i in enumerate(chosen)}
    kinds: list[str | ByIdentity] = []
    moving: list[ArrayLike] = []
    data: list[ArrayLike] = []
    parts: list[Part] = []
    skipped: list[Skipped] = []
    for (argument, *rest), leaf in jax.tree_util.tree_leaves_with_path(tuple(args)):
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        if argument.idx in places:
            inside = jax.tree_util.keystr(tuple(rest))
            path = f"params{inside}" if isinstance(argnums, int) else f"args[{argument.idx}]{inside}"
            is_number = is_array or isinstance(leaf, bool | int | float | complex)
            dtype = jax.dtypes.result_type(leaf) if is_number else type(leaf).__name__
            if is_number and jnp.issubdtype(dtype, jnp.inexact):
                moving.append(jnp.asarray(leaf))
                first = parts[-1].last if parts else 0
                keys = tuple(getattr(k, "key", getattr(k, "idx", getattr(k, "name", None))) for k in rest)
                shape, dtype = moving[-1].shape, np.dtype(moving[-1].dtype)
                parts.append(Part(path, places[argument.idx] + inside, shape, dtype, first, keys))
                kinds.append("moves")
                continue
            skipped.append(Skipped(path, places[argument.idx] + inside, str(dtype)))
        kinds.append("data" if is_array else ByIdentity(leaf))
        if is_array:
            data.append(jnp.asarray(leaf))
    _check_parts(name, parts, skipped)
    # A jitted f is fixed when it is first traced; a plain f may have changed since, for example in what it calls.
    held = ByIdentity(f) if hasattr(f, "lower") else NeverEqual(f)
    subject = Subject(held, jax.tree.structure(tuple(args)), tuple(kinds), has_aux)
    return Arguments(subject, moving, data, tuple(parts), tuple(skipped), np.array([rms(leaf) for leaf in moving]))


def _check_parts(name: str, parts: list[Part], skipped: list[Skipped]) -> None:
    if not parts or parts[-1].last == 0:
        what = "it holds " + ", ".join(f"{s.path} ({s.dtype})" for s in skipped) if skipped else "it is empty"
        raise TypeError(f"{name}: there is nothing to differentiate in params: {what}; expected floating-point leaves")
    if parts[-1].last >= 2**31:
        raise ValueError(f"{name}: {parts[-1].last} coordinates; at most {2**31 - 1} can be checked at once")


def rms(leaf: ArrayLike) -> float:
    """Return the root mean square of the finite entries, or 1 if it is zero, without underflow or overflow."""
    entries = np.abs(at_least_float32(np.asarray(leaf).ravel()))
    largest = float(entries.max(initial=0.0))
    if not np.isfinite(largest):
        entries = entries[np.isfinite(entries)]
        largest = float(entries.max(initial=0.0))
    if largest == 0:
        return 1.0
    return largest * float(np.sqrt(np.mean(np.square(entries / largest), dtype=float)))


def at_least_float32(leaf: np.ndarray) -> np.ndarray:
    return leaf if leaf.dtype.itemsize >= 4 else leaf.astype(np.float32)


def unit_of(leaf: ArrayLike, size: Number) -> ArrayLike:
    """Return the step of each entry at t = 1: the larger of its magnitude and `size`; 0 if it is not finite."""
    xp = np if isinstance(leaf, np.ndarray) else jnp
    magnitude = xp.abs(leaf)
    return xp.where(xp.isfinite(magnitude), xp.maximum(magnitude, size), xp.zeros_like(magnitude))


def entries_at(args: Arguments, coordinates: np.ndarray) -> np.ndarray:
    """Return the parameters at some coordinates, [R], in float64."""
    found = np.zeros(len(coordinates))
    for part, leaf in zip(args.parts, args.moving, strict=True):
        rows = np.flatnonzero((coordinates >= part.first) & (coordinates < part.last))
        places = coordinates[rows] - part.first
        entries = np.asarray(leaf).reshape(-1)[places % max(part.size, 1)]
        found[rows] = np.where(places < part.size, np.real(entries), np.imag(entries)).astype(float)
    return found


def units_at(args: Arguments, coordinates: np.ndarray) -> np.ndarray:
    """Return the unit of some coordinates, [R]; 0 if the parameter is not finite."""
    units = np.zeros(len(coordinates))
    for part, leaf, size in zip(args.parts, args.moving, args.sizes, strict=True):
        rows = (coordinates >= part.first) & (coordinates < part.last)
        entries = np.asarray(leaf).reshape(-1)[(coordinates[rows] - part.first) % max(part.size, 1)]
        units[rows] = unit_of(entries.astype(complex if part.is_complex else float), size)
    return units


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]


def run_plainly(title: str, args: Arguments) -> Leaves:
    """Call f as the user would, at the point, in its own dtype, not compiled; return its differentiable outputs."""
    try:
        outputs = args.subject.outputs(args.moving, args.data)
    except Exception as error:
        error.add_note(f"{title}: raised by f itself at the point to be checked")
        raise
    if not outputs or not sum(leaf.size for leaf in outputs):
        raise TypeError(f"{title}: f returns nothing that can be differentiated; expected floating-point numbers")
    return [np.asarray(leaf) for leaf in outputs]


def random_generator(key: Array | None) -> np.random.Generator:
    return np.random.default_rng([] if key is None else np.asarray(jax.random.key_data(key)).ravel().tolist())


def random_weights(args: Arguments, rng: np.random.Generator) -> Leaves:
    """Return a random sign and a random size between 2/3 and 4/3 for each coordinate.

    With signs alone, two equal errors would cancel in every second direction; with random sizes they rarely do.
    """
    weights: list[ArrayLike] = []
    for part in args.parts:
        shape = (2, *part.shape) if part.is_complex else part.shape
        bits = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8)
        weight = (bits & 63).view(np.int8)
        weight += np.int8(2 * UNIT // 3)
        np.negative(weight, out=weight, where=bits < 128)
        weights.append(jnp.asarray(weight.reshape(shape)))
    return weights


def choose_readings(outputs: Leaves, num_checked_entries: int, rng: np.random.Generator) -> Readings:
    """Choose every component of the outputs, or random mixtures if there are too many for `num_checked_entries`."""
    counts = [leaf.size * (2 if np.iscomplexobj(leaf) else 1) for leaf in outputs]
    total = sum(counts)
    each = total <= PROJECTIONS or (total <= MOST_OUTPUTS and total * num_checked_entries <= JACOBIAN)
    if each:
        rows = np.eye(total)
        labels = [""] if total == 1 else [f"f[{i}]" for i in range(total)]
    else:
        sizes = rng.integers(64, 128, (PROJECTIONS, total)) / UNIT  # seven bits: exact in every dtype
        rows = sizes * rng.choice([-1.0, 1.0], sizes.shape)
        labels = [f"u{i}.f" for i in range(PROJECTIONS)]
    cotangents: list[ArrayLike] = []
    for leaf, block in zip(outputs, np.split(rows, np.cumsum(counts)[:-1], axis=1), strict=True):
        if np.iscomplexobj(leaf):
            block = block[:, : leaf.size] - 1j * block[:, leaf.size :]
        cotangents.append(block.reshape(-1, *leaf.shape).astype(leaf.dtype))
    return Readings(cotangents, tuple(labels), each)


def read(outputs: Leaves, cotangents: Leaves | None) -> ArrayLike:
    """Return the readings of outputs, [M] in the widest real dtype: all real components, or u.f for cotangents u."""
    xp = np if isinstance(outputs[0], np.ndarray) else jnp
    wide = np.dtype(np.float64) if xp is np else jax.dtypes.canonicalize_dtype(np.float64)
    if cotangents is None:
        flat = []
        for leaf in outputs:
            flat.append(xp.real(leaf).ravel().astype(wide))
            if xp.iscomplexobj(leaf):
                flat.append(xp.imag(leaf).ravel().astype(wide))
        return xp.concatenate(flat) if len(flat) > 1 else flat[0]
    total = xp.zeros(cotangents[0].shape[0], wide)
    for leaf, u in zip(outputs, cotangents, strict=True):
        products = xp.real(u).astype(wide) * xp.real(leaf)[None].astype(wide)
        if xp.iscomplexobj(leaf):
            products = products - xp.imag(u).astype(wide) * xp.imag(leaf)[None].astype(wide)
        total = total + products.reshape(len(total), -1).sum(axis=1)
    return total


@contextlib.contextmanager
def arithmetic(precise: bool) -> Iterator[None]:
    """Use the user's settings; or, if `precise`, float64 with standard promotion, for float32 constants inside f."""
    if not precise:
        yield
        return
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def as_run(leaves: Leaves, precise: bool) -> Leaves:
    """Return the leaves unchanged, or in float64 (complex128) if `precise`."""
    return [_widened(leaf) for leaf in leaves] if precise else leaves


def _widened(leaf: ArrayLike) -> ArrayLike:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return leaf.astype(jnp.complex128)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


class Question(NamedTuple):
    """The object of a check: f at these arguments, its readings, and their values `here` [M], not compiled."""

    title: str
    args: Arguments
    readings: Readings
    here: np.ndarray
