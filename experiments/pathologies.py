"""Pathologies of descent and their theory: ravines, saddles, local minima, noise.

Theoretical values are computed from the curvatures and the noise only; they are never fitted to measurements.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxopt_course as jc
from experiments.contestants import CONTESTANTS, contestants
from experiments.planted_runs import SIZE, plant
from experiments.problems import describe
from experiments.report import Block, Picture, Table, facts, html_page, print_blocks
from experiments.runs import Run, start_run
from jaxopt_course.landscape import Settings, basins, descend, escape_time, gradient_field, settled
from jaxopt_course.landscape.quadratic_theory import (
    escape_steps,
    noise_floor,
    optimal,
    predict,
    stability_limit,
)

NEAR, MOST, STAYS = 1e-6, 40_000, 0.9  # target distance relative to the start; most steps; share of them to reach it
CONDITIONS = 10 ** np.arange(0, 4, 0.5)
MAP_RATES, MAP_RHOS = np.geomspace(1e-3, 0.05, 90), np.linspace(0, 0.99, 60)
NO_THEORY = [None] * len(CONDITIONS)
RATES = np.logspace(-4, 1, 16)  # for the rules whose best rate has no theory
ANGLE = math.pi / 6
RHO, ESCAPE_RATE = 0.9, 0.05
NOISES = 10.0 ** np.arange(-8, 0)
MULTIMODAL = {"styblinski_tang": (0.01, 0.1), "rastrigin": (0.0025, 0.1)}  # rates of SGD and momentum, and of others
MAP_STEPS, LOOP_STEPS = 500, 20
FLOOR_RATES = np.array([0.01, 0.02, 0.05, 0.1, 0.15])
FLOOR_RUNS, FLOOR_STEPS = 64, 4000
L2, IMAGE_RATES, IMAGE_BATCHES = 1e-2, np.array([0.02, 0.05, 0.1, 0.2, 0.4]), (4, 16, 64)
IMAGE_STEPS, IMAGE_SEEDS, IMAGE_EVERY = 4000, 2, 50
PLANTED_RULES, PLANTED_BATCHES, PLANTED_SEEDS = ("momentum",), (32,), 3

Row = dict[str, Any]


class Part(NamedTuple):
    """The result of one pathology: numbers, and the tables and figures that show them."""

    rows: list[Row]
    blocks: list[Block]


def run(args: argparse.Namespace) -> int:
    """Measure, write the folder, print the tables."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    contestants(args.optimizers)  # raises for a wrong name before anything is written
    with jax.enable_x64(True), start_run("pathologies", asked, args.out) as folder:
        dataset = jc.data.load(args.data, root=args.root)
        folder.note(dtype="float64, basins in float32", data=describe(dataset))
        parts = [part(folder, args, dataset) for part in (PARTS[name] for name in dict.fromkeys(args.parts))]
        rows = [row for part in parts for row in part.rows]
        blocks = [block for part in parts for block in part.blocks]
        folder.write_csv("metrics.csv", rows)
        page = html_page("Pathologies of descent", INTRODUCTION, blocks, facts(folder.manifest, dataset.source))
        (folder.folder / "report.html").write_text(page, encoding="utf-8")
        folder.note(results=rows)
        if args.json:
            print(json.dumps({"folder": str(folder.folder), "results": rows}))
        elif not args.quiet:
            print_blocks(*blocks, f"{folder.folder}/report.html")
    return 0


def row(pathology: str, case: str, optimizer: str, at: float, measured: float, theory: float | None = None) -> Row:
    """One number beside its theory; infinity becomes None, because JSON has no infinity."""
    return {
        "pathology": pathology,
        "case": case,
        "optimizer": optimizer,
        "at": float(at),
        "measured": float(measured) if math.isfinite(measured) else None,
        "theory": theory if theory is None or math.isfinite(theory) else None,
    }


def curves(rows: list[Row], which: str) -> dict[str, Any]:
    """optimizer -> (at, measured or theory), in the form that figures accept."""
    found: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        if r[which] is not None:
            found.setdefault(r["optimizer"], []).append((r["at"], r[which]))
    return {name: np.array(points).T for name, points in found.items()}


# Ravines


@partial(jax.jit, static_argnums=(0, 3))
def steps_to(make: Callable[[Any], Any], hyperparameters: Any, conditions: jax.Array, most: int) -> jax.Array:
    """For every lane, the steps after which the distance stays below a millionth; infinity if it does not.

    The distance must stay below during the last tenth of `most` steps, so that a chance approach at the end does not
    count.
    """

    def one(hyperparameter: Any, condition: Any) -> jax.Array:
        cos, sin = math.cos(ANGLE), math.sin(ANGLE)

        def fn(w: jax.Array) -> jax.Array:
            return ((cos * w[0] + sin * w[1]) ** 2 + condition * (cos * w[1] - sin * w[0]) ** 2) / 2

        optimizer = optax.with_extra_args_support(make(hyperparameter))
        start = jnp.array([cos - sin, sin + cos])  # equal components along both axes
        far = NEAR * jnp.linalg.norm(start)

        def step(t: jax.Array, carry: Any) -> Any:
            w, state, last_above = carry
            value, grads = jax.value_and_grad(fn)(w)
            updates, state = optimizer.update(grads, state, w, value=value, grad=grads, value_fn=fn)
            w = w + updates
            return w, state, jnp.where(jnp.linalg.norm(w) <= far, last_above, t + 1)

        *_, last_above = lax.fori_loop(0, most, step, (start, optimizer.init(start), jnp.int32(0)))
        return jnp.where(last_above < int(STAYS * most), last_above.astype(float) + 1, jnp.inf)

    return jax.vmap(one)(hyperparameters, conditions)


def closed_form(settings: Settings, condition: float) -> float:
    """The steps of `steps_to`, from the closed form of the path."""
    path = predict(settings, np.diag([1.0, condition]), np.ones(2), np.arange(MOST + 1)).mean
    return float(settled(np.linalg.norm(path, axis=1), NEAR * math.sqrt(2)))


def with_rho(settings: Any) -> Any:
    return jc.momentum(settings[0], settings[1])


def with_rho_ahead(settings: Any) -> Any:
    return jc.momentum(settings[0], settings[1], nesterov=True)


def conditioning(folder: Run, args: argparse.Namespace, dataset: jc.data.Dataset) -> Part:
    rows: list[Row] = []
    k = jnp.asarray(CONDITIONS)

    def record(name: str, steps: Any, theory: Any = NO_THEORY) -> None:
        rows.extend(
            row("ravines", "bowl", name, *point) for point in zip(CONDITIONS, np.asarray(steps), theory, strict=True)
        )

    rules = contestants(args.optimizers)
    tuned = {"sgd": lambda s: jc.sgd(s[0]), "momentum": with_rho, "nesterov": with_rho_ahead}  # by theory
    for name, make in ((name, make) for name, make in tuned.items() if name in rules):
        best = [optimal(1.0, float(condition), name)[0] for condition in CONDITIONS]
        theory = [closed_form(settings, condition) for settings, condition in zip(best, CONDITIONS, strict=True)]
        record(CONTESTANTS[name].label, steps_to(make, jnp.array([s[:2] for s in best]), k, MOST), theory)
    for rule in (rule for name, rule in rules.items() if name not in tuned):
        rates, conditions = (grid.ravel() for grid in jnp.meshgrid(jnp.asarray(RATES), k, indexing="ij"))
        found = np.asarray(steps_to(rule.make, rates, conditions, MOST))
        record(rule.label, found.reshape(len(RATES), -1).min(axis=0))
    for label, make in {"L-BFGS": lambda _: jc.lbfgs(), "Newton": lambda _: jc.newton()}.items():
        record(label, steps_to(make, k, k, 100))
    names = list(dict.fromkeys(r["optimizer"] for r in rows))
    cell = {(r["optimizer"], r["at"]): r for r in rows}
    columns = ["optimizer", *(f"{condition:.4g}" for condition in CONDITIONS)]
    lines = [[n, *(both(cell[n, c]["measured"], cell[n, c]["theory"], "0") for c in CONDITIONS)] for n in names]
    table = Table(
        columns,
        lines,
        "Ravines: steps after which the distance stays below a millionth, by condition number",
        "Measured / theory, the same count from the closed form of the path. SGD, momentum and Nesterov at the "
        "settings with the best asymptotic contraction; the other rules at the best of "
        f"{len(RATES)} learning rates from {RATES[0]:g} to {RATES[-1]:g}. -: it does not stay there during the last "
        f"tenth of {MOST:,} steps (L-BFGS and Newton: 100). RMSProp and Adam, whose steps do not shrink with the "
        "gradient, come near and leave again.",
    )
    figure = jc.plots.beside_theory(
        {"": (curves(rows, "measured"), curves(rows, "theory"))},
        title="Ravines: what a condition number costs (2-D bowl, turned by 30 degrees)",
        xlabel="condition number",
        ylabel="steps until it stays within 1e-6 of the distance",
    )
    caption = (
        "Steps against condition number on a quadratic bowl. Marks: measured; lines: the closed form of the path; thin "
        "lines only join the marks of rules without one. An optimizer that does not stay within this distance, such as "
        "RMSProp and Adam at a constant rate, has no marks."
    )
    return Part(rows, [table, Picture(folder.write_figure("ravines.png", figure), caption), rate_map(folder)])


def rate_map(folder: Run) -> Picture:
    """A map of the steps over learning rate and rho on the bowl of condition number 100."""
    rates, rhos, L = MAP_RATES, MAP_RHOS, 100.0
    grid = jnp.stack([part.ravel() for part in jnp.meshgrid(jnp.asarray(rates), jnp.asarray(rhos))], axis=1)
    steps = np.asarray(steps_to(with_rho, grid, jnp.full(len(grid), L), 4000)).reshape(len(rhos), len(rates))
    best, _ = optimal(1.0, L)
    figure = jc.plots.learning_rate_map(
        rates,
        rhos,
        steps,
        title="Momentum on a bowl of condition number 100",
        other="rho",
        limit=np.array([stability_limit(L, rho) for rho in rhos]),
        best=(best.learning_rate, best.rho),
        label="steps until it stays within 1e-6 of the distance",
    )
    return Picture(
        folder.write_figure("learning_rates.png", figure),
        "Steps of momentum at each learning rate and rho after which the distance stays below a millionth, "
        "measured; white where it does not within 4,000. The line is the stability limit 2 (1 + rho) / L, the star the "
        "optimum, both by theory.",
    )


# Saddles


def saddles(folder: Run, args: argparse.Namespace, dataset: jc.data.Dataset) -> Part:
    fn, rows = jc.surfaces.SURFACES["saddle"].fn, []
    keys = jax.random.split(jax.random.key(args.seed), args.runs)
    rules = contestants(args.optimizers)
    for name, rule in rules.items():
        optimizer = rule.make(ESCAPE_RATE)

        @jax.jit
        def escapes(noise: Any, optimizer: Any = optimizer) -> Any:
            return jax.vmap(lambda key: escape_time(fn, jnp.zeros(2), optimizer, noise, key).steps)(keys).mean()

        linear = {"sgd": (0.0, False), "momentum": (RHO, False), "nesterov": (RHO, True)}.get(name)
        for noise in NOISES:
            theory = escape_steps(-1.0, noise, 1.0, ESCAPE_RATE, *linear) if linear else None
            rows.append(row("saddles", "saddle", rule.label, noise, float(escapes(noise)), theory))
    cell = {(r["optimizer"], r["at"]): r for r in rows}
    table = Table(
        ["optimizer", *(f"{noise:.0e}" for noise in NOISES)],
        [
            [r.label, *(both(cell[r.label, x]["measured"], cell[r.label, x]["theory"], "0") for x in NOISES)]
            for r in rules.values()
        ],
        "Saddles: steps until the distance from (x^2 - y^2) / 2 at 0 is 1, by noise of the gradient",
        f"Mean of {args.runs:,} runs / theory, which is exact in the limit of little noise. Learning rate "
        f"{ESCAPE_RATE:g}, rho {RHO:g}. Rules that divide by the gradient's own size do not wait for it to grow.",
    )
    figure = jc.plots.beside_theory(
        {"": (curves(rows, "measured"), curves(rows, "theory"))},
        title=f"Saddles: how long they hold (learning rate {ESCAPE_RATE:g})",
        xlabel="standard deviation of the gradient's noise",
        ylabel="steps to escape",
        log_y=False,
    )
    caption = f"Mean steps of {args.runs:,} runs from the saddle to a distance of 1. Marks: measured; lines: theory."
    return Part(rows, [table, Picture(folder.write_figure("saddles.png", figure), caption)])


# Local minima


def flow_share(name: str) -> float:
    """The share of the window from which gradient flow ends in the global minimum, up to the nearest maxima."""
    surface = jc.surfaces.SURFACES[name]
    (low, high), _ = surface.window
    tops = [point.params for point in surface.critical_points if point.kind == "maximum"]
    right = max(x for x, _ in tops)
    left = min(x for x, _ in tops) if len(tops) > 1 else low
    return ((right - left) / (high - low)) ** 2  # the surface is the sum of one function of x and of y


def minima(folder: Run, args: argparse.Namespace, dataset: jc.data.Dataset) -> Part:
    rows, key, rules = [], jax.random.key(args.seed), contestants(args.optimizers)
    for case, (plain, scaled) in MULTIMODAL.items():
        surface, starts = jc.surfaces.SURFACES[case], uniform_starts(case, key, max(1, args.starts // 10))
        for name, rule in rules.items():
            optimizer = rule.make(plain if name in ("sgd", "momentum", "nesterov") else scaled)
            ends = descend(surface.fn, optimizer, starts, MAP_STEPS)
            share = float(np.mean(basins(ends, surface.minimizers, 0.4) == 0))
            rows.append(row("minima", case, rule.label, plain, share, flow_share(case) if name == "sgd" else None))
            rows[-1]["at"] = float(plain if name in ("sgd", "momentum", "nesterov") else scaled)
    cell = {(r["optimizer"], r["case"]): r for r in rows}
    rates = " and ".join(f"{plain:g} ({case})" for case, (plain, _) in MULTIMODAL.items())
    shares = Table(
        ["optimizer", *MULTIMODAL],
        [
            [r.label, *(both(cell[r.label, c]["measured"], cell[r.label, c]["theory"], "%") for c in MULTIMODAL)]
            for r in rules.values()
        ],
        "Local minima: share of starts that end in the global one",
        f"{max(1, args.starts // 10):,} starts all over the window, {MAP_STEPS} steps / theory: the basin of steepest "
        "descent with infinitely small steps; the steps of SGD are larger. Learning rates: "
        f"{rates} for SGD, momentum and Nesterov, 0.1 for the others.",
    )
    timed, speed = million(args, key)
    picture = basin_picture(folder, args)
    return Part(rows + timed, [shares, picture, speed])


def uniform_starts(name: str, key: jax.Array, count: int) -> jax.Array:
    low, high = np.transpose(jc.surfaces.SURFACES[name].window)
    return jax.random.uniform(key, (count, 2), jnp.float32, jnp.float32(low), jnp.float32(high))


def million(args: argparse.Namespace, key: jax.Array) -> tuple[list[Row], Table]:
    """The time to descend from many starts in one call, beside a Python loop over compiled steps of all starts."""
    fn, adam = jc.surfaces.SURFACES["rosenbrock"].fn, CONTESTANTS["adam"].make(0.01)
    starts = uniform_starts("rosenbrock", key, args.starts)

    @jax.jit
    @jax.vmap
    def step(w: jax.Array, state: Any) -> Any:
        updates, state = adam.update(jax.grad(fn)(w), state, w)
        return w + updates, state

    def loop() -> Any:
        w, state = starts, jax.vmap(adam.init)(starts)
        for _ in range(LOOP_STEPS):
            w, state = step(w, state)
        return w

    whole = timed(lambda: descend(fn, adam, starts, MAP_STEPS))
    looped = timed(loop) * MAP_STEPS / LOOP_STEPS
    rows = [
        row("speed", "seconds, one compiled call", "Adam", args.starts, whole),
        row("speed", "seconds, Python loop of compiled steps", "Adam", args.starts, looped),
    ]
    line = [f"{args.starts:,}", f"{MAP_STEPS}", f"{whole:.2f}", f"{looped:.2f}", f"{looped / whole:.1f}x"]
    columns = ["starts", "steps", "one call, s", "Python loop, s", "faster"]
    note = f"Adam on Rosenbrock, float32, compile time not counted; the loop was timed over {LOOP_STEPS} steps."
    return rows, Table(columns, [line], "Basins: what a map costs", note)


def timed(call: Callable[[], Any]) -> float:
    jax.block_until_ready(call())
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def basin_picture(folder: Run, args: argparse.Namespace) -> Picture:
    surface, side = jc.surfaces.SURFACES["himmelblau"], max(2, math.isqrt(args.starts))
    x, y = (np.linspace(*edges, side, dtype=np.float32) for edges in surface.window)
    starts = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    ends = descend(surface.fn, CONTESTANTS["adam"].make(0.1), starts, MAP_STEPS)
    labels = basins(ends, surface.minimizers).reshape(side, side)
    names = [f"({a:.1f}, {b:.1f})" for a, b in surface.minimizers]
    title = f"Himmelblau: where Adam goes from each of {side**2:,} starts"
    figure = jc.plots.basin_map(x, y, labels, [*names, "none"], title=title, minimizers=surface.minimizers)
    caption = f"Basins of attraction of Adam (learning rate 0.1, {MAP_STEPS} steps) on Himmelblau's function."
    return Picture(folder.write_figure("basins.png", figure), caption)


# Noise


def noise(folder: Run, args: argparse.Namespace, dataset: jc.data.Dataset) -> Part:
    bowl, images = bowl_floors(args), image_floors(args, dataset)
    panels = {
        "bowl of condition number 10, noise of covariance 1 / B": (curves(bowl, "measured"), curves(bowl, "theory")),
        f"softmax on {dataset.name}": (curves(images, "measured"), curves(images, "theory")),
    }
    figure = jc.plots.beside_theory(
        panels, title="Noise: how far above the minimum it stays", xlabel="learning rate", ylabel="mean of f - minimum"
    )
    caption = (
        f"Mean excess over the minimum in the long run, on a noisy bowl and on softmax regression of {dataset.name}, "
        "minibatches of B drawn anew each step. Marks: measured; lines: theory from Hessian and gradient covariance."
    )
    blocks: list[Block] = [floor_table("Noise: the floor on a bowl", bowl, "Theory is exact here.")]
    near = "Theory is that of the quadratic at the minimum with the noise there: for small rates and large batches."
    blocks.append(floor_table(f"Noise: the floor of softmax regression on {dataset.name}", images, near))
    blocks.append(Picture(folder.write_figure("noise.png", figure), caption))
    return Part(bowl + images, [*blocks, ensemble_picture(folder, args)])


def floor_table(title: str, rows: list[Row], note: str) -> Table:
    def cells(r: Row) -> list[str]:
        measured, theory = (math.inf if r[which] is None else r[which] for which in ("measured", "theory"))
        ratio = f"{measured / theory:.2f}" if math.isfinite(measured + theory) else "-"
        return [r["optimizer"], f"{r['at']:.3g}", f"{measured:.2e}", f"{theory:.2e}", ratio]

    columns = ["optimizer", "learning rate", "mean of f - minimum", "theory", "ratio"]
    return Table(columns, list(map(cells, rows)), title, f"{note} inf: beyond the stability limit.")


def make_rule(rate: Any, rho: float, nesterov: bool) -> Any:
    return jc.momentum(rate, rho, nesterov) if rho else jc.sgd(rate)


def bowl_floors(args: argparse.Namespace) -> list[Row]:
    H, rows = np.diag([1.0, 10.0]), []
    surface, _, objective = jc.surfaces.noisy(jc.surfaces.bowl(10.0), np.eye(2))
    keys = jax.random.split(jax.random.key(args.seed), FLOOR_RUNS)
    rules = {("SGD", 0.0, False): (1, 4, 16), ("Momentum", RHO, False): (1,), ("Nesterov", RHO, True): (1,)}
    for (label, rho, nesterov), batches in rules.items():
        for batch in batches:

            def one(rate: Any, key: Any, rho: float = rho, nesterov: bool = nesterov, batch: int = batch) -> Any:
                rule, start = make_rule(rate, rho, nesterov), jnp.zeros(2)

                def step(carry: Any, t: Any) -> Any:
                    w, state = carry
                    draws = jax.random.normal(jax.random.fold_in(key, t), (batch, 2))
                    updates, state = rule.update(jax.grad(objective)(w, draws), state, w)
                    return (w + updates, state), surface.fn(w)

                _, values = lax.scan(step, (start, rule.init(start)), jnp.arange(FLOOR_STEPS))
                return values[FLOOR_STEPS // 4 :].mean()

            lanes = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
            measured = np.asarray(lanes(jnp.asarray(FLOOR_RATES), keys)).mean(axis=1)
            for rate, floor in zip(FLOOR_RATES, measured, strict=True):
                settings = Settings(float(rate), rho, nesterov)
                rows.append(
                    row(
                        "noise",
                        "bowl",
                        f"{label}, B = {batch}",
                        rate,
                        floor,
                        noise_floor(settings, H, np.eye(2) / batch),
                    )
                )
    return rows


def image_floors(args: argparse.Namespace, dataset: jc.data.Dataset) -> list[Row]:
    """The floor of a real objective, predicted from its Hessian and its gradient covariance at the minimum."""
    inputs, labels = jnp.asarray(dataset.train[0], float), jnp.asarray(dataset.train[1])
    classes, features = len(dataset.class_names), inputs.shape[1]
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, L2)

    def risk(flat: jax.Array, data: Any) -> jax.Array:
        return objective(flat.reshape(classes, features), data)

    data = inputs, labels
    solved = jc.minimize(risk, jc.lbfgs(), jnp.zeros(classes * features), data=data, gtol=1e-9)
    best, least = solved.params, float(solved.value)
    curvatures, U = np.linalg.eigh(np.asarray(jax.jit(jax.hessian(risk))(best, data)))
    single = jax.vmap(jax.grad(risk), (None, 0))
    grads = np.asarray(jax.jit(single)(best, (inputs[:, None], labels[:, None])))
    variances = np.mean((grads @ U) ** 2, axis=0)  # variance of one example's gradient, whose mean is 0 at the minimum
    keys, rows = jax.random.split(jax.random.key(args.seed), IMAGE_SEEDS), []
    for label, rho, batch in [*(("SGD", 0.0, b) for b in IMAGE_BATCHES), ("Momentum", RHO, IMAGE_BATCHES[-1])]:
        rates = IMAGE_RATES * (1 - rho)

        def one(rate: Any, key: Any, rho: float = rho, batch: int = batch) -> Any:
            rule = make_rule(rate, rho, False)

            def some_steps(carry: Any, key: Any) -> Any:
                plan = jax.random.randint(key, (IMAGE_EVERY, batch), 0, len(inputs), jnp.int32)
                carry, _ = jc.training.train_steps(risk, rule, carry, data, plan)
                return carry, risk(carry.params, data)

            turns = jax.random.split(key, IMAGE_STEPS // IMAGE_EVERY)
            _, values = lax.scan(some_steps, jc.training.init_carry(rule, best), turns)
            return values[len(turns) // 3 :].mean() - least

        lanes = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0), out_axes=1))  # rates share their minibatches
        measured = np.asarray(lanes(jnp.asarray(rates), keys)).mean(axis=1)
        for rate, floor in zip(rates, measured, strict=True):
            theory = noise_floor(Settings(float(rate), rho), curvatures, variances / batch)
            rows.append(row("noise", dataset.name, f"{label}, B = {batch}", rate, floor, theory))
    return rows


def ensemble_picture(folder: Run, args: argparse.Namespace) -> Picture:
    """Noisy paths on the bowl, beside their mean and covariance by theory."""
    surface, settings, steps, noise = jc.surfaces.bowl(10.0), Settings(0.15), 40, 2.0
    H, C, starts = np.diag([1.0, 10.0]), noise**2 * np.eye(2), np.tile(surface.start, (100, 1))
    predicted = predict(settings, H, surface.start, np.arange(steps + 1), C)
    key, rule = jax.random.key(args.seed), jc.sgd(settings.learning_rate)
    walked = jc.landscape.paths(surface, rule, starts, steps, noise=noise, key=key)
    field = gradient_field(surface, (121, 121), window=((-2.0, 4.4), (-1.4, 1.4)))
    rings = {t: predicted.covariance[t] for t in (2, 8, steps)}
    title = "100 noisy runs of SGD on a bowl, their mean and 95% ellipses by theory"
    figure = jc.plots.noisy_ensemble(field, walked, predicted.mean, rings, title=title)
    caption = "SGD with gradient noise of covariance 4 (learning rate 0.15). Black: mean by theory; orange: ellipses."
    return Picture(folder.write_figure("ensemble.png", figure), caption)


def both(measured: float | None, theory: float | None, unit: str) -> str:
    """Measured / theory as text; `unit`: "0" for whole numbers, "%" for shares, "e" and "g" for few digits."""
    form: dict[str, Callable[[float], str]] = {
        "0": "{:,.0f}".format, "%": "{:.1%}".format, "e": "{:.2e}".format, "g": "{:.3g}".format,
    }  # fmt: skip
    shown = ["-" if measured is None else form[unit](measured), *([form[unit](theory)] if theory is not None else [])]
    return " / ".join(shown)


# Diagnosis


def diagnosis(folder: Run, args: argparse.Namespace, dataset: jc.data.Dataset) -> Part:
    """Runs with each cause of `jc.Cause` planted, and the findings of `jc.diagnose`."""
    rows: list[Row] = []
    lines = []
    for cause in jc.Cause:
        runs = [plant(cause.name, args.seed + s, PLANTED_RULES, PLANTED_BATCHES) for s in range(PLANTED_SEEDS)]
        found = [jc.diagnose(run.result).findings for run in runs]
        for run, (first, *_) in zip(runs, found, strict=True):
            rows.append(row("diagnosis", cause.name, first.cause.name, PLANTED_BATCHES[0], first.factor, run.factor))
        right = [findings[0].cause is cause for findings in found]
        wrong = [f for run, findings in zip(runs, found, strict=True) for f in findings
                 if f.certain and f.cause.name not in {cause.name, *run.also}]  # fmt: skip
        shown = [both(findings[0].factor, run.factor, "g") for run, findings in zip(runs, found, strict=True)]
        lines.append([cause.name, f"{sum(right)} of {len(runs)}", str(len(wrong)), *shown])
    columns = ["planted", "found first", "wrong, certain", *(f"run {s + 1}" for s in range(PLANTED_SEEDS))]
    note = (
        f"Quadratics of {SIZE} parameters in float32 with curvature, noise and rate chosen for each cause; momentum "
        f"{RHO}, minibatches of {PLANTED_BATCHES[0]}. The factor of the first finding / the planted factor, if theory "
        "predicts one; its meaning depends on the cause (`jc.Cause`)."
    )
    return Part(rows, [Table(columns, lines, "Diagnosis: what jc.diagnose finds in runs with a planted cause", note)])


PARTS = {"ravines": conditioning, "saddles": saddles, "minima": minima, "noise": noise, "diagnosis": diagnosis}
INTRODUCTION = (
    "The four difficulties of which the lecture warns, measured with the library's own optimizers beside the theory: a "
    "large condition number, a saddle, local minima, and gradients of minibatches; and the diagnosis of training runs "
    "with a planted problem. The theory is not fitted: it is computed from curvatures and noise only. It is exact on "
    "quadratics, in the limit of little noise at saddles, and an approximation elsewhere; the tables state which."
)
