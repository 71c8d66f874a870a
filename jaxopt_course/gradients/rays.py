"""Rays through the point, and f along them.

A ray is a stretch of the row of coordinates with a weight on each, and a point lies on it at a distance t, counted in
units of each coordinate's own size. All that is compiled is here.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_course.gradients.subject import Fresh, Leaves, Part, Subject

LARGE = 2**20  # coordinates from which memory is minded more than speed
UNIT = 96  # weights are int8 and stand for weight / 96, so that a direction costs a byte a coordinate


def compiled(function: Callable[..., Any], subject: Subject, *static: Any) -> Callable[..., Any]:
    """The function with its first arguments fixed, compiled once for a subject."""
    if not isinstance(subject.f, Fresh):
        return _kept(function, subject, *static)
    programs, key = subject.f.programs, (function, *static)
    if key not in programs:
        programs[key] = jax.jit(partial(function, subject, *static))
    return programs[key]


@lru_cache(maxsize=64)
def _kept(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    return jax.jit(partial(function, *static))


class Rays(NamedTuple):
    """Stretches [first, last) of the row of coordinates, [R] each, under one set of weights."""

    weights: Leaves
    first: np.ndarray
    last: np.ndarray


@contextlib.contextmanager
def arithmetic(precise: bool) -> Iterator[None]:
    """The user's own settings; or, where `precise`, float64, which may meet the float32 constants inside f."""
    if not precise:
        yield
        return
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def widened(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return leaf.astype(jnp.complex128)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def as_run(leaves: Leaves, precise: bool) -> Leaves:
    return [widened(leaf) for leaf in leaves] if precise else leaves


def sizes_of(moving: Leaves) -> np.ndarray:
    """The typical size of each leaf, [L]: the root mean square of its finite entries, 1 where that is zero."""
    sizes = []
    for leaf in moving:
        entries = np.asarray(leaf).ravel()
        if entries.dtype.itemsize < 4:
            entries = entries.astype(np.float32)
        norm = float(np.linalg.norm(entries)) if entries.size else 0.0
        if not np.isfinite(norm):  # overflowed, or there is something to leave out
            norm = float(np.linalg.norm(entries[np.isfinite(entries)].astype(complex)))
        rms = norm / np.sqrt(max(entries.size, 1))
        sizes.append(rms if 0 < rms < np.inf else 1.0)
    return np.array(sizes)


def unit_of(leaf: Any, size: Any) -> Any:
    """What a step of t = 1 is for each entry: its own magnitude, and no less than is typical of its leaf."""
    xp: Any = np if isinstance(leaf, np.ndarray) else jnp
    return xp.maximum(xp.abs(leaf), size)


def along(part: Part, leaf: Any, weight: Any, size: Any, first: Any, last: Any, t: Any) -> Any:
    """The step from a leaf to its point at t on the ray, in the leaf's own dtype."""
    real = jnp.abs(leaf).dtype
    unit = unit_of(leaf, jnp.asarray(size, real)) * jnp.asarray(t, real)
    places = jnp.arange(part.size, dtype=jnp.int32).reshape(part.shape)

    def stretch(weight: Any, start: int) -> Any:
        inside = (places >= first - start) & (places < last - start)
        return jnp.where(inside, unit * (jnp.asarray(weight).astype(real) / UNIT), jnp.zeros((), real))

    if part.is_complex:
        return lax.complex(stretch(weight[0], part.first), stretch(weight[1], part.first + part.size))
    return stretch(weight, part.first)


def steps_along(
    parts: tuple[Part, ...], moving: Leaves, weights: Leaves, sizes: Any, first: Any, last: Any, t: Any
) -> Leaves:
    return [
        along(part, leaf, weight, size, first, last, t)
        for part, leaf, weight, size in zip(parts, moving, weights, sizes, strict=True)
    ]


def readings(outputs: Leaves, cotangents: Leaves | None) -> Any:
    """What is read of the outputs, [M] in the widest real dtype: every real component, or u.f for each cotangent u."""
    xp: Any = np if isinstance(outputs[0], np.ndarray) else jnp
    wide = np.float64 if xp is np else jax.dtypes.canonicalize_dtype(np.float64)
    if cotangents is None:
        flat = []
        for leaf in outputs:
            flat.append(xp.real(leaf).ravel().astype(wide))
            if xp.iscomplexobj(leaf):
                flat.append(xp.imag(leaf).ravel().astype(wide))
        return xp.concatenate(flat) if len(flat) > 1 else flat[0]
    total = xp.zeros(cotangents[0].shape[0], wide)
    for leaf, u in zip(outputs, cotangents, strict=True):
        products = xp.real(u).astype(wide) * xp.real(leaf)[None].astype(wide)
        if xp.iscomplexobj(leaf):
            products = products - xp.imag(u).astype(wide) * xp.imag(leaf)[None].astype(wide)
        total = total + products.reshape(len(total), -1).sum(axis=1)
    return total


class Point(NamedTuple):
    """Where f is looked at, all of it traced: its arguments, how far and along what it moves, what is read of it."""

    moving: Leaves
    data: Leaves
    weights: Leaves
    sizes: Any
    cotangents: Leaves | None

    def as_run(self, precise: bool) -> "Point":
        return self._replace(moving=as_run(self.moving, precise), data=as_run(self.data, precise))

    def steps(self, parts: tuple[Part, ...], first: Any, last: Any, t: Any) -> Leaves:
        return steps_along(parts, self.moving, self.weights, self.sizes, first, last, t)


def value_at(
    subject: Subject, parts: tuple[Part, ...], precise: bool, point: Point, first: Any, last: Any, t: Any
) -> Any:
    """Readings [M] at one point of a ray."""
    point = point.as_run(precise)
    moved = [leaf + step for leaf, step in zip(point.moving, point.steps(parts, first, last, t), strict=True)]
    if parts[-1].last > LARGE:
        moved = lax.optimization_barrier(moved)  # or XLA may hold the leaves and the steps as well, all in float64
    return readings(subject.outputs(moved, point.data), point.cotangents)


def values_at(
    subject: Subject,
    parts: tuple[Part, ...],
    precise: bool,
    batch: int,
    point: Point,
    first: Any,
    last: Any,
    t: Any,
    count: Any,
) -> Any:
    """Readings [P, M] at points of rays, `batch` at a time; those past `count` are left at zero."""
    at = partial(value_at, subject, parts, precise, point)

    def body(number: Any, out: Any) -> Any:
        start = number * batch
        rays = [lax.dynamic_slice_in_dim(x, start, batch) for x in (first, last, t)]
        return lax.dynamic_update_slice_in_dim(out, jax.vmap(at)(*rays), start, 0)

    one = jax.eval_shape(at, first[0], last[0], t[0])
    return lax.fori_loop(0, (count + batch - 1) // batch, body, jnp.zeros((first.shape[0], *one.shape), one.dtype))


class Linear(NamedTuple):
    """f linearised at the point: its outputs; a gradient for each cotangent; forward slopes along one ray."""

    outputs: Leaves  # of reverse mode only
    grads: Leaves | None  # [M, *shape] of each part
    slopes: Any | None  # [M]


def linearise(
    subject: Subject, parts: tuple[Part, ...], precise: bool, reverse: bool, forward: bool, point: Point
) -> Linear:
    """By reverse mode, by forward mode along the ray of all coordinates, or by both."""
    point, grads, slopes = point.as_run(precise), None, None
    out: Leaves = []

    def outputs(moving: Leaves) -> Leaves:
        return subject.outputs(moving, point.data)

    if reverse:
        out, pull = jax.vjp(outputs, point.moving)
        cotangents = [u.astype(leaf.dtype) for u, leaf in zip(point.cotangents or [], out, strict=True)]
        if cotangents[0].shape[0] == 1:
            grads = [grad[None] for grad in pull([u[0] for u in cotangents])[0]]
        else:
            grads = lax.map(lambda u: pull(u)[0], cotangents, batch_size=64)
    if forward:
        steps = point.steps(parts, 0, parts[-1].last, 1.0)
        slopes = readings(jax.jvp(outputs, (point.moving,), (steps,))[1], point.cotangents)
    return Linear(out, grads, slopes)


def forward_slopes(
    subject: Subject, parts: tuple[Part, ...], precise: bool, point: Point, first: Any, last: Any
) -> Any:
    """Slopes [R, M] along rays by forward mode, for functions that have no other."""
    point = point.as_run(precise)

    def slope(ray: Any) -> Any:
        steps = point.steps(parts, ray[0], ray[1], 1.0)
        tangents = jax.jvp(lambda moving: subject.outputs(moving, point.data), (point.moving,), (steps,))[1]
        return readings(tangents, point.cotangents)

    return lax.map(slope, (first, last))
