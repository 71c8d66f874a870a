"""Two optimizers in lock step: where they first differ, how the difference grows, and which convention explains it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_course.annotations import Batch, Objective, Params
from jaxopt_course.comparison.causes import least_causes, moments_of_sixteen_bits
from jaxopt_course.comparison.closed_forms import SAME
from jaxopt_course.comparison.identify import identify
from jaxopt_course.comparison.later import later_steps
from jaxopt_course.comparison.paths import (
    Course,
    FirstDifference,
    Path,
    check_forgetful,
    first_difference,
    follow,
    gradient_of,
    growth,
    largest_ulps,
    on_gradients_of,
    walk,
)
from jaxopt_course.comparison.report import ParityReport
from jaxopt_course.comparison.rules import SLOTS, Rule
from jaxopt_course.comparison.steppers import Stepper, as_stepper
from jaxopt_course.dtypes import check_floating

FOLLOWED = 20  # in float32 1 - b2 ** t is off by 6e-6 for many: a rule in exact arithmetic is followed no nearer
RTOL = {8: 1e-12, 4: 5e-6, 2: 0.03}  # by bytes of a parameter: what 50 steps of rounding may come to


class Paths(NamedTuple):
    """Where two optimizers went: `a` and `own_b` each on its own, `b` on the gradients of `a`."""

    a: Path
    own_b: Path
    b: Path


class Rules(NamedTuple):
    """The rules that each of two optimizers can be; none if no known rule does as it does."""

    a: list[Rule]
    b: list[Rule]


def parity(
    opt_a: Any,
    opt_b: Any,
    objective: Objective,
    params: Params,
    batches: Sequence[Batch] | None = None,
    *,
    num_steps: int = 50,
    rtol: float | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> ParityReport:
    r"""Where two optimizers first differ beyond rounding, and which of the known conventions removes the difference.

    Both run (a) each on its own path $w^{(i)}_{t+1} = w^{(i)}_t + u^{(i)}(\nabla f(w^{(i)}_t))$, and (b) both on the
    gradients along the first one's path. The difference at a step is the largest $|a - b|$ of an entry, relative to
    the scale of that entry's path: its largest magnitude so far, or the range it has passed through. Apart from that,
    each is shown gradients made to tell one convention from another, in float64, and what it does is matched to
    rounding with every combination of the known conventions. The cause is the least set of conventions in which a match
    of one differs from a match of the other; it is certain if there is one such set only, and if the two matches also
    follow the two paths.

    EQUAL says more than that no difference was seen: both are the same known rule, and nothing in either can change at
    a later step or for gradients of another size. The programs are traced and searched for branches on values, and run
    from some thousand step counts, among them those around every number in the program. What leaves a doubt is EQUAL
    HERE, with the doubt in the report: a schedule that changes later, a clip, code that JAX cannot trace.

    Args:
      opt_a: an optax transformation, a `torch_optimizer`, or a function `(params, grads, step) -> params`, `step` 0 at
        first. An object that can be called is copied before it is run; a function must not remember earlier calls,
        unless it forgets them at step 0.
      opt_b: another.
      objective: `f(params)`, or `f(params, batch)` with batches; a scalar.
      params: where both start, floating point.
      batches: one for each step, from the first again when they are spent.
      num_steps: steps of each.
      rtol: what passes for rounding; by default 1e-12 in float64, 5e-6 in float32, 0.03 in 16 bits, and for two equal
        rules with a bias correction what the correction may lose by rounding if that is more.
      names: what to call them.

    Returns:
      A `ParityReport`; print it.

    Raises:
      TypeError: what is no optimizer, parameters that are not floating point.
      ValueError: no steps or no batches; an optimizer that, started again, takes another first step.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> f = lambda w: jnp.sum(jnp.array([1.0, 1e-3, 1e-6]) * w**2)
      >>> report = parity(optax.adam(1e-2), optax.adam(1e-2, eps=1e-6), f, jnp.ones(3))
      >>> print(report.verdict, *report.causes)
      DIFFERENT epsilon: 1e-08 outside the root in a, 1e-06 outside the root in b

    Source: the table of conventions, `jc.conventions`.
    """
    check_floating(params)
    if num_steps < 1 or (batches is not None and not len(batches)):
        got = f"num_steps = {num_steps}" if num_steps < 1 else "batches that are empty"
        raise ValueError(f"parity: nothing can be told from {got}; take at least one step, on at least one batch")
    both = as_stepper(opt_a), as_stepper(opt_b)
    course = Course(jax.tree.map(np.asarray, params), num_steps, gradient_of(objective, batches))
    base = RTOL[_width(course)] if rtol is None else rtol
    paths = _walk_both(both, course, names, base)
    rules = _that_follow(_identify_both(both, course), paths, course, base)
    causes, pair = least_causes(rules.a, rules.b, names)
    if rtol is None:
        rtol = max(base, _loss_of_digits(pair[0], course)) if pair and not causes else base
    shared = growth(paths.a.params, paths.b.params)
    differs = bool(shared.max(initial=0.0) > rtol)
    if not causes and _width(course) < 4:
        causes = moments_of_sixteen_bits(*both, course.params, names)
    removed = growth(follow(pair[1], paths.a).params, paths.b.params) if pair else None
    if removed is not None and removed.max(initial=0.0) > max(rtol, 0.1 * shared.max(initial=0.0)):
        causes = tuple(dataclasses.replace(cause, certain=False) for cause in causes)
    return ParityReport(
        names=names,
        num_steps=num_steps,
        dtype=", ".join(sorted({str(leaf.dtype) for leaf in course.leaves})),
        rtol=rtol,
        own=growth(paths.a.params, paths.own_b.params),
        shared=shared,
        ulps=largest_ulps(paths.a.params, paths.b.params, course),
        first_difference=_first_difference(paths, pair, course, rtol) if differs else None,
        causes=causes,
        rules=pair or (next(iter(rules.a), None), next(iter(rules.b), None)),
        identified=(bool(rules.a), bool(rules.b)),
        removed=removed,
        later=later_steps(both, pair, course.params) if pair and not causes and not differs else None,
    )


def _width(course: Course) -> int:
    """Bytes of the narrowest parameter."""
    return min((leaf.dtype.itemsize for leaf in course.leaves), default=8)


def _loss_of_digits(rule: Rule, course: Course) -> float:
    """How far two implementations of a rule may be apart, by the distance, because 1 - b^t is rounded.

    A decay rate b in [1/2, 1) is rounded by up to eps / 4, and 1 - b^t at the first steps by a fraction (eps / 4) /
    (1 - b) of itself. The first moment's correction enters an update as it is, the second's through a root. Each of two
    implementations may round the other way. In 16 bits nothing would be left to compare.
    """
    eps = float(max((np.finfo(leaf.dtype).eps for leaf in course.leaves), default=0.0)) if _width(course) >= 4 else 0.0
    first = eps / 4 / (1 - rule.b1) if rule.correct_first else 0.0
    second = eps / 8 / (1 - rule.b2) if rule.correct_second else 0.0
    return 2 * (first + second)


def _walk_both(both: tuple[Stepper, Stepper], course: Course, names: tuple[str, str], rtol: float) -> Paths:
    a, b = both
    path, own_b = walk(a, course), walk(b, course)
    check_forgetful(names[0], a, course, path, rtol)
    check_forgetful(names[1], b, course, own_b, rtol)
    return Paths(path, own_b, walk(b, on_gradients_of(path, course)))


def _identify_both(both: tuple[Stepper, Stepper], course: Course) -> Rules:
    """What one is found to be says where to look for the other."""
    a, b = both
    rules_a = identify(a, course.params, course.num_steps)
    rules_b = identify(b, course.params, course.num_steps, near=rules_a[0] if rules_a else None)
    if rules_b and not rules_a:
        rules_a = identify(a, course.params, course.num_steps, near=rules_b[0])
    return Rules(rules_a, rules_b)


def _that_follow(rules: Rules, paths: Paths, course: Course, rtol: float) -> Rules:
    """The rules that also lead along the path that was walked; in 16 bits nothing follows for long."""
    width = _width(course)
    if width < 4:
        return rules
    near = rtol * (FOLLOWED if width == 4 else 1)

    def following(found: list[Rule], path: Path) -> list[Rule]:
        if np.iscomplexobj(path.params):
            return []
        return [rule for rule in found if growth(follow(rule, path).params, path.params).max(initial=0) <= near]

    return Rules(following(rules.a, paths.a), following(rules.b, paths.b))


def _first_difference(
    paths: Paths, pair: tuple[Rule, Rule] | None, course: Course, rtol: float
) -> FirstDifference | None:
    """Where the two rules first differ in float64 if they are known, else where the two paths do."""
    found = None
    if pair:
        names = [name for name in SLOTS if name != "velocity" or pair[0].rho or pair[1].rho]
        a, b = (follow(rule, paths.a) for rule in pair)
        found = first_difference(a, b, course, min(rtol, SAME), names)
    return found or first_difference(paths.a, paths.b, course, rtol)
