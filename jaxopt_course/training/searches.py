"""Line-search information in the state of an optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxopt_course.annotations import Array
from jaxopt_course.optimizers import Search


def last_search(state: Any) -> Search | None:
    """Return the optimizer's record of its last line search; None if it has no search or is inside a chain."""
    search = getattr(state, "search", None)
    return search if isinstance(search, Search) else None


def is_informed(state: Any) -> bool:
    """Whether the optimizer knows the remaining gain from the curvature at the point, not only from its last steps."""
    return last_search(state) is not None and not getattr(state, "estimates_gain", False)


def evaluates(search: Search | None) -> bool:
    """Whether the optimizer evaluates the objective at the end of its step; its value then never rises."""
    return search is not None and search.evaluation is not None


def without_evaluation(state: Any) -> Any:
    """Return the state without the evaluation at the new point, which the carry already holds."""
    search = last_search(state)
    return state if search is None else state._replace(search=search._replace(evaluation=None))


def inner_evaluations(new: Any, old: Any) -> Array:
    """Count evaluations inside an update that are recorded only in its state: searches in a chain, ours or optax's."""

    def ours(state: Any) -> list[Array]:
        parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, Search))
        return [part.num_evals for part in parts if isinstance(part, Search)]

    theirs = [jnp.asarray(count, jnp.int32) for _, count in optax.tree.get_all_with_path(new, "num_linesearch_steps")]
    return sum([*ours(new), *theirs], jnp.zeros((), jnp.int32)) - sum(ours(old), jnp.zeros((), jnp.int32))
