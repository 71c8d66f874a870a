"""What the probes of a run say, as numbers with intervals."""

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

CONFIDENCE = 0.999  # of every interval: a diagnosis rests on a few of them
SEGMENTS = 8  # of the last quarter, whose means tell how far the mean of all may be off
STRETCHES = 12  # of the first three quarters, whose mean losses are compared
FEWEST = 4  # steps of a stretch whose mean loss is told from another's
TOO_MUCH = 2.0  # times what is seen to be gained
NEAR = 3  # looks to either side that are taken together for a ratio of noise to signal
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
    descent along positive curvature; `trace`: that of the Hessian, in units of loss and parameters. In examples:
    `noise_scale`, the batch whose gradient is half noise, tr(C) = |G|^2; `critical_batch`, the same weighed by
    curvature, beyond which larger batches save few steps. By leaf: `leaf_left`, `leaf_over`, shares of the extreme
    directions, entries without gradient (`still`) or as at the start (`unmoved`), and `steadiness`, steady over
    alternating response.
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
    """What the brief looks saw, after `steps[K]`.

    `over[K]`: the rate over the stability limit, at least; `noise_scale[K]`: as in `Moment`, of a few looks together,
    NaN where they do not tell; `cosine[K]`: of the gradients of two steps that follow one another; `update_ratio[K,
    leaves]`: the norm of an update over that of the parameters.
    """

    steps: np.ndarray
    over: np.ndarray
    noise_scale: np.ndarray
    cosine: np.ndarray
    update_ratio: np.ndarray


class Evidence(NamedTuple):
    """Of a whole run: the `first` and `last` survey, the brief `looks`, and what was recorded. `names`, `sizes` of
    leaves; `losses[S]` of each step, `evals` the scalars that `eval_fn` returned after `eval_steps`.

    `ending`: the mean loss of the last quarter of the run, and `excess` what it is above the minimum that the last
    survey expects; `fall`: from the third quarter to the last; `best`: the lowest mean loss of a stretch before that.
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
        """What the probes of a run say. ValueError for a result without any, or without one at its end."""
        if not isinstance(result, TrainResult):
            raise TypeError(f"diagnose: expected the result of jc.train, got {type(result).__name__}")
        probes = result.trace.probes
        if probes is None:
            raise ValueError("diagnose: the result has no probes; train with probe_every=, such as probe_every=100")
        if len(probes.survey_steps) < 2 or probes.survey_steps[-1] != len(result.trace.loss):
            raise ValueError(
                "diagnose: the run has no probe at its end: it was interrupted (let it go on), or its first step "
                "failed (the NonFiniteError says of what)"
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
            best=_best(losses),
            excess=_above(ending, last),
            looks=_looks(probes),
            losses=losses,
            eval_steps=result.trace.eval_steps,
            evals=scalars,
        )


def _looks(probes: Probes) -> Looks:
    pair = jax.tree.map(lambda rows: np.asarray(rows, float), probes.looks.pair)
    with np.errstate(divide="ignore", invalid="ignore"):
        clear = _of_neighbours(pair.signal.sum(-1) / pair.noise.sum(-1))
        noise_scale = np.where(clear > 0, int(probes.batch_size) / clear, np.nan)
        ratio = np.sqrt(pair.update / pair.size)
    return Looks(probes.steps, np.asarray(probes.looks.sharpness, float) / 2, noise_scale, pair.cosine, ratio)


def _of_neighbours(values: np.ndarray) -> np.ndarray:
    """Means over the looks around each, 2 `NEAR` + 1 where there are so many."""
    padded = np.pad(values, NEAR, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEAR + 1)
    inside = np.lib.stride_tricks.sliding_window_view(np.pad(np.ones(len(values), bool), NEAR), 2 * NEAR + 1)
    return np.array([window[here].mean() for window, here in zip(windows, inside, strict=True)])


def _mean(losses: np.ndarray, exact: bool) -> Estimate:
    """The mean loss of some steps; of a single one it is exact where a minibatch is all examples."""
    losses = losses[np.isfinite(losses)]
    if len(losses) > 1:
        return estimate(np.array([part.mean() for part in np.array_split(losses, min(SEGMENTS, len(losses)))]))
    mean = float(losses.mean()) if len(losses) else math.nan
    return Estimate(mean, mean, mean) if exact else Estimate(mean, -math.inf, math.inf)


def _best(losses: np.ndarray) -> Estimate:
    """The lowest of the mean losses of stretches of the first three quarters; of a short run, nothing."""
    before = losses[: len(losses) - len(losses) // 4]
    if len(before) < STRETCHES * FEWEST:
        return Estimate(math.inf, math.inf, math.inf)
    stretches = np.array_split(before, STRETCHES)
    lowest = min(stretches, key=lambda stretch: float(np.mean(stretch)))
    return estimate(np.array([part.mean() for part in np.array_split(lowest, min(SEGMENTS, len(lowest)))]))


def _above(ending: Estimate, last: Moment) -> Estimate:
    low = ending.low - last.loss.high + last.left.low
    return Estimate(ending.mean - last.loss.mean + last.left.mean, low, ending.high - last.loss.low + last.left.high)


def _moment(survey: Survey, probes: Probes) -> Moment:
    N, B = int(probes.num_examples), int(probes.batch_size)
    drawn = (N - B) / max(N - 1, 1)  # of the variance with replacement, what is left without
    total = {
        name: np.asarray(getattr(survey.pairs, name), float).sum(-1)
        for name in ("signal", "noise", "descent", "diffusion")
    }
    reach = min(float(survey.highest.beyond), NEIGHBOURS * float(survey.highest.error))
    fresh, highest = estimate(survey.highest_fresh), float(survey.highest.value)
    over = Estimate(fresh.mean / 2, fresh.low / 2, max(fresh.high, highest + reach) / 2)
    reach = min(float(survey.lowest.beyond), NEIGHBOURS * float(survey.lowest.error))
    fresh = estimate(survey.lowest_fresh)
    lowest = Estimate(fresh.mean, min(fresh.low, float(survey.lowest.value) - reach), fresh.high)
    floor = estimate(total["diffusion"] * drawn / 4)
    typical, steepest = max(1 - over.mean / 2, 0.5), max(1 - over.high, 1e-3)
    floor = Estimate(floor.mean / typical, floor.low, floor.high / steepest)  # 1 / (1 - over) along each direction
    steady, alternating = (np.asarray(part, float) for part in (survey.steady, survey.alternating))
    left = _believable(np.asarray(survey.left, float), np.asarray(survey.gains, float))
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


def _believable(left: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """What is left to gain, cut to what the loss was seen to gain where the quadratic model promises far too much."""
    promised, seen = float(left.sum(-1).mean()), float(np.max(gains.mean(0), initial=0.0))
    return left if not promised > TOO_MUCH * seen else left * (seen / promised)


def estimate(samples: ArrayLike) -> Estimate:
    """The mean with its t interval; of one number, which is the whole, the number."""
    samples = np.asarray(samples, float)
    mean = float(samples.mean())
    if len(samples) == 1 or not math.isfinite(mean):
        return Estimate(mean, mean, mean)
    with np.errstate(over="ignore"):  # of runs that have diverged
        return Estimate(mean, *paired_interval(samples, confidence=CONFIDENCE))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """Of two means, the second positive; inf where it is not."""
    a, b = float(numerators.mean()), float(denominators.mean())
    mean = a / b if b > 0 else math.inf
    if len(numerators) == 1:
        return Estimate(mean, mean, mean)
    return Estimate(mean, *mean_ratio_interval(numerators, denominators, CONFIDENCE))
