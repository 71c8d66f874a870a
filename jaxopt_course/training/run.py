"""The state of a training run: its carry, its records, and its checkpoints."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import OptState, Params, PyTree
from jaxopt_course.training.checkpoint import Checkpoints
from jaxopt_course.training.checks import check_not_traced
from jaxopt_course.training.feed import Chunk
from jaxopt_course.training.history import History, TrainResult
from jaxopt_course.training.identity import RunParts
from jaxopt_course.training.interrupts import Interrupted, Signals
from jaxopt_course.training.nonfinite import NonFiniteError, NonFiniteStep, explain, not_finite_leaves
from jaxopt_course.training.prober import Prober
from jaxopt_course.training.steps import Carry, Record


class Snapshot(NamedTuple):
    """The argument of a callback between two chunks.

    The next chunk reuses the memory of `params` and `state`; copy them to keep them.
    """

    step: int
    num_steps: int
    params: Params
    state: OptState
    loss: float
    grad_norm: float


class Run:
    """The current state of a run, and its checkpoints."""

    store: Checkpoints | None = None
    signals: Signals | None = None

    def __init__(
        self,
        carry: Carry,
        eval_fn: Callable[[Params], PyTree] | None,
        total: int,
        eval_every: int,
        save_every: int,
        prober: Prober | None = None,
    ):
        self.carry, self.eval_fn, self.total = carry, eval_fn, total
        self.eval_every, self.save_every = eval_every, save_every
        self.step, self.prober, self.history = 0, prober, History(prober)

    def resume(self, parts: RunParts) -> None:
        """Continue from the saved state, if there is one."""
        assert self.store is not None
        if (saved := self.store.saved) is not None:
            if saved.step > self.total:
                raise ValueError(
                    f"train: {self.store.folder} is at step {saved.step}, beyond the {self.total} requested"
                )
            evaluation = None if self.eval_fn is None else self.eval_fn(saved.carry.params)
            self.step, self.carry = saved.step, saved.carry
            self.history = History.from_arrays(saved.history, parts.aux_shapes(), evaluation, self.prober)
        if self.step < self.total:
            self.store.check_writable()

    def record(self, records: Record, chunk: Chunk, parts: RunParts) -> None:
        """Add the records of a chunk; raise NonFiniteError if one of its steps was not finite and the run stopped."""
        check_not_traced("train", objective_or_optimizer=records)
        records = jax.tree.map(lambda rows: np.asarray(rows)[chunk.first : chunk.last], records)
        stopped = not bool(self.carry.alive)
        taken = int(np.argmax(records.skipped)) if stopped else len(records.loss)
        self.history.records.append(jax.tree.map(lambda rows: rows[:taken], records))
        self.step += taken
        if stopped:
            if self.prober is not None:
                self.prober.survey(self.step, self.carry, chunk)
            indices = np.asarray(chunk.indices[chunk.start + chunk.first + taken])
            batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[indices]), parts.data)
            loss, grad_norm = float(records.loss[taken]), float(records.grad_norm[taken])
            step = NonFiniteStep(jax.device_get(self.carry.params), batch, loss, grad_norm)
            why = explain(step, parts.objective, parts.has_aux)
            raise NonFiniteError(f"train: step {self.step + 1} of {self.total}: {why}", self.step + 1, self.result())

    def evaluate(self) -> None:
        if self.eval_fn is not None and self.step not in self.history.eval_steps:
            self.history.add_evaluation(self.step, self.eval_fn(self.carry.params))

    def snapshot(self) -> Snapshot:
        last = self.history.records[-1]
        loss, grad_norm = float(last.loss[-1]), float(last.grad_norm[-1])
        return Snapshot(self.step, self.total, self.carry.params, self.carry.state, loss, grad_norm)

    def save_if_due(self, last: bool = False) -> None:
        """Save at regular intervals, after the last step, and after a signal, which ends the run."""
        if self.store is None or self.signals is None:
            return
        signum = self.signals.poll()
        if last or signum or self.step % self.save_every == 0:
            self.store.save(self.step, self.carry, self.history.arrays())
        if signum:
            self.store.wait()
            where = f"after step {self.step} of {self.total}, saved in {self.store.folder}"
            message = f"train: {signum.name} {where}; the same call continues from there"
            raise Interrupted(message, signum, self.step, self.result())

    def result(self) -> TrainResult:
        return TrainResult(self.carry.params, self.carry.state, self.history.trace())

    def check_end(self) -> None:
        """Raise NonFiniteError if the parameters after the last step are not finite."""
        if bad := not_finite_leaves("params", self.carry.params):
            message = f"train: after the last step, {self.step}, these are not finite: {', '.join(bad)}."
            raise NonFiniteError(f"{message} Try a smaller learning rate.", self.step, self.result())
