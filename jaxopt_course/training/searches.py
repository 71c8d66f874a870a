"""What the state of an optimizer tells of the searches inside it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxopt_course.annotations import Array
from jaxopt_course.optimizers import Search


def last_search(state: Any) -> Search | None:
    """What the optimizer itself says of its step; None where it does not search, or where others stand around it."""
    search = getattr(state, "search", None)
    return search if isinstance(search, Search) else None


def is_informed(state: Any) -> bool:
    """Whether the optimizer knows by the curvature where it stands what is left to gain, not by its last steps only."""
    return last_search(state) is not None and not getattr(state, "estimates_gain", False)


def evaluates(search: Search | None) -> bool:
    """Whether the optimizer evaluates the objective where its step leads; such a one never climbs."""
    return search is not None and search.evaluation is not None


def without_evaluation(state: Any) -> Any:
    """The state without the evaluation at the new point, which the carry holds already."""
    search = last_search(state)
    return state if search is None else state._replace(search=search._replace(evaluation=None))


def inner_evaluations(new: Any, old: Any) -> Array:
    """Evaluations inside an update that only its state tells of: our searches in a chain, and those of optax."""

    def ours(state: Any) -> list[Array]:
        parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, Search))
        return [part.num_evals for part in parts if isinstance(part, Search)]

    theirs = [jnp.asarray(count, jnp.int32) for _, count in optax.tree.get_all_with_path(new, "num_linesearch_steps")]
    return sum([*ours(new), *theirs], jnp.zeros((), jnp.int32)) - sum(ours(old), jnp.zeros((), jnp.int32))
