r"""Analysis of line-search trials: the next trial, the curvature along the ray, and the cause of a failure.

A trial is an array `[length, value, slope]` of $\phi(t) = f(w + t d)$; the start is a trial of length 0.
"""

from typing import Any

import jax.numpy as jnp

from jaxopt_course.annotations import Array
from jaxopt_course.status import Obstacle, first_true

UNBOUNDED_LENGTH = 1e25  # times the first length: if the value still falls as steeply there, it has no minimum
PROPORTIONAL_FACTOR = 3.0  # rises are proportional to length if their ratios to length differ by at most this factor
WIDE_BRACKET = 100.0  # ratio of the ends above which a bracket is divided at the geometric mean


def informative_trials(before: Array, trial: Array, start: Array, noise: Array) -> Array:
    """Return the last two trials that rose although their predicted fall far exceeds rounding, latest first.

    `before`: the result before this trial, `[2, 3]`, NaN for missing trials.
    """
    rose = trial[1] > start[1]  # else the step may be below the rounding of the parameters
    is_informative = jnp.isfinite(trial[1]) & jnp.isfinite(trial[2]) & rose & (-trial[0] * start[2] > 1000 * noise)
    return jnp.where(is_informative, jnp.stack([trial, before[0]]), before)


def ray_curvature(before: Array, trial: Array, start: Array) -> Array:
    """Return the change of slope divided by the length if it exceeds the rounding of slopes, else `before`."""
    change = trial[2] - start[2]
    is_informative = jnp.isfinite(change) & (jnp.abs(change) >= 0.5 * jnp.abs(start[2]))
    return jnp.where(is_informative | jnp.isnan(before), change / trial[0], before)


def obstacle(informative: Array, last: Array, start: Array) -> Array:
    """Return the likely reason why no trial was lower, from the two shortest trials that exceed rounding.

    A smooth function that needed more trials rises steeply there (SCALE). If the gradient is wrong, the value rises in
    proportion to the length although the slopes are as negative as at the start (WRONG_GRADIENT). A rise that is not
    proportional is rounding inside the objective, such as cancellation, which the rounding of its value does not show
    (ROUNDING). Otherwise the slope jumps in between (KINK).
    """
    rises, slopes = informative[:, 1] - start[1], informative[:, 2]
    rise, slope = rises[0], slopes[0]
    as_promised = jnp.abs(slopes - start[2]) <= 0.5 * jnp.abs(start[2])
    rates = rises / informative[:, 0]
    proportional = (
        as_promised[1] & (rates[0] <= PROPORTIONAL_FACTOR * rates[1]) & (rates[1] <= PROPORTIONAL_FACTOR * rates[0])
    )
    seen = jnp.isfinite(rise)
    finite = (jnp.isfinite(last[1]) & jnp.isfinite(last[2])) | ~jnp.isfinite(last[0])  # true if there was no trial
    cases = [
        (start[2] >= 0, Obstacle.UPHILL),
        (seen & (rise > 0) & as_promised[0] & proportional, Obstacle.WRONG_GRADIENT),
        (seen & (rise > 0) & as_promised[0], Obstacle.ROUNDING),
        (seen & (slope > 100 * jnp.abs(start[2])), Obstacle.SCALE),
        (seen & (rise > 0), Obstacle.KINK),
        (~seen & ~finite, Obstacle.NOT_FINITE),
    ]
    return first_true(cases, Obstacle.ROUNDING)


def falls_without_bound(trial: Array, start: Array, first: Array) -> Array:
    """Whether the value fell over 25 decades of t by as much as the slope predicts, and the slope did not rise."""
    fall = start[1] - trial[1]
    return (trial[0] >= UNBOUNDED_LENGTH * first) & (trial[2] <= start[2]) & (fall >= -0.5 * trial[0] * start[2])


def largest_factor(num_evals: Array, dtype: Any) -> Array:
    """Return the largest factor between two trials: 10 for the first two, then squared each time, at most 1e16."""
    return (10.0 ** jnp.clip(2.0 ** (num_evals - 2).astype(dtype), 1, 16)).astype(dtype)


def interpolate(low: Array, high: Array, num_evals: Array, noise: Array) -> Array:
    """Return the minimizer of the cubic through both ends of the bracket, at a distance from both ends.

    The distance allowed from the start decreases from trial to trial. Every third trial divides the bracket instead.
    """
    width, halve = high[0] - low[0], num_evals % 3 == 0
    nearest = jnp.where(low[0] > 0, 0.1, 1 / largest_factor(num_evals, width.dtype))
    part = jnp.clip(cubic_minimizer(low, high, noise), nearest, 0.9)
    part = jnp.where(jnp.isfinite(part + high[1]), part, jnp.minimum(0.2, 2 * nearest))
    decades = (low[0] > 0) & (high[0] > WIDE_BRACKET * low[0])
    middle = jnp.where(decades, (jnp.sqrt(low[0]) * jnp.sqrt(high[0]) - low[0]) / width, 0.5)
    return low[0] + width * jnp.where(halve, middle, part)


def cubic_minimizer(a: Array, b: Array, noise: Array) -> Array:
    """Return the minimizer of the cubic through two trials, as a fraction of the distance from a to b.

    If the change predicted by the slopes is below the rounding of the value, the values are not informative, and the
    minimizer of the parabola through the two slopes is returned.
    """
    width = b[0] - a[0]
    slope_a, slope_b = a[2] * width, b[2] * width
    z = slope_a + slope_b - 3 * (b[1] - a[1])
    root = jnp.sqrt(jnp.maximum(z * z - slope_a * slope_b, 0))
    cubic = 1 - (slope_b + root - z) / (slope_b - slope_a + 2 * root)
    lost = (jnp.maximum(jnp.abs(slope_a), jnp.abs(slope_b)) <= noise) & (slope_a < 0) & (slope_b > 0)
    return jnp.where(lost, slope_a / (slope_a - slope_b), cubic)


def extrapolate(low: Array, trial: Array, num_evals: Array) -> Array:
    """Extrapolate the slope linearly from `low` and `trial` to 0: between one stride further and the largest factor."""
    stride, most = trial[0] - low[0], largest_factor(num_evals, trial.dtype) - 1
    secant = trial[2] / (low[2] - trial[2])
    return trial[0] + stride * jnp.where(trial[2] > low[2], jnp.clip(secant, 1, most), most)
