"""Two optimizers in lock step: where they first differ, how the difference grows, and which convention explains it."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_course.annotations import Batch, Objective, Params
from jaxopt_course.comparison.closed_forms import SAME
from jaxopt_course.comparison.identify import description_length, identify
from jaxopt_course.comparison.later import later_steps
from jaxopt_course.comparison.paths import (
    Course,
    FirstDifference,
    Path,
    Paths,
    differences_of,
    first_difference,
    follow,
    gradient_of,
    growth,
    walk_both,
)
from jaxopt_course.comparison.report import Cause, ParityReport
from jaxopt_course.comparison.rules import GROUPS, SLOTS, Number, Rule
from jaxopt_course.comparison.steppers import Stepper, as_stepper
from jaxopt_course.dtypes import check_floating

FOLLOWED = 20  # in float32 1 - b2 ** t is off by 6e-6 for many: a rule in exact arithmetic is followed no nearer
RTOL = {8: 1e-12, 4: 5e-6, 2: 0.03}  # by bytes of a parameter: what 50 steps of rounding may come to


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
        rules what their memories and bias corrections may lose by rounding if that is more.
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
    paths = walk_both(both, course, names, base)
    apart = differences_of(paths, course)
    rules = _that_follow(_identify_both(both, course), paths, course, base)
    causes, pair = least_causes(rules.a, rules.b, names)
    if rtol is None:
        rtol = max(base, _loss_of_digits(pair[0], course)) if pair and not causes else base
    differs = bool(apart.shared.max(initial=0.0) > rtol)
    if not causes and _width(course) < 4:
        causes = moments_of_sixteen_bits(*both, course.params, names)
    removed = growth(follow(pair[1], paths.a).params, paths.b.params) if pair else None
    if removed is not None and removed.max(initial=0.0) > max(rtol, 0.1 * apart.shared.max(initial=0.0)):
        causes = tuple(dataclasses.replace(cause, certain=False) for cause in causes)
    return ParityReport(
        names=names,
        num_steps=num_steps,
        dtype=", ".join(sorted({str(leaf.dtype) for leaf in course.leaves})),
        rtol=rtol,
        **apart._asdict(),
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
    """How far two implementations of a rule may be apart, by the distance, because b^t is rounded.

    A decay rate b in [1/2, 1) is rounded by up to eps / 4, and 1 - b^t at the first steps by a fraction (eps / 4) /
    (1 - b) of itself. The first moment's correction enters an update as it is, the second's through a root, and each of
    two implementations may round the other way. A memory that keeps b adds up the rounding, eps / 2 a step in each of
    the two, of about 1 / (1 - b) steps. In 16 bits nothing would be left to compare.
    """
    eps = float(max((np.finfo(leaf.dtype).eps for leaf in course.leaves), default=0.0)) if _width(course) >= 4 else 0.0
    first = eps / 4 / (1 - rule.b1) if rule.correct_first else 0.0
    second = eps / 8 / (1 - rule.b2) if rule.correct_second else 0.0
    return 2 * (first + second) + eps / (1 - max(rule.b1, rule.rho, rule.memory))


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


def differing(a: Rule, b: Rule) -> tuple[str, ...]:
    """The groups in which two rules differ by more than can be told apart."""

    def same(x: Number, y: Number) -> bool:
        if isinstance(x, str | bool) or isinstance(y, str | bool):
            return x == y
        x, y = np.asarray(x, float), np.asarray(y, float)
        if x.shape != y.shape and x.ndim == y.ndim:
            return False
        return bool(np.all(np.abs(x - y) <= SAME * np.maximum(np.abs(x), np.abs(y))))

    idle = {"eps_place": a.eps == 0 and b.eps == 0, "decay_kind": a.weight_decay == 0 and b.weight_decay == 0}
    return tuple(
        group
        for group, fields in GROUPS.items()
        if not all(same(getattr(a, f), getattr(b, f)) or idle.get(f, False) for f in fields)
    )


def least_causes(
    rules_a: list[Rule], rules_b: list[Rule], names: tuple[str, str]
) -> tuple[tuple[Cause, ...], tuple[Rule, Rule] | None]:
    """The smallest sets of conventions in which a match of a differs from a match of b, and the first pair of those."""
    sets: dict[tuple[str, ...], tuple[Rule, Rule]] = {}
    for a, b in itertools.product(rules_a, rules_b):
        if a.sign != b.sign:  # other rules, not other conventions
            continue
        scaled = ((a, _damped_like(b, a)), (_damped_like(a, b), b))
        for both in (_one_schedule(a, b), *(pair for pair in scaled if pair != (a, b))):
            sets.setdefault(differing(*both), both)
    if not sets:
        return (), None
    plain = {groups: pair for groups, pair in sets.items() if not _by_other_schedule(groups, *pair)}
    sets = plain or sets
    least = min(map(len, sets))
    chosen = {groups: sets[groups] for groups in sorted(sets, key=lambda g: sum(map(description_length, sets[g])))}
    chosen = {groups: pair for groups, pair in chosen.items() if len(groups) == least}
    pair = next(iter(chosen.values()))
    if least == 0:
        return (), pair
    return tuple(Cause(groups, *both, names, certain=len(chosen) == 1) for groups, both in chosen.items()), pair


def _by_other_schedule(groups: tuple[str, ...], a: Rule, b: Rule) -> bool:
    """Whether the explanation needs its own learning rate at every step; much can be explained by that."""
    return "learning rate" in groups and (isinstance(a.learning_rate, tuple) or isinstance(b.learning_rate, tuple))


def _damped_like(rule: Rule, other: Rule) -> Rule:
    """The same rule with the other's dampening, where dampening every gradient only makes the learning rate smaller."""
    if rule.rho == 0 or rule.nesterov != "none" or not rule.damp_first or isinstance(rule.learning_rate, tuple):
        return rule
    if rule.dampening == other.dampening:
        return rule
    rate = rule.learning_rate * (1 - rule.dampening) / (1 - other.dampening)
    return rule._replace(learning_rate=rate, dampening=other.dampening)


def _one_schedule(a: Rule, b: Rule) -> tuple[Rule, Rule]:
    """The rules with one schedule and two `rate_count`s, if their learning rates are one schedule read a step apart."""
    x, y = a.learning_rate, b.learning_rate
    if isinstance(x, tuple) and isinstance(y, tuple) and len(x) > 2:
        for early, late, swap in ((x, y, False), (y, x, True)):
            if np.allclose(early[1:], late[:-1], rtol=SAME, atol=0):
                whole = (*early, late[-1])
                pair = [a, b][:: -1 if swap else 1]
                pair = [rule._replace(learning_rate=whole, rate_count=k) for k, rule in enumerate(pair)]
                return (pair[1], pair[0]) if swap else (pair[0], pair[1])
    return a, b


def moments_of_sixteen_bits(a: Stepper, b: Stepper, params: Params, names: tuple[str, str]) -> tuple[Cause, ...]:
    """For one rule in float64 that differs in 16 bits: the dtypes of the moments, where they are not the same."""
    kept = []
    for stepper in (a, b):
        slots = stepper.slots(stepper.start(params))
        moments = [leaf for role in ("first moment", "second moment", "velocity") for leaf in slots.get(role, [])]
        kept.append(sorted({str(leaf.dtype) for leaf in moments}))
    if not all(kept) or kept[0] == kept[1]:
        return ()
    kept_a, kept_b = (Rule(moment_dtype=", ".join(dtypes)) for dtypes in kept)
    return (Cause(("moment dtype",), kept_a, kept_b, names, certain=False),)
