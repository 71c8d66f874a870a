"""The loop that people call: minibatch training in compiled chunks, with eyes and ears in between."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding

from jaxopt_course.annotations import AnyOptimizer, Array, Objective
from jaxopt_course.data.batches import check_batch_size
from jaxopt_course.training.checkpoint import kept
from jaxopt_course.training.feed import Feed, fingerprint, num_examples_of, schedule
from jaxopt_course.training.history import History, Trace
from jaxopt_course.training.programs import Program
from jaxopt_course.training.steps import Carry, Record, init_carry, train_steps

CHECKPOINT_EVERY = 1000


class TrainResult(NamedTuple):
    """`params` and optimizer `state` after the last step, and the `trace`."""

    params: Any
    state: Any
    trace: Trace


class Snapshot(NamedTuple):
    """What a callback sees between two chunks. `params` and `state` are used up by the next chunk: copy to keep."""

    step: int
    num_steps: int
    params: Any
    state: Any
    loss: float
    grad_norm: float


class NonFiniteError(FloatingPointError):
    """A loss or gradient was not finite. `step` counts from 1; `result` holds everything from before that step."""

    def __init__(self, message: str, step: int, result: TrainResult):
        super().__init__(message)
        self.step = step
        self.result = result


def train(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: Any,
    data: Any,
    *,
    key: Array,
    batch_size: int,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    drop_last: bool = True,
    has_aux: bool = False,
    eval_fn: Callable[[Any], Any] | None = None,
    eval_every: int | None = None,
    on_nonfinite: str = "stop",
    callback: Callable[[Snapshot], None] | None = None,
    progress: bool | None = None,
    chunk_size: int = 100,
    mesh: Mesh | None = None,
    max_data_bytes: int | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    keep: int = 3,
) -> TrainResult:
    r"""Train on minibatches for a number of steps or epochs.

    $$w_{t+1} = w_t + u_t, \qquad u_t, \sigma_{t+1} = \mathrm{update}\bigl(\nabla L_{B_t}(w_t), \sigma_t, w_t\bigr)$$

    A Python loop over compiled chunks of steps: progress, callbacks, evaluation and Ctrl-C live between chunks, nothing
    inside. Calls with the same objective, optimizer and shapes compile once, however many steps they take; an optimizer
    or objective made anew is a new function and compiles again. To sweep, `vmap` over `train_steps` instead.

    The data may be of any dtype: images that stay `uint8` take a quarter of the memory, and `scores.standardized` makes
    them floating point inside the step. Data beyond `max_data_bytes` is streamed: the examples of the next chunk are on
    their way while this one trains, and the minibatches stay the same.

    With a `mesh` each device computes the gradient of its share of every minibatch; the steps are those of one device,
    up to rounding. The same call in every process of `jax.distributed`, over `jax.devices()`, trains on many hosts.

    With a `checkpoint_dir` a run that was stopped, or killed, goes on where it was and ends bit-equal to one that never
    was. SIGINT and SIGTERM then save before they end the run.

    Args:
      objective: `(params, batch) -> scalar`, or `(scalar, aux)` with `has_aux`; `batch` is `data` with B examples.
      optimizer: ours or any of optax's; it is handed optax's own keywords `value`, `grad` and `value_fn` at each step.
      params: any tree of floating-point arrays; left as it is.
      data: any tree of arrays with a leading axis of N examples, such as `(inputs, labels)`.
      key: a `jax.random` key; it fixes the order of the examples as `data.minibatches` states.
      batch_size: B, from 1 to N.
      num_steps: steps to take; or
      num_epochs: times to visit every example. Exactly one of the two.
      drop_last: drop the last, partial batch of each epoch, or train on it too (its shape is compiled once more).
      has_aux: whether the objective returns `(value, aux)`; the trace stacks the aux.
      eval_fn: `params -> tree of arrays`, asked before the first step, after the last, and
      eval_every: after every so many steps; after every chunk's worth of steps unless given. Jit it yourself.
      on_nonfinite: "stop" raises at the first step whose loss or gradient is not finite; "skip" does not take such
        steps, leaves parameters and state as they are, and marks them in the trace.
      callback: called with a `Snapshot` after each chunk.
      progress: show a bar on stderr; by default where stderr is a terminal and rich is installed.
      chunk_size: most steps in one compiled call: how often callbacks and Ctrl-C have their turn.
      mesh: devices to share each minibatch among, along all its axes; their number divides `batch_size`.
      max_data_bytes: most bytes of examples on a device at once; more than that is streamed. By default what the device
        says is free, and no limit where it does not say (a CPU).
      checkpoint_dir: a folder for checkpoints of this run and no other.
      checkpoint_every: steps from one to the next, 1,000 unless given; there is also one at the end.
      resume: go on from the newest checkpoint that is whole; False insists on a folder without any.
      keep: how many of the newest stay.

    Returns:
      `TrainResult(params, state, trace)`.

    Raises:
      ValueError: arguments that do not fit together, a batch larger than the data, an objective that is not scalar.
      TypeError: parameters that are not floating point.
      CheckpointError: there are checkpoints and none can be resumed: torn, or of another tree, dtype, key, data.
      Interrupted: SIGINT or SIGTERM came, and the run is saved. A `KeyboardInterrupt` with the exit code 130 or 143.
      NonFiniteError: with "stop", at the first step that is not finite; with either, when the parameters end so. It
        names the step and the leaf, and its `result` holds all there was before.

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
    num_examples = num_examples_of(data)
    check_batch_size("train", num_examples, batch_size)
    whole, rest = divmod(num_examples, batch_size)
    steps_per_epoch = whole + (rest > 0 and not drop_last)
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(f"train: give num_steps or num_epochs, one of them; got {num_steps} and {num_epochs}")
    total = num_steps if num_steps is not None else int(num_epochs or 0) * steps_per_epoch
    if total < 0 or chunk_size < 1:
        raise ValueError(f"train: need steps >= 0 and chunk_size >= 1, got {total} and {chunk_size}")
    if eval_every is not None and (eval_fn is None or eval_every < 1):
        raise ValueError(f"train: eval_every needs an eval_fn and must be at least 1, got {eval_every}")
    if checkpoint_every is not None and (checkpoint_dir is None or checkpoint_every < 1):
        raise ValueError(f"train: checkpoint_every needs a checkpoint_dir and a number from 1, got {checkpoint_every}")

    feed = Feed(data, batch_size, chunk_size, mesh, max_data_bytes)
    carry = jax.tree.map(partial(jnp.array, copy=True), init_carry(optimizer, params))  # chunks consume their input
    run = _Run(feed.replicated(carry), eval_fn, total)
    advance = partial(
        _compiled_steps, (objective, optimizer), has_aux=has_aux, on_nonfinite=on_nonfinite, everywhere=feed.everywhere
    )
    stride, every = eval_every or chunk_size, checkpoint_every or CHECKPOINT_EVERY
    stops = (stride,) * (eval_fn is not None) + (every,) * (checkpoint_dir is not None)

    def facts() -> dict[str, Any]:
        numbers = np.asarray(jax.random.key_data(key)).tolist()
        rest = {"drop_last": bool(drop_last), "on_nonfinite": on_nonfinite, "eval_fn": eval_fn is not None}
        return {"data": fingerprint(data), "key": numbers, "batch_size": int(batch_size), **rest}

    def aux_of_a_step() -> Any:
        few = jax.tree.map(lambda leaf: leaf[:batch_size], data)
        return jax.eval_shape(objective, run.carry.params, few)[1] if has_aux else None

    with (
        _kept(run, checkpoint_dir, facts, every, keep, resume, aux_of_a_step) as keep_if_due,
        _progress_bar(progress, total) as show,
    ):
        if run.step == 0:
            run.evaluate()
        planned = schedule(key, num_examples, batch_size, drop_last, run.step, total, feed.steps_at_once, stops)
        for piece in feed.pieces(planned):
            first, last = piece.first, piece.last
            run.carry, records = advance(run.carry, piece.data, piece.plan, np.int32(first), np.int32(last))
            records = jax.tree.map(lambda rows, a=first, b=last: np.asarray(rows)[a:b], records)
            if not bool(run.carry.alive):
                good = int(np.argmax(records.skipped))
                indices = np.asarray(piece.indices[first + good])
                batch = jax.tree.map(lambda leaf, at=indices: jnp.asarray(leaf[at]), data)
                why = _what_was_not_finite(objective, jax.device_get(run.carry.params), batch, has_aux, records, good)
                run.record(jax.tree.map(lambda rows, n=good: rows[:n], records))
                raise NonFiniteError(f"train: step {run.step + 1} of {total}: {why}", run.step + 1, run.result())
            run.record(records)
            if run.step % stride == 0:
                run.evaluate()
            loss, norm = float(records.loss[-1]), float(records.grad_norm[-1])
            show(run.step, loss)
            if callback is not None:
                callback(Snapshot(run.step, total, run.carry.params, run.carry.state, loss, norm))
            keep_if_due()
        run.evaluate()
        keep_if_due(last=True)
    if overflowed := _not_finite("params", run.carry.params):
        message = (
            f"train: after step {run.step}, the last, {', '.join(overflowed)} not finite. Try a smaller learning rate."
        )
        raise NonFiniteError(message, run.step, run.result())
    return run.result()


class _Run:
    """Where a run stands."""

    def __init__(self, carry: Carry, eval_fn: Callable[[Any], Any] | None, total: int):
        self.carry, self.eval_fn, self.total = carry, eval_fn, total
        self.step, self.history = 0, History()

    def record(self, records: Record) -> None:
        self.history.records.append(records)
        self.step += len(records.loss)

    def evaluate(self) -> None:
        if self.eval_fn is not None and self.step not in self.history.eval_steps:
            self.history.evaluated(self.step, self.eval_fn(self.carry.params))

    def result(self) -> TrainResult:
        return TrainResult(self.carry.params, self.carry.state, self.history.trace())


@contextmanager
def _kept(
    run: _Run,
    folder: str | os.PathLike[str] | None,
    facts: Callable[[], dict[str, Any]],
    every: int,
    keep: int,
    resume: bool,
    aux_of_a_step: Callable[[], Any],
) -> Iterator[Callable[..., None]]:
    """Go on from the folder's newest checkpoint; within, save every so many steps, at the last, and after a signal."""
    if folder is None:
        yield lambda last=False: None
        return
    with kept(folder, facts(), keep, run.carry, resume=resume) as (saved, save_if):
        if saved is not None:
            if saved.step > run.total:
                raise ValueError(f"train: {folder} is at step {saved.step}, beyond the {run.total} asked for")
            said = None if run.eval_fn is None else run.eval_fn(saved.carry.params)
            run.step, run.carry = saved.step, saved.carry
            run.history = History.of_arrays(saved.history, aux_of_a_step(), said)

        def interrupted(name: str) -> str:
            where = f"after step {run.step} of {run.total}, saved in {folder}"
            return f"train: {name} {where}; the same call goes on from there"

        def keep_if_due(last: bool = False) -> None:
            due = last or run.step % every == 0
            save_if(due, run.step, run.carry, run.history.arrays, interrupted, run.result)

        yield keep_if_due


@partial(Program, static_argnames=("has_aux", "on_nonfinite", "everywhere"), donate_argnums=1)
def _compiled_steps(
    callables: tuple[Objective, AnyOptimizer],
    carry: Carry,
    data: Any,
    plan: Array | None,
    first: Array,
    last: Array,
    *,
    has_aux: bool,
    on_nonfinite: str,
    everywhere: NamedSharding | None,
) -> tuple[Carry, Record]:
    ended = train_steps(*callables, carry, data, plan, first, last, has_aux=has_aux, on_nonfinite=on_nonfinite)
    return ended if everywhere is None else lax.with_sharding_constraint(ended, everywhere)


def _what_was_not_finite(objective: Objective, params: Any, batch: Any, has_aux: bool, rows: Record, at: int) -> str:
    try:
        grads = jax.grad(objective, has_aux=has_aux)(params, batch)
    except ValueError as error:  # what only a value that is known can tell, such as a label out of range
        return (
            f"loss {rows.loss[at]:g}, gradient norm {rows.grad_norm[at]:g}. The objective says of this batch: {error}"
        )
    loss = [] if np.isfinite(rows.loss[at]) else ["the loss"]
    bad = [*loss, *_not_finite("gradient", grads[0] if has_aux else grads), *_not_finite("params", params)]
    return (
        f"loss {rows.loss[at]:g}, gradient norm {rows.grad_norm[at]:g}; not finite: {', '.join(bad)}. The parameters "
        'from before this step are in error.result.params. Try a smaller learning rate, or on_nonfinite="skip".'
    )


def _not_finite(name: str, tree: Any) -> list[str]:
    """The leaves that hold something that is not finite, by path."""
    return [
        f"{name}{jax.tree_util.keystr(path)} ({int(jnp.sum(~jnp.isfinite(leaf)))} of {leaf.size} entries)"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not bool(jnp.all(jnp.isfinite(leaf)))
    ]


@contextmanager
def _progress_bar(progress: bool | None, total: int) -> Iterator[Callable[[int, float], None]]:
    wanted = progress if progress is not None else sys.stderr.isatty()
    try:
        if wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        if progress:
            raise ImportError("train: progress=True needs the package rich: pip install rich") from error
        wanted = False
    if not wanted:
        yield lambda step, loss: None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("train", total=total, loss=float("nan"))
        yield lambda step, loss: bar.update(task, completed=step, loss=loss)
