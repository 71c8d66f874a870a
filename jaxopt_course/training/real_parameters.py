"""Conversion of parameters for optimizers: real arrays, without functions among the leaves of a model."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, Params, PyTree


def arrays_and_functions(params: Params) -> tuple[Params, PyTree]:
    """Return a model's arrays, and the functions among its leaves, such as activations, or None if there are none."""
    if not any(map(callable, jax.tree.leaves(params))):
        return params, None
    arrays, functions = (
        jax.tree.map(lambda leaf, kept=kept: leaf if callable(leaf) is kept else None, params) for kept in (False, True)
    )
    return arrays, functions


def joined(arrays: Params, functions: PyTree) -> Params:
    """Return the whole model; the inverse of `arrays_and_functions`."""
    if functions is None:
        return arrays
    return jax.tree.map(lambda a, f: f if a is None else a, arrays, functions, is_leaf=lambda leaf: leaf is None)


def real_pairs(params: Params) -> Params:
    """Replace each complex leaf by the pair of its real and imaginary parts; other leaves are unchanged."""
    return jax.tree.map(lambda leaf: (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else leaf, params)


def from_real_pairs(pairs: Params, like: Params) -> Params:
    """Invert `real_pairs`; `like` determines which leaves are complex."""
    structure, parts = jax.tree.structure(like), iter(jax.tree.leaves(pairs))

    def leaf(original: Array) -> Array:
        return lax.complex(next(parts), next(parts)) if jnp.iscomplexobj(original) else next(parts)

    return jax.tree.unflatten(structure, [leaf(original) for original in jax.tree.leaves(like)])
