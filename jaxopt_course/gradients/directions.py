"""Along random directions: a few slopes that hold every coordinate at once, leaf by leaf."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxopt_course.gradients.analytic import Gradient
from jaxopt_course.gradients.entries import FAIL, INCONCLUSIVE, KINK, RESOLUTION, Findings, judge
from jaxopt_course.gradients.numerical import Differences
from jaxopt_course.gradients.rays import UNIT, Rays
from jaxopt_course.gradients.subject import Arguments, Leaves


def random_weights(args: Arguments, rng: np.random.Generator) -> Leaves:
    """A random sign and a random size between 2/3 and 4/3 for each coordinate.

    With signs alone two equal errors would cancel in every other direction; with sizes they hardly ever do.
    """
    weights = []
    for part in args.parts:
        shape = (2, *part.shape) if part.is_complex else part.shape
        bits = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8)
        weight = (bits & 63).view(np.int8)
        weight += np.int8(2 * UNIT // 3)
        np.negative(weight, out=weight, where=bits < 128)
        weights.append(jnp.asarray(weight.reshape(shape)))
    return weights


def leaf_rays(args: Arguments, weights: Leaves) -> Rays:
    """One ray for each leaf."""
    return Rays(weights, np.array([part.first for part in args.parts]), np.array([part.last for part in args.parts]))


class Direction(NamedTuple):
    weights: Leaves
    found: Findings  # [L, M]
    norm: np.ndarray  # [L, M]: how large a slope along this ray typically is
    step: np.ndarray  # [L]: at which one central difference is best
    bar: np.ndarray  # [L]: of that difference
    jump: np.ndarray  # [L, M]: of the slope at the point, where that hides what is looked for


def check_directions(
    differences: Differences, gradient: Gradient, directions: list[Leaves], rtol: float
) -> list[Direction]:
    """Slopes along one ray for each leaf and direction, against a full sweep of differences.

    The error is relative to the root of the sum of the squared terms of the slope, not to the slope itself, which may
    be small by chance.
    """
    checked = []
    slopes = [gradient.slopes(leaf_rays(differences.args, weights)) for weights in directions]
    gradient.put_away()
    for weights, (analytic, norm) in zip(directions, slopes, strict=True):
        rays = leaf_rays(differences.args, weights)
        estimate = differences.sweep(rays, norm)
        found = judge(analytic, estimate, norm, rtol)
        # A slope that jumps by more than the errors looked for says nothing of them.
        hides = (found.code == KINK) & (estimate.kink == 0) & (estimate.jump > RESOLUTION * norm)
        found = found._replace(code=np.where(hides, INCONCLUSIVE, found.code))
        perhaps = (found.code == INCONCLUSIVE) & (estimate.low <= analytic) & (analytic <= estimate.high)
        jump = np.where(hides, estimate.jump, np.where(perhaps, estimate.high - estimate.low, 0.0))
        checked.append(Direction(weights, found, norm, estimate.single_step, estimate.single_bar, jump))
    return checked


def failing(directions: list[Direction], leaf: int) -> Direction | None:
    """The direction in which a leaf fails worst."""
    failed = [d for d in directions if (d.found.code[leaf] == FAIL).any()]
    return max(
        failed, key=lambda d: float(np.where(d.found.code[leaf] == FAIL, d.found.error[leaf], 0).max()), default=None
    )
