"""`gradgradcheck`: is this the Hessian of that function?"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array
from jaxopt_course.gradients.check import check_options, choose_readings, examine
from jaxopt_course.gradients.directions import random_weights
from jaxopt_course.gradients.entries import RESOLUTION
from jaxopt_course.gradients.estimates import BARS, STEPS, estimate_curvature
from jaxopt_course.gradients.numerical import Differences
from jaxopt_course.gradients.rays import Rays, arithmetic, as_run, readings, sizes_of, steps_along
from jaxopt_course.gradients.report import Consistency, GradientReport, Verdict, gravest
from jaxopt_course.gradients.subject import (
    Arguments,
    Leaves,
    Part,
    Subject,
    first_line,
    random_generator,
    run_plainly,
    take_apart,
)


def gradgradcheck(
    f: Callable[..., Any],
    params: Any,
    *args: Any,
    mode: str = "auto",
    has_aux: bool = False,
    argnums: int | tuple[int, ...] = 0,
    rtol: float | None = None,
    key: Array | None = None,
    num_checks: int = 100,
    num_directions: int = 2,
) -> GradientReport:
    r"""Check the Hessian of f against differences of the gradient and of f itself, its symmetry, and its three orders.

    $$H v = \lim_{h \to 0} \frac{\nabla f(w + h v) - \nabla f(w - h v)}{2h}, \qquad
      v^\top H v = \lim_{h \to 0} \frac{f(w + h v) - 2 f(w) + f(w - h v)}{h^2}, \qquad u^\top H v = v^\top H u$$

    The gradient is checked as `gradcheck` checks a function, reverse over reverse mode against its differences and
    against forward over reverse. Reverse over forward, symmetry, the gradient against differences of f, and v'Hv
    against second differences of f are rows of their own: a Hessian that agrees with a wrong gradient is found out.

    Args:
      f, params, *args, mode, has_aux, argnums, rtol, key, num_checks, num_directions: as in `gradcheck`. An f of
        several outputs is checked as one random mixture of them.

    Returns:
      A `GradientReport`; its entries are those of the Hessian: row `f[i]` is the derivative of component i of the
      gradient. A linear f has no Hessian to test: `CONSTANT`.

    Raises:
      As `gradcheck`; and what differentiating twice raises, where reverse mode is not defined.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> f = lambda w: jnp.sum(jnp.cosh(w)) + jnp.prod(w) / 2
      >>> w = jnp.array([1.0, 2.0])
      >>> gradgradcheck(f, w).ok
      True
      >>> for _ in range(8):
      ...     w = w - jnp.linalg.solve(jax.hessian(f)(w), jax.grad(f)(w))
      >>> print(f"{f(jnp.array([1.0, 2.0])):.2f} -> {f(w):.4f}")
      6.31 -> 2.0000

    Source: Griewank and Walther (2008), "Evaluating derivatives", section 3.4, for the orders of differentiation.
    """
    check_options("gradgradcheck", mode, rtol, num_checks, num_directions)
    taken = take_apart("gradgradcheck", f, (params, *args), argnums, has_aux)
    rng = random_generator(key)
    plain = run_plainly("gradgradcheck", taken)
    cotangents, labels, _ = choose_readings(plain, 2**62, rng)
    mixture = [u[:1] for u in cotangents]
    phi = mixed(taken.subject)

    def gradient(moving: Leaves, data: Leaves, mixture: Leaves) -> Leaves:
        return jax.grad(phi)(moving, data, mixture)

    inner = take_apart("gradgradcheck", gradient, (taken.moving, taken.data, mixture), 0, False)
    inner = inner._replace(parts=taken.parts, skipped=taken.skipped)
    first = examine("gradcheck", taken, "directional", None, None, rng, num_checks, 2)
    try:
        report = examine("gradgradcheck", inner, mode, None, rtol, rng, num_checks, num_directions)
    except Exception as error:
        error.add_note("gradgradcheck: needs a gradient of f by reverse mode that can itself be differentiated")
        raise
    if report.verdict in (Verdict.NONFINITE, Verdict.NONDETERMINISTIC):
        return report
    rows, notes = _second_order_rows(phi, taken, mixture, rng)
    if first.verdict is Verdict.FAIL:
        rows.insert(0, Consistency("gradient against f", Verdict.FAIL, _error(first), "the gradient itself is wrong"))
    elif first.ok:
        rows.insert(0, Consistency("gradient against f", Verdict.PASS, _error(first)))
    if len(labels) > 1:
        notes.append("f has several outputs: this is the Hessian of one random mixture of them")
    return replace(
        report,
        verdict=gravest([report.verdict], rows),
        consistency=(*report.consistency, *rows),
        notes=(*report.notes, *notes),
        evaluations=report.evaluations + first.evaluations,
    )


def mixed(subject: Subject) -> Callable[[Leaves, Leaves, Leaves], Any]:
    """One real number made of f's outputs: u.f."""

    def mixture(moving: Leaves, data: Leaves, cotangents: Leaves) -> Any:
        total: Any = None
        for leaf, u in zip(subject.outputs(moving, data), cotangents, strict=True):
            product = jnp.sum(jnp.real(leaf * u[0].astype(leaf.dtype)))
            total = product if total is None else total + product.astype(total.dtype)
        return total

    return mixture


def _products(
    phi: Callable[..., Any],
    parts: tuple[Part, ...],
    precise: bool,
    forward: bool,
    moving: Leaves,
    data: Leaves,
    mixture: Leaves,
    sizes: Any,
    u_weights: Leaves,
    v_weights: Leaves,
) -> tuple[Any, ...]:
    """Hessian times two directions: forward over reverse, and reverse over forward where that is defined."""
    moving, data, mixture = (as_run(leaves, precise) for leaves in (moving, data, mixture))
    u, v = (steps_along(parts, moving, w, sizes, 0, parts[-1].last, 1.0) for w in (u_weights, v_weights))

    def gradient(moving: Leaves) -> Leaves:
        return jax.grad(phi)(moving, data, mixture)

    def slope(moving: Leaves) -> Any:
        return jax.jvp(lambda moving: phi(moving, data, mixture), (moving,), (v,))[1]

    Hu, Hv = (jax.jvp(gradient, (moving,), (w,))[1] for w in (u, v))
    other = jax.grad(slope)(moving) if forward else Hv
    return (
        _dot(u, Hv),
        _dot(v, Hu),
        _dot(v, Hv),
        _norm(Hv),
        _norm([a - b for a, b in zip(other, Hv, strict=True)]),
        _norm(u),
    )


def _dot(steps: Leaves, grads: Leaves) -> Any:
    return sum(jnp.sum(jnp.real(step * grad)).astype(float) for step, grad in zip(steps, grads, strict=True))


def _norm(leaves: Leaves) -> Any:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(leaf) ** 2).astype(float) for leaf in leaves))


def _second_order_rows(
    phi: Callable[..., Any], args: Arguments, mixture: Leaves, rng: np.random.Generator
) -> tuple[list[Consistency], list[str]]:
    """Symmetry, the orders of differentiation, and second differences of f itself."""
    sizes, u, v = sizes_of(args.moving), random_weights(args, rng), random_weights(args, rng)
    here = readings([np.asarray(leaf) for leaf in args.subject.outputs(args.moving, args.data)], mixture)
    differences = Differences(args, sizes, mixture, u, here, np.inf, 2 * len(STEPS))
    rows: list[Consistency] = []
    notes: list[str] = []
    found: list[float] | None = None
    for precise, forward in ((differences.precise, True), (differences.precise, False), (False, True), (False, False)):
        try:
            with arithmetic(precise):
                run = jax.jit(partial(_products, phi, args.parts, precise, forward))
                found = [float(x) for x in run(args.moving, args.data, mixture, sizes, u, v)]
            break
        except Exception as error:  # whatever f objects to
            notes.append(f"{'reverse over forward' if forward else 'forward over reverse'}: {first_line(error)}")
    if found is None:
        return rows, notes
    uHv, vHu, vHv, norm, apart, size = found
    tolerance = max(1e-8, float(np.sqrt(differences.eps)))
    scale = max(norm * size, 1e-300)

    def row(name: str, error: float) -> None:
        rows.append(Consistency(name, Verdict.PASS if error <= tolerance else Verdict.FAIL, error))

    if forward:
        row("reverse over forward against forward over reverse", apart / max(norm, 1e-300))
    row("symmetry of the Hessian, u'Hv against v'Hu", abs(uHv - vHu) / scale)
    ray = Rays(v, np.array([0]), np.array([args.num_coordinates]))
    curvature, bar = (
        float(x[0, 0])
        for x in estimate_curvature(
            *differences.both_sides(ray, differences.steps), differences.here, differences.steps, differences.eps
        )
    )
    difference = abs(vHv - curvature)
    resolved = BARS * bar <= RESOLUTION * max(abs(vHv), abs(curvature))
    within = difference <= max(BARS * bar, tolerance * scale)
    verdict = Verdict.FAIL if not within else Verdict.PASS if resolved else Verdict.INCONCLUSIVE
    rows.append(Consistency("v'Hv against second differences of f", verdict, difference / scale))
    return rows, notes


def _error(report: GradientReport) -> float:
    return max((leaf.relative_error for leaf in report.leaves), default=0.0)
