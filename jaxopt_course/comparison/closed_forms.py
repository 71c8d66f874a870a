r"""The hyperparameters of a rule in closed form, from its responses to gradients of one kind each.

The layout of the probes, by coordinate (`STRUCTURED` steps, u[t, i] the update of coordinate i at step t, from 0):

    BASE            gradients BIG at every step; BIG is so large that any epsilon and initial accumulator vanish
    FLIPS[s]        the same, with the sign of step s reversed
    LATE            0 at the first step, then BIG
    DECAYING        the parameter is 1, the gradients are 0
    DECAYING_TINY   the parameter is TINY, the gradients are 0;   FEELING_TINY   the gradients are TINY
    CURVE           a gradient of each of SIZES, from far above to far below any epsilon

A reversed sign does not change a second moment. Hence the *kernel*

    k[t, s] = (u[t, BASE] - u[t, FLIPS[s]]) / (2 BIG)

is the weight with which the gradient of step s enters the update of step t. With D[t] the denominator of BIG in units
of BIG, and up to a factor -rate that is the same for one t (or for one s where the rate stands inside a memory):

    first moment, b1        k[t, s] = (1 - b1) b1^(t-s) / (c1[t] D[t])
    velocity, rho           k[t, s] = rho^(t-s) / D[s]

Every ratio below follows from these two lines. A number that is within rounding of a short decimal is taken to be that
decimal (`snapped`); whether it was right is decided later, by running the rule along all probes.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxopt_course.comparison.rules import Number, Rule, snapped, table

BIG = 2.0**40  # next to it any epsilon and any initial accumulator is nothing
TINY = 1e-30  # next to any epsilon it is nothing
SIZES = 10.0 ** np.arange(4, -31, -1)
ONE_THOUSANDTH = 7  # of SIZES
STRUCTURED = 4  # steps whose gradients are laid out by hand
BASE, FLIPS, LATE, DECAYING, DECAYING_TINY, FEELING_TINY = 0, slice(1, 5), 5, 6, 7, 8  # coordinates
CURVE = slice(9, 9 + len(SIZES))
SAME = 1e-9  # relative distance of numbers that are told apart no better

Switches = dict[str, Number]  # some fields of a `Rule`


class Responses(NamedTuple):
    """`seen`: `[steps, coordinates]`, the updates; `kernel`: as above, `[STRUCTURED, STRUCTURED]`."""

    seen: np.ndarray
    kernel: np.ndarray

    @property
    def is_linear(self) -> bool:
        """Whether there is no denominator: the response to a gradient of 1e-3 is that to BIG, scaled."""
        small = self.seen[0, CURVE][ONE_THOUSANDTH] / SIZES[ONE_THOUSANDTH]
        return bool(abs(small / (self.seen[0, BASE] / BIG) - 1) < SAME)

    @property
    def remembers(self) -> bool:
        """Whether the gradient of one step enters the update of the next."""
        return bool(abs(self.kernel[3, 2]) > 1e-12 * abs(self.kernel[3, 3]))

    @property
    def curve(self) -> np.ndarray:
        """|u(x) / u(BIG)| at the first step for every x of SIZES: D(BIG) x / D(x), whatever the numerator does."""
        return np.abs(self.seen[0, CURVE] / self.seen[0, BASE])


def candidates(seen: np.ndarray) -> Rule | None:
    """Every combination of switches that the responses do not rule out at once, as one rule with a column for each."""
    if seen[0, BASE] == 0:
        return None
    responses = Responses(seen, (seen[:STRUCTURED, [BASE]] - seen[:STRUCTURED, FLIPS]) / (2 * BIG))
    b2 = 0.0 if responses.is_linear else second_decay(seen)
    if not 0 <= b2 < 1 + SAME:
        return None
    rules = []
    for second, first in itertools.product(second_moments(b2, responses.is_linear), first_moments(responses)):
        rule = Rule(**second | first)
        for first_count in (1, 2) if rule.correct_first or rule.correct_second else (1,):
            rules += list(_completed(rule._replace(first_count=first_count), responses))
    return table([rule._replace(**decay) for decay in decays(seen[0]) for rule in dict.fromkeys(rules)])


def second_decay(seen: np.ndarray) -> float:
    """b2 of a mean, 1 for a sum.

    The mean of BASE and FLIPS[0] at step 1 has the weight of that step's gradient alone, over D of two gradients; LATE
    has the same weight over D of one. The square of their ratio is (1 - b2)(1 + b2) / (1 - b2) = 1 + b2, or 2 for a
    sum.
    """
    both = (seen[1, BASE] + seen[1, FLIPS][0]) / 2
    b2 = snapped((seen[1, LATE] / both) ** 2 - 1, 1e-10)
    return 1 - snapped(1 - b2, 1e-9) if 0.9 < b2 < 1 else b2


def first_moments(responses: Responses) -> Iterator[Switches]:
    """Every way to remember gradients; the decay, NaN here, follows in `_completed`."""
    if not responses.remembers:
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
                    continue  # the same as a velocity whose input is damped by rho
                yield {"b1": np.nan, "rate_place": place, "nesterov": nesterov, "correct_first": corrected}


def second_moments(b2: float, linear: bool) -> Iterator[Switches]:
    """Every way to keep squares, with its decay."""
    if linear:
        yield {}
        return
    second = "sum" if abs(b2 - 1) < SAME else "mean"
    for corrected in (False, True) if second == "mean" else (False,):
        places = ["outside the root", "inside the root"] + ["on the uncorrected moment"] * corrected
        maxima = ["none", *["of raw moments"] * (second == "mean"), *["of corrected moments"] * corrected]
        for place, maximum in itertools.product(places, maxima):
            own = {"second": second, "b2": b2 if second == "mean" else 0.0, "correct_second": corrected}
            yield own | {"amsgrad": maximum, "eps_place": place}


def decays(first: np.ndarray) -> Iterator[Switches]:
    """Every kind of weight decay, where there is any.

    Coupled, the parameter TINY acts as a gradient of wd * TINY. Both are far below epsilon, where the response is
    linear, so wd is the response to it over that to a gradient of TINY. The others follow once the rate is known.
    """
    if first[DECAYING] == 0:
        yield {}
        return
    with np.errstate(all="ignore"):
        yield {"decay_kind": "coupled", "weight_decay": snapped(first[DECAYING_TINY] / first[FEELING_TINY], 1e-10)}
    for kind in ("decoupled", "decoupled, after the step", "decoupled from the learning rate"):
        yield {"decay_kind": kind}


class Denominators(NamedTuple):
    """`correction`: 1 - b2^t or 1; `of_big`: D in units of BIG; both by step, from 1, with a 1 in front.

    Of t equal gradients a sum is t BIG^2 and a mean (1 - b2^t) BIG^2, which a correction divides by c2[t].
    """

    correction: np.ndarray
    of_big: np.ndarray


def denominators(rule: Rule) -> Denominators:
    """Those of the first steps."""
    times = np.arange(1, STRUCTURED + 1)
    ones = np.ones(STRUCTURED + 1)
    later = rule.first_count - 1
    c2 = np.append(1, 1 - rule.b2 ** (times + later)) if rule.correct_second else ones
    if rule.second == "none":
        return Denominators(c2, ones)
    squares = times if rule.second == "sum" else (1 - rule.b2**times) / c2[1:]
    return Denominators(c2, np.append(1, squares**0.5))


def _completed(rule: Rule, responses: Responses) -> Iterator[Rule]:
    """The rule with its hyperparameters, as they must have been if it is this one."""
    big = denominators(rule).of_big
    if np.isnan(rule.rho):
        rule = _with_velocity(rule, responses.kernel, big)
    elif np.isnan(rule.b1):
        rule = _with_first_moment(rule, responses.kernel, big)
    if not all(0 <= x < 1 for x in (rule.rho, rule.b1, rule.dampening)):
        return
    if rule.second != "none":
        yield from _that_fit(rule, responses)
        return
    yield rule
    if rule.rho > 0 and rule.dampening == 0 and rule.nesterov == "none":
        yield rule._replace(dampening=rule.rho)  # a mean is a velocity whose input is damped by rho


def _with_velocity(rule: Rule, k: np.ndarray, big: np.ndarray) -> Rule:
    """The velocity's rho and dampening.

    With the rate outside, k[3, 1] / k[3, 2] = rho D[2] / D[1] (in `big`, which counts from 1, big[3] / big[2]). With
    the rate inside, the rates of two steps s differ, so one gradient is watched a step later: k[3, 1] / k[2, 1] = rho.
    """
    outside = rule.rate_place == "outside"
    rho = _short_rate(float(k[3, 1] / k[3, 2] * big[2] / big[3] if outside else k[3, 1] / k[2, 1]))
    if not 0 < rho < 1:
        return rule._replace(rho=np.nan)
    rule = rule._replace(rho=rho)
    return rule._replace(dampening=0.0) if rule.dampening == "none" else _with_gain(rule, k)


def _with_first_moment(rule: Rule, k: np.ndarray, big: np.ndarray) -> Rule:
    """The first moment's b1.

    With the rate outside, k[3, 1] / k[3, 2] = b1. With the rate inside, one gradient is watched a step later:
    k[3, 1] / k[2, 1] = b1 (c1[2] / c1[3]) (D[2] / D[3]), which is solved for b1 by iteration where c1 depends on b1.
    """
    if rule.rate_place == "outside":
        return rule._replace(b1=_short_rate(float(k[3, 1] / k[3, 2])))
    seen = b1 = float(k[3, 1] / k[2, 1] * big[4] / big[3])
    later = rule.first_count - 1
    for _ in range(60 if rule.correct_first else 0):
        b1 = seen * (1 - b1 ** (4 + later)) / (1 - b1 ** (3 + later))
    return rule._replace(b1=_short_rate(b1))


def _with_gain(rule: Rule, k: np.ndarray) -> Rule:
    """The dampening d of a linear rule, from the gain 1 - d with which a gradient enters the velocity.

    At every step: without look-ahead it only scales the rate, so it is taken as 1. With look-ahead, k[3, 3] = 1 + rho
    gain and k[3, 2] = rho^2 gain; with q their ratio, gain = q / (rho^2 - rho q). But the first: k[1, 0] has gain 1, so
    k[1, 1] / k[1, 0] = gain / rho, or (1 + rho gain) / rho^2 with look-ahead.
    """
    rho, ahead, every = rule.rho, rule.nesterov == "look-ahead", rule.dampening == "all"
    if every:
        q = k[3, 2] / k[3, 3]
        gain = q / (rho**2 - rho * q) if ahead else 1.0
    else:
        ratio = k[1, 1] / k[1, 0]
        gain = (rho**2 * ratio - 1) / rho if ahead else rho * ratio
    dampening = snapped(1 - snapped(gain, SAME), SAME) if abs(gain - 1) > SAME else 0.0
    return rule._replace(dampening=dampening, damp_first=every)


class FirstStep(NamedTuple):
    r"""The denominator at the first step, D(x) = sqrt((unit x)^2 + R^2 [+ eps]) + e, as it was seen for `SIZES`.

    `x`: unit * SIZES, with unit^2 = 1 for a sum and (1 - b2) / c2 for a mean; `seen`: D(x) = x / |u(x) / u(BIG)|.
    R^2 = initial / `per_initial`: b2 initial / c2 is left of the accumulator's start, all of it in a sum. e = eps /
    `per_eps`, where `per_eps` is sqrt(c2) for an epsilon on the uncorrected moment, since
    m / ((sqrt(v) + eps) / sqrt(c2)) is what such a rule computes.
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


def _that_fit(rule: Rule, responses: Responses) -> Iterator[Rule]:
    """The rule with every epsilon and initial accumulator that make the denominators of the first step."""
    first, inside = _first_step(rule, responses), rule.eps_place == "inside the root"
    guesses = _inside(rule, first, responses) if inside else _outside(rule, first)
    for guess in dict.fromkeys(guesses):
        under = first.x**2 + guess.initial / first.per_initial + (guess.eps if inside else 0.0)
        made = np.sqrt(under) + (0.0 if inside else guess.eps / first.per_eps)
        if np.all(np.abs(first.seen / made - 1) < 1e-10):
            yield guess


def _inside(rule: Rule, first: FirstStep, responses: Responses) -> Iterator[Rule]:
    """Guesses for epsilon inside the root.

    The denominator of the smallest gradient is sqrt(R^2 + eps). A mean forgets its start: a step later R^2 has become
    b2^2 initial / c2[2], which separates the two; in a sum nothing does.
    """
    smallest = first.seen[-1]
    both = initial = smallest**2
    yield rule._replace(eps=snapped(both, SAME) if smallest > 1e3 * first.x[-1] else 0.0)
    if rule.second == "mean":
        c2 = denominators(rule).correction
        seen = responses.seen[1]
        x = SIZES[-1] * ((1 - rule.b2**2) / c2[2]) ** 0.5
        later = (x / (seen[CURVE][-1] / seen[BASE])) ** 2
        initial = (both - later) / (rule.b2 / c2[1] - rule.b2**2 / c2[2])
    for guess in {snapped(initial, r) for r in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-9)}:
        eps = both - guess / first.per_initial
        if guess > 1e-14 * both and eps >= 0:
            yield from (rule._replace(initial=guess, eps=snapped(eps, r)) for r in (1e-4, 1e-7))
    yield rule._replace(initial=snapped(both * first.per_initial, SAME), eps=0.0)


def _outside(rule: Rule, first: FirstStep) -> Iterator[Rule]:
    """Guesses for epsilon outside the root.

    The denominator of the smallest gradient is D0 = R + e. With z = D(x) - D0 = sqrt(x^2 + R^2) - R for some x in the
    bend of the curve, (z + R)^2 = x^2 + R^2, so R = (x^2 - z^2) / (2 z).
    """
    smallest = first.seen[-1]
    yield rule._replace(eps=snapped(smallest * first.per_eps, SAME) if smallest > 1e3 * first.x[-1] else 0.0)
    middle = int(np.argmin(np.abs(first.x / first.seen - 0.5)))
    z = first.seen[middle] - smallest
    root = (first.x[middle] ** 2 - z**2) / (2 * z)
    if not (np.isfinite(root) and root > 1e-6 * smallest):
        return
    for relative in (1e-9, 1e-5):
        initial = snapped(root**2 * first.per_initial, relative)
        eps = max(smallest - (initial / first.per_initial) ** 0.5, 0.0) * first.per_eps
        yield from (rule._replace(initial=initial, eps=snapped(eps, near)) for near in (1e-9, 1e-5, 1e-3))
    yield rule._replace(initial=snapped(root**2 * first.per_initial, SAME), eps=0.0)


def _short_rate(b: float) -> float:
    """A decay rate as somebody would have typed it: short itself, or short in what it lacks to one."""
    near = snapped(b, 1e-11)
    return near if len(repr(near)) < 12 else 1 - snapped(1 - b, SAME)
