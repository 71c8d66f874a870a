"""Which conventions explain a difference: the fewest in which a rule that acts as a differs from one that acts as b."""

import itertools

import numpy as np

from jaxopt_course.annotations import Params
from jaxopt_course.comparison.closed_forms import SAME
from jaxopt_course.comparison.identify import description_length
from jaxopt_course.comparison.report import Cause
from jaxopt_course.comparison.rules import GROUPS, Number, Rule
from jaxopt_course.comparison.steppers import Stepper


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
