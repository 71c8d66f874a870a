"""One rule for each cause: from evidence to a finding, with thresholds that follow from theory."""

import math
from collections.abc import Callable

import numpy as np

from jaxopt_course.diagnosis.causes import Cause, Finding
from jaxopt_course.diagnosis.evidence import Estimate, Evidence, Moment

WORTH = 0.01  # of what was gained so far: what is left to gain is worth a finding from there on
TWICE = 2.0  # a rate that could not even be doubled is not too low
TENFOLD = 10.0  # a ratio of curvatures that matters
NEAR = 0.9  # of the stability limit: at the edge
HALF = 0.5  # of a whole: the entries of a leaf, the descent, the excess of the loss

Weighed = tuple[float, Finding]  # how many times faster the run could gain; inf where it cannot go on as it is


def findings(e: Evidence) -> tuple[Finding, ...]:
    """All that the rules find, the most important first; HEALTHY where they find nothing."""
    found = [weighed for rule in RULES for weighed in rule(e)]
    found.sort(key=lambda weighed: (not weighed[1].certain, -weighed[0]))
    return tuple(finding for _, finding in found) or (_healthy(e),)


def rose(e: Evidence) -> bool:
    """Whether the loss is higher at the end than at the start, or than it once was for a while, beyond what minibatches
    explain."""
    end = e.last.loss
    if not math.isfinite(end.mean) or end.low > e.first.loss.high + 1e-6 * abs(e.first.loss.high):
        return True
    return e.ending.low > e.best.high + WORTH * abs(e.best.high)


def gained(e: Evidence) -> float:
    """The loss at the start less that at the end."""
    return max(e.first.loss.mean - e.last.loss.mean, 0.0)


def worth_going_on(e: Evidence) -> bool:
    """Whether what is left to gain matters beside what was gained: by the curvature here, or because the loss still
    falls."""
    return max(e.last.left.mean, e.fall.mean) > WORTH * gained(e)


def surely_worth_going_on(e: Evidence) -> bool:
    """The same, beyond the error of the estimate."""
    return max(e.last.left.low, e.fall.low) > WORTH * gained(e)


def still_falls(e: Evidence) -> bool:
    """Whether the loss may still be falling by something that matters."""
    return e.fall.mean > WORTH * gained(e)


def pace(m: Moment) -> float:
    """The share of the way to the minimum that a step takes: half of the descent over what is left to gain."""
    return m.descent.mean / (2 * m.left.mean) if m.descent.mean > 0 and m.left.mean > 0 else 0.0


def noise_share(e: Evidence) -> Estimate:
    """The part of what the loss lies above its minimum that noise maintains: 1 where a run has settled."""
    floor, above = e.last.floor, e.excess
    if floor.high <= 0:
        return Estimate(0.0, 0.0, 0.0)
    low = max(floor.low, 0) / above.high if above.high > 0 else math.inf
    return Estimate(
        floor.mean / max(above.mean, floor.mean), low, floor.high / above.low if above.low > 0 else math.inf
    )


def stability(m: Moment) -> float:
    """Steady over alternating response along the steepest direction: (1 + rho) / (1 - rho), 1 without momentum."""
    return float(np.sum(m.highest_share * m.steadiness))


def condition_number(m: Moment) -> float:
    """The steepest curvature over that in which what is left to gain lies, in units of the rule's response."""
    return 2 * m.over.mean * stability(m) / pace(m) if pace(m) > 0 else math.inf


def rate_too_high(e: Evidence) -> list[Weighed]:
    over, share = e.first.over, noise_share(e)
    unsettled = share.mean > HALF and floor_matters(e)
    if not (rose(e) or (unsettled and over.low > 1)):
        return []
    what = "rose" if rose(e) else f"does not settle (noise maintains {share.mean:.2g} of the excess)"
    if over.low > 1 and e.first.regular:
        leaf = _leaf(e, e.first.highest_share)
        sentence = (
            f"the loss {what}, and the learning rate is {over} times the stability limit at the start; divide it by "
            f"more than {over.high:.3g}; the steepest direction lies mostly in {leaf}"
        )
        certain = rose(e) or share.low > HALF
        return [(math.inf, Finding(Cause.RATE_TOO_HIGH, certain, over.mean, leaf, sentence))]
    later = float(np.nanmax(e.looks.over, initial=0))
    if max(over.high, later, e.last.over.high) < NEAR and e.first.regular and e.last.regular:
        return []  # it was stable wherever it was looked at
    sentence = (
        f"the loss {what}; at the start the rate was {over} times the stability limit, later up to {later:.3g}; "
        "probes at every step would tell what came first"
    )
    weight = math.inf if over.mean >= NEAR else 1.0  # else what noise explains is more likely due to it
    return [(weight, Finding(Cause.RATE_TOO_HIGH, False, max(later, over.mean), None, sentence))]


def floor_matters(e: Evidence) -> bool:
    """Whether what noise maintains is something beside what was gained."""
    return e.last.floor.mean > WORTH * gained(e) or rose(e)


def edge_of_stability(e: Evidence) -> list[Weighed]:
    m = e.last
    if rose(e) or not m.regular or m.over.mean < NEAR:
        return []
    later = float(np.median(e.looks.over[len(e.looks.over) // 2 :]))
    sentence = (
        f"the learning rate is {m.over} times the stability limit, and the loss did not rise (second half of the run: "
        f"{later:.3g}): steps along the steepest direction overshoot by as much as they come"
    )
    return [
        (1.0, Finding(Cause.EDGE_OF_STABILITY, m.over.low >= NEAR, m.over.mean, _leaf(e, m.highest_share), sentence))
    ]


def rate_too_low(e: Evidence) -> list[Weighed]:
    m = e.last
    if rose(e) or not worth_going_on(e) or pace(m) <= 0:
        return []
    # beyond a pace of 2 / (1 + stability) a step is limited by friction: its own in gradient descent, or momentum's
    useful = 2 / (1 + stability(m)) / pace(m)
    over = float(max(m.over.mean, *e.looks.over[len(e.looks.over) // 2 :]))
    k = min(_inverse(2 * over), _inverse(2 * noise_share(e).mean), useful)
    if k < TWICE:
        return []
    certain = (
        _inverse(2 * m.over.high) >= TWICE and noise_share(e).high <= 1 / (2 * TWICE) and m.regular
        and surely_worth_going_on(e) and m.upward > 1 - HALF
    )  # fmt: skip
    sentence = (
        f"a learning rate {k:.3g} times as high would stay below half of the stability limit (now {m.over} of it), and "
        f"gain faster: a step takes {pace(m):.2g} of the way, and noise maintains "
        f"{noise_share(e).mean:.2g} of what is left"
    )
    return [(k, Finding(Cause.RATE_TOO_LOW, certain, k, None, sentence))]


def noise_limited(e: Evidence) -> list[Weighed]:
    m, B = e.last, e.batch_size
    share = noise_share(e)
    if share.mean <= HALF or not floor_matters(e) or m.over.low >= 1:
        return []
    sentence = (
        f"at this rate and a batch of {B} noise holds the loss about {m.floor.mean:.3g} above the minimum, "
        f"no less than {share.low:.2g} of the excess; a batch of {2 * B} or half the rate would halve it"
    )
    return [(2.0, Finding(Cause.NOISE_LIMITED, share.low > HALF and m.regular, 2.0 * B, None, sentence))]


def ill_conditioned(e: Evidence) -> list[Weighed]:
    m, kappa = e.last, condition_number(e.last)
    if rose(e) or not worth_going_on(e) or not TENFOLD <= kappa < math.inf or _mixed_leaf(e) is not None:
        return []
    plain, heavy = math.log(10) * kappa / 4, math.log(10) * math.sqrt(kappa) / 4
    if plain < e.num_steps and m.over.high < 1 / TWICE:
        return []  # at its best rate it would get there within as many steps
    resolved = m.regular and m.over.low > 0 and m.upward > 1 - HALF
    certain = resolved and surely_worth_going_on(e) and noise_share(e).high < HALF
    sentence = (
        f"the condition number is about {kappa:.2g}: what is left lies in directions so much flatter than the "
        f"steepest; tenfold nearer takes gradient descent {plain:.2g} steps at its best rate, momentum {heavy:.2g}"
    )
    return [(math.sqrt(kappa), Finding(Cause.ILL_CONDITIONED, certain, kappa, None, sentence))]


def mixed_scales(e: Evidence) -> list[Weighed]:
    found = _mixed_leaf(e)
    if found is None or noise_share(e).mean > HALF or not worth_going_on(e):
        return []
    ratio, flat, steep = found
    m = e.last
    certain = m.regular and noise_share(e).high < HALF and surely_worth_going_on(e) and not rose(e)
    sentence = (
        f"{steep} limits the rate of all: its largest curvature is {ratio:.2g} times that within {flat}, which "
        "holds the most of what is left to gain; a rate for each leaf or entry (Adam, RMSProp) would mend it"
    )
    return [(ratio, Finding(Cause.MIXED_SCALES, certain, ratio, steep, sentence))]


def _mixed_leaf(e: Evidence) -> tuple[float, str, str] | None:
    """How many times flatter than the steepest leaf the one is that holds most of what is left; it, and the steepest.

    None unless leaves that are at least ten times flatter hold half of what is left together.
    """
    m = e.last
    if len(e.names) < 2 or not np.isfinite(m.leaf_over).all():
        return None
    steep, left = int(np.argmax(m.leaf_over)), np.maximum(m.leaf_left, 0)
    flatter = (m.leaf_over > 0) & (TENFOLD * m.leaf_over <= m.leaf_over[steep])
    held = np.where(flatter, left, 0)
    if not held.sum() >= HALF * left.sum() > 0:
        return None
    flat = int(np.argmax(held))
    return float(m.leaf_over[steep] / m.leaf_over[flat]), e.names[flat], e.names[steep]


def bends_down(m: Moment) -> bool:
    """Whether there is negative curvature that matters beside the steepest."""
    return m.lowest.high < 0 and -m.lowest.mean >= WORTH * 2 * m.over.mean


def saddle(e: Evidence) -> list[Weighed]:
    m = e.last
    if rose(e) or not m.lowest.high < 0:
        return []
    growth = -m.lowest.mean * float(np.sum(m.lowest_share * m.steadiness))
    along = m.upward < HALF and m.descent.low > 0  # the step itself goes along negative curvature
    nothing_gained = e.first.loss.low <= m.loss.high and m.descent.low <= 0
    stalled = not worth_going_on(e) or m.descent.high <= 0 or nothing_gained
    if growth <= 0 or not (along or stalled):
        return []
    certain = m.regular and bends_down(m) and (along or growth * e.num_steps >= 1)
    leaf = _leaf(e, m.lowest_share)
    sentence = (
        f"there is little left to gain by positive curvature, and the loss bends down: along a direction mostly in "
        f"{leaf} the distance grows {1 + growth:.4g} times a step, e-fold in {1 / growth:.3g} steps"
    )
    return [(math.inf, Finding(Cause.SADDLE, certain, 1 + growth, leaf, sentence))]


def dead_parameters(e: Evidence) -> list[Weighed]:
    found = []
    at_saddle = bool(saddle(e))
    for i, name in enumerate(e.names):
        no_gradient = float(min(e.first.still[i], e.last.still[i]) / e.sizes[i])
        unmoved = float(e.last.unmoved[i] / e.sizes[i])
        if max(no_gradient, unmoved) < HALF or (at_saddle and e.last.lowest_share[i] > WORTH):
            continue
        if no_gradient >= HALF:
            why = f"{no_gradient:.0%} of the entries of {name} have no gradient in any minibatch that was looked at"
        else:
            why = (
                f"{unmoved:.0%} of the entries of {name} have not moved since the start, although they have a gradient"
            )
        share = max(no_gradient, unmoved)
        found.append((1e3 * share, Finding(Cause.DEAD_PARAMETERS, True, share, name, why)))
    return found


def overfitting(e: Evidence) -> list[Weighed]:
    found = []
    for name, values in e.evals.items():
        if len(values) < 6 or not np.isfinite(values).all():
            continue
        worse = values if np.median(values[1 : 1 + len(values) // 4]) < values[0] else -values
        best, third = int(np.argmin(worse)), max(2, len(values) // 3)
        noise = float(np.std(np.diff(worse[best:]), ddof=1)) if len(values) - best > 3 else math.inf
        rise = float(worse[-third:].mean() - worse[best])
        fell = e.last.loss.high < e.losses[: max(1, len(e.losses) // 4)].mean()
        if best >= len(values) - third or not rise > 5 * noise or rise < WORTH * float(np.ptp(worse)) or not fell:
            continue
        at = int(e.eval_steps[best])
        why = (
            f"eval_fn{name} was best at step {at} ({values[best]:.4g}) and is {values[-third:].mean():.4g} at the end, "
            "while the loss fell; stop there, or regularize"
        )
        found.append((math.inf, Finding(Cause.OVERFITTING, True, rise / noise if noise else math.inf, None, why)))
    return found


def _healthy(e: Evidence) -> Finding:
    m = e.last
    quiet = noise_share(e).high < HALF or not worth_going_on(e)
    resolved = m.regular and m.over.high < 1 and quiet and not (bends_down(m) or rose(e) or still_falls(e))
    sentence = (
        f"nothing of what is looked for: the rate is {m.over} of the stability limit, noise maintains "
        f"{noise_share(e).mean:.2g} of what is left, and about {m.left} is left to gain of {gained(e):.3g} gained"
    )
    if not resolved:
        sentence += "; the evidence does not exclude the rest: look more often (a smaller probe_every)"
    return Finding(Cause.HEALTHY, resolved, 1.0, None, sentence)


def _leaf(e: Evidence, shares: np.ndarray) -> str:
    return e.names[int(np.argmax(shares))]


def _inverse(x: float) -> float:
    return 1 / x if x > 0 else math.inf


RULES: tuple[Callable[[Evidence], list[Weighed]], ...] = (
    rate_too_high, edge_of_stability, saddle, dead_parameters, mixed_scales, rate_too_low, ill_conditioned,
    noise_limited, overfitting,
)  # fmt: skip
