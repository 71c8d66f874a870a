"""Estimates of slopes along lines with error bars, and of kinks, from values of f. All computations in NumPy float64.

Slopes are central differences at decreasing steps, with one Richardson extrapolation between neighbours. The error bar
is the spread over the steps: rounding at small steps and curvature at large ones both make neighbours differ.
"""

from typing import NamedTuple

import numpy as np

# In units of each coordinate. Neighbours differ by powers of e, so that no two steps are commensurable: a period that
# divides one step divides no other, and an oscillation that one set of steps does not show appears in the next.
STEPS = 0.5 * np.exp(-2.0 * np.arange(17))  # 0.5 ... 6e-15, for functions that round to float64
COARSE_STEPS = 0.5 * np.exp(-1.4 * np.arange(11))  # 0.5 ... 4e-7, for functions that round to fewer digits
LARGEST_SINGLE = 2.0**-8  # largest step of a single central difference, so that curvature does not look like a kink
NEAR = 1e-2  # kinks closer than this are reported
BARS = 10.0  # differences within this number of error bars are not significant


class Samples(NamedTuple):
    """Readings [R, S, M] of f at decreasing +-steps[R, S] along R lines, and `here` [M] at the point itself.

    `unit` [R] is the step at t = 1, `own` [R] the size of the moved entry, in the units of the steps; `eps` is the
    relative spacing of the dtype in which f computes.
    """

    plus: np.ndarray
    minus: np.ndarray
    here: np.ndarray
    steps: np.ndarray
    unit: np.ndarray
    own: np.ndarray
    eps: float

    @property
    def size(self) -> np.ndarray:
        """The largest magnitude of f that each step involves, [R, S, M]."""
        return np.maximum(np.maximum(np.abs(self.plus), np.abs(self.minus)), np.abs(self.here))

    @property
    def rounding(self) -> np.ndarray:
        """The possible rounding error of a value of f, [R, S, M], from three sources.

        f rounds its result, by eps |f| / 2. It may round its argument w, which changes f by the slope times
        eps |w| / 2; this does not appear as noise if the step is a few units in the last place of w, because both
        sides then round alike. If f does not change at all, the change may be lost next to numbers of the size of w.
        """
        slope = np.abs(self.plus - self.minus) / (2 * self.steps[:, :, None])
        argument = self.own[:, None, None] * np.nan_to_num(slope, posinf=0.0)
        still = (self.plus == self.here) & (self.minus == self.here)
        lost = np.where(still, np.maximum(self.own, self.unit)[:, None, None], 0.0)
        return self.eps / 2 * np.maximum(self.size + argument, lost)

    @property
    def quantum(self) -> np.ndarray:
        """The smallest change of f, [R, M], if there are steps at which f does not change at all; else 0.

        This is the resolution of the values of a function that loses digits, such as 1 - cos(w). It may also mean that
        f is flat up to a nearby kink; samples cannot distinguish the two cases.
        """
        changes = np.abs(np.concatenate([self.plus, self.minus], axis=1) - self.here)
        least = np.min(np.where(changes > 0, changes, np.inf), axis=1)
        return np.where((changes == 0).any(axis=1) & np.isfinite(least), least, 0.0)

    def rows(self, rows: np.ndarray) -> "Samples":
        """Return the samples of some of the lines."""
        lines = {name: getattr(self, name)[rows] for name in ("plus", "minus", "steps", "unit", "own")}
        return self._replace(**lines)

    def merged(self, other: "Samples") -> "Samples":
        """Merge the steps of both in decreasing order; a step within 10 % of its neighbour is replaced by it.

        Such a step would add only noise.
        """
        steps = np.concatenate([self.steps, other.steps], axis=1)
        order = np.argsort(-steps, axis=1, kind="stable")
        steps = np.take_along_axis(steps, order, axis=1)
        both = (np.concatenate(pair, axis=1) for pair in ((self.plus, other.plus), (self.minus, other.minus)))
        plus, minus = (np.take_along_axis(values, order[:, :, None], axis=1) for values in both)
        for k in range(1, steps.shape[1]):
            twin = steps[:, k] > steps[:, k - 1] / 1.1
            steps[twin, k], plus[twin, k], minus[twin, k] = steps[twin, k - 1], plus[twin, k - 1], minus[twin, k - 1]
        return self._replace(plus=plus, minus=minus, steps=steps)


class Estimate(NamedTuple):
    """Estimates for each line and reading, [R, M]; slopes are per unit of the steps.

    `jump`: difference of the one-sided slopes at a kink, 0 without a kink; `least`, `greatest`: these two slopes,
    widened by their noise; `kink`: distance of a kink at or near the point, in units (0 if it cannot be distinguished
    from the point, NaN without a kink). `low`, `high`: bounds of the one-sided slopes at the finest step at which they
    differ (NaN if there is none). `noise`: error of a single value of f; `varies`: change of f within a unit;
    `blocked`: whether f is not finite on one side at all steps. `single_step` [R]: the best step of a single central
    difference, `single_bar` [R]: its bar.
    """

    slope: np.ndarray
    bar: np.ndarray
    step: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    jump: np.ndarray
    kink: np.ndarray
    low: np.ndarray
    high: np.ndarray
    noise: np.ndarray
    varies: np.ndarray
    blocked: np.ndarray
    single_step: np.ndarray
    single_bar: np.ndarray


def estimate_slopes(samples: Samples, floor: np.ndarray, least_noise: np.ndarray | None = None) -> Estimate:
    """Estimate slopes at the point with their error bars.

    `floor` [R, M]: a smaller jump of the slope is not a kink; `least_noise` [R, M]: lower bound on the error of values.
    """
    plus, minus, here, steps, unit, _, _ = samples
    with np.errstate(all="ignore"):
        h = steps[:, :, None]
        central, right, left = (plus - minus) / (2 * h), (plus - here) / h, (here - minus) / h
        rounding = samples.rounding
        if least_noise is not None:
            rounding = np.maximum(rounding, least_noise[:, None, :])
        bars, noise = _bars(central, h, rounding)
        extrapolated = _extrapolated(central, h)
        finer_bars, _ = _bars(extrapolated, h, rounding)
        finer_bars[:, 0] = np.inf
        kinks = _find_kinks(right, left, 4 * noise[:, None, :] / h, samples, floor)

        usable = ~kinks.smooth_again[:, None, :] | kinks.finer
        candidates = np.where(usable, np.minimum(bars, finer_bars), np.inf)
        best = np.argmin(np.where(np.isnan(candidates), np.inf, candidates), axis=1)[:, None, :]
        extrapolate = _pick(finer_bars, best) < _pick(bars, best)
        slope = np.where(extrapolate, _pick(extrapolated, best), _pick(central, best))
        bar = _pick(candidates, best)
        typical = np.median(np.log(np.nan_to_num(bars, nan=np.inf) + 1e-300), axis=2)
        typical = np.where(steps <= LARGEST_SINGLE * unit[:, None], typical, np.inf)
        single = np.argmin(typical, axis=1)[:, None]
        change = np.where(h <= unit[:, None, None], np.maximum(np.abs(plus - here), np.abs(minus - here)), 0.0)
        return Estimate(
            slope=slope,
            bar=np.where(np.isfinite(slope) & np.isfinite(bar), bar, np.inf),
            step=np.take_along_axis(steps, best[:, 0, :], axis=1),
            least=kinks.least,
            greatest=kinks.greatest,
            jump=np.where(kinks.found, kinks.jump, 0.0),
            kink=np.where(kinks.found, np.where(kinks.smooth_again, kinks.distance, 0.0), np.nan),
            low=kinks.low,
            high=kinks.high,
            noise=noise,
            varies=np.max(np.nan_to_num(change, nan=0.0, posinf=0.0), axis=1),
            blocked=(~np.isfinite(plus)).all(axis=1) | (~np.isfinite(minus)).all(axis=1),
            single_step=np.take_along_axis(steps, single, axis=1)[:, 0],
            single_bar=np.exp(np.take_along_axis(typical, single, axis=1)[:, 0]),
        )


def _pick(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, level, axis=1)[:, 0, :]


def _extrapolated(slopes: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Richardson extrapolation: the error is c h^2, so two steps give c. Equal steps, left by merging, are skipped."""
    ratio = (h[:, :-1] / h[:, 1:]) ** 2 - 1
    change = np.where(ratio > 0.2, (slopes[:, 1:] - slopes[:, :-1]) / np.maximum(ratio, 0.2), 0.0)
    return np.concatenate([slopes[:, :1], slopes[:, 1:] + change], axis=1)


def _bars(slopes: np.ndarray, h: np.ndarray, rounding: np.ndarray, order: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the error bar of each slope [R, S, M], and the noise of f, [R, M], which is the error of its values.

    The bar is the largest difference between neighbours at this step and at every finer step. Noise of the values
    causes an error of noise / h (h^2 in second differences), so a difference at a finer step counts times h_finer / h.
    The noise is measured at the three finest steps, or is the rounding of a value to `eps`, if that is larger. A
    difference over a hundred times larger is not noise, but a feature of f that the coarser steps missed; it counts in
    full. The last term makes BARS bars at least as long as two roundings, for values that happen to agree too well.
    """
    scale = h**order
    differences = np.abs(slopes[:, :-1] - slopes[:, 1:])
    differences = np.where(np.isfinite(differences), differences, np.inf)
    noise = differences * scale[:, 1:]
    finest = np.maximum(noise[:, -3:].max(axis=1, keepdims=True), rounding[:, -1:])
    is_noise = noise <= 100 * finest
    spread = _worst_of_finer(np.where(is_noise, noise, 0.0)) / scale[:, 1:]
    stepped_over = _worst_of_finer(np.where(is_noise, 0.0, differences))
    bars = np.full(slopes.shape, np.inf)
    bars[:, 1:] = np.maximum(spread, stepped_over) + 2 * rounding[:, 1:] / (BARS * scale[:, 1:])
    return bars, finest[:, 0]


def _worst_of_finer(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]


class _Kinks(NamedTuple):
    found: np.ndarray
    jump: np.ndarray
    distance: np.ndarray
    smooth_again: np.ndarray  # whether f is smooth at finer steps: the kink is near the point, not at it
    finer: np.ndarray  # [R, S, M]: which steps are finer than that level
    least: np.ndarray
    greatest: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _find_kinks(right: np.ndarray, left: np.ndarray, noise: np.ndarray, samples: Samples, floor: np.ndarray) -> _Kinks:
    """Find kinks: one-sided slopes that differ even as the step decreases. `noise` [R, S, M]: of a one-sided slope.

    The level is the finest step at which the jump exceeds noise by a factor of ten thousand, or else of ten. Finer
    steps with a noise well below the jump decide: if they show no jump, the kink is near the point, not at it; if they
    show a larger jump, it is not a kink, but a feature of f that is not resolved yet.
    """
    t = (samples.steps / samples.unit[:, None])[:, :, None]
    gap = np.abs(right - left)
    slopes = np.nan_to_num((np.abs(right) + np.abs(left)) / 2)
    levels = [_kink_level(gap, factor * noise, np.maximum(slopes, floor[:, None, :]), t) for factor in (1e4, 10.0)]
    level = np.where(levels[0] >= 0, *levels)
    at, found = np.maximum(level, 0)[:, None, :], level >= 0
    jump = _pick(gap, at)
    numbers = np.arange(gap.shape[1])[None, :, None]
    finer = numbers > at
    told = finer & (noise < jump[:, None, :] / 10)
    smooth_again = found & np.any(told & (gap < 0.3 * jump[:, None, :]), axis=1)
    found &= smooth_again | ~np.any(told & (gap > 3 * jump[:, None, :]), axis=1)
    finest_apart = np.max(np.where((gap > 4 * noise) & (t <= NEAR), numbers, -1), axis=1)
    there = np.maximum(finest_apart, 0)[:, None, :]
    doubt = np.where(finest_apart >= 0, _pick(noise, there), np.nan)
    distance = np.take_along_axis(t[:, :, 0], at[:, 0, :], axis=1)
    at_kink = _range(left, right, at, _pick(noise, at))
    return _Kinks(found, jump, distance, smooth_again, finer, *at_kink, *_range(left, right, there, doubt))


def _range(left: np.ndarray, right: np.ndarray, level: np.ndarray, doubt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smaller and the larger one-sided slope at a level, each widened by `doubt`."""
    sides = _pick(left, level), _pick(right, level)
    return np.minimum(*sides) - doubt, np.maximum(*sides) + doubt


def _kink_level(gap: np.ndarray, noise: np.ndarray, scale: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the finest level, [R, M], at which the gap is significant and persists at larger steps; else -1."""
    matters = (gap > 1e-4 * scale) & (gap > noise) & (t <= NEAR)
    same = np.abs(gap[:, :-1] - gap[:, 1:]) <= 0.25 * gap[:, 1:]
    stays = np.zeros_like(matters)
    stays[:, 2:] = matters[:, 2:] & same[:, 1:] & same[:, :-1]
    levels = np.arange(gap.shape[1])[None, :, None]
    return np.max(np.where(stays, levels, -1), axis=1)


def estimate_curvature(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Return second derivatives [R, M] along lines from second differences, extrapolated once, and error bars."""
    with np.errstate(all="ignore"):
        h = samples.steps[:, :, None]
        second = (samples.plus - 2 * samples.here + samples.minus) / h**2
        extrapolated = _extrapolated(second, h)
        bars, _ = _bars(extrapolated, h, 2 * samples.eps * samples.size, order=2)
        best = np.argmin(np.nan_to_num(bars, nan=np.inf), axis=1)[:, None, :]
        return _pick(extrapolated, best), _pick(bars, best)
