"""Both sides brought together: what is found entry by entry, or along directions, and what of it can be excused."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxopt_course.gradients.analytic import Gradient
from jaxopt_course.gradients.directions import Direction, check_directions, failing, leaf_rays
from jaxopt_course.gradients.entries import (
    FAIL,
    FLOOR,
    INCONCLUSIVE,
    KINK,
    PASS,
    RESOLUTION,
    RTOL,
    Findings,
    check_entries,
    leafwise,
    look_into,
)
from jaxopt_course.gradients.estimates import BARS
from jaxopt_course.gradients.localize import kinked_coordinates, wrong_coordinates
from jaxopt_course.gradients.numerical import Differences
from jaxopt_course.gradients.rays import Rays, unit_of
from jaxopt_course.gradients.report import SEVERITY, Entry, LeafReport, Verdict
from jaxopt_course.gradients.subject import Arguments, Leaves
from jaxopt_course.gradients.summary import summarize_directions, summarize_entries, wrong_entries

SAMPLED = 32  # entries that are looked at where too many are wrong to be found one by one
Found = tuple[tuple[LeafReport, ...], tuple[Entry, ...], list[str]]


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


def by_entries(
    args: Arguments,
    differences: Differences,
    sides: Sides,
    directions: list[Leaves],
    coordinates: np.ndarray,
    labels: Sequence[str],
    rng: np.random.Generator,
) -> Found:
    """Each of the coordinates on its own."""
    layout = leafwise(sides.own)
    tolerance = sides.tolerance(np.sqrt(sides.eps))
    checked = check_directions(differences, sides.sharpest, directions, tolerance)
    steps = np.min([direction.step for direction in checked], axis=0)
    as_a_whole = sides.rtol is None and all((direction.found.code == PASS).all() for direction in checked)
    found = check_entries(differences, sides.sharpest, coordinates, steps, layout, tolerance, one_sided=as_a_whole)
    rays = Rays(differences.ones, coordinates, coordinates + 1)
    unit = layout.unit[coordinates][:, None]
    _excuse(found, rays, unit, sides, rng)
    notes = []
    if sides.exact is not None:
        notes += _lost_digits(found, rays, unit, sides, layout.leaf[coordinates])
    elif tolerance > RESOLUTION and sides.rtol is None:
        found.code[found.code <= KINK] = INCONCLUSIVE
        notes.append(_too_few_digits(sides))
    if unswept := int((np.isnan(found.bar) & (found.code >= INCONCLUSIVE)).any(axis=1).sum()):
        notes.append(f"{unswept:,} of the entries that differ were not looked into: there may be more wrong ones")
    num_kinks = int((found.code == KINK).any(axis=1).sum())
    if num_kinks:
        notes.append(f"{num_kinks:,} of the entries lie at a kink of f or close to one")
    if len(coordinates) < args.num_coordinates:
        missed = 1 - len(coordinates) / args.num_coordinates
        notes.append(
            f"{len(coordinates):,} of {args.num_coordinates:,} entries were looked at: a single wrong one is missed "
            f"with probability {missed:.2%}"
        )
    leaves, wrong = summarize_entries(args, found, coordinates, layout, labels, differences.here)
    return leaves, wrong, notes


def by_directions(
    args: Arguments,
    differences: Differences,
    sides: Sides,
    directions: list[Leaves],
    labels: Sequence[str],
    rng: np.random.Generator,
) -> Found:
    """Every leaf along random directions; where one fails, the entries that are to blame."""
    tolerance = sides.tolerance(100 * sides.eps)
    checked = check_directions(differences, sides.sharpest, directions, tolerance)
    notes: list[str] = []
    aside = _kinks_aside(differences, checked)
    if aside.size:
        notes.append(f"{aside.size:,} coordinates at a kink of f were found by bisection and looked at one by one")
        directions = [_without(args, weights, aside) for weights in directions]
        checked = check_directions(differences, sides.sharpest, directions, tolerance)
    for each in checked:
        _excuse(each.found, leaf_rays(args, each.weights), np.ones((len(args.parts), 1)), sides, rng)
    if tolerance > RESOLUTION and sides.rtol is None:
        for each in checked:
            each.found.code[each.found.code <= KINK] = INCONCLUSIVE
        notes.append(_too_few_digits(sides))
    leaves = list(summarize_directions(args, checked, differences.here))
    wrong: list[Entry] = []
    for number, leaf in enumerate(leaves):
        part, direction = args.parts[number], failing(checked, number)
        kinks = aside[(aside >= part.first) & (aside < part.last)]
        if kinks.size:
            found = _look_at(args, differences, sides, number, kinks, checked[0], tolerance)
            wrong += wrong_entries(args, found, kinks, labels)
            count = int((found.code == FAIL).any(axis=1).sum())
            verdict = max(leaf.verdict, SEVERITY[found.code.max()], key=SEVERITY.index)
            leaves[number] = leaf = dataclasses.replace(leaf, verdict=verdict, wrong=count)
        if direction is not None:
            entries, count, said = _blame(args, differences, sides, direction, number, labels, rng, tolerance)
            wrong += entries
            notes.append(f"{leaf.path}: {said}")
            leaves[number] = dataclasses.replace(leaf, wrong=leaf.wrong + count)
    if all(leaf.verdict in (Verdict.PASS, Verdict.KINK) for leaf in leaves):
        seen = _least_error_seen(args, checked, tolerance)
        notes.append(f"an error in one entry alone shows from {seen:.2%} of a typical entry of its leaf")
    if any(leaf.verdict is Verdict.INCONCLUSIVE for leaf in leaves):
        notes.append('along directions this cannot be told; mode="sparse" or "dense" looks at single entries')
    return tuple(leaves), tuple(wrong), notes


def _least_error_seen(args: Arguments, checked: list[Direction], tolerance: float) -> float:
    """How wrong a single entry must be, relative to the root mean square of its leaf, to be seen along a direction."""
    sizes = np.sqrt([part.last - part.first for part in args.parts])[:, None]
    with np.errstate(all="ignore"):
        limits = [np.maximum(tolerance, BARS * each.found.bar / each.norm) * sizes for each in checked]
    return float(np.nan_to_num(np.min(limits, axis=0)).max())


def _kinks_aside(differences: Differences, checked: list[Direction]) -> np.ndarray:
    """Coordinates with a kink at the point, where there are few enough to set aside."""
    aside = [np.zeros(0, int)]
    for number in range(len(differences.args.parts)):
        direction = max(checked, key=lambda each: float(each.jump[number].max()))
        if direction.jump[number].any():
            found = kinked_coordinates(differences, direction, number, int(np.argmax(direction.jump[number])))
            aside.append(np.zeros(0, int) if found is None else found)
    return np.concatenate(aside)


def _without(args: Arguments, weights: Leaves, coordinates: np.ndarray) -> Leaves:
    """The weights with some coordinates held still."""
    held = []
    for part, weight in zip(args.parts, weights, strict=True):
        weight = np.array(weight)
        weight.reshape(-1)[coordinates[(coordinates >= part.first) & (coordinates < part.last)] - part.first] = 0
        held.append(weight)
    return held


def _blame(
    args: Arguments,
    differences: Differences,
    sides: Sides,
    direction: Direction,
    number: int,
    labels: Sequence[str],
    rng: np.random.Generator,
    tolerance: float,
) -> tuple[tuple[Entry, ...], int, str]:
    """The entries of a leaf that are wrong, how many there are, and how that is known."""
    part, before = args.parts[number], differences.evaluations
    error = np.where(direction.found.code[number] == FAIL, direction.found.error[number], 0)
    located = wrong_coordinates(differences, sides.sharpest, direction, number, int(np.argmax(error)))
    spent = differences.evaluations - before
    coordinates = located
    if coordinates is None:
        count = min(SAMPLED, part.last - part.first)
        coordinates = np.sort(part.first + rng.choice(part.last - part.first, count, replace=False))
    found = _look_at(args, differences, sides, number, coordinates, direction, tolerance)
    entries = wrong_entries(args, found, coordinates, labels)
    count = int((found.code == FAIL).any(axis=1).sum())
    if located is not None:
        return entries, count, f"{count:,} wrong entries found by bisection, in {spent:,} evaluations of f"
    share = count / len(coordinates)
    whole = "the whole leaf is wrong" if share == 1 else f"about {share:.0%} of the leaf is wrong"
    return entries, round(share * part.size), f"{whole}: {count} of {len(coordinates)} entries looked at"


def _look_at(
    args: Arguments,
    differences: Differences,
    sides: Sides,
    number: int,
    coordinates: np.ndarray,
    direction: Direction,
    tolerance: float,
) -> Findings:
    """Some coordinates of one leaf, each swept over all steps. The floor is from the leaf's typical gradient."""
    part, rays = args.parts[number], Rays(differences.ones, coordinates, coordinates + 1)
    unit = coordinate_units(args, differences.sizes, number, coordinates)
    slopes = sides.sharpest.slopes(rays)[0] / unit
    floor = np.broadcast_to(FLOOR * direction.norm[number] / np.sqrt(part.last - part.first), slopes.shape) / unit
    return look_into(differences, rays, np.arange(len(coordinates)), unit, slopes, floor, tolerance)


def coordinate_units(args: Arguments, sizes: np.ndarray, number: int, coordinates: np.ndarray) -> np.ndarray:
    """The unit of some coordinates of one leaf, [R, 1]."""
    part, leaf = args.parts[number], np.asarray(args.moving[number]).ravel()
    entries = leaf[(coordinates - part.first) % part.size]
    return unit_of(entries.astype(complex if part.is_complex else float), sizes[number])[:, None]


def _excuse(found: Findings, rays: Rays, unit: np.ndarray, sides: Sides, rng: np.random.Generator) -> None:
    """A difference that the gradient's own rounding explains is no failure, but nothing was proven either."""
    rows = np.flatnonzero((found.code == FAIL).any(axis=1))
    if not rows.size:
        return
    some = Rays(rays.weights, rays.first[rows], rays.last[rows])
    slopes = [gradient.slopes(some)[0] / unit[rows] for gradient in (sides.sharpest, *sides.nearby(rng))]
    noise = np.max(np.abs(np.stack(slopes[1:]) - slopes[0]), axis=0)
    with np.errstate(all="ignore"):
        excused = np.abs(found.analytic[rows] - found.numerical[rows]) <= BARS * noise
    found.code[rows] = np.where((found.code[rows] == FAIL) & excused, INCONCLUSIVE, found.code[rows])


def _lost_digits(found: Findings, rays: Rays, unit: np.ndarray, sides: Sides, leaf: np.ndarray) -> list[str]:
    """Where the gradient's code is right in float64, and its result in the user's dtype is not."""
    own = sides.own.slopes(rays)[0] / unit
    largest = np.zeros((leaf.max() + 1, own.shape[1]))
    np.maximum.at(largest, leaf, np.abs(found.analytic))
    with np.errstate(all="ignore"):
        scale = np.maximum(np.abs(found.analytic), FLOOR * largest[leaf])
        error = np.abs(own - found.analytic) / np.where(scale > 0, scale, 1.0)
    lost = (found.code <= KINK) & (error > np.sqrt(sides.eps))
    if not lost.any():
        return []
    found.code[lost] = INCONCLUSIVE
    return [
        f"{int(lost.any(axis=1).sum()):,} entries are right in float64, and off by up to {error[lost].max():.2g} "
        f"(relative) in the dtype of params, which keeps {_digits(sides.eps)} digits: rounding, or code that depends "
        "on the dtype"
    ]


def _too_few_digits(sides: Sides) -> str:
    return f"the gradient has only {_digits(sides.eps)} digits, and could not be computed with more"


def _digits(eps: float) -> int:
    return max(1, round(-np.log10(eps)))
