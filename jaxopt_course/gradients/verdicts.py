"""Verdicts: whether two slopes agree, differ or are indistinguishable, and whether noise explains a difference."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxopt_course.gradients.analytic import Gradient
from jaxopt_course.gradients.estimates import BARS, Estimate, Samples, estimate_slopes
from jaxopt_course.gradients.numerical import Numerical, Rays, whole_ray
from jaxopt_course.gradients.report import CODE, Consistency, Entry, Verdict, entry_at
from jaxopt_course.gradients.subject import Arguments, Leaves, Question, run_plainly

PASS, KINK, CONSTANT = CODE[Verdict.PASS], CODE[Verdict.KINK], CODE[Verdict.CONSTANT]
INCONCLUSIVE, FAIL = CODE[Verdict.INCONCLUSIVE], CODE[Verdict.FAIL]
RTOL = 1e-6  # relative error that passes, in float64
RESOLUTION = 5e-4  # a pass requires that an error of this relative size would have been detected
MAX_LISTED = 100  # most wrong entries that a report names
CLOSE = 1e-4  # a kink closer than this, in units of the coordinate, changes the verdict


class Findings(NamedTuple):
    """For each entry (or ray) and reading, [R, M]: verdict codes, both slopes, the bar, the step and relative error.

    `noise` [R, M]: noise of f; `kinked`: whether f has a kink at the point; `held` [R]: entries that could not be
    moved. An INCONCLUSIVE entry that is `negligible` cannot be distinguished from noise and hardly affects f: it is
    counted, but does not prevent a PASS. `bar` is NaN if an entry was not swept, unless noise alone explains its
    difference. `single_step` [R]: the best step of a single central difference.
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
        """Return these findings with better ones for some rows."""
        merged = [values.copy() for values in self]
        for mine, theirs in zip(merged, better, strict=True):
            mine[rows] = theirs
        return Findings(*merged)


def judge(analytic: np.ndarray, found: Estimate, floor: np.ndarray, rtol: float, unit: np.ndarray) -> Findings:
    """Judge agreement to `rtol` or to BARS error bars; pass only if the bars are short enough to detect an error.

    The error is relative to the larger of both slopes, or to `floor` if that is larger still (0 for entries).
    """
    with np.errstate(all="ignore"):
        difference = np.abs(analytic - found.slope)
        scale = np.maximum(np.maximum(np.abs(analytic), np.abs(found.slope)), floor)
        tolerance = np.maximum(rtol * scale, BARS * found.bar)
        resolved = (BARS * found.bar <= max(RESOLUTION, rtol) * scale) | ((difference <= rtol * scale) & (scale > 0))
        code = np.where(difference <= tolerance, np.where(resolved, PASS, INCONCLUSIVE), FAIL)
        code = np.where(np.isfinite(found.bar), code, INCONCLUSIVE)
        code = np.where((code == FAIL) & (found.step > unit), INCONCLUSIVE, code)  # slopes that far away may differ
        # A slope of zero is established if its bar is negligible relative to the variation of f within a unit.
        zero = (np.abs(analytic) <= BARS * found.bar) & (np.abs(found.slope) <= BARS * found.bar)
        code = np.where((code == INCONCLUSIVE) & zero & (BARS * found.bar * unit <= RTOL * found.varies), PASS, code)
        code = np.where((analytic == 0) & (found.slope == 0) & (found.varies == 0) & ~found.blocked, CONSTANT, code)

        # This may be a kink with the gradient on one of its sides.
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


def judge_entries(samples: Samples, analytic: np.ndarray, rtol: float) -> Findings:
    """Return the findings of a sweep. If f does not change at small steps, these may show only lost digits.

    Then only the larger steps count, with that loss as noise, if they agree with the gradient and show no kink.
    """
    floor, unit = np.zeros(analytic.shape), samples.unit[:, None]
    estimate = estimate_slopes(samples, floor)
    found = judge(analytic, estimate, floor, rtol, unit)
    quantum = samples.quantum
    if not ((found.code >= INCONCLUSIVE) & (quantum > 0)).any():
        return found
    coarse = estimate_slopes(samples, floor, quantum)
    other = judge(analytic, coarse, floor, rtol, unit)
    smooth = np.isnan(estimate.kink) & np.isnan(coarse.kink)
    better = (found.code >= INCONCLUSIVE) & (quantum > 0) & (other.code == PASS) & smooth
    mixed = {
        name: np.where(better, getattr(other, name), getattr(found, name))
        for name in ("code", "numerical", "bar", "step", "error", "noise")
    }
    return found._replace(**mixed)


def wrong_entries(question: Question, coordinates: np.ndarray, found: Findings) -> tuple[Entry, ...]:
    """Return the entries that fail, worst first, at most MAX_LISTED."""
    rows, readings = np.nonzero(found.code == FAIL)
    order = np.argsort(-found.error[rows, readings], kind="stable")[:MAX_LISTED]
    entries = []
    for r, m in zip(rows[order], readings[order], strict=True):
        part = next(part for part in reversed(question.args.parts) if part.first <= coordinates[r])
        values = found.analytic[r, m], found.numerical[r, m], found.error[r, m]
        entries.append(entry_at(part, int(coordinates[r]), values, question.readings.labels[m]))
    return tuple(entries)


def unmeasured(analytic: np.ndarray, *, held: bool) -> Findings:
    """Return findings of entries that were not moved: they cannot be moved (`held`), or the budget was used up."""
    nan, no = np.full(analytic.shape, np.nan), np.zeros(analytic.shape, bool)
    code, error = np.full(analytic.shape, INCONCLUSIVE), np.zeros(analytic.shape)
    return Findings(code, analytic, nan, nan, nan, error, nan, no, np.full(len(analytic), held), no, nan[:, 0])


class Sides(NamedTuple):
    """The gradient in the user's own dtype, of spacing `eps`, and in float64 if it differs and is available."""

    own: Gradient
    exact: Gradient | None
    eps: float
    rtol: float | None

    @property
    def sharpest(self) -> Gradient:
        return self.exact or self.own

    def tolerance(self, coarse: float) -> float:
        """Return the relative error that passes: the user's, or that of float64; `coarse` is for the user's dtype."""
        rtol = RTOL if self.rtol is None else self.rtol
        return rtol if self.exact is not None else max(rtol, coarse)

    def nearby(self, rng: np.random.Generator) -> list[Gradient]:
        """Return the gradient at two points equal up to rounding; differences there are the gradient's own noise."""
        eps = np.finfo(np.float64).eps if self.exact is not None else self.eps
        return [self.sharpest.at(perturbed(self.own.args, eps, rng, self.exact is not None)) for _ in range(2)]


def perturbed(args: Arguments, eps: float, rng: np.random.Generator, precise: bool) -> Leaves:
    """Return parameters equal up to rounding: each entry is moved by four times its relative spacing.

    In float64 a zero is not moved, so that a gradient with a kink at 0 does not jump. In the user's dtype a zero is
    moved by the spacing of its leaf, because rounding inside f has the same effect.
    """
    moved = []
    for leaf, size in zip(map(np.asarray, args.moving), args.sizes, strict=True):
        wide = leaf.astype(complex if np.iscomplexobj(leaf) else float)
        unit = np.where(np.isfinite(wide), np.abs(wide) if precise else np.maximum(np.abs(wide), size), 0.0)
        wide += 4 * eps * unit * rng.choice([-1.0, 1.0], leaf.shape)
        moved.append(wide if precise else wide.astype(leaf.dtype))
    return moved


@dataclass(frozen=True)
class Slack:
    """The allowed difference of values of f computed in several ways: half their digits, or ten times their noise.

    The noise is that of f in its own dtype, of spacing `eps`, at points equal up to rounding. It is needed only for an
    ill-conditioned f, such as some linear algebra, and f is evaluated for it only then.
    """

    own: Gradient
    eps: float

    @cached_property
    def size(self) -> np.ndarray:
        """The scale of the rounding of f, [M]: its value plus its change over a unit."""
        size = np.abs(self.own.question.here) + self.own.slopes(whole_ray(self.own.args, self.own.weights))[1][0]
        return np.maximum(size, max(1e-3 * size.max(), 1e-300))

    @cached_property
    def noise(self) -> np.ndarray:
        question, rng = self.own.question, np.random.default_rng(0)
        apart = []
        for _ in range(3):
            args = question.args._replace(moving=perturbed(question.args, self.eps, rng, precise=False))
            values = np.asarray(question.readings.of(run_plainly(question.title, args)))
            apart.append(np.nan_to_num(np.abs(values - question.here), nan=0.0, posinf=0.0))
        return np.max(apart, axis=0)

    def excess(self, values: np.ndarray) -> float:
        """Return the largest deviation of values from those of f, in units of the allowed difference."""
        apart, allowed = np.abs(values - self.own.question.here), np.sqrt(self.eps) * self.size
        if not (apart <= allowed).all() and np.isfinite(apart).all():
            allowed = np.maximum(allowed, BARS * self.noise)
        return largest_error(apart / allowed)


class Trial(NamedTuple):
    """One check: f along rays, the gradient, the allowed differences, and the random generator."""

    numerical: Numerical
    sides: Sides
    slack: Slack
    rng: np.random.Generator


def excuse_rounding(trial: Trial, found: Findings, rays: Rays) -> Findings:
    """Make failures that the gradient's own rounding explains inconclusive.

    The noise of the gradient then counts in the error bar. At a kink of f the gradient itself jumps, and no failure is
    excused.
    """
    with np.errstate(all="ignore"):
        apart = np.abs(found.analytic - found.numerical)
        differs = np.isfinite(found.bar) & (apart > BARS * found.bar) & (found.code >= INCONCLUSIVE) & ~found.kinked
    rows = np.flatnonzero(differs.any(axis=1))
    if not rows.size:
        return found
    some, mine = rays.rows(rows), found.rows(rows)
    slopes = [gradient.slopes(some)[0] for gradient in (trial.sides.sharpest, *trial.sides.nearby(trial.rng))]
    with np.errstate(all="ignore"):
        noise = np.max(np.abs(np.stack(slopes[1:]) - slopes[0]), axis=0)
        explained = differs[rows] & (apart[rows] <= BARS * noise)
    code, bar = np.where(explained, INCONCLUSIVE, mine.code), np.where(explained, np.maximum(mine.bar, noise), mine.bar)
    return found.replaced(rows, mine._replace(code=code, bar=bar))


def downgrade_passes(found: Findings) -> Findings:
    """Make passes inconclusive: an error of RESOLUTION is within the rounding of the only gradient there is."""
    return found._replace(code=np.where(found.code <= KINK, INCONCLUSIVE, found.code))


def digits(eps: float) -> int:
    return max(1, round(-np.log10(eps)))


def few_digits_note(sides: Sides) -> str:
    return f"the gradient has only {digits(sides.eps)} digits, and could not be computed with more"


def nondeterminism(slack: Slack, numerical: Numerical) -> float:
    """Return the difference of two runs of f at one point. f is run again only if values differ beyond rounding."""
    if not np.array_equal(numerical.here, numerical.again, equal_nan=True):
        return largest_error(np.abs(numerical.here - numerical.again))
    question, outputs = numerical.question, slack.own.outputs
    rounding = 4 * slack.eps * slack.size
    if not outputs or (np.abs(np.asarray(question.readings.of(outputs)) - question.here) <= rounding).all():
        return 0.0
    again = np.asarray(question.readings.of(run_plainly(question.title, question.args)))
    return largest_error(np.where(np.abs(again - question.here) > rounding, np.abs(again - question.here), 0.0))


def compare_without_differences(trial: Trial) -> tuple[Consistency, ...]:
    own, numerical = trial.sides.own, trial.numerical
    rows = []
    side = trial.sides.sharpest
    if side.has_reverse and side.forward is not None:
        rows.append(_forward_against_reverse(trial))
    if side.grad_fn is None and side.has_reverse:
        tolerance = max(1e-8, float(np.sqrt(_eps_of(trial))))
        rows.append(_row("linear in its cotangent", max(side.nonlinearity, 0.0), tolerance))
    allowed = "in units of what rounding allows"
    if own.outputs:
        compiled = np.asarray(numerical.question.readings.of(own.outputs))
        rows.append(_row("compiled against not", trial.slack.excess(compiled), 1.0, allowed))
    if numerical.run_mode.batch > 1:
        rows.append(_row("vectorised against one by one", trial.slack.excess(numerical.here), 1.0, allowed))
    return tuple(rows)


def _forward_against_reverse(trial: Trial) -> Consistency:
    """Compare both modes along one ray, relative to the terms of the slope.

    The two modes round differently, and in ill-conditioned linear algebra by more than any fixed tolerance. If they
    differ, the gradient at two points equal up to rounding shows how much of the difference is noise. If noise does not
    explain it, differences along the ray show whether one of the modes is wrong.
    """
    side, eps = trial.sides.sharpest, _eps_of(trial)
    assert side.forward is not None
    slope, norm = (x[0] for x in side.slopes(whole_ray(side.args, side.weights)))
    tolerance = max(1e-8, float(np.sqrt(eps)))
    with np.errstate(all="ignore"):
        scale = np.maximum(norm, 100 * eps * np.abs(trial.numerical.here) / tolerance)
        apart = np.where(side.forward == slope, 0.0, np.abs(side.forward - slope))
        errors = np.where(apart == 0, 0.0, apart / scale)
    name, error = "forward against reverse mode", largest_error(errors)
    if not np.isfinite(norm).all():
        return Consistency(name, Verdict.INCONCLUSIVE, error, "the slope along all coordinates overflows")
    if error <= tolerance:
        return _row(name, error, tolerance)
    noise = np.full_like(slope, eps * side.args.sizes.max())  # tangents are as large as the parameters
    for there in trial.sides.nearby(trial.rng):
        by_reverse = there.slopes(whole_ray(there.args, there.weights))[0][0]
        by_forward = side.forward if there.forward is None else there.forward
        noise = np.max([noise, np.abs(by_reverse - slope), np.abs(by_forward - side.forward)], axis=0)
    if (apart <= np.maximum(BARS * noise, tolerance * scale)).all():
        return Consistency(name, Verdict.INCONCLUSIVE, error, "within the rounding of the gradient itself")
    found = trial.numerical.sweep(whole_ray(side.args, side.weights), norm[None])
    doubt = BARS * found.bar[0]
    if (np.abs(slope - found.slope[0]) <= doubt).all() and (np.abs(side.forward - found.slope[0]) <= doubt).all():
        return Consistency(name, Verdict.INCONCLUSIVE, error, "differences along the ray cannot decide which is right")
    return _row(name, error, tolerance)


def _eps_of(trial: Trial) -> float:
    return trial.numerical.eps if trial.sides.exact is not None else trial.sides.eps


def _row(name: str, error: float, tolerance: float, detail: str = "") -> Consistency:
    return Consistency(name, Verdict.PASS if error <= tolerance else Verdict.FAIL, float(error), detail)


def largest_error(errors: np.ndarray) -> float:
    return float(np.nan_to_num(errors, nan=np.inf).max())
