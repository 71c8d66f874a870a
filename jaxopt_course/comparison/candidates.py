"""Every combination of switches that a few responses allow, with the hyperparameters that must have been at work."""

import itertools
from collections.abc import Iterator
from typing import Any, no_type_check

import numpy as np

from jaxopt_course.comparison.probes import (
    BASE,
    BIG,
    CURVE,
    DECAYING,
    DECAYING_TINY,
    FEELING_TINY,
    FLIPS,
    LATE,
    SIZES,
    STRUCTURED,
)
from jaxopt_course.comparison.rules import Rule


def candidates(seen: np.ndarray) -> Rule | None:
    """Every combination of switches that what was seen does not rule out at once, with its hyperparameters."""
    first = seen[0]
    if first[BASE] == 0:
        return None
    kernel = (seen[:STRUCTURED, [BASE]] - seen[:STRUCTURED, FLIPS]) / (2 * BIG)  # of step t, to the input of step s
    linear = bool(abs(first[CURVE.start + 7] / first[BASE] * BIG / SIZES[7] - 1) < 1e-9)
    remembers = bool(abs(kernel[3, 2]) > 1e-12 * abs(kernel[3, 3]))
    ratio = (seen[1, LATE] / ((seen[1, BASE] + seen[1, FLIPS][0]) / 2)) ** 2
    b2 = snapped(ratio - 1, 1e-10) if not linear else 0.0
    b2 = 1 - snapped(1 - b2, 1e-9) if 0.9 < b2 < 1 else b2
    if not 0 <= b2 < 1 + 1e-9:
        return None
    rules = []
    for given in seconds(seen, b2, linear):
        for numerator in numerators(kernel, linear, remembers):
            rule = Rule(**given | numerator)
            for first_count in (1, 2) if rule.correct_first or rule.correct_second else (1,):
                rules += list(_completed(rule._replace(first_count=first_count), kernel, seen))
    rules = [rule._replace(**decay) for decay in decays(first) for rule in dict.fromkeys(rules)]
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


def seconds(seen: np.ndarray, b2: float, linear: bool) -> Iterator[dict[str, Any]]:
    if linear:
        yield {}
        return
    second = "sum" if abs(b2 - 1) < 1e-9 else "mean"
    for corrected in (False, True) if second == "mean" else (False,):
        places = ["outside the root", "inside the root"] + ["on the uncorrected moment"] * corrected
        maxima = ["none", *["of raw moments"] * (second == "mean"), *["of corrected moments"] * corrected]
        for place, maximum in itertools.product(places, maxima):
            own = {"second": second, "b2": b2 if second == "mean" else 0.0, "correct_second": corrected}
            yield own | {"amsgrad": maximum, "eps_place": place}


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
    times = np.arange(1, STRUCTURED + 1)
    c2 = np.append(1, 1 - b2 ** (times + later) if rule.correct_second else np.ones(STRUCTURED))  # by step
    mean = np.append(1, ((1 - b2**times) / c2[1:]) ** 0.5) if rule.second == "mean" else c2
    big = {"none": c2, "sum": np.arange(STRUCTURED + 1) ** 0.5, "mean": mean}[rule.second]  # denominators of BIG / BIG

    b = float(k[3, 1] / k[3, 2])
    if rule.rate_place != "outside":
        b = float(k[3, 1] / k[2, 1])
    if np.isnan(rule.rho + rule.b1) and not 0 <= b < 2:
        return
    if np.isnan(rule.rho):
        b *= big[2] / big[3] if rule.rate_place == "outside" else 1.0
        b = _short_rate(b)
        rule = rule._replace(rho=b)
        if rule.dampening != "none":
            rule = _with_gain(rule, k)
        rule = rule._replace(dampening=0.0 if rule.dampening == "none" else rule.dampening)
    elif np.isnan(rule.b1):
        if rule.rate_place != "outside":
            seen_b = b * big[4] / big[3]
            for _ in range(60 if rule.correct_first else 1):
                b = seen_b * ((1 - b ** (4 + later)) / (1 - b ** (3 + later)) if rule.correct_first else 1.0)
        rule = rule._replace(b1=_short_rate(b))
    if not 0 <= rule.dampening < 1 or not 0 <= rule.rho < 1 or not 0 <= rule.b1 < 1 or not 0 <= b2 < 1.0 + 1e-9:
        return
    if rule.second == "none":
        yield rule
        if rule.rho > 0 and rule.dampening == 0 and rule.nesterov == "none":
            yield rule._replace(dampening=rule.rho)
        return
    yield from _that_fit(rule, seen, c2)


def _with_gain(rule: Rule, k: np.ndarray) -> Rule:
    """How much of a gradient enters the velocity, against all of it at the first step or in the look-ahead."""
    rho, ahead, every = rule.rho, rule.nesterov == "look-ahead", rule.dampening == "all"
    if every:
        gain = (k[3, 2] / k[3, 3]) / (rho**2 - rho * k[3, 2] / k[3, 3]) if ahead else 1.0
    else:
        gain = (rho**2 * k[1, 1] / k[1, 0] - 1) / rho if ahead else rho * k[1, 1] / k[1, 0]
    return rule._replace(
        dampening=snapped(1 - snapped(gain, 1e-9), 1e-9) if abs(gain - 1) > 1e-9 else 0.0, damp_first=every
    )


def _that_fit(rule: Rule, seen: np.ndarray, c2: np.ndarray) -> Iterator[Rule]:
    """The epsilons and initial accumulators that make the denominators of the first step, for gradients of any size."""
    unit = 1.0 if rule.second == "sum" else ((1 - rule.b2) / c2[1]) ** 0.5
    ratio = np.abs(seen[0, CURVE] / seen[0, BASE])
    for guess in dict.fromkeys(_epsilons(rule, seen, c2)):
        to_eps, to_initial = _units(guess, c2)
        inside = guess.eps_place == "inside the root"
        under = (unit * SIZES) ** 2 + guess.initial / to_initial + (guess.eps if inside else 0.0)
        denominator = np.sqrt(under) + (0.0 if inside else guess.eps / to_eps)
        if np.all(np.abs(unit * SIZES / denominator / ratio - 1) < 1e-10):
            yield guess


def _units(rule: Rule, c2: np.ndarray) -> tuple[float, float]:
    """Of epsilon and of the initial accumulator, in the denominator of the first step."""
    to_eps = c2[1] ** 0.5 if rule.eps_place == "on the uncorrected moment" else 1.0
    return to_eps, c2[1] / (1.0 if rule.second == "sum" else max(rule.b2, 1e-300))


def _epsilons(rule: Rule, seen: np.ndarray, c2: np.ndarray) -> Iterator[Rule]:
    """Epsilon and the initial accumulator: the denominator at the first step is sqrt(size^2 + inside) + outside."""
    unit = 1.0 if rule.second == "sum" else ((1 - rule.b2) / c2[1]) ** 0.5
    x = unit * SIZES
    denominator = x / (seen[0, CURVE] / seen[0, BASE])
    to_eps, to_initial = _units(rule, c2)
    both = denominator[-1] ** 2 if rule.eps_place == "inside the root" else denominator[-1] * to_eps
    yield rule._replace(eps=snapped(both, 1e-9) if denominator[-1] > 1e3 * x[-1] else 0.0)
    if rule.eps_place == "inside the root":
        inside = denominator[-1] ** 2
        if rule.second == "mean":
            unit2 = (1 - rule.b2**2) / c2[2]
            inside2 = (SIZES[-1] * unit2**0.5 / (seen[1, CURVE][-1] / seen[1, BASE])) ** 2
            initial = (inside - inside2) / (rule.b2 / c2[1] - rule.b2**2 / c2[2])
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


@no_type_check  # called thousands of times
def snapped(value: float, relative: float) -> float:
    """A short decimal within a relative distance, else the value itself."""
    if value == 0 or not np.isfinite(value):
        return float(value)
    for digits in range(1, 10):
        short = float(f"{value:.{digits - 1}e}")
        if abs(short - value) <= relative * abs(value):
            return short
    return float(value)


def table(rules: list[Rule]) -> Rule | None:
    """Many rules as one, with a column for every switch."""
    if not rules:
        return None
    return Rule(*(np.array(column)[:, None] for column in zip(*rules, strict=True)))
