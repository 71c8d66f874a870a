"""A compiled solve, whole or in pieces: its data, its static options, and its result."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jaxopt_course.annotations import AnyOptimizer, Array, Batch, Objective, OptState, Params, PyTree
from jaxopt_course.dtypes import working_dtype
from jaxopt_course.optimizers.separable import Separable
from jaxopt_course.training.checks import check_objective_argument
from jaxopt_course.training.implicit import Solution, with_derivatives
from jaxopt_course.training.meshes import everywhere, explicit_mesh, on_auto_axes, replicated, resharded_like
from jaxopt_course.training.programs import Program
from jaxopt_course.training.real_parameters import from_real_pairs, joined, real_pairs
from jaxopt_course.training.solve_steps import Solve, run_solve
from jaxopt_course.training.steps import scalar_and_aux
from jaxopt_course.training.stopping import Stopping, describe


class Result(NamedTuple):
    """The result of a solve; `str(result)` summarizes it in one line.

    `params`, `value`, `grad_norm` (the largest absolute entry of the gradient), `status` (a `Status`; positive is
    success), `num_steps`, `num_evals` (of value and gradient; products with a Hessian are counted in `state`), `aux`
    (the auxiliary output of the objective at `params`), `trace` (a `SolveTrace`, if requested) and `state` (the
    optimizer's, with its counters).
    """

    params: Params
    value: Array
    grad_norm: Array
    status: Array
    num_steps: Array
    num_evals: Array
    aux: PyTree = None
    trace: Any = None
    state: OptState = None

    def __str__(self) -> str:
        return describe(self)


class Given(NamedTuple):
    """The data of a solve: the arrays of the model without its functions, and a state or None."""

    params: Params
    data: Batch
    state: OptState
    stopping: Stopping
    separable: Separable | None


class Piece(NamedTuple):
    """A piece of a solve: from the `carry` at the end of the previous piece, None for the first, to step `until`."""

    carry: Any
    until: Array | int


class Options(NamedTuple):
    """The static options of a solve."""

    has_aux: bool
    trace_length: int | None
    keep_best: bool
    implicit: bool


@partial(Program, static_argnames=("options",))
def solve(
    callables: tuple[Objective, AnyOptimizer, PyTree], given: Given, piece: Piece | None = None, *, options: Options
) -> tuple[Result, Any]:
    """Solve with this objective, this optimizer and these functions of the model; for a piece, return its carry too.

    A piece is not differentiable, and does not accept arrays on meshes with explicit axes.
    """
    objective, optimizer, functions = callables
    check_objective_argument("minimize", objective, *(["params"] if given.data is None else ["params", "data"]))

    def of_arrays(params: Params, *data: Batch) -> Any:
        return objective(joined(params, functions), *data)

    args = (given.params,) if given.data is None else (given.params, given.data)
    given = given._replace(params=None, data=None)
    if (mesh := explicit_mesh(args)) is None:
        return _solve_real_pairs(optimizer, given, piece, options, of_arrays, *args)

    def run(objective: Objective, *args: PyTree) -> tuple[Result, Any]:
        local = given._replace(separable=everywhere(given.separable))
        return _solve_real_pairs(optimizer, local, None, options, objective, *args)

    result, _ = on_auto_axes(mesh, run, of_arrays, *args)
    whole = replicated(result._replace(params=None, state=None), mesh)
    return whole._replace(params=resharded_like(result.params, args[0], mesh), state=result.state), None


def _solve_real_pairs(
    optimizer: AnyOptimizer,
    given: Given,
    piece: Piece | None,
    options: Options,
    objective: Objective,
    params: Params,
    *data: Batch,
) -> tuple[Result, Any]:
    """Run the solve on real parameters; complex ones are converted to pairs of real ones."""

    def value_and_aux(pairs: Params, *data: Batch) -> tuple[Array, PyTree]:
        return scalar_and_aux("minimize", objective(from_real_pairs(pairs, params), *data), options.has_aux)

    def run(
        objective: Callable[[Params], tuple[Array, PyTree]], start: Params, rest: Any, separable: Separable | None
    ) -> Solution:
        state, stopping, piece = rest
        dtype = working_dtype(start)
        problem = Solve(start, objective, optimizer, stopping, options.keep_best, dtype, separable)
        carry, after = run_solve(problem, state, options.trace_length, piece)
        end = carry.here
        record = carry.num_steps, carry.num_evals, carry.trace, carry.state, after
        return Solution(end.params, end.value, end.aux, carry.status, end.grad_norm, carry.largest_grad, record)

    start, rest = real_pairs(params), (given.state, given.stopping, piece)
    if options.implicit and piece is None:
        end = with_derivatives(run, value_and_aux, start, rest, data, given.separable)
    else:
        end = run(lambda pairs: value_and_aux(pairs, *data), start, rest, given.separable)
    num_steps, num_evals, trace, state, after = end.record
    whole = from_real_pairs(end.params, params)
    result = Result(whole, end.value, end.grad_norm, end.status, num_steps, num_evals, end.aux, trace, state)
    return result, after
