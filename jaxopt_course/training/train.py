"""The loop that people call: minibatch training in compiled chunks, with eyes and ears in between."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_course.annotations import Array
from jaxopt_course.data.batches import check_batch_size, minibatches
from jaxopt_course.training.steps import Carry, Objective, Record, on_device, start, train_steps


class Trace(NamedTuple):
    """The history of a training run, NumPy arrays. Row i is step i + 1, at the parameters before it moved them.

    `loss[S]`, `grad_norm[S]`: of the step's minibatch; `skipped[S]`: True where a non-finite step was not taken;
    `aux`: what the objective returned beside its value, stacked; `eval_steps[M]`: steps taken when `eval_fn` was asked,
    0 and the last among them; `evals`: what it said, stacked.
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    skipped: np.ndarray
    aux: Any
    eval_steps: np.ndarray
    evals: Any


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
) -> TrainResult:
    r"""Train on minibatches for a number of steps or epochs.

    $$w_{t+1} = w_t + u_t, \qquad u_t, \sigma_{t+1} = \mathrm{update}\bigl(\nabla L_{B_t}(w_t), \sigma_t, w_t\bigr)$$

    A Python loop over compiled chunks of steps: progress, callbacks, evaluation and Ctrl-C live between chunks, nothing
    inside. Calls with the same objective, optimizer and shapes compile once, however many steps they take; an optimizer
    or objective made anew is a new function and compiles again. To sweep, `vmap` over `train_steps` instead.

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

    Returns:
      `TrainResult(params, state, trace)`.

    Raises:
      ValueError: arguments that do not fit together, a batch larger than the data, an objective that is not scalar.
      TypeError: parameters that are not floating point.
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
    num_examples = _num_examples(data)
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

    carry = jax.tree.map(partial(jnp.array, copy=True), start(optimizer, params))  # chunks consume their input
    data = jax.tree.map(on_device, data)
    run = partial(_compiled_steps, objective, optimizer, has_aux=has_aux, on_nonfinite=on_nonfinite)
    stride = eval_every or chunk_size
    step = 0
    records: list[Record] = []
    eval_steps: list[int] = []
    evals: list[Any] = []

    def evaluate() -> None:
        if eval_fn is not None and step not in eval_steps:
            eval_steps.append(step)
            evals.append(jax.device_get(eval_fn(carry.params)))

    def result() -> TrainResult:
        return TrainResult(carry.params, carry.state, _trace(records, eval_steps, evals))

    with _progress_bar(progress, total) as show:
        evaluate()
        for plan in _plans(key, num_examples, batch_size, drop_last, total, chunk_size):
            row, even = 0, -(-len(plan) // -(-len(plan) // chunk_size))  # pieces of one length, none a crumb
            while row < len(plan) and step < total:
                count = min(even, len(plan) - row, total - step)
                if eval_fn is not None:
                    count = min(count, stride - step % stride)
                carry, rows = run(carry, data, plan, np.int32(row), np.int32(row + count))
                rows = jax.tree.map(lambda leaf, a=row, b=row + count: np.asarray(leaf)[a:b], rows)
                if not bool(carry.alive):
                    good = int(np.argmax(rows.skipped))
                    records.append(jax.tree.map(lambda leaf, n=good: leaf[:n], rows))
                    batch = jax.tree.map(lambda leaf, at=plan[row + good]: leaf[at], data)
                    message = _what_was_not_finite(objective, carry.params, batch, has_aux, rows, good)
                    at = step + good + 1
                    raise NonFiniteError(f"train: step {at} of {total}: {message}", at, result())
                records.append(rows)
                row, step = row + count, step + count
                if step % stride == 0:
                    evaluate()
                loss, norm = float(rows.loss[-1]), float(rows.grad_norm[-1])
                show(step, loss)
                if callback is not None:
                    callback(Snapshot(step, total, carry.params, carry.state, loss, norm))
        evaluate()
    if overflowed := _not_finite("params", carry.params):
        message = (
            f"train: after step {step}, the last, {', '.join(overflowed)} not finite. Try a smaller learning rate."
        )
        raise NonFiniteError(message, step, result())
    return result()


@partial(jax.jit, static_argnums=(0, 1), static_argnames=("has_aux", "on_nonfinite"), donate_argnums=2)
def _compiled_steps(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    carry: Carry,
    data: Any,
    plan: Array,
    first: Array,
    last: Array,
    *,
    has_aux: bool,
    on_nonfinite: str,
) -> tuple[Carry, Record]:
    return train_steps(objective, optimizer, carry, data, plan, first, last, has_aux=has_aux, on_nonfinite=on_nonfinite)


_compiled_plan = jax.jit(minibatches, static_argnums=(1, 2, 3), static_argnames="drop_last")


def _plans(
    key: Array, num_examples: int, batch_size: int, drop_last: bool, total: int, chunk_size: int
) -> Iterator[Array]:
    """Rows of indices for every step, a few epochs at a time, so that a chunk is not cut short by a small epoch."""
    whole, rest = divmod(num_examples, batch_size)
    keep = rest > 0 and not drop_last
    epochs = 1 if keep else max(1, chunk_size // whole)
    for first in range(0, -(-total // (whole + keep)), epochs):
        plan = _compiled_plan(key, num_examples, batch_size, epochs, drop_last=drop_last, first_epoch=np.int32(first))
        yield plan.full.reshape(-1, batch_size)
        if keep:
            yield plan.last


def _num_examples(data: Any) -> int:
    shapes = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(data)}
    if not shapes:
        raise ValueError("train: the data is empty")
    lengths = {shape[0] if shape else None for shape in shapes.values()}
    if len(lengths) > 1 or None in lengths:
        listed = ", ".join(f"data{path} {shape}" for path, shape in shapes.items())
        raise ValueError(f"train: every array of the data needs the same number of examples first, got {listed}")
    return int(lengths.pop() or 0)


def _trace(records: list[Record], eval_steps: list[int], evals: list[Any]) -> Trace:
    if records:
        loss, grad_norm, skipped, aux = jax.tree.map(lambda *rows: np.concatenate(rows), *records)
    else:
        loss, grad_norm, skipped, aux = np.zeros(0), np.zeros(0), np.zeros(0, bool), None
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *evals) if evals else None
    return Trace(loss, grad_norm, skipped, aux, np.array(eval_steps, int), stacked)


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
