"""The training loop: minibatch training in compiled chunks, with callbacks and checkpoints between them."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from jaxopt_course.annotations import AnyOptimizer, Array, Number, Objective, OptState, Params, PyTree
from jaxopt_course.data.batches import check_batch_size
from jaxopt_course.training.checkpoint import Checkpoints, CheckpointWriteError
from jaxopt_course.training.checks import (
    check_key_argument,
    check_not_traced,
    check_objective_argument,
    check_optimizer_argument,
    num_examples_of,
    whole_number,
)
from jaxopt_course.training.feed import Chunk, Feed, StepPlan, plan_chunks, total_steps
from jaxopt_course.training.history import TrainResult
from jaxopt_course.training.identity import RunParts, run_identity
from jaxopt_course.training.interrupts import Signals
from jaxopt_course.training.prober import ProbeInputs, Prober, take_probe
from jaxopt_course.training.probes import Probe
from jaxopt_course.training.programs import Program
from jaxopt_course.training.progress import progress_bar
from jaxopt_course.training.run import Run, Snapshot
from jaxopt_course.training.states import continued_state
from jaxopt_course.training.steps import Carry, Record, init_carry, train_steps

CHECKPOINT_EVERY = 1000
AHEAD = 4  # number of chunks for which the order of the examples is computed at once


def train(
    objective: Objective,
    optimizer: AnyOptimizer,
    params: Params,
    data: PyTree,
    *,
    key: Array,
    batch_size: Number,
    num_steps: Number | None = None,
    num_epochs: Number | None = None,
    drop_last: bool = True,
    has_aux: bool = False,
    eval_fn: Callable[[Params], PyTree] | None = None,
    eval_every: Number | None = None,
    on_nonfinite: str = "stop",
    probe_every: Number | None = None,
    callback: Callable[[Snapshot], None] | None = None,
    progress: bool | None = None,
    chunk_size: Number = 100,
    mesh: Mesh | None = None,
    max_data_bytes: Number | None = None,
    state: OptState | TrainResult | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: Number | None = None,
    resume: bool = True,
    keep: Number = 3,
) -> TrainResult:
    r"""Train on minibatches for a number of steps or epochs.

    $$w_{t+1} = w_t + u_t, \qquad u_t, \sigma_{t+1} = \mathrm{update}\bigl(\nabla L_{B_t}(w_t), \sigma_t, w_t\bigr)$$

    This is a Python loop over compiled chunks of steps. Progress, callbacks, evaluation and Ctrl-C are handled only
    between chunks. Calls with the same objective, optimizer and shapes compile once, however many steps they take. A
    new optimizer or objective is a new function and compiles again, and so does one that reaches a NumPy array whose
    content has changed. These arrays are read at the start of a call. For sweeps, use `vmap` over `train_steps`.

    The data may have any dtype: images kept as `uint8` take a quarter of the memory, and `scores.standardized` converts
    them to floating point inside the step. Data larger than `max_data_bytes` is streamed: the examples of the next
    chunk are transferred while the current one trains; the minibatches are the same.

    With a `mesh`, each device computes the gradient of its share of every minibatch; the steps are those of one device,
    up to rounding. To train on many hosts, make the same call in every process of `jax.distributed`, over
    `jax.devices()`.

    With a `checkpoint_dir`, a run that was stopped or killed continues where it was, and ends bit-equal to an
    uninterrupted run. SIGINT and SIGTERM then save before they end the run. Another run in the same folder is refused,
    and the message names the differences. The comparison covers the traced objective and optimizer with all their
    constants, the start, every byte of the data, key, batch size, `drop_last`, `on_nonfinite`, `probe_every`, and
    whether there is an `eval_fn`. More steps, another `chunk_size`, `checkpoint_every` or mesh are the same run. Python
    code behind `jax.pure_callback` and data beyond 64 GiB cannot be compared completely; a warning says so when a run
    is resumed. Hashes are computed during training; only a resumed run with up to 100 MiB of data waits for them. With
    more data, callbacks may see steps of a run that is refused later, but results are neither saved nor returned before
    the comparison is complete.

    With a `state`, the optimizer continues from it: `train(state=result.state)` with `result.params` continues moments
    and counters, also with another learning rate. The order of the minibatches restarts from `key`.

    Args:
      objective: `(params, batch) -> scalar`, or `(scalar, aux)` with `has_aux`; `batch` is `data` with B examples.
      optimizer: ours or any of optax's; its `update` gets optax's keywords `value`, `grad` and `value_fn` at each step.
      params: any tree of floating-point arrays; it is not changed.
      data: any tree of arrays with a leading axis of N examples, such as `(inputs, labels)`.
      key: a `jax.random` key; it determines the order of the examples as described in `data.minibatches`.
      batch_size: B, from 1 to N.
      num_steps: number of steps. Give exactly one of `num_steps` and `num_epochs`.
      num_epochs: number of passes over the data; a fraction is rounded to whole steps.
      drop_last: drop the last, partial batch of each epoch, or train on it too (its shape is compiled separately).
      has_aux: whether the objective returns `(value, aux)`; the trace stacks the aux.
      eval_fn: `params -> tree of arrays`, called before the first step, after the last, and every `eval_every` steps.
        It is not jitted here; pass a jitted function.
      eval_every: steps between two calls of `eval_fn`; by default `chunk_size`.
      on_nonfinite: "stop" raises at the first step whose loss or gradient is not finite; "skip" does not take such
        steps, does not change parameters and state, and marks the steps in the trace.
      probe_every: steps between two measurements of what limits the run, for `jc.diagnose`: gradient noise, and
        curvature relative to the rule's stability limit, on separate minibatches. More thorough measurements are made
        before the first step and after the last. The training steps are not affected. Real parameters only.
      callback: called with a `Snapshot` after each chunk.
      progress: show a bar on stderr; by default if stderr is a terminal and rich is installed.
      chunk_size: most steps in one compiled call; callbacks and Ctrl-C are handled between these calls.
      mesh: devices that share each minibatch, along all its axes; their number must divide `batch_size`.
      max_data_bytes: most bytes of examples on a device at once; larger data is streamed. By default the free memory
        that the device reports, and no limit if it does not report it (a CPU).
      state: the initial optimizer state, or a `TrainResult` that holds it; by default that of `optimizer.init`. A state
        of the same rule is converted between ours and optax's by the names of its fields. It remains usable.
      checkpoint_dir: a folder for checkpoints of this run only; `~` is the home directory.
      checkpoint_every: steps between two checkpoints, by default 1,000; there is also one at the end.
      resume: continue from the newest complete checkpoint; if False, the folder must not contain any.
      keep: number of newest checkpoints to keep.

    Returns:
      `TrainResult(params, state, trace)`.

    Raises:
      ValueError: arguments that are not consistent, a batch larger than the data, a `state` of another rule or shape,
        an objective that does not return a floating-point scalar.
      TypeError: parameters that are not floating point; an invalid optimizer, objective or key; a call under jit, vmap
        or grad, where `train_steps` must be used.
      CheckpointError: there are checkpoints, but none can be resumed: incomplete, of another version, or of another
        run.
      CheckpointWriteError: an `OSError`; a checkpoint could not be written. Its `result` holds all results so far.
      Interrupted: SIGINT or SIGTERM arrived, and the run is saved. A `KeyboardInterrupt` with exit code 130 or 143.
      NonFiniteError: with "stop", at the first step that is not finite; with either, if the final parameters are not
        finite. It names the step and the leaf, and its `result` holds the results before that step.

    Example:
      >>> import jax
      >>> import jaxopt_course as jc
      >>> digits = jc.data.load("digits")
      >>> objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
      >>> params = jc.scores.init_linear(jax.random.key(0), num_classes=10, num_features=64)
      >>> result = jc.train(objective, jc.momentum(0.03), params, digits.train,
      ...                   key=jax.random.key(1), batch_size=64, num_epochs=20)
      >>> test_images, test_labels = digits.test
      >>> before = jc.accuracy(jc.scores.linear(params, test_images), test_labels)
      >>> after = jc.accuracy(jc.scores.linear(result.params, test_images), test_labels)
      >>> bool(before < 0.3), bool(after > 0.95)
      (True, True)

    Source: the lecture's "Stochastic Gradient Descent (SGD)" loop.
    """
    _check_arguments(objective, optimizer, params, data, key)
    size = whole_number("train", "batch_size", batch_size, 0)
    plan = StepPlan(key, num_examples_of("train", data), size, bool(drop_last))
    check_batch_size("train", plan.num_examples, plan.batch_size)
    total = total_steps("train", num_steps, num_epochs, plan)
    at_once = whole_number("train", "chunk_size", chunk_size, 1)
    keep = whole_number("train", "keep", keep, 1)
    eval_stride = _optional_number("eval_every", eval_every, 1, eval_fn, "an eval_fn") or at_once
    probe_stride = _optional_number("probe_every", probe_every, 1)
    save_stride = _optional_number("checkpoint_every", checkpoint_every, 1, checkpoint_dir, "a checkpoint_dir")

    feed = Feed(data, plan.batch_size, at_once, mesh, _optional_number("max_data_bytes", max_data_bytes, 0))
    if state is not None:
        state = continued_state("train", state, optimizer, params)
    carry = init_carry(optimizer, params)
    carry = carry if state is None else carry._replace(state=state)
    carry = jax.tree.map(partial(jnp.array, copy=True), carry)  # the memory of the input is reused by the chunks
    check_not_traced("train", objective_or_optimizer=carry)
    prober = None
    if probe_stride is not None:
        prober = Prober(objective, optimizer, params, key, probe_stride, size, plan.num_examples, bool(has_aux))
    run = Run(feed.replicated(carry), eval_fn, total, eval_stride, save_stride or CHECKPOINT_EVERY, prober)
    advance = partial(
        _compiled_steps.bound((objective, optimizer)),
        has_aux=has_aux,
        on_nonfinite=on_nonfinite,
        everywhere=feed.everywhere,
        at_once=feed.steps_at_once,
    )
    parts = RunParts(
        objective, optimizer, params, state, data, plan, bool(has_aux), on_nonfinite, eval_fn is not None, probe_stride
    )  # fmt: skip
    stops = (run.eval_every,) * (eval_fn is not None) + (run.save_every,) * (checkpoint_dir is not None)
    chunk: Chunk | None = None
    stops += () if probe_stride is None else (probe_stride,)
    try:
        with ExitStack() as contexts:
            if checkpoint_dir is not None:
                store = Checkpoints(checkpoint_dir, run_identity(parts), run.carry, keep=keep, resume=resume)
                run.store, run.signals = contexts.enter_context(store), contexts.enter_context(Signals())
                run.resume(parts)
            show = contexts.enter_context(progress_bar("train", progress, total))
            if run.step == 0:
                run.evaluate()
            for chunk in feed.chunks(plan_chunks(plan, run.step, total, feed.steps_at_once, stops, AHEAD)):
                probe_inputs = None if prober is None else prober.inputs_if_due(run.step, run.carry, chunk)
                run.carry, records, seen = advance(
                    run.carry,
                    chunk.data,
                    chunk.plan,
                    *map(np.int32, (chunk.start, chunk.first, chunk.last)),
                    probe_inputs,
                )
                if prober is not None and seen is not None:
                    prober.keep(run.step, seen)
                run.record(records, chunk, parts)
                if run.step % run.eval_every == 0:
                    run.evaluate()
                snapshot = run.snapshot()
                show(run.step, snapshot.loss)
                if callback is not None:
                    callback(snapshot)
                run.save_if_due()
            run.evaluate()
            if prober is not None and chunk is not None:
                prober.survey(run.step, run.carry, chunk)
            run.save_if_due(last=True)
    except CheckpointWriteError as error:
        error.result = run.result()
        raise
    run.check_end()
    return run.result()


def _check_arguments(objective: Any, optimizer: Any, params: Any, data: Any, key: Any) -> None:
    check_optimizer_argument("train", optimizer)
    check_objective_argument("train", objective, "params", "batch")
    check_not_traced("train", params=params, data=data, key=key)
    check_key_argument("train", key)


def _optional_number(name: str, value: Any, least: int, needed: Any = True, what: str = "") -> int | None:
    """Return the integer, or None if it is not given; it is valid only together with `needed`."""
    if value is None:
        return None
    if needed is None:
        raise ValueError(f"train: {name} needs {what}, got {name}={value} alone")
    return whole_number("train", name, value, least)


@partial(Program, static_argnames=("has_aux", "on_nonfinite", "everywhere", "at_once"), donate_argnums=1)
def _compiled_steps(
    callables: tuple[Objective, AnyOptimizer],
    carry: Carry,
    data: Any,
    plan: Array | None,
    start: Array,
    first: Array,
    last: Array,
    probe_inputs: ProbeInputs | None,
    *,
    has_aux: bool,
    on_nonfinite: str,
    everywhere: NamedSharding | None,
    at_once: int,
) -> tuple[Carry, Record, tuple[Probe, Array] | None]:
    if plan is not None and len(plan) > at_once:
        plan = lax.dynamic_slice_in_dim(plan, start, at_once)
    seen = None if probe_inputs is None else take_probe(callables, carry, data, plan, probe_inputs, has_aux)
    steps = partial(train_steps, *callables, has_aux=has_aux, on_nonfinite=on_nonfinite, check_rows=False)
    ended = (*steps(carry, data, plan, first, last), seen)  # the plan is correct by construction
    return ended if everywhere is None else lax.with_sharding_constraint(ended, everywhere)
