"""Continuing from the state of another optimizer with the same rule, ours or optax's."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import AnyOptimizer, OptState, Params, PyTree

FIELDS = ("count", "mu", "nu", "trace", "sum_of_squares")  # these fields mean the same in our states and in optax's


def continued_state(caller: str, given: Any, optimizer: AnyOptimizer, params: Params) -> OptState:
    """Return the given state as a state of `optimizer`.

    A state with the same tree, shapes and dtypes is used unchanged, including hyperparameters inside it. Otherwise the
    fields `count`, `mu`, `nu`, `trace` and `sum_of_squares` are matched by name, which converts between our rules and
    optax's, also inside chains; hyperparameters kept by `optax.inject_hyperparams` are then those of the new optimizer.

    Args:
      caller: the name in messages.
      given: an optimizer state, or a result that has one as `.state`, such as a `TrainResult`.
      optimizer: the optimizer that continues from the state.
      params: the parameters to continue with.

    Raises:
      ValueError: a state of another rule, tree, shape or dtype; the message names the first leaf that differs.
    """
    if hasattr(given, "params") and hasattr(given, "state"):
        given = given.state
    made = optimizer.init(params)
    trees: list[Any] = [jax.tree.structure(tree) for tree in (given, made)]
    if trees[0] == trees[1]:
        _check_leaves(caller, given, made)
        return given
    state = _converted(caller, given, made)
    _check_leaves(caller, state, made)
    return state


def _check_leaves(caller: str, given: OptState, made: OptState) -> None:
    pairs = zip(jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(made), strict=True)
    for (path, theirs), ours in pairs:
        if _kind(theirs) != _kind(ours):
            raise ValueError(
                f"{caller}: state{jax.tree_util.keystr(path)} is {_kind(theirs)}, but the optimizer's state for these "
                f"parameters has {_kind(ours)} there"
            )


def _converted(caller: str, given: OptState, made: OptState) -> OptState:
    """Return the new optimizer's state, with values of the given state in the fields of the same name."""
    found: dict[tuple[str, str], Any] = {}
    for name, rest, leaf in _named_leaves(given):
        before = found.setdefault((name, rest), leaf)
        if not np.array_equal(np.asarray(before), np.asarray(leaf)):
            raise ValueError(
                f"{caller}: the state holds several different values of {name}{rest}; which one to use is ambiguous"
            )
    paths, structure = jax.tree_util.tree_flatten_with_path(made)
    leaves, used = [], {"count"}  # an optimizer without a schedule needs no count
    for path, leaf in paths:
        name, rest = _field(path)
        if (name, rest) in found:
            used.add(name)
            leaves.append(found[name, rest])
        elif any(getattr(entry, "name", None) == "hyperparams" for entry in path):
            leaves.append(leaf)
        else:
            raise ValueError(f"{caller}: the optimizer's state has {jax.tree_util.keystr(path)}, but the given has not")
    for name, rest in found:
        if name not in used:
            raise ValueError(f"{caller}: the given state has {name}{rest}, but the optimizer's has not: another rule")
    return jax.tree.unflatten(structure, leaves)


def _named_leaves(state: OptState) -> Iterator[tuple[str, str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, rest = _field(path)
        yield name, rest, leaf


def _field(path: tuple[Any, ...]) -> tuple[str, str]:
    """Return the first known field on the path to a leaf, and the rest of the path."""
    for i, entry in enumerate(path):
        if getattr(entry, "name", None) in FIELDS:
            return entry.name, jax.tree_util.keystr(path[i + 1 :])
    return "", jax.tree_util.keystr(path)


def _kind(leaf: PyTree) -> str:
    return f"{leaf.dtype if hasattr(leaf, 'dtype') else jnp.result_type(leaf)}{list(np.shape(leaf))}"
