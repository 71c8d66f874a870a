"""`gradcheck`: check the gradient of a function against differences."""

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxopt_course.annotations import Array, Params, PyTree
from jaxopt_course.gradients.analytic import Gradient, by_autodiff, by_hand
from jaxopt_course.gradients.compiling import spacing
from jaxopt_course.gradients.entries import by_entries, summarize_entries
from jaxopt_course.gradients.estimates import STEPS
from jaxopt_course.gradients.localize import by_directions
from jaxopt_course.gradients.numerical import Numerical, find_run_mode
from jaxopt_course.gradients.report import Entry, GradientReport, LeafReport, Verdict, gravest
from jaxopt_course.gradients.subject import (
    JACOBIAN,
    Arguments,
    Function,
    Leaves,
    Question,
    at_least_float32,
    choose_readings,
    first_line,
    random_generator,
    random_weights,
    run_plainly,
    split_arguments,
)
from jaxopt_course.gradients.verdicts import Sides, Slack, Trial, compare_without_differences, nondeterminism

DENSE = 10_000  # most coordinates for which mode="auto" checks each one
DENSE_UNCOMPILED = 200  # the same, for functions that cannot be compiled
IN_FLOAT64 = 2**20  # most coordinates for which the gradient is also computed in float64
COARSE = 1e-5  # above this spacing of the dtype, float64 is used for any number of coordinates
MODES = ("auto", "dense", "sparse", "directional")


class Options(NamedTuple):
    """The options of `gradcheck` and `gradgradcheck`."""

    mode: str = "auto"
    rtol: float | None = None
    num_checks: int = 100
    num_directions: int = 2
    max_evals: int | None = None

    def check(self, name: str) -> None:
        if self.mode not in MODES:
            raise ValueError(f"{name}: mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        if self.rtol is not None and not 0 <= self.rtol < 1:
            raise ValueError(f"{name}: rtol must be a relative error in [0, 1); got {self.rtol}")
        if self.num_checks < 1 or self.num_directions < 1:
            counts = f"{self.num_checks} and {self.num_directions}"
            raise ValueError(f"{name}: need at least one entry and one direction; got {counts}")
        if self.max_evals is not None and self.max_evals < 1:
            raise ValueError(f"{name}: max_evals must be a positive number of evaluations; got {self.max_evals}")

    def num_checked_entries(self, n: int) -> int:
        """Return how many entries are checked one by one; 0 in directional mode."""
        dense = self.mode == "dense" or (self.mode == "auto" and n <= DENSE)
        return n if dense else min(n, self.num_checks) if self.mode == "sparse" else 0


def gradcheck(
    f: Function,
    params: Params,
    *args: PyTree,
    mode: str = "auto",
    grad_fn: Function | None = None,
    has_aux: bool = False,
    argnums: int | tuple[int, ...] = 0,
    rtol: float | None = None,
    key: Array | None = None,
    num_checks: int = 100,
    num_directions: int = 2,
    max_evals: int | None = None,
) -> GradientReport:
    r"""Check the gradient of f against finite differences, and report which entries are wrong and by how much.

    $$n_i = \lim_{h \to 0} \frac{f(w + h e_i) - f(w - h e_i)}{2h}, \qquad
      \frac{|a_i - n_i|}{\max(|a_i|, |n_i|)} \le \max(\mathtt{rtol},\ 10 \times \text{error bar of } n_i)$$

    Differences are computed in float64, whatever the dtype of the parameters, over many steps of unrelated sizes, with
    one Richardson extrapolation; their spread gives the error bar. The gradient is computed in the parameters' own
    dtype, to detect rounding, and, if its code runs there, in float64, to detect mistakes. Every entry is judged
    separately: in its own unit, relative to its own size, and relative to the noise of its own derivative. The verdict
    is one of

    - `PASS`: every entry that can be distinguished from noise agrees, and an error of 0.05 % in it would have been
      detected; the report gives the number of these entries;
    - `KINK`: like PASS, but f has a kink at the point (relu at 0) or close to it; at a kink, the gradient lies between
      the one-sided slopes;
    - `FAIL`: the gradient is wrong, or it is not linear in its cotangent, or forward mode disagrees with reverse mode,
      or the compiled f disagrees with the uncompiled one;
    - `INCONCLUSIVE`: the precision of f, or of the gradient in its own dtype, or `max_evals` does not suffice;
    - `CONSTANT`: f does not change and the gradient is zero, so nothing was tested;
    - `NONDETERMINISTIC`: two runs of f at one point differ; `NONFINITE`: f or its gradient is not finite at the point.

    Args:
      f: `f(params, *args) -> scalar`, array or tree of arrays, or `(that, aux)` with `has_aux`. It may be jitted, use
        custom rules, scan or sharded arrays; while loops are checked in forward mode; a function that cannot be
        compiled is run uncompiled. A stochastic f takes its key as an argument. A jitted f is compiled once for all its
        checks, a plain one for each check, because a function that it calls may have changed.
      params: any tree. Floating-point and complex leaves are checked, complex ones in JAX's convention; other leaves
        are skipped.
      *args: other arguments of f, not differentiated.
      mode: "dense": every entry; many are checked first in groups of similar ones along two random directions, and the
        undecided ones one by one. "sparse": `num_checks` entries, from each leaf in proportion to its size, including
        the largest and a zero one. "directional": slopes along random directions, leaf by leaf; if a leaf fails,
        bisection finds the wrong entries. "auto": dense up to 10,000 entries, if `max_evals` allows it, else
        directional.
      grad_fn: `grad_fn(params, *args) -> tree like params`: a gradient written by hand, checked instead of `jax.grad`.
      has_aux: whether f returns `(value, aux)`.
      argnums: which arguments to differentiate, as in `jax.grad`; `params` is number 0.
      rtol: the relative error of an entry that passes; 1e-6 by default, measured in float64. It does not depend on the
        number of entries.
      key: a `jax.random` key for entries and directions; without a key they are always the same.
      num_checks: number of entries in sparse mode.
      num_directions: number of directions in directional mode, each with 34 evaluations of f per leaf.
      max_evals: most evaluations of f for entries; by default 50 (n + 10) for n entries, but not more than take about
        half a minute. Entries that are not reached are INCONCLUSIVE, and the report advises `directional`. For
        directions there is no limit by default; if a limit is given, directions and searches beyond it are omitted.

    Returns:
      A `GradientReport`: a table when printed; `.ok`, `.raise_if_failed()`, `.to_dict()`; verdict and worst entry of
      each leaf, wrong entries, error bars. In a test: `jc.gradcheck(f, params).raise_if_failed()`.

    Raises:
      TypeError: nothing to differentiate in params, or in the output of f.
      ValueError: invalid options, a `grad_fn` whose tree or shapes are not those of params, or one for an f that
        returns more than one real number.
      RuntimeError: an f that can be evaluated at the point but not near it.
      Any error that f itself raises at the point, with a note that it was raised by f.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> @jax.custom_vjp
      ... def f(w):
      ...     return jnp.sum((w - 1.0) ** 4)
      >>> f.defvjp(lambda w: (f(w), w), lambda w, g: (g * 4 * (w - 1.0) ** 3 * jnp.array([1.0, 1.0, -1.0]),))
      >>> report = gradcheck(f, jnp.array([3.0, 2.0, 0.0]))
      >>> report.verdict, report.wrong[0].place, report.wrong[0].analytic, round(report.wrong[0].numerical, 3)
      (<Verdict.FAIL: 'FAIL'>, 'params[2]', 4.0, -4.0)

      The third sign is wrong, so a step would ascend in that coordinate. With the right sign it descends:

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
    options = Options(mode, rtol, num_checks, num_directions, max_evals)
    options.check("gradcheck")
    taken = split_arguments("gradcheck", f, (params, *args), argnums, has_aux)
    return examine("gradcheck", taken, options, random_generator(key), grad_fn)


def examine(
    title: str, args: Arguments, options: Options, rng: np.random.Generator, grad_fn: Function | None = None
) -> GradientReport:
    """Run the whole check of a function whose arguments have been split into leaves."""
    n, plain = args.num_coordinates, run_plainly(title, args)
    report = _empty_report(title, options.mode, args)
    if not all(np.isfinite(at_least_float32(np.asarray(leaf))).all() for leaf in plain):
        return replace(report, verdict=Verdict.NONFINITE, reason="f itself is not finite at the point")
    readings = choose_readings(plain, options.num_checked_entries(n) or JACOBIAN + 1, rng)
    question = Question(title, args, readings, np.asarray(readings.of(plain)))
    if grad_fn is not None and (len(readings.labels) > 1 or readings.labels[0]):
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in plain)
        raise ValueError(f"{title}: grad_fn needs an f that returns one real number, but f returns {shapes}")
    directions = [random_weights(args, rng) for _ in range(options.num_directions)]
    own = _differentiate(question, directions[0], grad_fn, precise=False)
    if leaves := _not_finite(own):
        return replace(report, verdict=Verdict.NONFINITE, reason="the gradient is not finite", leaves=leaves)

    eps = spacing(args, precise=False)
    slack = Slack(own, eps)
    numerical = find_run_mode(question, lambda values: slack.excess(values) <= 1, _points_at_once(options, args))
    if gap := nondeterminism(slack, numerical):
        reason = f"two runs at one point differ by {gap:.3g}; pass the random key to f as an argument"
        return replace(report, verdict=Verdict.NONDETERMINISTIC, reason=reason)
    needed = numerical.run_mode.precise and (n <= IN_FLOAT64 or eps > COARSE)
    exact, refused = _in_float64(question, directions[0], grad_fn) if needed else (None, [])
    trial = Trial(numerical, Sides(own, exact, eps, options.rtol), slack, rng)
    consistency = compare_without_differences(trial)
    mixtures = [] if readings.each else [_mixture_note(plain, len(readings.labels))]
    report = replace(
        _verdict(report, trial, options, directions),
        consistency=consistency,
        evaluations=numerical.evaluations + 1,
    )
    notes = (*own.notes, *numerical.notes, *refused, *mixtures, *report.notes)
    return replace(report, verdict=gravest([leaf.verdict for leaf in report.leaves], consistency), notes=notes)


def _verdict(report: GradientReport, trial: Trial, options: Options, directions: list[Leaves]) -> GradientReport:
    """Return the report with the results for entries or along directions."""
    numerical = trial.numerical
    args, n = numerical.question.args, numerical.question.args.num_coordinates
    numerical.allow(options.max_evals, options.num_checked_entries(n))
    chosen = _choose_mode(options, numerical)
    if chosen == "directional":
        numerical.max_evals = options.max_evals - 1 if options.max_evals else np.inf
        leaves, wrong, notes = by_directions(trial, directions)
    else:
        dense = chosen == "dense"
        coordinates = np.arange(n) if dense else _choose_entries(trial.sides.own, options.num_checks, trial.rng)
        checked = by_entries(trial, coordinates)
        leaves, wrong = summarize_entries(numerical.question, checked)
        notes = list(checked.notes)
    reason = _mode_reason(options.mode, chosen, args.num_coordinates, numerical)
    return replace(report, mode=chosen, reason=reason, leaves=leaves, wrong=wrong, notes=tuple(notes))


def _choose_mode(options: Options, numerical: Numerical) -> str:
    n = numerical.question.args.num_coordinates
    if options.mode != "auto":
        return options.mode
    if n > DENSE:
        return "directional"
    if not numerical.run_mode.compiled and n > DENSE_UNCOMPILED:
        return "sparse"
    return "dense" if 2 * n <= numerical.max_evals or options.max_evals else "directional"


def _choose_entries(gradient: Gradient, num_checks: int, rng: np.random.Generator) -> np.ndarray:
    """Choose the coordinates of the sparse mode: from each leaf in proportion to its size, and in addition the one with
    the largest gradient and one with gradient zero.
    """
    chosen: set[int] = set()
    row = np.abs(gradient.row).max(axis=0) if gradient.has_reverse else None
    parts = gradient.args.parts
    for first, last in pairwise([*(part.first for part in parts), parts[-1].last]):
        if first == last:
            continue
        share = max(1, round(num_checks * (last - first) / parts[-1].last))
        chosen |= set(first + rng.choice(last - first, min(share, last - first), replace=False))
        if row is not None:
            chosen.add(first + int(np.argmax(row[first:last])))
            zero = np.flatnonzero(row[first:last] == 0)
            chosen |= {first + int(rng.choice(zero))} if zero.size else set()
    return np.array(sorted(chosen))


def _differentiate(question: Question, weights: Leaves, grad_fn: Function | None, precise: bool) -> Gradient:
    if grad_fn is not None:
        return by_hand(question, grad_fn, precise, weights)
    return by_autodiff(question, weights, precise)


def _in_float64(question: Question, weights: Leaves, grad_fn: Function | None) -> tuple[Gradient | None, list[str]]:
    try:
        exact = _differentiate(question, weights, grad_fn, precise=True)
    except Exception as error:  # any error raised by the code of the gradient
        return None, [f"the gradient does not run in float64: {type(error).__name__}: {first_line(error)}"]
    if exact.not_finite():
        return None, ["the gradient is not finite in float64"]
    return exact, []


def _points_at_once(options: Options, args: Arguments) -> int:
    sweeps = 2 * len(STEPS) * len(args.parts)
    looked_at = options.num_checked_entries(args.num_coordinates)
    return max(sweeps, min(4 * looked_at, 2 * len(STEPS) * 64)) if looked_at else sweeps


def _not_finite(gradient: Gradient) -> tuple[LeafReport, ...]:
    """Return a record for each leaf whose gradient is not finite."""
    leaves = []
    for number, places in gradient.not_finite().items():
        part, nan = gradient.args.parts[number], float("nan")
        worst = Entry(part.path, part.index_of(part.first + int(places[0])), nan, nan, nan)
        leaves.append(LeafReport(part.path, Verdict.NONFINITE, part.size, 0, len(places), nan, nan, worst, nan, nan))
    return tuple(leaves)


def _empty_report(title: str, mode: str, args: Arguments) -> GradientReport:
    skipped = tuple(f"{s.path} ({s.dtype})" for s in args.skipped)
    return GradientReport(title, Verdict.NONFINITE, mode, "", (), (), (), skipped, (), 1)


def _mixture_note(plain: Leaves, count: int) -> str:
    return f"f returns {sum(x.size for x in plain):,} numbers: {count} random mixtures u.f of them"


def _mode_reason(mode: str, chosen: str, n: int, numerical: Numerical) -> str:
    if mode != "auto":
        return "as requested"
    if chosen == "dense":
        return f"{n:,} coordinates, few enough to check each"
    if chosen == "sparse":
        return f"{n:,} coordinates of a function that cannot be compiled"
    if n <= DENSE:
        return f"{n:,} coordinates of a function too slow to check each"
    return f"{n:,} coordinates, more than {DENSE:,}"
