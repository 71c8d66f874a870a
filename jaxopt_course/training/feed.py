"""Transfer of examples to the devices: all at once, or one chunk of the plan at a time with the next one prefetched."""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_course.annotations import Array, PyTree
from jaxopt_course.arrays import on_device, on_host
from jaxopt_course.data.batches import minibatches
from jaxopt_course.training.checks import whole_number

DATA_MEMORY_FRACTION = 0.8  # of the free memory reported by a device
A = TypeVar("A")
B = TypeVar("B")


class StepPlan(NamedTuple):
    """The minibatches of a run: epochs of `num_examples` in an order that `key` fixes; `[S]` keys are for S runs."""

    key: Array
    num_examples: int
    batch_size: int
    drop_last: bool

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_examples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)


class PlannedSteps(NamedTuple):
    """Rows `first` to `last` of a plan, `[rows, B]` indices of examples, or `[S, rows, B]` for S runs."""

    plan: Array
    first: int
    last: int


class Chunk(NamedTuple):
    """Consecutive steps of one compiled call: rows `first` to `last` of a plan over `data`, counted from `start`.

    `plan` is None if the data is already arranged in steps. Row i of `indices`, also counted from `start`, holds the
    examples of step i.
    """

    data: PyTree
    plan: Array | None
    start: int
    first: int
    last: int
    indices: Array | np.ndarray


class Feed:
    """The examples of a run, and their placement.

    `data`: a tree of arrays on the host or a device; `batch_size`: must be a multiple of the number of devices of
    `mesh`, if there is one; `max_bytes`: most bytes of examples on a device at once, None for what the device reports
    as free.
    """

    def __init__(self, data: PyTree, batch_size: int, chunk_size: int, mesh: Mesh | None, max_bytes: int | None):
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
            self.steps_at_once = min(chunk_size, int(limit // (2 * a_step)))  # one chunk in use, one in transfer
            if self.steps_at_once < 1:
                raise ValueError(
                    f"train: a step's examples take {a_step} bytes on a device, and those of two steps must fit into "
                    f"max_data_bytes = {limit}; raise it, or use a smaller batch"
                )
        place = on_host if self.streams else self._resident
        self.data = jax.tree.map(place, data)

    def replicated(self, tree: PyTree) -> PyTree:
        """Copy the tree to every device of the mesh."""
        return tree if self.mesh is None else jax.device_put(tree, self.everywhere)

    def chunks(self, planned: Iterable[PlannedSteps]) -> Iterator[Chunk]:
        """Yield the planned steps, with their examples on the device."""
        return _prefetched(self._streamed, planned) if self.streams else map(self._resident_chunk, planned)

    def _resident(self, leaf: Any) -> Array:
        return on_device(leaf) if self.everywhere is None else _put(on_host(leaf), self.everywhere)

    def _resident_chunk(self, steps: PlannedSteps) -> Chunk:
        start = max(0, min(steps.first, len(steps.plan) - self.steps_at_once))
        return Chunk(self.data, self._split(steps.plan), start, steps.first - start, steps.last - start, steps.plan)

    def _streamed(self, steps: PlannedSteps) -> Chunk:
        indices = np.asarray(steps.plan)[steps.first : steps.last]
        shape = (min(self.steps_at_once, len(steps.plan)), steps.plan.shape[1])  # always the same, to compile once

        def gathered(leaf: np.ndarray) -> Any:
            rows = np.zeros((*shape, *leaf.shape[1:]), leaf.dtype)
            np.take(leaf, indices, axis=0, out=rows[: len(indices)], mode="clip")  # other modes make an extra copy
            return self._split(rows)

        return Chunk(jax.tree.map(gathered, self.data), None, 0, 0, len(indices), indices)

    def _split(self, rows: Any) -> Array:
        """Split the second axis among the devices; a last batch that cannot be divided evenly is replicated."""
        if self.mesh is None:
            return jax.device_put(rows)
        divides = rows.shape[1] % self.mesh.size == 0
        axes = PartitionSpec(None, self.mesh.axis_names) if divides else PartitionSpec()
        return _put(np.asarray(rows), NamedSharding(self.mesh, axes))


def plan_chunks(
    steps: StepPlan, first_step: int, last_step: int, at_once: int, stops: tuple[int, ...], ahead: int = 1
) -> Iterator[PlannedSteps]:
    """Yield chunks of at most `at_once` steps that never cross a multiple of any interval in `stops`.

    Plans are made a few epochs at a time, for up to `ahead` chunks, so that small epochs shorten few chunks.
    """
    per_epoch, step = steps.steps_per_epoch, first_step
    whole = steps.num_examples // steps.batch_size
    keeps_rest = per_epoch > whole
    epochs = 1 if keeps_rest else max(1, ahead * at_once // whole)
    begun = step - step % (epochs * per_epoch)
    for first_epoch in range(begun // per_epoch, -(-last_step // per_epoch), epochs):
        full, last = _made_plan(steps, epochs, first_epoch)
        for plan in (full, last) if keeps_rest else (full,):
            rows, row = plan.shape[-2], step - begun
            while row < rows and step < last_step:
                stretch = min(rows - row, last_step - step, *(every - step % every for every in stops))
                count, stop = -(-stretch // -(-stretch // at_once)), row + stretch  # chunks of nearly equal length
                while row < stop:
                    taken = min(count, stop - row)
                    yield PlannedSteps(plan, row, row + taken)
                    row, step = row + taken, step + taken
            begun += rows


def _made_plan(steps: StepPlan, epochs: int, first_epoch: int) -> Any:
    """Return `[rows, B]` whole minibatches and `[epochs, r]` remainders of epochs; for S runs with a leading axis S."""
    make = partial(
        _compiled_plan, num_examples=steps.num_examples, batch_size=steps.batch_size, epochs=epochs,
        drop_last=steps.drop_last, first_epoch=np.int32(first_epoch),
    )  # fmt: skip
    if jax.random.key_data(steps.key).ndim == 1:
        return make(steps.key)
    return map(np.stack, zip(*map(make, steps.key), strict=True))  # one program serves any number of runs


@partial(jax.jit, static_argnames=("num_examples", "batch_size", "epochs", "drop_last"))
def _compiled_plan(
    key: Array, num_examples: int, batch_size: int, epochs: int, drop_last: bool, first_epoch: Array
) -> tuple[Array, Array]:
    plan = minibatches(key, num_examples, batch_size, epochs, drop_last=drop_last, first_epoch=first_epoch)
    return plan.full.reshape(-1, batch_size), plan.last


def total_steps(caller: str, num_steps: Any, num_epochs: Any, plan: StepPlan) -> int:
    """Return the number of steps; a fraction of an epoch is rounded to the nearest number of steps."""
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(f"{caller}: give either num_steps or num_epochs; got {num_steps} and {num_epochs}")
    if num_epochs is None:
        return whole_number(caller, "num_steps", num_steps, 0)
    if isinstance(num_epochs, bool | np.bool_) or not isinstance(num_epochs, int | float | np.integer | np.floating):
        raise TypeError(f"{caller}: num_epochs must be a number, got {type(num_epochs).__name__} {num_epochs!r}"[:120])
    if not 0 <= num_epochs < math.inf:
        raise ValueError(f"{caller}: num_epochs must be a finite number, at least 0, got {num_epochs}")
    steps = round(float(num_epochs) * plan.steps_per_epoch)
    if steps == 0 and num_epochs > 0:
        raise ValueError(
            f"{caller}: num_epochs={num_epochs} is less than half a step; an epoch has {plan.steps_per_epoch}"
        )
    return steps


def _prefetched(make: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yield `map(make, items)`, and compute each item in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        ahead: list[Future[B]] = []
        for item in items:
            ahead.append(pool.submit(make, item))
            if len(ahead) == 2:
                yield ahead.pop(0).result()
        for last in ahead:
            yield last.result()


def _put(array: np.ndarray, sharding: NamedSharding) -> Array:
    """Place an array on the devices of a mesh. Every process has the whole array, and gives its devices their part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _free_bytes() -> float | None:
    stats = jax.local_devices()[0].memory_stats()  # None on a CPU
    return (
        DATA_MEMORY_FRACTION * (stats["bytes_limit"] - stats["bytes_in_use"])
        if stats and "bytes_limit" in stats
        else None
    )
