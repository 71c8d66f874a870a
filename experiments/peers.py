"""The profiled solvers: our second-order solvers and their peers, each through its public interface, with its cost.

All solvers run in float64 from the same start, with the same bound on evaluations of value and gradient, and with their
own defaults except for the tolerance. Evaluations are counted, and the history of values is recorded, as follows:

- ours: `Result.num_evals`, and the trace, which has the value after each step. A Hessian counts as n Hessian-vector
  products, including the Hessian that `newton` evaluates at the end; `newton_cg` counts the products of its conjugate
  gradients.
- scipy: calls of the given function, which returns value and gradient; a Hessian counts as n products.
- optax: one at the start, one for every step of its line search, and one more whenever its own loop evaluates again.
- optimistix: one for every step, which evaluates the value, and the gradient if the step is accepted.
- jaxopt L-BFGS: `num_fun_eval` minus one per step, for a value that is not used and that XLA removes; L-BFGS-B:
  `num_fun_eval`.
"""

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxopt_course as jc
from experiments.contestants import contestant
from experiments.problems import RATES
from experiments.solve import how_good


class Task(NamedTuple):
    """A problem to solve, compiled once for all solvers that call it from Python.

    `recorded`: its known minimal values; `bounds`: None, or the lower and the upper bounds of the parameters; the start
    is within them.
    """

    collection: str
    name: str
    fn: Callable[[Any], Any]
    start: np.ndarray
    recorded: tuple[float, ...]
    value_and_grad: Callable[[Any], Any]
    hessian: Callable[[Any], Any]
    bounds: tuple[np.ndarray, np.ndarray] | None = None


class Limits(NamedTuple):
    gtol: float
    max_evals: int


class Outcome(NamedTuple):
    """Where a solver stopped, its claim, and its cost; rows of `history` are value, evaluations and products so far."""

    params: np.ndarray
    success: bool
    status: str
    history: np.ndarray  # [rows, 3]
    evaluations: int
    products: int


class Solver(NamedTuple):
    """A solver and its settings.

    `given`: its arguments beside the start, in words; `drawn`: whether it is in the profiles; `bounded`, `unbounded`:
    whether it is used on problems with bounds and on problems without bounds.
    """

    label: str
    package: str
    given: str
    solve: Callable[[Task, Limits], Outcome]
    drawn: bool = True
    bounded: bool = False
    unbounded: bool = True

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def make_task(
    collection: str,
    name: str,
    fn: Callable[[Any], Any],
    start: Any,
    recorded: tuple[float, ...] = (),
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> Task:
    value_and_grad, hessian = jax.jit(jax.value_and_grad(fn)), jax.jit(jax.hessian(fn))
    start = np.asarray(start, float) if bounds is None else np.clip(np.asarray(start, float), *bounds)
    return Task(collection, name, fn, start, recorded, value_and_grad, hessian, bounds)


def lbfgs(task: Task, limits: Limits) -> Outcome:
    return outcome_of(minimize(task, limits, jc.lbfgs()), lambda steps: 0 * steps)


def newton(task: Task, limits: Limits) -> Outcome:
    result = minimize(task, limits, jc.newton())
    outcome = outcome_of(result, lambda steps: len(task.start) * steps)
    return outcome._replace(products=outcome.products + len(task.start) * outcome.success)


def newton_cg(task: Task, limits: Limits) -> Outcome:
    result = minimize(task, limits, recording(jc.newton_cg(), limits.max_evals + 1))
    return outcome_of(result, lambda steps: np.asarray(result.state.products)[steps])


def minimize(task: Task, limits: Limits, optimizer: Any, trace: bool = True) -> jc.Result:
    most = limits.max_evals  # a step takes at least one
    return jc.minimize(
        task.fn,
        optimizer,
        task.start,
        bounds=task.bounds,
        gtol=limits.gtol,
        max_steps=most,
        max_evals=most,
        trace=trace,
    )


def outcome_of(result: jc.Result, products_after: Callable[[np.ndarray], np.ndarray]) -> Outcome:
    steps, status = np.arange(int(result.num_steps) + 1), jc.Status(int(result.status))
    assert result.trace is not None
    values, evaluations = np.asarray(result.trace.value)[steps], np.asarray(result.trace.num_evals)[steps]
    products = products_after(steps)
    history = np.stack([values, evaluations, products], axis=1)
    return Outcome(
        np.asarray(result.params), status > 0, status.name, history, int(result.num_evals), int(products[-1])
    )


class Recorded(NamedTuple):
    """The state of an optimizer with a line search, and its number of products after each step."""

    search: Any
    inner: Any
    products: jax.Array
    count: Any


def recording(optimizer: Any, rows: int) -> Any:
    """Wrap an optimizer so that its state keeps `num_products` of every step."""

    def init(params: Any) -> Recorded:
        state, zero = optimizer.init(params), jnp.zeros((), jnp.int32)
        return Recorded(state.search, state._replace(search=None), jnp.zeros(rows, jnp.int32), zero)

    def update(grads: Any, state: Recorded, params: Any, **keywords: Any) -> tuple[Any, Recorded]:
        updates, new = optimizer.update(grads, state.inner._replace(search=state.search), params, **keywords)
        count = state.count + 1
        products = state.products.at[count].set(new.num_products)
        return updates, Recorded(new.search, new._replace(search=None), products, count)

    return optax.GradientTransformationExtraArgs(init, update)


def scipy_minimize(method: str, **options: Any) -> Callable[[Task, Limits], Outcome]:
    """Make a solver from a method of `scipy.optimize.minimize`; options with the name of a limit get its value."""

    def solve(task: Task, limits: Limits) -> Outcome:
        history: list[tuple[float, int, int]] = []
        best: list[Any] = [np.inf, task.start]
        hessians, n, out_of_budget = 0, len(task.start), False

        def value_and_grad(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, grad = task.value_and_grad(x)
            history.append((float(value), len(history) + 1, hessians * n))
            if value < best[0]:
                best[:] = float(value), x.copy()
            return float(value), np.asarray(grad)

        def hessian(x: np.ndarray) -> np.ndarray:
            nonlocal hessians
            hessians += 1
            return np.asarray(task.hessian(x))

        def stop(intermediate_result: Any) -> None:
            nonlocal out_of_budget
            if len(history) >= limits.max_evals:
                out_of_budget = True
                raise StopIteration

        given = {name: getattr(limits, value) if isinstance(value, str) else value for name, value in options.items()}
        optimize = importlib.import_module("scipy.optimize")
        hess = hessian if method in ("trust-exact", "trust-constr") else None
        bounds = None if task.bounds is None else optimize.Bounds(*task.bounds)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # its result contains what it warns of
            result = optimize.minimize(
                value_and_grad,
                task.start,
                jac=True,
                hess=hess,
                method=method,
                bounds=bounds,
                callback=None if method == "TNC" else stop,  # TNC has its own limit on evaluations
                options=given,
            )
        status = f"{result.status}: {result.message}"
        success = bool(result.success) and not out_of_budget  # trust-exact ignores that it was stopped
        return Outcome(result.x, success, status, np.array(history), len(history), hessians * n)

    return solve


def optax_lbfgs(task: Task, limits: Limits) -> Outcome:
    """The loop from optax's documentation, with a bound on evaluations and with the infinity norm."""
    optimizer, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(task.fn)

    def going(carry: Any) -> jax.Array:
        _, state, _, step, evaluations = carry
        norm = jnp.max(jnp.abs(optax.tree.get(state, "grad")))
        return (step == 0) | ((norm > limits.gtol) & (evaluations < limits.max_evals) & (step < limits.max_evals))

    def body(carry: Any) -> Any:
        params, state, history, step, evaluations = carry
        anew = ~jnp.isfinite(optax.tree.get(state, "value"))
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=task.fn)
        evaluations += anew + optax.tree.get(state, "num_linesearch_steps")
        history = history.at[step + 1].set(jnp.stack([optax.tree.get(state, "value"), evaluations.astype(float)]))
        return optax.apply_updates(params, updates), state, history, step + 1, evaluations

    @jax.jit
    def run(start: jax.Array) -> Any:
        return lax.while_loop(going, body, (start, optimizer.init(start), *blank(task, limits), jnp.array(0)))

    params, state, history, step, evaluations = jax.device_get(run(jnp.asarray(task.start)))
    success = bool(np.max(np.abs(optax.tree.get(state, "grad"))) <= limits.gtol)
    spent = int(evaluations)
    return Outcome(params, success, said(success, spent, limits), no_products(history[: step + 1]), spent, 0)


def jaxopt_lbfgs(task: Task, limits: Limits) -> Outcome:
    solver = importlib.import_module("jaxopt").LBFGS(task.fn, tol=limits.gtol)

    def evaluations(state: Any) -> jax.Array:
        return state.num_fun_eval - state.iter_num

    def going(carry: Any) -> jax.Array:
        _, state, _, step = carry
        return (state.error > solver.tol) & (evaluations(state) < limits.max_evals) & (step < limits.max_evals)

    def body(carry: Any) -> Any:
        params, state, history, step = carry
        params, state = solver.update(params, state)
        history = history.at[step + 1].set(jnp.stack([state.value, evaluations(state).astype(float)]))
        return params, state, history, step + 1

    @jax.jit
    def run(start: jax.Array) -> Any:
        return lax.while_loop(going, body, (start, solver.init_state(start), *blank(task, limits)))

    params, state, history, step = jax.device_get(run(jnp.asarray(task.start)))
    success, spent = bool(state.error <= solver.tol), int(evaluations(state))
    return Outcome(params, success, said(success, spent, limits), no_products(history[: step + 1]), spent, 0)


def jaxopt_lbfgsb(task: Task, limits: Limits) -> Outcome:
    solver = importlib.import_module("jaxopt").LBFGSB(task.fn, tol=limits.gtol)
    bounds = tuple(map(jnp.asarray, task.bounds or (-np.inf, np.inf)))

    def going(carry: Any) -> jax.Array:
        _, state, _, step = carry
        return (state.error > solver.tol) & (state.num_fun_eval < limits.max_evals) & (step < limits.max_evals)

    def body(carry: Any) -> Any:
        params, state, history, step = carry
        params, state = solver.update(params, state, bounds)
        history = history.at[step + 1].set(jnp.stack([state.value, state.num_fun_eval.astype(float)]))
        return params, state, history, step + 1

    @jax.jit
    def run(start: jax.Array) -> Any:
        return lax.while_loop(going, body, (start, solver.init_state(start, bounds), *blank(task, limits)))

    params, state, history, step = jax.device_get(run(jnp.asarray(task.start)))
    success, spent = bool(state.error <= solver.tol), int(state.num_fun_eval)
    return Outcome(params, success, said(success, spent, limits), no_products(history[: step + 1]), spent, 0)


def optimistix_bfgs(task: Task, limits: Limits) -> Outcome:
    optimistix = importlib.import_module("optimistix")
    values: list[float] = []

    def note(**said: Any) -> None:
        jax.debug.callback(lambda value: values.append(float(value)), said["loss_this_step"][1])

    solver = optimistix.BFGS(rtol=limits.gtol, atol=limits.gtol, verbose=note)
    solution = optimistix.minimise(
        lambda y, args: task.fn(y), solver, jnp.asarray(task.start), max_steps=limits.max_evals, throw=False
    )
    steps = int(solution.stats["num_steps"])
    jax.effects_barrier()
    if len(values) != steps:
        raise RuntimeError(f"optimistix took {steps} steps and reported {len(values)}")
    success = bool(solution.result == optimistix.RESULTS.successful)
    status = "successful" if success else optimistix.RESULTS[solution.result] or "failed"
    history = np.stack([values, np.arange(1, steps + 1)], axis=1)
    return Outcome(np.asarray(solution.value), success, status.split("\n")[0], no_products(history), steps, 0)


def blank(task: Task, limits: Limits) -> tuple[jax.Array, jax.Array]:
    """A history of value and evaluations with only its first row, and the number of steps, 0."""
    start = jnp.array([task.value_and_grad(task.start)[0], 1.0])
    return jnp.zeros((limits.max_evals + 1, 2)).at[0].set(start), jnp.array(0)


def no_products(history: np.ndarray) -> np.ndarray:
    return np.pad(history, ((0, 0), (0, 1)))


def said(success: bool, evaluations: int, limits: Limits) -> str:
    """The status of our own loop around a peer."""
    if success:
        return "the gradient is within the tolerance"
    return "out of evaluations" if evaluations >= limits.max_evals else "stopped"


def solver_of(name: str) -> Solver:
    """A solver in `SOLVERS`, or a rule of ours, of optax or of a file, with its best learning rate on each problem."""
    if name in SOLVERS:
        return SOLVERS[name]
    rule = contestant(name)
    given = f"gtol; on each problem the best of {len(RATES)} learning rates from {RATES[0]:g} to {RATES[-1]:g}"
    return Solver(rule.label, "jax", given, partial(at_best_rate, rule.make))


def at_best_rate(make: Callable[..., Any], task: Task, limits: Limits) -> Outcome:
    def lane(rate: jax.Array) -> Any:
        return minimize(task, limits, make(rate), trace=False)

    tried = jax.device_get(jax.jit(jax.vmap(lane))(jnp.asarray(RATES)))
    fields = ("status", "num_evals", "value")
    best = min(range(len(RATES)), key=lambda i: how_good({name: getattr(tried, name)[i] for name in fields}))
    return outcome_of(minimize(task, limits, make(RATES[best])), lambda steps: 0 * steps)


SOLVERS: dict[str, Solver] = {
    "lbfgs": Solver("L-BFGS", "jax", "gtol", lbfgs, bounded=True),
    "newton": Solver("Newton", "jax", "gtol", newton, bounded=True),
    "newton_cg": Solver("Newton-CG", "jax", "gtol", newton_cg, bounded=True),
    "scipy_lbfgsb": Solver(
        "scipy L-BFGS-B",
        "scipy",
        "gtol; ftol=0, so that only the gradient decides",
        scipy_minimize("L-BFGS-B", gtol="gtol", ftol=0, maxfun="max_evals", maxiter="max_evals"),
        bounded=True,
    ),
    "scipy_lbfgsb_defaults": Solver(
        "L-BFGS-B (defaults)",
        "scipy",
        "nothing: ftol=2.2e-9, gtol=1e-5",
        scipy_minimize("L-BFGS-B", maxfun="max_evals", maxiter="max_evals"),
        drawn=False,
        bounded=True,
    ),
    "scipy_bfgs": Solver("scipy BFGS", "scipy", "gtol", scipy_minimize("BFGS", gtol="gtol", maxiter="max_evals")),
    "scipy_trust_exact": Solver(
        "scipy trust-exact",
        "scipy",
        "gtol, for the Euclidean norm; the Hessian from jax.hessian",
        scipy_minimize("trust-exact", gtol="gtol", maxiter="max_evals"),
    ),
    "optax_lbfgs": Solver("optax L-BFGS", "optax", "gtol, tested by the loop", optax_lbfgs),
    "optimistix_bfgs": Solver(
        "optimistix BFGS",
        "optimistix",
        "rtol=atol=gtol, of step and decrease: it has no test of the gradient",
        optimistix_bfgs,
    ),
    "jaxopt_lbfgs": Solver("jaxopt L-BFGS", "jaxopt", "tol=gtol, for the Euclidean norm", jaxopt_lbfgs),
    "scipy_tnc": Solver(
        "scipy TNC",
        "scipy",
        "gtol; ftol=xtol=0, so that only the gradient decides",
        scipy_minimize("TNC", gtol="gtol", ftol=0, xtol=0, maxfun="max_evals"),
        bounded=True,
        unbounded=False,
    ),
    "scipy_trust_constr": Solver(
        "scipy trust-constr",
        "scipy",
        "gtol; xtol=0; the Hessian from jax.hessian",
        scipy_minimize("trust-constr", gtol="gtol", xtol=0, maxiter="max_evals"),
        bounded=True,
        unbounded=False,
    ),
    "jaxopt_lbfgsb": Solver(
        "jaxopt L-BFGS-B",
        "jaxopt",
        "tol=gtol, for the projected gradient",
        jaxopt_lbfgsb,
        bounded=True,
        unbounded=False,
    ),
}
