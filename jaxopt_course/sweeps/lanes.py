"""Lanes: many runs of one method as one compiled program. Arrays `[S, P, ...]` hold S seeds at P points.

Points vary fastest, so that the minibatch of a seed, which all its lanes share, is gathered only once.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxopt_course.annotations import Array, Objective, Params, PyTree
from jaxopt_course.sweeps.methods import Factory, weakly_typed
from jaxopt_course.training.programs import Program
from jaxopt_course.training.steps import Carry, Record, init_carry, scalar_and_aux, train_step, train_steps

SHARE_OF_MEMORY = 0.25  # share of the memory for lanes by default


class Layout(NamedTuple):
    """Layout of lanes on devices: on one device, or divided among the devices of `mesh` along seeds or points."""

    mesh: Mesh | None = None
    along_seeds: bool = False

    def spec(self, kind: str) -> PartitionSpec:
        """The spec of arrays `[S, ...]` ("seeds"), `[P]` ("points"), `[S, P, ...]` ("lanes"), or replicated ("all")."""
        assert self.mesh is not None
        axes = self.mesh.axis_names
        if kind == "lanes":
            return PartitionSpec(axes) if self.along_seeds else PartitionSpec(None, axes)
        return PartitionSpec(axes) if kind == ("seeds" if self.along_seeds else "points") else PartitionSpec()

    def put(self, tree: PyTree, kind: str) -> PyTree:
        """Put arrays on the devices; every process holds the whole arrays and passes their parts to its own devices."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, self.spec(kind))

        def place(leaf: Any) -> Array:
            host = np.asarray(leaf)
            placed = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
            return jax.jit(weakly_typed)(placed) if getattr(leaf, "weak_type", False) else placed

        return jax.tree.map(place, tree)

    def per_device(self, fn: Callable[..., Any], takes: tuple[str, ...], gives: Any) -> Callable[..., Any]:
        """Apply `fn` to the lanes of each device separately, without communication between devices."""
        if self.mesh is None:
            return fn
        specs = jax.tree.map(self.spec, (takes, gives))
        return jax.shard_map(fn, mesh=self.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)


def fetch(tree: PyTree) -> PyTree:
    """Copy the whole arrays to the host, in every process."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(whole, tree))


@partial(Program, static_argnames="layout")
def begin(factory: Factory, points: dict[str, Array], starts: Params, *, layout: Layout) -> Carry:
    """Make the carry of every lane before its first step, from hyperparameters `[P]` and parameters `[S, ...]`."""

    def lane(point: dict[str, Array], params: Params) -> Carry:
        return init_carry(factory(**point), params)

    def lanes(points: dict[str, Array], starts: Params) -> Carry:
        return jax.vmap(lambda start: jax.vmap(lane, (0, None))(points, start))(starts)

    return layout.per_device(lanes, ("points", "seeds"), "lanes")(points, starts)


@partial(Program, static_argnames=("has_aux", "layout"), donate_argnums=2)
def advance(
    callables: tuple[Objective, Factory],
    points: dict[str, Array],
    carry: Carry,
    data: PyTree,
    plan: Array,
    first: Array,
    last: Array,
    *,
    has_aux: bool,
    layout: Layout,
) -> tuple[Carry, Array, Array]:
    """Take the steps `first` to `last` of the plans `[S, rows, B]` in every lane.

    Returns:
      The carry; the minibatch loss of every step, `[S, P, rows]`; and whether the step was skipped, `[S, P, rows]`.
    """
    objective, factory = callables

    def lane(point: dict[str, Array], carry: Carry, data: PyTree, plan: Array, *rows: Array) -> Any:
        optimizer = factory(**point)
        carry, record = train_steps(
            objective, optimizer, carry, data, plan, *rows, has_aux=has_aux, check_rows=False, with_norm=False
        )
        return carry, record.loss, record.skipped

    of_a_seed = jax.vmap(lane, (0, 0, None, None, None, None))
    of_all = jax.vmap(of_a_seed, (None, 0, None, 0, None, None))
    takes = ("points", "lanes", "all", "seeds", "all", "all")
    return layout.per_device(of_all, takes, ("lanes",) * 3)(points, carry, data, plan, first, last)


@partial(Program, static_argnames=("has_aux", "at_once", "layout"))
def measure_loss(
    objective: Objective, params: Params, data: PyTree, *, has_aux: bool, at_once: int, layout: Layout
) -> Array:
    """The objective over all data in every lane, `[S, P]`, in groups of about `at_once` lanes."""

    def lanes(params: Params, data: PyTree) -> Array:
        return _in_groups(lambda p: scalar_and_aux("sweep", objective(p, data), has_aux)[0], params, at_once)

    return layout.per_device(lanes, ("lanes", "all"), "lanes")(params, data)


@partial(Program, static_argnames=("at_once", "layout"))
def evaluate(eval_fn: Callable[[Params], PyTree], params: Params, *, at_once: int, layout: Layout) -> PyTree:
    """`eval_fn` in every lane: a tree of `[S, P, ...]`."""
    return layout.per_device(lambda params: _in_groups(eval_fn, params, at_once), ("lanes",), "lanes")(params)


def _in_groups(fn: Callable[[Params], PyTree], params: Params, at_once: int) -> PyTree:
    """Apply `fn` to every lane `[S, P, ...]`, one group after the other, because `fn` may need all data."""
    shape = jax.tree.leaves(params)[0].shape[:2]
    count = math.prod(shape)
    group = max(size for size in range(1, count + 1) if count % size == 0 and size <= max(1, at_once))
    grouped = jax.tree.map(lambda leaf: leaf.reshape(count // group, group, *leaf.shape[2:]), params)
    results = jax.lax.map(jax.vmap(fn), grouped)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[2:]), results)


def first_step(
    objective: Objective, factory: Factory, has_aux: bool, point: dict[str, Array], params: Params, batch: PyTree
) -> tuple[Carry, Record]:
    """One lane's first step on a batch, from its start."""
    optimizer = factory(**point)
    return train_step(objective, optimizer, init_carry(optimizer, params), batch, has_aux=has_aux)


def lane_bytes(
    objective: Objective, factory: Factory, point: dict[str, Array], params: Params, batch: PyTree, has_aux: bool
) -> int:
    """Estimate the bytes of one lane: parameters and state before and after a step, gradient, update, activations.

    This traces one step without compiling, so errors in the objective are raised here.
    """

    def residuals(params: Params, batch: PyTree) -> PyTree:
        return jax.vjp(lambda p: scalar_and_aux("sweep", objective(p, batch), has_aux)[0], params)[1]

    carry, _ = jax.eval_shape(partial(first_step, objective, factory, has_aux), point, params, batch)
    activations = max(0, _bytes(jax.eval_shape(residuals, params, batch)) - _bytes(params) - _bytes(batch))
    return 2 * _bytes(carry) + 2 * _bytes(params) + 2 * activations + 64


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def memory_bytes() -> int:
    """Bytes for lanes on a device by default: a fixed share of its memory, or of the machine's memory for a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    total = stats.get("bytes_limit")
    if total is None and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()
    return int(SHARE_OF_MEMORY * (total or 2**33))
