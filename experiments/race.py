"""The race: tune each optimizer equally, run it at its best point on fresh seeds, and compare it with its optax twin.

Every rule has the same points, seeds, starts and minibatches, and it is judged on seeds that its tuning did not use.
Each rule and its twin in optax take the same steps in float64; the table has the largest difference along the path.
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
from experiments.loading import describe_error, error_location
from experiments.problems import Problem, load_problem
from experiments.race_report import write_outputs
from experiments.report import print_blocks
from experiments.runs import finite, start_run
from jaxopt_course.statistics import paired_interval
from jaxopt_course.sweeps.methods import methods_of
from jaxopt_course.sweeps.sweep import starts_of

SAME = 1e-10  # relative difference in float64; rules that differ in one convention differ by 1e-4 or more
TIMED_ROUNDS, TIMED_SECONDS, TIMED_STEPS = 3, 0.5, 1000  # limits of the timing

Row = dict[str, Any]


def run(args: argparse.Namespace) -> int:
    """Race, write the folder, print the table and the verdict. Returns 1 if a rule is not equal to its twin."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    mesh = device_mesh(args.devices)
    with jax.enable_x64(args.x64):
        rules = {rule.label: rule for rule in contestants(args.optimizers).values()}
        if len(rules) < 2:
            raise UsageError(f"a race needs at least two optimizers; beside {', '.join(rules)} give, e.g., sgd or adam")
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


def device_mesh(count: int | None) -> Mesh | None:
    """A mesh of `count` devices that share the runs; on a CPU, virtual devices are made if JAX is not initialized."""
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
    """Run the race; an error that comes from a loaded file is reported with its line."""
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
        if where := error_location(error):
            raise UsageError(f"{where}{describe_error(error)}") from error
        if isinstance(error, TypeError):  # the race refuses the problem or a rule
            raise UsageError(str(error)) from error
        raise


def judged(
    rules: Mapping[str, Contestant], result: jc.RaceResult, problem: Problem, args: argparse.Namespace
) -> list[Row]:
    """One row for each optimizer, best first: losses, speed, and difference from its twin."""
    k_fresh = jax.random.split(jax.random.key(args.seed))[1]
    k_init, k_data = jax.random.split(jax.random.split(k_fresh, args.fresh_seeds)[0])
    start = jax.tree.map(lambda leaf: leaf[0], starts_of(problem.init, k_init[None]))
    rows, of_seeds = [], result.fresh.rows()
    timed(jc.sgd(0.0), None, problem, start, k_data, result.fresh.num_steps)  # compiles what every rule uses
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
    """The optax twin at a point; None if there is none, or if the point has more than a learning rate."""
    return rule.twin(**point) if rule.twin and [*point] == ["learning_rate"] else None


def timed(ours: Any, twin: Any, problem: Problem, start: Any, key: jax.Array, num_steps: int) -> Row:
    """Median steps per second of `train` with each optimizer, taking turns, and the extra time of the first call."""
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
    """The largest difference between the twin and ours along the whole path, absolute and relative.

    Both get the gradients on the path of ours, so that a problem that amplifies rounding does not separate them. Both
    take steps in float64, in which a rule with another convention differs by 6 orders of magnitude more.
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
        distance = optax.tree.norm(optax.tree.sub(params, twin_params), ord=jnp.inf)
        return (params, state, twin_params, twin_state), (distance, optax.tree.norm(params, ord=jnp.inf))

    with jax.enable_x64(True):
        wide = widened(start)
        begin = wide, ours.init(wide), wide, twin.init(wide)
        distance, size = map(np.asarray, jax.jit(lambda carry: jax.lax.scan(step, carry, plan)[1])(begin))
    difference = float(distance.max())
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
