"""Where a directional check went wrong: bisection over blocks of the direction, down to single coordinates."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxopt_course.gradients.analytic import Gradient
from jaxopt_course.gradients.directions import Direction
from jaxopt_course.gradients.estimates import BARS
from jaxopt_course.gradients.numerical import Differences
from jaxopt_course.gradients.rays import Rays

MOST_BLOCKS = 64  # of wrong blocks side by side; with more the fault is not a matter of single entries


def localize(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray], first: int, last: int, threshold: float
) -> np.ndarray | None:
    """Find the coordinates in [first, last) that contribute to a sum; None where there are too many to follow.

    `measure(firsts, lasts)` says for some blocks of coordinates what each contributes. It is additive: a block gives
    the sum of what its halves give, so that measuring one half gives the other. k coordinates among n take about
    k log2(n/k) measurements, with all the blocks of one size in one call.
    """
    firsts, lasts = np.array([first]), np.array([last])
    found = measure(firsts, lasts)
    while (lasts - firsts).max() > 1:
        single = lasts - firsts == 1
        middle = (firsts + lasts + 1) // 2
        left = np.where(single, found, 0.0)
        left[~single] = measure(firsts[~single], middle[~single])
        found = np.concatenate([left, np.where(single, 0.0, found - left)])
        firsts, lasts = np.concatenate([firsts, middle]), np.concatenate([middle, lasts])
        keep = np.abs(found) > threshold
        firsts, lasts, found = firsts[keep], lasts[keep], found[keep]
        if not 0 < len(firsts) <= MOST_BLOCKS:
            return None
    return np.sort(firsts)


def wrong_coordinates(
    differences: Differences, gradient: Gradient, direction: Direction, leaf: int, reading: int
) -> np.ndarray | None:
    """The coordinates of a leaf whose analytic gradient is not that of the differences, 2 evaluations a measurement."""
    part, step, norm = differences.args.parts[leaf], direction.step[leaf], direction.norm[leaf, reading]

    def residuals(firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray:
        rays = Rays(direction.weights, firsts, lasts)
        central, _ = differences.central(rays, np.full(len(firsts), step))
        return (central - gradient.slopes(rays)[0])[:, reading]

    rounding = 10 * float(jnp.finfo(gradient.leaves()[leaf].dtype).eps) if gradient.has_reverse else 0.0
    return localize(residuals, part.first, part.last, max(BARS * direction.bar[leaf], max(rounding, 1e-9) * norm))


def kinked_coordinates(differences: Differences, direction: Direction, leaf: int, reading: int) -> np.ndarray | None:
    """The coordinates of a leaf along which f has a kink at the point: there the one-sided slopes are apart."""
    part, step = differences.args.parts[leaf], differences.steps[-3]

    def gaps(firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray:
        return differences.central(Rays(direction.weights, firsts, lasts), np.full(len(firsts), step))[1][:, reading]

    return localize(gaps, part.first, part.last, direction.jump[leaf, reading] / (4 * MOST_BLOCKS))
