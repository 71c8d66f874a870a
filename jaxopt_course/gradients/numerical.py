"""The numerical side of a check: f evaluated along rays, in float64 where it can run there."""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.gradients.estimates import COARSE_STEPS, FAR_STEPS, STEPS, Estimate, estimate_slopes
from jaxopt_course.gradients.rays import UNIT, Point, Rays, arithmetic, as_run, compiled, value_at, values_at
from jaxopt_course.gradients.subject import Arguments, Fresh, Leaves, Part, Subject, first_line

CACHE = 2**22  # bytes of perturbed parameters that are evaluated side by side
MEMORY = 2**27  # bytes that the data, or the outputs, may take once for each of them


class Differences:
    """Evaluates readings of f at points of rays, and makes slopes of them.

    Tries float64 first, then the user's own dtype; vectorised, then one by one, then without compiling. What could not
    be done stands in `notes`. `eps` is the spacing of the numbers that f really computes in.
    """

    def __init__(
        self,
        args: Arguments,
        sizes: np.ndarray,
        cotangents: Leaves | None,
        weights: Leaves,
        here: np.ndarray,
        slack: Any = np.inf,
        points: int = 2,
    ):
        """`here` [M] is what f says itself at the point; values farther from it than `slack` are another function's.

        `weights` are any, to try it with; `points` is how many will be asked for at once: one size, one compile.
        """
        self.args, self.sizes, self.cotangents = args, sizes, cotangents
        self.evaluations = 0
        self.notes: list[str] = []
        n, num_data = args.parts[-1].last, sum(leaf.size for leaf in args.data)
        points = max(2, min(points, MEMORY // (8 * here.size)))
        batch = min(CACHE // (8 * n), MEMORY // (8 * (num_data + here.size)), 64, points)
        wide = all(part.dtype.itemsize == (16 if part.is_complex else 8) for part in args.parts)
        runs = [
            (precise, size, True)
            for precise in ([False] if wide else [True, False])
            for size in dict.fromkeys((batch, 1))
        ]
        other = False
        for self.precise, self.batch, self.compiled in [*runs, (not wide, 1, False), (False, 1, False)]:
            if self.precise and other:
                continue
            self.batch = max(self.batch, 1)
            self.capacity = -(-points // self.batch) * self.batch
            way = f"{'float64' if self.precise or wide else 'its own dtype'}, {self._way()}"
            try:
                twice = self.values(Rays(weights, np.zeros(2, np.int32), np.zeros(2, np.int32)), np.zeros(2))
            except Exception as error:  # whatever f objects to; it has run at the point itself
                self.notes.append(f"f does not run in {way}: {type(error).__name__}: {first_line(error)}")
                continue
            self.here, self.again = twice[0], twice[1]
            differs = np.max(np.abs(self.here - here), initial=0.0)
            if self.precise and not np.all(np.abs(self.here - here) <= slack):
                self.notes.append(
                    f"f is another function in float64 (values differ by {differs:.3g}): differences in its own dtype"
                )
                other = True
                continue
            break
        else:
            raise RuntimeError("\n".join(["gradcheck: f ran at the point but not beside it:", *self.notes]))
        self.eps = spacing(args.subject, args.parts, self.precise, args.moving, args.data)
        self.steps = STEPS if self.eps < 1e-10 else COARSE_STEPS

    def _way(self) -> str:
        return "not compiled" if not self.compiled else "vectorised" if self.batch > 1 else "one by one"

    @functools.cached_property
    def ones(self) -> Leaves:
        return single_coordinates(self.args.parts)

    def values(self, rays: Rays, t: np.ndarray) -> np.ndarray:
        """Readings [P, M] at the points t[P] of rays [P]."""
        self.evaluations += len(t)
        subject, moving, data, parts, _ = self.args
        columns = [np.asarray(rays.first, np.int32), np.asarray(rays.last, np.int32), np.asarray(t, float)]
        rows = []
        with arithmetic(self.precise):
            for start in range(0, len(t), self.capacity):
                count = min(self.capacity, len(t) - start)
                piece = [column[start : start + count] for column in columns]
                point = Point(moving, data, rays.weights, self.sizes, self.cotangents)
                if self.compiled and self.batch > 1:
                    padded = [np.resize(column, self.capacity) for column in piece]
                    run = compiled(values_at, subject, parts, self.precise, self.batch)
                    out = run(point, *padded, np.int32(count))
                    rows.append(np.asarray(out, float)[:count])
                else:  # large, or not to be compiled: one by one, and nothing kept from one to the next
                    one = (compiled if self.compiled else partial)(value_at, subject, parts, self.precise)
                    rows.append(np.stack([np.asarray(one(point, *ray), float) for ray in zip(*piece, strict=True)]))
        return np.concatenate(rows)

    def both_sides(self, rays: Rays, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [R, S, M] at +steps and at -steps, which are [R, S] or [S]."""
        steps = np.broadcast_to(steps, (len(rays.first), np.shape(steps)[-1]))
        t = np.stack([steps, -steps], axis=-1)
        first, last = (np.repeat(x, t[0].size) for x in (rays.first, rays.last))
        values = self.values(Rays(rays.weights, first, last), t.ravel()).reshape(*t.shape, -1)
        return values[:, :, 0], values[:, :, 1]

    def sweep(self, rays: Rays, floor: np.ndarray, *, far: bool = False) -> Estimate:
        """Slopes [R, M] with their error bars, from a sweep over steps."""
        steps = FAR_STEPS if far else self.steps
        return estimate_slopes(*self.both_sides(rays, steps), self.here, steps, self.eps, floor)

    def ahead(self, rays: Rays, step: float) -> np.ndarray:
        """One forward difference for each ray, [R, M]."""
        return (self.values(rays, np.full(len(rays.first), step)) - self.here) / step

    def central(self, rays: Rays, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One central difference for each ray at its step [R], and how far right of left the slope is; [R, M]."""
        plus, minus = (side[:, 0] for side in self.both_sides(rays, steps[:, None]))
        h = steps[:, None]
        with np.errstate(all="ignore"):
            return (plus - minus) / (2 * h), (plus - 2 * self.here + minus) / h


def single_coordinates(parts: Sequence[Part]) -> Leaves:
    """The weights of rays that are each one coordinate."""
    return [np.full((2, *part.shape) if part.is_complex else part.shape, UNIT, np.int8) for part in parts]


def spacing(subject: Subject, parts: tuple[Part, ...], precise: bool, moving: Leaves, data: Leaves) -> float:
    """The relative spacing of the narrowest numbers through which f's result passes."""
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (*moving, *data))
    with arithmetic(precise):
        read = _narrowest.__wrapped__ if isinstance(subject.f, Fresh) else _narrowest  # a plain f is not kept
        return read(subject, precise, len(moving), shapes)


@functools.lru_cache(maxsize=256)
def _narrowest(subject: Subject, precise: bool, num_moving: int, shapes: tuple[Any, ...]) -> float:
    def outputs(*leaves: Any) -> Leaves:
        return subject.outputs(as_run(list(leaves[:num_moving]), precise), as_run(list(leaves[num_moving:]), precise))

    kinds = [float if precise else shape.dtype for shape in shapes[:num_moving]]
    widest = max(_eps(kind) for kind in kinds)
    try:
        jaxpr = jax.make_jaxpr(outputs)(*shapes)
    except Exception:  # f must see values: nothing to read
        return widest
    return max(widest, *(_eps(aval.dtype) for aval in jaxpr.out_avals), _narrowing(jaxpr.jaxpr))


def _narrowing(jaxpr: Any) -> float:
    """The coarsest spacing that an operation rounds finer numbers to."""
    coarsest = 0.0
    for equation in jaxpr.eqns:
        ins = [_eps(v.aval.dtype) for v in equation.invars if _is_float(v)]
        outs = [_eps(v.aval.dtype) for v in equation.outvars if _is_float(v)]
        if ins and outs and max(outs) > min(ins):
            coarsest = max(coarsest, *outs)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                coarsest = max(coarsest, _narrowing(inner))
    return coarsest


def _is_float(variable: Any) -> bool:
    return hasattr(variable.aval, "dtype") and jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)
