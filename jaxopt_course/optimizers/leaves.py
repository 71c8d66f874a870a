"""Helpers of all rules: check that trees match, keep dtypes, and apply a rule to every leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxopt_course.annotations import Array, Params, PyTree, Updates
from jaxopt_course.dtypes import at_least_32_bits, check_floating
from jaxopt_course.optimizers.hyperparameters import Rate, Scalar


def start_count(params: Params, learning_rate: Rate) -> Array | None:
    """Return the step counter of a new state if the learning rate is a schedule, else None."""
    check_floating(params)
    return jnp.zeros((), jnp.int32) if callable(learning_rate) else None


def next_count(count: Array | None) -> Array | None:
    """Return the counter plus 1, or None if there is no counter."""
    return None if count is None else optax.safe_increment(count)


def zero_moments(params: Params, *, real: bool = False) -> PyTree:
    """Return zeros with the shapes, shardings and varying mesh axes of the parameters; real ones for moments of |g|^2.

    The dtype has at least 32 bits, because in bfloat16 0.999 rounds to 1 and a moment would never decay.
    """
    check_floating(params)

    def zeros(leaf: Array) -> Array:
        dtype = at_least_32_bits(jnp.result_type(leaf))
        made = jnp.zeros_like(leaf, dtype=_real(dtype) if real else dtype)
        if isinstance(leaf, jax.core.Tracer):  # under jit, `zeros_like` is a constant; the compiler would gather it
            zero = jnp.where(jnp.abs(leaf) > 0, made, -made)  # 0 or -0: depends on the leaf, so it is sharded like it
            made = zero * zero
        return made

    return jax.tree.map(zeros, params)


def map_leaves(
    rule: Callable[..., tuple[Array, ...]],
    grads: Updates,
    moments: tuple[PyTree, ...],
    scalars: tuple[Scalar, ...],
    params: Params | None,
) -> tuple[PyTree, ...]:
    """Apply `rule(g, *moments, *scalars) -> (update, *moments)` to every leaf.

    The rule computes in the moments' dtype. Updates have the parameters' dtype (the gradients' dtype if the parameters
    are not given), and moments keep their dtype. A parameter whose gradient is None has no update.
    """
    like = grads if params is None else _with_gradient(grads, params)
    check_match(grads, "parameters", like)
    for moment in moments:
        check_match(grads, "optimizer state", moment)
    check_floating(like)
    structure = jax.tree.structure(grads)

    def apply(g: Array, p: Array, *ms: Array) -> tuple[Array, ...]:
        dtype, out = at_least_32_bits(jnp.result_type(p)), jnp.result_type(p)
        hyper = [s if isinstance(s, float) else s.astype(_real(dtype)) for s in scalars]
        update, *new = rule(jnp.asarray(g).astype(dtype), *ms, *hyper)
        return update.astype(out), *(n.astype(m.dtype) for n, m in zip(new, ms, strict=True))

    rows = [apply(*row) for row in zip(*map(jax.tree.leaves, (grads, like, *moments)), strict=True)]
    columns = list(zip(*rows, strict=True)) or [()] * (1 + len(moments))
    return tuple(jax.tree.unflatten(structure, column) for column in columns)


def _with_gradient(grads: Updates, params: Params) -> Params:
    """Return the parameters, with None where the gradient is None: for Equinox models, leaves that are not arrays."""
    try:
        return jax.tree.map(lambda g, p: p if g is not None else None, grads, params, is_leaf=lambda g: g is None)
    except ValueError:  # trees that do not match: `check_match` reports the place
        return params


def check_match(grads: Updates, name: str, other: PyTree) -> None:
    """Raise ValueError for the first leaf where `other` differs from the gradients in structure or shape."""
    trees: list[Any] = [jax.tree.structure(tree) for tree in (grads, other)]
    if trees[0] == trees[1] and all(map(_same_shape, jax.tree.leaves(grads), jax.tree.leaves(other))):
        return
    ours, theirs = _shapes(grads), _shapes(other)
    for path in [*ours, *theirs]:
        if ours.get(path) != theirs.get(path):
            raise ValueError(
                f"gradients and {name} do not match at {path or 'the root'}: "
                f"{ours.get(path, 'no leaf')} in the gradients, {theirs.get(path, 'no leaf')} in the {name}"
            )
    raise ValueError(
        f"gradients and {name} have the same leaves in trees of different kinds: {trees[0]} and {trees[1]}"
    )


def _same_shape(a: Any, b: Any) -> bool:
    return jnp.shape(a) == jnp.shape(b)


def _shapes(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _described(leaf) for path, leaf in leaves}


def _described(leaf: Any) -> str:
    return f"a {type(leaf).__name__}" if callable(leaf) or isinstance(leaf, str) else f"shape {jnp.shape(leaf)}"


def _real(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype
