"""Estimates with confidence intervals from the probes of a run."""

import math
from typing import NamedTuple

import jax
import numpy as np

from jaxopt_course.annotations import ArrayLike
from jaxopt_course.statistics import mean_ratio_interval, paired_interval
from jaxopt_course.training import TrainResult
from jaxopt_course.training.prober import Probes
from jaxopt_course.training.probes import Survey
from jaxopt_course.training.vectors import Vectors

CONFIDENCE = 0.999  # of every interval, because a diagnosis depends on several of them
SEGMENTS = 8  # segments whose means give the interval of a mean loss
STRETCHES = 12  # stretches of the first three quarters, whose mean losses are compared
LEAST_STRETCH = 4  # fewest steps in a stretch
MOST_PROMISED = 2.0  # the largest predicted gain that is accepted, in units of the observed gain
HALF_WINDOW = 3  # looks to either side that are averaged for a ratio of noise to signal
NEIGHBOUR_MARGIN = 1000  # an extreme eigenvalue with a close neighbour may be this many errors away: see `Extreme`


class Estimate(NamedTuple):
    """A number and its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        known = max(self.high - self.mean, self.mean - self.low) <= 1e-3 * abs(self.mean)
        return f"{self.mean:.3g}" + ("" if known else f" [{self.low:.2g}, {self.high:.2g}]")


class Moment(NamedTuple):
    """The state of the run at one survey.

    In units of loss:

    - `loss`: the loss; `left`: what is left to gain, by the curvature at this point; `descent`: what a step gains to
      first order.
    - `floor`: the part of the loss above the minimum that noise maintains, at least and at most.

    In units of examples:

    - `noise_scale`: the batch size at which half of the gradient is noise, tr(C) = |G|^2.
    - `critical_batch`: the same weighted by curvature; larger batches save few steps.

    Of the curvature:

    - `over`: the learning rate divided by the stability limit; `lowest`: the least eigenvalue, in units in which the
      limit is 2; `trace`: the trace of the Hessian, in units of loss and parameters.
    - `upward`: the share of the descent along positive curvature; `regular`: see `Survey`.

    By leaf:

    - `leaf_left`, `leaf_over`: `left` and `over`; `highest_share`, `lowest_share`: shares of the extreme directions.
    - `still`: number of entries without gradient; `unmoved`: number of entries that are as at the start; `steadiness`:
      steady response divided by alternating response.
    """

    loss: Estimate
    over: Estimate
    lowest: Estimate
    descent: Estimate
    floor: Estimate
    left: Estimate
    noise_scale: Estimate
    critical_batch: Estimate
    trace: Estimate
    upward: float
    leaf_left: np.ndarray
    leaf_over: np.ndarray
    highest_share: np.ndarray
    lowest_share: np.ndarray
    still: np.ndarray
    unmoved: np.ndarray
    steadiness: np.ndarray
    regular: bool


class Looks(NamedTuple):
    """Results of the brief looks, which were taken after `steps[K]` steps.

    `over[K]`: a lower bound of the learning rate divided by the stability limit; `noise_scale[K]`: as in `Moment`,
    averaged over a few looks, NaN if it cannot be determined; `cosine[K]`: cosine between the gradients of two
    successive steps; `update_ratio[K, leaves]`: the norm of an update divided by the norm of the parameters.
    """

    steps: np.ndarray
    over: np.ndarray
    noise_scale: np.ndarray
    cosine: np.ndarray
    update_ratio: np.ndarray


class Evidence(NamedTuple):
    """The evidence from a whole run.

    `first`, `last`: the first and the last survey; `looks`: the brief looks; `names`, `sizes`: of the leaves;
    `losses[S]`: the loss of each step; `evals`: the scalars that `eval_fn` returned after `eval_steps`.

    `ending`: the mean loss of the last quarter of the run; `excess`: how far `ending` is above the minimum that the
    last survey predicts; `fall`: the decrease of the mean loss from the third quarter to the last; `best`: the lowest
    mean loss of a stretch of the first three quarters.
    """

    names: list[str]
    sizes: np.ndarray
    batch_size: int
    num_steps: int
    first: Moment
    last: Moment
    ending: Estimate
    fall: Estimate
    best: Estimate
    excess: Estimate
    looks: Looks
    losses: np.ndarray
    eval_steps: np.ndarray
    evals: dict[str, np.ndarray]

    @classmethod
    def of(cls, result: TrainResult) -> "Evidence":
        """Collect the evidence from the probes of a run.

        Raises:
          TypeError: `result` is not a `TrainResult`.
          ValueError: the result has no probes, or no probe at its end.
        """
        if not isinstance(result, TrainResult):
            raise TypeError(f"diagnose: expected the result of jc.train, got {type(result).__name__}")
        probes = result.trace.probes
        if probes is None:
            raise ValueError("diagnose: the result has no probes; train with probe_every=, such as probe_every=100")
        if len(probes.survey_steps) < 2 or probes.survey_steps[-1] != len(result.trace.loss):
            raise ValueError(
                "diagnose: the run has no probe at its end: it was interrupted (resume it), or its first step failed "
                "(the NonFiniteError states why)"
            )
        flat = Vectors(result.params)
        first, last = (_moment(jax.tree.map(lambda rows, i=i: rows[i], probes.surveys), probes) for i in (0, -1))
        evals = jax.tree_util.tree_leaves_with_path(result.trace.evals)
        scalars = {jax.tree_util.keystr(path): np.asarray(leaf, float) for path, leaf in evals if np.ndim(leaf) == 1}
        losses = np.asarray(result.trace.loss, float)
        exact, quarter = bool(probes.batch_size == probes.num_examples), max(1, len(losses) // 4)
        third, ending = _mean(losses[-2 * quarter : -quarter], exact), _mean(losses[-quarter:], exact)
        return cls(
            names=flat.names,
            sizes=np.array(flat.sizes),
            batch_size=int(probes.batch_size),
            num_steps=len(losses),
            first=first,
            last=last,
            ending=ending,
            fall=Estimate(third.mean - ending.mean, third.low - ending.high, third.high - ending.low),
            best=_lowest_stretch(losses),
            excess=_excess(ending, last),
            looks=_looks(probes),
            losses=losses,
            eval_steps=result.trace.eval_steps,
            evals=scalars,
        )


def _looks(probes: Probes) -> Looks:
    pair = jax.tree.map(lambda rows: np.asarray(rows, float), probes.looks.pair)
    with np.errstate(divide="ignore", invalid="ignore"):
        clear = _moving_mean(pair.signal.sum(-1) / pair.noise.sum(-1))
        noise_scale = np.where(clear > 0, int(probes.batch_size) / clear, np.nan)
        ratio = np.sqrt(pair.update / pair.size)
    return Looks(probes.steps, np.asarray(probes.looks.sharpness, float) / 2, noise_scale, pair.cosine, ratio)


def _moving_mean(values: np.ndarray) -> np.ndarray:
    """Moving mean over windows of 2 `HALF_WINDOW` + 1 looks, which are shorter at the ends."""
    padded = np.pad(values, HALF_WINDOW, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * HALF_WINDOW + 1)
    is_inside = np.pad(np.ones(len(values), bool), HALF_WINDOW)
    inside = np.lib.stride_tricks.sliding_window_view(is_inside, 2 * HALF_WINDOW + 1)
    return np.array([window[here].mean() for window, here in zip(windows, inside, strict=True)])


def _mean(losses: np.ndarray, exact: bool) -> Estimate:
    """The mean loss of some steps; for a single step, it is exact if the minibatch contains all examples."""
    losses = losses[np.isfinite(losses)]
    if len(losses) > 1:
        return estimate(np.array([part.mean() for part in np.array_split(losses, min(SEGMENTS, len(losses)))]))
    mean = float(losses.mean()) if len(losses) else math.nan
    return Estimate(mean, mean, mean) if exact else Estimate(mean, -math.inf, math.inf)


def _lowest_stretch(losses: np.ndarray) -> Estimate:
    """The lowest mean loss of a stretch of the first three quarters; infinity for a short run."""
    before = losses[: len(losses) - len(losses) // 4]
    if len(before) < STRETCHES * LEAST_STRETCH:
        return Estimate(math.inf, math.inf, math.inf)
    stretches = np.array_split(before, STRETCHES)
    lowest = min(stretches, key=lambda stretch: float(np.mean(stretch)))
    return estimate(np.array([part.mean() for part in np.array_split(lowest, min(SEGMENTS, len(lowest)))]))


def _excess(ending: Estimate, last: Moment) -> Estimate:
    low = ending.low - last.loss.high + last.left.low
    return Estimate(ending.mean - last.loss.mean + last.left.mean, low, ending.high - last.loss.low + last.left.high)


def _moment(survey: Survey, probes: Probes) -> Moment:
    N, B = int(probes.num_examples), int(probes.batch_size)
    drawn = (N - B) / max(N - 1, 1)  # variance of sampling without replacement, relative to that with replacement
    total = {
        name: np.asarray(getattr(survey.pairs, name), float).sum(-1)
        for name in ("signal", "noise", "descent", "diffusion")
    }
    reach = min(float(survey.highest.beyond), NEIGHBOUR_MARGIN * float(survey.highest.error))
    fresh, highest = estimate(survey.highest_fresh), float(survey.highest.value)
    over = Estimate(fresh.mean / 2, fresh.low / 2, max(fresh.high, highest + reach) / 2)
    reach = min(float(survey.lowest.beyond), NEIGHBOUR_MARGIN * float(survey.lowest.error))
    fresh = estimate(survey.lowest_fresh)
    lowest = Estimate(fresh.mean, min(fresh.low, float(survey.lowest.value) - reach), fresh.high)
    floor = estimate(total["diffusion"] * drawn / 4)
    typical, steepest = max(1 - over.mean / 2, 0.5), max(1 - over.high, 1e-3)
    floor = Estimate(floor.mean / typical, floor.low, floor.high / steepest)  # 1 / (1 - over) along each direction
    steady, alternating = (np.asarray(part, float) for part in (survey.steady, survey.alternating))
    left = _capped(np.asarray(survey.left, float), np.asarray(survey.gains, float))
    return Moment(
        loss=estimate(survey.losses),
        over=over,
        lowest=lowest,
        descent=estimate(total["descent"]),
        floor=floor,
        left=estimate(left.sum(-1)),
        noise_scale=ratio(B * total["noise"], total["signal"]),
        critical_batch=ratio(B * np.asarray(survey.curved_noise, float), np.asarray(survey.curved_signal, float)),
        trace=estimate(survey.trace),
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


def _capped(left: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """What is left to gain, reduced to the observed gain if the quadratic model predicts more than twice as much."""
    promised, seen = float(left.sum(-1).mean()), float(np.max(gains.mean(0), initial=0.0))
    return left if not promised > MOST_PROMISED * seen else left * (seen / promised)


def estimate(samples: ArrayLike) -> Estimate:
    """The mean with its t interval; a single number is exact."""
    samples = np.asarray(samples, float)
    mean = float(samples.mean())
    if len(samples) == 1 or not math.isfinite(mean):
        return Estimate(mean, mean, mean)
    with np.errstate(over="ignore"):  # of runs that have diverged
        return Estimate(mean, *paired_interval(samples, confidence=CONFIDENCE))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """The ratio of two means with its interval; inf if the second mean is not positive."""
    a, b = float(numerators.mean()), float(denominators.mean())
    mean = a / b if b > 0 else math.inf
    if len(numerators) == 1:
        return Estimate(mean, mean, mean)
    return Estimate(mean, *mean_ratio_interval(numerators, denominators, CONFIDENCE))
