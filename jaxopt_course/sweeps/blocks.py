"""Which lanes run when: blocks of points and seeds that run at once, and the rungs of successive halving."""

import math
from typing import Any, NamedTuple

import numpy as np

LEAST_LANES = 16  # with halving: blocks of fewer are slow, of more leave lanes empty in the last rungs


class Rung(NamedTuple):
    """The steps `first` to `last` of the best `num_points` points."""

    num_points: int
    first: int
    last: int


class Block(NamedTuple):
    """Lanes that run at once: indices of points and seeds, padded to one size by repeating the last.

    `num_points` and `num_seeds` of them count.
    """

    points: np.ndarray
    seeds: np.ndarray
    num_points: int
    num_seeds: int

    @property
    def places(self) -> Any:
        """Index of the lanes that count in arrays `[P, S, ...]`."""
        return np.ix_(self.points[: self.num_points], self.seeds[: self.num_seeds])

    def valid(self, lanes: np.ndarray) -> np.ndarray:
        """Of `[S, P, ...]` of all lanes the ones that count, as `[P, S, ...]`."""
        return np.swapaxes(lanes, 0, 1)[: self.num_points, : self.num_seeds]


def plan_rungs(num_points: int, num_steps: int, halving: float | None) -> list[Rung]:
    """The rungs of successive halving: n, n/r, n/r^2, ... points, the last of them for all steps.

    Source: Jamieson and Talwalkar (2016), "Non-stochastic best arm identification and hyperparameter optimization",
    AISTATS, with the geometric budgets of Li et al. (2018), "Hyperband", JMLR 18, algorithm 1.
    """
    if halving is None:
        return [Rung(num_points, 0, num_steps)]
    counts = [num_points]
    while counts[-1] > 1:
        counts.append(min(counts[-1] - 1, max(1, math.floor(counts[-1] / halving))))
    ends = [max(1, round(num_steps / halving**i)) for i in reversed(range(len(counts)))]
    rungs, first = [], 0
    for count, last in zip(counts, ends, strict=True):
        if last > first or last == num_steps:
            rungs.append(Rung(count, first, last))
            first = last
    return rungs


def block_shape(num_seeds: int, rungs: list[Rung], lanes: int, devices: int) -> tuple[int, int, bool]:
    """Seeds and points of a block, the same for all blocks, and whether devices share the seeds or the points."""
    seeds = min(num_seeds, lanes)
    most = rungs[0].num_points
    if len(rungs) > 1:
        most = min(most, max(rungs[-1].num_points, -(-LEAST_LANES // seeds)))
    points = min(most, max(1, lanes // seeds))
    points = -(-most // -(-most // points)) if len(rungs) == 1 else points  # blocks of nearly equal size
    if devices == 1:
        return seeds, points, False
    padded_seeds, padded_points = (_padded(n, devices, lanes // m) for n, m in ((seeds, points), (points, seeds)))
    if padded_seeds * points < seeds * padded_points:
        return padded_seeds, points, True
    return seeds, padded_points, False


def _padded(count: int, devices: int, most: int) -> int:
    """A multiple of the devices: the next one, or the one before where there is no room for more."""
    return max(devices, min(-(-count // devices), most // devices) * devices)
