"""Checks along random directions, leaf by leaf, and bisection of a failed leaf to find its wrong entries."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import ArrayLike
from jaxopt_course.gradients.estimates import BARS, estimate_slopes
from jaxopt_course.gradients.numerical import Numerical, Rays, leaf_rays
from jaxopt_course.gradients.report import SEVERITY, Entry, LeafReport, Verdict
from jaxopt_course.gradients.subject import Leaves, Question, units_at
from jaxopt_course.gradients.verdicts import (
    CONSTANT,
    FAIL,
    INCONCLUSIVE,
    KINK,
    PASS,
    RESOLUTION,
    Findings,
    Trial,
    downgrade_passes,
    excuse_rounding,
    few_digits_note,
    judge,
    wrong_entries,
)

MAX_BLOCKS = 64  # most wrong blocks at one level; with more, the error is not one of single entries
SAMPLE_SIZE = 32  # entries checked if too many are wrong to be found one by one
KINK_STEP = 64.0  # step in square roots of eps, at which one-sided slopes differ at a kink, but hardly elsewhere
FLOOR = 1e-2  # entries below this fraction of their leaf's typical gradient are not detected along a direction either
NEGLIGIBLE = 1e-6  # of the size of f: a slope known to be below this counts as 0
Outcome = tuple[tuple[LeafReport, ...], tuple[Entry, ...], list[str]]


class Direction(NamedTuple):
    """Slopes along one ray for each leaf."""

    weights: Leaves
    found: Findings  # [L, M]
    norm: np.ndarray  # [L, M]: typical size of a slope along this ray
    step: np.ndarray  # [L]: the best step of a single central difference
    bar: np.ndarray  # [L]: error bar of that difference
    jump: np.ndarray  # [L, M]: jump of the slope at the point, if it hides errors


def by_directions(trial: Trial, directions: list[Leaves]) -> Outcome:
    """Check every leaf along random directions; if one fails, find its wrong entries."""
    numerical, sides = trial.numerical, trial.sides
    question, tolerance = numerical.question, sides.tolerance(100 * sides.eps)
    each = 2 * len(numerical.steps) * len(question.args.parts)
    directions, asked = directions[: numerical.affordable(each)], len(directions)
    if not directions:
        return _no_directions(numerical, each)
    checked, notes = [_check_directions(trial, weights, tolerance) for weights in directions], []
    if len(directions) < asked:
        notes.append(f"max_evals allows {len(directions)} of {asked} directions, at {each:,} evaluations each")
    aside = _find_kinked(numerical, checked)
    if aside.size:
        notes.append(f"{aside.size:,} coordinates at a kink of f were found by bisection and checked one by one")
        held = [_with_fixed(trial, weights, aside) for weights in directions[: numerical.affordable(each)]]
        checked = [_check_directions(trial, weights, tolerance) for weights in held] or checked
    parts = question.args.parts
    checked = [
        each._replace(found=excuse_rounding(trial, each.found, leaf_rays(parts, each.weights))) for each in checked
    ]
    if tolerance > RESOLUTION and sides.rtol is None:
        checked = [each._replace(found=downgrade_passes(each.found)) for each in checked]
        notes.append(few_digits_note(sides))
    leaves = list(_summarize(question, [each.found for each in checked], [each.norm for each in checked]))
    wrong: list[Entry] = []
    for number, leaf in enumerate(leaves):
        kinks = aside[(aside >= parts[number].first) & (aside < parts[number].last)]
        kinks = kinks[: numerical.affordable(2 * len(numerical.steps))]
        if kinks.size:
            found = _entries_of(trial, checked[0], number, kinks, tolerance)
            wrong += wrong_entries(question, kinks, found)
            count = int((found.code == FAIL).any(axis=1).sum())
            verdict = max(leaf.verdict, SEVERITY[found.code.max()], key=SEVERITY.index)
            leaves[number] = leaf = dataclasses.replace(leaf, verdict=verdict, wrong=count)
        if (direction := _failing(checked, number)) is not None:
            blame = _find_wrong_entries(trial, direction, number, tolerance)
            wrong += blame.entries
            notes.append(f"{leaf.path}: {blame.said}")
            leaves[number] = dataclasses.replace(leaf, wrong=leaf.wrong + blame.num_wrong)
    if all(leaf.verdict in (Verdict.PASS, Verdict.KINK) for leaf in leaves):
        seen = _least_error_seen(trial, checked, tolerance)
        notes.append(f"an error in a single entry is detected from {seen:.2%} of a typical entry of its leaf")
    if any(leaf.verdict is Verdict.INCONCLUSIVE for leaf in leaves):
        notes.append('directions cannot decide this; mode="sparse" or "dense" checks single entries')
    return tuple(leaves), tuple(wrong), notes


def _no_directions(numerical: Numerical, each: int) -> Outcome:
    """Return the outcome without any direction."""
    parts, nan = numerical.question.args.parts, float("nan")
    worst = [Entry(part.path, (), nan, nan, nan) for part in parts]
    leaves = tuple(
        LeafReport(part.path, Verdict.INCONCLUSIVE, part.size, 0, 0, nan, nan, entry, nan, nan, rays=True)
        for part, entry in zip(parts, worst, strict=True)
    )
    return leaves, (), [f"a direction takes {each:,} evaluations of f, which max_evals does not allow: raise it"]


def _check_directions(trial: Trial, weights: Leaves, rtol: float) -> Direction:
    """Compare slopes along one ray for each leaf with a full sweep of differences.

    The error is relative to the root of the sum of the squared terms of the slope, not to the slope itself, which may
    be small by chance.
    """
    numerical = trial.numerical
    rays = leaf_rays(numerical.question.args.parts, weights)
    analytic, norm = trial.sides.sharpest.slopes(rays)
    estimate = numerical.sweep(rays, norm)
    found = judge(analytic, estimate, norm, rtol, np.ones((len(norm), 1)))
    # A slope that jumps by more than the errors of interest hides them.
    hides = (found.code == KINK) & (estimate.kink == 0) & (estimate.jump > RESOLUTION * norm)
    found = found._replace(code=np.where(hides, INCONCLUSIVE, found.code))
    perhaps = (found.code == INCONCLUSIVE) & (estimate.low <= analytic) & (analytic <= estimate.high)
    jump = np.where(hides, estimate.jump, np.where(perhaps, estimate.high - estimate.low, 0.0))
    return Direction(weights, found, norm, estimate.single_step, estimate.single_bar, jump)


def _failing(directions: list[Direction], leaf: int) -> Direction | None:
    """Return the direction in which a leaf fails with the largest error, or None."""

    def worst(direction: Direction) -> float:
        return float(np.where(direction.found.code[leaf] == FAIL, direction.found.error[leaf], 0).max())

    failed = [d for d in directions if (d.found.code[leaf] == FAIL).any()]
    return max(failed, key=worst, default=None)


def _least_error_seen(trial: Trial, checked: list[Direction], tolerance: float) -> float:
    """Return the smallest detectable error of a single entry, relative to the root mean square of its leaf."""
    parts = trial.numerical.question.args.parts
    sizes = np.sqrt([part.last - part.first for part in parts])[:, None]
    with np.errstate(all="ignore"):
        limits = [np.maximum(tolerance, BARS * each.found.bar / each.norm) * sizes for each in checked]
    return float(np.nan_to_num(np.min(limits, axis=0)).max())


def _find_kinked(numerical: Numerical, checked: list[Direction]) -> np.ndarray:
    """Return coordinates with a kink at the point, if there are few enough to exclude them."""
    aside = [np.zeros(0, int)]
    for number in range(len(numerical.question.args.parts)):
        direction = max(checked, key=lambda each: float(each.jump[number].max()))
        if direction.jump[number].any():
            found = kinked_coordinates(numerical, direction, number, int(np.argmax(direction.jump[number])))
            aside.append(np.zeros(0, int) if found is None else found)
    return np.concatenate(aside)


def _with_fixed(trial: Trial, weights: Leaves, coordinates: np.ndarray) -> Leaves:
    """Return the weights with some coordinates held fixed."""
    held: list[ArrayLike] = []
    for part, weight in zip(trial.numerical.question.args.parts, weights, strict=True):
        copy = np.array(weight)
        copy.reshape(-1)[coordinates[(coordinates >= part.first) & (coordinates < part.last)] - part.first] = 0
        held.append(copy)
    return held


class _WrongEntries(NamedTuple):
    entries: tuple[Entry, ...]
    num_wrong: int
    said: str


def _find_wrong_entries(trial: Trial, direction: Direction, number: int, tolerance: float) -> _WrongEntries:
    """Return the wrong entries of a leaf, their number, and a note on how they were found."""
    numerical = trial.numerical
    part, before = numerical.question.args.parts[number], numerical.evaluations
    error = np.where(direction.found.code[number] == FAIL, direction.found.error[number], 0)
    located = wrong_coordinates(trial, direction, number, int(np.argmax(error)))
    spent = numerical.evaluations - before
    coordinates = located
    if numerical.affordable(2 * len(numerical.steps)) < (1 if located is None else len(located)):
        return _WrongEntries((), 0, "max_evals does not allow a search for the wrong entries: raise it")
    if coordinates is None:
        count = min(SAMPLE_SIZE, part.last - part.first, numerical.affordable(2 * len(numerical.steps)))
        coordinates = np.sort(part.first + trial.rng.choice(part.last - part.first, count, replace=False))
    found = _entries_of(trial, direction, number, coordinates, tolerance)
    entries = wrong_entries(numerical.question, coordinates, found)
    count = int((found.code == FAIL).any(axis=1).sum())
    if located is not None:
        return _WrongEntries(
            entries, count, f"{count:,} wrong entries found by bisection, in {spent:,} evaluations of f"
        )
    share = count / len(coordinates)
    whole = "the whole leaf is wrong" if share == 1 else f"about {share:.0%} of the leaf is wrong"
    said = f"{whole}: {count} of {len(coordinates)} entries checked"
    return _WrongEntries(entries, round(share * part.size), said)


def _entries_of(trial: Trial, direction: Direction, number: int, coordinates: np.ndarray, tolerance: float) -> Findings:
    """Sweep some coordinates of one leaf over all steps; the floor is relative to the leaf's typical gradient."""
    numerical, args = trial.numerical, trial.numerical.question.args
    rays, unit = numerical.single(coordinates), units_at(args, coordinates)
    analytic = trial.sides.sharpest.slopes(rays)[0]
    part = args.parts[number]
    typical = direction.norm[number] / np.sqrt(part.last - part.first)
    with np.errstate(all="ignore"):
        floor = np.nan_to_num(FLOOR * typical / unit[:, None], posinf=0.0)
    samples = numerical.samples(rays, numerical.steps * unit[:, None], unit)
    return judge(analytic, estimate_slopes(samples, floor), floor, tolerance, unit[:, None])


def _summarize(question: Question, found: list[Findings], norms: list[np.ndarray]) -> tuple[LeafReport, ...]:
    """Return a record for each leaf, for its worst direction; `found` and `norms` [L, M] are of each direction."""
    stacked = Findings(*(np.stack(values) for values in zip(*found, strict=True)))  # [K, L, M]
    size_of_f = np.abs(question.here).max()
    size_of_f = max(float(size_of_f), float(np.nanmax(np.stack(norms), initial=0.0)))
    leaves = []
    for number, part in enumerate(question.args.parts):
        of_leaf = Findings(*(values[:, number] for values in stacked))
        code = int(of_leaf.code.max())
        if code in (PASS, CONSTANT, INCONCLUSIVE) and _is_zero(of_leaf, size_of_f):
            code = int(CONSTANT)
        rank = np.where(of_leaf.code == of_leaf.code.max(), of_leaf.error, -1.0)
        k, reading = np.unravel_index(np.argmax(rank), rank.shape)
        a, n, error = of_leaf.analytic[k, reading], of_leaf.numerical[k, reading], of_leaf.error[k, reading]
        leaves.append(
            LeafReport(
                path=part.path,
                verdict=SEVERITY[code],
                entries=part.size,
                checked=len(found),
                wrong=0,
                absolute_error=float(np.nan_to_num(np.abs(of_leaf.analytic - of_leaf.numerical), nan=np.inf).max()),
                relative_error=float(error),
                worst=Entry(part.path, (), float(a), float(n), float(error)),
                error_bar=float(of_leaf.bar[k, reading]),
                step=float(of_leaf.step[k, reading]),
                rays=True,
            )
        )
    return tuple(leaves)


def _is_zero(found: Findings, size_of_f: float) -> bool:
    """Whether both slopes are zero within error bars that are negligible."""
    bar = float(np.nanmax(np.where(np.isfinite(found.bar), found.bar, np.nan), initial=0.0))
    zero = (np.abs(found.analytic) <= BARS * bar) & (np.abs(found.numerical) <= BARS * bar)
    return bool(zero.all() and (found.code != KINK).all() and BARS * bar <= NEGLIGIBLE * size_of_f)


def localize(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray | None], first: int, last: int, threshold: float
) -> np.ndarray | None:
    """Find the coordinates in [first, last) that contribute to a sum; None if there are too many to follow.

    It is also None if `measure` returns None, which means that the budget is used up.

    `measure(firsts, lasts)` returns the contribution of each block of coordinates. It is additive: the contribution of
    a block is the sum of those of its halves, so that measuring one half gives the other. k coordinates among n take
    about k log2(n/k) measurements, with all blocks of one size in one call.
    """
    firsts, lasts = np.array([first]), np.array([last])
    if (found := measure(firsts, lasts)) is None:
        return None
    while (lasts - firsts).max() > 1:
        single = lasts - firsts == 1
        middle = (firsts + lasts + 1) // 2
        left = np.where(single, found, 0.0)
        if (measured := measure(firsts[~single], middle[~single])) is None:
            return None
        left[~single] = measured
        found = np.concatenate([left, np.where(single, 0.0, found - left)])
        firsts, lasts = np.concatenate([firsts, middle]), np.concatenate([middle, lasts])
        keep = np.abs(found) > threshold
        firsts, lasts, found = firsts[keep], lasts[keep], found[keep]
        if not 0 < len(firsts) <= MAX_BLOCKS:
            return None
    return np.sort(firsts)


def wrong_coordinates(trial: Trial, direction: Direction, leaf: int, reading: int) -> np.ndarray | None:
    """Return the coordinates of a leaf whose analytic gradient differs from differences, or None.

    Each measurement takes 2 evaluations.
    """
    numerical, gradient = trial.numerical, trial.sides.sharpest.with_leaves()
    part, step, norm = numerical.question.args.parts[leaf], direction.step[leaf], direction.norm[leaf, reading]

    def residuals(firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray | None:
        if numerical.affordable(2) < len(firsts):
            return None
        rays = Rays(direction.weights, firsts, lasts)
        central, _ = numerical.central(rays, np.full(len(firsts), step))
        return (central - gradient.slopes(rays)[0])[:, reading]

    rounding = 10 * float(jnp.finfo(gradient.leaves[leaf].dtype).eps) if gradient.has_reverse else 0.0
    return localize(residuals, part.first, part.last, max(BARS * direction.bar[leaf], max(rounding, 1e-9) * norm))


def kinked_coordinates(numerical: Numerical, direction: Direction, leaf: int, reading: int) -> np.ndarray | None:
    """Return the coordinates of a leaf along which f has a kink at the point: their one-sided slopes differ."""
    part = numerical.question.args.parts[leaf]

    def gaps(firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray | None:
        if numerical.affordable(2) < len(firsts):
            return None
        rays = Rays(direction.weights, firsts, lasts)
        return numerical.central(rays, np.full(len(firsts), KINK_STEP * np.sqrt(numerical.eps)))[1][:, reading]

    return localize(gaps, part.first, part.last, direction.jump[leaf, reading] / (4 * MAX_BLOCKS))
