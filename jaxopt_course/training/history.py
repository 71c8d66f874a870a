"""What a training run leaves behind, as it grows."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_course.training.checkpoint import CheckpointError
from jaxopt_course.training.steps import Record


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


class History:
    """Records and evaluations so far."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.eval_steps: list[int] = []
        self.evals: list[Any] = []

    def evaluated(self, step: int, said: Any) -> None:
        self.eval_steps.append(step)
        self.evals.append(jax.device_get(said))

    def trace(self) -> Trace:
        if self.records:  # as one from now on: joined over and over they would cost the square of the steps
            self.records = [jax.tree.map(lambda *rows: np.concatenate(rows), *self.records)]
        record: Any = self.records[0] if self.records else (np.zeros(0), np.zeros(0), np.zeros(0, bool), None)
        loss, grad_norm, skipped, aux = record
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *self.evals) if self.evals else None
        return Trace(loss, grad_norm, skipped, aux, np.array(self.eval_steps, int), stacked)

    def arrays(self) -> dict[str, np.ndarray]:
        """The trace by names, for a file."""
        paths = jax.tree_util.tree_leaves_with_path(self.trace())
        return {jax.tree_util.keystr(path): leaf for path, leaf in paths}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], aux: Any, said: Any) -> "History":
        """From `arrays`; `aux` and `said` are trees like the aux of a step and an answer of `eval_fn`."""
        blank = Trace(*(np.zeros(0),) * 3, aux, np.zeros(0), said)
        paths, tree = jax.tree_util.tree_flatten_with_path(blank)
        names = [jax.tree_util.keystr(path) for path, _ in paths]
        if {*names} != {*arrays}:
            differ = ", ".join(sorted({*names} ^ {*arrays}))
            raise CheckpointError(f"train: the history in the checkpoint is of another kind: {differ} only in one")
        trace = jax.tree.unflatten(tree, [arrays[name] for name in names])
        history = cls()
        if len(trace.loss):
            history.records = [Record(*trace[:4])]
        history.eval_steps = trace.eval_steps.tolist()
        history.evals = [jax.tree.map(lambda rows, i=i: rows[i], trace.evals) for i in range(len(trace.eval_steps))]
        return history
