"""Which point in the space of conventions an optimizer is, told from what it does with gradients made for the purpose.

Hyperparameters follow in closed form from a few responses, given the discrete switches; every combination of these is
then run along the probes, and those that reproduce every update to rounding are what the optimizer can be. There may be
several: with a constant learning rate nobody can see whether it stands inside the velocity or outside.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxopt_course.comparison.candidates import candidates, snapped, table
from jaxopt_course.comparison.probes import BASE, DECAYING, EARLY, Probes, make_probes, observe
from jaxopt_course.comparison.rules import DTYPES, Rule, start, step
from jaxopt_course.comparison.subjects import Subject

RESIDUAL = 1e-10  # of the largest update of a coordinate so far: what passes for rounding
SPARE_DIGITS = 2  # how much longer than the shortest an explanation may be
LONG = 7  # digits of a number that nobody typed


def identify(subject: Subject, params: Any, num_steps: int = EARLY, near: Rule | None = None) -> list[Rule]:
    """Every rule that does as the optimizer does, to rounding; none if no known rule does.

    `near` is where to look if the closed forms find nothing: rules one or two switches away from it are tried.
    """
    probes = make_probes(num_steps)
    try:
        seen = observe(subject, probes, params)
    except Exception:  # what it cannot run on says nothing about it
        return []
    if seen.shape != probes.grads.shape or not np.isfinite(seen).all():
        return []
    with np.errstate(all="ignore"):
        found = _survivors(candidates(seen), probes, seen)
        if not found and near is not None:
            found = _survivors(table(list(neighbours(near))), probes, seen, free_rate=False)
    return plainest(found, initial_accumulator(subject, params))


def initial_accumulator(subject: Subject, params: Any) -> float | None:
    """What the state itself says of it."""
    with jax.enable_x64(True):
        try:
            found = subject.slots(subject.start(params)).get("second moment", [])
        except Exception:
            return None
    values = {float(value) for leaf in found for value in np.unique(leaf)}
    return values.pop() if len(values) == 1 else None


def plainest(found: list[Rule], initial: float | None) -> list[Rule]:
    """Of rules that do the same, those whose numbers somebody would have typed."""
    found = list(dict.fromkeys(found))
    known = [rule for rule in found if initial is not None and abs(rule.initial - initial) <= 1e-9 * abs(initial)]
    found = known or found
    constant = [rule for rule in found if not isinstance(rule.learning_rate, tuple)]
    lengths = {rule: description_length(rule) for rule in constant or found}
    limit = min(lengths.values(), default=0) + (SPARE_DIGITS if constant else LONG)
    return sorted((rule for rule in lengths if lengths[rule] <= limit), key=lengths.__getitem__)


def description_length(rule: Rule) -> int:
    """Digits in all its numbers, and one for each switch that is not at rest."""
    digits = 0
    for value, default in zip(rule, Rule(), strict=True):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and number != 0:
                short = snapped(number if number < 0.5 or number > 1 else 1 - number, 1e-11)
                digits += min(len(f"{short:.12e}".split("e")[0].replace(".", "").rstrip("0")) or 1, LONG)
        digits += not isinstance(value, float | tuple) and value != default
    return digits


def _rows(rule: Rule, keep: Any) -> Rule:
    return Rule(*(column[keep] for column in rule))


def _survivors(rule: Rule | None, probes: Probes, seen: np.ndarray, free_rate: bool = True) -> list[Rule]:
    """The candidates that reproduce all that was seen; their learning rates follow from the first coordinate."""
    if rule is None:
        return []
    size = len(rule.b1)
    base = Probes(probes.grads[:, :1], probes.params[:1])
    moments, of_base = start(rule, np.zeros((size, len(probes.params)))), start(rule, np.zeros((size, 1)))
    scale, rates = np.zeros(len(probes.params)), np.zeros((size, 0))
    for count, (g, u) in enumerate(zip(probes.grads, seen, strict=True)):
        if free_rate:
            g0 = np.full((size, 1), base.grads[count, 0])
            bare = rule._replace(weight_decay=0.0)
            at = [step(bare, g0, 0.0, count, rate, of_base) for rate in (0.0, 1.0)]
            rate = (u[BASE] - at[0][0]) / (at[1][0] - at[0][0])
            of_base = step(bare, g0, 0.0, count, rate, of_base)[1]
        else:
            rate = rule.learning_rate
        if count == 0:
            rule = _with_decay(rule, seen, rate)
        if free_rate:  # a decay after the step shortens it, at zero as elsewhere
            after = rule.decay_kind == "decoupled, after the step"
            rate = np.where(after, 2 * rate / (1 + np.sqrt(1 - 4 * rate * rule.weight_decay)), rate)
        update, moments, _ = step(rule, np.broadcast_to(g, moments.first.shape), probes.params, count, rate, moments)
        scale = np.maximum(scale, np.abs(u))
        wrong = np.abs(update - u) > RESIDUAL * scale + 4e-16 * np.abs(probes.params)
        good = ~wrong.any(axis=1) & np.isfinite(update).all(axis=1)
        rule, rates = _rows(rule, good), np.hstack([rates, np.broadcast_to(rate, (size, 1))])[good]
        moments, of_base = (
            type(x)(*(np.broadcast_to(y, (size, y.shape[1]))[good] for y in x)) for x in (moments, of_base)
        )
        size = int(good.sum())
    return [_rule(rule, row, rates[row]) for row in range(size)]


def _rule(rule: Rule, row: int, rates: np.ndarray) -> Rule:
    """One candidate in Python's own values, its learning rate a number where it is constant."""
    constant = np.all(np.abs(rates / rates[0] - 1) < 1e-11)
    rate = snapped(rates[0], 1e-11) if constant else tuple(snapped(r, 1e-14) for r in rates.tolist())
    values = {name: column[row, 0].item() for name, column in rule._asdict().items()}
    values["damp_first"] = values["damp_first"] or values["dampening"] == 0
    return Rule(**values | {"learning_rate": rate})


def _with_decay(rule: Rule, seen: np.ndarray, rate: Any) -> Rule:
    """What pulled at the parameter 1 under a gradient of zero, in units of the learning rate if not coupled."""
    free = rule.decay_kind == "decoupled from the learning rate"
    after = rule.decay_kind == "decoupled, after the step"
    pulled = -seen[0, DECAYING] / np.where(free, 1.0, np.where(after, rate / (1 + seen[0, DECAYING]), rate))
    pulled = np.vectorize(snapped)(pulled, 1e-7)
    return rule._replace(weight_decay=np.where(rule.decay_kind == "coupled", rule.weight_decay, pulled))


def neighbours(rule: Rule) -> Iterator[Rule]:
    """The rules one or two switches away."""
    single = list(flips(rule))
    yield from (rule._replace(**flip) for flip in single)
    for one, other in itertools.combinations(single, 2):
        if not one.keys() & other.keys():
            yield rule._replace(**one, **other)


def flips(rule: Rule) -> Iterator[dict[str, Any]]:
    """Everything known to be done otherwise somewhere, at the same hyperparameters."""
    choices = {
        "moment_dtype": [f"{how}{name}" for name in DTYPES for how in ("", "stored as ", "decayed in ", "both ")],
        "eps_place": ["outside the root", "inside the root", "on the uncorrected moment"] if rule.eps else [],
        "amsgrad": ["none", "of raw moments", "of corrected moments"] if rule.second == "mean" else [],
        "nesterov": ["none", "Dozat", "same correction"] if rule.b1 else ["none", "look-ahead"] if rule.rho else [],
    }
    for field, values in choices.items():
        yield from ({field: value} for value in values if value != getattr(rule, field))
    if rule.second == "mean":
        yield {"correct_first": not rule.correct_first, "correct_second": not rule.correct_second}
        yield {"correct_first": not rule.correct_first}
        yield {"correct_second": not rule.correct_second}
    yield from ({"eps": eps} for eps in (1e-10, 1e-8, 1e-7, 1e-6, 1e-3) if rule.second != "none" and eps != rule.eps)
