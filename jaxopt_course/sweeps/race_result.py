"""The result of a race: losses on fresh seeds, comparisons of pairs, a ranking with ties, and a verdict."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxopt_course.statistics import (
    CONFIDENCE,
    ROUNDINGS,
    paired_interval,
    probability_below_zero,
    ratio_interval,
    running_mean,
    seeds_needed,
    sign_test,
    steps_to,
)
from jaxopt_course.sweeps.files import read_record, write_record
from jaxopt_course.sweeps.result import Best, SweepResult
from jaxopt_course.sweeps.text import number, text_table


class StepsRatio(NamedTuple):
    """Steps that a needs to reach `target` divided by the steps that b needs: geometric mean over seeds, with interval.

    A run has reached the target at the step after which the loss, averaged over the last epoch, stays at or below it.
    The ratio is NaN if a run of either method does not reach the target.
    """

    ratio: float
    interval: tuple[float, float]
    target: float


class Comparison(NamedTuple):
    """Comparison of methods a and b on the same fresh seeds.

    `difference`: mean of loss a - loss b; `interval`: its 95 % interval, corrected for the number of pairs in the race,
    so that all intervals of a race hold simultaneously; `probability`: bootstrap probability that a is better;
    `better`: the label of the better method if the interval excludes 0, else None; `seeds_needed`: about how many fresh
    seeds would show such a difference, None if a difference is shown or none is observed; `steps_ratio`: see
    `StepsRatio`.

    If runs diverged, the difference is infinite or NaN, and `better` is decided by the number of seeds in which each
    method had the lower loss (a sign test at the corrected level).
    """

    difference: float
    interval: tuple[float, float]
    probability: float
    better: str | None
    seeds_needed: int | None
    steps_ratio: StepsRatio


@dataclass(frozen=True)
class RaceResult:
    """A race.

    Attributes:
      sweep: the tuning, a `SweepResult`.
      fresh: the runs of the best points on fresh seeds, a `SweepResult` with one point for each method.
      target: the given loss for `steps_ratio`, or None.
      num_pairs: number of pairs for which the intervals are corrected.
    """

    sweep: SweepResult
    fresh: SweepResult
    target: float | None
    num_pairs: int

    @property
    def labels(self) -> list[str]:
        """The methods, in the order in which they were given."""
        return self.fresh.labels

    @property
    def best(self) -> dict[str, Best]:
        """The best point of each method, which ran on the fresh seeds; `Best` has the losses of the tuning."""
        return {label: self.sweep.best(label) for label in self.labels}

    @property
    def loss(self) -> dict[str, np.ndarray]:
        """label -> `[F]`: the loss over all training data at the end, on the fresh seeds; inf if a run diverged."""
        return {label: self.fresh.loss(label)[0] for label in self.labels}

    def compare(self, a: str, b: str) -> Comparison:
        """Compare method a with method b; `a` is better if the difference is below 0.

        Raises:
          KeyError: a label is not in the race.
        """
        differences, interval, better = self._paired_differences(a, b)
        return Comparison(
            float(np.mean(differences)) if not np.isnan(np.sum(differences)) else math.nan,
            interval,
            probability_below_zero(differences),
            better,
            seeds_needed(differences, self.num_pairs) if better is None else None,
            self._steps_ratio(a, b),
        )

    def _paired_differences(self, a: str, b: str) -> tuple[np.ndarray, tuple[float, float], str | None]:
        """Differences by seed, the interval of their mean, and the label of the better method if it is shown."""
        losses = [self.fresh.loss(label)[0] for label in (a, b)]
        with np.errstate(invalid="ignore"):
            differences = np.where(np.isinf(losses[0]) & np.isinf(losses[1]), 0.0, losses[0] - losses[1])
        interval = paired_interval(differences, self.num_pairs, resolution=self._resolution(a, b))
        if np.isfinite(differences).all():
            shown, a_is_ahead = not interval[0] <= 0 <= interval[1], np.mean(differences) < 0
        else:
            shown = sign_test(differences) < (1 - CONFIDENCE) / self.num_pairs
            a_is_ahead = np.sum(differences < 0) > np.sum(differences > 0)
        return differences, interval, (a if a_is_ahead else b) if shown else None

    @property
    def ranking(self) -> list[tuple[str, ...]]:
        """Groups of methods, from the best to the worst.

        The methods of a group are not shown to differ from the first method of the group.
        """
        means = {label: float(np.mean(losses)) for label, losses in self.loss.items()}
        groups: list[list[str]] = []
        for label in sorted(means, key=lambda label: means[label]):
            if groups and self._paired_differences(groups[-1][0], label)[2] is None:
                groups[-1].append(label)
            else:
                groups.append([label])
        return [tuple(group) for group in groups]

    @property
    def verdict(self) -> str:
        """What the race has shown and what it has not shown, in sentences."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        first, *ties = self.ranking[0]
        count = len(self.loss[first])
        if np.isinf(self.loss[first]).any():
            yield f"Every method diverged on some of the {count} fresh seeds; nothing can be said of their losses."
        low, high = self._interval(first)
        where = f"{number(float(np.mean(self.loss[first])), 4)} (95 % interval {number(low, 4)} to {number(high, 4)})"
        if ties:
            yield f"{first} has the lowest mean training loss on {count} fresh seeds, {where}, but is not shown to be"
            yield f"better than {_listed(ties)}."
        else:
            yield f"{first} has the lowest training loss on {count} fresh seeds, {where}."
        if beaten := [label for label in self.labels if self._paired_differences(first, label)[2] == first]:
            yield f"It is better than {_listed([self._margin(first, label) for label in beaten])}."
        for label in ties:
            comparison = self.compare(first, label)
            needed = comparison.seeds_needed
            size = f"{number(comparison.difference, 2)} ({_span(comparison.interval)})"
            hope = (
                f"about {needed:,} fresh seeds would show one of this size" if needed else "more seeds would not help"
            )
            yield f"Its difference from {label}, {size}, may be chance; {hope}."
        for label, best in self.best.items():
            if best.at_edge:
                names = _listed([f"{name}={number(best.hyperparameters[name])}" for name in best.at_edge])
                yield f"{label} was best at an end of its grid, {names}: a wider grid may make it better."
        for label, losses in self.loss.items():
            if diverged := int(np.isinf(losses).sum()):
                yield f"{label} diverged on {diverged} of the {count} fresh seeds."

    def _margin(self, first: str, label: str) -> str:
        comparison = self.compare(first, label)
        if not math.isfinite(comparison.difference):
            return f"{label} (which diverged)"
        return f"{label} (by {number(-comparison.difference, 2)}, {_span(_negated(comparison.interval))})"

    def _interval(self, label: str) -> tuple[float, float]:
        return paired_interval(self.loss[label])

    def _resolution(self, a: str, b: str) -> float:
        """Bound on the rounding error in a difference of losses."""
        losses = np.concatenate([self.fresh.loss(label)[0] for label in (a, b)])
        finite = np.abs(losses[np.isfinite(losses)])
        eps = float(np.finfo(self.fresh.curve(a).dtype).eps)
        return ROUNDINGS * eps * float(finite.max(initial=0.0))

    def _steps_ratio(self, a: str, b: str) -> StepsRatio:
        curves = [self.fresh.curve(label)[0] for label in (a, b)]
        window = min(self.fresh.steps_per_epoch, curves[0].shape[-1])
        if window == 0:
            return StepsRatio(math.nan, (math.nan, math.nan), math.nan)
        target = self.target
        if target is None:
            target = float(max(running_mean(curve, window)[:, -1].max() for curve in curves))
        steps = [steps_to(target, curve, window) for curve in curves]
        with np.errstate(invalid="ignore"):
            return StepsRatio(*ratio_interval(steps[0] / steps[1], self.num_pairs), target)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to one file, without pickle; an interrupted write leaves no incomplete file."""
        record = {
            "sweep": self.sweep.as_record(),
            "fresh": self.fresh.as_record(),
            "target": self.target,
            "num_pairs": self.num_pairs,
        }
        write_record(path, "race", record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RaceResult":
        """Read what `save` wrote; see `SweepResult.load`."""
        record: dict[str, Any] = read_record(path, "race")
        sweeps = {name: SweepResult.from_record(record[name]) for name in ("sweep", "fresh")}
        return cls(**{**record, **sweeps})

    def __str__(self) -> str:
        """A table with one row for each method, best first, and the verdict."""
        rows = []
        for place, group in enumerate(self.ranking, start=1):
            for label in group:
                best, losses = self.best[label], self.loss[label]
                settings = ", ".join(f"{name}={number(value)}" for name, value in best.hyperparameters.items())
                low, high = self._interval(label)
                diverged = int(np.isinf(losses).sum())
                loss = f"{number(float(np.mean(losses)), 4)}  [{number(low, 4)}, {number(high, 4)}]"
                rows.append([label, settings, str(place), f"diverged {diverged}x" if diverged else loss])
        columns = ["method", "best point", "place", f"loss on {len(self.loss[self.labels[0]])} fresh seeds"]
        return f"{text_table(columns, rows)}\n\n{self.verdict}"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _span(interval: tuple[float, float]) -> str:
    return f"95 % interval {number(interval[0], 2)} to {number(interval[1], 2)}"


def _negated(interval: tuple[float, float]) -> tuple[float, float]:
    return -interval[1], -interval[0]
