"""The analytic side of a check: gradients by autodiff or by hand, in the user's own dtype and in float64."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.gradients.rays import (
    UNIT,
    Linear,
    Rays,
    arithmetic,
    as_run,
    compiled,
    forward_slopes,
    linearise,
    unit_of,
)
from jaxopt_course.gradients.subject import Arguments, Leaves, Part, first_line

BLOCK = 2**20  # entries that are multiplied at a time, so that a large leaf needs no copy in float64


class Gradient:
    """A gradient for each reading, [M, *shape] of every part; or only slopes, where f has forward mode alone."""

    def __init__(
        self, args: Arguments, sizes: np.ndarray, cotangents: Leaves, precise: bool, weights: Sequence[Any] = ()
    ):
        self.args, self.sizes, self.cotangents, self.precise, self.weights = args, sizes, cotangents, precise, weights
        self.grads: list[np.ndarray] | None = None
        self.outputs: Leaves = []
        self.forward: np.ndarray | None = None  # slopes [M] along the ray of all coordinates, by forward mode
        self.notes: list[str] = []

    @classmethod
    def by_autodiff(
        cls, args: Arguments, sizes: np.ndarray, cotangents: Leaves, weights: Leaves, precise: bool
    ) -> "Gradient":
        """Reverse and forward mode where both are defined, else the one that is; compiled where it can be."""
        self = cls(args, sizes, cotangents, precise, weights)
        refused: list[Exception] = []
        for reverse, forward in ((True, True), (True, False), (False, True)):
            static = (args.subject, args.parts, precise, reverse, forward)
            for run in (compiled(linearise, *static), partial(linearise, *static)):
                try:
                    with arithmetic(precise):
                        found = run(args.moving, args.data, weights, sizes, cotangents)
                except Exception as error:  # whatever f objects to; it has run at the point itself
                    refused.append(error)
                    continue
                self._take(found)
                if not forward:
                    self.notes.append(f"forward mode is not defined here ({first_line(refused[0])})")
                if not reverse:
                    self.notes.append(f"reverse mode is not defined here ({first_line(refused[2])}): forward mode")
                return self
        refused[2].add_note("gradcheck: f can be evaluated at the point, but neither mode differentiates it there")
        raise refused[2]

    def _take(self, found: Linear) -> None:
        self.outputs = found.outputs
        self.grads = None if found.grads is None else [np.asarray(grad) for grad in found.grads]
        self.forward = None if found.slopes is None else np.asarray(found.slopes, float)

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
        with arithmetic(precise):
            answer = grad_fn(*args.subject.arguments(as_run(args.moving, precise), as_run(args.data, precise)))
        self.grads = [leaf[None] for leaf in _match(answer, args, name)]
        return self

    def at(self, moving: Leaves, grad_fn: Callable[..., Any] | None) -> "Gradient":
        """The same gradient at another point."""
        args = self.args._replace(moving=moving)
        if grad_fn is not None:
            return Gradient.by_hand(args, self.sizes, self.cotangents, grad_fn, self.precise, "gradcheck")
        return Gradient.by_autodiff(args, self.sizes, self.cotangents, list(self.weights), self.precise)

    def row(self) -> np.ndarray:
        """Every component, [M, n]: of a complex leaf the slopes for its real and for its imaginary parts."""
        assert self.grads is not None
        pieces = []
        for part, grad in zip(self.args.parts, self.grads, strict=True):
            flat = grad.reshape(len(grad), -1)
            pieces.append(np.real(flat).astype(float))
            if part.is_complex:
                pieces.append(-np.imag(flat).astype(float))
        return np.concatenate(pieces, axis=1)

    def slopes(self, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
        """Slopes [R, M] along rays, and how large they would typically be: the root of the sum of squared terms."""
        if self.grads is None:
            with arithmetic(self.precise):
                subject, moving, data, parts, _ = self.args
                first, last = np.asarray(rays.first, np.int32), np.asarray(rays.last, np.int32)
                run = compiled(forward_slopes, subject, parts, self.precise)
                slopes = run(moving, data, rays.weights, self.sizes, self.cotangents, first, last)
                slopes = np.asarray(slopes, float)
            return slopes, np.abs(slopes)
        num_readings = len(self.grads[0])
        sums, squares = np.zeros((2, len(rays.first), num_readings))
        for r, (first, last) in enumerate(zip(rays.first, rays.last, strict=True)):
            for part, grad, leaf, size, weight in zip(
                self.args.parts, self.grads, self.args.moving, self.sizes, rays.weights, strict=True
            ):
                for stretch, sign, take in _stretches(part):
                    a, b = max(first - stretch, 0), min(last - stretch, part.size)
                    w = (weight[0 if sign > 0 else 1] if part.is_complex else weight).reshape(-1)
                    x = np.asarray(leaf).reshape(-1)
                    for i in range(a, b, BLOCK):
                        at = slice(i, min(i + BLOCK, b))
                        unit = unit_of(x[at].astype(complex if part.is_complex else float), size)
                        terms = sign * take(grad.reshape(num_readings, -1)[:, at]).astype(float) * unit * (w[at] / UNIT)
                        sums[r] += terms.sum(axis=1)
                        squares[r] += (terms**2).sum(axis=1)
        return sums, np.sqrt(squares)

    def not_finite(self) -> dict[int, np.ndarray]:
        """For each part with entries that are not finite, the flat places of those."""
        if self.grads is None:
            return {}
        found = {i: np.flatnonzero(~np.isfinite(_wide(grad)).all(axis=0)) for i, grad in enumerate(self.grads)}
        return {i: places for i, places in found.items() if places.size}


def _stretches(part: Part) -> list[tuple[int, float, Callable[[np.ndarray], np.ndarray]]]:
    real = (part.first, 1.0, np.real)
    return [real, (part.first + part.size, -1.0, np.imag)] if part.is_complex else [real]


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
