"""`gradgradcheck`: check the Hessian of a function."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, ArrayLike, Params, PyTree
from jaxopt_course.gradients.check import Options, examine
from jaxopt_course.gradients.estimates import BARS, STEPS, estimate_curvature
from jaxopt_course.gradients.numerical import Numerical, Point, Rays, find_run_mode, whole_ray
from jaxopt_course.gradients.report import Consistency, GradientReport, Verdict, gravest
from jaxopt_course.gradients.subject import (
    Function,
    Leaves,
    Number,
    Part,
    Question,
    Readings,
    Subject,
    arithmetic,
    as_run,
    choose_readings,
    first_line,
    random_generator,
    random_weights,
    read,
    run_plainly,
    split_arguments,
)
from jaxopt_course.gradients.verdicts import RESOLUTION

Phi: TypeAlias = Callable[[Leaves, Leaves, Leaves], ArrayLike]  # (moving, data, cotangents) -> u.f


def gradgradcheck(
    f: Function,
    params: Params,
    *args: PyTree,
    mode: str = "auto",
    has_aux: bool = False,
    argnums: int | tuple[int, ...] = 0,
    rtol: float | None = None,
    key: Array | None = None,
    num_checks: int = 100,
    num_directions: int = 2,
    max_evals: int | None = None,
) -> GradientReport:
    r"""Check the Hessian of f against differences of the gradient and of f, its symmetry, and three orders of autodiff.

    $$H v = \lim_{h \to 0} \frac{\nabla f(w + h v) - \nabla f(w - h v)}{2h}, \qquad
      v^\top H v = \lim_{h \to 0} \frac{f(w + h v) - 2 f(w) + f(w - h v)}{h^2}, \qquad u^\top H v = v^\top H u$$

    The gradient is checked in the same way as `gradcheck` checks a function: reverse over reverse mode is compared with
    differences of the gradient and with forward over reverse. Separate rows are for reverse over forward, symmetry, the
    gradient against differences of f, and v'Hv against second differences of f. The last two detect a Hessian that
    agrees with a wrong gradient.

    Args:
      f, params, *args, mode, has_aux, argnums, rtol, key, num_checks, num_directions, max_evals: as in `gradcheck`. An
        f with several outputs is checked as one random mixture of them.

    Returns:
      A `GradientReport`; its entries are those of the Hessian: row `f[i]` is the derivative of component i of the
      gradient. For a linear f there is no Hessian to test, and the verdict is `CONSTANT`.

    Raises:
      As `gradcheck`; and the error of differentiating twice, if reverse mode is not defined.

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
    options = Options(mode, rtol, num_checks, num_directions, max_evals)
    options.check("gradgradcheck")
    taken = split_arguments("gradgradcheck", f, (params, *args), argnums, has_aux)
    rng = random_generator(key)
    plain = run_plainly("gradgradcheck", taken)
    readings = choose_readings(plain, 2**62, rng)
    mixture = [u[:1] for u in readings.cotangents]
    phi = mixed(taken.subject)

    def gradient(moving: Leaves, data: Leaves, mixture: Leaves) -> Leaves:
        return jax.grad(phi)(moving, data, mixture)

    inner = split_arguments("gradgradcheck", gradient, (taken.moving, taken.data, mixture), 0, False)
    inner = inner._replace(parts=taken.parts, skipped=taken.skipped)
    first = examine("gradcheck", taken, Options("directional", max_evals=max_evals), rng)
    try:
        report = examine("gradgradcheck", inner, options, rng)
    except Exception as error:
        error.add_note("gradgradcheck: needs a gradient of f by reverse mode that can itself be differentiated")
        raise
    if report.verdict in (Verdict.NONFINITE, Verdict.NONDETERMINISTIC):
        return report
    question = Question("gradgradcheck", taken, Readings(mixture, ("u.f",), False), np.asarray(read(plain, mixture)))
    rows, notes = _second_order_rows(phi, question, rng)
    if first.verdict is Verdict.FAIL:
        rows.insert(0, Consistency("gradient against f", Verdict.FAIL, _error(first), "the gradient itself is wrong"))
    elif first.ok:
        rows.insert(0, Consistency("gradient against f", Verdict.PASS, _error(first)))
    if len(readings.labels) > 1:
        notes.append("f has several outputs: this is the Hessian of one random mixture of them")
    return replace(
        report,
        verdict=gravest([report.verdict], rows),
        consistency=(*report.consistency, *rows),
        notes=(*report.notes, *notes),
        evaluations=report.evaluations + first.evaluations,
    )


def mixed(subject: Subject) -> Phi:
    """Return the function u.f, one real number computed from the outputs of f."""

    def mixture(moving: Leaves, data: Leaves, cotangents: Leaves) -> ArrayLike:
        rows = zip(subject.outputs(moving, data), cotangents, strict=True)
        products = [jnp.sum(jnp.real(leaf * u[0].astype(leaf.dtype))) for leaf, u in rows]
        return functools.reduce(lambda total, product: total + product.astype(total.dtype), products)

    return mixture


class Products(NamedTuple):
    """Products of the Hessian with two directions u and v, for tests of its symmetry and of the orders of autodiff."""

    uHv: Number
    vHu: Number
    vHv: Number
    norm: Number  # of Hv
    apart: Number  # difference of Hv by forward over reverse and by reverse over forward; 0 if only one is defined
    size: Number  # of u


def _products(phi: Phi, parts: tuple[Part, ...], run_mode: tuple[bool, bool], u_at: Point, v_at: Point) -> Products:
    """Compute products by forward over reverse, and by reverse over forward; `run_mode` is (in float64, both)."""
    precise, forward = run_mode
    u_at, v_at = u_at.as_run(precise), v_at.as_run(precise)
    moving, data, mixture = u_at.moving, u_at.data, as_run(u_at.cotangents or [], precise)
    u, v = (at.steps(parts, 0, parts[-1].last, 1.0) for at in (u_at, v_at))

    def gradient(moving: Leaves) -> Leaves:
        return jax.grad(phi)(moving, data, mixture)

    def slope(moving: Leaves) -> ArrayLike:
        return jax.jvp(lambda moving: phi(moving, data, mixture), (moving,), (v,))[1]

    Hu, Hv = (jax.jvp(gradient, (moving,), (w,))[1] for w in (u, v))
    other = jax.grad(slope)(moving) if forward else Hv
    apart = [a - b for a, b in zip(other, Hv, strict=True)]
    return Products(_dot(u, Hv), _dot(v, Hu), _dot(v, Hv), _norm(Hv), _norm(apart), _norm(u))


def _dot(steps: Leaves, grads: Leaves) -> ArrayLike:
    products = [jnp.sum(jnp.real(step * grad)) for step, grad in zip(steps, grads, strict=True)]
    return jnp.sum(jnp.stack([product.astype(float) for product in products]))


def _norm(leaves: Leaves) -> ArrayLike:
    """Return the Euclidean norm of numbers whose squares may underflow or overflow."""
    largest = [jnp.max(jnp.abs(leaf), initial=0).astype(float) for leaf in leaves]
    scale = functools.reduce(jnp.maximum, largest)
    scale = jnp.where(scale > 0, scale, 1.0)
    return scale * jnp.sqrt(sum(jnp.sum((jnp.abs(leaf).astype(float) / scale) ** 2) for leaf in leaves))


def _second_order_rows(phi: Phi, question: Question, rng: np.random.Generator) -> tuple[list[Consistency], list[str]]:
    """Check symmetry, the orders of differentiation, and second differences of f."""
    args, mixture = question.args, question.readings.cotangents
    u, v = random_weights(args, rng), random_weights(args, rng)
    numerical = find_run_mode(question, points=2 * len(STEPS))
    points = [Point(args.moving, args.data, w, args.sizes, mixture) for w in (u, v)]
    notes: list[str] = []
    for run_mode in itertools.product(dict.fromkeys((numerical.run_mode.precise, False)), (True, False)):
        try:
            with arithmetic(run_mode[0]):
                found = jax.jit(functools.partial(_products, phi, args.parts, run_mode))(*points)
            break
        except Exception as error:  # any error raised by f
            notes.append(f"{'reverse over forward' if run_mode[1] else 'forward over reverse'}: {first_line(error)}")
    else:
        return [], notes
    uHv, vHu, vHv, norm, apart, size = map(float, found)
    tolerance = max(1e-8, float(np.sqrt(numerical.eps)))
    scale = max(norm * size, 1e-300)

    def row(name: str, error: float) -> Consistency:
        return Consistency(name, Verdict.PASS if error <= tolerance else Verdict.FAIL, error)

    rows = [row("symmetry of the Hessian, u'Hv against v'Hu", abs(uHv - vHu) / scale)]
    if run_mode[1]:
        rows.insert(0, row("reverse over forward against forward over reverse", apart / max(norm, 1e-300)))
    return [*rows, _second_differences(numerical, whole_ray(args, v), vHv, scale, tolerance)], notes


def _second_differences(numerical: Numerical, ray: Rays, vHv: float, scale: float, tolerance: float) -> Consistency:
    samples = numerical.samples(ray, numerical.steps)
    curvature, bar = (float(x[0, 0]) for x in estimate_curvature(samples))
    difference = abs(vHv - curvature)
    resolved = BARS * bar <= RESOLUTION * max(abs(vHv), abs(curvature))
    within = difference <= max(BARS * bar, tolerance * scale)
    verdict = Verdict.FAIL if not within else Verdict.PASS if resolved else Verdict.INCONCLUSIVE
    return Consistency("v'Hv against second differences of f", verdict, difference / scale)


def _error(report: GradientReport) -> float:
    return max((leaf.relative_error for leaf in report.leaves), default=0.0)
