"""Full-batch solves: softmax regression and the SVM on real images by every method, beside an independent optimum.

Both objectives are strongly convex with modulus 2 * l2, so the error of a reference optimum can be bounded: by
|gradient|^2 / (4 * l2) for softmax regression, which is smooth, and by the duality gap for the SVM, which is not.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_course as jc
from experiments import solve_l1
from experiments.contestants import CONTESTANTS, contestant, contestants
from experiments.problems import LOSSES, describe
from experiments.report import Block, Picture, Table, facts, html_page, print_blocks
from experiments.runs import Run, start_run

RATES = np.logspace(-3.5, 1.5, 11)  # two per decade
FEW = 1000  # most parameters for which the Hessian is formed
TIMED_SECONDS, TIMED_ROUNDS = 0.5, 5  # a solve is repeated until one of these limits is reached
TITLES = {"softmax": "Softmax regression", "hinge": "Multiclass SVM"}
GAP = 1e-10  # duality gap at which the optimum of the SVM is accepted
MULTIPLIER_ROUNDS, MULTIPLIER_STEPS = 14, 1000
CLAIMS = {None: "-", True: "true", False: "FALSE"}

Row = dict[str, Any]
Data = tuple[jax.Array, jax.Array]
Objective = Callable[[Any, Any], jax.Array]
ValueAndGrad = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


class Method(NamedTuple):
    label: str
    make: Callable[[Any], optax.GradientTransformation]  # learning rate -> optimizer
    needs_rate: bool = True
    products: Callable[[jc.Result], int | None] = lambda _: None  # number of Hessian-vector products


METHODS = {
    **{name: Method(rule.label, rule.make) for name, rule in CONTESTANTS.items() if name != "adam_uncorrected"},
    "sgd": Method("Gradient descent", jc.sgd),
    "lbfgs": Method("L-BFGS", lambda _: jc.lbfgs(), needs_rate=False),
    "newton_cg": Method("Newton-CG", lambda _: jc.newton_cg(), False, lambda r: int(r.state.num_products)),
    "newton": Method("Newton", lambda _: jc.newton(), False, lambda r: int(r.num_steps) * int(np.size(r.params))),
}


def method_of(name: str) -> Method:
    """A method in `METHODS`, or a rule of optax or of a file."""
    return METHODS[name] if name in METHODS else Method(*contestant(name)[:2])


class Reference(NamedTuple):
    """An optimum from an independent method; `value` is at most `bound` above the true minimum."""

    params: np.ndarray
    value: float
    bound: float
    source: str


class Problem(NamedTuple):
    """A problem to solve; `exact` are the training images in float64, and `gradient` is compiled."""

    loss: str
    dataset: jc.data.Dataset
    objective: Objective
    gradient: ValueAndGrad
    train: Data
    exact: Data
    test: Data
    start: jax.Array
    l2: float
    reference: Reference


class Solve(NamedTuple):
    """A solve, its times, and the learning rates that were tried before."""

    result: jc.Result
    seconds: float
    compile_seconds: float
    rate: float | None
    tried: list[Row]


def run(args: argparse.Namespace) -> int:
    """Solve both problems by every method, write the folder, print the tables.

    Returns 1 if a claim of success is false.
    """
    if args.l1:
        return solve_l1.run(args)
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    contestants((name for name in args.methods if name not in METHODS), METHODS)  # raises early if a name is wrong
    with jax.enable_x64(True), start_run("solve", asked, args.out) as folder:
        dataset = jc.data.load(args.data, root=args.root)
        folder.note(dtype="float32" if args.float32 else "float64", data=describe(dataset), learning_rates=RATES)
        problems: dict[str, Problem] = {}
        solves: dict[tuple[str, str], Solve] = {}
        results: list[Row] = []
        for loss, name in watch([(loss, name) for loss in LOSSES for name in args.methods], args.quiet or args.json):
            if loss not in problems:
                problems[loss] = load_problem(args, dataset, loss)
            if name == "newton" and problems[loss].start.size > FEW:
                continue
            solves[loss, name] = solve(method_of(name), problems[loss], args)
            results.append(judge(name, solves[loss, name], problems[loss], args.gtol))
        blocks = write_outputs(folder, problems, solves, results)
        if args.json:
            references = {loss: known(problem.reference) for loss, problem in problems.items()}
            print(json.dumps({"folder": str(folder.folder), "references": references, "results": results}))
        elif not args.quiet:
            print_blocks(*blocks, f"{folder.folder}/report.html")
    return 1 if any(result["claim"] is False for result in results) else 0


def load_problem(args: argparse.Namespace, dataset: jc.data.Dataset, loss: str) -> Problem:
    dtype = jnp.float32 if args.float32 else jnp.float64
    objective = jc.empirical_risk(jc.scores.linear, LOSSES[loss], jc.losses.l2_penalty, args.l2)
    train, test = ((jnp.asarray(x, dtype), jnp.asarray(labels)) for x, labels in (dataset.train, dataset.test))
    exact = train[0].astype(jnp.float64), train[1]
    classes, features = len(dataset.class_names), train[0].shape[1]
    start = jc.scores.init_linear(jax.random.key(args.seed), classes, features, bias=False, dtype=dtype)
    gradient = jax.jit(jax.value_and_grad(objective))
    if loss == "softmax":
        reference = scikit_learn_reference(gradient, exact, args.l2)
    else:
        reference = svm_reference(objective, exact, classes, args.l2)
    return Problem(loss, dataset, objective, gradient, train, exact, test, start, args.l2, reference)


# References


def scikit_learn_reference(gradient: ValueAndGrad, data: Data, l2: float) -> Reference:
    """The optimum of softmax regression by scikit-learn's Newton-CG."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    inputs, labels = map(np.asarray, data)
    C = 1 / (2 * l2 * len(labels))
    model = LogisticRegression(C=C, fit_intercept=False, solver="newton-cg", tol=1e-10, max_iter=1000)
    with (
        threadpool_limits(1),
        warnings.catch_warnings(),
    ):  # on a busy machine, threads that wait for each other take 100 times as long
        warnings.simplefilter("ignore", ConvergenceWarning)  # the bound shows how well it converged
        model.fit(inputs, labels)
    value, grad = gradient(jnp.asarray(model.coef_), data)
    source = "scikit-learn's LogisticRegression"
    return Reference(model.coef_, float(value), float(jnp.sum(grad**2)) / (4 * l2), source)


def svm_reference(objective: Objective, data: Data, classes: int, l2: float) -> Reference:
    r"""The optimum of the SVM by the method of multipliers, with a primal and a dual bound.

    With gaps z = s_j - s_y + 1, max(0, z) = max over 0 <= a <= 1 of a z. For fixed a, the best W is
    sum_i,j a_ij (e_y - e_j) x_i / (2 l2 N). The value at this W is the dual, mean_i sum_j a_ij - l2 |W|^2, which is a
    lower bound of the objective. Each round replaces the hinge by the smooth function
    max over a of a z - mu/2 (a - a_old)^2, and minimises the objective by L-BFGS.
    """
    optimizer = jc.lbfgs(20)

    def margins(W: jax.Array, data: Data) -> jax.Array:
        scores = jc.scores.linear(W, data[0])
        own = jnp.take_along_axis(scores, data[1][:, None], axis=1)
        return jnp.where(jax.nn.one_hot(data[1], classes, dtype=bool), -1.0, scores - own + 1)

    def smoothed(W: jax.Array, data: tuple[Data, jax.Array, jax.Array]) -> jax.Array:
        images, multipliers, mu = data
        wanted = multipliers + margins(W, images) / mu
        a = jnp.clip(wanted, 0, 1)
        return mu * jnp.mean(jnp.sum(a * (wanted - a / 2), axis=1)) + l2 * jc.losses.l2_penalty(W)

    @jax.jit
    def bounds(W: jax.Array, multipliers: jax.Array, mu: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        a = jnp.clip(multipliers + margins(W, data) / mu, 0, 1)
        right = jax.nn.one_hot(data[1], classes, dtype=a.dtype)
        best = (right * jnp.sum(a, axis=1, keepdims=True) - a).T @ data[0] / (2 * l2 * len(a))
        return a, objective(W, data), jnp.mean(jnp.sum(a, axis=1)) - l2 * jnp.sum(best**2)

    W, multipliers = jnp.zeros((classes, data[0].shape[1])), jnp.zeros((len(data[0]), classes))
    lowest, highest, params = np.inf, -np.inf, W
    for mu in 0.1 * 0.5 ** np.arange(MULTIPLIER_ROUNDS):
        images = data, multipliers, mu
        W = jc.minimize(
            smoothed, optimizer, W, data=images, max_steps=MULTIPLIER_STEPS, gtol=1e-12, ftol=0.0, xtol=0.0
        ).params
        multipliers, value, dual = bounds(W, multipliers, mu)
        if value < lowest:
            lowest, params = float(value), W
        highest = max(highest, float(dual))
        if lowest - highest <= GAP:
            break
    return Reference(np.asarray(params), lowest, lowest - highest, "method of multipliers, certified by its dual")


def known(reference: Reference) -> Row:
    return {"value": reference.value, "bound": reference.bound, "source": reference.source}


# Solves


def solve(method: Method, problem: Problem, args: argparse.Namespace) -> Solve:
    """Find the learning rate, compile, then run and measure the time."""

    def from_start(rate: Any, start: jax.Array, data: Data, *, trace: bool) -> jc.Result:
        return jc.minimize(
            problem.objective,
            method.make(rate),
            start,
            data=data,
            max_steps=args.max_steps,
            gtol=tolerance_of(problem, args.gtol),
            trace=trace,
        )

    given = problem.start, problem.train
    tried: list[Row] = []
    rate = None
    if method.needs_rate:
        rates = jnp.asarray(RATES, problem.start.dtype)
        lanes = jax.vmap(lambda rate, start, data: from_start(rate, start, data, trace=False)[1:6], (0, None, None))
        value, _, status, _, num_evals = jax.device_get(jax.jit(lanes)(rates, *given))
        tried = [
            {"learning_rate": float(r), "value": float(v), "status": int(s), "num_evals": int(n)}
            for r, v, s, n in zip(RATES, value, status, num_evals, strict=True)
        ]
        rate = min(tried, key=how_good)["learning_rate"]
    began = time.perf_counter()
    compiled = jax.jit(lambda start, data: from_start(rate, start, data, trace=True)).lower(*given).compile()
    compile_seconds = time.perf_counter() - began
    seconds: list[float] = []
    while len(seconds) < TIMED_ROUNDS and sum(seconds) < TIMED_SECONDS:
        began = time.perf_counter()
        result = jax.block_until_ready(compiled(*given))
        seconds.append(time.perf_counter() - began)
    return Solve(jax.device_get(result), float(np.median(seconds)), compile_seconds, rate, tried)


def tolerance_of(problem: Problem, gtol: float | None) -> float:
    """The tolerance of every method, so that all solve the same task; by default the square root of epsilon."""
    return float(jnp.finfo(problem.start.dtype).eps) ** 0.5 if gtol is None else gtol


def how_good(row: Row) -> tuple[Any, ...]:
    """Sort key of learning rates: first those that reach the tolerance, by evaluations; then the others, by value."""
    reached = row["status"] > 0
    return not reached, row["num_evals"] if reached else 0, np.nan_to_num(row["value"], nan=np.inf)


def judge(name: str, solve: Solve, problem: Problem, gtol: float | None) -> Row:
    """A row of the table; the claim is checked with value and gradient evaluated again at the end in float64."""
    result, method = solve.result, method_of(name)
    params = jnp.asarray(result.params, jnp.float64)
    value, grad = problem.gradient(params, problem.exact)
    grad_norm, status = float(jnp.max(jnp.abs(grad))), jc.Status(int(result.status))
    tolerance = max(tolerance_of(problem, None), gtol or 0.0) * max(1.0, abs(float(value)))
    return {
        "problem": problem.loss,
        "method": name,
        "learning_rate": solve.rate,
        "rate_at_edge_of_grid": solve.rate in (RATES[0], RATES[-1]),
        "num_steps": int(result.num_steps),
        "num_evals": int(result.num_evals),
        "hessian_products": method.products(result),
        "seconds": solve.seconds,
        "compile_seconds": solve.compile_seconds,
        "status": status.name,
        "value": float(value),
        "above_optimum": float(value) - problem.reference.value,
        "grad_norm": grad_norm,
        "test_accuracy": float(
            jc.accuracy(jc.scores.linear(jnp.asarray(result.params), problem.test[0]), problem.test[1])
        ),
        "claim": grad_norm <= tolerance if status > 0 else None,
    }


# Output


def write_outputs(
    folder: Run, problems: Mapping[str, Problem], solves: Mapping[tuple[str, str], Solve], results: list[Row]
) -> list[Block]:
    folder.write_csv(
        "metrics.csv", (row for (loss, name), s in solves.items() for row in trace_rows(loss, name, s, problems[loss]))
    )
    tried = [{"kind": "rate", "problem": p, "method": m, **row} for (p, m), s in solves.items() for row in s.tried]
    optima = [{"kind": "reference", "problem": loss, **known(p.reference)} for loss, p in problems.items()]
    folder.write_jsonl("metrics.jsonl", [*optima, *tried, *({"kind": "result", **row} for row in results)])
    params = {f"{loss}/{name}": solve.result.params for (loss, name), solve in solves.items()}
    folder.write_arrays(
        "params.npz", params | {f"{loss}/reference": p.reference.params for loss, p in problems.items()}
    )
    blocks: list[Block] = []
    for loss, problem in problems.items():
        own = {name: solve for (of, name), solve in solves.items() if of == loss}
        blocks += [table(problem, [row for row in results if row["problem"] == loss]), draw(folder, problem, own)]
    dataset = next(iter(problems.values())).dataset
    page = html_page(
        f"Full-batch solves on {dataset.name}", INTRODUCTION, blocks, facts(folder.manifest, dataset.source)
    )
    (folder.folder / "report.html").write_text(page, encoding="utf-8")
    folder.note(references={loss: known(p.reference) for loss, p in problems.items()}, results=results)
    return blocks


def trace_rows(loss: str, name: str, solve: Solve, problem: Problem) -> Iterator[Row]:
    """One row for each step; the time of the solve is distributed evenly over its evaluations."""
    trace = solve.result.trace
    assert trace is not None
    for step in range(int(solve.result.num_steps) + 1):
        evals = int(trace.num_evals[step])
        yield {
            "problem": loss,
            "method": name,
            "step": step,
            "num_evals": evals,
            "seconds": evals * solve.seconds / int(solve.result.num_evals),
            "value": float(trace.value[step]),
            "above_optimum": float(trace.value[step]) - problem.reference.value,
            "grad_norm": float(trace.grad_norm[step]),
            "step_size": float(trace.step_size[step]),
        }


def draw(folder: Run, problem: Problem, solves: Mapping[str, Solve]) -> Picture:
    """Draw excess against both costs, with a caption."""
    excess: dict[str, np.ndarray] = {}
    costs: dict[str, dict[str, np.ndarray]] = {
        "evaluations of value and gradient": {},
        "seconds, without compiling": {},
    }
    for name, solve in solves.items():
        rows, label = list(trace_rows(problem.loss, name, solve, problem)), method_of(name).label
        excess[label] = np.fmin.accumulate([row["above_optimum"] for row in rows])
        for unit, of in zip(costs, ("num_evals", "seconds"), strict=True):
            costs[unit][label] = np.array([row[of] for row in rows], float)
    reference, on = problem.reference, f"{TITLES[problem.loss]} on {problem.dataset.name}"
    floor = max(reference.bound, float(jnp.finfo(problem.start.dtype).eps) * abs(reference.value))
    figure = jc.plots.convergence_curves(
        excess,
        costs,
        title=f"How far above the optimum? {on}, n = {problem.start.size:,}",
        ylabel="value - optimum, lowest so far",
        floor=floor,
    )
    caption = (
        f"Value minus optimum of {on}, the lowest so far, against evaluations (left: products with a Hessian are not "
        "counted) and against time (right: a solve's seconds are spread evenly over its evaluations, as they are one "
        "compiled loop; compiling is left out). The grey line is the error of the known optimum or of rounding, "
        f"whichever is larger: {floor:.0e}. A dot marks the end."
    )
    return Picture(folder.write_figure(f"{problem.loss}.png", figure), caption)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda r: method_of(r["method"]).label,
    "rate": lambda r: "-" if r["learning_rate"] is None else rate_cell(r),
    "evaluations": lambda r: f"{r['num_evals']:,}",
    "products": lambda r: "-" if r["hessian_products"] is None else f"{r['hessian_products']:,}",
    "seconds": lambda r: f"{r['seconds']:.3f}",
    "compile": lambda r: f"{r['compile_seconds']:.2f}",
    "ended": lambda r: r["status"],
    "claim": lambda r: CLAIMS[r["claim"]],
    "above optimum": lambda r: f"{r['above_optimum']:.1e}",
    "|gradient|": lambda r: f"{r['grad_norm']:.1e}",
    "accuracy": lambda r: f"{r['test_accuracy']:.4f}",
}
INTRODUCTION = (
    "A linear classifier without bias on all training images at once, from one start, until the largest entry of the "
    f"gradient is within the tolerance. Methods with a learning rate were run at {len(RATES)} of them from "
    f"{RATES[0]:g} to {RATES[-1]:.3g}, all lanes of one vmap, and are shown at the best: the one that reached the "
    "tolerance in the fewest evaluations, else the one with the lowest value."
)


def rate_cell(row: Row) -> str:
    return f"{row['learning_rate']:.2g}{' (edge)' if row['rate_at_edge_of_grid'] else ''}"


def table(problem: Problem, rows: list[Row]) -> Table:
    reference = problem.reference
    notes = [
        f"Optimum {reference.value:.12f}, at most {reference.bound:.0e} above the true one: {reference.source}.",
        f"Rates: the best of {len(RATES)}. Products: of the Hessian with a vector. Seconds: without compiling. "
        "|gradient|: the largest entry, evaluated again in float64 at the end; a claim of success that it contradicts "
        "is FALSE. Accuracy: on the test images.",
    ]
    if problem.loss == "hinge":
        notes.append(
            "The hinge has kinks: near the optimum its gradients stay large, so no method can claim success; and its "
            "Hessian is only that of the penalty, which misleads Newton's methods."
        )
    if any(row["method"] == "newton" for row in rows):
        notes.append("Newton takes n products a step.")
    elif problem.start.size > FEW:
        notes.append(f"Newton is left out: its Hessian has {problem.start.size:,}^2 entries.")
    name = f"{TITLES[problem.loss]} on {problem.dataset.name}, l2 = {problem.l2:g}, n = {problem.start.size:,}"
    cells = [[cell(row) for cell in COLUMNS.values()] for row in rows]
    return Table(list(COLUMNS), cells, name, " ".join(notes), 1, CLAIMS[False])


def watch(tasks: list[tuple[str, str]], quiet: bool) -> Iterator[tuple[str, str]]:
    """Yield the tasks one by one, with a progress bar on stderr if it is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield from tasks
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(tasks, description="solve", console=Console(stderr=True), transient=True)
