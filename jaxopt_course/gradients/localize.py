"""Along random directions, leaf by leaf; and where one fails, bisection down to the entries that are wrong."""

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
    excused,
    few_digits_note,
    judge,
    too_few_digits,
    wrong_entries,
)

MOST_BLOCKS = 64  # of wrong blocks side by side; with more the fault is not a matter of single entries
SAMPLED = 32  # entries that are looked at where too many are wrong to be found one by one
KINK_STEP = 64.0  # roots of eps, at which one-sided slopes that jump at the point are apart, and others hardly
FLOOR = 1e-2  # entries below this part of their leaf's typical gradient were not seen along the direction either
NEGLIGIBLE = 1e-6  # of the size of f: how small a slope must be known to be to count as none
Found = tuple[tuple[LeafReport, ...], tuple[Entry, ...], list[str]]


class Direction(NamedTuple):
    """Slopes along one ray for each leaf."""

    weights: Leaves
    found: Findings  # [L, M]
    norm: np.ndarray  # [L, M]: how large a slope along this ray typically is
    step: np.ndarray  # [L]: at which one central difference is best
    bar: np.ndarray  # [L]: of that difference
    jump: np.ndarray  # [L, M]: of the slope at the point, where that hides what is looked for


def by_directions(trial: Trial, directions: list[Leaves]) -> Found:
    """Every leaf along random directions; where one fails, the entries that are to blame."""
    numerical, sides = trial.numerical, trial.sides
    question, tolerance = numerical.question, sides.tolerance(100 * sides.eps)
    each = 2 * len(numerical.steps) * len(question.args.parts)
    directions, asked = directions[: numerical.affordable(each)], len(directions)
    if not directions:
        return _nothing(numerical, each)
    checked, notes = [_along(trial, weights, tolerance) for weights in directions], []
    if len(directions) < asked:
        notes.append(f"max_evals allows {len(directions)} of {asked} directions, at {each:,} evaluations each")
    aside = _kinks_aside(numerical, checked)
    if aside.size:
        notes.append(f"{aside.size:,} coordinates at a kink of f were found by bisection and looked at one by one")
        held = [_without(trial, weights, aside) for weights in directions[: numerical.affordable(each)]]
        checked = [_along(trial, weights, tolerance) for weights in held] or checked
    parts = question.args.parts
    checked = [each._replace(found=excused(trial, each.found, leaf_rays(parts, each.weights))) for each in checked]
    if tolerance > RESOLUTION and sides.rtol is None:
        checked = [each._replace(found=too_few_digits(each.found)) for each in checked]
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
            blame = _blame(trial, direction, number, tolerance)
            wrong += blame.entries
            notes.append(f"{leaf.path}: {blame.said}")
            leaves[number] = dataclasses.replace(leaf, wrong=leaf.wrong + blame.num_wrong)
    if all(leaf.verdict in (Verdict.PASS, Verdict.KINK) for leaf in leaves):
        seen = _least_error_seen(trial, checked, tolerance)
        notes.append(f"an error in one entry alone shows from {seen:.2%} of a typical entry of its leaf")
    if any(leaf.verdict is Verdict.INCONCLUSIVE for leaf in leaves):
        notes.append('along directions this cannot be told; mode="sparse" or "dense" looks at single entries')
    return tuple(leaves), tuple(wrong), notes


def _nothing(numerical: Numerical, each: int) -> Found:
    """A report of no direction at all."""
    parts, nan = numerical.question.args.parts, float("nan")
    worst = [Entry(part.path, (), nan, nan, nan) for part in parts]
    leaves = tuple(
        LeafReport(part.path, Verdict.INCONCLUSIVE, part.size, 0, 0, nan, nan, entry, nan, nan, rays=True)
        for part, entry in zip(parts, worst, strict=True)
    )
    return leaves, (), [f"a direction takes {each:,} evaluations of f, which max_evals does not allow: raise it"]


def _along(trial: Trial, weights: Leaves, rtol: float) -> Direction:
    """Slopes along one ray for each leaf, against a full sweep of differences.

    The error is relative to the root of the sum of the squared terms of the slope, not to the slope itself, which may
    be small by chance.
    """
    numerical = trial.numerical
    rays = leaf_rays(numerical.question.args.parts, weights)
    analytic, norm = trial.sides.sharpest.slopes(rays)
    estimate = numerical.sweep(rays, norm)
    found = judge(analytic, estimate, norm, rtol, np.ones((len(norm), 1)))
    # A slope that jumps by more than the errors looked for says nothing of them.
    hides = (found.code == KINK) & (estimate.kink == 0) & (estimate.jump > RESOLUTION * norm)
    found = found._replace(code=np.where(hides, INCONCLUSIVE, found.code))
    perhaps = (found.code == INCONCLUSIVE) & (estimate.low <= analytic) & (analytic <= estimate.high)
    jump = np.where(hides, estimate.jump, np.where(perhaps, estimate.high - estimate.low, 0.0))
    return Direction(weights, found, norm, estimate.single_step, estimate.single_bar, jump)


def _failing(directions: list[Direction], leaf: int) -> Direction | None:
    """The direction in which a leaf fails worst."""

    def worst(direction: Direction) -> float:
        return float(np.where(direction.found.code[leaf] == FAIL, direction.found.error[leaf], 0).max())

    failed = [d for d in directions if (d.found.code[leaf] == FAIL).any()]
    return max(failed, key=worst, default=None)


def _least_error_seen(trial: Trial, checked: list[Direction], tolerance: float) -> float:
    """How wrong a single entry must be, relative to the root mean square of its leaf, to be seen along a direction."""
    parts = trial.numerical.question.args.parts
    sizes = np.sqrt([part.last - part.first for part in parts])[:, None]
    with np.errstate(all="ignore"):
        limits = [np.maximum(tolerance, BARS * each.found.bar / each.norm) * sizes for each in checked]
    return float(np.nan_to_num(np.min(limits, axis=0)).max())


def _kinks_aside(numerical: Numerical, checked: list[Direction]) -> np.ndarray:
    """Coordinates with a kink at the point, where there are few enough to set aside."""
    aside = [np.zeros(0, int)]
    for number in range(len(numerical.question.args.parts)):
        direction = max(checked, key=lambda each: float(each.jump[number].max()))
        if direction.jump[number].any():
            found = kinked_coordinates(numerical, direction, number, int(np.argmax(direction.jump[number])))
            aside.append(np.zeros(0, int) if found is None else found)
    return np.concatenate(aside)


def _without(trial: Trial, weights: Leaves, coordinates: np.ndarray) -> Leaves:
    """The weights with some coordinates held still."""
    held: list[ArrayLike] = []
    for part, weight in zip(trial.numerical.question.args.parts, weights, strict=True):
        copy = np.array(weight)
        copy.reshape(-1)[coordinates[(coordinates >= part.first) & (coordinates < part.last)] - part.first] = 0
        held.append(copy)
    return held


class _Blame(NamedTuple):
    entries: tuple[Entry, ...]
    num_wrong: int
    said: str


def _blame(trial: Trial, direction: Direction, number: int, tolerance: float) -> _Blame:
    """The entries of a leaf that are wrong, how many there are, and how that is known."""
    numerical = trial.numerical
    part, before = numerical.question.args.parts[number], numerical.evaluations
    error = np.where(direction.found.code[number] == FAIL, direction.found.error[number], 0)
    located = wrong_coordinates(trial, direction, number, int(np.argmax(error)))
    spent = numerical.evaluations - before
    coordinates = located
    if numerical.affordable(2 * len(numerical.steps)) < (1 if located is None else len(located)):
        return _Blame((), 0, "max_evals does not allow a search for the wrong entries: raise it")
    if coordinates is None:
        count = min(SAMPLED, part.last - part.first, numerical.affordable(2 * len(numerical.steps)))
        coordinates = np.sort(part.first + trial.rng.choice(part.last - part.first, count, replace=False))
    found = _entries_of(trial, direction, number, coordinates, tolerance)
    entries = wrong_entries(numerical.question, coordinates, found)
    count = int((found.code == FAIL).any(axis=1).sum())
    if located is not None:
        return _Blame(entries, count, f"{count:,} wrong entries found by bisection, in {spent:,} evaluations of f")
    share = count / len(coordinates)
    whole = "the whole leaf is wrong" if share == 1 else f"about {share:.0%} of the leaf is wrong"
    said = f"{whole}: {count} of {len(coordinates)} entries looked at"
    return _Blame(entries, round(share * part.size), said)


def _entries_of(trial: Trial, direction: Direction, number: int, coordinates: np.ndarray, tolerance: float) -> Findings:
    """Some coordinates of one leaf, each swept over all steps. The floor is from the leaf's typical gradient."""
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
    """A record for each leaf, of the direction in which it does worst; findings and norms [L, M] of each direction."""
    stacked = Findings(*(np.stack(values) for values in zip(*found, strict=True)))  # [K, L, M]
    size_of_f = np.abs(question.here).max()
    size_of_f = max(float(size_of_f), float(np.nanmax(np.stack(norms), initial=0.0)))
    leaves = []
    for number, part in enumerate(question.args.parts):
        of_leaf = Findings(*(values[:, number] for values in stacked))
        code = int(of_leaf.code.max())
        if code in (PASS, CONSTANT, INCONCLUSIVE) and _vanishes(of_leaf, size_of_f):
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


def _vanishes(found: Findings, size_of_f: float) -> bool:
    """Whether both sides are zero as far as can be told, and that is far."""
    bar = float(np.nanmax(np.where(np.isfinite(found.bar), found.bar, np.nan), initial=0.0))
    zero = (np.abs(found.analytic) <= BARS * bar) & (np.abs(found.numerical) <= BARS * bar)
    return bool(zero.all() and (found.code != KINK).all() and BARS * bar <= NEGLIGIBLE * size_of_f)


def localize(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray | None], first: int, last: int, threshold: float
) -> np.ndarray | None:
    """Find the coordinates in [first, last) that contribute to a sum; None where there are too many to follow.

    None also where `measure` says None: that it may not go on.

    `measure(firsts, lasts)` says for some blocks of coordinates what each contributes. It is additive: a block gives
    the sum of what its halves give, so that measuring one half gives the other. k coordinates among n take about
    k log2(n/k) measurements, with all the blocks of one size in one call.
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
        if not 0 < len(firsts) <= MOST_BLOCKS:
            return None
    return np.sort(firsts)


def wrong_coordinates(trial: Trial, direction: Direction, leaf: int, reading: int) -> np.ndarray | None:
    """The coordinates of a leaf whose analytic gradient is not that of the differences, 2 evaluations a measurement."""
    numerical, gradient = trial.numerical, trial.sides.sharpest.holding()
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
    """The coordinates of a leaf along which f has a kink at the point: there the one-sided slopes are apart."""
    part = numerical.question.args.parts[leaf]

    def gaps(firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray | None:
        if numerical.affordable(2) < len(firsts):
            return None
        rays = Rays(direction.weights, firsts, lasts)
        return numerical.central(rays, np.full(len(firsts), KINK_STEP * np.sqrt(numerical.eps)))[1][:, reading]

    return localize(gaps, part.first, part.last, direction.jump[leaf, reading] / (4 * MOST_BLOCKS))
