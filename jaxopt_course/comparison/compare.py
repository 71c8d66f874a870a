"""Run two optimizers in lock step and find their first difference, its growth, and the convention that explains it."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import ArrayLike, Batch, Objective, Params
from jaxopt_course.comparison.closed_forms import TOLERANCE
from jaxopt_course.comparison.identify import Identified, description_length, identify
from jaxopt_course.comparison.later import later_steps
from jaxopt_course.comparison.paths import (
    FirstDifference,
    Path,
    Paths,
    RunSetup,
    differences_of,
    first_difference,
    gradient_of,
    largest_differences,
    record_both,
    simulate,
)
from jaxopt_course.comparison.report import Cause, ParityReport
from jaxopt_course.comparison.rules import GROUPS, SLOTS, Number, Rule
from jaxopt_course.comparison.steppers import Stepper, as_stepper
from jaxopt_course.dtypes import check_floating

FLOAT32_SLACK = 20  # factor on rtol against exact arithmetic: in float32 many compute 1 - b2 ** t with an error of 6e-6
RTOL = {8: 1e-12, 4: 5e-6, 2: 0.03}  # by bytes of a parameter: tolerance for 50 steps of rounding


class Rules(NamedTuple):
    """The known rules that reproduce each of two optimizers."""

    a: Identified
    b: Identified


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
    r"""Find where two optimizers first differ beyond rounding, and which known convention explains the difference.

    The optimizers run twice: (a) each on its own path $w^{(i)}_{t+1} = w^{(i)}_t + u^{(i)}(\nabla f(w^{(i)}_t))$, and
    (b) both on the gradients along the path of the first. The difference at a step is the largest $|a - b|$ of an
    entry, relative to the scale of that entry's path: its largest magnitude so far, or the range it has passed through.

    Transformations run under `jit`, as in training; one that cannot be traced, or that keeps something outside its
    state, runs as it is written.

    Separately, each optimizer runs in float64 on probe gradients that distinguish one convention from another. Its
    updates are matched to rounding with every combination of the known conventions. The cause is the smallest set of
    conventions in which a match of one optimizer differs from a match of the other. The cause is certain if there is
    only one such set, and if the two matches also reproduce the two paths.

    EQUAL is stronger than "no difference was observed": both optimizers are the same known rule, and nothing in either
    can change at a later step or for gradients of another size. To establish this, the programs are traced, searched
    for branches on values, and run from some thousand step counts, including those around every number in the program.
    If a doubt remains, the verdict is EQUAL HERE and the report states the doubt: a schedule that changes later, a
    clip, code that JAX cannot trace.

    Args:
      opt_a: the first optimizer: an optax transformation, a `torch_optimizer`, or a function
        `(params, grads, step) -> params`, where `step` counts from 0. A callable object is copied before it is run. A
        function must not keep state between calls, unless it resets that state at step 0.
      opt_b: the second optimizer, of the same types.
      objective: `f(params)`, or `f(params, batch)` if `batches` is given; returns a scalar.
      params: starting point of both, floating point; float64 counts as float32 where JAX's 64-bit types are off.
      batches: one batch for each step; they are repeated from the first if there are fewer batches than steps.
      num_steps: number of steps of each optimizer.
      rtol: relative difference that counts as rounding. Default: 1e-12 in float64, 5e-6 in float32, 0.03 in 16 bits.
        For two equal rules the default is raised to what their moments and bias corrections may lose by rounding, and
        a schedule whose rates are numbers of float32, if that is more.
      names: names of the two optimizers in the report.

    Returns:
      A `ParityReport`; print it.

    Raises:
      TypeError: an argument is not an optimizer, or the parameters are not floating point.
      ValueError: there are no steps or no batches, or an optimizer takes a different first step when it is restarted.

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
        raise ValueError(f"parity: got {got}; take at least one step, on at least one batch")
    both = as_stepper(opt_a), as_stepper(opt_b)
    setup = RunSetup(jax.tree.map(_as_computed, params), num_steps, gradient_of(objective, batches))
    base = RTOL[_width(setup)] if rtol is None else rtol
    paths = record_both(both, setup, names, base)
    differences = differences_of(paths, setup)
    rules = _consistent_with_paths(_identify_both(both, setup), paths, setup, base)
    causes, pair = smallest_causes(rules.a.rules, rules.b.rules, names)
    if rtol is None:
        rtol = max(base, _rounding_error_of(pair[0], setup)) if pair and not causes else base
    differs = bool(differences.shared.max(initial=0.0) > rtol)
    if not causes and _width(setup) < 4:
        causes = moment_dtype_causes(*both, setup.params, names)
    removed = largest_differences(simulate(pair[1], paths.a).params, paths.b.params) if pair else None
    if removed is not None and removed.max(initial=0.0) > max(rtol, 0.1 * differences.shared.max(initial=0.0)):
        causes = tuple(dataclasses.replace(cause, certain=False) for cause in causes)
    return ParityReport(
        names=names,
        num_steps=num_steps,
        dtype=", ".join(sorted({str(leaf.dtype) for leaf in setup.leaves})),
        rtol=rtol,
        **differences._asdict(),
        first_difference=_first_difference(paths, pair, setup, rtol) if differs else None,
        causes=causes,
        rules=pair or (next(iter(rules.a.rules), None), next(iter(rules.b.rules), None)),
        why_unknown=(rules.a.why_none, rules.b.why_none),
        removed=removed,
        later=later_steps(both, pair, setup.params) if pair and not causes and not differs else None,
    )


def _as_computed(leaf: ArrayLike) -> np.ndarray:
    """A parameter in the dtype that JAX computes in: float32 for a float64 array where 64-bit types are off."""
    return np.asarray(jnp.asarray(leaf))


def _width(setup: RunSetup) -> int:
    """Bytes of the narrowest parameter."""
    return min((leaf.dtype.itemsize for leaf in setup.leaves), default=8)


def _rounding_error_of(rule: Rule, setup: RunSetup) -> float:
    """Bound on the relative difference of two implementations of a rule that is due to rounding.

    A decay rate b in [1/2, 1) is rounded by up to eps / 4. At the first steps this changes 1 - b^t by a fraction
    (eps / 4) / (1 - b) of itself. The correction of the first moment enters an update directly, that of the second
    moment through a square root, and the two implementations may round in opposite directions. A moment with decay b
    accumulates the rounding of about 1 / (1 - b) steps, eps / 2 a step in each implementation. In 16 bits the bound
    would permit any difference, so it is 0 there. A schedule in float32 makes a path of that precision.
    """
    eps = float(max((np.finfo(leaf.dtype).eps for leaf in setup.leaves), default=0.0)) if _width(setup) >= 4 else 0.0
    first = eps / 4 / (1 - rule.b1) if rule.correct_first else 0.0
    second = eps / 8 / (1 - rule.b2) if rule.correct_second else 0.0
    scheduled = RTOL[4] if has_float32_schedule(rule) and eps else 0.0
    return scheduled + 2 * (first + second) + eps / (1 - max(rule.b1, rule.rho, rule.memory))


def _identify_both(both: tuple[Stepper, Stepper], setup: RunSetup) -> Rules:
    """Identify both optimizers; a match of one is the starting point of the search for the other."""
    a, b = both
    found_a = identify(a, setup.params, setup.num_steps)
    found_b = identify(b, setup.params, setup.num_steps, near=next(iter(found_a.rules), None))
    if found_b.rules and not found_a.rules:
        found_a = identify(a, setup.params, setup.num_steps, near=found_b.rules[0])
    return Rules(found_a, found_b)


def _consistent_with_paths(found: Rules, paths: Paths, setup: RunSetup, rtol: float) -> Rules:
    """The rules that also reproduce the recorded path; in 16 bits all rules, because rounding hides the path."""
    width = _width(setup)
    if width < 4:
        return found
    near = rtol * (FLOAT32_SLACK if width == 4 else 1)

    def follows(rule: Rule, path: Path) -> bool:
        differences = largest_differences(simulate(rule, path).params, path.params)
        return bool(differences.max(initial=0) <= max(near, RTOL[4] if has_float32_schedule(rule) else 0.0))

    def following(found: Identified, path: Path) -> Identified:
        if np.iscomplexobj(path.params):
            return Identified([], "its parameters are complex")
        rules = [rule for rule in found.rules if follows(rule, path)]
        lost = "it does not follow here the rule that it follows on probe gradients" if found.rules else found.why_none
        return Identified(rules, "" if rules else lost)

    return Rules(following(found.a, paths.a), following(found.b, paths.b))


def _first_difference(
    paths: Paths, pair: tuple[Rule, Rule] | None, setup: RunSetup, rtol: float
) -> FirstDifference | None:
    """Where the two rules first differ in float64 if they are known, else where the two recorded paths first differ."""
    found = None
    if pair:
        names = [name for name in SLOTS if name != "velocity" or pair[0].rho or pair[1].rho]
        a, b = (simulate(rule, paths.a) for rule in pair)
        found = first_difference(a, b, setup, min(rtol, TOLERANCE), names)
    return found or first_difference(paths.a, paths.b, setup, rtol)


def has_float32_schedule(rule: Rule) -> bool:
    """Whether the learning rates of a schedule are all numbers of float32, in which optax computes its schedules."""
    if not isinstance(rule.learning_rate, tuple):
        return False
    rates = np.asarray(rule.learning_rate, float)
    return bool(np.all(np.abs(rates.astype(np.float32) - rates) <= 1e-13 * np.abs(rates)))


def _tolerance_of_schedules(a: Rule, b: Rule) -> float:
    """The relative difference of learning rates at which two schedules count as equal: rounding, if in float32."""
    in_float32 = has_float32_schedule(a) and has_float32_schedule(b)
    return 4 * float(np.finfo(np.float32).eps) if in_float32 else TOLERANCE


def differing(a: Rule, b: Rule) -> tuple[str, ...]:
    """The groups of switches in which two rules differ."""
    of_schedules = _tolerance_of_schedules(a, b)

    def same(x: Number, y: Number) -> bool:
        if isinstance(x, str | bool) or isinstance(y, str | bool):
            return x == y
        x, y = np.asarray(x, float), np.asarray(y, float)
        if x.shape != y.shape and x.ndim == y.ndim:
            return False
        near = of_schedules if x.ndim else TOLERANCE  # only a schedule is a tuple
        return bool(np.all(np.abs(x - y) <= near * np.maximum(np.abs(x), np.abs(y))))

    idle = {"eps_place": a.eps == 0 and b.eps == 0, "decay_kind": a.weight_decay == 0 and b.weight_decay == 0}
    return tuple(
        group
        for group, fields in GROUPS.items()
        if not all(same(getattr(a, f), getattr(b, f)) or idle.get(f, False) for f in fields)
    )


def smallest_causes(
    rules_a: list[Rule], rules_b: list[Rule], names: tuple[str, str]
) -> tuple[tuple[Cause, ...], tuple[Rule, Rule] | None]:
    """The smallest sets of conventions in which a match of a differs from a match of b, and the first pair of those."""
    sets: dict[tuple[str, ...], tuple[Rule, Rule]] = {}
    for a, b in itertools.product(rules_a, rules_b):
        if a.sign != b.sign:  # two different rules, not two conventions of one
            continue
        scaled = ((a, _with_dampening_of(b, a)), (_with_dampening_of(a, b), b))
        for both in (_with_shared_schedule(a, b), *(pair for pair in scaled if pair != (a, b))):
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
    """Whether the explanation needs a separate learning rate at every step, which can explain too much."""
    return "learning rate" in groups and (isinstance(a.learning_rate, tuple) or isinstance(b.learning_rate, tuple))


def _with_dampening_of(rule: Rule, other: Rule) -> Rule:
    """Rewrite a rule with the dampening of another, if dampening is equivalent to a smaller learning rate."""
    if rule.rho == 0 or rule.nesterov != "none" or not rule.damp_first or isinstance(rule.learning_rate, tuple):
        return rule
    if rule.dampening == other.dampening:
        return rule
    rate = rule.learning_rate * (1 - rule.dampening) / (1 - other.dampening)
    return rule._replace(learning_rate=rate, dampening=other.dampening)


def _with_shared_schedule(a: Rule, b: Rule) -> tuple[Rule, Rule]:
    """Rewrite two rules with one schedule and two `rate_count`s, if their rates are that schedule one step apart."""
    x, y = a.learning_rate, b.learning_rate
    if isinstance(x, tuple) and isinstance(y, tuple) and len(x) > 2:
        for early, late, swap in ((x, y, False), (y, x, True)):
            if np.allclose(early[1:], late[:-1], rtol=_tolerance_of_schedules(a, b), atol=0):
                whole = (*early, late[-1])
                pair = [a, b][:: -1 if swap else 1]
                pair = [rule._replace(learning_rate=whole, rate_count=k) for k, rule in enumerate(pair)]
                return (pair[1], pair[0]) if swap else (pair[0], pair[1])
    return a, b


def moment_dtype_causes(a: Stepper, b: Stepper, params: Params, names: tuple[str, str]) -> tuple[Cause, ...]:
    """The dtypes of the moments as a cause if they are not the same; for equal float64 rules that differ in 16 bits."""
    kept = []
    for stepper in (a, b):
        slots = stepper.slots(stepper.start(params))
        moments = [leaf for role in ("first moment", "second moment", "velocity") for leaf in slots.get(role, [])]
        kept.append(sorted({str(leaf.dtype) for leaf in moments}))
    if not all(kept) or kept[0] == kept[1]:
        return ()
    kept_a, kept_b = (Rule(moment_dtype=", ".join(dtypes)) for dtypes in kept)
    return (Cause(("moment dtype",), kept_a, kept_b, names, certain=False),)
