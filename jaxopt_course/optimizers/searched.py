"""What the optimizers that search for their step have in common: what they are handed, and what they report."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_course.annotations import Array
from jaxopt_course.dtypes import check_floating, widened, working_dtype
from jaxopt_course.optimizers.leaves import check_match
from jaxopt_course.optimizers.line_search import MAX_EVALS, Evaluation, LineSearch, Step


class Search(NamedTuple):
    """The last step, and what was found; a part of the state of every optimizer that searches.

    `step_size`: the accepted length in units of the direction, 0 where there was none; `num_evals`: evaluations of
    value and gradient since `init`, int32; `status`: a `Status`, 0 while all is well, int32; `evaluation`: value,
    gradient and aux at the new parameters, the value inf before the first step.
    """

    step_size: Array
    num_evals: Array
    status: Array
    evaluation: Evaluation | None


class Ask(NamedTuple):
    """The keywords of `update`, sorted out: the objective at the parameters and around them.

    `grad` is in at least 32 bits; `budget` bounds the evaluations of this step where there is one, and 0 means: stay.
    """

    params: Any
    value: Array
    grad: Any
    value_fn: Callable[[Any], Array]
    value_and_grad_fn: Callable[[Any], tuple[Any, Any]]
    has_aux: bool
    budget: Array | None

    def unless(self, stay: Array) -> "Ask":
        """The same, but for no evaluation and no move where `stay`."""
        return self._replace(budget=jnp.where(stay, 0, MAX_EVALS if self.budget is None else self.budget))


def start_search(params: Any) -> Search:
    """Before the first step."""
    check_real(params)
    dtype = working_dtype(params)
    nowhere = Evaluation(jnp.full((), jnp.inf, dtype), widened(jax.tree.map(jnp.zeros_like, params)))
    zero = jnp.zeros((), jnp.int32)
    return Search(jnp.zeros((), dtype), zero, zero, nowhere)


def ask(
    name: str,
    grads: Any,
    params: Any,
    value: Any = None,
    grad: Any = None,
    value_fn: Callable[[Any], Any] | None = None,
    value_and_grad_fn: Callable[[Any], tuple[Any, Any]] | None = None,
    has_aux: bool = False,
    budget: Any = None,
    **_: Any,
) -> Ask:
    """Check the keywords of `update`, and fill in what follows from the others."""
    missing = [key for key, given in (("params", params), ("value", value), ("value_fn", value_fn)) if given is None]
    if missing or value_fn is None:
        raise ValueError(
            f"{name}: update needs params, value= and value_fn=; {', '.join(missing)} not given. It evaluates the "
            "objective along its direction: call update(grads, state, params, value=f(params), grad=grads, "
            "value_fn=f), or leave the loop to jaxopt_course.minimize"
        )
    check_match(grads, "parameters", params)
    check_real(params)
    wide, value = widened(grads if grad is None else grad), jnp.asarray(value)
    return Ask(params, value, wide, value_fn, value_and_grad_fn or jax.value_and_grad(value_fn), has_aux, budget)


def search_along(line_search: LineSearch, asked: Ask, direction: Any, first_length: Any) -> Step:
    return line_search(
        asked.value_and_grad_fn,
        asked.params,
        asked.value,
        asked.grad,
        direction,
        first_length=first_length,
        has_aux=asked.has_aux,
        budget=asked.budget,
    )


def full_step(asked: Ask, length: Array) -> Step:
    """A step of that length, without a look at where it leads."""
    length = jnp.where(may_move(asked), length, 0)
    none = jnp.zeros((), jnp.int32)
    return Step(length, jnp.full_like(length, jnp.nan), None, none, none)


def found(search: Search, step: Step, status: Array) -> Search:
    """The record of a step."""
    dtype = search.step_size.dtype
    point = step.point and step.point._replace(value=step.point.value.astype(dtype))
    num_evals = total_count(search.num_evals, step.num_evals)
    return Search(step.length.astype(dtype), num_evals, status.astype(jnp.int32), point)


def total_count(before: Array, new: Array) -> Array:
    """The sum of two counts, int32; it stops at the largest int32 instead of wrapping around."""
    total = before + new
    return jnp.where(total < before, jnp.iinfo(jnp.int32).max, total)


def check_real(params: Any) -> None:
    """Raise TypeError that names the first leaf that is not a real floating-point array."""
    check_floating(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"second-order optimizers need real parameters, params{jax.tree_util.keystr(path)} is "
                f"{jnp.result_type(leaf)}; optimize its real and imaginary parts as two arrays"
            )


def may_move(asked: Ask) -> Array:
    """Whether this step may be taken: False for what is frozen, a lane that has ended among others."""
    return jnp.asarray(True if asked.budget is None else asked.budget > 0)
