"""When two slopes agree, differ, or cannot be told apart, and what excuses a gradient that differs."""

from typing import NamedTuple

import numpy as np

from jaxopt_course.gradients.analytic import Gradient
from jaxopt_course.gradients.estimates import BARS, Estimate
from jaxopt_course.gradients.numerical import Numerical, Rays
from jaxopt_course.gradients.report import CODE, Verdict

PASS, KINK, CONSTANT = CODE[Verdict.PASS], CODE[Verdict.KINK], CODE[Verdict.CONSTANT]
INCONCLUSIVE, FAIL = CODE[Verdict.INCONCLUSIVE], CODE[Verdict.FAIL]
RTOL = 1e-6  # relative error that passes, in float64
RESOLUTION = 5e-4  # a pass is claimed only where an error of this relative size would have been seen
CLOSE = 1e-4  # a kink nearer than this, in units of the coordinate, is named in the verdict


class Findings(NamedTuple):
    """For each entry (or ray) and reading, [R, M]: verdict codes, both slopes, the bar, the step and relative error.

    `noise` [R, M] is that of f, `kinked` where f has a kink at the point, `held` [R] what could not be moved. An
    entry that is INCONCLUSIVE but `negligible` cannot be told from noise and does not matter to f: it is counted, and
    spoils no PASS. `bar` is NaN where an entry was compared at two steps only.
    `single_step` [R] is where one central difference is best.
    """

    code: np.ndarray
    analytic: np.ndarray
    numerical: np.ndarray
    bar: np.ndarray
    step: np.ndarray
    error: np.ndarray
    noise: np.ndarray
    kinked: np.ndarray
    held: np.ndarray
    negligible: np.ndarray
    single_step: np.ndarray

    def rows(self, rows: np.ndarray) -> "Findings":
        return Findings(*(values[rows] for values in self))

    def replaced(self, rows: np.ndarray, better: "Findings") -> "Findings":
        """The same with better findings for some rows."""
        merged = [values.copy() for values in self]
        for mine, theirs in zip(merged, better, strict=True):
            mine[rows] = theirs
        return Findings(*merged)


def judge(analytic: np.ndarray, found: Estimate, floor: np.ndarray, rtol: float, unit: np.ndarray) -> Findings:
    """Agreement to `rtol` or to BARS error bars; a pass only where the bars are short enough to have seen an error.

    The error is relative to the larger of both slopes, and to `floor` where that is larger still (0 for entries).
    """
    with np.errstate(all="ignore"):
        difference = np.abs(analytic - found.slope)
        scale = np.maximum(np.maximum(np.abs(analytic), np.abs(found.slope)), floor)
        tolerance = np.maximum(rtol * scale, BARS * found.bar)
        resolved = (BARS * found.bar <= max(RESOLUTION, rtol) * scale) | ((difference <= rtol * scale) & (scale > 0))
        code = np.where(difference <= tolerance, np.where(resolved, PASS, INCONCLUSIVE), FAIL)
        code = np.where(np.isfinite(found.bar), code, INCONCLUSIVE)
        code = np.where((code == FAIL) & (found.step > unit), INCONCLUSIVE, code)  # slopes that far need not be alike
        # A slope of zero is known where its bar is nothing beside what f varies by within a unit.
        zero = (np.abs(analytic) <= BARS * found.bar) & (np.abs(found.slope) <= BARS * found.bar)
        code = np.where((code == INCONCLUSIVE) & zero & (BARS * found.bar * unit <= RTOL * found.varies), PASS, code)
        code = np.where((analytic == 0) & (found.slope == 0) & (found.varies == 0) & ~found.blocked, CONSTANT, code)

        # As far as can be told this may be a kink with the gradient on one of its sides.
        code = np.where((code == FAIL) & (found.low <= analytic) & (analytic <= found.high), INCONCLUSIVE, code)
        low, high = found.least, found.greatest
        between = (analytic >= low - tolerance) & (analytic <= high + tolerance)
        at_kink = (found.kink == 0) & (found.jump > rtol * scale)
        sharp = BARS * found.bar <= RESOLUTION * np.maximum(scale, found.jump)
        code = np.where(at_kink, np.where(~between, FAIL, np.where(sharp, KINK, INCONCLUSIVE)), code)
        code = np.where((code == PASS) & (found.kink > 0) & (found.kink < CLOSE), KINK, code)
        outside = np.maximum(np.maximum(low - analytic, analytic - high), 0)
        error = np.where(at_kink, outside, difference) / np.where(scale > 0, scale, 1.0)
    held: np.ndarray = np.all(found.blocked, axis=1, keepdims=True)[:, 0]
    error = np.where(held[:, None], 0.0, np.nan_to_num(error, nan=np.inf))
    none = np.zeros(code.shape, bool)
    return Findings(
        code,
        analytic,
        found.slope,
        found.bar,
        found.step,
        error,
        found.noise,
        at_kink,
        held,
        none,
        found.single_step,
    )


def unmeasured(analytic: np.ndarray, *, held: bool) -> Findings:
    """Findings of entries that were not moved, because they cannot be (`held`) or the budget did not reach them."""
    nan, no = np.full(analytic.shape, np.nan), np.zeros(analytic.shape, bool)
    code, error = np.full(analytic.shape, INCONCLUSIVE), np.zeros(analytic.shape)
    return Findings(code, analytic, nan, nan, nan, error, nan, no, np.full(len(analytic), held), no, nan[:, 0])


class Sides(NamedTuple):
    """The gradient in the user's own dtype, of spacing `eps`, and in float64 where that is another and can be had."""

    own: Gradient
    exact: Gradient | None
    eps: float
    rtol: float | None

    @property
    def sharpest(self) -> Gradient:
        return self.exact or self.own

    def tolerance(self, coarse: float) -> float:
        """The relative error that passes: the user's, or that of float64; `coarse` is that of the user's dtype."""
        rtol = RTOL if self.rtol is None else self.rtol
        return rtol if self.exact is not None else max(rtol, coarse)

    def nearby(self, rng: np.random.Generator) -> list[Gradient]:
        """The gradient at two points that are the same to rounding: what differs there is the gradient's own noise."""
        side, gradients = self.sharpest, []
        eps = 4 * np.finfo(np.float64).eps if self.exact is not None else 4 * self.eps
        for _ in range(2):
            moved = []
            for leaf in map(np.asarray, side.args.moving):
                wide = leaf.astype(complex if np.iscomplexobj(leaf) else float)
                wide *= 1 + eps * rng.choice([-1.0, 1.0], leaf.shape)
                moved.append(wide if side.precise else wide.astype(leaf.dtype))
            gradients.append(side.at(moved))
        return gradients


class Trial(NamedTuple):
    """One check: f along rays on the one side, the gradient on the other, and the generator of all that is drawn."""

    numerical: Numerical
    sides: Sides
    rng: np.random.Generator


def excused(trial: Trial, found: Findings, rays: Rays) -> Findings:
    """A difference that the gradient's own rounding explains is no failure, but nothing was proven either.

    At a kink of f the gradient jumps by itself, and nothing is excused.
    """
    rows = np.flatnonzero(((found.code == FAIL) & ~found.kinked).any(axis=1))
    if not rows.size:
        return found
    some = rays.rows(rows)
    slopes = [gradient.slopes(some)[0] for gradient in (trial.sides.sharpest, *trial.sides.nearby(trial.rng))]
    with np.errstate(all="ignore"):
        noise = np.max(np.abs(np.stack(slopes[1:]) - slopes[0]), axis=0)
        explained = np.abs(found.analytic[rows] - found.numerical[rows]) <= BARS * noise
    some_found = found.rows(rows)
    code = np.where((some_found.code == FAIL) & ~some_found.kinked & explained, INCONCLUSIVE, some_found.code)
    return found.replaced(rows, some_found._replace(code=code))


def too_few_digits(found: Findings) -> Findings:
    """Nothing is passed where an error of RESOLUTION is within the rounding of the only gradient there is."""
    return found._replace(code=np.where(found.code <= KINK, INCONCLUSIVE, found.code))


def digits(eps: float) -> int:
    return max(1, round(-np.log10(eps)))


def few_digits_note(sides: Sides) -> str:
    return f"the gradient has only {digits(sides.eps)} digits, and could not be computed with more"
