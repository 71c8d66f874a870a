"""From values along a line to its slope with an error bar, and to the kinks that lie on it. NumPy float64 throughout.

Central differences at falling steps, one Richardson extrapolation between neighbours, and the spread over the steps as
the bar: rounding at the small steps and curvature at the large ones both show in how far neighbours differ.
"""

from typing import NamedTuple

import numpy as np

# In units of each coordinate. Neighbours differ by powers of e, so that no two steps are commensurable: a period that
# divides one step divides no other, and an oscillation that hides from one family of steps shows in the next.
STEPS = 0.5 * np.exp(-2.0 * np.arange(17))  # 0.5 ... 6e-15, for functions that round to float64
COARSE_STEPS = 0.5 * np.exp(-1.4 * np.arange(11))  # 0.5 ... 4e-7, for functions that round to fewer digits
LARGEST_SINGLE = 2.0**-8  # of a single central difference, so that curvature does not look like a kink
NEAR = 1e-2  # a kink closer than this is worth reporting
BARS = 10.0  # a difference within so many error bars is none


class Samples(NamedTuple):
    """Readings [R, S, M] of f at +-steps[R, S], which fall, along R lines, and `here` [M] at the point itself.

    `unit` [R] is the step at which t = 1, `own` [R] the size of what moves, in the units of the steps; `eps` is the
    relative spacing of the numbers that f computes in.
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
        """What rounding may make of a value of f, [R, S, M], in three ways.

        f rounds its result, to eps |f| / 2. It may round its argument w on the way, which moves f by the slope times
        eps |w| / 2; that is no noise to look at where the step is a few units in the last place of w, for then both
        sides round alike. And where f does not move at all, the change may have been lost beside numbers of w's size.
        """
        slope = np.abs(self.plus - self.minus) / (2 * self.steps[:, :, None])
        argument = self.own[:, None, None] * np.nan_to_num(slope, posinf=0.0)
        still = (self.plus == self.here) & (self.minus == self.here)
        lost = np.where(still, np.maximum(self.own, self.unit)[:, None, None], 0.0)
        return self.eps / 2 * np.maximum(self.size + argument, lost)

    @property
    def quantum(self) -> np.ndarray:
        """The least by which f changes, [R, M], where there are steps at which it does not change at all; else 0.

        So coarse are the values of a function that loses digits on the way, as 1 - cos(w) does, or one less than the
        distance of a kink beyond which it is flat: samples cannot tell these apart.
        """
        changes = np.abs(np.concatenate([self.plus, self.minus], axis=1) - self.here)
        least = np.min(np.where(changes > 0, changes, np.inf), axis=1)
        return np.where((changes == 0).any(axis=1) & np.isfinite(least), least, 0.0)

    def rows(self, rows: np.ndarray) -> "Samples":
        """The samples of some of the lines."""
        lines = {name: getattr(self, name)[rows] for name in ("plus", "minus", "steps", "unit", "own")}
        return self._replace(**lines)

    def merged(self, other: "Samples") -> "Samples":
        """The steps of both, in falling order. A step within a tenth of its neighbour would add nothing but noise."""
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
    """What samples say of each line and reading, [R, M]; slopes are per unit of the steps.

    `jump` is how far the one-sided slopes are apart at a kink and zero where there is none, `least` and `greatest`
    are those two slopes, widened by their noise; `kink` is where one was found at (0: it cannot be told from here)
    or near the point, in units, NaN without. `low` and `high` bound the one-sided slopes at the finest step that
    tells them apart (NaN where none does). `noise` is the error of a single value of f; `varies` by how much f
    changes within a unit; `blocked` that it is not finite on one side at any step. `single_step` [R] is where one
    plain central difference is best, `single_bar` [R] its bar.
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
    """Slopes at the point with their error bars.

    `floor` [R, M] is a slope below which a jump is no kink, `least_noise` [R, M] an error of the values of f.
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
    """Richardson: the error is c h^2, so two steps give c; equal steps, which merging leaves, give nothing new."""
    ratio = (h[:, :-1] / h[:, 1:]) ** 2 - 1
    change = np.where(ratio > 0.2, (slopes[:, 1:] - slopes[:, :-1]) / np.maximum(ratio, 0.2), 0.0)
    return np.concatenate([slopes[:, :1], slopes[:, 1:] + change], axis=1)


def _bars(slopes: np.ndarray, h: np.ndarray, rounding: np.ndarray, order: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """How far each slope [R, S, M] may be off, and the noise of f, [R, M]: how far its values are.

    The bar is how far neighbours differ, there and at every finer step. Noise of the values makes an error of
    noise / h (in second differences, h^2): what differs at a finer step then counts h_finer / h here. The noise is
    measured at the three finest steps, or is what rounding to `eps` makes of a value, if that is more. Differences
    over a hundred times larger are not noise but a part of f that the coarser steps have stepped over; they count in
    full. The last term keeps BARS bars as long as two roundings, where values differ by chance less than they may.
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
    smooth_again: np.ndarray  # at finer steps: the kink is near, not here
    finer: np.ndarray  # [R, S, M]: steps finer than that
    least: np.ndarray
    greatest: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _find_kinks(right: np.ndarray, left: np.ndarray, noise: np.ndarray, samples: Samples, floor: np.ndarray) -> _Kinks:
    """One-sided slopes that stay apart as the step shrinks. `noise` [R, S, M] is that of a one-sided slope.

    The level is the finest where the jump stands ten thousandfold above noise, or else tenfold. Finer steps that would
    show the jump, were it still ahead of them, decide: where they show none the kink is near, not here; where they show
    a larger one it is no kink, but a part of f that has not been resolved yet.
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
    """The lesser and the greater one-sided slope at a level, each moved outwards by `doubt`."""
    sides = _pick(left, level), _pick(right, level)
    return np.minimum(*sides) - doubt, np.maximum(*sides) + doubt


def _kink_level(gap: np.ndarray, noise: np.ndarray, scale: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The finest level, [R, M], where the gap matters, stands above noise and stays when the step grows; else -1."""
    matters = (gap > 1e-4 * scale) & (gap > noise) & (t <= NEAR)
    same = np.abs(gap[:, :-1] - gap[:, 1:]) <= 0.25 * gap[:, 1:]
    stays = np.zeros_like(matters)
    stays[:, 2:] = matters[:, 2:] & same[:, 1:] & same[:, :-1]
    levels = np.arange(gap.shape[1])[None, :, None]
    return np.max(np.where(stays, levels, -1), axis=1)


def estimate_curvature(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Second derivatives [R, M] along lines from second differences, extrapolated once, and their error bars."""
    with np.errstate(all="ignore"):
        h = samples.steps[:, :, None]
        second = (samples.plus - 2 * samples.here + samples.minus) / h**2
        extrapolated = _extrapolated(second, h)
        bars, _ = _bars(extrapolated, h, 2 * samples.eps * samples.size, order=2)
        best = np.argmin(np.nan_to_num(bars, nan=np.inf), axis=1)[:, None, :]
        return _pick(extrapolated, best), _pick(bars, best)
