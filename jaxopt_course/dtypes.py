"""Dtypes to compute in. Every cast is explicit, so that the code also runs under JAX's strict dtype promotion."""

import contextlib
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def check_floating(params: Any) -> None:
    """Raise TypeError for the first leaf that is not floating point."""
    if all(hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(params)):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = f"params{jax.tree_util.keystr(path)}"
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)):
            raise TypeError(
                f"parameters must be floating-point arrays, {where} is of type {type(leaf).__name__}; for an Equinox "
                "model, optimize only its arrays: equinox.filter(model, equinox.is_inexact_array), or "
                "equinox.partition and equinox.combine"
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"parameters must be floating point, {where} is {jnp.result_type(leaf)}; "
                "cast it, or keep it out of the tree that is optimized (optax.masked)"
            )


def at_least_32_bits(dtype: Any) -> Any:
    """Return the dtype itself, or float32 for dtypes of 16 bits and less."""
    return jnp.dtype(dtype) if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def widest(*dtypes: Any) -> Any:
    """Return the result of JAX's standard dtype promotion, even where the user has set strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def working_dtype(params: Any) -> Any:
    """Return the dtype of scalars: the widest real dtype of the parameters, at least float32."""
    return widest(jnp.float32, *(jnp.finfo(jnp.result_type(leaf)).dtype for leaf in jax.tree.leaves(params)))


def widened(tree: Any) -> Any:
    """Cast every leaf to at least 32 bits."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(at_least_32_bits(jnp.result_type(leaf))), tree)


def vdot(a: Any, b: Any, dtype: Any) -> Any:
    """Return the real part of the inner product of two trees in `dtype`; the dtypes of their leaves may differ."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((jnp.vdot(x.astype(y.dtype), y).real.astype(dtype) for x, y in leaves), jnp.zeros((), dtype))


def rounding(value: Any) -> Any:
    """Return the largest difference attributed to rounding near a value: eight units in the last place."""
    return 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)


def change_by_rounding(params: Any, grads: Any, dtype: Any) -> Any:
    """Return the first-order change of the objective when each parameter changes by eight units in the last place."""

    def change(w: Any, g: Any) -> Any:
        return (8 * jnp.finfo(w.dtype).eps).astype(dtype) * jnp.sum(jnp.abs(w.astype(g.dtype)) * jnp.abs(g)).astype(
            dtype
        )

    leaves = zip(map(jnp.asarray, jax.tree.leaves(params)), jax.tree.leaves(grads), strict=True)
    return _total((change(w, g) for w, g in leaves), dtype)


def largest_entry(tree: Any, dtype: Any) -> Any:
    """Return the largest absolute entry, or NaN.

    Entries are compared as integers, because XLA's floating-point maximum may lose a NaN on a CPU.
    """

    def largest(leaf: Any) -> Any:
        sizes = jnp.abs(lax.stop_gradient(leaf))
        bits = lax.bitcast_convert_type(sizes, jnp.dtype(f"int{8 * sizes.dtype.itemsize}"))
        return lax.bitcast_convert_type(jnp.max(bits, initial=0), sizes.dtype).astype(dtype)

    return reduce(jnp.maximum, map(largest, jax.tree.leaves(tree)), jnp.zeros((), dtype))


def norm(tree: Any, dtype: Any) -> Any:
    """Return the Euclidean norm over all leaves, even if its square is outside the range of the dtype."""
    leaves = jax.tree.leaves(tree)
    plain = jnp.sqrt(_total((jnp.sum(s * s) for s in map(_sizes, leaves)), dtype))

    def scaled() -> Any:  # recomputes the sizes: if shared with the line above, they would be written to memory
        top = largest_entry(tree, dtype)
        unit = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
        parts = (_sizes(leaf).astype(dtype) / unit for leaf in leaves)
        return unit * jnp.sqrt(_total((jnp.sum(part * part) for part in parts), dtype))

    in_range = jnp.isfinite(plain) & (plain > 1e-16)
    return lax.cond(in_range, lambda: plain, scaled) if leaves else plain


def has_finite_norm(tree: Any, dtype: Any) -> Any:
    """Whether `norm` is finite. This takes one pass and avoids the branches of `norm`, all of which run under `vmap`.

    Entries are divided by a constant before they are squared, so that no square overflows; small squares underflow.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    unit = 2.0 ** (5 * jnp.finfo(dtype).maxexp // 8)  # the largest square is 2^(3/4 maxexp), 2^96 in float32
    parts = (_sizes(leaf).astype(dtype) / unit for leaf in jax.tree.leaves(tree))
    return jnp.isfinite(unit * jnp.sqrt(_total((jnp.sum(part * part) for part in parts), dtype)))


def _sizes(leaf: Any) -> Any:
    return jnp.abs(leaf).astype(jnp.finfo(at_least_32_bits(leaf.dtype)).dtype)


def _total(terms: Iterable[Any], dtype: Any) -> Any:
    return sum((term.astype(dtype) for term in terms), jnp.zeros((), dtype))


@contextlib.contextmanager
def standard_promotion() -> Iterator[None]:
    """Allow JAX's default dtype and rank promotion in third-party code, even where the user has forbidden it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
