"""Gradients from differences alone, and the lecture's spot check against them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_course.annotations import Array
from jaxopt_course.dtypes import at_least_32_bits, check_floating, widest
from jaxopt_course.gradients.analytic import by_hand
from jaxopt_course.gradients.numerical import CACHE, find_way, single_coordinates, units_at
from jaxopt_course.gradients.report import number, table
from jaxopt_course.gradients.subject import Question, Readings, Same, random_generator, run_plainly, take_apart

# Offsets of the points in units of h; their weights in the sum that is divided by h; and the power of the spacing of
# the floating-point numbers that balances what is cut off against what is rounded.
RULES = {
    "forward": ((1.0, 0.0), (1.0, -1.0), 1 / 2),
    "central": ((1.0, -1.0), (1 / 2, -1 / 2), 1 / 3),
    "richardson": ((1.0, -1.0, 0.5, -0.5), (-1 / 6, 1 / 6, 4 / 3, -4 / 3), 1 / 5),
}
METHODS = (*RULES, "complex_step")
TINY = {np.dtype(np.float32): 1e-15, np.dtype(np.float64): 1e-50}  # complex steps: nothing cancels


def numerical_gradient(
    f: Callable[[Any], Any], params: Any, *, h: float | Array | None = None, method: str = "central"
) -> Any:
    r"""The gradient of f by differences, one coordinate after the other.

    $$\frac{\partial f}{\partial w_i} \approx \frac{f(w + h_i e_i) - f(w - h_i e_i)}{2 h_i}$$

    | method | evaluations of f | error |
    |---|---|---|
    | `"forward"` | n + 1, of which n are distinct points | O(h) + O(eps / h) |
    | `"central"` | 2n | O(h^2) + O(eps / h) |
    | `"richardson"` | 4n, central differences at h and h/2 extrapolated | O(h^4) + O(eps / h) |
    | `"complex_step"` | n, Im f(w + ih e_i) / h | O(h^2), and nothing cancels |

    f is evaluated in the dtype of the parameters, in compiled chunks, and traced once as by `jax.jit`; the result can
    itself be jitted and vmapped. To judge a gradient use `gradcheck`, which knows how far its differences can be
    trusted.

    Args:
      f: `params -> scalar`, array or tree of arrays. For complex steps it must be analytic: built of functions that
        extend to complex numbers, without abs, max or comparisons.
      params: any tree of floating-point arrays. Complex leaves follow JAX's convention, df/dx - i df/dy, and need a
        real f.
      h: the step, one positive number for all coordinates. By default eps^(1/3) (central; forward 1/2, richardson 1/5)
        times max(|w_i|, 1), with eps the spacing of the parameter's dtype.
      method: one of the table.

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
        raise ValueError(f"numerical_gradient: method is one of {', '.join(METHODS)}; got {method!r}")
    if h is not None and not isinstance(h, jax.core.Tracer) and not (jnp.ndim(h) == 0 and 0 < float(h) < np.inf):
        raise ValueError(f"numerical_gradient: h is one positive number; got {h}")
    check_floating(params)
    return _by_coordinates(Same(f), method, jax.tree.map(jnp.asarray, params), h)


@partial(jax.jit, static_argnums=(0, 1))
def _by_coordinates(f: Same, method: str, params: Any, h: Any) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    is_complex = [jnp.iscomplexobj(leaf) for leaf in leaves]
    sizes = [leaf.size * (2 if double else 1) for leaf, double in zip(leaves, is_complex, strict=True)]
    firsts = np.concatenate([[0], np.cumsum(sizes)])
    steps = [_step(leaf, method, h) for leaf in leaves]
    if method == "complex_step":
        leaves = [leaf.astype(_complex_of(leaf)) for leaf in leaves]

    def moved(coordinate: Any, offset: float) -> Any:
        out = []
        for leaf, step, double, first in zip(leaves, steps, is_complex, firsts, strict=False):
            places = jnp.arange(leaf.size).reshape(leaf.shape)
            by = jnp.where(
                places == coordinate - first, step * jnp.asarray(offset, step.dtype), jnp.zeros((), step.dtype)
            )
            if method == "complex_step":
                by = lax.complex(jnp.zeros_like(by), by)
            elif double:
                up = jnp.where(places == coordinate - first - leaf.size, step, jnp.zeros((), step.dtype))
                by = lax.complex(by, up * jnp.asarray(offset, step.dtype))
            out.append(leaf + by)
        return f.value(jax.tree.unflatten(treedef, out))

    def slope(coordinate: Any, width: Any) -> Any:
        if method == "complex_step":
            return jax.tree.map(
                lambda out: _imaginary(out) / width.astype(_imaginary(out).dtype), moved(coordinate, 1.0)
            )
        offsets, weights, _ = RULES[method]
        values = [moved(coordinate, offset) for offset in offsets]

        def combine(*outs: Any) -> Any:
            dtype = widest(at_least_32_bits(jnp.asarray(outs[0]).dtype), width.dtype)
            if any(is_complex) and jnp.issubdtype(dtype, jnp.complexfloating):
                raise TypeError("numerical_gradient: a complex f of complex parameters has no gradient; take real(f)")
            total = sum(
                jnp.asarray(out).astype(dtype) * jnp.asarray(w, dtype) for out, w in zip(outs, weights, strict=True)
            )
            return total / width.astype(dtype)

        return jax.tree.map(combine, *values)

    widths = [
        jnp.tile(_realised(x, s, method).ravel(), 2 if d else 1)
        for x, s, d in zip(leaves, steps, is_complex, strict=True)
    ]
    width = jnp.concatenate([w.astype(widest(*(w.dtype for w in widths))) for w in widths])
    total = int(firsts[-1])
    batch = int(np.clip(CACHE // (8 * max(total, 1)), 1, 64))
    rows = lax.map(lambda at: slope(*at), (jnp.arange(total), width), batch_size=batch)

    def gather(rows: Any) -> Any:
        pieces = []
        for leaf, double, first in zip(leaves, is_complex, firsts, strict=False):
            piece = rows[first : first + leaf.size]
            if double:
                piece = lax.complex(piece, -rows[first + leaf.size : first + 2 * leaf.size])
            piece = piece.reshape(*leaf.shape, *rows.shape[1:])
            pieces.append(jnp.moveaxis(piece, range(leaf.ndim), range(-leaf.ndim, 0)) if leaf.ndim else piece)
        return jax.tree.unflatten(treedef, pieces)

    return jax.tree.map(gather, rows)


def _step(leaf: Any, method: str, h: Any) -> Any:
    """The step of each entry, in the real dtype of the leaf."""
    real = jnp.abs(leaf).dtype
    if h is not None:
        return jnp.full(leaf.shape, h, real)
    if method == "complex_step":
        return jnp.full(leaf.shape, TINY.get(np.dtype(real), 0.0), real)
    step = float(jnp.finfo(real).eps) ** RULES[method][2]
    return jnp.asarray(step, real) * jnp.maximum(jnp.abs(leaf), jnp.ones((), real))


def _realised(leaf: Any, step: Any, method: str) -> Any:
    """The step that was really taken: w + h is rounded, and so is the difference from w."""
    if method == "complex_step":
        return step
    wide = at_least_32_bits(step.dtype)
    x = jnp.real(leaf)
    ahead, behind = (x + step).astype(wide), (x if method == "forward" else x - step).astype(wide)
    return (ahead - behind) / (1 if method == "forward" else 2)


def _complex_of(leaf: Any) -> Any:
    if jnp.iscomplexobj(leaf) or np.dtype(leaf.dtype) not in TINY:
        raise TypeError(f"numerical_gradient: complex steps need float32 or float64 parameters, got {leaf.dtype}")
    return jnp.complex64 if leaf.dtype == jnp.float32 else jnp.complex128


def _imaginary(out: Any) -> Any:
    if not jnp.iscomplexobj(out):
        raise TypeError(
            f"numerical_gradient: with a complex step f returned {jnp.result_type(out)}: somewhere it takes a real "
            'part, an absolute value or a maximum, which complex steps do not pass; use method="central"'
        )
    return jnp.imag(out)


class SpotCheck(NamedTuple):
    """One row of `grad_check_sparse`: where (in a tree, its keys first), both values, |a - n| / max(|a|, |n|)."""

    index: tuple[Any, ...]  # type: ignore[assignment]  # a field, as the lecture names it, not tuple.index
    numerical: float
    analytic: float
    relative_error: float


def grad_check_sparse(
    f: Callable[[Any], Any],
    x: Any,
    analytic_grad: Any,
    num_checks: int = 10,
    h: float = 1e-7,
    *,
    key: Array | None = None,
) -> list[SpotCheck]:
    r"""The lecture's spot check: central differences at a few random entries, beside the analytic gradient.

    $$\text{relative error} = \frac{|a - n|}{\max(|a|, |n|)}, \qquad n = \frac{f(x + h e_i) - f(x - h e_i)}{2h}$$

    Prints a table and leaves the judgement to the reader: at h = 1e-7 a relative error of 1e-7 to 1e-5 is what a right
    gradient gives. f is evaluated in float64 wherever it can run there. `gradcheck` judges, and looks everywhere.

    Args:
      f: `x -> scalar`, real.
      x: an array, or any tree of them.
      analytic_grad: the gradient to check, a tree like `x`.
      num_checks: how many entries, drawn with equal chances from all; no entry twice.
      h: the step.
      key: a `jax.random` key that draws the entries; without one they are always the same.

    Returns:
      A `SpotCheck(index, numerical, analytic, relative_error)` for each.

    Raises:
      TypeError: x that is not floating point, an f that is not real.
      ValueError: an f that is not scalar, trees or shapes that do not match, a step that is not positive or is lost
        beside x in the precision that f has.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> f = lambda x: jnp.sum(x**3)
      >>> x = jnp.array([1.0, 2.0, 3.0])
      >>> for step in range(10):
      ...     x = x - 0.05 * jax.grad(f)(x)
      >>> print(f"{f(jnp.array([1.0, 2.0, 3.0])):.1f} -> {f(x):.2f}")
      36.0 -> 0.24
      >>> wrong = jnp.array([3.0, 12.0, 26.9])
      >>> rows = grad_check_sparse(f, jnp.array([1.0, 2.0, 3.0]), wrong, num_checks=3)  # doctest: +ELLIPSIS
        place  numerical  analytic  relative error
        x[2]   27         26.9      0.00370...
        x[0]   3          3         ...e-...
        x[1]   12         12        ...e-...

    Source: the lecture's and CS231n's `grad_check_sparse`.
    """
    if not 0 < h < np.inf or num_checks < 1:
        raise ValueError(f"grad_check_sparse: need h > 0 and num_checks >= 1; got {h} and {num_checks}")
    args = take_apart("grad_check_sparse", f, (x,), 0, False)
    plain = run_plainly("grad_check_sparse", args)
    if len(plain) != 1 or plain[0].size != 1 or np.iscomplexobj(plain[0]):
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in plain)
        raise ValueError(f"grad_check_sparse: f must return one real number, got {shapes}; sum it, or use gradcheck")
    question = Question(
        "grad_check_sparse", args, Readings([np.ones(1)], ("",), True), np.asarray(plain[0], float).ravel()
    )
    given = by_hand(question, lambda _: analytic_grad, False, single_coordinates(args.parts))
    numerical = find_way(question)
    chosen = random_generator(key).permutation(args.num_coordinates)[:num_checks]
    unit = units_at(args, chosen)
    if h < 4 * numerical.eps * unit.max():
        raise ValueError(
            f"grad_check_sparse: beside x of size {unit.max():.3g} a step of {h:g} is lost in the precision of f; "
            "choose a larger h, or an f that runs in float64"
        )
    slopes = numerical.central(numerical.single(chosen), np.full(len(chosen), h))[0][:, 0]
    checks, lines = [], []
    for coordinate, n in zip(map(int, chosen), map(float, slopes), strict=True):
        part = next(part for part in reversed(args.parts) if part.first <= coordinate)
        a = float(given.row[0, coordinate])
        largest = max(abs(a), abs(n))
        error = abs(a - n) / largest if largest else 0.0
        index = part.index_of(coordinate)
        checks.append(SpotCheck((*part.keys, *index), n, a, error))
        place = f"x{part.place}{list(index) or ''}{part.component(coordinate)}"
        lines.append((place, number(n), number(a), number(error)))
    print("\n".join(table([("place", "numerical", "analytic", "relative error"), *lines])))
    return checks
