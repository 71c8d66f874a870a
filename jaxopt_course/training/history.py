"""The results of a training run, and its history while it grows."""

from typing import NamedTuple

import jax
import numpy as np

from jaxopt_course.annotations import OptState, Params, PyTree
from jaxopt_course.training.checkpoint_file import CheckpointError
from jaxopt_course.training.prober import Prober, Probes, blank_probes
from jaxopt_course.training.steps import Record


class Trace(NamedTuple):
    """The history of a training run, as NumPy arrays. Row i is step i + 1, at the parameters before that step.

    `loss[S]`, `grad_norm[S]`: of the step's minibatch; `skipped[S]`: True if a non-finite step was not taken; `aux`:
    the aux outputs of the objective, stacked; `eval_steps[M]`: steps taken before each call of `eval_fn`, including 0
    and the last; `evals`: the results of `eval_fn`, stacked; `probes`: the input of `jc.diagnose`, if `probe_every` was
    given.
    """

    loss: np.ndarray
    grad_norm: np.ndarray
    skipped: np.ndarray
    aux: PyTree
    eval_steps: np.ndarray
    evals: PyTree
    probes: Probes | None = None


class TrainResult(NamedTuple):
    """`params` and optimizer `state` after the last step, and the `trace`."""

    params: Params
    state: OptState
    trace: Trace


class History:
    """Records, evaluations and probes so far."""

    def __init__(self, prober: Prober | None = None) -> None:
        self.prober = prober
        self.records: list[Record] = []
        self.eval_steps: list[int] = []
        self.evals: list[PyTree] = []

    def add_evaluation(self, step: int, evaluation: PyTree) -> None:
        self.eval_steps.append(step)
        self.evals.append(jax.device_get(evaluation))

    def trace(self) -> Trace:
        if len(self.records) > 1:  # stored joined: joining them again at every call would take quadratic time
            self.records = [jax.tree.map(lambda *rows: np.concatenate(rows), *self.records)]
        empty = Record(*(np.zeros(0), np.zeros(0), np.zeros(0, bool)))  # type: ignore[arg-type]
        loss, grad_norm, skipped, aux = self.records[0] if self.records else empty
        evals = jax.tree.map(lambda *rows: np.stack(rows), *self.evals) if self.evals else None
        probes = self.prober.probes() if self.prober is not None and self.prober.steps else None
        return Trace(loss, grad_norm, skipped, aux, np.array(self.eval_steps, int), evals, probes)  # type: ignore[arg-type]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the trace as named arrays, for a file."""
        paths = jax.tree_util.tree_leaves_with_path(self.trace())
        return {jax.tree_util.keystr(path): leaf for path, leaf in paths}

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, np.ndarray], aux: PyTree, evaluation: PyTree, prober: Prober | None = None
    ) -> "History":
        """Return the history in `arrays`; `aux` and `evaluation` are trees as from one step and one evaluation.

        Raises:
          CheckpointError: arrays with other names.
        """
        probes = None if prober is None else blank_probes()
        blank = Trace(*(np.zeros(0),) * 3, aux, np.zeros(0), evaluation, probes)
        paths, tree = jax.tree_util.tree_flatten_with_path(blank)
        names = [jax.tree_util.keystr(path) for path, _ in paths]
        if {*names} != {*arrays}:
            differ = ", ".join(sorted({*names} ^ {*arrays}))
            raise CheckpointError(f"train: the history in the checkpoint has another structure: {differ} only in one")
        trace = jax.tree.unflatten(tree, [arrays[name] for name in names])
        history = cls(prober)
        if prober is not None and trace.probes is not None:
            prober.restore(trace.probes)
        if len(trace.loss):
            history.records = [Record(*trace[:4])]
        history.eval_steps = trace.eval_steps.tolist()
        history.evals = [jax.tree.map(lambda rows, i=i: rows[i], trace.evals) for i in range(len(trace.eval_steps))]
        return history
