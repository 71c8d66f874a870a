"""`gradcheck`: is this the gradient of that function?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxopt_course.annotations import Array
from jaxopt_course.gradients.analytic import Gradient
from jaxopt_course.gradients.directions import random_weights
from jaxopt_course.gradients.entries import choose_entries, leafwise
from jaxopt_course.gradients.estimates import STEPS
from jaxopt_course.gradients.numerical import Differences, spacing
from jaxopt_course.gradients.rays import UNIT, Rays, readings, sizes_of
from jaxopt_course.gradients.report import Consistency, Entry, GradientReport, LeafReport, Verdict, gravest
from jaxopt_course.gradients.subject import Arguments, Leaves, first_line, random_generator, run_plainly, take_apart
from jaxopt_course.gradients.verdicts import Sides, by_directions, by_entries

DENSE = 10_000  # coordinates up to which mode="auto" looks at each
DENSE_UNCOMPILED = 200  # the same, for functions that cannot be compiled
JACOBIAN = 2**22  # entries of a Jacobian up to which each is looked at
MOST_OUTPUTS = 1024
PROJECTIONS = 4  # of the outputs, where there are more
IN_FLOAT64 = 2**20  # coordinates up to which the gradient is computed in float64 too
COARSE = 1e-5  # spacing of a dtype whose digits say too little, however many coordinates there are
MODES = ("auto", "dense", "sparse", "directional")


def gradcheck(
    f: Callable[..., Any],
    params: Any,
    *args: Any,
    mode: str = "auto",
    grad_fn: Callable[..., Any] | None = None,
    has_aux: bool = False,
    argnums: int | tuple[int, ...] = 0,
    rtol: float | None = None,
    key: Array | None = None,
    num_checks: int = 100,
    num_directions: int = 2,
) -> GradientReport:
    r"""Check the gradient of f against differences, and say where it is wrong, by how much, or that it cannot be told.

    $$n_i = \lim_{h \to 0} \frac{f(w + h e_i) - f(w - h e_i)}{2h}, \qquad
      \frac{|a_i - n_i|}{\max(|a_i|, |n_i|)} \le \max(\mathtt{rtol},\ 10 \times \text{error bar of } n_i)$$

    Differences are taken in float64, whatever the dtype of the parameters, and swept over steps with one Richardson
    extrapolation; their spread is the error bar. The gradient is computed in the parameters' own dtype and, where its
    code runs there, in float64: the one against rounding, the other against mistakes. The verdict is one of

    - `PASS`: every entry agrees, and an error of 0.05 % in it would have shown;
    - `KINK`: as well, but f has a kink at the point (relu at 0) or next to it, and at it the gradient lies between the
      one-sided slopes;
    - `FAIL`: the gradient, or the agreement of forward with reverse mode or of compiled with plain f, is wrong;
    - `INCONCLUSIVE`: the precision does not suffice, of f or of the gradient in its own dtype;
    - `CONSTANT`: f does not move and the gradient is zero, so nothing was tested;
    - `NONDETERMINISTIC`: two runs of f at one point differ; `NONFINITE`: f or its gradient is not finite there.

    Args:
      f: `f(params, *args) -> scalar`, array or tree of arrays, or `(that, aux)` with `has_aux`. It may be jitted, use
        custom rules, scan or sharded arrays; while loops are checked in forward mode; what cannot be compiled is run
        as it is. A stochastic f takes its key as an argument. A jitted f is compiled once for all checks of it, a
        plain one for each, in case what it calls has been mended.
      params: any tree. Floating-point and complex leaves are checked, these in JAX's convention; others are skipped.
      *args: what else f takes, not differentiated.
      mode: "dense": every entry (a thousand and more by one-sided differences, where those will do); "sparse":
        `num_checks` entries of all leaves in proportion, the largest and a zero one of each among them; "directional":
        slopes along random directions, leaf by leaf, and on a failure bisection to the wrong entries; "auto": dense up
        to 10,000 entries, else directional.
      grad_fn: `grad_fn(params, *args) -> tree like params`: a gradient written by hand, checked instead of `jax.grad`.
      has_aux: whether f returns `(value, aux)`.
      argnums: which arguments to differentiate, as in `jax.grad`; `params` is number 0.
      rtol: the relative error that passes; 1e-6 by default, measured in float64. Entries below a hundredth of their
        leaf's largest are measured against that.
      key: a `jax.random` key for entries and directions; without one they are always the same.
      num_checks: entries in sparse mode.
      num_directions: directions in directional mode, each with 18 evaluations of f a leaf.

    Returns:
      A `GradientReport`: a table when printed; `.ok`, `.raise_if_failed()`, `.to_dict()`; verdict and worst entry of
      each leaf, wrong entries, error bars. In a test: `jc.gradcheck(f, params).raise_if_failed()`.

    Raises:
      TypeError: nothing to differentiate in params, or in what f returns.
      ValueError: options that make no sense, a `grad_fn` whose tree or shapes are not those of params, or with an f
        that returns more than one real number.
      RuntimeError: an f that can be evaluated at the point but nowhere beside it.
      Whatever f itself raises at the point, with a note that it was f.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> @jax.custom_vjp
      ... def f(w):
      ...     return jnp.sum((w - 1.0) ** 4)
      >>> f.defvjp(lambda w: (f(w), w), lambda w, g: (g * 4 * (w - 1.0) ** 3 * jnp.array([1.0, 1.0, -1.0]),))
      >>> report = gradcheck(f, jnp.array([3.0, 2.0, 0.0]))
      >>> report.verdict, report.wrong[0].place, report.wrong[0].analytic, round(report.wrong[0].numerical, 3)
      (<Verdict.FAIL: 'FAIL'>, 'params[2]', 4.0, -4.0)

      The third sign is wrong, and so this climbs in that coordinate; put right, it descends:

      >>> f.defvjp(lambda w: (f(w), w), lambda w, g: (g * 4 * (w - 1.0) ** 3,))
      >>> w = jnp.array([3.0, 2.0, 0.0])
      >>> gradcheck(f, w).ok
      True
      >>> for _ in range(50):
      ...     w = w - 0.03 * jax.grad(f)(w)
      >>> print(f"{f(jnp.array([3.0, 2.0, 0.0])):.1f} -> {f(w):.4f}")
      18.0 -> 0.0167

    Source: the lecture's "always use analytic gradient, but check implementation with numerical gradient"; for the
    extrapolation, Ridders (1982), "Accurate computation of F'(x) and F'(x) F''(x)".
    """
    check_options("gradcheck", mode, rtol, num_checks, num_directions)
    taken = take_apart("gradcheck", f, (params, *args), argnums, has_aux)
    return examine("gradcheck", taken, mode, grad_fn, rtol, random_generator(key), num_checks, num_directions)


def check_options(name: str, mode: str, rtol: float | None, num_checks: int, num_directions: int) -> None:
    if mode not in MODES:
        raise ValueError(f"{name}: mode is one of {', '.join(MODES)}; got {mode!r}")
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"{name}: rtol is a relative error in [0, 1); got {rtol}")
    if num_checks < 1 or num_directions < 1:
        raise ValueError(f"{name}: need at least one entry and one direction; got {num_checks} and {num_directions}")


def examine(
    title: str,
    args: Arguments,
    mode: str,
    grad_fn: Callable[..., Any] | None,
    rtol: float | None,
    rng: np.random.Generator,
    num_checks: int,
    num_directions: int,
) -> GradientReport:
    """The whole check of a function whose arguments have been taken apart."""
    n = args.num_coordinates
    plain = run_plainly(title, args)
    report = _blank(title, mode, args)
    if not all(np.isfinite(wide(leaf)).all() for leaf in plain):
        return replace(report, verdict=Verdict.NONFINITE, reason="f itself is not finite at the point")
    chosen = mode if mode != "auto" else "dense" if n <= DENSE else "directional"
    cotangents, labels, each = choose_readings(plain, {"dense": n, "sparse": num_checks}.get(chosen, JACOBIAN + 1), rng)
    if grad_fn is not None and (len(labels) > 1 or labels[0]):
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in plain)
        raise ValueError(f"{title}: grad_fn needs an f that returns one real number, but f returns {shapes}")
    sizes = sizes_of(args.moving)
    directions = [random_weights(args, rng) for _ in range(num_directions if chosen == "directional" else 2)]
    here = readings(plain, None if each else cotangents)

    def gradient_of(precise: bool) -> Gradient:
        if grad_fn is not None:
            return Gradient.by_hand(args, sizes, cotangents, grad_fn, precise, title)
        return Gradient.by_autodiff(args, sizes, cotangents, directions[0], precise)

    own = gradient_of(False)
    if leaves := not_finite(own):
        return replace(report, verdict=Verdict.NONFINITE, reason="the gradient is not finite", leaves=leaves)
    eps = spacing(args.subject, args.parts, False, args.moving, args.data)
    slope, norm = own.slopes(whole_ray(args, directions[0]))
    own.put_away()
    size = np.abs(here) + norm[0]
    slack = np.sqrt(eps) * np.maximum(size, max(1e-3 * size.max(), 1e-300))  # what rounding may make of f
    sweeps = 2 * len(STEPS) * len(args.parts)
    points = sweeps if chosen == "directional" else max(sweeps, 2 * (n if chosen == "dense" else num_checks))
    differences = Differences(args, sizes, None if each else cotangents, directions[0], here, slack, points)
    if gap := nondeterminism(title, args, here, own, differences, slack, eps):
        reason = f"two runs at one point differ by {gap:.3g}; hand the random key to f as an argument"
        return replace(report, verdict=Verdict.NONDETERMINISTIC, reason=reason)
    if mode == "auto" and not differences.compiled and n > DENSE_UNCOMPILED:
        chosen = "sparse"
    needed = differences.precise and (n <= IN_FLOAT64 or eps > COARSE)
    exact, refused = _in_float64(gradient_of) if needed else (None, [])
    sides = Sides(own, exact, eps, rtol)
    mixtures = (
        [] if each else [f"f returns {sum(x.size for x in plain):,} numbers: {len(labels)} random mixtures u.f of them"]
    )

    if chosen == "directional":
        leaves, wrong, found_notes = by_directions(args, differences, sides, directions, labels, rng)
    else:
        coordinates = np.arange(n) if chosen == "dense" else choose_entries(own, num_checks, leafwise(own), rng)
        leaves, wrong, found_notes = by_entries(args, differences, sides, directions, coordinates, labels, rng)
    consistency = _consistency(own, exact, slope[0], norm[0], plain, differences, slack, eps)
    return replace(
        report,
        verdict=gravest([leaf.verdict for leaf in leaves], consistency),
        mode=chosen,
        reason=_why(mode, chosen, n, differences),
        leaves=leaves,
        wrong=wrong,
        consistency=consistency,
        notes=(*own.notes, *differences.notes, *refused, *mixtures, *found_notes),
        evaluations=differences.evaluations + 1,
    )


def wide(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(complex if np.iscomplexobj(leaf) else float)


def nondeterminism(
    title: str,
    args: Arguments,
    here: np.ndarray,
    own: Gradient,
    differences: Differences,
    slack: np.ndarray,
    eps: float,
) -> float:
    """How far two runs of f at one point are apart. It is run again only where something does not fit to rounding."""
    if not np.array_equal(differences.here, differences.again, equal_nan=True):
        return _most(np.abs(differences.here - differences.again))
    compiled = readings([np.asarray(leaf) for leaf in own.outputs], differences.cotangents) if own.outputs else np.nan
    rounding = 4 * slack * np.sqrt(eps)
    if (np.abs(compiled - here) <= rounding).all():
        return 0.0
    again = readings(run_plainly(title, args), differences.cotangents)
    return _most(np.where(np.abs(again - here) > rounding, np.abs(again - here), 0.0))


def choose_readings(outputs: Leaves, rays: int, rng: np.random.Generator) -> tuple[Leaves, list[str], bool]:
    """Cotangents [M, *shape] of each output, a name for each, and whether they are single components or mixtures."""
    counts = [leaf.size * (2 if np.iscomplexobj(leaf) else 1) for leaf in outputs]
    total = sum(counts)
    each = total <= PROJECTIONS or (total <= MOST_OUTPUTS and total * rays <= JACOBIAN)
    if each:
        rows = np.eye(total)
        names = [""] if total == 1 else [f"f[{i}]" for i in range(total)]
    else:
        sizes = rng.integers(64, 128, (PROJECTIONS, total)) / UNIT  # seven bits: exact in every dtype
        rows = sizes * rng.choice([-1.0, 1.0], sizes.shape)
        names = [f"u{i}.f" for i in range(PROJECTIONS)]
    cotangents, start = [], 0
    for leaf, count in zip(outputs, counts, strict=True):
        block = rows[:, start : start + count]
        start += count
        if np.iscomplexobj(leaf):
            block = block[:, : leaf.size] - 1j * block[:, leaf.size :]
        cotangents.append(block.reshape(-1, *leaf.shape).astype(leaf.dtype))
    return cotangents, names, each


def not_finite(gradient: Gradient) -> tuple[LeafReport, ...]:
    """A record for each leaf whose gradient holds what is not finite."""
    leaves = []
    for number, places in gradient.not_finite().items():
        part, nan = gradient.args.parts[number], float("nan")
        worst = Entry(part.path, part.index_of(part.first + int(places[0])), nan, nan, nan)
        leaves.append(LeafReport(part.path, Verdict.NONFINITE, part.size, 0, len(places), nan, nan, worst, nan, nan))
    return tuple(leaves)


def whole_ray(args: Arguments, weights: Leaves) -> Rays:
    return Rays(weights, np.array([0]), np.array([args.num_coordinates]))


def _blank(title: str, mode: str, args: Arguments) -> GradientReport:
    skipped = tuple(f"{s.path} ({s.dtype})" for s in args.skipped)
    return GradientReport(title, Verdict.NONFINITE, mode, "", (), (), (), skipped, (), 1)


def _in_float64(gradient_of: Callable[[bool], Gradient]) -> tuple[Gradient | None, list[str]]:
    try:
        exact = gradient_of(True)
    except Exception as error:  # whatever the gradient's code objects to
        return None, [f"the gradient does not run in float64: {type(error).__name__}: {first_line(error)}"]
    if exact.not_finite():
        return None, ["the gradient is not finite in float64"]
    return exact, []


def _why(mode: str, chosen: str, n: int, differences: Differences) -> str:
    if mode != "auto":
        return "as asked"
    if chosen == "dense":
        return f"{n:,} coordinates, few enough to look at each"
    if chosen == "sparse":
        return f"{n:,} coordinates of a function that cannot be compiled"
    return f"{n:,} coordinates, more than {DENSE:,}"


def _consistency(
    own: Gradient,
    exact: Gradient | None,
    slope: np.ndarray,
    norm: np.ndarray,
    plain: Sequence[np.ndarray],
    differences: Differences,
    slack: np.ndarray,
    eps: float,
) -> tuple[Consistency, ...]:
    """What needs no differences: forward against reverse mode, compiled against not, vectorised against one by one."""
    rows = []

    def row(name: str, error: float, tolerance: float, detail: str = "") -> None:
        rows.append(Consistency(name, Verdict.PASS if error <= tolerance else Verdict.FAIL, float(error), detail))

    side = exact or own
    if side.has_reverse and side.forward is not None:
        if exact is not None:
            slope, norm = (x[0] for x in exact.slopes(whole_ray(exact.args, exact.weights or [])))
            eps = differences.eps
        with np.errstate(all="ignore"):
            tolerance = max(1e-8, np.sqrt(eps))
            scale = np.maximum(norm, 100 * eps * np.abs(differences.here) / tolerance)
            errors = np.where(side.forward == slope, 0.0, np.abs(side.forward - slope) / scale)
        row("forward against reverse mode", _most(errors), tolerance)
    here, allowed = readings(list(plain), differences.cotangents), "in units of what rounding allows"
    if own.outputs:
        compiled = readings([np.asarray(leaf) for leaf in own.outputs], differences.cotangents)
        row("compiled against not", _most(np.abs(compiled - here) / slack), 1.0, allowed)
    if differences.batch > 1:
        row("vectorised against one by one", _most(np.abs(differences.here - here) / slack), 1.0, allowed)
    return tuple(rows)


def _most(errors: np.ndarray) -> float:
    return float(np.nan_to_num(errors, nan=np.inf).max())
