"""The lecture's spot check: a few random entries of a gradient compared with central differences."""

from typing import NamedTuple

import numpy as np

from jaxopt_course.annotations import Array, Params, PyTree
from jaxopt_course.gradients.analytic import by_hand
from jaxopt_course.gradients.numerical import find_run_mode, single_coordinates
from jaxopt_course.gradients.report import number, table
from jaxopt_course.gradients.subject import (
    Function,
    Question,
    Readings,
    random_generator,
    run_plainly,
    split_arguments,
    units_at,
)


class SpotCheck(NamedTuple):
    """One row of `grad_check_sparse`: the index (in a tree, after its keys), both values, |a - n| / max(|a|, |n|)."""

    index: tuple[object, ...]  # type: ignore[assignment]  # a field, as the lecture names it, not tuple.index
    numerical: float
    analytic: float
    relative_error: float


def grad_check_sparse(
    f: Function,
    x: Params,
    analytic_grad: PyTree,
    num_checks: int = 10,
    h: float = 1e-7,
    *,
    key: Array | None = None,
) -> list[SpotCheck]:
    r"""Compare an analytic gradient with central differences at a few random entries, as in the lecture.

    $$\text{relative error} = \frac{|a - n|}{\max(|a|, |n|)}, \qquad n = \frac{f(x + h e_i) - f(x - h e_i)}{2h}$$

    The function prints a table, and the reader must judge it: at h = 1e-7, a right gradient has relative errors of 1e-7
    to 1e-5. f is evaluated in float64 if it can run in float64. `gradcheck` gives a verdict and checks all entries.

    Args:
      f: `x -> scalar`, real.
      x: an array, or any tree of them.
      analytic_grad: the gradient to check, a tree like `x`.
      num_checks: number of entries, drawn uniformly from all without replacement.
      h: the step.
      key: a `jax.random` key that draws the entries; without one they are always the same.

    Returns:
      A `SpotCheck(index, numerical, analytic, relative_error)` for each.

    Raises:
      TypeError: x that is not floating point, an f that is not real.
      ValueError: an f that is not scalar, trees or shapes that do not match, a step that is not positive or is lost
        in rounding relative to x.

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
    args = split_arguments("grad_check_sparse", f, (x,), 0, False)
    plain = run_plainly("grad_check_sparse", args)
    if len(plain) != 1 or plain[0].size != 1 or np.iscomplexobj(plain[0]):
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in plain)
        raise ValueError(f"grad_check_sparse: f must return one real number, got {shapes}; sum it, or use gradcheck")
    question = Question(
        "grad_check_sparse", args, Readings([np.ones(1)], ("",), True), np.asarray(plain[0], float).ravel()
    )
    given = by_hand(question, lambda _: analytic_grad, False, single_coordinates(args.parts))
    numerical = find_run_mode(question)
    chosen = random_generator(key).permutation(args.num_coordinates)[:num_checks]
    unit = units_at(args, chosen)
    if h < 4 * numerical.eps * unit.max():
        raise ValueError(
            f"grad_check_sparse: for x of size {unit.max():.3g} a step of {h:g} is lost in the precision of f; "
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
