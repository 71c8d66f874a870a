"""Sweeps: train every method at every point with every seed, as lanes of one compiled program for each method."""

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
from jaxopt_course.sweeps.methods import Factory, Method, check_method, methods_of, weakly_typed
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

SAVE_AFTER = 5.0  # seconds between checkpoints
KEEPS = ("best", "all", "none")


class SweepProgress(NamedTuple):
    """What a callback gets between compiled calls: the method, its progress, and its lowest mean loss so far."""

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

    Each run is a lane of one compiled program for each method. Hyperparameters are data, so points and seeds do not
    cause recompilation, and the lanes of a seed share its minibatches. Lane (method, point, seed s) is, up to rounding,

        k_init, k_data = jax.random.split(jax.random.split(key, num_seeds)[s])
        jc.train(objective, factory(**point), init(k_init), data, key=k_data, ...)

    so that all methods and points of a seed have the same start and the same minibatches. If the loss or gradient of a
    lane is not finite, the lane stops and the step is recorded; the other lanes continue.

    Args:
      objective: `(params, batch) -> scalar`, as for `train`; any tree of parameters.
      optimizers: a factory of optimizers, or `{label: factory}`: `jc.adam`, `optax.adamw`, a partial, a lambda. It is
        called as `factory(**point)` with traced scalars. Fix arguments that are not numbers with `functools.partial`.
      grid: `{name: values}` for every combination of the values, the same for all methods; or
        `{label: {name: values}}` for a separate grid for each method. Points from `sweeps.random` or `sweeps.product`
        may stand in place of `{name: values}`.
      init: `key -> params`, or the parameters themselves as the same start for every seed. Anything with floating-point
        leaves counts as a tree of parameters, even if it is callable.
      data: any tree of arrays with a leading axis of N examples. Every device holds the whole data.
      key: a `jax.random` key.
      num_seeds: S, the number of seeds, at least 1.
      batch_size: B, from 1 to N.
      num_steps: number of steps of each run. Give exactly one of `num_steps` and `num_epochs`.
      num_epochs: number of times to visit every example.
      drop_last: whether to drop the last, partial batch of each epoch; otherwise it is used too.
      has_aux: whether the objective returns `(value, aux)`; the aux is not kept.
      eval_fn: `params -> tree of arrays`, pure; called in every lane before the first step and after the last.
      eval_every: call `eval_fn` also after every `eval_every` steps.
      lanes: the most runs at once. Default: as many as fit into a quarter of the memory, by an estimate for one lane.
      halving: r > 1 for successive halving: all P points run T / r^k steps, the best P / r of them r times as many,
        and so on; the points of the last rung run all T steps. The lanes of the other points are freed. The best point
        is chosen among those of the last rung.
      mesh: devices among which the lanes are divided, along all axes of the mesh. With `jax.distributed`, make the same
        call in all processes.
      checkpoint_dir: a folder for this sweep. After a kill, the same call continues from there; a call with another
        grid, data, objective, start or setting is refused with an error that names the difference. SIGINT and SIGTERM
        save before they end the sweep.
      progress: whether to show a bar with the time left on stderr. Default: if stderr is a terminal and rich is
        installed.
      callback: called with a `SweepProgress` after each compiled call.
      keep_params: "best" keeps the final parameters of each method's best point, "all" those of all lanes, "none" none.

    Returns:
      `SweepResult`: `rows()`, `best()`, `loss(label)`, `curve(label)`, `save(path)`; `str()` gives a table.

    Raises:
      TypeError: a factory is not callable or does not make an optimizer, or it does not accept a hyperparameter, needs
        another one, or cannot use a traced value.
      ValueError: the grid is empty, values have rank 2, labels do not match, there are no seeds, the shapes of the
        start depend on the key, or `train` would reject an argument. All this is checked before compilation.
      CheckpointError: the folder holds another sweep, or it cannot be read.
      Interrupted: SIGINT or SIGTERM was received, and the sweep is saved.

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
    pairs = _split_each(jax.random.split(key, seeds))
    k_init, k_data = pairs[:, 0], pairs[:, 1]
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


@jax.jit
def _split_each(keys: Array) -> Array:
    """Two keys for each of the keys; by a loop, because `vmap` would change what some of JAX's generators give."""
    return jax.lax.map(jax.random.split, keys)


def starts_of(init: Any, keys: Array) -> Params:
    """The start of every seed, `[S, ...]`, from a function of a key or from one tree for all seeds."""
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
    """Call `init` for every key: compiled once if possible, by Python if `init` needs the value of the key."""
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
    """The shapes of a start and of a batch."""
    plan = setup.plan

    def shape(leaf: Any, *leading: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leading, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, setup.starts), jax.tree.map(lambda leaf: shape(leaf, plan.batch_size), setup.data)


def _check(setup: Setup, method: Method) -> int:
    """Check a method with shapes only, and return the bytes of a lane."""
    params, batch = _example(setup)
    check_method("sweep", method, params)
    if setup.eval_fn is not None:
        jax.eval_shape(setup.eval_fn, params)
    return lane_bytes(setup.objective, method.factory, _first_point(method), params, batch, setup.has_aux)


def _first_point(method: Method) -> dict[str, Array]:
    """A method's first point, with the types that it has in a lane."""
    return {name: weakly_typed(values)[0] for name, values in method.points.items()}


def _lanes(bytes_of_lane: int, mesh: Mesh | None) -> int:
    return max(1, memory_bytes() // bytes_of_lane) * (1 if mesh is None else mesh.size)


def _saved_run(run: MethodRun, checkpoint_dir: str | os.PathLike[str] | None) -> Iterator[bool]:
    """Run a method and save it every few seconds, at its end and after a signal."""
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
                message = f"sweep: {signum.name} during {label} {where}; the same call continues from there"
                raise Interrupted(message, signum, run.done, None)
            yield ended


def _folder_name(label: str) -> str:
    """A folder name for a label that is valid on all file systems and different for different labels."""
    return f"{re.sub('[^A-Za-z0-9]+', '-', label).strip('-').lower()[:40]}-{zlib.crc32(label.encode()):08x}"


def _identity(run: MethodRun) -> Identity:
    """What must be the same for a saved sweep to continue."""
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
