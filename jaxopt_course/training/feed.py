"""What goes to the devices, and when: all examples at once, or a piece of the plan at a time, one ahead."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_course.annotations import Array
from jaxopt_course.data.batches import minibatches
from jaxopt_course.training.steps import on_device, on_host

SPARE = 0.8  # of the memory that a device says is free, for data
LOOKED_AT = 64  # examples of a data set, to know it again


class Piece(NamedTuple):
    """Steps in a row: rows `first` to `last` of a plan over `data`; of data that is laid out in steps there is none."""

    data: Any
    plan: Any
    first: int
    last: int
    indices: Any  # of the examples of step i, in row i


class Feed:
    """The examples of a run, and where they lie.

    `data`: a tree of arrays on the host or a device; `batch_size` divides among the devices of `mesh`, if there is one;
    `max_bytes`: of examples on a device at once, None for what the device says it has.
    """

    def __init__(self, data: Any, batch_size: int, chunk_size: int, mesh: Mesh | None, max_bytes: int | None):
        if mesh is not None:
            mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        shards = 1 if mesh is None else mesh.size
        if batch_size % shards:
            raise ValueError(f"train: batch_size must be a multiple of the mesh's {shards} devices, got {batch_size}")
        self.mesh, self.everywhere = mesh, None if mesh is None else NamedSharding(mesh, PartitionSpec())
        leaves = jax.tree.leaves(data)
        total = sum(leaf.nbytes for leaf in leaves)
        a_step = -(-batch_size // shards) * sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)
        limit = _free_bytes() if max_bytes is None else max_bytes
        self.steps_at_once = chunk_size
        self.streams = limit is not None and total > limit
        if self.streams:
            self.steps_at_once = min(chunk_size, int(limit // (2 * a_step)))  # one in use, one on its way
            if self.steps_at_once < 1:
                raise ValueError(
                    f"train: a step's examples take {a_step} bytes on a device, and two steps' must fit into "
                    f"max_data_bytes = {limit}; raise it, or take a smaller batch"
                )
        place = on_host if self.streams else self._resident
        self.data = jax.tree.map(place, data)

    def replicated(self, tree: Any) -> Any:
        """The same on every device of the mesh."""
        return tree if self.mesh is None else jax.device_put(tree, self.everywhere)

    def pieces(self, schedule: Iterable[tuple[Array, int, int]]) -> Iterator[Piece]:
        """The pieces of a schedule of (plan, first, last), with their examples on the device."""
        return _one_ahead(self._streamed, schedule) if self.streams else map(self._planned, schedule)

    def _resident(self, leaf: Any) -> Array:
        return on_device(leaf) if self.everywhere is None else _put(on_host(leaf), self.everywhere)

    def _planned(self, scheduled: tuple[Array, int, int]) -> Piece:
        plan, first, last = scheduled
        return Piece(self.data, self._split(plan), first, last, plan)

    def _streamed(self, scheduled: tuple[Array, int, int]) -> Piece:
        plan, first, last = scheduled
        indices = np.asarray(plan)[first:last]
        shape = (min(self.steps_at_once, len(plan)), plan.shape[1])  # always the same: one compile

        def gathered(leaf: np.ndarray) -> Any:
            rows = np.zeros((*shape, *leaf.shape[1:]), leaf.dtype)
            np.take(leaf, indices, axis=0, out=rows[: len(indices)], mode="clip")  # any other mode copies once more
            return self._split(rows)

        return Piece(jax.tree.map(gathered, self.data), None, 0, last - first, indices)

    def _split(self, rows: Any) -> Array:
        """The second axis split among the devices; the rest of an epoch that does not divide goes to all of them."""
        if self.mesh is None:
            return jax.device_put(rows)
        divides = rows.shape[1] % self.mesh.size == 0
        axes = PartitionSpec(None, self.mesh.axis_names) if divides else PartitionSpec()
        return _put(np.asarray(rows), NamedSharding(self.mesh, axes))


def schedule(
    key: Array,
    num_examples: int,
    batch_size: int,
    drop_last: bool,
    step: int,
    total: int,
    at_once: int,
    stops: tuple[int, ...],
) -> Iterator[tuple[Array, int, int]]:
    """(plan, first, last) of the pieces from `step` to `total`, at most `at_once` steps, cut at multiples of `stops`.

    The plans are made a few epochs at a time, so that a piece is not cut short by a small epoch.
    """
    whole, rest = divmod(num_examples, batch_size)
    keep = rest > 0 and not drop_last
    epochs, per_epoch = 1 if keep else max(1, at_once // whole), whole + keep
    begun = step - step % (epochs * per_epoch)
    for first_epoch in range(begun // per_epoch, -(-total // per_epoch), epochs):
        made = _compiled_plan(
            key, num_examples, batch_size, epochs, drop_last=drop_last, first_epoch=np.int32(first_epoch)
        )
        for plan in (made.full.reshape(-1, batch_size), *([made.last] if keep else [])):
            row, even = step - begun, -(-len(plan) // -(-len(plan) // at_once))  # of one length, none a crumb
            while row < len(plan) and step < total:
                count = min(even, len(plan) - row, total - step, *(every - step % every for every in stops))
                yield plan, row, row + count
                row, step = row + count, step + count
            begun += len(plan)


_compiled_plan = jax.jit(minibatches, static_argnums=(1, 2, 3), static_argnames="drop_last")


def num_examples_of(data: Any) -> int:
    """N, the same for every array; ValueError where it is not."""
    shapes = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(data)}
    if not shapes:
        raise ValueError("train: the data is empty")
    lengths = {shape[0] if shape else None for shape in shapes.values()}
    if len(lengths) > 1 or None in lengths:
        listed = ", ".join(f"data{path} {shape}" for path, shape in shapes.items())
        raise ValueError(f"train: every array of the data needs the same number of examples first, got {listed}")
    return int(lengths.pop() or 0)


def fingerprint(data: Any) -> str:
    """Of the shapes, dtypes and some of the examples: enough to tell that it is not the data of before."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        some = np.linspace(0, len(leaf) - 1, min(len(leaf), LOOKED_AT)).astype(int)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf[some]).tobytes())
    return digest.hexdigest()


def _one_ahead(make: Any, items: Iterable[Any]) -> Iterator[Any]:
    """`map(make, items)`, where the next is made while this one is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming: list[Future[Any]] = []
        for item in items:
            coming.append(pool.submit(make, item))
            if len(coming) == 2:
                yield coming.pop(0).result()
        for last in coming:
            yield last.result()


def _put(array: np.ndarray, sharding: NamedSharding) -> Array:
    """Onto the devices of a mesh; every process holds the whole array and gives its own devices their part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _free_bytes() -> float | None:
    stats = jax.local_devices()[0].memory_stats()  # a CPU says nothing
    return SPARE * (stats["bytes_limit"] - stats["bytes_in_use"]) if stats and "bytes_limit" in stats else None
