"""Schedule of lanes: blocks of points and seeds that run at once, and the rungs of successive halving."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxopt_course.annotations import Number

LEAST_LANES = 16  # lanes of a block with halving: fewer are slow, more leave lanes empty in the last rungs


class Rung(NamedTuple):
    """One rung of successive halving: the steps `first` to `last` of the best `num_points` points."""

    num_points: int
    first: int
    last: int


class Block(NamedTuple):
    """Lanes that run at once.

    `points`, `seeds`: indices, padded to one size by repeating the last; `num_points`, `num_seeds`: number of indices
    that are not padding.
    """

    points: np.ndarray
    seeds: np.ndarray
    num_points: int
    num_seeds: int

    @property
    def places(self) -> Any:
        """Index of the lanes that are not padding in arrays `[P, S, ...]`."""
        return np.ix_(self.points[: self.num_points], self.seeds[: self.num_seeds])

    def valid(self, lanes: np.ndarray) -> np.ndarray:
        """From `[S, P, ...]` of all lanes, the lanes that are not padding, as `[P, S, ...]`."""
        return np.swapaxes(lanes, 0, 1)[: self.num_points, : self.num_seeds]


def plan_rungs(num_points: int, num_steps: int, halving: Number | None) -> list[Rung]:
    """The rungs of successive halving: n, n/r, n/r^2, ... points; the points of the last rung run all steps.

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
    """Numbers of seeds and of points in every block, and whether the seeds (or the points) are divided among devices.

    A block has at most `lanes` lanes, and at least one on each device. Of the possible shapes, the one with fewer lanes
    in total, including padding, is chosen.
    """
    most = rungs[0].num_points
    on_a_device = max(1, lanes // devices)
    if len(rungs) > 1:
        most = min(most, max(rungs[-1].num_points, -(-LEAST_LANES // min(num_seeds, on_a_device))))
    seeds = min(num_seeds, on_a_device)
    points = min(most, on_a_device)
    shapes = [(seeds, _even(most, max(1, on_a_device // seeds), devices), False)]
    if devices > 1:
        shapes.append((_even(num_seeds, max(1, on_a_device // points), devices), points, True))

    def computed(shape: tuple[int, int, bool]) -> int:
        return -(-num_seeds // shape[0]) * shape[0] * -(-rungs[0].num_points // shape[1]) * shape[1]

    return min(shapes, key=computed)


def _even(count: int, on_a_device: int, devices: int) -> int:
    """The size of blocks of nearly equal size for `count` items, a multiple of the number of devices."""
    at_once = min(on_a_device * devices, -(-count // devices) * devices)
    blocks = -(-count // at_once)
    return -(-count // (blocks * devices)) * devices
