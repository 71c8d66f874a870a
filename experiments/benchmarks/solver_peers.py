"""The solvers: ours and the peers on one problem, each as its documentation recommends, until the same |g| is reached.

Every maker takes a `Problem` and returns a `Solver`. `SETTINGS` lists the settings of each peer beyond its defaults.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.benchmarks import timing

GTOL = {"float64": 1e-8, "float32": 1e-5}
SLACK = 1.1  # factor on the tolerance, for the rounding of a gradient in float32
MAX_STEPS = 30_000  # more than any solver needs; the gradient stops a solve

SETTINGS = {  # by the first word of a label, which is also the package
    "ours": "jc.minimize(gtol=, ftol=0, xtol=0)",
    "optax": "optax.lbfgs and value_and_grad_from_state in one jitted while_loop, the zoom search as it is by default",
    "jaxopt": "jaxopt.LBFGS, zoom; init_state and update in one jitted while_loop that looks at the largest entry",
    "torch": "torch.optim.LBFGS(strong_wolfe, tolerance_grad=gtol, tolerance_change=0, history_size=100), eager",
    "scipy": "L-BFGS-B, jitted value and gradient, ftol=0, gtol, maxcor= the number",
    "sklearn": "LogisticRegression(C=1/(2 l2 N), fit_intercept=False, tol=gtol), on the CPU",
}


class Problem(NamedTuple):
    """Minimize `objective(params, data)` from `start` until no entry of the gradient is larger than `gtol`.

    `data` is a tuple; `torch_objective(params, *data)` is the same objective in torch; `l2` is the penalty for solvers
    that take only the penalty.
    """

    objective: Callable[[Any, Any], Any]
    data: tuple[Any, ...]
    start: Any
    gtol: float
    torch_objective: Callable[..., Any]
    l2: float = math.nan


class Ending(NamedTuple):
    """Where a solver stopped and its counts, None if not reported; `products` are Hessian-vector products."""

    params: Any
    steps: int
    evaluations: int | None
    status: str
    products: int | None = None


class Solver(NamedTuple):
    """`run` solves; `read` converts what `run` returned to an `Ending`; `compiling` traces and compiles again."""

    run: timing.Run
    read: Callable[[Any], Ending]
    compiling: timing.Run | None = None


Maker = Callable[[Problem], Solver]


def ours(optimizer: Callable[[], Any], *, in_jit: bool = False) -> Maker:
    """`minimize` called directly, or inside one jit."""
    import jax

    import jaxopt_course as jc

    def make(problem: Problem) -> Solver:
        solve = minimizing(problem, optimizer())

        def read(result: Any) -> Ending:
            products = getattr(result.state, "num_products", None)
            return Ending(
                result.params,
                int(result.num_steps),
                int(result.num_evals),
                jc.Status(int(result.status)).name,
                None if products is None else int(products),
            )

        call = jax.jit(solve) if in_jit else solve
        compiling = compiling_anew(lambda: minimizing(problem, optimizer()), problem)
        return Solver(lambda: call(problem.start, problem.data), read, compiling)

    return make


def minimizing(problem: Problem, optimizer: Any) -> Callable[[Any, Any], Any]:
    import jaxopt_course as jc

    return lambda params, data: jc.minimize(
        problem.objective, optimizer, params, data=data, max_steps=MAX_STEPS, gtol=problem.gtol, ftol=0.0, xtol=0.0
    )


def optax_lbfgs(memory_size: int) -> Maker:
    """The loop from optax's documentation, jitted, with the largest entry as the norm."""

    def make(problem: Problem) -> Solver:
        import jax

        def read(returned: Any) -> Ending:
            params, state, searched = returned
            steps = int(_optax_count(state))
            return Ending(params, steps, 1 + int(searched), "" if steps < MAX_STEPS else "MAX_STEPS")

        solve = jax.jit(optax_loop(problem, memory_size))
        compiling = compiling_anew(lambda: optax_loop(problem, memory_size), problem)
        return Solver(lambda: solve(problem.start, problem.data), read, compiling)

    return make


def optax_loop(problem: Problem, memory_size: int) -> Callable[[Any, Any], Any]:
    import jax.numpy as jnp
    import optax
    from jax import lax

    optimizer = optax.lbfgs(memory_size=memory_size)

    def solve(params: Any, data: Any) -> Any:
        def objective(params: Any) -> Any:
            return problem.objective(params, data)

        value_and_grad = optax.value_and_grad_from_state(objective)

        def step(carry: Any) -> Any:
            params, state, searched = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=objective)
            searched += optax.tree.get(state, "num_linesearch_steps").astype(searched.dtype)
            return optax.apply_updates(params, updates), state, searched

        def going(carry: Any) -> Any:
            count, grad = _optax_count(carry[1]), optax.tree.get(carry[1], "grad")
            return (count == 0) | ((count < MAX_STEPS) & (jnp.max(jnp.abs(grad)) > problem.gtol))

        return lax.while_loop(going, step, (params, optimizer.init(params), jnp.zeros((), jnp.int32)))

    return solve


def _optax_count(state: Any) -> Any:
    import optax

    return optax.tree.get(state, "count")


def jaxopt_lbfgs(history_size: int) -> Maker:
    """`init_state` and `update` in one jitted loop, because `run` tests the Euclidean norm and would run longer."""

    def make(problem: Problem) -> Solver:
        import jax

        def read(returned: Any) -> Ending:
            state = returned[1]
            status = "line search failed" if state.failed_linesearch else ""
            steps, unused = int(state.iter_num), int(state.iter_num)  # values that are not used and that XLA removes
            return Ending(returned[0], steps, int(state.num_fun_eval) - unused, status)

        solve = jax.jit(jaxopt_loop(problem, history_size))
        compiling = compiling_anew(lambda: jaxopt_loop(problem, history_size), problem)
        return Solver(lambda: solve(problem.start, problem.data), read, compiling)

    return make


def jaxopt_loop(problem: Problem, history_size: int) -> Callable[[Any, Any], Any]:
    import jax.numpy as jnp
    import jaxopt
    from jax import lax

    solver = jaxopt.LBFGS(problem.objective, history_size=history_size)

    def solve(params: Any, data: Any) -> Any:
        def going(step: Any) -> Any:
            state = step.state
            return (jnp.max(jnp.abs(state.grad)) > problem.gtol) & (state.iter_num < MAX_STEPS)

        first = jaxopt.OptStep(params, solver.init_state(params, data))
        return lax.while_loop(going, lambda step: solver.update(*step, data), first)

    return solve


def torch_lbfgs(problem: Problem) -> Solver:
    import jax
    import numpy as np
    import torch

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    start, *data = (torch.tensor(np.asarray(leaf), device=device) for leaf in (problem.start, *problem.data))
    data = [leaf if leaf.is_floating_point() else leaf.long() for leaf in data]

    def run() -> Any:
        params = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [params],
            max_iter=MAX_STEPS,
            max_eval=4 * MAX_STEPS,
            tolerance_grad=problem.gtol,
            tolerance_change=0,
            history_size=100,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Any:
            optimizer.zero_grad()
            loss = problem.torch_objective(params, *data)
            loss.backward()
            return loss

        optimizer.step(closure)
        if device == "cuda":
            torch.cuda.synchronize()
        return params, optimizer.state[params]

    def read(returned: Any) -> Ending:
        params, state = returned
        return Ending(params.detach().cpu().numpy(), state["n_iter"], state["func_evals"], "")

    return Solver(run, read)


def scipy_lbfgsb(maxcor: int) -> Maker:
    """SciPy uses float64 vectors; JAX evaluates in the dtype of the problem."""

    def make(problem: Problem) -> Solver:
        import jax
        import numpy as np
        from scipy import optimize

        shape, dtype = problem.start.shape, problem.start.dtype
        value_and_grad = jax.jit(jax.value_and_grad(problem.objective))

        def evaluate(x: Any) -> tuple[float, Any]:
            value, grad = value_and_grad(x.astype(dtype).reshape(shape), problem.data)
            return float(value), np.asarray(grad, np.float64).ravel()

        tolerances = {"ftol": 0.0, "gtol": problem.gtol, "maxiter": MAX_STEPS, "maxfun": 4 * MAX_STEPS}
        start = np.asarray(problem.start, np.float64).ravel()

        def run() -> Any:
            options = tolerances | {"maxcor": maxcor}
            return optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)

        def read(result: Any) -> Ending:
            params = result.x.astype(dtype).reshape(shape)
            return Ending(params, result.nit, result.nfev, result.message.split(":")[0].lower())

        return Solver(run, read)

    return make


def sklearn_logistic(solver: str) -> Maker:
    """scikit-learn on the CPU, for any device; for both of its solvers here, `tol` is the largest gradient entry."""

    def make(problem: Problem) -> Solver:
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        images, labels = map(np.asarray, problem.data)
        strength = 1 / (2 * problem.l2 * len(labels))

        def run() -> Any:
            model = LogisticRegression(
                C=strength, fit_intercept=False, solver=solver, tol=problem.gtol, max_iter=MAX_STEPS
            )
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                return model.fit(images, labels), caught

        def read(returned: Any) -> Ending:
            model, caught = returned
            warned = sorted({warning.category.__name__ for warning in caught})
            return Ending(model.coef_, int(model.n_iter_[0]), None, " ".join(warned))

        return Solver(run, read)

    return make


def compiling_anew(make: Callable[[], Callable[..., Any]], problem: Problem) -> timing.Run:
    """Trace, lower and compile, with caches cleared of earlier compilations."""
    import jax

    compiling = timing.compiling(make, problem.start, problem.data)

    def run() -> None:
        jax.clear_caches()
        compiling()

    return run


def evaluating(problem: Problem, times: int) -> timing.Run:
    """Only value and gradient in one compiled loop; a subtraction makes each evaluation depend on the previous one."""
    import jax
    from jax import lax

    value_and_grad = jax.value_and_grad(problem.objective)

    @jax.jit
    def loop(params: Any, data: Any) -> Any:
        def body(_: Any, carry: Any) -> Any:
            params, total = carry
            value, grad = value_and_grad(params, data)
            return params - 1e-6 * grad, total + value

        return lax.fori_loop(0, times, body, (params, 0 * params.ravel()[0]))

    return lambda: loop(problem.start, problem.data)


def gradient_size(problem: Problem, params: Any) -> float:
    """The largest entry of the gradient at the end, in float64 for every dtype of the solve."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def wide(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return jnp.asarray(leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf)

    with jax.enable_x64(True):
        grad = jax.jit(jax.grad(problem.objective))(wide(params), tuple(map(wide, problem.data)))
        return float(jnp.max(jnp.abs(grad)))
