"""The numerical side of a check: f along rays through the point, in float64 if possible.

A ray is a range of the row of coordinates with a weight for each. A point on it has a distance t, in units of each
coordinate; on a ray of one coordinate, t is the step itself.
"""

import functools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_course.annotations import ArrayLike
from jaxopt_course.gradients.compiling import compiled, spacing, uncompiled
from jaxopt_course.gradients.estimates import COARSE_STEPS, STEPS, Estimate, Samples, estimate_slopes
from jaxopt_course.gradients.subject import (
    UNIT,
    Arguments,
    Leaves,
    Number,
    Part,
    Question,
    Subject,
    arithmetic,
    as_run,
    entries_at,
    first_line,
    read,
    unit_of,
)

LARGE = 2**20  # above this many coordinates, memory matters more than speed
CACHE = 2**22  # bytes of perturbed parameters that are evaluated in one batch
MEMORY = 2**27  # most bytes of the data, or of the outputs, for all points of a batch
MAX_BATCH = 32  # most points in a batch
PATIENCE = 30.0  # seconds that the evaluations of a check may take, unless `max_evals` is given
QUICK, SLOW = 1e-3, 1.0  # an evaluation that takes between these many seconds is timed again
MIN_EVALS = 400  # evaluations that are allowed however slow f is


class Rays(NamedTuple):
    """Ranges [first, last) of the row of coordinates, [R] each, with one set of weights.

    `absolute`: each ray is one coordinate, and t is in the units of the parameter. `ranks`: the place of each
    coordinate in the row, if it is not the order of the leaves.
    """

    weights: Leaves
    first: np.ndarray
    last: np.ndarray
    absolute: bool = False
    ranks: Leaves | None = None

    def rows(self, rows: np.ndarray) -> "Rays":
        return self._replace(first=self.first[rows], last=self.last[rows])


def single_coordinates(parts: Sequence[Part]) -> Leaves:
    """Return the weights of rays of one coordinate each."""
    return [np.full((2, *part.shape) if part.is_complex else part.shape, UNIT, np.int8) for part in parts]


def whole_ray(args: Arguments, weights: Leaves) -> Rays:
    return Rays(weights, np.array([0]), np.array([args.num_coordinates]))


def leaf_rays(parts: Sequence[Part], weights: Leaves) -> Rays:
    return Rays(weights, np.array([part.first for part in parts]), np.array([part.last for part in parts]))


class Point(NamedTuple):
    """The point at which f is evaluated: its arguments, weights and units of rays, and cotangents. All are traced."""

    moving: Leaves
    data: Leaves
    weights: Leaves
    sizes: np.ndarray
    cotangents: Leaves | None
    absolute: bool | ArrayLike = False
    ranks: Leaves | None = None  # places of coordinates in the row, if it is not the order of the leaves

    def as_run(self, precise: bool) -> "Point":
        return self._replace(moving=as_run(self.moving, precise), data=as_run(self.data, precise))

    def steps(self, parts: tuple[Part, ...], first: Number, last: Number, t: Number) -> Leaves:
        """Return the step from each leaf to its point at t on the ray, in the leaf's own dtype."""
        ranks = self.ranks or [_row_of(part) for part in parts]
        rows = zip(parts, self.moving, self.weights, self.sizes, ranks, strict=True)
        return [self._step(*row, (first, last, t)) for row in rows]

    def _step(
        self,
        part: Part,
        leaf: ArrayLike,
        weight: ArrayLike,
        size: Number,
        rank: ArrayLike,
        ray: tuple[Number, ...],
    ) -> ArrayLike:
        first, last = (jnp.asarray(end, jnp.int32) for end in ray[:2])
        real = jnp.abs(leaf).dtype
        unit = unit_of(leaf, jnp.asarray(size, real))
        unit = jnp.where(self.absolute, jnp.ones_like(unit), unit) * jnp.asarray(ray[2], real)

        def stretch(weight: ArrayLike, rank: ArrayLike) -> ArrayLike:
            inside = (rank >= first) & (rank < last)
            return jnp.where(inside, unit * (jnp.asarray(weight).astype(real) / UNIT), jnp.zeros((), real))

        if part.is_complex:
            return lax.complex(stretch(weight[0], rank[0]), stretch(weight[1], rank[1]))
        return stretch(weight, rank)


def _row_of(part: Part) -> ArrayLike:
    """Return the coordinates of a leaf in the row, in the shape of its weights."""
    shape = (2, *part.shape) if part.is_complex else part.shape
    return part.first + jnp.arange(part.last - part.first, dtype=jnp.int32).reshape(shape)


def value_at(
    subject: Subject, parts: tuple[Part, ...], precise: bool, point: Point, ray: tuple[Number, ...]
) -> ArrayLike:
    """Return readings [M] at one point of a ray (first, last, t)."""
    point = point.as_run(precise)
    moved = [leaf + step for leaf, step in zip(point.moving, point.steps(parts, *ray), strict=True)]
    if parts[-1].last > LARGE:
        moved = lax.optimization_barrier(moved)  # otherwise XLA may keep leaves and steps too, all in float64
    return read(subject.outputs(moved, point.data), point.cotangents)


def values_at(
    subject: Subject,
    parts: tuple[Part, ...],
    run_mode: tuple[bool, int],
    point: Point,
    rays: tuple[ArrayLike, ...],
    count: ArrayLike,
) -> ArrayLike:
    """Return readings [P, M] at points of rays, a batch at a time; those beyond `count` are zero."""
    precise, batch = run_mode
    at = partial(value_at, subject, parts, precise, point)

    def body(number: ArrayLike, out: ArrayLike) -> ArrayLike:
        start = number * batch
        some = tuple(lax.dynamic_slice_in_dim(x, start, batch) for x in rays)
        return lax.dynamic_update_slice_in_dim(out, jax.vmap(at)(some), start, 0)

    one = jax.eval_shape(at, tuple(x[0] for x in rays))
    return lax.fori_loop(0, (count + batch - 1) // batch, body, jnp.zeros((rays[0].shape[0], *one.shape), one.dtype))


class RunMode(NamedTuple):
    """How f is run: in float64 or its own dtype, how many points in a batch, compiled or not."""

    precise: bool
    batch: int
    compiled: bool
    wide: bool  # its own dtype is float64

    def __str__(self) -> str:
        how = "not compiled" if not self.compiled else "vectorised" if self.batch > 1 else "one by one"
        return f"{'float64' if self.precise or self.wide else 'its own dtype'}, {how}"


class Numerical:
    """Evaluates readings of f at points of rays, computes slopes from them, and counts evaluations.

    `here` and `again` [M] are two runs at the point; `eps` is the spacing of the precision in which f really computes.
    """

    def __init__(self, question: Question, run_mode: RunMode, notes: Sequence[str], points: int):
        self.question, self.run_mode, self.notes, self.evaluations = question, run_mode, tuple(notes), 0
        self.capacity = -(-max(2, min(points, MEMORY // (8 * question.here.size))) // run_mode.batch) * run_mode.batch
        self.cotangents = None if question.readings.each else question.readings.cotangents
        self.max_evals = np.inf
        nowhere = Rays(self.ones, np.zeros(1, np.int32), np.zeros(1, np.int32))
        self.here = self.values(nowhere, np.zeros(1))[0]
        spent: list[float] = []
        while not spent or (len(spent) < 3 and QUICK < spent[-1] < SLOW):  # repeated, as the machine may be busy
            start = time.perf_counter()
            self.again = self.values(nowhere, np.zeros(1))[0]
            spent.append(time.perf_counter() - start)
        self.seconds = min(spent) / run_mode.batch  # time of an evaluation
        self.eps = spacing(question.args, run_mode.precise)

    @property
    def steps(self) -> np.ndarray:
        return STEPS if self.eps < 1e-10 else COARSE_STEPS

    @functools.cached_property
    def ones(self) -> Leaves:
        return single_coordinates(self.question.args.parts)

    @property
    def ranked(self) -> bool:
        """Whether coordinates may be used in any order; for large parameters this would take too much memory."""
        return self.question.args.num_coordinates <= LARGE

    @functools.cached_property
    def _in_order(self) -> Leaves | None:
        args = self.question.args
        return args.like_weights(np.arange(args.num_coordinates, dtype=np.int32)) if self.ranked else None

    def allow(self, max_evals: int | None, num_checked_entries: int) -> None:
        """Set the budget: `max_evals`, else 50 (n + 10) evaluations, but not more than PATIENCE allows."""
        patient = max(MIN_EVALS, PATIENCE / self.seconds)
        self.max_evals = max_evals or min(50 * (num_checked_entries + 10), patient)

    def affordable(self, evaluations_each: int) -> int:
        """Return how many rays the remaining budget allows, at `evaluations_each` per ray."""
        return int(min(max(self.max_evals - self.evaluations, 0), 2**62) // evaluations_each)

    def single(self, coordinates: np.ndarray) -> Rays:
        return Rays(self.ones, coordinates, coordinates + 1, absolute=True)

    def values(self, rays: Rays, t: np.ndarray) -> np.ndarray:
        """Return readings [P, M] at the points t[P] of rays [P]."""
        self.evaluations += len(t)
        args, run_mode = self.question.args, self.run_mode
        columns = [np.asarray(rays.first, np.int32), np.asarray(rays.last, np.int32), np.asarray(t, float)]
        ranks = rays.ranks or self._in_order  # always given if possible, so that one program is enough
        point = Point(args.moving, args.data, rays.weights, args.sizes, self.cotangents, rays.absolute, ranks)
        rows = []
        with arithmetic(run_mode.precise):
            for start in range(0, len(t), self.capacity):
                piece = [column[start : start + self.capacity] for column in columns]
                if run_mode.compiled and run_mode.batch > 1:
                    run = compiled(values_at, args, (run_mode.precise, run_mode.batch))
                    padded = tuple(np.resize(column, self.capacity) for column in piece)
                    rows.append(np.asarray(run(point, padded, np.int32(len(piece[0]))), float)[: len(piece[0])])
                else:  # large, or cannot be compiled: one by one, without keeping intermediate arrays
                    one = (compiled if run_mode.compiled else uncompiled)(value_at, args, run_mode.precise)
                    rows.append(np.stack([np.asarray(one(point, ray), float) for ray in zip(*piece, strict=True)]))
        return np.concatenate(rows)

    def samples(self, rays: Rays, steps: np.ndarray, unit: np.ndarray | None = None) -> Samples:
        """Return values on both sides of the point, at steps [R, S] or [S], which are made exact if possible."""
        steps = np.broadcast_to(steps, (len(rays.first), np.shape(steps)[-1]))
        own = np.abs(entries_at(self.question.args, rays.first)) if rays.absolute else np.ones(len(steps))
        if rays.absolute:
            steps = self._exact(rays.first, own, steps)
        t = np.stack([steps, -steps], axis=-1)
        first, last = (np.repeat(x, t[0].size) for x in (rays.first, rays.last))
        values = self.values(rays._replace(first=first, last=last), t.ravel()).reshape(*t.shape, -1)
        unit = np.ones(len(steps)) if unit is None else unit
        return Samples(values[:, :, 0], values[:, :, 1], self.here, steps, unit, own, self.eps)

    def _exact(self, coordinates: np.ndarray, w: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return steps h for which w + h and w - h are exact in the dtype in which f runs."""
        exact = np.empty_like(steps)
        for part in self.question.args.parts:
            rows = (coordinates >= part.first) & (coordinates < part.last)
            real = np.dtype(float) if self.run_mode.precise else np.dtype(jnp.finfo(part.dtype).dtype)
            own, h = w[rows].astype(real)[:, None], steps[rows].astype(real)
            exact[rows] = np.maximum((own + h) - own, np.spacing(own.astype(np.float32) if real.itemsize < 4 else own))
        return exact

    def sweep(self, rays: Rays, floor: np.ndarray) -> Estimate:
        """Return slopes [R, M] along rays of many coordinates, with their error bars."""
        return estimate_slopes(self.samples(rays, self.steps), floor)

    def central(self, rays: Rays, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return one central difference for each ray at its step [R], and the right slope minus the left; [R, M]."""
        found = self.samples(rays, steps[:, None])
        plus, minus, h = found.plus[:, 0], found.minus[:, 0], found.steps
        with np.errstate(all="ignore"):
            return (plus - minus) / (2 * h), ((plus - self.here) - (self.here - minus)) / h


def find_run_mode(
    question: Question, allows: Callable[[np.ndarray], bool] = lambda values: True, points: int = 2
) -> Numerical:
    """Return f along rays in the first mode that works: float64 or its own dtype; vectorised, one by one, not compiled.

    If `allows` rejects the values [M] in float64, f is a different function in float64. `points` is the number of
    points needed at once; with one size, f compiles once. Raises RuntimeError if f does not run near the point.
    """
    args, other = question.args, False
    notes: list[str] = []
    batch = min(
        CACHE // (8 * args.num_coordinates),
        MEMORY // (8 * (sum(leaf.size for leaf in args.data) + question.here.size)),
        MAX_BATCH,
        max(points, 2),
    )
    wide = all(part.dtype.itemsize == (16 if part.is_complex else 8) for part in args.parts)
    batches = dict.fromkeys((max(batch, 1), 1))
    ways = [RunMode(precise, size, True, wide) for precise in ([False] if wide else [True, False]) for size in batches]
    for run_mode in [*ways, RunMode(not wide, 1, False, wide), RunMode(False, 1, False, wide)]:
        if run_mode.precise and other:
            continue
        try:
            found = Numerical(question, run_mode, notes, points)
        except Exception as error:  # any error raised by f, which has run at the point itself
            notes.append(f"f does not run in {run_mode}: {type(error).__name__}: {first_line(error)}")
            continue
        if run_mode.precise and not allows(found.here):
            differs = np.max(np.abs(found.here - question.here), initial=0.0)
            notes.append(
                f"f is a different function in float64 (values differ by {differs:.3g}): differences in its own dtype"
            )
            other = True
            continue
        return found
    raise RuntimeError("\n".join([f"{question.title}: f ran at the point but not near it:", *notes]))
