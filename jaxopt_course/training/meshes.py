"""Arrays on a mesh of devices: selecting rows, varying axes, and solves on meshes with explicit axes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    NamedSharding,
    PartitionSpec,
    explicit_axes,
    reshard,
    use_abstract_mesh,
)

from jaxopt_course.annotations import Array, Objective, PyTree


def explicit_mesh(tree: PyTree) -> AbstractMesh | None:
    """Return the mesh of arrays whose shardings are part of their types (explicit axes), or None."""
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree))
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def on_auto_axes(mesh: AbstractMesh, run: Callable[..., PyTree], objective: Objective, *args: PyTree) -> PyTree:
    """Call `run(objective, *args)`, with the computations of `run` itself partitioned by the compiler.

    The objective is called with the sharding types of the given arguments, for which it was written.
    """
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    types = jax.tree.map(lambda leaf: PartitionSpec(*jax.typeof(leaf).sharding.spec), args)
    with use_abstract_mesh(mesh.update_axis_types(dict.fromkeys(axes, AxisType.Auto))):
        args = everywhere(args)
        return run(explicit_axes(objective, axes=axes, in_sharding=types), *args)


def everywhere(tree: PyTree) -> PyTree:
    """Replicate the arrays of a tree on every device of the mesh of the context."""
    return jax.tree.map(lambda leaf: reshard(leaf, PartitionSpec(*[None] * jnp.ndim(leaf))), tree)


def resharded_like(tree: PyTree, other: PyTree, mesh: AbstractMesh) -> PyTree:
    """Return the tree with the sharding types of `other` on the mesh."""

    def placed(leaf: Array, like: Array) -> Array:
        return reshard(leaf, NamedSharding(mesh, PartitionSpec(*jax.typeof(like).sharding.spec)))

    return jax.tree.map(placed, tree, other)


def replicated(tree: PyTree, mesh: AbstractMesh) -> PyTree:
    """Replicate the tree on every device of the mesh."""
    return jax.tree.map(lambda leaf: reshard(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def rows_of(leaf: Array, row: Array) -> Array:
    """Select rows of an array; on an explicit mesh, the result is sharded like the array but for its first axis."""
    sharding = jax.typeof(leaf).sharding
    if explicit_mesh(leaf) is None:
        return leaf.at[row].get(mode="clip")
    rest = [None] * jnp.ndim(row) + list(sharding.spec[1:])
    whole = NamedSharding(sharding.mesh, PartitionSpec(*rest))
    return leaf.at[row].get(mode="clip", out_sharding=whole)


def varying_axes(leaf: Any) -> frozenset[Any]:
    """Return the manual mesh axes over which an array varies inside `shard_map`."""
    kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    axes = getattr(kind, "manual_axis_type", None)
    return frozenset(getattr(kind, "vma", None) or () if axes is None else axes.varying)


def vary_like(leaf: Array, *others: Any) -> Array:
    axes = frozenset().union(*map(varying_axes, others)) - varying_axes(leaf)
    if not axes:
        return leaf
    if hasattr(lax, "pcast"):
        return lax.pcast(leaf, tuple(axes), to="varying")
    return lax.pvary(leaf, tuple(axes))  # type: ignore[attr-defined]  # the name in older versions of JAX


def with_varying_axes(take: Callable[..., tuple[PyTree, PyTree]], carry: PyTree) -> tuple[PyTree, PyTree]:
    """Return the carry, varying over all axes over which it varies after a step, and the shapes of its record."""
    while True:
        after, record = jax.eval_shape(take, jnp.int32(0), carry)
        wider = jax.tree.map(vary_like, carry, after)
        if list(map(varying_axes, jax.tree.leaves(wider))) == list(map(varying_axes, jax.tree.leaves(carry))):
            return carry, record
        carry = wider
