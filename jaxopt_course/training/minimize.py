"""Full-batch solves: from a start to a minimum in one compiled loop, with a status that says how it ended."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_course.annotations import AnyOptimizer, Array, Batch, Objective, OptState, Params, PyTree
from jaxopt_course.arrays import check_arrays, on_device
from jaxopt_course.dtypes import check_floating
from jaxopt_course.training.checks import check_optimizer_argument
from jaxopt_course.training.habits import check_unknown_arguments
from jaxopt_course.training.pieces import SolveSnapshot, Watch, solve_in_pieces
from jaxopt_course.training.real_parameters import arrays_and_functions, joined, real_pairs
from jaxopt_course.training.searches import without_evaluation
from jaxopt_course.training.solve import Given, Options, Result, solve
from jaxopt_course.training.states import continued_state
from jaxopt_course.training.stopping import Stopping
from jaxopt_course.training.terms import separable_term

Tolerance = int | float | Array | None
UNLIMITED = int(np.iinfo(np.int32).max)
Bounds = tuple[PyTree, PyTree] | None


def minimize(
    objective: Objective,
    optimizer: AnyOptimizer,
    params: Params,
    *,
    data: Batch = None,
    max_steps: int | Array = 1000,
    max_evals: int | Array | None = None,
    gtol: Tolerance = None,
    ftol: Tolerance = None,
    xtol: Tolerance = None,
    target: Tolerance = None,
    has_aux: bool = False,
    trace: bool = False,
    best: bool = True,
    state: OptState = None,
    bounds: Bounds = None,
    l1: PyTree = None,
    implicit: bool = True,
    progress: bool | None = None,
    callback: Callable[[SolveSnapshot], Any] | None = None,
    **unknown: Any,
) -> Result:
    r"""Minimize a function of all the data at once, until its gradient is small or the remaining gain is negligible.

    $$w_{t+1} = w_t + u_t, \qquad u_t, \sigma_{t+1} = \mathrm{update}\bigl(\nabla f(w_t), \sigma_t, w_t\bigr)$$

    The solve is one compiled loop. Calls with the same objective, optimizer, shapes and kinds of tolerance compile
    once, and again if a NumPy array that the objective reaches has changed. The function is pure: it can be called
    inside `jit`, and under `vmap` every lane stops at its own end. The *gain* is the decrease since the start, and the
    *remaining gain* is the estimated decrease to the minimum. The solve ends with the first of these that is true:

    - TARGET_REACHED: the value is at most `target`;
    - GRADIENT_NORM: the gradient is 0, or its largest absolute entry is at most `gtol`. If no tolerance is given: the
      remaining gain is at most 1e-18 of the gain;
    - SMALL_DECREASE: the remaining gain is at most `ftol` max(|f|, gain). If no tolerance is given: no lower point can
      be found or no step is left, and the remaining gain is at most 1e-8 (4 eps, if that is more) of the gain, or lost
      in rounding;
    - SMALL_STEP: the minimum is estimated to be within `xtol` |w|;
    - a failure: a budget is used up, a quantity is not finite, no lower point is found along a descent direction
      (LINE_SEARCH_FAILED, or ROUNDOFF_LIMITED if the possible decrease is below the rounding of the value), or the
      value falls without bound.

    If a tolerance is given, only the given tolerances decide. Success is never claimed above the value of the start,
    nor because a step was short. The minimum must also be estimated to be near: within 1e-3 of each parameter, or of
    its change since the start, or within 0.03 if the remaining gain is also at most 1e-8 |f|. (Without this test, a
    start far above all later values would make every remaining gain look small.) For `newton` and `newton_cg` the
    remaining gain is half of the Newton decrement. For `lbfgs` it is the same of its model, corrected by the slopes
    found in its line searches. That model knows only the last steps, and other optimizers may take steps of any length.
    For all of these, one more evaluation and up to 30 products with the Hessian therefore estimate the remaining gain
    by conjugate gradients: for `lbfgs` when its model claims a success; for others when the curvature along the last
    step suggests that the end is near, when ten consecutive steps gained nothing, and when the budget is used up. Up to
    rounding, these claims do not depend on a factor or a constant of the objective.

    The result is differentiable. Derivatives of `params`, `value` and `aux` with respect to the data, to values that
    the objective closes over, to bounds and to strengths are those of the minimum, by the implicit function theorem.
    Derivatives with respect to the start are 0. They are NaN if no minimum was found (a failure, or TARGET_REACHED), if
    the Hessian is singular, and if a parameter is just about to leave its bound. Up to 256 parameters the Hessian is
    factored; for more, conjugate gradients solve the system. Derivatives of the other fields are 0.

    With bounds, the objective is never called outside them; with `l1`, parameters can become exactly 0. Optimizers with
    a line search go to the minimum of their quadratic model within the bounds; the steps of others are projected, and
    `sgd` takes proximal steps. `grad_norm` is then the largest entry of the smallest subgradient (for bounds, the
    projected gradient).

    Optimizers with a line search pass on the evaluation at the end of their step, so that nothing is computed twice;
    for others there is one evaluation per step. Complex parameters are optimized as pairs of real ones. Parameters and
    data may be sharded, and state is sharded like its parameters. On a mesh with explicit axes, the objective sees
    their sharding types, and the compiler partitions the computations of the optimizer.

    Args:
      objective: `params -> scalar`, or `(params, data) -> scalar` with data; `(scalar, aux)` with `has_aux`.
      optimizer: ours or any of optax's; its `update` gets `value`, `grad` and `value_fn` at each step.
      params: any tree of floating-point arrays, the start. A model that is a tree, such as an Equinox module, may have
        functions among its leaves; they are not changed.
      data: any tree of arrays, sharded or not, or None.
      max_steps: most steps.
      max_evals: most evaluations of value and gradient; by default, no limit.
      gtol: for the largest absolute entry of the gradient, units of value per unit of parameter.
      ftol: for the remaining gain, relative to the value or to the gain.
      xtol: for the distance to the minimum, relative to the Euclidean norm of the parameters.
      target: units of value; by default, none.
      has_aux: whether the objective returns `(value, aux)`.
      trace: record value, gradient norm, step size and evaluations of every step.
      best: if the solve did not succeed, return the point with the lowest value; otherwise the last finite one.
      bounds: `(lower, upper)`, each a number, None, or a tree of arrays like the parameters or a prefix of it; a start
        outside is moved inside.
      l1: strengths of a penalty sum l1 |w|, a number or a tree or prefix >= 0, units of value per unit of parameter; 0
        means no penalty on a parameter. For `lbfgs` and `sgd`. `value` includes the penalty.
      implicit: whether derivatives are those of the minimum; False differentiates the loop itself, forward mode only.
      progress: show a bar on stderr; by default if stderr is a terminal and rich is installed. Outside jit.
      callback: called with a `SolveSnapshot` between compiled pieces of the solve, every ten steps; if it returns
        True, the solve ends with INTERRUPTED. The result is the same as without a callback, but has no derivatives.
        Outside jit.
      state: continue from this optimizer state, or from the state of this `Result` or `TrainResult`, with more steps
        or another learning rate. `params` is the point to continue from, usually `result.params`.

    Returns:
      `Result(params, value, grad_norm, status, num_steps, num_evals, aux, trace, state)`; `str(result)` is a one-line
      summary. With `newton`, `result.state.lowest_curvature` is that at the end; a negative one indicates a saddle.

    Raises:
      ValueError: a tolerance or budget out of range, an objective that is not scalar, a state of another optimizer, a
        lower bound above the upper one, a strength below 0.
      TypeError: parameters that are not floating point, or complex under bounds or penalties; l1 for an optimizer that
        cannot set parameters to exactly 0; a callback under jit, vmap or grad; arguments of other libraries, such as
        `args` or `tol`, with the equivalent here.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxopt_course as jc
      >>> valley = jc.mgh.PROBLEMS["rosenbrock"]
      >>> result = jc.minimize(valley.fn, jc.lbfgs(), jnp.array(valley.start))
      >>> print(jc.Status(int(result.status)).name, result.params.round(3))
      GRADIENT_NORM [1. 1.]
      >>> f"{valley.fn(valley.start):.1f} -> {result.value:.6f}"
      '24.2 -> 0.000000'
      >>> jc.minimize(valley.fn, jc.lbfgs(), jnp.array(valley.start), bounds=(None, 0.5)).params.round(3)
      Array([0.5 , 0.25], dtype=float32)
      >>> closest = lambda center: jc.minimize(lambda w: jnp.sum((w - center) ** 2), jc.lbfgs(), jnp.zeros(2)).params
      >>> jax.jacobian(closest)(jnp.array([3.0, 4.0])).round(3)
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    Source: the lecture's "L-BFGS": "if you can afford to do full batch updates"; the Newton decrement as an estimate of
    the remaining gain: Boyd and Vandenberghe (2004), "Convex optimization", section 9.5.1.
    """
    check_unknown_arguments(unknown)
    check_optimizer_argument("minimize", optimizer)
    params, functions = arrays_and_functions(params)
    check_arrays("params", params)
    check_arrays("data", data)
    check_floating(params)
    params = jax.tree.map(_as_array, params)
    limits = ("gtol", gtol, 0), ("ftol", ftol, 0), ("xtol", xtol, 0)
    for name, value, least in (*limits, ("max_steps", max_steps, 0), ("max_evals", max_evals, 1)):
        if isinstance(value, int | float) and not value >= least:
            raise ValueError(f"minimize: {name} must be at least {least}, got {value}")
    stopping = Stopping(
        gtol=gtol,
        ftol=ftol,
        xtol=xtol,
        target=-math.inf if target is None else target,
        max_steps=max_steps,
        max_evals=UNLIMITED if max_evals is None else max_evals,
    )
    given = Given(
        params,
        jax.tree.map(on_device, data),
        None if state is None else _continued(optimizer, params, state),
        stopping,
        separable_term(optimizer, params, bounds, l1),
    )
    options = Options(has_aux, int(max_steps) + 1 if trace else None, best, implicit)
    callables = objective, optimizer, functions
    watch = Watch(progress, callback, max_steps)
    if watch.is_wanted(given):
        result = solve_in_pieces(callables, given, options, watch)
    else:
        result, _ = solve(callables, given, options=options)
    return result._replace(params=joined(result.params, functions))


def _as_array(leaf: Any) -> Array:
    """Return the leaf as an array without weak dtype, so that starts of the same kind share one compiled program."""
    as_it_is = isinstance(leaf, jax.Array) and not leaf.weak_type
    return leaf if as_it_is else jnp.asarray(leaf, jnp.result_type(leaf))


def _continued(optimizer: AnyOptimizer, params: Params, given: OptState) -> OptState:
    """Return the state to continue from, for real pairs, and without the evaluation, which the loop carries itself.

    Only structure, dtypes and hyperparameters of the state from `init` are used, so it is created for zero parameters.
    """
    given = without_evaluation(given.state if hasattr(given, "params") and hasattr(given, "state") else given)
    init = optimizer.init
    if hasattr(init, "like") and type(given) is type(jax.eval_shape(init, params)):  # keep the size of the given state
        init = partial(init.like, state=given)
    bare = optax.GradientTransformation(lambda w: without_evaluation(init(w)), optimizer.update)
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), real_pairs(params))
    return continued_state("minimize", given, bare, like)
