"""Checks of many entries with few evaluations: in groups of similar ones along random directions, or at two steps each.

If the slope sum w_i a_i of a group is right for random weights w, every a_i of the group is right: a single wrong one
changes the sum by its full error, and the errors of several cancel to within the uncertainty d with a probability of
about d / error, in each of two directions. Nothing is concluded from a group unless d is far below the errors of
interest.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxopt_course.gradients.estimates import BARS
from jaxopt_course.gradients.numerical import Numerical, Rays
from jaxopt_course.gradients.subject import UNIT, Arguments, Leaves, random_weights, units_at
from jaxopt_course.gradients.verdicts import CLOSE, CONSTANT, INCONCLUSIVE, PASS, RESOLUTION, Findings, unmeasured

MAX_GROUP = 256  # most entries of a group
MIN_GROUP = 32  # fewest; otherwise each entry is checked separately
MAX_TERM_RATIO = 8.0  # largest ratio of two terms, slope times unit, in a group
DIRECTIONS = 2
LEAST_WEIGHT = 2 / 3
MAX_SPACING = 1e-10  # above this spacing of f, groups are not informative enough
SECOND_STEP = 1.7e-3  # the second of the two steps, relative to the first


class _Groups(NamedTuple):
    """Groups [first, last) of similar entries [K]; `order` are the rows of the entries among those checked."""

    order: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def of_each(self, values: np.ndarray) -> np.ndarray:
        """Return for each entry the value of its group, [K]."""
        return np.repeat(values, self.last - self.first)


def check_groups(
    numerical: Numerical,
    coordinates: np.ndarray,
    analytic: np.ndarray,
    unit: np.ndarray,
    rtol: float,
    rng: np.random.Generator,
) -> Findings:
    """Return PASS or CONSTANT for entries [R] whose groups decide, INCONCLUSIVE for the others.

    The numerical value of an entry is the value that it has if all others of its group are right.
    """
    found = unmeasured(analytic, held=False)
    if analytic.shape[1] > 1 or numerical.eps > MAX_SPACING or not numerical.ranked:
        return found
    args, terms = numerical.question.args, analytic[:, 0] * unit
    groups = _similar_groups(args, coordinates, np.abs(terms))
    most = numerical.affordable(2 * len(numerical.steps) * DIRECTIONS)
    groups = _Groups(groups.order[: groups.last[:most].max(initial=0)], groups.first[:most], groups.last[:most])
    if not len(groups.first):
        return found
    rows = groups.order
    least = LEAST_WEIGHT * np.minimum.reduceat(np.abs(terms[rows]), groups.first)
    right, still = np.ones(len(least), bool), np.ones(len(least), bool)
    gap = np.zeros(len(rows))
    ranks = _ranks(args, coordinates[rows])
    for _ in range(DIRECTIONS):
        weights = random_weights(args, rng)
        w = np.concatenate([np.asarray(weight, float).ravel() for weight in weights])[coordinates[rows]] / UNIT
        slope = np.add.reduceat(terms[rows] * w, groups.first)
        estimate = numerical.sweep(Rays(weights, groups.first, groups.last, ranks=ranks), np.abs(slope)[:, None])
        with np.errstate(all="ignore"):
            apart, doubt = estimate.slope[:, 0] - slope, BARS * estimate.bar[:, 0]
            smooth = ~(estimate.kink[:, 0] < CLOSE)
            right &= smooth & (3 * doubt <= rtol * least) & (np.abs(apart) <= np.maximum(doubt, rtol * least / 100))
            still &= (slope == 0) & (estimate.slope[:, 0] == 0) & (estimate.varies[:, 0] == 0) & ~estimate.blocked[:, 0]
            mine = groups.of_each(apart) / (w * unit[rows])
        gap = np.where(np.abs(mine) > np.abs(gap), mine, gap)
    code = groups.of_each(np.where(still, CONSTANT, np.where(right & (least > 0), PASS, INCONCLUSIVE)))
    told = code < INCONCLUSIVE
    rows, gap, code = rows[told], gap[told], code[told]
    value = analytic[rows, 0]
    with np.errstate(all="ignore"):
        error = np.where(value == 0, 0.0, np.abs(gap) / np.abs(value))
    better = found.rows(rows)._replace(code=code[:, None], numerical=(value + gap)[:, None], error=error[:, None])
    return found.replaced(rows, better)


def _similar_groups(args: Arguments, coordinates: np.ndarray, terms: np.ndarray) -> _Groups:
    """Return groups of entries of one leaf whose terms are similar, or all zero, without entries that have no group."""
    leaf = np.searchsorted([part.last for part in args.parts], coordinates, side="right")
    with np.errstate(divide="ignore"):
        size = np.floor(np.log(terms) / np.log(MAX_TERM_RATIO))
    order = np.lexsort((terms, size, leaf))
    order = order[np.isfinite(terms[order])]
    kind = np.stack([leaf[order], size[order]])
    starts = np.concatenate([[0], 1 + np.flatnonzero((kind[:, 1:] != kind[:, :-1]).any(axis=0)), [len(order)]])
    chosen, lengths = [np.zeros(0, int)], []
    for first, last in pairwise(starts):
        for some in np.array_split(order[first:last], -(-(last - first) // MAX_GROUP) or 1):
            if len(some) >= MIN_GROUP:
                chosen.append(some)
                lengths.append(len(some))
    ends = np.cumsum(lengths, dtype=int)
    return _Groups(np.concatenate(chosen), ends - lengths if lengths else ends, ends)


def _ranks(args: Arguments, coordinates: np.ndarray) -> Leaves:
    """Return the place of each coordinate of the leaves in the row `coordinates`; beyond its end for all others."""
    ranks = np.full(args.num_coordinates, len(coordinates), np.int32)
    ranks[coordinates] = np.arange(len(coordinates), dtype=np.int32)
    return args.like_weights(ranks)


def compare(
    numerical: Numerical,
    coordinates: np.ndarray,
    analytic: np.ndarray,
    first: np.ndarray,
    noise: np.ndarray,
    rtol: float,
) -> Findings:
    """Compare with central differences at two steps of unrelated sizes, `first` units and SECOND_STEP times that.

    Both must agree: the first to `rtol`; the second, which has more noise, to `rtol` or that noise, if an error of
    RESOLUTION would still be detected. The slopes to the left and right must be similar, otherwise there may be a kink.
    The error is relative to the entry itself. Entries that differ stay inconclusive, with the noise as their bar if it
    explains the difference.
    """
    unit = units_at(numerical.question.args, coordinates)
    steps = (first * unit)[:, None] * np.array([1.0, SECOND_STEP])
    samples = numerical.samples(numerical.single(coordinates), steps, unit)
    h = samples.steps[:, :, None]
    with np.errstate(all="ignore"):
        slopes = (samples.plus - samples.minus) / (2 * h)
        gap = np.abs((samples.plus - samples.here) - (samples.here - samples.minus))[:, 0] / h[:, 0]
        scale = np.maximum(np.abs(analytic), np.abs(slopes[:, 0]))
        blur = 2 * np.maximum(noise, numerical.eps * np.abs(samples.here)) / h
        near = np.abs(slopes[:, 0] - analytic) <= rtol * scale
        near &= np.abs(slopes[:, 1] - analytic) <= np.maximum(rtol * scale, blur[:, 1])
        agrees = near & (blur[:, 1] <= RESOLUTION * scale) & (gap <= 0.1 * scale) & (scale > 0)
        unmoved = (samples.plus == samples.here).all(axis=1) & (samples.minus == samples.here).all(axis=1)
        error = np.abs(slopes[:, 0] - analytic) / np.where(scale > 0, scale, 1.0)
    code = np.where(agrees, PASS, np.where(unmoved & (analytic == 0), CONSTANT, INCONCLUSIVE))
    no, shape = np.zeros(code.shape, bool), code.shape
    within = (code == INCONCLUSIVE) & (np.abs(slopes[:, 0] - analytic) <= BARS * blur[:, 0])
    bar = np.where(within & np.isfinite(blur[:, 0]), blur[:, 0], np.nan)
    noise = np.broadcast_to(noise, shape)
    step = np.repeat(samples.steps[:, :1], shape[1], axis=1)
    error = np.nan_to_num(error, nan=np.inf)
    nan = np.full(len(code), np.nan)
    return Findings(code, analytic, slopes[:, 0], bar, step, error, noise, no, no[:, 0], no, nan)
