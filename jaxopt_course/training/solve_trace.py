"""The history of a solve, one row for each step."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxopt_course.annotations import Array


class SolveTrace(NamedTuple):
    """The history of a solve, `[max_steps + 1]` each: row i is after i steps. Rows beyond the last step are NaN.

    `value`; `grad_norm`, the largest absolute entry of the gradient; `step_size`, the length accepted by the line
    search in units of its direction, or the Euclidean norm of the update if the optimizer has no line search;
    `num_evals`, the number of evaluations so far, 0 beyond the last step.
    """

    value: Array
    grad_norm: Array
    step_size: Array
    num_evals: Array


def blank_trace(length: int | None, value: Array, grad_norm: Array) -> SolveTrace | None:
    """Return a trace in which only the row of the start is written; None if no length is given."""
    if length is None:
        return None
    blank, none = jnp.full(length, jnp.nan, value.dtype), jnp.zeros(length, jnp.int32)
    return recorded(SolveTrace(blank, blank, blank, none), 0, value, grad_norm, jnp.zeros_like(value), 1)


def recorded(
    trace: SolveTrace, row: Any, value: Array, grad_norm: Array, step_size: Array, num_evals: Any
) -> SolveTrace:
    """Return the trace with one more row."""
    values = (value, grad_norm, step_size, num_evals)
    return SolveTrace(*(rows.at[row].set(value) for rows, value in zip(trace, values, strict=True)))


def with_evals(trace: SolveTrace, row: Array, num_evals: Array) -> SolveTrace:
    """Return the trace with a new count of evaluations in one row."""
    return trace._replace(num_evals=trace.num_evals.at[row].set(num_evals))
