r"""Hyperparameters of a rule in closed form, from its responses to probe gradients.

Each coordinate of the probes has gradients of one kind. Their layout by coordinate is as follows; the probes take
`STRUCTURED` steps, and u[t, i] is the update of coordinate i at step t, counted from 0:

    BASE         gradients BIG at every step; BIG is so large that any epsilon and initial accumulator are negligible
    FLIPS[s]     the same, with the sign of step s reversed
    LATE         0 at the first step, then BIG
    UNIT_PARAM   the parameter is 1, the gradients are 0
    TINY_PARAM   the parameter is TINY, the gradients are 0
    TINY_GRAD    the gradients are TINY
    CURVE        a gradient of each of SIZES, from far above to far below any epsilon

A reversed sign does not change a second moment. Hence the *kernel*

    k[t, s] = (u[t, BASE] - u[t, FLIPS[s]]) / (2 BIG)

is the weight with which the gradient of step s enters the update of step t. Let D[t] be the denominator of BIG in units
of BIG. Up to a factor -rate, which is the same for one t (or for one s if the rate is applied inside a moment):

    first moment, b1        k[t, s] = (1 - b1) b1^(t-s) / (c1[t] D[t])
    velocity, rho           k[t, s] = rho^(t-s) / D[s]

Every ratio below follows from these two lines. If a number is within rounding of a short decimal, it is replaced by
that decimal (`shortest_decimal`). The rule is later run along all probes, which shows whether the decimal was right.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxopt_course.comparison.rules import Number, Rule, shortest_decimal, table

BIG = 2.0**40  # any epsilon and any initial accumulator is negligible beside it
TINY = 1e-30  # negligible beside any epsilon
SIZES = 10.0 ** np.arange(4, -31, -1)
ONE_THOUSANDTH = 7  # index of 1e-3 in SIZES
STRUCTURED = 4  # number of steps with the layout of the module docstring
BASE, FLIPS, LATE, UNIT_PARAM, TINY_PARAM, TINY_GRAD = 0, slice(1, 5), 5, 6, 7, 8  # coordinates
CURVE = slice(9, 9 + len(SIZES))
TOLERANCE = 1e-9  # relative difference below which two numbers count as equal

Switches = dict[str, Number]  # some fields of a `Rule`, by name


class Responses(NamedTuple):
    """Responses to the probes.

    `seen`: the updates, `[steps, coordinates]`; `kernel`: as in the module docstring, `[STRUCTURED, STRUCTURED]`.
    """

    seen: np.ndarray
    kernel: np.ndarray

    @property
    def is_linear(self) -> bool:
        """Whether the rule has no denominator: the response to a gradient of 1e-3 is the scaled response to BIG."""
        small = self.seen[0, CURVE][ONE_THOUSANDTH] / SIZES[ONE_THOUSANDTH]
        return bool(abs(small / (self.seen[0, BASE] / BIG) - 1) < TOLERANCE)

    @property
    def has_memory(self) -> bool:
        """Whether the gradient of one step enters the update of the next."""
        return bool(abs(self.kernel[3, 2]) > 1e-12 * abs(self.kernel[3, 3]))

    @property
    def curve(self) -> np.ndarray:
        """|u(x) / u(BIG)| at the first step for each x of SIZES, which is D(BIG) x / D(x) for every numerator."""
        return np.abs(self.seen[0, CURVE] / self.seen[0, BASE])


def candidates(seen: np.ndarray) -> Rule | None:
    """Every combination of switches that the responses permit at first sight, as one `Rule` of columns."""
    if seen[0, BASE] == 0:
        return None
    responses = Responses(seen, (seen[:STRUCTURED, [BASE]] - seen[:STRUCTURED, FLIPS]) / (2 * BIG))
    b2 = 0.0 if responses.is_linear else second_decay(seen)
    if not 0 <= b2 < 1 + TOLERANCE:
        return None
    rules = []
    for second, first in itertools.product(second_moments(b2, responses.is_linear), first_moments(responses)):
        rule = Rule(**second | first)
        for first_count in (1, 2) if rule.correct_first or rule.correct_second else (1,):
            rules += list(_with_hyperparameters(rule._replace(first_count=first_count), responses))
    return table([rule._replace(**decay) for decay in decays(seen[0]) for rule in dict.fromkeys(rules)])


def second_decay(seen: np.ndarray) -> float:
    """b2 of an exponential mean of squares, or 1 for a sum of squares.

    At step 1 the mean of BASE and FLIPS[0] contains only the weight of that step's gradient, divided by D of two
    gradients. LATE has the same weight, divided by D of one gradient. The square of their ratio is
    (1 - b2)(1 + b2) / (1 - b2) = 1 + b2, or 2 for a sum.
    """
    both = (seen[1, BASE] + seen[1, FLIPS][0]) / 2
    b2 = shortest_decimal((seen[1, LATE] / both) ** 2 - 1, 1e-10)
    return 1 - shortest_decimal(1 - b2, 1e-9) if 0.9 < b2 < 1 else b2


def first_moments(responses: Responses) -> Iterator[Switches]:
    """Every kind of first moment or velocity; its decay is NaN until `_with_hyperparameters` fills it in."""
    if not responses.has_memory:
        yield {}
        return
    for place in ("outside", "inside the velocity"):
        for nesterov in ("none", "look-ahead"):
            for gain in ("none", "all", "but the first") if responses.is_linear else ("none",):
                yield {"rho": np.nan, "rate_place": place, "nesterov": nesterov, "dampening": gain}
    for place in ("outside", "inside the first moment"):
        for nesterov in ("none", "Dozat", "same correction"):
            for corrected in (False, True):
                if responses.is_linear and not corrected and nesterov == "none":
                    continue  # equal to a velocity with dampening rho
                yield {"b1": np.nan, "rate_place": place, "nesterov": nesterov, "correct_first": corrected}


def second_moments(b2: float, linear: bool) -> Iterator[Switches]:
    """Every kind of second moment, with its decay."""
    if linear:
        yield {}
        return
    second = "sum" if abs(b2 - 1) < TOLERANCE else "mean"
    for corrected in (False, True) if second == "mean" else (False,):
        places = ["outside the root", "inside the root"] + ["on the uncorrected moment"] * corrected
        maxima = ["none", *["of raw moments"] * (second == "mean"), *["of corrected moments"] * corrected]
        for place, maximum in itertools.product(places, maxima):
            own = {"second": second, "b2": b2 if second == "mean" else 0.0, "correct_second": corrected}
            yield own | {"amsgrad": maximum, "eps_place": place}


def decays(first: np.ndarray) -> Iterator[Switches]:
    """Every kind of weight decay, if the rule has any.

    If the decay is coupled, the parameter TINY acts as a gradient of wd * TINY. Both are far below epsilon, where the
    response is linear. So wd is the response to the parameter TINY over the response to a gradient of TINY. The other
    kinds are computed once the learning rate is known.
    """
    if first[UNIT_PARAM] == 0:
        yield {}
        return
    with np.errstate(all="ignore"):
        yield {"decay_kind": "coupled", "weight_decay": shortest_decimal(first[TINY_PARAM] / first[TINY_GRAD], 1e-10)}
    for kind in ("decoupled", "decoupled, after the step", "decoupled from the learning rate"):
        yield {"decay_kind": kind}


class Denominators(NamedTuple):
    """Denominators of the first steps.

    `correction`: 1 - b2^t or 1; `of_big`: D in units of BIG. Both are indexed by the step, counted from 1, and entry 0
    is 1. For t equal gradients, the sum of squares is t BIG^2 and the mean is (1 - b2^t) BIG^2; a bias correction
    divides the mean by c2[t].
    """

    correction: np.ndarray
    of_big: np.ndarray


def denominators(rule: Rule) -> Denominators:
    """Compute the `Denominators` of a rule."""
    times = np.arange(1, STRUCTURED + 1)
    ones = np.ones(STRUCTURED + 1)
    later = rule.first_count - 1
    c2 = np.append(1, 1 - rule.b2 ** (times + later)) if rule.correct_second else ones
    if rule.second == "none":
        return Denominators(c2, ones)
    squares = times if rule.second == "sum" else (1 - rule.b2**times) / c2[1:]
    return Denominators(c2, np.append(1, squares**0.5))


def _with_hyperparameters(rule: Rule, responses: Responses) -> Iterator[Rule]:
    """The rule with the hyperparameters that follow from the responses; nothing if these are out of range."""
    big = denominators(rule).of_big
    if np.isnan(rule.rho):
        rule = _with_velocity(rule, responses.kernel, big)
    elif np.isnan(rule.b1):
        rule = _with_first_moment(rule, responses.kernel, big)
    if not all(0 <= x < 1 for x in (rule.rho, rule.b1, rule.dampening)):
        return
    if rule.second != "none":
        yield from _fitting_first_step(rule, responses)
        return
    yield rule
    if rule.rho > 0 and rule.dampening == 0 and rule.nesterov == "none":
        yield rule._replace(dampening=rule.rho)  # an exponential mean is a velocity with dampening rho


def _with_velocity(rule: Rule, k: np.ndarray, big: np.ndarray) -> Rule:
    """The rule with the rho and dampening of its velocity.

    With the rate outside, k[3, 1] / k[3, 2] = rho D[2] / D[1] (in `big`, which counts from 1, big[3] / big[2]). With
    the rate inside, the rates of two steps s differ, so the weights of one gradient at successive steps are
    compared: k[3, 1] / k[2, 1] = rho.
    """
    outside = rule.rate_place == "outside"
    rho = _short_rate(float(k[3, 1] / k[3, 2] * big[2] / big[3] if outside else k[3, 1] / k[2, 1]))
    if not 0 < rho < 1:
        return rule._replace(rho=np.nan)
    rule = rule._replace(rho=rho)
    return rule._replace(dampening=0.0) if rule.dampening == "none" else _with_dampening(rule, k)


def _with_first_moment(rule: Rule, k: np.ndarray, big: np.ndarray) -> Rule:
    """The rule with the b1 of its first moment.

    With the rate outside, k[3, 1] / k[3, 2] = b1. With the rate inside, the weights of one gradient at successive steps
    are compared: k[3, 1] / k[2, 1] = b1 (c1[2] / c1[3]) (D[2] / D[3]). If c1 depends on b1, this is solved for b1 by
    iteration.
    """
    if rule.rate_place == "outside":
        return rule._replace(b1=_short_rate(float(k[3, 1] / k[3, 2])))
    seen = b1 = float(k[3, 1] / k[2, 1] * big[4] / big[3])
    later = rule.first_count - 1
    for _ in range(60 if rule.correct_first else 0):
        b1 = seen * (1 - b1 ** (4 + later)) / (1 - b1 ** (3 + later))
    return rule._replace(b1=_short_rate(b1))


def _with_dampening(rule: Rule, k: np.ndarray) -> Rule:
    """The rule with the dampening d of its velocity, from the gain 1 - d with which a gradient enters the velocity.

    If every step is damped: without look-ahead the gain only scales the rate, so it is taken as 1. With look-ahead,
    k[3, 3] = 1 + rho gain and k[3, 2] = rho^2 gain; with q = k[3, 2] / k[3, 3], gain = q / (rho^2 - rho q).

    If the first step is not damped: k[1, 0] has gain 1, so k[1, 1] / k[1, 0] = gain / rho, or
    (1 + rho gain) / rho^2 with look-ahead.
    """
    rho, ahead, every = rule.rho, rule.nesterov == "look-ahead", rule.dampening == "all"
    if every:
        q = k[3, 2] / k[3, 3]
        gain = q / (rho**2 - rho * q) if ahead else 1.0
    else:
        ratio = k[1, 1] / k[1, 0]
        gain = (rho**2 * ratio - 1) / rho if ahead else rho * ratio
    dampening = shortest_decimal(1 - shortest_decimal(gain, TOLERANCE), TOLERANCE) if abs(gain - 1) > TOLERANCE else 0.0
    return rule._replace(dampening=dampening, damp_first=every)


class FirstStep(NamedTuple):
    r"""The observed denominator at the first step, D(x) = sqrt((unit x)^2 + R^2 [+ eps]) + e, for each of `SIZES`.

    `x`: unit * SIZES, with unit^2 = 1 for a sum and (1 - b2) / c2 for a mean; `seen`: D(x) = x / |u(x) / u(BIG)|.
    `per_initial`: R^2 = initial / `per_initial`. A mean keeps b2 initial / c2 of the initial accumulator; a sum keeps
    all of it. `per_eps`: e = eps / `per_eps`. It is sqrt(c2) for an epsilon on the uncorrected moment, because such a
    rule computes m / ((sqrt(v) + eps) / sqrt(c2)).
    """

    x: np.ndarray
    seen: np.ndarray
    per_initial: float
    per_eps: float


def _first_step(rule: Rule, responses: Responses) -> FirstStep:
    c2 = denominators(rule).correction[1]
    is_sum = rule.second == "sum"
    x = SIZES * (1.0 if is_sum else ((1 - rule.b2) / c2) ** 0.5)
    per_eps = c2**0.5 if rule.eps_place == "on the uncorrected moment" else 1.0
    return FirstStep(x, x / responses.curve, c2 / (1.0 if is_sum else max(rule.b2, 1e-300)), per_eps)


def _fitting_first_step(rule: Rule, responses: Responses) -> Iterator[Rule]:
    """The rule with every epsilon and initial accumulator that reproduce the denominators of the first step."""
    first, inside = _first_step(rule, responses), rule.eps_place == "inside the root"
    guesses = _guesses_inside_root(rule, first, responses) if inside else _guesses_outside_root(rule, first)
    for guess in dict.fromkeys(guesses):
        under = first.x**2 + guess.initial / first.per_initial + (guess.eps if inside else 0.0)
        made = np.sqrt(under) + (0.0 if inside else guess.eps / first.per_eps)
        if np.all(np.abs(first.seen / made - 1) < 1e-10):
            yield guess


def _guesses_inside_root(rule: Rule, first: FirstStep, responses: Responses) -> Iterator[Rule]:
    """Candidates for the initial accumulator and an epsilon inside the root.

    The denominator of the smallest gradient is sqrt(R^2 + eps). For a mean, R^2 is b2^2 initial / c2[2] one step later,
    which separates R^2 from eps. For a sum, R^2 does not change, and the two cannot be separated.
    """
    smallest = first.seen[-1]
    both = initial = smallest**2
    yield rule._replace(eps=shortest_decimal(both, TOLERANCE) if smallest > 1e3 * first.x[-1] else 0.0)
    if rule.second == "mean":
        c2 = denominators(rule).correction
        seen = responses.seen[1]
        x = SIZES[-1] * ((1 - rule.b2**2) / c2[2]) ** 0.5
        later = (x / (seen[CURVE][-1] / seen[BASE])) ** 2
        initial = (both - later) / (rule.b2 / c2[1] - rule.b2**2 / c2[2])
    for guess in {shortest_decimal(initial, r) for r in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-9)}:
        eps = both - guess / first.per_initial
        if guess > 1e-14 * both and eps >= 0:
            yield from (rule._replace(initial=guess, eps=shortest_decimal(eps, r)) for r in (1e-4, 1e-7))
    yield rule._replace(initial=shortest_decimal(both * first.per_initial, TOLERANCE), eps=0.0)


def _guesses_outside_root(rule: Rule, first: FirstStep) -> Iterator[Rule]:
    """Candidates for the initial accumulator and an epsilon outside the root.

    The denominator of the smallest gradient is D0 = R + e. Let z = D(x) - D0 = sqrt(x^2 + R^2) - R for some x at the
    bend of the curve. Then (z + R)^2 = x^2 + R^2, so R = (x^2 - z^2) / (2 z).
    """
    smallest = first.seen[-1]
    yield rule._replace(
        eps=shortest_decimal(smallest * first.per_eps, TOLERANCE) if smallest > 1e3 * first.x[-1] else 0.0
    )
    middle = int(np.argmin(np.abs(first.x / first.seen - 0.5)))
    z = first.seen[middle] - smallest
    root = (first.x[middle] ** 2 - z**2) / (2 * z)
    if not (np.isfinite(root) and root > 1e-6 * smallest):
        return
    for relative in (1e-9, 1e-5):
        initial = shortest_decimal(root**2 * first.per_initial, relative)
        eps = max(smallest - (initial / first.per_initial) ** 0.5, 0.0) * first.per_eps
        yield from (rule._replace(initial=initial, eps=shortest_decimal(eps, near)) for near in (1e-9, 1e-5, 1e-3))
    yield rule._replace(initial=shortest_decimal(root**2 * first.per_initial, TOLERANCE), eps=0.0)


def _short_rate(b: float) -> float:
    """The short decimal for a decay rate b: b itself is short, or 1 - b is."""
    near = shortest_decimal(b, 1e-11)
    return near if len(repr(near)) < 12 else 1 - shortest_decimal(1 - b, TOLERANCE)
