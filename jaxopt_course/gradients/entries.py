"""Checks of single entries: each coordinate separately, in its own unit and relative to its own noise."""

from typing import NamedTuple

import numpy as np

from jaxopt_course.gradients.estimates import BARS, Samples
from jaxopt_course.gradients.numerical import Numerical
from jaxopt_course.gradients.report import SEVERITY, Entry, LeafReport, Verdict, entry_at
from jaxopt_course.gradients.shortcuts import check_groups, compare
from jaxopt_course.gradients.subject import Part, Question, entries_at, units_at
from jaxopt_course.gradients.verdicts import (
    CONSTANT,
    FAIL,
    INCONCLUSIVE,
    KINK,
    RESOLUTION,
    Findings,
    Trial,
    digits,
    downgrade_passes,
    excuse_rounding,
    few_digits_note,
    judge_entries,
    unmeasured,
    wrong_entries,
)

MAX_SWEPT_ALL = 64  # up to this many entries, all are swept
PILOTS = 4  # entries of each leaf that are swept first, to find good steps for the others
SWEEP_SIZE = 512  # entries swept at once; also the total once one entry has failed
EXCUSABLE_ERROR = 1e-2  # largest relative error of a gradient in its own dtype that its noise may explain
SMALL_ENTRY = 1e-2  # an entry smaller than this fraction of its unit needs steps relative to its own size
MAX_RESWEPT = 128  # most entries swept over more steps if the first sweep did not settle them


class CheckedEntries(NamedTuple):
    """Findings at some coordinates [R], their units [R], and notes for the report."""

    coordinates: np.ndarray
    unit: np.ndarray
    found: Findings
    notes: tuple[str, ...]


def by_entries(trial: Trial, coordinates: np.ndarray) -> CheckedEntries:
    """Check each of the coordinates separately."""
    numerical, sides = trial.numerical, trial.sides
    unit = units_at(numerical.question.args, coordinates)
    analytic = sides.sharpest.slopes(numerical.single(coordinates))[0]
    tolerance = sides.tolerance(np.sqrt(sides.eps))
    found = unmeasured(analytic, held=True)
    movable = np.flatnonzero(unit > 0)
    if movable.size:
        some = coordinates[movable]
        found = found.replaced(movable, _check_entries(trial, some, analytic[movable], tolerance))
    found = excuse_rounding(trial, found, numerical.single(coordinates))
    notes: list[str] = []
    size = _size_of_f(numerical, found, unit)
    found = _mark_negligible(numerical, found, unit, size)
    if sides.exact is not None:
        found, notes = _lost_digits(trial, CheckedEntries(coordinates, unit, found, ()), size)
    elif tolerance > RESOLUTION and sides.rtol is None:
        found, notes = downgrade_passes(found), [few_digits_note(sides)]
    return CheckedEntries(coordinates, unit, found, (*notes, *_notes(numerical, found)))


def _check_entries(trial: Trial, coordinates: np.ndarray, analytic: np.ndarray, rtol: float) -> Findings:
    """Sweep all entries if there are few. Otherwise sweep a few of each leaf, and check the others in groups.

    Entries that the groups do not settle are compared at two steps, and those that differ there are swept.
    """
    numerical = trial.numerical
    if len(coordinates) <= MAX_SWEPT_ALL:
        return sweep(numerical, coordinates, analytic, rtol)
    parts = numerical.question.args.parts
    leaf = np.searchsorted([part.last for part in parts], coordinates, side="right")
    pilots = np.concatenate([_pilots(np.flatnonzero(leaf == k), analytic) for k in np.unique(leaf)])
    swept = sweep(numerical, coordinates[pilots], analytic[pilots], rtol)
    first = np.full(len(parts), np.inf)
    unit = units_at(numerical.question.args, coordinates)
    np.minimum.at(first, leaf[pilots], np.nan_to_num(swept.single_step / unit[pilots], nan=np.inf))
    rest = np.setdiff1d(np.arange(len(coordinates)), pilots)
    grouped = check_groups(numerical, coordinates[rest], analytic[rest], unit[rest], rtol, trial.rng)
    found = unmeasured(analytic, held=False).replaced(rest, grouped).replaced(pilots, swept)
    rest = rest[(grouped.code >= INCONCLUSIVE).any(axis=1)][: numerical.affordable(4)]
    if not rest.size:
        return found
    noise = np.nan_to_num(swept.noise, nan=np.inf).max(axis=0)
    quick = compare(numerical, coordinates[rest], analytic[rest], first[leaf[rest]], noise, rtol)
    found = found.replaced(rest, quick)
    suspects = rest[(quick.code >= INCONCLUSIVE).any(axis=1)]
    with np.errstate(all="ignore"):
        signal = np.nan_to_num(np.abs(analytic[suspects]).max(axis=1) * unit[suspects])
    within = np.isfinite(found.bar[suspects]).all(axis=1)  # differ within noise: last, the largest signal first
    suspects = suspects[np.lexsort((np.where(within, -signal, -found.error[suspects].max(axis=1)), within))]
    return _sweep_suspects(numerical, coordinates, found, suspects, rtol)


def _pilots(rows: np.ndarray, analytic: np.ndarray) -> np.ndarray:
    """Return the entry with the largest gradient, and some at equal distances."""
    largest = rows[np.argmax(np.nan_to_num(np.abs(analytic[rows]).max(axis=1)))]
    return np.unique(np.append(rows[np.linspace(0, len(rows) - 1, PILOTS - 1).astype(int)], largest))


def _sweep_suspects(
    numerical: Numerical, coordinates: np.ndarray, found: Findings, suspects: np.ndarray, rtol: float
) -> Findings:
    """Sweep entries that differ, in the given order: the worst first, those that may differ by noise alone last.

    Once one entry has failed, others that differ by a large error also count as wrong. If no result was possible for
    SWEEP_SIZE entries, the precision of f does not suffice, and the remaining entries are not swept.
    """
    for start in range(0, len(suspects), SWEEP_SIZE):
        rows = suspects[start : start + SWEEP_SIZE][: numerical.affordable(2 * len(numerical.steps))]
        if rows.size:
            found = found.replaced(rows, sweep(numerical, coordinates[rows], found.analytic[rows], rtol))
        rest = np.setdiff1d(suspects[start:], rows)
        if rest.size and (found.code == FAIL).any():
            gross = found.rows(rest)
            gross = gross._replace(code=np.where(gross.error > RESOLUTION, FAIL, gross.code))
            return found.replaced(rest, gross)
        out_of_budget = len(rows) < len(suspects[start : start + SWEEP_SIZE])
        if out_of_budget or (found.code[rows] == INCONCLUSIVE).any(axis=1).all():
            break
    return found


def sweep(numerical: Numerical, coordinates: np.ndarray, analytic: np.ndarray, rtol: float) -> Findings:
    """Sweep each coordinate over all steps in its unit, and unsettled ones over more steps of other sizes."""
    rows = min(len(coordinates), max(1, numerical.affordable(2 * len(numerical.steps))))
    found = unmeasured(analytic, held=False)
    unit = units_at(numerical.question.args, coordinates)
    per_chunk = max(1, 2**22 // (analytic.shape[1] * 2 * len(numerical.steps)))
    for start in range(0, rows, per_chunk):
        at = np.arange(start, min(start + per_chunk, rows))
        samples = numerical.samples(numerical.single(coordinates[at]), numerical.steps * unit[at, None], unit[at])
        found = found.replaced(at, _judge_and_resweep(numerical, coordinates[at], samples, analytic[at], rtol))
    return found


def _judge_and_resweep(
    numerical: Numerical, coordinates: np.ndarray, samples: Samples, analytic: np.ndarray, rtol: float
) -> Findings:
    unit = samples.unit
    found = judge_entries(samples, analytic, rtol)
    unsettled = np.flatnonzero((found.code >= INCONCLUSIVE).any(axis=1) & ~found.held)
    unsettled = unsettled[np.argsort(-found.code[unsettled].max(axis=1), kind="stable")]  # failed entries first
    again = unsettled[: min(MAX_RESWEPT, numerical.affordable(2 * len(numerical.steps)))]
    if again.size:
        steps = second_steps(numerical, coordinates[again], analytic[again], unit[again])
        more = numerical.samples(numerical.single(coordinates[again]), steps, unit[again])
        better = judge_entries(samples.rows(again).merged(more), analytic[again], rtol)
        # If only steps beyond the unit give a result, the first sweep is kept.
        stands = (better.code == INCONCLUSIVE) & (better.step > unit[again, None])
        mixed = zip(found.rows(again), better, strict=True)
        found = found.replaced(again, Findings(*(np.where(stands, a, b) if a.ndim > 1 else b for a, b in mixed)))
    # If the unit is far above an entry's own size, the steps may have sampled only an oscillation.
    unsure = np.setdiff1d(unsettled[samples.own[unsettled] < SMALL_ENTRY * unit[unsettled]], again)
    code = found.code.copy()
    code[unsure] = np.minimum(code[unsure], INCONCLUSIVE)
    return found._replace(code=code)


def second_steps(numerical: Numerical, coordinates: np.ndarray, analytic: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return more steps [R, S] of three kinds, in decreasing order.

    Steps beyond the unit, up to the length over which the slope changes f by its own size: if f is that flat, only
    large steps show its slope. Steps below the entry's own size, if that is much less than its unit. And steps between
    those of the first sweep.
    """
    own = np.abs(entries_at(numerical.question.args, coordinates))
    with np.errstate(all="ignore"):
        reveals = np.abs(numerical.here).max() / np.abs(analytic).max(axis=1)
    reveals = np.where(np.isfinite(reveals) & (reveals > 0), reveals, 2.0**25 * unit)
    far = np.clip(reveals, 2.0**6 * unit, 2.0**40 * unit)
    small = (own > 0) & (own < SMALL_ENTRY * unit)
    count = len(numerical.steps)
    top, fall = np.where(small, own, unit * np.exp(-1.0)) / 2, np.log(numerical.steps[0] / numerical.steps[-1])
    up = np.geomspace(far, 2 * unit, 6, axis=1)
    down = np.geomspace(top, top * np.exp(-fall), count - 6, axis=1)
    return np.concatenate([up, down], axis=1)


def _size_of_f(numerical: Numerical, found: Findings, unit: np.ndarray) -> np.ndarray:
    """Return the scale of each reading, [M]: its value, or its change when an entry changes by its unit, if larger."""
    with np.errstate(all="ignore"):
        moves = np.nan_to_num(np.abs(found.numerical) * unit[:, None], nan=0.0, posinf=0.0)
    return np.maximum(np.abs(numerical.here), moves.max(axis=0, initial=0.0))


def _mark_negligible(numerical: Numerical, found: Findings, unit: np.ndarray, size: np.ndarray) -> Findings:
    """Mark inconclusive entries as negligible if they are hidden by noise because f hardly depends on them.

    Rounding makes a slope uncertain by about eps |f| / h, where the step h may be a thousandth of the unit. If the
    uncertainty over a whole unit is within that (or within a millionth of f, for a more precise f), it is attributed
    to rounding alone.
    """
    small = min(max(1e-6, 1e3 * numerical.eps), 1e-2)
    with np.errstate(all="ignore"):
        within = BARS * found.bar * unit[:, None] <= small * size
        within &= np.abs(found.analytic - found.numerical) <= BARS * found.bar
    return found._replace(negligible=(found.code == INCONCLUSIVE) & within & ~found.held[:, None])


def _lost_digits(trial: Trial, checked: CheckedEntries, size: np.ndarray) -> tuple[Findings, list[str]]:
    """Find entries whose gradient is right in float64 but not in the user's dtype.

    Rounding that is small relative to f (a few eps of f in a whole unit) is due to cancellation, and is only counted.
    Errors up to EXCUSABLE_ERROR may be explained by the noise of the gradient in that dtype, because ill-conditioned
    linear algebra has no more digits.
    """
    found, sides = checked.found, trial.sides
    own = sides.own.slopes(trial.numerical.single(checked.coordinates))[0]
    with np.errstate(all="ignore"):
        apart = np.abs(own - found.analytic)
        error = apart / np.maximum(np.maximum(np.abs(own), np.abs(found.analytic)), np.finfo(float).tiny)
        lost = (found.code <= KINK) & ~(error <= np.sqrt(sides.eps)) & (apart > 0) & ~found.held[:, None]
        small = apart * checked.unit[:, None] <= 4 * sides.eps * size
        if (lost & ~small & (error <= EXCUSABLE_ERROR)).any():
            noise = _noise_of_own(trial, checked, own)
            lost &= small | ~((error <= EXCUSABLE_ERROR) & (apart <= BARS * noise))
    if not lost.any():
        return found, []
    note = (
        f"{int(lost.any(axis=1).sum()):,} entries are right in float64, but off by up to {error[lost].max():.2g} "
        f"(relative) in the dtype of params, which keeps {digits(sides.eps)} digits: rounding, or code that depends "
        "on the dtype"
    )
    code = np.where(lost, INCONCLUSIVE, found.code)
    return found._replace(code=code, negligible=found.negligible | (lost & small)), [note]


def _noise_of_own(trial: Trial, checked: CheckedEntries, own: np.ndarray) -> np.ndarray:
    """Return by how much the gradient in the user's dtype differs at points that are equal up to rounding, [R, M]."""
    sides = trial.sides._replace(exact=None)
    rays = trial.numerical.single(checked.coordinates)
    return np.max([np.abs(near.slopes(rays)[0] - own) for near in sides.nearby(trial.rng)], axis=0)


def _notes(numerical: Numerical, found: Findings) -> list[str]:
    notes = []
    doubtful = (found.code == INCONCLUSIVE) & ~found.held[:, None]
    if count := int((doubtful & found.negligible).any(axis=1).sum()):
        notes.append(f"{count:,} of the entries cannot be distinguished from the noise of f, and have no verdict")
    if unreached := int((doubtful & np.isnan(found.numerical)).any(axis=1).sum()):
        notes.append(
            f"{unreached:,} of the entries were not reached in {numerical.evaluations:,} evaluations: raise max_evals, "
            'or use mode="directional"'
        )
    if unswept := int(
        (np.isnan(found.bar) & ~np.isnan(found.numerical) & (found.code >= INCONCLUSIVE)).any(axis=1).sum()
    ):
        notes.append(f"{unswept:,} of the entries that differ were not examined: there may be more wrong ones")
    if (
        int((doubtful & ~found.negligible & ~np.isnan(found.numerical)).any(axis=1).sum())
        and not (found.code == FAIL).any()
    ):
        notes.append(_advice(numerical, int(doubtful.any(axis=1).sum())))
    if kinks := int((found.code == KINK).any(axis=1).sum()):
        notes.append(f"{kinks:,} of the entries lie at a kink of f or close to one")
    if held := int(found.held.sum()):
        notes.append(f"{held:,} of the entries are not finite, or cannot be moved to both sides: they were held fixed")
    if len(found.code) < numerical.question.args.num_coordinates:
        total = numerical.question.args.num_coordinates
        notes.append(
            f"{len(found.code):,} of {total:,} entries were checked: a single wrong one is missed with probability "
            f"{1 - len(found.code) / total:.2%}"
        )
    return notes


def _advice(numerical: Numerical, count: int) -> str:
    """Return advice for the case that the values of f have too few digits for single entries."""
    each, leaves = 2 * len(numerical.steps), len(numerical.question.args.parts)
    return (
        f"f keeps {digits(numerical.eps)} digits, which do not suffice for {count:,} single entries; "
        f'mode="directional" needs fewer of them, and {2 * each * leaves:,} evaluations: {each} for each of 2 '
        f"directions and {leaves:,} {'leaf' if leaves == 1 else 'leaves'}"
    )


def summarize_entries(question: Question, checked: CheckedEntries) -> tuple[tuple[LeafReport, ...], tuple[Entry, ...]]:
    """Return a record for each leaf, and the wrong entries, worst first."""
    leaves = []
    for part in question.args.parts:
        rows = np.flatnonzero((checked.coordinates >= part.first) & (checked.coordinates < part.last))
        if not rows.size:
            nothing = Entry(part.path, (), 0.0, 0.0, 0.0)
            leaves.append(LeafReport(part.path, Verdict.PASS, part.size, 0, 0, 0.0, 0.0, nothing, 0.0, 0.0))
            continue
        some = CheckedEntries(checked.coordinates[rows], checked.unit[rows], checked.found.rows(rows), ())
        leaves.append(_leaf(question, part, some))
    return tuple(leaves), wrong_entries(question, checked.coordinates, checked.found)


def _leaf(question: Question, part: Part, checked: CheckedEntries) -> LeafReport:
    found = checked.found
    code = _code_of(found)
    row, reading = _worst(found, code)
    at = found.analytic[row, reading], found.numerical[row, reading], found.error[row, reading]
    pairs = 2 if part.is_complex and len(found.code) > part.size else 1  # coordinates of an entry
    apart = np.abs(found.analytic - found.numerical)[~found.held]
    doubtful = (found.code == INCONCLUSIVE).any(axis=1) & ~found.held
    return LeafReport(
        path=part.path,
        verdict=SEVERITY[code],
        entries=part.size,
        checked=len(found.code) // pairs,
        wrong=int((found.code == FAIL).any(axis=1).sum()),
        absolute_error=float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0)),
        relative_error=float(at[2]),
        worst=entry_at(part, int(checked.coordinates[row]), at, question.readings.labels[int(reading)]),
        error_bar=float(found.bar[row, reading]),
        step=float(found.step[row, reading]),
        inconclusive=-(-int(doubtful.sum()) // pairs),
        unmoved=-(-int(((found.code == CONSTANT).all(axis=1) & ~found.held).sum()) // pairs),
        held=-(-int(found.held.sum()) // pairs),
    )


def _code_of(found: Findings) -> int:
    """Return the verdict of a leaf. Entries that were held or are negligible do not affect it.

    If no other entry remains, it is CONSTANT if no entry measurably moves f, else INCONCLUSIVE.
    """
    code = found.code[~found.held]
    negligible = found.negligible[~found.held]
    counted = code[~negligible & (code != CONSTANT)]
    if counted.size:
        return int(counted.max())
    with np.errstate(all="ignore"):
        zero = np.maximum(np.abs(found.analytic), np.abs(found.numerical)) <= BARS * found.bar
    return int(CONSTANT if (zero[~found.held] | (code == CONSTANT)).all() else INCONCLUSIVE)


def _worst(found: Findings, code: int) -> tuple[int, int]:
    """Return the entry with the largest error among those that determine the verdict; preferably with an error bar."""
    rank = np.where((found.code == code) & ~found.held[:, None], np.nan_to_num(found.error, nan=np.inf), -1.0)
    rank = np.where(np.isfinite(found.bar) | (rank < 0), rank, rank - 2.0)
    row, reading = np.unravel_index(np.argmax(rank), rank.shape)
    return int(row), int(reading)
