r"""What the trials of a line search tell: where to try next, the curvature along the ray, and why nothing was lower.

A trial is an array `[length, value, slope]` of $\phi(t) = f(w + t d)$; the start is a trial of length 0.
"""

from typing import Any

import jax.numpy as jnp

from jaxopt_course.annotations import Array
from jaxopt_course.status import Obstacle, first_true

LONGEST = 1e25  # in first trials: what falls as steeply after that many decades has no minimum on this ray
PROPORTIONAL = 3.0  # rises over two lengths, each divided by its length, that differ by no more, are proportional
DECADES = 100.0  # a bracket whose ends differ by more is divided at the geometric mean


def more_telling(before: Array, trial: Array, start: Array, noise: Array) -> Array:
    """The last two trials that rose although their promised fall far exceeds the rounding of the value, latest first.

    `before`: the same without this trial, `[2, 3]`, NaN where there was none.
    """
    rose = trial[1] > start[1]  # else the step may be below the rounding of the parameters
    tells = jnp.isfinite(trial[1]) & jnp.isfinite(trial[2]) & rose & (-trial[0] * start[2] > 1000 * noise)
    return jnp.where(tells, jnp.stack([trial, before[0]]), before)


def ray_curvature(before: Array, trial: Array, start: Array) -> Array:
    """The change of slope over the length, where it stands out from the rounding of slopes, else the one before."""
    change = trial[2] - start[2]
    tells = jnp.isfinite(change) & (jnp.abs(change) >= 0.5 * jnp.abs(start[2]))
    return jnp.where(tells | jnp.isnan(before), change / trial[0], before)


def obstacle(telling: Array, last: Array, start: Array) -> Array:
    """Judge from the two shortest trials that stand out from rounding why no trial was lower.

    A smooth function that was not given enough trials rises steeply there (SCALE); one whose gradient is wrong rises
    although the slopes are as negative as at the start, in proportion to the length (WRONG_GRADIENT); a rise that is
    out of proportion is rounding inside the objective, such as cancellation, which the rounding of its value hides
    (ROUNDING); else the slope jumps in between (KINK).
    """
    rises, slopes = telling[:, 1] - start[1], telling[:, 2]
    rise, slope = rises[0], slopes[0]
    as_promised = jnp.abs(slopes - start[2]) <= 0.5 * jnp.abs(start[2])
    rates = rises / telling[:, 0]
    proportional = as_promised[1] & (rates[0] <= PROPORTIONAL * rates[1]) & (rates[1] <= PROPORTIONAL * rates[0])
    seen = jnp.isfinite(rise)
    finite = (jnp.isfinite(last[1]) & jnp.isfinite(last[2])) | ~jnp.isfinite(last[0])  # or there was no trial
    cases = [
        (start[2] >= 0, Obstacle.UPHILL),
        (seen & (rise > 0) & as_promised[0] & proportional, Obstacle.WRONG_GRADIENT),
        (seen & (rise > 0) & as_promised[0], Obstacle.ROUNDING),
        (seen & (slope > 100 * jnp.abs(start[2])), Obstacle.SCALE),
        (seen & (rise > 0), Obstacle.KINK),
        (~seen & ~finite, Obstacle.NOT_FINITE),
    ]
    return first_true(cases, Obstacle.ROUNDING)


def falls_straight(trial: Array, start: Array, first: Array) -> Array:
    """Whether the value fell over 25 decades of t, as far as the slope promised, and the slope has not risen."""
    fall = start[1] - trial[1]
    return (trial[0] >= LONGEST * first) & (trial[2] <= start[2]) & (fall >= -0.5 * trial[0] * start[2])


def largest_factor(num_evals: Array, dtype: Any) -> Array:
    """The largest factor between two trials: 10 for the first two, then squared from trial to trial, 1e16 at most."""
    return (10.0 ** jnp.clip(2.0 ** (num_evals - 2).astype(dtype), 1, 16)).astype(dtype)


def inside(low: Array, high: Array, num_evals: Array, noise: Array) -> Array:
    """Where the cubic through both ends is least, not too near to either; nearer to the start from trial to trial."""
    width, halve = high[0] - low[0], num_evals % 3 == 0
    nearest = jnp.where(low[0] > 0, 0.1, 1 / largest_factor(num_evals, width.dtype))
    part = jnp.clip(least_between(low, high, noise), nearest, 0.9)
    part = jnp.where(jnp.isfinite(part + high[1]), part, jnp.minimum(0.2, 2 * nearest))
    decades = (low[0] > 0) & (high[0] > DECADES * low[0])
    middle = jnp.where(decades, (jnp.sqrt(low[0]) * jnp.sqrt(high[0]) - low[0]) / width, 0.5)
    return low[0] + width * jnp.where(halve, middle, part)


def least_between(a: Array, b: Array, noise: Array) -> Array:
    """Where the cubic through two trials is least, as a part of the way from a to b.

    Where all that the slopes promise on the way is below the rounding of the value, values tell nothing: the slopes
    alone then tell where a parabola is least.
    """
    width = b[0] - a[0]
    slope_a, slope_b = a[2] * width, b[2] * width
    z = slope_a + slope_b - 3 * (b[1] - a[1])
    root = jnp.sqrt(jnp.maximum(z * z - slope_a * slope_b, 0))
    cubic = 1 - (slope_b + root - z) / (slope_b - slope_a + 2 * root)
    lost = (jnp.maximum(jnp.abs(slope_a), jnp.abs(slope_b)) <= noise) & (slope_a < 0) & (slope_b > 0)
    return jnp.where(lost, slope_a / (slope_a - slope_b), cubic)


def outwards(low: Array, trial: Array, num_evals: Array) -> Array:
    """Where the slope would vanish if it went on as from low to trial: one stride further or up to the bound."""
    stride, most = trial[0] - low[0], largest_factor(num_evals, trial.dtype) - 1
    secant = trial[2] / (low[2] - trial[2])
    return trial[0] + stride * jnp.where(trial[2] > low[2], jnp.clip(secant, 1, most), most)
