"""What the probes of a run say, as numbers with intervals."""

import math
from typing import NamedTuple

import jax
import numpy as np

from jaxopt_course.annotations import ArrayLike
from jaxopt_course.training import TrainResult
from jaxopt_course.training.prober import Probes
from jaxopt_course.training.probes import Survey
from jaxopt_course.training.vectors import Vectors

CONFIDENCE = 0.999  # of every interval: a diagnosis rests on a few of them
SEGMENTS = 8  # of the last quarter, whose means tell how far the mean of all may be off
NEIGHBOURS = 1000  # errors within which a close neighbour of an extreme eigenvalue may hide: see `Extreme`


class Estimate(NamedTuple):
    """A number and its interval of confidence."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        known = max(self.high - self.mean, self.mean - self.low) <= 1e-3 * abs(self.mean)
        return f"{self.mean:.3g}" + ("" if known else f" [{self.low:.2g}, {self.high:.2g}]")


class Moment(NamedTuple):
    """The run at one survey.

    Units of loss: `left`, what is to gain by the curvature here; `floor`, the part of the loss above the minimum that
    noise maintains, at least and at most; `descent`, what a step gains to first order. `over`: the rate over the
    stability limit; `lowest`: the least eigenvalue, in the unit in which the limit is 2; `upward`: the share of the
    descent along positive curvature. By leaf: `leaf_left`, `leaf_over`, shares of the extreme directions, entries
    without gradient (`still`) or as at the start (`unmoved`), and `steadiness`, steady over alternating response.
    """

    loss: Estimate
    over: Estimate
    lowest: Estimate
    descent: Estimate
    floor: Estimate
    left: Estimate
    upward: float
    leaf_left: np.ndarray
    leaf_over: np.ndarray
    highest_share: np.ndarray
    lowest_share: np.ndarray
    still: np.ndarray
    unmoved: np.ndarray
    steadiness: np.ndarray
    regular: bool


class Evidence(NamedTuple):
    """Of a whole run: the `first` and `last` survey, `over[K]` of the brief looks, and what was recorded.

    `excess`: the mean loss of the last quarter of the run above the minimum that the last survey expects.
    """

    names: list[str]
    sizes: np.ndarray
    batch_size: int
    num_steps: int
    first: Moment
    last: Moment
    excess: Estimate
    over: np.ndarray
    losses: np.ndarray
    eval_steps: np.ndarray
    evals: dict[str, np.ndarray]


def gather(result: TrainResult) -> Evidence:
    """The evidence of a run with probes."""
    probes = result.trace.probes
    assert probes is not None
    flat = Vectors(result.params)
    moments = [_moment(jax.tree.map(lambda rows, i=i: rows[i], probes.surveys), probes) for i in (0, -1)]
    evals = jax.tree_util.tree_leaves_with_path(result.trace.evals)
    scalars = {jax.tree_util.keystr(path): np.asarray(leaf, float) for path, leaf in evals if np.ndim(leaf) == 1}
    losses = np.asarray(result.trace.loss, float)
    return Evidence(
        names=flat.names,
        sizes=np.array(flat.sizes),
        batch_size=int(probes.batch_size),
        num_steps=len(losses),
        first=moments[0],
        last=moments[1],
        excess=_excess(losses, moments[1], exact=bool(probes.batch_size == probes.num_examples)),
        over=np.asarray(probes.looks.sharpness, float) / 2,
        losses=losses,
        eval_steps=result.trace.eval_steps,
        evals=scalars,
    )


def _excess(losses: np.ndarray, last: Moment, exact: bool) -> Estimate:
    quarter = losses[-max(1, len(losses) // 4) :]
    quarter = quarter[np.isfinite(quarter)]
    means = [part.mean() for part in np.array_split(quarter, min(SEGMENTS, max(1, len(quarter))))]
    mean = estimate(np.array(means))
    if len(means) == 1 and not exact:
        mean = Estimate(mean.mean, -math.inf, math.inf)
    low = mean.low - last.loss.high + last.left.low
    return Estimate(mean.mean - last.loss.mean + last.left.mean, low, mean.high - last.loss.low + last.left.high)


def _moment(survey: Survey, probes: Probes) -> Moment:
    N, B = int(probes.num_examples), int(probes.batch_size)
    drawn = (N - B) / max(N - 1, 1)  # of the variance with replacement, what is left without
    total = {name: np.asarray(part, float).sum(-1) for name, part in survey.pairs._asdict().items()}
    reach = min(float(survey.highest.beyond), NEIGHBOURS * float(survey.highest.error))
    fresh, highest = estimate(survey.highest_fresh), float(survey.highest.value)
    over = Estimate(fresh.mean / 2, fresh.low / 2, max(fresh.high, highest + reach) / 2)
    reach = min(float(survey.lowest.beyond), NEIGHBOURS * float(survey.lowest.error))
    fresh = estimate(survey.lowest_fresh)
    lowest = Estimate(fresh.mean, min(fresh.low, float(survey.lowest.value) - reach), fresh.high)
    floor = estimate(total["diffusion"] * drawn / 4)
    typical, steepest = max(1 - over.mean / 2, 0.5), max(1 - over.high, 1e-3)
    floor = Estimate(floor.mean / typical, floor.low, floor.high / steepest)  # 1 / (1 - over) along each direction
    left, steady, alternating = (np.asarray(part, float) for part in (survey.left, survey.steady, survey.alternating))
    return Moment(
        loss=estimate(survey.losses),
        over=over,
        lowest=lowest,
        descent=estimate(total["descent"]),
        floor=floor,
        left=estimate(left.sum(-1)),
        upward=float(survey.upward),
        leaf_left=left.mean(0),
        leaf_over=np.asarray(survey.leaf_highest, float) / 2,
        highest_share=np.asarray(survey.highest_share, float),
        lowest_share=np.asarray(survey.lowest_share, float),
        still=np.asarray(survey.still),
        unmoved=np.asarray(survey.unmoved),
        steadiness=steady / np.maximum(alternating, np.finfo(float).tiny),
        regular=bool(survey.regular),
    )


def estimate(samples: ArrayLike) -> Estimate:
    """The mean with its t interval; of one number, which is the whole, the number."""
    samples = np.asarray(samples, float)
    mean, n = float(samples.mean()), len(samples)
    if n == 1 or not math.isfinite(mean):
        return Estimate(mean, mean, mean)
    from scipy.special import stdtrit  # jax depends on scipy

    apart = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * float(samples.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - apart, mean + apart)
