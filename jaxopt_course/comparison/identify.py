"""Which point in the space of conventions an optimizer is, told from what it does with gradients made for the purpose.

Hyperparameters follow in closed form from a few responses, given the discrete switches; every combination of these is
then run along the probes, and those that reproduce every update to rounding are what the optimizer can be. There may be
several: with a constant learning rate nobody can see whether it stands inside the velocity or outside.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_course.comparison.rules import DTYPES, Rule, start, step
from jaxopt_course.comparison.subjects import Subject

BIG = 2.0**40  # next to it any epsilon and any initial accumulator is nothing
TINY = 1e-30  # next to any epsilon it is nothing
SIZES = 10.0 ** np.arange(4, -31, -1)
RESIDUAL = 1e-10  # of the largest update of a coordinate so far: what passes for rounding
EARLY = 8  # steps in which every switch shows
SPARE_DIGITS = 2  # how much longer than the shortest an explanation may be
LONG = 7  # digits of a number that nobody typed
STRUCTURED = 4  # steps whose gradients are laid out by hand; the others are random

BASE, FLIPS, LATE, DECAYING, DECAYING_TINY, FEELING_TINY = 0, slice(1, 5), 5, 6, 7, 8
CURVE = slice(9, 9 + len(SIZES))


class Probes(NamedTuple):
    grads: np.ndarray  # [steps, coordinates]
    params: np.ndarray  # [coordinates], the same at every step


def make_probes(num_steps: int) -> Probes:
    """Each coordinate is an experiment of its own."""
    rng = np.random.default_rng(0)
    steps = max(num_steps, EARLY)
    flips = BIG * (1 - 2 * np.eye(STRUCTURED))
    late = np.array([0, BIG, BIG, BIG])
    still = np.zeros((STRUCTURED, 1))
    tiny = np.full((STRUCTURED, 1), TINY)
    curve = np.broadcast_to(SIZES, (STRUCTURED, len(SIZES)))
    scales = 10.0 ** rng.uniform(-4, 2, 12)
    mixed = scales * rng.standard_normal((STRUCTURED, 12))
    falling = BIG * 8.0 ** -np.arange(STRUCTURED)[:, None]
    early = np.hstack([np.full((STRUCTURED, 1), BIG), flips, late[:, None], still, still, tiny, curve, mixed, falling])
    params = np.zeros(early.shape[1])
    params[DECAYING], params[DECAYING_TINY] = 1.0, TINY
    params[-7:-1] = [1.0, -1.0, 10.0, -0.1, 30.0, 0.01]
    sizes = np.abs(early).max(axis=0)
    later = sizes * rng.standard_normal((steps - STRUCTURED, len(params))) * 10.0 ** rng.uniform(-1, 0, (1, len(params)))
    return Probes(np.vstack([early, later]), params)


def observe(subject: Subject, probes: Probes, params: Any) -> np.ndarray:
    """The updates `[steps, coordinates]` along the probes.

    On one vector where the optimizer takes it, else dealt out over trees like the user's.
    """
    with jax.enable_x64(True):
        try:
            return _run(subject, probes)
        except Exception:
            leaves, structure = jax.tree.flatten(params)
            sizes = [np.size(leaf) for leaf in leaves]
            count = len(probes.params)
            found = []
            for first in range(0, count, sum(sizes)):
                chosen = np.arange(first, first + sum(sizes)) % count
                cuts = np.cumsum(sizes)[:-1]

                def deal(row: np.ndarray, chosen: Any = chosen, cuts: Any = cuts) -> Any:
                    parts = np.split(row[chosen], cuts)
                    return structure.unflatten([p.reshape(np.shape(l)) for p, l in zip(parts, leaves, strict=True)])

                rows = _run(subject, probes, deal)
                found.append(rows[:, : min(sum(sizes), count - first)])
            return np.hstack(found)


def _run(subject: Subject, probes: Probes, deal: Callable[[np.ndarray], Any] = np.array) -> np.ndarray:
    params, rows = deal(probes.params), []
    state = subject.start(params)
    for count, g in enumerate(probes.grads):
        _, state, updates = subject.step(params, state, deal(g), count)
        rows.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)]).astype(float))
    return np.array(rows)


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
    shortest = min(lengths.values(), default=0)
    return sorted((rule for rule in lengths if lengths[rule] <= shortest + SPARE_DIGITS), key=lengths.__getitem__)


def description_length(rule: Rule) -> int:
    """Digits in all its numbers, and one for each switch that is not at rest."""
    digits = 0
    for value, default in zip(rule, Rule(), strict=True):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and number != 0:
                short = number if number < 0.5 or number > 1 else 1 - number
                digits += min(len(f"{short:.12e}".split("e")[0].replace(".", "").rstrip("0")) or 1, LONG)
        digits += not isinstance(value, float | tuple) and value != default
    return digits


def table(rules: list[Rule]) -> Rule | None:
    """Many rules as one, with a column for every switch."""
    if not rules:
        return None
    return Rule(*(np.array(column)[:, None] for column in zip(*rules, strict=True)))


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
        moments, of_base = (type(x)(*(np.broadcast_to(y, (size, y.shape[1]))[good] for y in x)) for x in (moments, of_base))
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
    """What pulled at the parameter 1 under a gradient of zero, in units of the learning rate where it is not coupled."""
    free = rule.decay_kind == "decoupled from the learning rate"
    after = rule.decay_kind == "decoupled, after the step"
    pulled = -seen[0, DECAYING] / np.where(free, 1.0, np.where(after, rate / (1 + seen[0, DECAYING]), rate))
    pulled = np.vectorize(snapped)(pulled, 1e-7)
    return rule._replace(weight_decay=np.where(rule.decay_kind == "coupled", rule.weight_decay, pulled))


def snapped(value: float, relative: float) -> float:
    """A short decimal within a relative distance, else the value itself."""
    if value == 0 or not np.isfinite(value):
        return float(value)
    for digits in range(1, 10):
        short = float(f"{value:.{digits - 1}e}")
        if abs(short - value) <= relative * abs(value):
            return short
    return float(value)


def candidates(seen: np.ndarray) -> Rule | None:
    """Every combination of switches that what was seen does not rule out at once, with its hyperparameters."""
    first = seen[0]
    if first[BASE] == 0:
        return None
    kernel = (seen[:STRUCTURED, [BASE]] - seen[:STRUCTURED, FLIPS]) / (2 * BIG)  # of step t, to the input of step s
    linear = abs(first[CURVE.start + 7] / first[BASE] * BIG / SIZES[7] - 1) < 1e-9
    remembers = abs(kernel[3, 2]) > 1e-12 * abs(kernel[3, 3])
    ratio = (seen[1, LATE] / ((seen[1, BASE] + seen[1, FLIPS][0]) / 2)) ** 2
    b2 = snapped(ratio - 1, 1e-10) if not linear else 0.0
    b2 = 1 - snapped(1 - b2, 1e-9) if 0.9 < b2 < 1 else b2
    rules = []
    for numerator, second, decay in itertools.product(
        numerators(kernel, linear, remembers), seconds(first, seen[1], b2, linear), decays(first)
    ):
        given = numerator | second
        rule = Rule(**{k: v for k, v in (given | decay).items() if k in Rule._fields})
        fast = rule.correct_first or rule.correct_second
        for first_count in (1, 2) if fast else (1,):
            rules += list(_completed(rule._replace(first_count=first_count), kernel, seen))
    return table(rules)


def numerators(kernel: np.ndarray, linear: bool, remembers: bool) -> Iterator[dict[str, Any]]:
    if not remembers:
        yield {}
        return
    for place in ("outside", "inside the velocity"):
        for nesterov in ("none", "look-ahead"):
            for gain in ("none", "all", "but the first") if linear else ("none",):
                yield {"rho": np.nan, "rate_place": place, "nesterov": nesterov, "dampening": gain}
    for place in ("outside", "inside the first moment"):
        for nesterov in ("none", "Dozat", "same correction"):
            for corrected in (False, True):
                if linear and not corrected and nesterov == "none":
                    continue  # the same as a velocity whose input is damped by rho
                yield {"b1": np.nan, "rate_place": place, "nesterov": nesterov, "correct_first": corrected}


def seconds(first: np.ndarray, then: np.ndarray, b2: float, linear: bool) -> Iterator[dict[str, Any]]:
    if linear:
        yield {}
        return
    second = "sum" if abs(b2 - 1) < 1e-9 else "mean"
    for corrected in (False, True) if second == "mean" else (False,):
        places = ["outside the root", "inside the root"] + ["on the uncorrected moment"] * corrected
        maxima = ["none", *["of raw moments"] * (second == "mean"), *["of corrected moments"] * corrected]
        for place, maximum, initial in itertools.product(places, maxima, (0.0, np.nan)):
            own = {"second": second, "b2": b2 if second == "mean" else 0.0, "correct_second": corrected, "eps_place": place}
            yield own | {"amsgrad": maximum, "initial": initial}


def decays(first: np.ndarray) -> Iterator[dict[str, Any]]:
    if first[DECAYING] == 0:
        yield {}
        return
    with np.errstate(all="ignore"):
        yield {"decay_kind": "coupled", "weight_decay": snapped(first[DECAYING_TINY] / first[FEELING_TINY], 1e-10)}
    for kind in ("decoupled", "decoupled, after the step", "decoupled from the learning rate"):
        yield {"decay_kind": kind}  # how much follows once the learning rate is known


def _completed(rule: Rule, kernel: np.ndarray, seen: np.ndarray) -> Iterator[Rule]:
    """The rule with its hyperparameters, from what it must have done were it this one."""
    k, b2, later = kernel, rule.b2, rule.first_count - 1

    def c2(t: int) -> float:
        return 1 - b2 ** (t + later) if rule.correct_second else 1.0

    def big(t: int) -> float:  # the denominator under gradients of one size, in that size
        return {"none": 1.0, "sum": t**0.5, "mean": ((1 - b2**t) / c2(t)) ** 0.5}[rule.second]

    b = k[3, 1] / k[3, 2]
    if rule.rate_place != "outside":
        b = k[3, 1] / k[2, 1]
    if np.isnan(rule.rho):
        b *= big(2) / big(3) if rule.rate_place == "outside" else 1.0
        b = _short_rate(b)
        rule = rule._replace(rho=b)
        if rule.dampening != "none":
            rule = _with_gain(rule, k)
        rule = rule._replace(dampening=0.0 if rule.dampening == "none" else rule.dampening)
    elif np.isnan(rule.b1):
        if rule.rate_place != "outside":
            seen_b = b * big(4) / big(3)
            for _ in range(60 if rule.correct_first else 1):
                b = seen_b * ((1 - b ** (4 + later)) / (1 - b ** (3 + later)) if rule.correct_first else 1.0)
        rule = rule._replace(b1=_short_rate(b))
    if not 0 <= rule.rho < 1 or not 0 <= rule.b1 < 1 or not 0 <= b2 < 1.0 + 1e-9:
        return
    if rule.second == "none":
        yield rule
        if rule.rho > 0 and rule.dampening == 0 and rule.nesterov == "none":
            yield rule._replace(dampening=rule.rho)
        return
    yield from _with_epsilon(rule, seen, c2)


def _with_gain(rule: Rule, k: np.ndarray) -> Rule:
    """How much of a gradient enters the velocity, against all of it at the first step or in the look-ahead."""
    rho, ahead, every = rule.rho, rule.nesterov == "look-ahead", rule.dampening == "all"
    if every:
        gain = (k[3, 2] / k[3, 3]) / (rho**2 - rho * k[3, 2] / k[3, 3]) if ahead else 1.0
    else:
        gain = (rho**2 * k[1, 1] / k[1, 0] - 1) / rho if ahead else rho * k[1, 1] / k[1, 0]
    return rule._replace(dampening=snapped(1 - snapped(gain, 1e-9), 1e-9) if abs(gain - 1) > 1e-9 else 0.0, damp_first=every)


def _with_epsilon(rule: Rule, seen: np.ndarray, c2: Callable[[int], float]) -> Iterator[Rule]:
    """Epsilon and the initial accumulator: the denominator at the first step is sqrt(size^2 + inside) + outside."""
    unit = 1.0 if rule.second == "sum" else ((1 - rule.b2) / c2(1)) ** 0.5
    x = unit * SIZES
    denominator = x / (seen[0, CURVE] / seen[0, BASE])
    to_eps = c2(1) ** 0.5 if rule.eps_place == "on the uncorrected moment" else 1.0
    to_initial = c2(1) / (1.0 if rule.second == "sum" else max(rule.b2, 1e-300))
    if rule.initial == 0.0:
        both = denominator[-1] ** 2 if rule.eps_place == "inside the root" else denominator[-1] * to_eps
        fair = denominator[-1] > 1e3 * x[-1]
        yield rule._replace(eps=snapped(both, 1e-9) if fair else 0.0)
        return
    if rule.eps_place == "inside the root":
        inside = denominator[-1] ** 2
        if rule.second == "mean":
            unit2 = (1 - rule.b2**2) / c2(2)
            inside2 = (SIZES[-1] * unit2**0.5 / (seen[1, CURVE][-1] / seen[1, BASE])) ** 2
            initial = (inside - inside2) / (rule.b2 / c2(1) - rule.b2**2 / c2(2))
        else:
            initial = inside
        for guess in {snapped(initial, r) for r in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-9)}:
            eps = inside - guess / to_initial
            if guess > 1e-14 * inside and eps >= 0:
                yield from (rule._replace(initial=guess, eps=snapped(eps, r)) for r in (1e-4, 1e-7))
        yield rule._replace(initial=snapped(inside * to_initial, 1e-9), eps=0.0)
        return
    middle = int(np.argmin(np.abs(x / denominator - 0.5)))
    z = denominator[middle] - denominator[-1]
    root = (x[middle] ** 2 - z**2) / (2 * z)
    if not (np.isfinite(root) and root > 1e-6 * denominator[-1]):
        return
    for relative in (1e-9, 1e-5):
        initial = snapped(root**2 * to_initial, relative)
        eps = max(denominator[-1] - (initial / to_initial) ** 0.5, 0.0) * to_eps
        for near in (1e-9, 1e-5, 1e-3):
            yield rule._replace(initial=initial, eps=snapped(eps, near))
    yield rule._replace(initial=snapped(root**2 * to_initial, 1e-9), eps=0.0)


def _short_rate(b: float) -> float:
    """A decay rate as somebody would have typed it: short itself, or short in what it lacks to one."""
    near = snapped(b, 1e-11)
    return near if len(repr(near)) < 12 else 1 - snapped(1 - b, 1e-9)


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
