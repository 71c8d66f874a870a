"""The race: each optimizer tuned alike, then run at its best point on fresh seeds, and beside its optax twin.

It is fair: every rule gets the same points, the same seeds, starts and minibatches, and is judged on seeds that its
tuning has not seen. It is a proof: each rule and its twin in optax take the same steps in float64, and the largest
difference along the whole path is a column.
"""

import argparse
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.contestants import Contestant, contestants
from experiments.loading import blamed, described
from experiments.problems import Problem, load_problem
from experiments.race_report import write_outputs
from experiments.report import print_blocks
from experiments.runs import finite, start_run
from jaxopt_course.statistics import paired_interval
from jaxopt_course.sweeps.methods import methods_of
from jaxopt_course.sweeps.sweep import starts_of

SAME = 1e-10  # relative, in float64; rules that differ in one convention part by 1e-4 or more
TIMED_ROUNDS, TIMED_SECONDS, TIMED_STEPS = 3, 0.5, 1000  # most of each

Row = dict[str, Any]


def run(args: argparse.Namespace) -> int:
    """Race, write the folder, print the table and the verdict. 1 if a rule is not its twin's equal."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    mesh = sharing(args.devices)
    with jax.enable_x64(args.x64):
        rules = {rule.label: rule for rule in contestants(args.optimizers).values()}
        if len(rules) < 2:
            raise UsageError(f"a race needs at least two optimizers; beside {', '.join(rules)} give sgd or adam, say")
        with start_run("race", asked, args.out) as folder:
            problem = load_problem(args)
            dtype = "float64" if args.x64 else "float32"
            folder.note(dtype=dtype, data=problem.about, batch_size=problem.batch_size, grid=dict(problem.grid))
            result = raced(rules, problem, args, mesh)
            rows = judged(rules, result, problem, args)
            blocks = write_outputs(folder, args, problem, result, rows)
            if args.json:
                found = {"results": rows, "ranking": result.ranking, "verdict": result.verdict}
                print(json.dumps({"folder": str(folder.folder), **found}))
            elif not args.quiet:
                print_blocks(*blocks, f"{folder.folder}/report.html")
    return 1 if any(row["same_as_optax"] is False for row in rows) else 0


def sharing(count: int | None) -> Mesh | None:
    """So many devices, which share the runs; CPUs are made, as long as JAX has not begun."""
    if count is None:
        return None
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        raise UsageError(f"--devices {count}: there are {jax.device_count()} of {jax.devices()[0].device_kind}")
    return Mesh(np.array(jax.devices()[:count]), ("lanes",))


def raced(
    rules: Mapping[str, Contestant], problem: Problem, args: argparse.Namespace, mesh: Mesh | None
) -> jc.RaceResult:
    """The race; an error that a loaded file leads to is told with its line."""
    factories = {label: rule.make for label, rule in rules.items()}
    try:
        methods_of("race", factories, problem.grid)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        return jc.race(
            problem.objective,
            factories,
            problem.grid,
            problem.init,
            problem.data,
            key=jax.random.key(args.seed),
            num_seeds=args.seeds,
            num_fresh_seeds=args.fresh_seeds,
            batch_size=problem.batch_size,
            num_epochs=args.epochs,
            eval_fn=problem.eval_fn,
            mesh=mesh,
            checkpoint_dir=args.checkpoint_dir,
            progress=False if args.quiet or args.json else None,
        )
    except Exception as error:
        if where := blamed(error):
            raise UsageError(f"{where}{described(error)}") from error
        if isinstance(error, TypeError):  # what the race refuses of the problem or of a rule
            raise UsageError(str(error)) from error
        raise


def judged(
    rules: Mapping[str, Contestant], result: jc.RaceResult, problem: Problem, args: argparse.Namespace
) -> list[Row]:
    """A row for each optimizer, best first: how good, how fast, and how far from its twin."""
    k_fresh = jax.random.split(jax.random.key(args.seed))[1]
    k_init, k_data = jax.random.split(jax.random.split(k_fresh, args.fresh_seeds)[0])
    start = jax.tree.map(lambda leaf: leaf[0], starts_of(problem.init, k_init[None]))
    rows, of_seeds = [], result.fresh.rows()
    for place, group in enumerate(result.ranking, start=1):
        for label in group:
            best, losses = result.best[label], result.loss[label]
            point = best.hyperparameters
            ours, twin = rules[label].make(**point), twin_of(rules[label], point)
            row = {
                "optimizer": label,
                "place": place,
                "tied": len(group) > 1,
                "hyperparameters": point,
                "at_edge": list(best.at_edge),
                "diverged_runs": int(np.isinf(result.sweep.loss(label)).sum()),
                "fresh_loss_mean": float(losses.mean()),
                "fresh_loss_interval": list(paired_interval(losses)),
            }
            own = [each for each in of_seeds if each["label"] == label]
            for name in (name for name in own[0] if name.startswith("eval")):
                values = [each[name] for each in own]
                shown = name.removeprefix("eval/")
                row |= {f"{shown}_mean": float(np.mean(values)), f"{shown}_sd": float(np.std(values, ddof=1))}
            row |= timed(ours, twin, problem, start, k_data, result.fresh.num_steps)
            row |= compared(ours, twin, problem, start, k_data, args.epochs)
            rows.append(finite(row))
    return rows


def twin_of(rule: Contestant, point: Mapping[str, Any]) -> Any:
    """Optax's optimizer at the point; None where there is none, or where the point says more than the learning rate."""
    return rule.twin(**point) if rule.twin and [*point] == ["learning_rate"] else None


def timed(ours: Any, twin: Any, problem: Problem, start: Any, key: jax.Array, num_steps: int) -> Row:
    """Steps a second of `train` with either, turn by turn, in medians; and what the first call took beyond that."""
    num_steps = min(num_steps, TIMED_STEPS)
    optimizers = {"": ours, "_optax": twin} if twin else {"": ours}
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    while len(seconds[""]) < 1 + TIMED_ROUNDS and sum(seconds[""][1:]) < TIMED_SECONDS:
        for name, optimizer in optimizers.items():
            began = time.perf_counter()
            trained = jc.train(
                problem.objective,
                optimizer,
                start,
                problem.data,
                key=key,
                batch_size=problem.batch_size,
                num_steps=num_steps,
                progress=False,
            )
            jax.block_until_ready(trained.params)
            seconds[name].append(time.perf_counter() - began)
    row: Row = {f"{name}_optax": None for name in ("steps_per_second", "compile_seconds")}
    for name, values in seconds.items():
        steady = float(np.median(values[1:]))
        row |= {f"steps_per_second{name}": num_steps / steady, f"compile_seconds{name}": values[0] - steady}
    return row


def compared(ours: Any, twin: Any, problem: Problem, start: Any, key: jax.Array, epochs: int) -> Row:
    """How far the twin parts from ours along the whole path, relative to the largest parameter.

    Both get the gradients on the path of ours, so that a problem that magnifies rounding does not part them, and step
    in float64: there a rule that differs in one convention stands out by 6 orders.
    """
    if twin is None:
        return dict.fromkeys(("largest_difference", "relative_difference", "same_as_optax"))
    count = len(jax.tree.leaves(problem.data)[0])
    plan = jc.data.minibatches(key, count, problem.batch_size, epochs).full.reshape(-1, problem.batch_size)
    data = jax.tree.map(jnp.asarray, problem.data)

    def step(carry: Any, rows: jax.Array) -> Any:
        params, state, twin_params, twin_state = carry
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        at = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, start)
        grads = widened(jax.grad(problem.objective)(at, batch))
        updates, state = ours.update(grads, state, params)
        twin_updates, twin_state = twin.update(grads, twin_state, twin_params)
        params, twin_params = optax.apply_updates(params, updates), optax.apply_updates(twin_params, twin_updates)
        apart = optax.tree.norm(optax.tree.sub(params, twin_params), ord=jnp.inf)
        return (params, state, twin_params, twin_state), (apart, optax.tree.norm(params, ord=jnp.inf))

    with jax.enable_x64(True):
        wide = widened(start)
        begin = wide, ours.init(wide), wide, twin.init(wide)
        apart, size = map(np.asarray, jax.jit(lambda carry: jax.lax.scan(step, carry, plan)[1])(begin))
    difference = float(apart.max())
    relative = difference / float(size.max())
    return {
        "largest_difference": difference,
        "relative_difference": relative,
        "same_as_optax": bool(relative <= SAME),
    }


def widened(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )
