"""The analytic side of a check: gradients by autodiff or by `grad_fn`, in the user's dtype and in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_course.annotations import ArrayLike, PyTree
from jaxopt_course.arrays import check_arrays
from jaxopt_course.dtypes import at_least_32_bits
from jaxopt_course.gradients.compiling import compiled, uncompiled
from jaxopt_course.gradients.numerical import LARGE, Point, Rays
from jaxopt_course.gradients.subject import (
    UNIT,
    Arguments,
    Function,
    Leaves,
    Number,
    Part,
    Question,
    Subject,
    arithmetic,
    as_run,
    at_least_float32,
    first_line,
    read,
    unit_of,
)

BLOCK = 2**17  # entries multiplied at a time, so that a large leaf is not copied to float64


class Linear(NamedTuple):
    """f linearised at the point: its outputs, a gradient for each cotangent, and forward slopes along one ray."""

    outputs: Leaves  # of reverse mode only
    grads: Leaves | None  # [M, *shape] of each part
    nonlinearity: Number  # largest deviation of the gradient from linearity in its cotangent, relative to each entry
    slopes: ArrayLike | None  # [M]


class Modes(NamedTuple):
    """The parts that `linearise` computes: gradients for cotangents, slopes by forward mode, the test of linearity."""

    reverse: bool
    forward: bool
    nonlinearity: bool


ALL_MODES = Modes(reverse=True, forward=True, nonlinearity=True)


def mixture_weights(num_readings: int) -> np.ndarray:
    """Return the weights [M] of the cotangent that tests linearity; -1/2 for a single one, which is exact."""
    sizes = (64 + (29 * np.arange(num_readings)) % 64) / 128
    return np.where(np.arange(num_readings) % 2 == 0, -sizes, sizes)


def linearise(subject: Subject, parts: tuple[Part, ...], precise: bool, modes: Modes, point: Point) -> Linear:
    """Linearise by reverse mode, by forward mode along the ray of all coordinates, or by both."""
    point, found = point.as_run(precise), Linear([], None, 0.0, None)

    def outputs(moving: Leaves) -> Leaves:
        return subject.outputs(moving, point.data)

    if modes.reverse or modes.nonlinearity:
        out, pull = jax.vjp(outputs, point.moving)
        cotangents = [u.astype(leaf.dtype) for u, leaf in zip(point.cotangents or [], out, strict=True)]
        weights = mixture_weights(cotangents[0].shape[0])
        if modes.nonlinearity:
            mixed = [jnp.tensordot(jnp.asarray(weights, u.dtype), u, 1) for u in cotangents]
            cotangents = [jnp.concatenate([u, m[None]]) for u, m in zip(cotangents, mixed, strict=True)]
        if parts[-1].last > LARGE:  # unrolled, so that arrays that are only compared are not kept
            every = [
                jnp.stack(rows) for rows in zip(*(pull(list(u))[0] for u in zip(*cotangents, strict=True)), strict=True)
            ]
        else:
            every = lax.map(lambda u: pull(u)[0], cotangents, batch_size=64 if len(weights) > 1 else None)
        grads = [grad[: len(weights)] for grad in every]
        if modes.nonlinearity:
            found = found._replace(nonlinearity=_nonlinearity(grads, [grad[-1] for grad in every], weights))
        if modes.reverse:
            found = found._replace(outputs=out, grads=grads)
    if modes.forward:
        steps = point.steps(parts, 0, parts[-1].last, 1.0)
        found = found._replace(slopes=read(jax.jvp(outputs, (point.moving,), (steps,))[1], point.cotangents))
    return found


def _nonlinearity(grads: Leaves, again: Leaves, weights: np.ndarray) -> ArrayLike:
    """Return the deviation of the gradient of a mixture of readings from the mixture of gradients, relative to terms.

    With one reading the mixture is an exact multiple, and the deviation of each entry is relative to the entry. With
    several, terms round; entries below a thousandth of the leaf's largest are then compared with that thousandth.
    """
    worst = jnp.zeros((), jnp.float32)
    for grad, one in zip(grads, again, strict=True):
        if not grad.size:
            continue
        wide, tiny = at_least_32_bits(grad.dtype), 1e4 * float(jnp.finfo(grad.dtype).tiny)
        terms = jnp.asarray(weights, wide).reshape(-1, *(1,) * one.ndim) * grad.astype(wide)
        total = jnp.sum(terms, axis=0) if len(weights) > 1 else terms[0]
        size = jnp.sum(jnp.abs(terms), axis=0) if len(weights) > 1 else jnp.abs(total)
        scale = jnp.maximum(size, 1e-3 * jnp.max(size) + tiny if len(weights) > 1 else tiny)
        apart = jnp.abs(total - one.astype(wide)) / scale
        worst = jnp.maximum(worst, jnp.max(jnp.where(jnp.isfinite(size), apart, 0)).astype(jnp.float32))
    return worst


def forward_slopes(
    subject: Subject, parts: tuple[Part, ...], precise: bool, point: Point, rays: tuple[ArrayLike, ArrayLike]
) -> ArrayLike:
    """Return slopes [R, M] along rays (first, last) by forward mode, for functions without reverse mode."""
    point = point.as_run(precise)

    def slope(ray: tuple[ArrayLike, ArrayLike]) -> ArrayLike:
        steps = point.steps(parts, ray[0], ray[1], 1.0)
        tangents = jax.jvp(lambda moving: subject.outputs(moving, point.data), (point.moving,), (steps,))[1]
        return read(tangents, point.cotangents)

    return lax.map(slope, rays)


@dataclass(frozen=True)
class Gradient:
    """A gradient for each reading; or only slopes along rays, if f has only forward mode.

    `weights`: of the ray along which forward mode is compared; `forward` [M]: its slopes by forward mode;
    `nonlinearity`: deviation of reverse mode from linearity in its cotangent; `kept`: the leaves [M, *shape], which a
    large gradient recomputes when they are needed.
    """

    question: Question
    precise: bool
    weights: Leaves = field(default_factory=list)
    modes: Modes = ALL_MODES
    run_by: Callable[..., Function] = compiled
    grad_fn: Function | None = None
    kept: list[np.ndarray] | None = None
    outputs: Leaves = field(default_factory=list)
    nonlinearity: float = 0.0
    forward: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @property
    def args(self) -> Arguments:
        return self.question.args

    @property
    def has_reverse(self) -> bool:
        return self.grad_fn is not None or self.modes.reverse

    @property
    def leaves(self) -> list[np.ndarray]:
        """The gradient, for a function that has reverse mode."""
        return self.kept if self.kept is not None else _arrays(_linear(self, self.modes).grads)

    def with_leaves(self) -> "Gradient":
        """Return the same gradient with its leaves in memory."""
        return replace(self, kept=self.leaves) if self.has_reverse else self

    def at(self, moving: Leaves) -> "Gradient":
        """Return the same gradient at another point."""
        there = replace(self, question=self.question._replace(args=self.args._replace(moving=moving)), kept=None)
        if self.grad_fn is not None:
            return by_hand(there.question, self.grad_fn, self.precise, self.weights)
        return _evaluated(there)

    @cached_property
    def row(self) -> np.ndarray:
        """All components, [M, n]; for a complex leaf, the slopes for its real and for its imaginary parts."""
        flat = [(part, grad.reshape(len(grad), -1)) for part, grad in zip(self.args.parts, self.leaves, strict=True)]
        return np.concatenate([take(grad) for part, grad in flat for _, take in _coordinate_ranges(part)], axis=1)

    @cached_property
    def units(self) -> np.ndarray:
        """The step of each coordinate at t = 1, [n]."""
        pieces = []
        for part, leaf, size in zip(self.args.parts, self.args.moving, self.args.sizes, strict=True):
            entries = np.asarray(leaf).ravel().astype(complex if part.is_complex else float)
            pieces += [unit_of(entries, size)] * (2 if part.is_complex else 1)
        return np.concatenate(pieces)

    def slopes(self, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
        """Return slopes [R, M] along rays, and their typical sizes: the root of the sum of squared terms."""
        if not self.has_reverse:
            point = Point(
                self.args.moving, self.args.data, rays.weights, self.args.sizes, _cotangents(self), rays.absolute
            )
            with arithmetic(self.precise):
                run = compiled(forward_slopes, self.args, self.precise)
                slopes = np.asarray(run(point, (rays.first.astype(np.int32), rays.last.astype(np.int32))), float)
            return slopes, np.abs(slopes)
        if self.args.num_coordinates > LARGE:
            return self._slopes_in_blocks(rays)
        weights = np.concatenate([np.asarray(weight, float).ravel() for weight in rays.weights]) / UNIT
        units = 1.0 if rays.absolute else self.units * weights
        with np.errstate(over="ignore"):  # a slope that overflows is infinite, and is judged as infinite
            terms = np.where(self.units > 0, self.row * units, 0.0)
        if np.all(rays.last - rays.first == 1):
            return terms[:, rays.first].T, np.abs(terms[:, rays.first].T)
        pieces = [terms[:, first:last] for first, last in zip(rays.first, rays.last, strict=True)]
        return np.stack([x.sum(axis=1) for x in pieces]), np.stack([norm_of(x, axis=1) for x in pieces])

    def _slopes_in_blocks(self, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
        """Return the same for a large gradient, without copying it."""
        leaves = self.leaves
        sums, norms = np.zeros((2, len(rays.first), len(leaves[0])))
        for r, (first, last) in enumerate(zip(rays.first, rays.last, strict=True)):
            for terms in self._terms(leaves, rays, int(first), int(last)):
                sums[r] += terms.sum(axis=1)
                norms[r] = np.hypot(norms[r], norm_of(terms, axis=1))
        return sums, norms

    def _terms(self, leaves: list[np.ndarray], rays: Rays, first: int, last: int) -> Iterator[np.ndarray]:
        """Yield blocks [M, B] of slope times unit times weight on one ray."""
        args = self.args
        for part, grad, leaf, size, weight in zip(
            args.parts, leaves, args.moving, args.sizes, rays.weights, strict=True
        ):
            for number, (stretch, take) in enumerate(_coordinate_ranges(part)):
                a, b = max(first - stretch, 0), min(last - stretch, part.size)
                w, x = np.asarray(weight).reshape(-1, part.size)[number], np.asarray(leaf).reshape(-1)
                for i in range(a, b, BLOCK):
                    at = slice(i, min(i + BLOCK, b))
                    unit = unit_of(x[at].astype(complex if part.is_complex else float), size)
                    factor = np.ones(1) if rays.absolute else unit * (w[at] / UNIT)
                    yield np.where(unit > 0, take(grad.reshape(len(grad), -1)[:, at]) * factor, 0.0)

    def not_finite(self) -> dict[int, np.ndarray]:
        """Return, for each part, the flat places where the gradient is not finite although the parameter is."""
        if not self.has_reverse:
            return {}
        found = {}
        for number, (grad, leaf) in enumerate(zip(self.leaves, self.args.moving, strict=True)):
            bad = ~np.isfinite(at_least_float32(grad)).all(axis=0)
            places = (
                np.flatnonzero(bad & np.isfinite(at_least_float32(np.asarray(leaf)))) if bad.any() else np.zeros(0, int)
            )
            if places.size:
                found[number] = places
        return found


def norm_of(x: np.ndarray, axis: int) -> np.ndarray:
    """Return the Euclidean norm of numbers whose squares may underflow or overflow."""
    largest = np.max(np.abs(x), axis=axis, keepdims=True, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return np.linalg.norm(x / scale, axis=axis) * np.squeeze(scale, axis)


def by_autodiff(question: Question, weights: Leaves, precise: bool) -> Gradient:
    """Differentiate by reverse and forward mode, or by the one that is defined; compiled if possible."""
    last_error: Exception | None = None
    for run_by in (compiled, uncompiled):  # uncompiled only if compiling fails
        start = Gradient(question, precise, weights, run_by=run_by)
        large = question.args.num_coordinates > LARGE  # then one mode after the other, to save memory
        together = None if large else _attempt(start, Modes(True, True, True))
        if isinstance(together, Gradient):
            return together
        reverse = _attempt(start, Modes(True, False, not large))
        forward = _attempt(start, Modes(False, True, False))
        if isinstance(reverse, Gradient):
            tested = _attempt(start, Modes(False, False, True)) if large else reverse
            reverse = replace(reverse, nonlinearity=tested.nonlinearity if isinstance(tested, Gradient) else 0.0)
            if isinstance(forward, Gradient):
                return replace(reverse, forward=forward.forward)
            return replace(reverse, notes=(f"forward mode is not defined here: {first_line(forward)}",))
        if isinstance(forward, Gradient):
            return replace(forward, notes=(f"forward mode; reverse is not defined here: {first_line(reverse)}",))
        last_error = reverse
    assert last_error is not None
    last_error.add_note(f"{question.title}: f can be evaluated at the point, but neither mode differentiates it there")
    raise last_error


def by_hand(question: Question, grad_fn: Function, precise: bool, weights: Leaves) -> Gradient:
    """Return the gradient computed by the user's `grad_fn` for a scalar f; its tree must be that of the params."""
    args = question.args
    with arithmetic(precise):
        answer = grad_fn(*args.subject.arguments(as_run(args.moving, precise), as_run(args.data, precise)))
    return Gradient(question, precise, weights, grad_fn=grad_fn, kept=_matched_leaves(answer, question))


def _attempt(gradient: Gradient, modes: Modes) -> "Gradient | Exception":
    """Return the gradient by these modes, or the error that was raised."""
    try:
        return _evaluated(replace(gradient, modes=modes))
    except Exception as error:  # any error raised by f, which has run at the point itself
        return error


def _evaluated(gradient: Gradient) -> Gradient:
    found = _linear(gradient, gradient.modes)
    grads = None if found.grads is None else _arrays(found.grads)
    return replace(
        gradient,
        kept=grads if gradient.args.num_coordinates <= LARGE else None,
        outputs=[np.asarray(leaf) for leaf in found.outputs],
        nonlinearity=float(found.nonlinearity),
        forward=None if found.slopes is None else np.asarray(found.slopes, float),
    )


def _linear(gradient: Gradient, modes: Modes) -> Linear:
    args = gradient.args
    run = gradient.run_by(linearise, args, gradient.precise, modes)
    with arithmetic(gradient.precise):
        return run(Point(args.moving, args.data, gradient.weights, args.sizes, _cotangents(gradient)))


def _arrays(leaves: Leaves | None) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in leaves or []]


def _cotangents(gradient: Gradient) -> Leaves:
    return gradient.question.readings.cotangents


def _coordinate_ranges(part: Part) -> list[tuple[int, Callable[[np.ndarray], np.ndarray]]]:
    """Return the first coordinate of a leaf's real parts, and of its imaginary parts, each with its gradient."""
    real = (part.first, lambda grad: np.real(grad).astype(float))
    return [real, (part.first + part.size, lambda grad: -np.imag(grad))] if part.is_complex else [real]


def _matched_leaves(answer: PyTree, question: Question) -> list[np.ndarray]:
    """Return the leaves [1, *shape] of a hand-written gradient in the order of the parts."""
    name, args = question.title, question.args
    check_arrays(f"{name}: the gradient of params", answer)
    with_paths = jax.tree_util.tree_leaves_with_path(answer, is_leaf=lambda x: x is None)
    found = {jax.tree_util.keystr(path): leaf for path, leaf in with_paths}
    expected = {part.place for part in args.parts} | {skipped.place for skipped in args.skipped}
    if missing := [part.path for part in args.parts if part.place not in found]:
        raise ValueError(f"{name}: grad_fn returned no gradient for {', '.join(missing)}; expected the tree of params")
    if unknown := [f"params{place}" for place in found if place not in expected]:
        raise ValueError(f"{name}: grad_fn returned a gradient for {', '.join(unknown)}, which params does not have")
    leaves, returned = [], f"{name}: grad_fn returned"
    for part in args.parts:
        leaf = np.asarray(found[part.place])
        if leaf.shape != part.shape:
            raise ValueError(f"{returned} shape {leaf.shape} for {part.path} of shape {part.shape}; they must be equal")
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(f"{returned} {leaf.dtype} for {part.path}; expected floating point")
        leaves.append(leaf[None])
    return leaves
