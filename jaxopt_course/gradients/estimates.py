"""From values along a ray to its slope with an error bar, and to the kinks that lie on it. NumPy float64 throughout.

Central differences at steps in geometric progression, one Richardson extrapolation above them, and the spread over the
steps as the bar: what rounds at the small steps and what curves at the large ones shows in how far neighbours differ.
"""

from typing import NamedTuple

import numpy as np

# In units of each coordinate's own size:
STEPS = 8.0 ** -np.arange(9) / 4  # 2^-2 ... 2^-26
COARSE_STEPS = 4.0 ** -np.arange(9) / 2  # 2^-1 ... 2^-17, for functions that round to fewer digits than float64
FAR_STEPS = 8.0 ** -np.arange(-9.0, 18.0) / 4  # 2^25 ... 2^-53, for functions of an unusual scale
LARGEST_SINGLE = 2.0**-8  # of a single central difference, so that curvature does not look like a kink
NEAR = 1e-2  # a kink closer than this is worth telling
BARS = 10.0  # a difference within so many error bars is none


class Estimate(NamedTuple):
    """One number for each ray and reading, [R, M]; slopes are per unit of t, steps and distances in t.

    `jump` is how far the one-sided slopes `left` and `right` are apart at a kink and zero where there is none;
    `kink` is where one was found at (0: it cannot be told from here) or near the point, NaN without. `low` and
    `high` bound the one-sided slopes at the finest step that tells them apart (NaN where none does). `single_step` [R]
    is the step at which one plain central difference is best, typically over the readings, `single_bar` [R] its bar.
    """

    slope: np.ndarray
    bar: np.ndarray
    step: np.ndarray
    left: np.ndarray
    right: np.ndarray
    jump: np.ndarray
    kink: np.ndarray
    low: np.ndarray
    high: np.ndarray
    single_step: np.ndarray
    single_bar: np.ndarray


def estimate_slopes(
    plus: np.ndarray, minus: np.ndarray, here: np.ndarray, steps: np.ndarray, eps: float, floor: np.ndarray
) -> Estimate:
    """Slopes at t = 0 from values [R, S, M] at +-steps[S], a falling progression, and at the point itself, here[M].

    `eps` is the relative spacing of the numbers f computes in, `floor` [R, M] a slope below which a jump is no kink.
    """
    with np.errstate(all="ignore"):
        h = steps[None, :, None]
        central, right, left = (plus - minus) / (2 * h), (plus - here) / h, (here - minus) / h
        size = np.maximum(np.maximum(np.abs(plus), np.abs(minus)), np.abs(here))
        rounding = eps * size / 2
        bars = _bars(central, steps, rounding)
        extrapolated = central.copy()
        extrapolated[:, 1:] += (central[:, 1:] - central[:, :-1]) / ((steps[0] / steps[1]) ** 2 - 1)
        finer_bars = _bars(extrapolated, steps, rounding)
        finer_bars[:, 0] = np.inf

        gap, noise = np.abs(right - left), 4 * (bars[:, -1:, :] * steps[-1]) / h
        slopes = np.nan_to_num((np.abs(right) + np.abs(left)) / 2)
        scale = np.maximum(slopes, floor[:, None, :])
        level = _kink_level(gap, noise, scale, steps)
        at, found = np.maximum(level, 0)[:, None, :], level >= 0
        jump, step_there = _pick(gap, at), steps[np.maximum(level, 0)]

        # Finer steps that would show the jump, were it still ahead of them: where they show none the kink is near, not
        # here; where they show a larger one it is no kink, but a function that has not been resolved yet.
        finer = np.arange(len(steps))[None, :, None] > at
        told = finer & (noise < jump[:, None, :] / 10)
        smooth_again = found & np.any(told & (gap < 0.3 * jump[:, None, :]), axis=1)
        found &= smooth_again | ~np.any(told & (gap > 3 * jump[:, None, :]), axis=1)
        apart = (gap > 4 * noise) & (h <= NEAR)
        finest_apart = np.max(np.where(apart, np.arange(len(steps))[None, :, None], -1), axis=1)
        there = np.maximum(finest_apart, 0)[:, None, :]
        doubt = np.where(finest_apart >= 0, _pick(noise, there), np.nan)
        usable = ~smooth_again[:, None, :] | finer
        candidates = np.where(usable, np.minimum(bars, finer_bars), np.inf)
        best = np.argmin(np.where(np.isnan(candidates), np.inf, candidates), axis=1)[:, None, :]
        extrapolate = _pick(finer_bars, best) < _pick(bars, best)
        slope = np.where(extrapolate, _pick(extrapolated, best), _pick(central, best))
        bar = _pick(candidates, best)
        finest = np.maximum(at, 0)
        typical = np.median(np.log(np.nan_to_num(bars, nan=np.inf) + 1e-300), axis=2)
        typical = np.where(steps <= LARGEST_SINGLE, typical, np.inf)
        return Estimate(
            slope=slope,
            bar=np.where(np.isfinite(slope) & np.isfinite(bar), bar, np.inf),
            step=steps[best[:, 0, :]],
            left=_pick(left, finest),
            right=_pick(right, finest),
            jump=np.where(found, jump, 0.0),
            kink=np.where(found, np.where(smooth_again, step_there, 0.0), np.nan),
            low=np.minimum(_pick(left, there), _pick(right, there)) - doubt,
            high=np.maximum(_pick(left, there), _pick(right, there)) + doubt,
            single_step=steps[np.argmin(typical, axis=1)],
            single_bar=np.exp(np.min(typical, axis=1)),
        )


def _pick(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, level, axis=1)[:, 0, :]


def _bars(slopes: np.ndarray, steps: np.ndarray, rounding: np.ndarray, order: int = 1) -> np.ndarray:
    """How far each slope [R, S, M] may be off: as far as neighbours differ, there and at every finer step.

    Rounding of the values makes an error of noise / h (in second differences, h^2): what differs at a finer step then
    counts h_finer / h here. What differs more than the noise at the finest steps lets expect is no noise but something
    of f that the coarser steps have stepped over, and counts in full.
    """
    h = steps[None, :, None] ** order
    differences = np.abs(slopes[:, :-1] - slopes[:, 1:])
    differences = np.where(np.isfinite(differences), differences, np.inf)
    noise = differences * h[:, 1:]
    finest = np.maximum(noise[:, -2:].max(axis=1, keepdims=True), rounding[:, -1:])
    is_noise = noise <= 100 * finest
    spread = _worst_of_finer(np.where(is_noise, noise, 0.0)) / h[:, 1:]
    stepped_over = _worst_of_finer(np.where(is_noise, 0.0, differences))
    bars = np.full(slopes.shape, np.inf)
    bars[:, 1:] = np.maximum(spread, stepped_over) + 2 * rounding[:, 1:] / (BARS * h[:, 1:])
    return bars


def _worst_of_finer(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]


def _kink_level(gap: np.ndarray, noise: np.ndarray, scale: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The finest level, [R, M], where the gap matters, stands above noise and stays when the step grows; else -1."""
    matters = (gap > 1e-4 * scale) & (gap > 10 * noise) & (steps[None, :, None] <= NEAR)
    same = np.abs(gap[:, :-1] - gap[:, 1:]) <= 0.25 * gap[:, 1:]
    stays = np.zeros_like(matters)
    stays[:, 2:] = matters[:, 2:] & same[:, 1:] & same[:, :-1]
    levels = np.arange(gap.shape[1])[None, :, None]
    return np.max(np.where(stays, levels, -1), axis=1)


def estimate_curvature(
    plus: np.ndarray, minus: np.ndarray, here: np.ndarray, steps: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Second derivatives [R, M] along rays from second differences, extrapolated once, and their error bars."""
    with np.errstate(all="ignore"):
        h = steps[None, :, None]
        second = (plus - 2 * here + minus) / h**2
        extrapolated = second.copy()
        extrapolated[:, 1:] += (second[:, 1:] - second[:, :-1]) / ((steps[0] / steps[1]) ** 2 - 1)
        size = np.maximum(np.maximum(np.abs(plus), np.abs(minus)), np.abs(here))
        bars = _bars(extrapolated, steps, 2 * eps * size, order=2)
        best = np.argmin(np.nan_to_num(bars, nan=np.inf), axis=1)[:, None, :]
        return _pick(extrapolated, best), _pick(bars, best)
