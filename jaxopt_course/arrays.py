"""Conversion of user input to arrays. Input that JAX would misread raises an error that names it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MASKED = (
    "is a masked array, whose mask would be dropped; fill it (.filled(value)) or select rows without masked entries"
)


def check_arrays(name: str, tree: Any) -> None:
    """Raise ValueError for the first leaf that JAX would misread: masked arrays, objects, text, records."""
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if problem := _misread(leaf):
            raise ValueError(f"{name}{jax.tree_util.keystr(path)} {problem}")


def _misread(leaf: Any) -> str:
    if isinstance(leaf, np.ma.MaskedArray):
        return _MASKED if np.ma.getmaskarray(leaf).any() else ""
    if isinstance(leaf, np.matrix):
        return "is a np.matrix, whose products differ from those of arrays; pass np.asarray(...) of it"
    if isinstance(leaf, str | bytes):
        return "is text; pass an array of numbers"
    kind = getattr(getattr(leaf, "dtype", None), "kind", "")
    if isinstance(leaf, np.ndarray) and (kind in "OSUMm" or leaf.dtype.names):
        return f"has dtype {leaf.dtype}, which JAX does not support; pass an array of numbers for each field"
    if hasattr(leaf, "to_numpy") and hasattr(leaf, "shape"):
        return f"is a {type(leaf).__name__}; pass its to_numpy() or an array for each column"
    return ""


def on_device(leaf: Any) -> jax.Array:
    """Return the leaf as a JAX array."""
    if isinstance(leaf, jax.Array):
        return leaf
    return jnp.asarray(on_host(leaf) if isinstance(leaf, np.ndarray) else leaf)


def on_host(leaf: Any) -> np.ndarray:
    """Return the leaf as a NumPy array with a dtype of JAX; raise ValueError if JAX would misread or wrap values."""
    if problem := _misread(leaf):
        raise ValueError(f"an array {problem}")
    array = np.asarray(leaf)
    narrow = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    if array.dtype.kind in "iu" and narrow.dtype != array.dtype and not np.array_equal(narrow, array):
        raise ValueError(f"the data holds {array.dtype} values beyond {narrow.dtype}; switch on jax_enable_x64")
    return narrow
