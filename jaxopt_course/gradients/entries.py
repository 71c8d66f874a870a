"""Entry by entry: every coordinate, or some, against differences; what does not agree at once is looked into."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxopt_course.gradients.analytic import Gradient
from jaxopt_course.gradients.estimates import BARS, Estimate, estimate_slopes
from jaxopt_course.gradients.numerical import Differences
from jaxopt_course.gradients.rays import Rays
from jaxopt_course.gradients.report import SEVERITY, Verdict

RTOL = 1e-6  # relative error that passes, in float64
RESOLUTION = 5e-4  # a pass is claimed only where an error of this relative size would have been seen
FLOOR = 1e-2  # entries below this part of their leaf's largest are measured against that
CLOSE = 1e-4  # a kink nearer than this, in units of the coordinate's size, is named in the verdict
SWEPT = 512  # rays that are swept at once
MOST_SWEPT = 4096  # and in all, once one of them has failed
MANY = 1000  # entries from which one evaluation for each is tried first, instead of two
PILOTS = 16  # entries that are swept to learn whether one-sided differences will do
ONE_SIDED = 1e-4  # relative error up to which a one-sided difference agrees, if it is typically a tenth of that
CODE = {verdict: np.int8(code) for code, verdict in enumerate(SEVERITY)}
PASS, KINK, INCONCLUSIVE, FAIL = (CODE[v] for v in (Verdict.PASS, Verdict.KINK, Verdict.INCONCLUSIVE, Verdict.FAIL))


class Findings(NamedTuple):
    """For each ray and reading, [R, M]: verdict codes, both slopes, the bar, the step and the relative error."""

    code: np.ndarray
    analytic: np.ndarray
    numerical: np.ndarray
    bar: np.ndarray
    step: np.ndarray
    error: np.ndarray


def judge(analytic: np.ndarray, found: Estimate, floor: np.ndarray, rtol: float) -> Findings:
    """Agreement to `rtol` or to BARS error bars; a pass only where the bars are short enough to have seen an error."""
    with np.errstate(all="ignore"):
        difference = np.abs(analytic - found.slope)
        scale = np.maximum(np.maximum(np.abs(analytic), np.abs(found.slope)), floor)
        scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
        tolerance = np.maximum(rtol * scale, BARS * found.bar)
        resolved = BARS * found.bar <= max(RESOLUTION, rtol) * scale
        code = np.where(
            difference <= tolerance, np.where(resolved | (difference <= rtol * scale), PASS, INCONCLUSIVE), FAIL
        )
        code = np.where(np.isfinite(found.bar), code, INCONCLUSIVE)
        code = np.where((code == FAIL) & (found.step > 1), INCONCLUSIVE, code)  # so far out slopes need not be alike

        # As far as can be told this may be a kink with the gradient on one of its sides.
        code = np.where((code == FAIL) & (found.low <= analytic) & (analytic <= found.high), INCONCLUSIVE, code)
        low, high = np.minimum(found.left, found.right), np.maximum(found.left, found.right)
        between = (analytic >= low - tolerance) & (analytic <= high + tolerance)
        at_kink = (found.kink == 0) & (found.jump > rtol * scale)
        sharp = BARS * found.bar <= RESOLUTION * np.maximum(scale, found.jump)
        code = np.where(at_kink, np.where(~between, FAIL, np.where(sharp, KINK, INCONCLUSIVE)), code)
        code = np.where((code == PASS) & (found.kink > 0) & (found.kink < CLOSE), KINK, code)
        outside = np.maximum(np.maximum(low - analytic, analytic - high), 0)
        error = np.where(at_kink, outside, difference) / scale
    return Findings(code, analytic, found.slope, found.bar, found.step, np.nan_to_num(error, nan=np.inf))


class Leafwise(NamedTuple):
    """Of each coordinate [n]: its leaf and its unit; and of each leaf where its coordinates begin, [L]."""

    leaf: np.ndarray
    unit: np.ndarray
    first: np.ndarray


def leafwise(gradient: Gradient) -> Leafwise:
    parts = gradient.args.parts
    leaves = np.repeat(np.arange(len(parts)), [part.last - part.first for part in parts])
    return Leafwise(leaves, gradient.units, np.array([part.first for part in parts]))


def check_entries(
    differences: Differences,
    gradient: Gradient,
    coordinates: np.ndarray,
    steps: np.ndarray,
    layout: Leafwise,
    rtol: float,
    one_sided: bool = False,
) -> Findings:
    """One central difference for each coordinate at its leaf's step [L]; whatever parts from it is swept over steps.

    Where `one_sided` (every leaf as a whole agrees already) one-sided differences are tried first, at half the cost.
    """
    rays = Rays(differences.ones, coordinates, coordinates + 1)
    unit, leaf = layout.unit[coordinates][:, None], layout.leaf[coordinates]
    if not gradient.has_reverse:
        analytic = gradient.slopes(rays)[0] / unit
        largest = _largest(np.abs(analytic), leaf, len(layout.first))
    else:
        row = gradient.row.T
        analytic, largest = row[coordinates], _largest(np.abs(row), layout.leaf, len(layout.first))
    largest = np.maximum(largest, 1e-4 * largest.max(axis=1, keepdims=True))[leaf]
    floor = FLOOR * largest

    single = one_sided_step(differences, rays, floor * unit) if one_sided and len(coordinates) >= MANY else None
    with np.errstate(all="ignore"):
        if single is not None:
            slopes, gap, step = differences.ahead(rays, single), np.zeros(1), np.full(len(coordinates), single)
        else:
            slopes, gap = differences.central(rays, steps[leaf])
            step = steps[leaf]
        slopes, gap = slopes / unit, np.abs(gap) / unit
        scale = np.maximum(np.maximum(np.abs(analytic), np.abs(slopes)), floor)
        error = np.abs(analytic - slopes) / np.where(scale > 0, scale, 1.0)
        agrees = (error <= (rtol if single is None else ONE_SIDED)) & (
            gap <= 0.1 * np.maximum(np.abs(analytic), largest)
        )
    error = np.nan_to_num(error, nan=np.inf)
    unmeasured, step = np.full(error.shape, np.nan), np.repeat(step[:, None] * unit, error.shape[1], axis=1)
    found = Findings(np.where(agrees, PASS, INCONCLUSIVE), analytic, slopes, unmeasured, step, error)

    by_leaf = [np.flatnonzero(leaf == number) for number in np.unique(leaf)]
    worst = [rows[np.argmax(error[rows].max(axis=1))] for rows in by_leaf]
    suspects = np.setdiff1d(np.flatnonzero(~agrees.all(axis=1)), worst)
    suspects = np.append(worst, suspects[np.argsort(-error[suspects].max(axis=1), kind="stable")]).astype(int)
    for start in range(0, len(suspects), SWEPT):
        rows = suspects[start : start + SWEPT]
        _put(found, rows, look_into(differences, rays, rows, unit, analytic, floor, rtol))
        if (found.code == FAIL).any() and MOST_SWEPT <= start + SWEPT < len(suspects):
            rest = suspects[start + SWEPT :]  # enough is known; what differs grossly counts as wrong
            found.code[rest] = np.where(found.error[rest] > RESOLUTION, FAIL, found.code[rest])
            break
    return found


def one_sided_step(differences: Differences, rays: Rays, floor: np.ndarray) -> float | None:
    """The step at which one-sided differences typically agree with a sweep to ONE_SIDED / 10, if there is one."""
    pilots = np.linspace(0, len(rays.first) - 1, PILOTS).astype(int)
    some, floor = Rays(rays.weights, rays.first[pilots], rays.last[pilots]), floor[pilots]
    plus, minus = differences.both_sides(some, differences.steps)
    found = estimate_slopes(plus, minus, differences.here, differences.steps, differences.eps, floor)
    with np.errstate(all="ignore"):
        ahead = (plus - differences.here) / differences.steps[None, :, None]
        scale = np.maximum(np.abs(found.slope), floor)[:, None]
        error = np.abs(ahead - found.slope[:, None]) / np.where(scale > 0, scale, 1.0)
    typical = np.quantile(np.nan_to_num(error, nan=np.inf).max(axis=2), 0.9, axis=0)
    best = int(np.argmin(typical))
    return float(differences.steps[best]) if typical[best] <= ONE_SIDED / 10 else None


def look_into(
    differences: Differences,
    rays: Rays,
    rows: np.ndarray,
    unit: np.ndarray,
    analytic: np.ndarray,
    floor: np.ndarray,
    rtol: float,
) -> Findings:
    """Sweep some of the rays; those that remain open, once more over all the steps there are."""

    def sweep(rows: np.ndarray, far: bool) -> Findings:
        some = Rays(rays.weights, rays.first[rows], rays.last[rows])
        found = differences.sweep(some, floor[rows] * unit[rows], far=far)
        judged = judge(analytic[rows] * unit[rows], found, floor[rows] * unit[rows], rtol)
        return judged._replace(
            analytic=analytic[rows],
            numerical=judged.numerical / unit[rows],
            bar=judged.bar / unit[rows],
            step=judged.step * unit[rows],
        )

    found = sweep(rows, far=False)
    with np.errstate(all="ignore"):
        unresolved = ~(BARS * found.bar <= RESOLUTION * np.maximum(np.abs(found.numerical), floor[rows]))
    again = np.flatnonzero(((found.code >= INCONCLUSIVE) & unresolved).any(axis=1))
    if again.size:
        second = sweep(rows[again], far=True)
        better = second.bar < found.bar[again]
        _put(found, again, Findings(*(np.where(better, b, a[again]) for a, b in zip(found, second, strict=True))))
    return found


def _put(found: Findings, rows: np.ndarray, better: Findings) -> None:
    for mine, theirs in zip(found, better, strict=True):
        mine[rows] = theirs


def _largest(magnitude: np.ndarray, leaf: np.ndarray, num_leaves: int) -> np.ndarray:
    """The largest finite magnitude in each leaf, [L, M]."""
    largest = np.zeros((num_leaves, magnitude.shape[1]))
    np.maximum.at(largest, leaf, np.where(np.isfinite(magnitude), magnitude, 0.0))
    return largest


def choose_entries(gradient: Gradient, num_checks: int, layout: Leafwise, rng: np.random.Generator) -> np.ndarray:
    """Coordinates for the sparse mode: from every leaf in proportion, its largest gradient and one that is zero."""
    chosen: set[int] = set()
    row = np.abs(gradient.row).max(axis=0) if gradient.has_reverse else None
    for first, last in pairwise([*layout.first, len(layout.leaf)]):
        if first == last:
            continue
        share = max(1, round(num_checks * (last - first) / len(layout.leaf)))
        chosen |= set(first + rng.choice(last - first, min(share, last - first), replace=False))
        if row is not None:
            chosen.add(first + int(np.argmax(row[first:last])))
            zero = np.flatnonzero(row[first:last] == 0)
            chosen |= {first + int(rng.choice(zero))} if zero.size else set()
    return np.array(sorted(chosen))
