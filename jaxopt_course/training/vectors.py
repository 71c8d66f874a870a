"""Conversion of a tree of parameters to one vector, and sums over its leaves."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, Float, Params, PyTree, Shaped
from jaxopt_course.dtypes import working_dtype


class Vectors:
    """The layout of trees like `params` as vectors `[n]`, in the widest dtype of its leaves, at least float32."""

    def __init__(self, params: Params):
        leaves, self.structure = jax.tree.flatten(params)
        self.shapes, self.dtypes = [jnp.shape(leaf) for leaf in leaves], [leaf.dtype for leaf in leaves]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.ends = [0, *np.cumsum(self.sizes).tolist()]
        self.names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        self.dtype = working_dtype(params)
        self.size = self.ends[-1]

    def vector(self, tree: PyTree) -> Float[Array, " n"]:
        """Concatenate all leaves."""
        return jnp.concatenate([jnp.ravel(leaf).astype(self.dtype) for leaf in jax.tree.leaves(tree)])

    def tree(self, vector: Float[Array, " n"]) -> PyTree:
        """Return the tree of a vector, in the dtypes of the parameters."""
        parts = zip(self._parts(vector), self.shapes, self.dtypes, strict=True)
        return jax.tree.unflatten(self.structure, [part.reshape(shape).astype(dtype) for part, shape, dtype in parts])

    def leaf_sums(self, rows: Shaped[Array, "... n"]) -> Shaped[Array, "... leaves"]:
        """Return the sums over the entries of each leaf."""
        return jnp.stack([jnp.sum(part, axis=-1) for part in self._parts(rows)], axis=-1)

    def spread(self, numbers: Float[Array, " leaves"]) -> Float[Array, " n"]:
        """Repeat one number per leaf for each entry of the leaf."""
        return jnp.concatenate([jnp.full(size, number) for size, number in zip(self.sizes, numbers, strict=True)])

    def _parts(self, rows: Array) -> list[Array]:
        return [rows[..., first:last] for first, last in pairwise(self.ends)]
