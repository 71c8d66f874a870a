"""Sweeps: every point of every method with every seed, as lanes of one compiled program a method."""

import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxopt_course.annotations import Array, Number, Objective, Params, PyTree
from jaxopt_course.arrays import check_arrays, on_device
from jaxopt_course.data.batches import check_batch_size
from jaxopt_course.sweeps.lanes import Layout, fetch, first_step, lane_bytes, measure_loss, memory_bytes
from jaxopt_course.sweeps.methods import Factory, Method, check_method, methods_of, weak
from jaxopt_course.sweeps.points import Grid
from jaxopt_course.sweeps.result import SweepResult
from jaxopt_course.sweeps.runs import MethodRun, Setup
from jaxopt_course.training.checkpoint import Checkpoints
from jaxopt_course.training.checks import (
    check_key_argument,
    check_not_traced,
    check_objective_argument,
    num_examples_of,
    whole_number,
)
from jaxopt_course.training.feed import StepPlan, total_steps
from jaxopt_course.training.fingerprints import trace
from jaxopt_course.training.identity import Identity
from jaxopt_course.training.interrupts import Interrupted, Signals
from jaxopt_course.training.progress import progress_bar
from jaxopt_course.training.steps import init_carry

SAVE_AFTER = 5.0  # seconds
KEEPS = ("best", "all", "none")


class SweepProgress(NamedTuple):
    """What a callback sees between compiled calls: which method, how far, and its lowest mean loss so far."""

    label: str
    step: int
    num_steps: int
    lowest_loss: float


def sweep(
    objective: Objective,
    optimizers: Factory | Mapping[str, Factory],
    grid: Grid | Mapping[str, Grid],
    init: Callable[[Array], Params] | Params,
    data: PyTree,
    *,
    key: Array,
    num_seeds: Number = 3,
    batch_size: Number,
    num_steps: Number | None = None,
    num_epochs: Number | None = None,
    drop_last: bool = True,
    has_aux: bool = False,
    eval_fn: Callable[[Params], PyTree] | None = None,
    eval_every: Number | None = None,
    lanes: Number | None = None,
    halving: Number | None = None,
    mesh: Mesh | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    callback: Callable[[SweepProgress], None] | None = None,
    keep_params: str = "best",
) -> SweepResult:
    r"""Train every method at every point of its grid with every seed.

    $$\theta^*_m = \arg\min_{\theta \in \Theta_m} \frac{1}{S} \sum_s L(w_T(m, \theta, s))$$

    A run is a lane of one compiled program a method: hyperparameters are data, so points and seeds do not compile
    again, and the lanes of a seed share its minibatches. Lane (method, point, seed s) is, up to rounding,

        k_init, k_data = jax.random.split(jax.random.split(key, num_seeds)[s])
        jc.train(objective, factory(**point), init(k_init), data, key=k_data, ...)

    so that all methods and points of a seed see the same start and the same minibatches. A lane whose loss or gradient
    is not finite freezes and is dated; the others go on.

    Args:
      objective: `(params, batch) -> scalar`, as for `train`; any tree of parameters.
      optimizers: a factory of optimizers, or `{label: factory}`: `jc.adam`, `optax.adamw`, a partial, a lambda. It is
        called as `factory(**point)` with traced scalars. What is no number is fixed with `functools.partial`.
      grid: `{name: values}`, every combination, for all methods; `{label: {name: values}}` for each its own; or points
        of `sweeps.random` or `sweeps.product` in the place of `{name: values}`.
      init: `key -> params`; or the parameters themselves, the same start for every seed. Anything with floating-point
        leaves is a tree of parameters, a callable module too.
      data: any tree of arrays with a leading axis of N examples. It lies on the devices whole.
      key: a `jax.random` key.
      num_seeds: S, at least 1.
      batch_size: B, from 1 to N.
      num_steps: steps of each run; or
      num_epochs: times to visit every example. Exactly one of the two.
      drop_last: drop the last, partial batch of each epoch, or train on it too.
      has_aux: whether the objective returns `(value, aux)`; the aux is not kept.
      eval_fn: `params -> tree of arrays`, pure; called in every lane before the first step, after the last, and
      eval_every: after every so many steps.
      lanes: most runs at once; by default as many as fit into a quarter of the memory, by an estimate of a lane's.
      halving: r > 1 for successive halving: all P points run T / r^k steps, the best P / r of them r times as many,
        and so on; the last ones run all T steps. Lanes of the others are freed. The best is sought among the last ones.
      mesh: devices to share the lanes among, along all its axes; with `jax.distributed` the same call in all processes.
      checkpoint_dir: a folder for this sweep. The same call goes on from there after a kill; another grid, data,
        objective, start or setting is refused by name. SIGINT and SIGTERM save before they end the sweep.
      progress: show a bar with the time left on stderr; by default where stderr is a terminal and rich is installed.
      callback: called with a `SweepProgress` after each compiled call.
      keep_params: "best" keeps the final parameters of each method's best point, "all" those of all lanes, "none" none.

    Returns:
      `SweepResult`: `rows()`, `best()`, `loss(label)`, `curve(label)`, `save(path)`; as a string it is a table.

    Raises:
      TypeError: a factory that is none or makes no optimizer, hyperparameters that it does not take, needs, or cannot
        take traced.
      ValueError: an empty grid, values of rank 2, labels that do not match, no seeds, a start whose shapes depend on
        the key, and what `train` refuses. All before anything compiles.
      CheckpointError: the folder holds another sweep, or cannot be read.
      Interrupted: SIGINT or SIGTERM came, and the sweep is saved.

    Example:
      >>> import jax
      >>> import optax
      >>> import jaxopt_course as jc
      >>> digits = jc.data.load("digits")
      >>> objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
      >>> init = lambda key: jc.scores.init_linear(key, num_classes=10, num_features=64)
      >>> result = jc.sweep(objective, {"SGD": jc.sgd, "AdamW": optax.adamw}, {"learning_rate": [1e-4, 1e-2, 1.0]},
      ...                   init, digits.train, key=jax.random.key(0), num_seeds=2, batch_size=64, num_epochs=3)
      >>> result.loss("SGD").shape
      (3, 2)
      >>> [f"{loss:.1f}" for loss in result.loss("AdamW").mean(axis=1)]
      ['2.1', '0.2', '0.4']
      >>> best = result.best("AdamW")
      >>> best.hyperparameters, best.at_edge
      ({'learning_rate': 0.01}, ())

    Source: the lecture's tuning of the learning rate; successive halving after Jamieson and Talwalkar (2016).
    """
    check_objective_argument("sweep", objective, "params", "batch")
    check_not_traced("sweep", data=data, key=key)
    check_key_argument("sweep", key)
    if keep_params not in KEEPS:
        raise ValueError(f"sweep: keep_params must be one of {KEEPS}, got {keep_params!r}")
    methods = methods_of("sweep", optimizers, grid)
    seeds = whole_number("sweep", "num_seeds", num_seeds, 1)
    most = None if lanes is None else whole_number("sweep", "lanes", lanes, 1)
    k_init, k_data = jax.vmap(jax.random.split, out_axes=1)(jax.random.split(key, seeds))
    plan = StepPlan(
        k_data, num_examples_of("sweep", data), whole_number("sweep", "batch_size", batch_size, 0), bool(drop_last)
    )
    check_batch_size("sweep", plan.num_examples, plan.batch_size)
    total = total_steps("sweep", num_steps, num_epochs, plan)
    stride = None if eval_every is None else whole_number("sweep", "eval_every", eval_every, 1)
    if stride is not None and eval_fn is None:
        raise ValueError(f"sweep: eval_every needs an eval_fn, got eval_every={eval_every} alone")
    evaluated = sorted({0, *range(0, total, stride or max(total, 1)), total})
    setup = Setup(
        objective,
        bool(has_aux),
        Layout(mesh).put(jax.tree.map(on_device, data), "all"),
        plan,
        total,
        starts_of(init, k_init),
        eval_fn,
        np.array(evaluated if eval_fn is not None else [], int),
        stride,
        _halving(halving),
        keep_params,
    )
    bytes_of_lanes = [_check(setup, method) for method in methods]
    runs = [MethodRun(setup, m, most or _lanes(b, mesh), mesh) for m, b in zip(methods, bytes_of_lanes, strict=True)]
    todo, begun, results = sum(run.total_steps() for run in runs), 0, {}
    with progress_bar("sweep", progress, todo) as show:
        for run in runs:
            for _ in _saved_run(run, checkpoint_dir):
                show(begun + run.done, run.lowest_loss())
                if callback is not None:
                    callback(SweepProgress(run.method.label, run.done, run.total_steps(), run.lowest_loss()))
            begun += run.total_steps()
            results[run.method.label] = run.result()
    lanes_of_starts = jax.tree.map(lambda leaf: leaf[:, None], setup.starts)
    start_loss = measure_loss(
        objective, lanes_of_starts, setup.data, has_aux=setup.has_aux, at_once=1, layout=Layout()
    )[:, 0]
    return SweepResult(results, total, plan.steps_per_epoch, setup.eval_steps, np.asarray(start_loss), keep_params)


def starts_of(init: Any, keys: Array) -> Params:
    """The start of every seed, `[S, ...]`, from a function of a key or from one tree for all."""
    if any(jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact) for leaf in jax.tree.leaves(init)):
        starts = [init] * len(keys)
    elif callable(init):
        starts = _made_starts(init, keys)
    else:
        raise TypeError(
            "sweep: init must be a function key -> params or a tree of floating-point arrays; "
            f"got {type(init).__name__}"
        )
    for number, start in enumerate(starts):
        check_arrays("params", start)
        init_carry(_NoOptimizer, start)
        if (here := _shapes(start)) != (first := _shapes(starts[0])):
            differs = next(pair for pair in zip(first, here, strict=False) if pair[0] != pair[1])
            raise ValueError(
                "sweep: the start must have the same shapes for every seed, and init gives "
                f"params{differs[0]} for seed 0, params{differs[1]} for seed {number}"
            )
    return jax.tree.map(lambda *leaves: jnp.stack([*map(jnp.asarray, leaves)]), *starts)


def _made_starts(init: Callable[[Array], Params], keys: Array) -> list[Params]:
    """`init` of every key: compiled once where it can be, by Python where it needs the key's value."""
    compiled = jax.jit(init)
    try:
        return [compiled(key) for key in keys]
    except (jax.errors.JAXTypeError, TypeError):
        return [init(key) for key in keys]


class _NoOptimizer:
    init = staticmethod(lambda params: None)


def _shapes(params: Params) -> list[str]:
    paths = jax.tree_util.tree_leaves_with_path(params)
    return [f"{jax.tree_util.keystr(path)} {jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for path, leaf in paths]


def _halving(halving: Any) -> float | None:
    if halving is None:
        return None
    if isinstance(halving, bool) or not isinstance(halving, int | float | np.number):
        raise TypeError(f"sweep: halving must be a number above 1, such as 3, got {halving!r:.60}")
    if not 1 < halving < np.inf:
        raise ValueError(f"sweep: halving must be a number above 1, such as 3, got {halving}")
    return float(halving)


def _example(setup: Setup) -> tuple[Params, PyTree]:
    """A start and a batch, as shapes."""
    plan = setup.plan

    def shape(leaf: Any, *leading: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leading, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, setup.starts), jax.tree.map(lambda leaf: shape(leaf, plan.batch_size), setup.data)


def _check(setup: Setup, method: Method) -> int:
    """Try the method on shapes alone; the bytes of a lane."""
    params, batch = _example(setup)
    check_method("sweep", method, params)
    if setup.eval_fn is not None:
        jax.eval_shape(setup.eval_fn, params)
    return lane_bytes(setup.objective, method.factory, _first_point(method), params, batch, setup.has_aux)


def _first_point(method: Method) -> dict[str, Array]:
    """A method's first point, as a lane sees it."""
    return {name: weak(values)[0] for name, values in method.points.items()}


def _lanes(bytes_of_lane: int, mesh: Mesh | None) -> int:
    return max(1, memory_bytes() // bytes_of_lane) * (1 if mesh is None else mesh.size)


def _saved_run(run: MethodRun, checkpoint_dir: str | os.PathLike[str] | None) -> Iterator[bool]:
    """The run, saved every few seconds, at its end and after a signal."""
    if checkpoint_dir is None:
        yield from run.run()
        return
    label = run.method.label
    folder = Path(checkpoint_dir).expanduser() / _folder_name(label)
    with ExitStack() as contexts:
        store = contexts.enter_context(Checkpoints(folder, _identity(run), run.first_carry(), keep=2, resume=True))
        signals = contexts.enter_context(Signals())
        if store.saved is not None:
            run.restore(store.saved.step, store.saved.carry, store.saved.history)
        saved_at = time.monotonic()
        for ended in run.run():
            signum = signals.poll()
            over = run.done == run.total_steps() and ended
            if signum or over or time.monotonic() - saved_at > SAVE_AFTER:
                store.save(run.done, run.saved_carry(), run.arrays())
                saved_at = time.monotonic()
            if signum:
                store.wait()
                where = f"after {run.done} of {run.total_steps()} steps, saved in {folder}"
                message = f"sweep: {signum.name} during {label} {where}; the same call goes on from there"
                raise Interrupted(message, signum, run.done, None)
            yield ended


def _folder_name(label: str) -> str:
    """A name for the label's folder that file systems accept, different for different labels."""
    return f"{re.sub('[^A-Za-z0-9]+', '-', label).strip('-').lower()[:40]}-{zlib.crc32(label.encode()):08x}"


def _identity(run: MethodRun) -> Identity:
    """What must be the same when a sweep goes on."""
    setup, method = run.setup, run.method
    params, batch = _example(setup)
    step = partial(first_step, setup.objective, method.factory, setup.has_aux)
    functions = {"step": trace(step, _first_point(method), params, batch)}
    if setup.eval_fn is not None:
        functions["eval_fn"] = trace(setup.eval_fn, params)
    settings = {
        "label": method.label,
        "keys": np.asarray(jax.random.key_data(setup.plan.key)).tolist(),
        "batch_size": setup.plan.batch_size,
        "drop_last": setup.plan.drop_last,
        "has_aux": setup.has_aux,
        "num_steps": setup.num_steps,
        "eval_every": setup.eval_every,
        "halving": setup.halving,
        "keep_params": setup.keeps_params,
        "block of seeds and points": list(run.shape),
    }
    arrays = {"grid": dict(method.points), "starts": setup.starts, "data": setup.data}
    return Identity(settings, functions, fetch(arrays))
