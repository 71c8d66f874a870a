"""User input for bounds and L1 penalties: numbers or tree prefixes, checked and broadcast to the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import AnyOptimizer, Array, Params, PyTree
from jaxopt_course.optimizers.separable import Separable


def separable_term(optimizer: AnyOptimizer, params: Params, bounds: Any, l1: Any) -> Separable | None:
    """Return the separable term given by `bounds` and `l1`; None if neither is given.

    Raises:
      ValueError: a lower bound above an upper one, a strength that is negative or not finite (under `jit` both become
        NaN, and the solve ends with OBJECTIVE_NOT_FINITE), a tree that does not match.
      TypeError: bounds that are not a pair, complex parameters, an optimizer that does not support penalties.
    """
    if bounds is None and l1 is None:
        return None
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.iscomplexobj(leaf):
            where = f"params{jax.tree_util.keystr(path)}"
            raise TypeError(f"minimize: bounds and l1 need real parameters, {where} is {leaf.dtype}")
    if l1 is not None and not hasattr(jax.eval_shape(optimizer.init, params), "takes_penalties"):
        raise TypeError(
            "minimize: l1 needs an optimizer that can set parameters to exactly 0, jc.lbfgs() or jc.sgd(rate); "
            "for others add jc.losses.l1_penalty to the objective, which does not make parameters exactly 0"
        )
    if bounds is not None and not (isinstance(bounds, tuple | list) and len(bounds) == 2):
        raise TypeError(
            "minimize: bounds must be a pair (lower, upper), each a number or a tree like the parameters; "
            f"got {type(bounds).__name__}{_scipy_hint(bounds)}"
        )
    low, high = bounds or (None, None)
    lower, upper = _spread("lower bound", low, params, -np.inf), _spread("upper bound", high, params, np.inf)
    strength = None if l1 is None else _spread("l1", l1, params, 0.0)
    _check(lower, upper, strength)
    return _nan_where_invalid(Separable(lower, upper, strength))


def _scipy_hint(bounds: Any) -> str:
    pairs = isinstance(bounds, list | tuple) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in bounds
    )
    return "; convert a list of pairs, as in SciPy, to two arrays: tuple(numpy.array(bounds, float).T)" if pairs else ""


def _spread(name: str, prefix: PyTree, params: Params, nothing: float) -> Params:
    """Broadcast a number or a tree prefix to an array for each parameter; None means `nothing`."""

    def leaf_like(path: Any, leaf: Array, value: Any) -> Array:
        value = nothing if value is None else value
        where = f"{name} for params{jax.tree_util.keystr(path)}"
        try:
            return jnp.broadcast_to(jnp.asarray(value).astype(leaf.dtype), jnp.shape(leaf))
        except (TypeError, ValueError) as error:
            shape = np.shape(value) if hasattr(value, "shape") else type(value).__name__
            raise ValueError(f"minimize: the {where} must fit shape {jnp.shape(leaf)}, got {shape}") from error

    def below(path: Any, value: Any, subtree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda rest, leaf: leaf_like((*path, *rest), leaf, value), subtree)

    try:
        return jax.tree_util.tree_map_with_path(below, prefix, params, is_leaf=lambda leaf: leaf is None)
    except (TypeError, ValueError) as error:
        if str(error).startswith("minimize:"):
            raise
        raise ValueError(
            f"minimize: the {name} must be a number or a tree whose structure is that of the parameters or a prefix of "
            f"it; got {jax.tree.structure(prefix)}, parameters are {jax.tree.structure(params)}"
        ) from error


def _check(lower: Params, upper: Params, strength: Params | None) -> None:
    """Raise ValueError for the first leaf out of range, among those whose values are known."""
    rows = zip(jax.tree_util.tree_leaves_with_path(lower), jax.tree.leaves(upper), strict=True)
    for (path, low), high in rows:
        if _known(low, high) and not (ordered := np.asarray(low) <= np.asarray(high)).all():
            first = np.unravel_index(np.argmin(ordered), np.shape(ordered))
            entry = "".join(f"[{i}]" for i in first)
            raise ValueError(
                "minimize: the lower bound must be at most the upper one, for "
                f"params{jax.tree_util.keystr(path)}{entry} they are {low[first]} and {high[first]}"
            )
    for path, s in jax.tree_util.tree_leaves_with_path(strength):
        if _known(s) and not bool(jnp.all((s >= 0) & jnp.isfinite(s))):
            where = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"minimize: l1 must be at least 0 and finite, for {where} its least entry is {jnp.min(s)}")


def _nan_where_invalid(term: Separable) -> Separable:
    """Return the term with NaN for traced values that are out of range; the solve then ends at the start.

    NaN is used as a factor, because derivatives do not pass through the branch that `where` does not select.
    """

    def legal(value: Array, in_range: Array) -> Array:
        return value * jnp.where(in_range, 1, jnp.nan).astype(value.dtype)

    if not _known(*jax.tree.leaves(term)):
        lower = jax.tree.map(lambda low, high: legal(low, low <= high), term.lower, term.upper)
        strength = jax.tree.map(lambda s: legal(s, (s >= 0) & jnp.isfinite(s)), term.strength)
        term = Separable(lower, term.upper, strength)
    return term


def _known(*arrays: Any) -> bool:
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)
