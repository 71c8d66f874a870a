"""The result of a sweep: the final loss and the curve of every lane, and the best points."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_course.annotations import Params, PyTree
from jaxopt_course.statistics import expected_minimum
from jaxopt_course.sweeps.files import read_record, write_record
from jaxopt_course.sweeps.points import Points
from jaxopt_course.sweeps.text import number, text_table


class Best(NamedTuple):
    """The point of a method with the lowest mean loss over seeds.

    `loss_mean`, `loss_sd`: mean and standard deviation over the seeds of the loss over all training data; `loss_sd` is
    NaN for one seed. If any seed diverged at a point, its mean is inf. `at_edge`: the hyperparameters whose value is
    the least or the greatest that was tried, so that a better value may lie beyond. `params`: the final parameters
    `[S, ...]`, None if they were not kept.
    """

    label: str
    hyperparameters: dict[str, float | int]
    loss_mean: float
    loss_sd: float
    at_edge: tuple[str, ...]
    params: Params


class MethodResult(NamedTuple):
    """All lanes of a method: P points with S seeds.

    `loss[P, S]`: the objective over all training data at the end, inf if the lane diverged; `diverged_at[P, S]`: the
    step, counted from 1, whose loss, gradient or result was not finite, 0 if there was none; `steps[P, S]`: steps
    taken; `curve[P, S, T]`: the loss of each step's minibatch, inf from `diverged_at` on, NaN for steps that were not
    run; `evals`: the results of `eval_fn`, `[P, S, M, ...]`; `best`: the index of the best point; `params`: those of
    the best point `[S, ...]`, or of all points `[P, S, ...]`, or None.
    """

    points: Points
    loss: np.ndarray
    diverged_at: np.ndarray
    steps: np.ndarray
    curve: np.ndarray
    evals: PyTree
    best: int
    params: Params


@dataclass(frozen=True)
class SweepResult:
    """The lanes of every method, by label.

    Attributes:
      methods: label -> `MethodResult`.
      num_steps: number of steps of a whole run.
      steps_per_epoch: number of steps in which every example is visited once.
      eval_steps: `[M]`, the number of steps before each call of `eval_fn`.
      start_loss: `[S]`, the objective over all training data at the start of each seed.
      keeps_params: "best", "all" or "none".
    """

    methods: dict[str, MethodResult]
    num_steps: int
    steps_per_epoch: int
    eval_steps: np.ndarray
    start_loss: np.ndarray
    keeps_params: str

    @property
    def labels(self) -> list[str]:
        """The methods, in the order in which they were given."""
        return [*self.methods]

    def points(self, label: str) -> Points:
        """The hyperparameters of a method, name -> `[P]`."""
        return self._method(label).points

    def loss(self, label: str) -> np.ndarray:
        """The objective over all training data at the end of every lane, `[P, S]`; inf if it diverged."""
        return self._method(label).loss

    def curve(self, label: str) -> np.ndarray:
        """The loss of every step's minibatch, `[P, S, T]`."""
        return self._method(label).curve

    def best(self, label: str | None = None) -> Best:
        """The best point of a method, or of all methods if no label is given."""
        if label is None:
            return min((self.best(name) for name in self.methods), key=lambda best: best.loss_mean)
        method = self._method(label)
        losses = method.loss[method.best]
        finite = bool(np.isfinite(losses).all())
        edges = [
            name
            for name, values in method.points.items()
            if values.min() < values.max() and values[method.best] in (values.min(), values.max())
        ]
        params = method.params
        if self.keeps_params == "all":
            params = jax.tree.map(lambda leaf: leaf[method.best], params)
        return Best(
            label,
            method.points.at(method.best),
            float(losses.mean()) if finite else np.inf,
            float(losses.std(ddof=1)) if finite and len(losses) > 1 else np.nan,
            tuple(edges),
            params,
        )

    def epoch_loss(self, label: str) -> np.ndarray:
        """The minibatch losses of a method's best point, averaged over each epoch, `[S, epochs]`."""
        curve, every = self.curve(label)[self._method(label).best], max(1, self.steps_per_epoch)
        epochs = [curve[:, first : first + every].mean(axis=1) for first in range(0, self.num_steps, every)]
        return np.stack(epochs, axis=1) if epochs else curve

    def profile(self, label: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The final loss as a function of one hyperparameter, at the best settings of the others.

        Returns:
          The values that were tried, ascending `[V]`, and for each the losses `[V, S]` of the point with the lowest
          mean.
        """
        method = self._method(label)
        if name not in method.points:
            raise KeyError(f"{label} was not tuned by {name!r}; it was by {[*method.points]}")
        tried, means = method.points[name], method.loss.mean(axis=1)
        values = np.unique(tried)
        best = [min(np.flatnonzero(tried == value), key=lambda p: (means[p], p)) for value in values]
        return values, method.loss[best]

    def expected_best(self, label: str) -> np.ndarray:
        """The expected mean loss of the best of k random trials, for k = 1 to P, `[P]`.

        A point that diverged counts with the loss at the start.

        Source: Dodge et al. (2019), "Show your work: improved reporting of experimental results", EMNLP.
        """
        means = self._method(label).loss.mean(axis=1)
        return expected_minimum(np.where(np.isfinite(means), means, self.start_loss.mean()))

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each lane, for `pandas.DataFrame(rows)`, `polars.DataFrame(rows)` or `csv.DictWriter`.

        Keys: `label`, each hyperparameter (None if the method does not have it), `seed`, `loss`, `diverged_at` (None if
        the lane did not diverge), `steps`, and `eval/...` with the last value of every scalar that `eval_fn` returned.
        """
        names = dict.fromkeys(name for method in self.methods.values() for name in method.points)
        return [row for label in self.methods for row in self._rows_of(label, [*names])]

    def _rows_of(self, label: str, names: list[str]) -> Iterator[dict[str, Any]]:
        method = self.methods[label]
        evals = {
            f"eval{_name(path)}": leaf[:, :, -1]
            for path, leaf in jax.tree_util.tree_leaves_with_path(method.evals)
            if leaf.ndim == 3
        }
        for (p, s), loss in np.ndenumerate(method.loss):
            point = method.points.at(p)
            yield {
                "label": label,
                **{name: point.get(name) for name in names},
                "seed": s,
                "loss": float(loss),
                "diverged_at": int(method.diverged_at[p, s]) or None,
                "steps": int(method.steps[p, s]),
                **{name: values[p, s].item() for name, values in evals.items()},
            }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to one file, without pickle; an interrupted write leaves no incomplete file."""
        write_record(path, "sweep", self.as_record())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SweepResult":
        """Read what `save` wrote.

        Trees of dicts, lists, tuples and arrays are restored unchanged. From other trees, such as an Equinox model or a
        NamedTuple, the arrays are restored in a dict by path.

        Raises:
          ValueError: the file is of another kind or version, or it is damaged.
        """
        return cls.from_record(read_record(path, "sweep"))

    def as_record(self) -> dict[str, Any]:
        """The result as dicts, lists and arrays."""
        methods = {label: {**method._asdict(), "points": dict(method.points)} for label, method in self.methods.items()}
        return {**vars(self), "methods": methods}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "SweepResult":
        methods = {
            label: MethodResult(**{**method, "points": Points(method["points"])})
            for label, method in record["methods"].items()
        }
        return cls(**{**record, "methods": methods})

    def __str__(self) -> str:
        """A table with a row for the best point of each method."""
        rows = []
        for label in self.methods:
            best, losses = self.best(label), self.loss(label)
            settings = ", ".join(
                f"{name}={number(value)}{' (edge)' if name in best.at_edge else ''}"
                for name, value in best.hyperparameters.items()
            )
            spread = "" if np.isnan(best.loss_sd) else f" ± {number(best.loss_sd, 2)}"
            loss = "diverged" if np.isinf(best.loss_mean) else f"{number(best.loss_mean, 4)}{spread}"
            rows.append([label, settings, loss, f"{np.isinf(losses).sum()} of {losses.size}"])
        return text_table(["method", "best point", "loss", "diverged"], rows)

    def _method(self, label: str) -> MethodResult:
        if label not in self.methods:
            raise KeyError(f"there is no method {label!r}; there are {self.labels}")
        return self.methods[label]


def _name(path: tuple[Any, ...]) -> str:
    """A path as `/accuracy/top1`; empty for a single value."""
    return "".join(f"/{getattr(entry, 'key', getattr(entry, 'name', getattr(entry, 'idx', entry)))}" for entry in path)
