"""Numerical gradients by finite differences."""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_course.annotations import Array, ArrayLike, Params, PyTree
from jaxopt_course.dtypes import at_least_32_bits, check_floating, widest
from jaxopt_course.gradients.numerical import CACHE
from jaxopt_course.gradients.subject import ByIdentity, Function, Leaves

# Offsets of the points in units of h; their weights in the sum that is divided by h; and the power of the
# floating-point spacing that balances truncation error and rounding error.
RULES = {
    "forward": ((1.0, 0.0), (1.0, -1.0), 1 / 2),
    "central": ((1.0, -1.0), (1 / 2, -1 / 2), 1 / 3),
    "richardson": ((1.0, -1.0, 0.5, -0.5), (-1 / 6, 1 / 6, 4 / 3, -4 / 3), 1 / 5),
}
METHODS = (*RULES, "complex_step")
TINY = {np.dtype(np.float32): 1e-15, np.dtype(np.float64): 1e-50}  # complex steps, which have no cancellation
# Operations without an analytic continuation to complex numbers, or with one that JAX does not compute.
NOT_ANALYTIC = {
    "abs",
    "max",
    "min",
    "sign",
    "real",
    "imag",
    "conj",
    "floor",
    "ceil",
    "round",
    "reduce_max",
    "reduce_min",
}
NOT_ANALYTIC |= {
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "is_finite",
    "sort",
    "argmax",
    "argmin",
    "cummax",
    "cummin",
    "clamp",
}
FAR_OFF = 0.1  # a relative deviation from another difference above this is reported


class NumericalGradientWarning(UserWarning):
    """A numerical gradient is not finite, or differs much from another difference."""


def numerical_gradient(
    f: Function, params: Params, *, h: float | Array | None = None, method: str = "central"
) -> PyTree:
    r"""Compute the gradient of f by finite differences, one coordinate after the other.

    $$\frac{\partial f}{\partial w_i} \approx \frac{f(w + h_i e_i) - f(w - h_i e_i)}{2 h_i}$$

    | method | evaluations of f | error |
    |---|---|---|
    | `"forward"` | n + 1, of which n are distinct points | O(h) + O(eps / h) |
    | `"central"` | 2n | O(h^2) + O(eps / h) |
    | `"richardson"` | 4n, central differences at h and h/2 extrapolated | O(h^4) + O(eps / h) |
    | `"complex_step"` | n, Im f(w + ih e_i) / h | O(h^2), without cancellation |

    f is evaluated in the dtype of the parameters, in compiled chunks, and traced as by `jax.jit`; the result can itself
    be jitted and vmapped. Outside of `jit`, three more evaluations along a random direction test the result. A
    `NumericalGradientWarning` says where the result is not finite, because a step left the domain of f, or that it
    differs much from another difference. To judge a gradient, use `gradcheck`, which estimates the errors of its
    differences.

    Args:
      f: `params -> scalar`, array or tree of arrays. For complex steps it should be analytic: composed of functions
        that extend to complex numbers. If it contains others (a maximum, a comparison, a real part, as in softplus and
        logsumexp), central differences are computed too, and replace the complex steps that differ from them.
      params: any tree of floating-point arrays. Complex leaves follow JAX's convention, df/dx - i df/dy, and need a
        real f.
      h: the step, one positive number for all coordinates. By default eps^(1/3) (central; forward 1/2, richardson 1/5)
        times max(|w_i|, 1), with eps the spacing of the parameter's dtype.
      method: one of the methods in the table.

    Returns:
      For a scalar f a tree like `params`; else, as `jax.jacobian`, for each output a tree of arrays of shape
      `output.shape + param.shape`. At least float32.

    Raises:
      TypeError: parameters that are not floating point; complex steps of 16-bit or complex parameters, or of an f that
        leaves the complex numbers; a complex f of complex parameters.
      ValueError: an unknown method, a step that is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> f = lambda w: jnp.sum((w - jnp.array([1.0, 2.0])) ** 2)
      >>> w = jnp.zeros(2)
      >>> for _ in range(20):
      ...     w = w - 0.3 * numerical_gradient(f, w)
      >>> print(f"{f(jnp.zeros(2)):.1f} -> {f(w):.4f}")
      5.0 -> 0.0000

    Source: the lecture's "Numeric gradient"; Nocedal and Wright (2006), section 8.1; Squire and Trapp (1998), "Using
    complex variables to estimate derivatives of real functions".
    """
    if method not in METHODS:
        raise ValueError(f"numerical_gradient: method must be one of {', '.join(METHODS)}; got {method!r}")
    if h is not None and not isinstance(h, jax.core.Tracer) and not (jnp.ndim(h) == 0 and 0 < float(h) < np.inf):
        raise ValueError(f"numerical_gradient: h must be one positive number; got {h}")
    check_floating(params)
    gradient, off = _by_coordinates(ByIdentity(f), method, jax.tree.map(jnp.asarray, params), h)
    if not isinstance(off, jax.core.Tracer):
        _warn(method, gradient, float(off))
    return gradient


def _warn(method: str, gradient: PyTree, off: float) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    lost = [jax.tree_util.keystr(path) or "params" for path, leaf in leaves if not bool(jnp.isfinite(leaf).all())]
    if lost:
        said = f"not finite at {', '.join(lost)}: a step leaves the domain of f, or overflows; give a smaller h"
    elif np.isinf(off):
        said = "in doubt: a third of its step leaves the domain of f, or overflows; give a smaller h"
    elif off > FAR_OFF:
        said = f"{off:.0%} from another difference along a random direction: h is too large for f, or lost in rounding"
    else:
        return
    message = f"numerical_gradient: the result of {method!r} is {said}. gradcheck chooses steps and gives their error"
    warnings.warn(message, NumericalGradientWarning, stacklevel=3)


class _Stencil(NamedTuple):
    """The point and the steps from it, like each leaf; `firsts` are the first coordinates of the leaves."""

    f: ByIdentity
    treedef: jax.tree_util.PyTreeDef
    leaves: Leaves
    steps: Leaves
    firsts: np.ndarray

    @classmethod
    def of(cls, f: ByIdentity, method: str, params: Params, h: float | ArrayLike | None) -> "_Stencil":
        leaves, treedef = jax.tree.flatten(params)
        steps = [_step(leaf, method, h) for leaf in leaves]
        sizes = [leaf.size * (2 if jnp.iscomplexobj(leaf) else 1) for leaf in leaves]
        if method == "complex_step":
            leaves = [leaf.astype(_complex_of(leaf)) for leaf in leaves]
        return cls(f, treedef, leaves, steps, np.concatenate([[0], np.cumsum(sizes)]))

    def value(self, leaves: Leaves) -> PyTree:
        return self.f.value(jax.tree.unflatten(self.treedef, leaves))

    def moved(self, coordinate: ArrayLike, offset: float, *, imaginary: bool) -> PyTree:
        """Return f with one coordinate moved by `offset` steps, or by an imaginary step."""
        out = []
        for leaf, step, first in zip(self.leaves, self.steps, self.firsts, strict=False):
            places, by = jnp.arange(leaf.size).reshape(leaf.shape), step * jnp.asarray(offset, step.dtype)
            at, none = coordinate - first, jnp.zeros((), step.dtype)
            by, up = jnp.where(places == at, by, none), jnp.where(places == at - leaf.size, by, none)
            if imaginary:
                by, up = jnp.zeros_like(by), by
            out.append(leaf + (lax.complex(by, up) if jnp.iscomplexobj(leaf) else by))
        return self.value(out)

    def gather(self, params: Params, rows: ArrayLike) -> PyTree:
        """Arrange a slope for each coordinate in a tree like the parameters."""
        pieces = []
        for leaf, first in zip(jax.tree.leaves(params), self.firsts, strict=False):
            piece = rows[first : first + leaf.size]
            if jnp.iscomplexobj(leaf):
                piece = lax.complex(piece, -rows[first + leaf.size : first + 2 * leaf.size])
            piece = piece.reshape(*leaf.shape, *rows.shape[1:])
            pieces.append(jnp.moveaxis(piece, range(leaf.ndim), range(-leaf.ndim, 0)) if leaf.ndim else piece)
        return jax.tree.unflatten(self.treedef, pieces)


@partial(jax.jit, static_argnums=(0, 1))
def _by_coordinates(
    f: ByIdentity, method: str, params: Params, h: float | ArrayLike | None
) -> tuple[PyTree, ArrayLike]:
    """Return the gradient, and its deviation from a central difference along a random direction."""
    stencil = _Stencil.of(f, method, params, h)
    rows = _rows(stencil, method)
    if method == "complex_step" and _passes_through_others(stencil):
        central = _rows(_Stencil.of(f, "central", params, None), "central")
        rows = jax.tree.map(_repaired, rows, central)
    gradient = jax.tree.map(partial(stencil.gather, params), rows)
    return gradient, _far_off(_Stencil.of(f, "central" if method == "complex_step" else method, params, h), rows)


def _rows(stencil: _Stencil, method: str) -> PyTree:
    """Return slopes along all coordinates, one after the other."""

    def slope(at: tuple[ArrayLike, ArrayLike]) -> PyTree:
        coordinate, width = at
        if method == "complex_step":
            moved = stencil.moved(coordinate, 1.0, imaginary=True)
            return jax.tree.map(lambda out: _imaginary(out) / width.astype(_imaginary(out).dtype), moved)
        offsets, weights, _ = RULES[method]
        values = [stencil.moved(coordinate, offset, imaginary=False) for offset in offsets]
        return jax.tree.map(lambda *outs: _weighed(stencil, outs, weights, width), *values)

    leaves = zip(stencil.leaves, stencil.steps, stencil.firsts, np.diff(stencil.firsts), strict=False)
    widths = [jnp.tile(_realised(x, s, method).ravel(), n // max(x.size, 1) if x.size else 1) for x, s, _, n in leaves]
    width = jnp.concatenate([w.astype(widest(*(w.dtype for w in widths))) for w in widths])
    total = int(stencil.firsts[-1])
    batch = int(np.clip(CACHE // (8 * max(total, 1)), 1, 64))
    return lax.map(slope, (jnp.arange(total), width), batch_size=batch)


def _weighed(stencil: _Stencil, outs: Leaves, weights: tuple[float, ...], width: ArrayLike) -> ArrayLike:
    dtype = widest(at_least_32_bits(jnp.asarray(outs[0]).dtype), width.dtype)
    if any(map(jnp.iscomplexobj, stencil.leaves)) and jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError("numerical_gradient: a complex f of complex parameters has no gradient; take real(f)")
    terms = [jnp.asarray(out).astype(dtype) * jnp.asarray(w, dtype) for out, w in zip(outs, weights, strict=True)]
    return jnp.sum(jnp.stack(terms), axis=0) / width.astype(dtype)


def _passes_through_others(stencil: _Stencil) -> bool:
    """Whether f applies an operation without analytic continuation to complex numbers."""
    jaxpr = jax.make_jaxpr(lambda leaves: stencil.value(leaves))(list(stencil.leaves))
    return _not_analytic(jaxpr.jaxpr)


def _not_analytic(jaxpr: PyTree) -> bool:
    for equation in jaxpr.eqns:
        touched = any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in equation.invars)
        if equation.primitive.name in NOT_ANALYTIC and touched:
            return True
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns") and _not_analytic(inner):
                return True
    return False


def _repaired(by_complex_step: ArrayLike, central: ArrayLike) -> ArrayLike:
    """Return complex-step slopes, replaced by central differences where they differ by more than the expected error."""
    central = central.astype(by_complex_step.dtype)
    scale = jnp.maximum(jnp.abs(by_complex_step), jnp.abs(central))
    near = jnp.abs(by_complex_step - central) <= jnp.finfo(central.dtype).eps ** 0.25 * scale
    return jnp.where(near, by_complex_step, central)


class _Ray(NamedTuple):
    """A random direction: the step of each coordinate, and its rounding error relative to the step."""

    steps: ArrayLike
    rounding: ArrayLike


def _far_off(stencil: _Stencil, rows: PyTree) -> ArrayLike:
    """Return the deviation of the gradient from a central difference along a random direction, relative to the slope.

    Each coordinate moves by a third of its step, or less if there are many, so that f has less curvature along the
    direction than along the coordinates.
    """
    rng, total = np.random.default_rng(0), int(stencil.firsts[-1])
    signs = rng.choice([-0.3, 0.3], total) / np.sqrt(max(total, 1))
    steps, rounding, ahead, behind = [], [jnp.zeros((), jnp.float32)], [], []
    for leaf, step, first in zip(stencil.leaves, stencil.steps, stencil.firsts, strict=False):
        sides = 2 if jnp.iscomplexobj(leaf) else 1
        own = signs[first : first + sides * leaf.size].reshape(sides, *leaf.shape)
        by = jnp.asarray(own, step.dtype) * step[None]
        move = lax.complex(by[0], by[1]) if sides == 2 else by[0]
        eps = float(jnp.finfo(step.dtype).eps)
        rounding.append(jnp.max(eps * jnp.abs(leaf) / jnp.abs(move), initial=0).astype(jnp.float32))
        steps.append(by.reshape(-1).astype(at_least_32_bits(step.dtype)))
        ahead.append(leaf + move)
        behind.append(leaf - move)
    ray = _Ray(jnp.concatenate([x.astype(widest(*(y.dtype for y in steps))) for x in steps]), jnp.stack(rounding).max())
    values = [stencil.value(leaves) for leaves in (ahead, stencil.leaves, behind)]
    return jax.tree.reduce(jnp.maximum, jax.tree.map(partial(_apart, ray), rows, *values), jnp.zeros((), jnp.float32))


def _apart(ray: _Ray, rows: ArrayLike, ahead: ArrayLike, here: ArrayLike, behind: ArrayLike) -> ArrayLike:
    """Return the largest relative difference for one output; infinite if only the gradient is finite.

    Differences explained by rounding of f, and of the points if f has curvature, are subtracted.
    """
    wide = at_least_32_bits(jnp.abs(rows).dtype)
    eps = float(jnp.finfo(jnp.asarray(here).dtype).eps)
    ahead, here, behind = (jnp.asarray(value).astype(rows.dtype) for value in (ahead, here, behind))
    by = ray.steps.astype(rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1))
    change, slope = (ahead - behind) / 2, jnp.sum(rows * by, axis=0)
    curvature_term = jnp.abs((ahead - here) - (here - behind)).astype(wide)
    noise = 20 * eps * jnp.abs(ahead).astype(wide) + 4 * ray.rounding.astype(wide) * curvature_term
    scale = jnp.sqrt(jnp.sum(jnp.abs(rows * by).astype(wide) ** 2, axis=0))
    off = jnp.maximum(jnp.abs(change - slope).astype(wide) - noise, 0) / jnp.maximum(scale, noise)
    off = jnp.where(jnp.isfinite(off), off, jnp.where(jnp.isfinite(slope) & ~jnp.isfinite(change), jnp.inf, 0))
    return jnp.max(off, initial=0).astype(jnp.float32)


def _step(leaf: ArrayLike, method: str, h: float | ArrayLike | None) -> ArrayLike:
    """Return the step of each entry, in the real dtype of the leaf."""
    real = jnp.abs(leaf).dtype
    if h is not None:
        return jnp.full(leaf.shape, h, real)
    if method == "complex_step":
        return jnp.full(leaf.shape, TINY.get(np.dtype(real), 0.0), real)
    step = float(jnp.finfo(real).eps) ** RULES[method][2]
    return jnp.asarray(step, real) * jnp.maximum(jnp.abs(leaf), jnp.ones((), real))


def _realised(leaf: ArrayLike, step: ArrayLike, method: str) -> ArrayLike:
    """Return the step actually taken: w + h is rounded, and so is its difference from w."""
    if method == "complex_step":
        return step
    wide = at_least_32_bits(step.dtype)
    x = jnp.real(leaf)
    ahead, behind = (x + step).astype(wide), (x if method == "forward" else x - step).astype(wide)
    return (ahead - behind) / (1 if method == "forward" else 2)


def _complex_of(leaf: ArrayLike) -> np.dtype:
    if jnp.iscomplexobj(leaf) or np.dtype(leaf.dtype) not in TINY:
        raise TypeError(f"numerical_gradient: complex steps need float32 or float64 parameters, got {leaf.dtype}")
    return np.dtype(jnp.complex64 if leaf.dtype == jnp.float32 else jnp.complex128)


def _imaginary(out: ArrayLike) -> ArrayLike:
    if not jnp.iscomplexobj(out):
        raise TypeError(
            f"numerical_gradient: with a complex step f returned {jnp.result_type(out)}: it contains a real part, an "
            'absolute value or a maximum, which removes the complex step; use method="central"'
        )
    return jnp.imag(out)
