"""The analytic side of a check: gradients by autodiff or by hand, in the user's own dtype and in float64."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.gradients.rays import (
    LARGE,
    UNIT,
    Point,
    Rays,
    arithmetic,
    as_run,
    compiled,
    forward_slopes,
    linearise,
    unit_of,
)
from jaxopt_course.gradients.subject import Arguments, Leaves, Part, first_line

BLOCK = 2**17  # entries that are multiplied at a time, so that a large leaf needs no copy in float64


class Gradient:
    """A gradient for each reading, [M, *shape] of every part; or only slopes, where f has forward mode alone."""

    def __init__(
        self, args: Arguments, sizes: np.ndarray, cotangents: Leaves, precise: bool, weights: Leaves | None = None
    ):
        self.args, self.sizes, self.cotangents, self.precise = args, sizes, cotangents, precise
        self.weights = weights or []  # of the ray along which forward mode is compared
        self.grad_fn: Callable[..., Any] | None = None
        self.grads: list[np.ndarray] | None = None
        self.outputs: Leaves = []
        self.forward: np.ndarray | None = None  # slopes [M] along the ray of all coordinates, by forward mode
        self.has_reverse = True
        self._run_by: Callable[..., Any] = compiled
        self._modes = (True, True)
        self.notes: list[str] = []

    @classmethod
    def by_autodiff(
        cls, args: Arguments, sizes: np.ndarray, cotangents: Leaves, weights: Leaves, precise: bool
    ) -> "Gradient":
        """Reverse and forward mode where both are defined, else the one that is; compiled where it can be."""
        self = cls(args, sizes, cotangents, precise, weights)
        large = args.num_coordinates > LARGE  # then one mode after the other, so that they need not share the memory
        for self._run_by in (compiled, partial):  # as it is where it cannot be compiled
            together = None if large else self._run(reverse=True, forward=True)
            if not large and together is None:
                self.has_reverse = True
                return self
            no_reverse = self._run(reverse=True, forward=False)
            self.has_reverse = no_reverse is None
            no_forward = self._run(reverse=False, forward=True) if large or no_reverse else together
            if no_forward is None or no_reverse is None:
                break
        else:
            assert no_reverse is not None
            no_reverse.add_note("gradcheck: f can be evaluated at the point, but neither mode differentiates it there")
            raise no_reverse
        if no_forward:
            self.notes.append(f"forward mode is not defined here: {first_line(no_forward)}")
        if no_reverse:
            self.notes.append(f"forward mode; reverse is not defined here: {first_line(no_reverse)}")
        return self

    def _run(self, reverse: bool, forward: bool) -> Exception | None:
        """Linearise in these modes; what stood in the way, if something did."""
        args = self.args
        run = self._run_by(linearise, args.subject, args.parts, self.precise, reverse, forward)
        try:
            with arithmetic(self.precise):
                found = run(Point(args.moving, args.data, self.weights, self.sizes, self.cotangents))
        except Exception as error:  # whatever f objects to; it has run at the point itself
            return error
        self.outputs = found.outputs or self.outputs
        if reverse or not self.has_reverse:
            self._modes = reverse, forward
        if reverse:
            self.grads = [np.asarray(grad) for grad in found.grads or []]
        if forward:
            self.forward = np.asarray(found.slopes, float)
        return None

    def put_away(self) -> None:
        """Free the memory of a large gradient; it is computed again when it is asked for."""
        if self.args.num_coordinates > LARGE and not self.grad_fn:
            self.grads = None

    def leaves(self) -> list[np.ndarray]:
        """The gradient, of a function that has reverse mode."""
        if self.grads is None:
            self._run(*self._modes)
        assert self.grads is not None
        return self.grads

    @classmethod
    def by_hand(
        cls,
        args: Arguments,
        sizes: np.ndarray,
        cotangents: Leaves,
        grad_fn: Callable[..., Any],
        precise: bool,
        name: str,
    ) -> "Gradient":
        """What the user's `grad_fn` returns for the one reading of a scalar f; its tree must be that of the params."""
        self = cls(args, sizes, cotangents, precise)
        self.grad_fn = grad_fn
        with arithmetic(precise):
            answer = grad_fn(*args.subject.arguments(as_run(args.moving, precise), as_run(args.data, precise)))
        self.grads = [leaf[None] for leaf in _match(answer, args, name)]
        return self

    def at(self, moving: Leaves) -> "Gradient":
        """The same gradient at another point."""
        args = self.args._replace(moving=moving)
        if self.grad_fn is not None:
            return Gradient.by_hand(args, self.sizes, self.cotangents, self.grad_fn, self.precise, "gradcheck")
        there = Gradient(args, self.sizes, self.cotangents, self.precise, self.weights)
        there.has_reverse, there._run_by, there._modes = self.has_reverse, self._run_by, self._modes
        there._run(*self._modes)
        return there

    @functools.cached_property
    def row(self) -> np.ndarray:
        """Every component, [M, n]: of a complex leaf the slopes for its real and for its imaginary parts."""
        leaves = zip(self.args.parts, self.leaves(), strict=True)
        flat = [(part, grad.reshape(len(grad), -1)) for part, grad in leaves]
        return np.concatenate([take(grad) for part, grad in flat for _, take in _stretches(part)], axis=1)

    @functools.cached_property
    def units(self) -> np.ndarray:
        """What a step of t = 1 is for each coordinate, [n]."""
        pieces = []
        for part, leaf, size in zip(self.args.parts, self.args.moving, self.sizes, strict=True):
            entries = np.asarray(leaf).ravel().astype(complex if part.is_complex else float)
            pieces += [unit_of(entries, size)] * (2 if part.is_complex else 1)
        return np.concatenate(pieces)

    def slopes(self, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
        """Slopes [R, M] along rays, and how large they would typically be: the root of the sum of squared terms."""
        if not self.has_reverse:
            with arithmetic(self.precise):
                subject, moving, data, parts, _ = self.args
                first, last = np.asarray(rays.first, np.int32), np.asarray(rays.last, np.int32)
                run = compiled(forward_slopes, subject, parts, self.precise)
                slopes = run(Point(moving, data, rays.weights, self.sizes, self.cotangents), first, last)
                slopes = np.asarray(slopes, float)
            return slopes, np.abs(slopes)
        if self.args.num_coordinates <= LARGE:
            weights = np.concatenate([np.asarray(weight, float).ravel() for weight in rays.weights]) / UNIT
            terms = self.row * (self.units * weights)
            if np.all(rays.last - rays.first == 1):
                return terms[:, rays.first].T, np.abs(terms[:, rays.first].T)
            pieces = [terms[:, first:last] for first, last in zip(rays.first, rays.last, strict=True)]
            return np.stack([x.sum(axis=1) for x in pieces]), np.stack([np.linalg.norm(x, axis=1) for x in pieces])
        return self._slopes_in_blocks(rays)

    def _slopes_in_blocks(self, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
        """The same for a large gradient, without a copy of it."""
        grads = self.leaves()
        num_readings = len(grads[0])
        sums, squares = np.zeros((2, len(rays.first), num_readings))
        for r, (first, last) in enumerate(zip(rays.first, rays.last, strict=True)):
            for part, grad, leaf, size, weight in zip(
                self.args.parts, grads, self.args.moving, self.sizes, rays.weights, strict=True
            ):
                for number, (stretch, take) in enumerate(_stretches(part)):
                    a, b = max(first - stretch, 0), min(last - stretch, part.size)
                    w = np.asarray(weight).reshape(-1, part.size)[number]
                    x = np.asarray(leaf).reshape(-1)
                    for i in range(a, b, BLOCK):
                        at = slice(i, min(i + BLOCK, b))
                        unit = unit_of(x[at].astype(complex if part.is_complex else float), size)
                        terms = take(grad.reshape(num_readings, -1)[:, at]) * (unit * (w[at] / UNIT))
                        sums[r] += terms.sum(axis=1)
                        squares[r] += (terms**2).sum(axis=1)
        return sums, np.sqrt(squares)

    def not_finite(self) -> dict[int, np.ndarray]:
        """For each part with entries that are not finite, the flat places of those."""
        if not self.has_reverse:
            return {}
        found = {i: np.flatnonzero(~np.isfinite(_wide(grad)).all(axis=0)) for i, grad in enumerate(self.leaves())}
        return {i: places for i, places in found.items() if places.size}


def _stretches(part: Part) -> list[tuple[int, Callable[[np.ndarray], np.ndarray]]]:
    """Where a leaf's coordinates begin, and its gradient there; of the real parts and then the imaginary ones."""
    real = (part.first, lambda grad: np.real(grad).astype(float))
    return [real, (part.first + part.size, lambda grad: -np.imag(grad))] if part.is_complex else [real]


def _wide(grad: np.ndarray) -> np.ndarray:
    return grad if grad.dtype.itemsize >= 4 else grad.astype(np.float32)


def _match(answer: Any, args: Arguments, name: str) -> list[np.ndarray]:
    """The leaves of a hand-written gradient in the order of the parts."""
    with_paths = jax.tree_util.tree_leaves_with_path(answer, is_leaf=lambda x: x is None)
    found = {jax.tree_util.keystr(path): leaf for path, leaf in with_paths}
    expected = {part.place for part in args.parts} | {skipped.place for skipped in args.skipped}
    if missing := [part.path for part in args.parts if part.place not in found]:
        raise ValueError(f"{name}: grad_fn returned no gradient for {', '.join(missing)}; expected the tree of params")
    if unknown := [f"params{place}" for place in found if place not in expected]:
        raise ValueError(f"{name}: grad_fn returned a gradient for {', '.join(unknown)}, which params does not have")
    leaves = []
    for part in args.parts:
        leaf = np.asarray(found[part.place])
        if leaf.shape != part.shape:
            raise ValueError(
                f"{name}: grad_fn returned shape {leaf.shape} for {part.path} of shape {part.shape}; they must be equal"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(f"{name}: grad_fn returned {leaf.dtype} for {part.path}; expected floating point")
        leaves.append(leaf)
    return leaves
