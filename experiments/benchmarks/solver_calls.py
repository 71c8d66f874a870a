"""What does a call cost? Many small solves at once, and a solve that starts at the minimum."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.benchmarks import timing
from experiments.benchmarks.solver_peers import GTOL, SLACK, Problem, evaluating

BATCH, EXAMPLES, FEATURES, BATCH_L2 = 1024, 100, 64, 1e-2
CALLS = 20  # calls in one sample, of a function that returns immediately


class Outcome(NamedTuple):
    tables: list[tuple[str, Sequence[str], list[list[str]]]]
    timings: list[timing.Timing]
    ratios: list[timing.Ratio]
    facts: dict[str, float]


def batch(rounds: int) -> Outcome:
    """Binary logistic regressions, many at once; the results of all solvers must agree.

    The problems of a batch advance in step, so the floor is the number of evaluations of the slowest problem times the
    time of one evaluation of all.
    """
    import jax

    outcome, lines = Outcome([], [], [], {}), []
    for dtype, gtol in GTOL.items():
        group = f"batch {dtype}"
        with jax.enable_x64(dtype == "float64"):
            problem = small_regressions(dtype)
            runs = batch_runs(problem)
            returned = {label: run() for label, run in runs.items()}
            notes = agreement(returned, gtol)
            evaluations = int(returned["vmap"].num_evals.max())
            floor = f"{evaluations} evaluations"
            notes[floor] = "of all, in a compiled loop"
            times = timing.race(group, runs | {floor: evaluating(problem, evaluations)}, rounds, notes=notes)
        lines += timing.race_lines(times, "vmap", scale=1e3)
        outcome.ratios.extend(
            [
                timing.ratio(f"{group}: Python loop / vmap", times["Python loop"], times["vmap"], ">=", 10.0),
                timing.ratio(f"{group}: vmap / its evaluations", times["vmap"], times[floor], "<=", 2.0),
            ]
        )
        outcome.timings.extend(times.values())
    title = f"{BATCH:,} logistic regressions with lbfgs, {FEATURES} features, {EXAMPLES} examples each"
    outcome.tables.append((title, ["problem", "contestant", "ms", "min ms", "/ vmap", "note"], lines))
    return outcome


def small_regressions(dtype: str) -> Problem:
    """`w[B, D]`, `x[B, N, D]` and labels `y[B, N]` of -1 and 1, not linearly separable; the sum of all risks."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, EXAMPLES, FEATURES))
    true = rng.standard_normal((BATCH, FEATURES, 1)) / math.sqrt(FEATURES)
    y = np.sign((x @ true)[..., 0] + 0.5 * rng.standard_normal((BATCH, EXAMPLES)))

    def objective(w: Any, data: Any) -> Any:
        return jnp.sum(jax.vmap(small_regression)(w, data))

    data = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    return Problem(objective, data, jnp.zeros((BATCH, FEATURES), dtype), GTOL[dtype], objective, BATCH_L2)


def small_regression(w: Any, data: Any) -> Any:
    import jax
    import jax.numpy as jnp

    x, y = data
    return jnp.mean(jax.nn.softplus(-y * (x @ w))) + BATCH_L2 * jnp.sum(w * w)


def batch_runs(problem: Problem) -> dict[str, timing.Run]:
    import jax
    from jax import lax

    import jaxopt_course as jc

    optimizer = jc.lbfgs()

    def solve_one(start: Any, data: Any) -> Any:
        result = jc.minimize(small_regression, optimizer, start, data=data, gtol=problem.gtol, ftol=0.0, xtol=0.0)
        return result._replace(state=None)

    batched = problem.start, problem.data
    singles = [jax.tree.map(lambda leaf, i=i: leaf[i], batched) for i in range(BATCH)]
    one, at_once = jax.jit(solve_one), jax.jit(jax.vmap(solve_one))
    mapped = jax.jit(lambda batched: lax.map(lambda single: solve_one(*single), batched))
    return {
        "vmap": lambda: at_once(*batched),
        "Python loop": lambda: [one(*single) for single in singles],
        "lax.map": lambda: mapped(batched),
    }


def agreement(returned: Mapping[str, Any], gtol: float) -> dict[str, str]:
    """Compare the results with the first and note the evaluations; differences must be within the gradient's bound."""
    import jax
    import numpy as np

    stacked = {
        label: jax.tree.map(lambda *leaves: np.stack(leaves), *result) if isinstance(result, list) else result
        for label, result in returned.items()
    }
    reference = np.asarray(next(iter(stacked.values())).params)
    allowed = 2 * SLACK * math.sqrt(FEATURES) * gtol / (2 * BATCH_L2)  # strong convexity: |w - w*| <= |g| / (2 l2)
    notes = {}
    for label, result in stacked.items():
        params, evals = np.asarray(result.params), np.asarray(result.num_evals)
        apart, failed = float(np.abs(params - reference).max()), int((np.asarray(result.status) <= 0).sum())
        if failed or not apart <= allowed:
            raise ValueError(f"{label}: {failed} failed, and the parameters are {apart:.1e} apart, not {allowed:.1e}")
        notes[label] = f"{evals.min()} to {evals.max()} evaluations, mean {evals.mean():.1f}; {apart:.0e} apart"
    return notes


def meta(rounds: int) -> Outcome:
    """The cost of a call: the start is the minimum of a sum of squares, where one evaluation suffices."""
    import jax
    import jax.numpy as jnp

    import jaxopt_course as jc

    def squares(x: Any) -> Any:
        return jnp.sum(x * x)

    def residuals(x: Any, data: Any) -> Any:
        return jnp.sum((data["A"] @ x - data["b"]) ** 2)

    optimizer, start = jc.lbfgs(), jnp.zeros(10)
    data = {"A": jnp.eye(10), "b": jnp.zeros(10)}
    in_jit = jax.jit(lambda x: jc.minimize(squares, optimizer, x))
    evaluate = jax.jit(jax.value_and_grad(squares))
    runs: dict[str, timing.Run | None] = {
        "ours": lambda: jc.minimize(squares, optimizer, start),
        "ours, with data": lambda: jc.minimize(residuals, optimizer, start, data=data),
        "ours, in one jit": lambda: in_jit(start),
        "scipy L-BFGS-B": scipy_at_minimum(evaluate, start) if timing.installed("scipy") else None,
        "one evaluation": lambda: evaluate(start),
    }
    notes = {"ours": "minimize, lbfgs", "scipy L-BFGS-B": "jitted value and gradient", "one evaluation": "jitted"}
    repeated = {label: run and repeating(run) for label, run in runs.items()}
    present = {label: note for label, note in notes.items() if runs[label]}
    times = timing.race("meta", repeated, rounds, per=CALLS, notes=present)
    columns = ["problem", "contestant", "us", "min us", "/ evaluation", "note"]
    lines = timing.race_lines(times, "one evaluation")
    return Outcome([("A call with nothing to do, 10 numbers", columns, lines)], list(times.values()), [], {})


def scipy_at_minimum(evaluate: Callable[[Any], Any], start: Any) -> timing.Run:
    import numpy as np
    from scipy import optimize

    def function(x: Any) -> tuple[float, Any]:
        value, grad = evaluate(x.astype(np.float32))
        return float(value), np.asarray(grad, np.float64)

    return lambda: optimize.minimize(function, np.asarray(start, np.float64), jac=True, method="L-BFGS-B")


def repeating(run: timing.Run) -> timing.Run:
    import jax

    def often() -> None:
        for _ in range(CALLS):
            jax.block_until_ready(run())

    return often
