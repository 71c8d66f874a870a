"""Analytic against numerical gradients: the lecture's loop over W, the best step, the cost, and planted bugs.

Everything is in float64 unless a part states otherwise. The minibatch has real images, the timings use synthetic ones.
"""

import argparse
import json
import re
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_course as jc
from experiments import gradcheck_corpus
from experiments.arguments import UsageError
from experiments.benchmarks import timing
from experiments.planted import PEERS, Planted, planted
from experiments.problems import LOSSES, describe
from experiments.report import Block, Picture, Table, facts, html_page, print_blocks
from experiments.runs import Run, plain, start_run
from jaxopt_course.gradients import NumericalGradientWarning

WALKED = 8  # entries of W that are shown one by one
H = 1e-4  # the lecture's step
STEPS = np.logspace(-12, 0, 49)  # four per decade
DTYPES = {"float16": jnp.float16, "float32": jnp.float32, "float64": jnp.float64}
VARIED = 100  # entries of W whose gradient is computed at every step h
WIDTHS = (8, 32, 128, 256, 512, 1024)  # numbers of features, each with 10 classes
FITTED = 4  # widest models, to which powers are fitted; the cost of a call dominates the others
TIMED_BATCH = 64
CALLS = 20  # analytic gradients in one sample of the time, because one is short
INTRODUCTION = (
    "Always use the analytic gradient, but check it with the numerical one. This page shows how the numerical gradient "
    "is computed, how exact it can be, what it costs, and which wrong gradients a check finds."
)

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]


class Problem(NamedTuple):
    """A linear classifier at its start, and a minibatch of real images."""

    dataset: jc.data.Dataset
    params: dict[str, jax.Array]
    images: np.ndarray
    labels: np.ndarray
    l2: float
    rounds: int
    key: jax.Array

    @property
    def name(self) -> str:
        return f"{len(self.labels)} {self.dataset.name} images"

    @property
    def one_hot(self) -> np.ndarray:
        return np.eye(len(self.dataset.class_names))[self.labels]


class Part(NamedTuple):
    """The result of a part: tables for files, tables and figures for the page, and whether all results are right."""

    csv: dict[str, list[Row]]
    blocks: list[Block]
    ok: bool = True


def run(args: argparse.Namespace) -> int:
    """Run, write and print each part. Returns 1 if a right gradient does not pass or a wrong one does."""
    if args.corpus:
        return gradcheck_corpus.main(quiet=args.quiet, as_json=args.json)
    asked = {name: value for name, value in vars(args).items() if name not in ("command", "corpus")}
    with jax.enable_x64(True), start_run("gradcheck", asked, args.out) as folder:
        problem = load_problem(args)
        versions = folder.manifest["versions"] | {"torch": timing.environment()["torch"]}
        folder.note(dtype="float64", data=describe(problem.dataset), versions=versions, h=H, steps=STEPS)
        parts = []
        for make in (walk, valleys, costs, bugs):
            part = make(problem, folder)
            parts.append(part)
            for name, rows in part.csv.items():
                folder.write_csv(f"{name}.csv", rows)
            if not (args.quiet or args.json):
                print_blocks(*part.blocks)
        blocks, ok = [block for part in parts for block in part.blocks], all(part.ok for part in parts)
        title, how = f"Gradient checks on {problem.name}", facts(folder.manifest, problem.dataset.source)
        (folder.folder / "report.html").write_text(html_page(title, INTRODUCTION, blocks, how), encoding="utf-8")
        folder.note(ok=ok)
        if args.json:
            tables = {name: rows for part in parts for name, rows in part.csv.items()}
            print(json.dumps({"folder": str(folder.folder), "ok": ok, **tables}, default=plain))
        elif not args.quiet:
            print_blocks(f"{folder.folder}/report.html")
    return 0 if ok else 1


def load_problem(args: argparse.Namespace) -> Problem:
    dataset = jc.data.load(args.data, root=args.root)
    images, labels = dataset.train
    if args.batch_size > len(images):
        raise UsageError(f"--batch-size {args.batch_size} is more than the {len(images)} training images")
    init_key, order_key, key = jax.random.split(jax.random.key(args.seed), 3)
    chosen = np.asarray(jax.random.permutation(order_key, len(images))[: args.batch_size])
    params = jc.scores.init_linear(init_key, len(dataset.class_names), images.shape[1], dtype=jnp.float64)
    return Problem(dataset, params, images[chosen].astype(float), labels[chosen], args.l2, args.rounds, key)


def table(columns: Columns, rows: list[Row], title: str, note: str, left: int = 1) -> Table:
    return Table(
        list(columns), [[cell(row) for cell in columns.values()] for row in rows], title, note, left, "(wrong)"
    )


# 1. The lecture's loop over the entries

WALK: Columns = {
    "entry": lambda r: r["entry"],
    "W": lambda r: f"{r['W']:.6f}",
    "W + h": lambda r: f"{r['W_plus_h']:.6f}",
    "loss": lambda r: f"{r['value']:.7f}",
    "loss at W + h": lambda r: f"{r['value_at_W_plus_h']:.7f}",
    "dW": lambda r: f"{r['forward']:.6f}",
    "central": lambda r: f"{r['central']:.6f}",
    "analytic": lambda r: f"{r['analytic']:.6f}",
    "error of dW": lambda r: f"{r['error_of_forward']:.0e}",
    "of central": lambda r: f"{r['error_of_central']:.0e}",
}
WALK_NOTE = (
    "dW = (loss at W + h - loss) / h; central = (loss at W + h - loss at W - h) / 2h; errors are relative, |a - n| / "
    "max(|a|, |n|). At a pixel that is blank in every image, the gradient is that of the penalty alone."
)


def walk(problem: Problem, folder: Run) -> Part:
    """Show some entries one by one, as on the slides; then check all entries, with a verdict."""
    batch = jnp.asarray(problem.images), jnp.asarray(problem.labels)
    rows: list[Row] = []
    checks: list[Row] = []
    blocks: list[Block] = []
    for loss in ("hinge", "softmax"):
        objective = jc.empirical_risk(jc.scores.linear, LOSSES[loss], jc.losses.l2_penalty, problem.l2)
        walked = [{"loss": loss, **row} for row in walk_over(objective, problem.params, batch)]
        report = jc.gradcheck(objective, problem.params, batch, key=problem.key)
        rows += walked
        checks += [
            {
                "loss": loss,
                "leaf": leaf.path,
                "verdict": str(leaf.verdict),
                "ok": report.ok,
                "checked": leaf.checked,
                "wrong": leaf.wrong,
                "relative_error": leaf.relative_error,
                "error_bar": leaf.error_bar,
                "evaluations": report.evaluations,
            }
            for leaf in report.leaves
        ]
        blocks += [
            table(WALK, walked, f"Entry by entry: {loss} loss of {problem.name}, h = {H:g}", WALK_NOTE),
            str(report),
        ]
    return Part({"walk": rows, "checks": checks}, blocks, all(check["ok"] for check in checks))


def walk_over(objective: Any, params: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> Iterator[Row]:
    W, value = params["W"], jax.jit(objective)
    dW = jax.jit(jax.grad(objective))(params, batch)["W"]
    for i, j in entries_to_walk(np.asarray(batch[0]), W.shape):
        here, ahead, behind = (float(value(params | {"W": W.at[i, j].add(h)}, batch)) for h in (0.0, H, -H))
        forward, central, analytic = (ahead - here) / H, (ahead - behind) / (2 * H), float(dW[i, j])
        yield {
            "entry": f"W[{i}, {j}]",
            "W": float(W[i, j]),
            "W_plus_h": float(W[i, j]) + H,
            "value": here,
            "value_at_W_plus_h": ahead,
            "forward": forward,
            "central": central,
            "analytic": analytic,
            "error_of_forward": relative_error(analytic, forward),
            "error_of_central": relative_error(analytic, central),
        }


def entries_to_walk(images: np.ndarray, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The first entries that depend on the batch, and the first entry at a pixel that is blank in the whole batch."""
    blank = np.broadcast_to(~images.any(axis=0), shape).ravel()
    first_blank = np.flatnonzero(blank)[:1]
    chosen = np.sort(np.append(first_blank, np.flatnonzero(~blank)[: WALKED - len(first_blank)]))
    return [tuple(map(int, np.unravel_index(at, shape))) for at in chosen]


def relative_error(a: float, n: float) -> float:
    largest = max(abs(a), abs(n))
    return abs(a - n) / largest if largest else 0.0


# 2. The best step


class Theory(NamedTuple):
    """The error at step h of an f with rounding error `noise`, the step with the least error, and the order in h."""

    error: Callable[[Any, float, float, float], Any]  # (h, noise, |f''|, |f'''|)
    best: Callable[[float, float, float], float]
    order: int


THEORY = {
    "forward": Theory(
        lambda h, noise, d2, d3: h * d2 / 2 + 2 * noise / h, lambda noise, d2, d3: 2 * np.sqrt(noise / d2), order=1
    ),
    "central": Theory(
        lambda h, noise, d2, d3: h**2 * d3 / 6 + noise / h, lambda noise, d2, d3: np.cbrt(3 * noise / d3), order=2
    ),
}
VALLEYS: Columns = {
    "dtype": lambda r: r["dtype"],
    "method": lambda r: r["method"],
    "h* in theory": lambda r: f"{r['best_h_predicted']:.1e}",
    "best h": lambda r: f"{r['best_h']:.1e}",
    "least error in theory": lambda r: f"{r['least_error_predicted']:.1e}",
    "least error": lambda r: f"{r['least_error']:.1e}",
    "slope left": lambda r: "-" if r["slope_left"] is None else f"{r['slope_left']:.2f}",
    "slope right": lambda r: "-" if r["slope_right"] is None else f"{r['slope_right']:.2f}",
    "expected": lambda r: f"-1, {r['slope_right_expected']}",
}
VALLEYS_NOTE = (
    "In theory the error is h |f''| / 2 + 2 eps |f| / h forward, least at h* = 2 sqrt(eps |f| / |f''|); and "
    "h^2 |f'''| / 6 + eps |f| / h central, least at h* = (3 eps |f| / |f'''|)^(1/3). eps is the largest relative error "
    "of rounding; f'' and f''' are this function's own, root mean squares over the entries. Slopes are fitted where "
    "there are three steps to fit."
)


def valleys(problem: Problem, folder: Run, steps: np.ndarray = STEPS) -> Part:
    """The error of the numerical gradient at every step, beside the theory with this function's own derivatives."""
    W, x, y = (np.asarray(a).astype(np.float16) for a in (problem.params["W"], problem.images, problem.one_hot))
    varied = jax.random.permutation(problem.key, W.size)[:VARIED]

    def loss_in(dtype: Any) -> tuple[Callable[[Any], Any], jax.Array]:
        """The function and the point in a dtype; the same in every dtype, because its constants are 16-bit numbers."""
        weights, images, one_hot = (jnp.asarray(a, dtype) for a in (W, x, y))

        def loss(entries: jax.Array) -> jax.Array:
            scores = images @ weights.ravel().at[varied].set(entries).reshape(weights.shape).T
            return jnp.mean(jax.nn.logsumexp(scores, axis=1) - jnp.sum(scores * one_hot, axis=1))

        return loss, weights.ravel()[varied]

    exact, at = loss_in(jnp.float64)
    value, gradient = jax.jit(jax.value_and_grad(exact))(at)
    f, truth = float(value), np.asarray(gradient)
    size, d2, d3 = (float(np.sqrt(np.mean(np.square(d)))) for d in derivatives(exact, at))
    errors: dict[str, dict[str, Any]] = {dtype: {} for dtype in DTYPES}
    predicted, optima = deepcopy(errors), deepcopy(errors)
    found: list[Row] = []
    slopes: list[tuple[str, float, float, float]] = []
    for dtype, kind in DTYPES.items():
        loss, here = loss_in(kind)
        noise = float(jnp.finfo(kind).eps) / 2 * f
        for method, theory in THEORY.items():
            error = np.array([gradient_error(loss, here, h, method, truth) for h in steps])
            best = theory.best(noise, d2, d3)
            least = theory.error(best, noise, d2, d3) / size
            errors[dtype][method], optima[dtype][method] = error, (best, least)
            predicted[dtype][method] = theory.error(steps, noise, d2, d3) / size
            left = (0.2 * size > noise / steps) & (best / 10 > steps)
            right = (2.5 * best < steps) & (steps <= 0.2)
            fits = [slope(steps[side], error[side]) if side.sum() >= 3 else None for side in (left, right)]
            if dtype == "float64":
                for side, part, fit in zip((left, right), (2, 6), fits, strict=True):
                    if fit is not None:
                        k = np.flatnonzero(side)[side.sum() // part]
                        slopes.append((method, float(steps[k]), float(error[k]), fit))
            found.append(
                {
                    "dtype": dtype,
                    "method": method,
                    "best_h_predicted": best,
                    "best_h": steps[np.argmin(error)],
                    "least_error_predicted": least,
                    "least_error": np.min(error),
                    "slope_left": fits[0],
                    "slope_right": fits[1],
                    "slope_right_expected": theory.order,
                }
            )
    on = f"softmax loss of {problem.name}"
    figure = jc.plots.step_size_errors(steps, errors, predicted, optima, slopes, title=f"How small a step? ({on})")
    caption = (
        f"Error of the numerical gradient of {len(varied)} entries of W beside the analytic one in float64: {on}. "
        "Solid is forward, dashed central. Grey is theory: a bound for the rounding on the left, the error itself on "
        "the right; ticks mark the least error in theory. An error of 1: the loss, or W itself, did not change at all."
    )
    rows = [
        {"dtype": dtype, "method": method, "h": h, "relative_error": error, "predicted": theory}
        for dtype in DTYPES
        for method in THEORY
        for h, error, theory in zip(steps, errors[dtype][method], predicted[dtype][method], strict=True)
    ]
    shown = table(VALLEYS, found, f"The best step: {on}", VALLEYS_NOTE, left=2)
    return Part(
        {"steps": rows, "valleys": found}, [shown, Picture(folder.write_figure("step_sizes.png", figure), caption)]
    )


def derivatives(f: Callable[[Any], Any], at: jax.Array) -> tuple[np.ndarray, ...]:
    """First, second and third derivatives along each coordinate."""

    def along(direction: jax.Array) -> tuple[jax.Array, ...]:
        first = jax.grad(lambda t: f(at + t * direction))
        second = jax.grad(first)
        return first(0.0), second(0.0), jax.grad(second)(0.0)

    return jax.device_get(jax.jit(jax.vmap(along))(jnp.eye(at.size, dtype=at.dtype)))


def gradient_error(f: Callable[[Any], Any], at: jax.Array, h: float, method: str, truth: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalGradientWarning)  # steps are too large and too small on purpose
        found = np.asarray(jc.numerical_gradient(f, at, h=h, method=method), float)
    found = np.nan_to_num(found, nan=0.0)  # 0 / 0 if W + h equals W
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The slope of log y against log x, by least squares."""
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 6) + 0.0  # turns -0 into 0


# 3. The cost

COSTS: Columns = {
    "parameters n": lambda r: f"{r['parameters']:,}",
    "evaluations, numerical": lambda r: f"{r['numerical_evaluations']:,}",
    "analytic": lambda r: f"{r['analytic_evaluations']}",
    "ms, numerical": lambda r: f"{1e3 * r['numerical_seconds']:.2f}",
    "ms, analytic": lambda r: f"{1e3 * r['analytic_seconds']:.4f}",
    "ratio of times": lambda r: f"{r['ratio']:,.0f}",
}


def costs(problem: Problem, folder: Run) -> Part:
    """Evaluations and seconds of both gradients, for linear classifiers of increasing width."""
    rows = [cost(width, problem) for width in WIDTHS]
    sizes = np.array([row["parameters"] for row in rows], float)
    spent = {
        unit: {way: np.array([row[f"{way}_{name}"] for row in rows], float) for way in ("numerical", "analytic")}
        for unit, name in (("evaluations of f", "evaluations"), ("seconds", "seconds"))
    }
    powers = {
        unit: {way: slope(sizes[-FITTED:], values[-FITTED:]) for way, values in ways.items()}
        for unit, ways in spent.items()
    }
    on = f"linear classifier, softmax loss, {TIMED_BATCH} synthetic images, float32"
    note = (
        f"{on.capitalize()}; medians of {problem.rounds} interleaved rounds, compiling apart. An evaluation costs O(n) "
        f"itself, so the numerical gradient costs O(n^2): n^{powers['seconds']['numerical']:.2f} over the {FITTED} "
        f"largest. The analytic one costs O(n) beyond what a call costs: n^{powers['seconds']['analytic']:.2f}."
    )
    figure = jc.plots.gradient_costs(sizes, spent, powers, title=f"What does a gradient cost? ({on})")
    caption = f"Central differences beside one backward pass: {on}. Powers are fits to the {FITTED} largest."
    picture = Picture(folder.write_figure("costs.png", figure), caption)
    return Part({"costs": rows}, [table(COSTS, rows, "What a gradient costs", note, left=0), picture])


def cost(width: int, problem: Problem) -> Row:
    classes, rng = 10, np.random.default_rng(width)
    images = jnp.asarray(rng.standard_normal((TIMED_BATCH, width)), jnp.float32)
    batch = images, jnp.asarray(rng.integers(0, classes, TIMED_BATCH))
    objective = jc.empirical_risk(jc.scores.linear, LOSSES["softmax"], jc.losses.l2_penalty, problem.l2)
    W = jc.scores.init_linear(problem.key, classes, width, bias=False, dtype=jnp.float32)

    def loss(W: jax.Array) -> jax.Array:
        return objective(W, batch)

    gradient = jax.jit(jax.grad(loss))

    def often() -> None:
        for _ in range(CALLS):
            jax.block_until_ready(gradient(W))

    runs = {"numerical": lambda: jc.numerical_gradient(loss, W), "analytic": often}
    timings = timing.race(f"{W.size} parameters", runs, problem.rounds)
    numerical, analytic = timings["numerical"].median, timings["analytic"].median / CALLS
    return {
        "parameters": W.size,
        "numerical_evaluations": 2 * W.size,
        "analytic_evaluations": 1,
        "numerical_seconds": numerical,
        "analytic_seconds": analytic,
        "ratio": numerical / analytic,
    }


# 4. Planted bugs

BUGS: Columns = {
    "bug": lambda r: r["bug"],
    "ours": lambda r: r["verdict"] + ("" if r["accepted"] == r["right"] else " (wrong)"),
    "wrong entries": lambda r: f"{r['wrong']:,} of {r['checked']:,}",
    "place": lambda r: r["place"],
    "size": lambda r: f"{r['relative_error']:.2g}",
    "torch": lambda r: r["torch"],
    "torch, fast": lambda r: r["torch_fast"],
    "jax": lambda r: r["jax"],
}


def planted_bugs(problem: Problem) -> list[Planted]:
    return planted(np.asarray(problem.params["W"]), problem.images, problem.one_hot, problem.l2)


def bugs(problem: Problem, folder: Run) -> Part:
    """The verdict of each check on each gradient, and whether the verdict is right."""
    rows = [judge(case, problem) for case in planted_bugs(problem)]
    told = any(row[f"{peer}_says_where"] for row in rows for peer in PEERS)
    note = (
        "Size: the largest relative error. Place: whole leaf where most entries are wrong. Beside ours, defaults of "
        "torch.autograd.gradcheck (float64; fast is its fast_mode) and of jax.test_util.check_grads (order 1, reverse "
        f"mode; forward for the JVP). {'Some' if told else 'None'} of their messages says which entry is wrong."
    )
    shown = table(BUGS, rows, f"Bugs planted in gradients ({problem.name})", note, left=len(BUGS))
    return Part({"bugs": rows}, [shown], all(row["accepted"] == row["right"] for row in rows))


def judge(case: Planted, problem: Problem) -> Row:
    report, right = jc.gradcheck(case.in_jax(), jnp.asarray(case.at), key=problem.key), case.is_right()
    (leaf,) = report.leaves
    index = ", ".join(map(str, leaf.worst.index))
    local = not report.ok and 2 * leaf.wrong <= leaf.checked
    row: Row = {
        "bug": case.name,
        "right": right,
        "verdict": str(report.verdict),
        "accepted": report.ok,
        "place": f"{leaf.path}[{index}]" if local else "-" if report.ok else "whole leaf",
        "checked": leaf.checked,
        "wrong": leaf.wrong,
        "relative_error": leaf.relative_error,
        "evaluations": report.evaluations,
    }
    for name, ask in PEERS.items():
        judgement = ask(case)
        indices = re.findall(r"[\[(]([\d, ]+)[\])]", judgement.said)
        row |= {
            name: judgement.cell(right),
            f"{name}_says_where": local and index in indices,
            f"{name}_said": judgement.said[:300],
        }
    return row
