"""Rules that derive findings from evidence, one for each cause, with thresholds that follow from theory."""

import math
from collections.abc import Callable

import numpy as np

from jaxopt_course.diagnosis.causes import Cause, Finding
from jaxopt_course.diagnosis.evidence import Estimate, Evidence, Moment

WORTH = 0.01  # what is left to gain is significant above this share of what was gained so far
TWICE = 2.0  # a rate is too low only if it could be at least doubled
TENFOLD = 10.0  # a ratio of curvatures is significant from here on
NEAR = 0.9  # a rate is at the edge of stability above this share of the limit
HALF = 0.5  # threshold for shares: of the entries of a leaf, of the descent, of the excess of the loss

Ranked = tuple[
    float, Finding
]  # how many times faster the run could become (inf if it cannot continue), and the finding


def findings(e: Evidence) -> tuple[Finding, ...]:
    """The findings of all rules, the most important first; HEALTHY if there are none."""
    found = [weighed for rule in RULES for weighed in rule(e)]
    found.sort(key=lambda weighed: (not weighed[1].certain, -weighed[0]))
    return tuple(finding for _, finding in found) or (_healthy(e),)


def loss_rose(e: Evidence) -> bool:
    """Whether the loss at the end is higher than at the start, or than during an earlier stretch, beyond the errors."""
    end = e.last.loss
    if not math.isfinite(end.mean) or end.low > e.first.loss.high + 1e-6 * abs(e.first.loss.high):
        return True
    return e.ending.low > e.best.high + WORTH * abs(e.best.high)


def loss_decrease(e: Evidence) -> float:
    """The loss at the start minus the loss at the end, at least 0."""
    return max(e.first.loss.mean - e.last.loss.mean, 0.0)


def can_improve(e: Evidence) -> bool:
    """Whether what is left to gain is significant, by the curvature at the end or because the loss is still falling."""
    return max(e.last.left.mean, e.fall.mean) > WORTH * loss_decrease(e)


def can_surely_improve(e: Evidence) -> bool:
    """Whether what is left to gain is significant beyond the errors of the estimates."""
    return max(e.last.left.low, e.fall.low) > WORTH * loss_decrease(e)


def may_still_fall(e: Evidence) -> bool:
    """Whether the loss may still be falling by a significant amount."""
    return e.fall.mean > WORTH * loss_decrease(e)


def progress_of_step(m: Moment) -> float:
    """The share of the way to the minimum that a step covers: half of the descent divided by what is left to gain."""
    return m.descent.mean / (2 * m.left.mean) if m.descent.mean > 0 and m.left.mean > 0 else 0.0


def noise_share(e: Evidence) -> Estimate:
    """The share of the excess of the loss above its minimum that noise maintains; 1 if the run has settled."""
    floor, above = e.last.floor, e.excess
    if floor.high <= 0:
        return Estimate(0.0, 0.0, 0.0)
    low = max(floor.low, 0) / above.high if above.high > 0 else math.inf
    return Estimate(
        floor.mean / max(above.mean, floor.mean), low, floor.high / above.low if above.low > 0 else math.inf
    )


def momentum_factor(m: Moment) -> float:
    """Steady over alternating response along the steepest direction: (1 + rho) / (1 - rho); 1 without momentum."""
    return float(np.sum(m.highest_share * m.steadiness))


def condition_number(m: Moment) -> float:
    """The largest curvature over the curvature of what is left to gain, in units of the rule's response."""
    return 2 * m.over.mean * momentum_factor(m) / progress_of_step(m) if progress_of_step(m) > 0 else math.inf


def rate_too_high(e: Evidence) -> list[Ranked]:
    over, share = e.first.over, noise_share(e)
    unsettled = share.mean > HALF and noise_matters(e)
    if not (loss_rose(e) or (unsettled and over.low > 1)):
        return []
    what = "rose" if loss_rose(e) else f"does not settle (noise maintains {share.mean:.2g} of the excess)"
    if over.low > 1 and e.first.regular:
        leaf = _leaf(e, e.first.highest_share)
        sentence = (
            f"the loss {what}, and the learning rate is {over} times the stability limit at the start; divide it by "
            f"more than {over.high:.3g}; the steepest direction lies mostly in {leaf}"
        )
        certain = loss_rose(e) or share.low > HALF
        return [(math.inf, Finding(Cause.RATE_TOO_HIGH, certain, over.mean, leaf, sentence))]
    later = float(np.nanmax(e.looks.over, initial=0))
    if max(over.high, later, e.last.over.high) < NEAR and e.first.regular and e.last.regular:
        return []  # the rate was stable at every probe
    sentence = (
        f"the loss {what}; at the start the rate was {over} times the stability limit, later up to {later:.3g}; "
        "probes at every step would show which came first"
    )
    weight = math.inf if over.mean >= NEAR else 1.0  # below the limit, noise is the more likely cause
    return [(weight, Finding(Cause.RATE_TOO_HIGH, False, max(later, over.mean), None, sentence))]


def noise_matters(e: Evidence) -> bool:
    """Whether the loss that noise maintains is significant beside what was gained."""
    return e.last.floor.mean > WORTH * loss_decrease(e) or loss_rose(e)


def edge_of_stability(e: Evidence) -> list[Ranked]:
    m = e.last
    if loss_rose(e) or not m.regular or m.over.mean < NEAR:
        return []
    later = float(np.median(e.looks.over[len(e.looks.over) // 2 :]))
    sentence = (
        f"the learning rate is {m.over} times the stability limit, and the loss did not rise (second half of the run: "
        f"{later:.3g}): steps along the steepest direction overshoot by as much as they approach"
    )
    return [
        (1.0, Finding(Cause.EDGE_OF_STABILITY, m.over.low >= NEAR, m.over.mean, _leaf(e, m.highest_share), sentence))
    ]


def rate_too_low(e: Evidence) -> list[Ranked]:
    m = e.last
    if loss_rose(e) or not can_improve(e) or progress_of_step(m) <= 0:
        return []
    # above a progress of 2 / (1 + momentum_factor) a higher rate is no faster: the damping of the rule limits the step
    useful = 2 / (1 + momentum_factor(m)) / progress_of_step(m)
    over = float(max(m.over.mean, *e.looks.over[len(e.looks.over) // 2 :]))
    k = min(_inverse(2 * over), _inverse(2 * noise_share(e).mean), useful)
    if k < TWICE:
        return []
    certain = (
        _inverse(2 * m.over.high) >= TWICE and noise_share(e).high <= 1 / (2 * TWICE) and m.regular
        and can_surely_improve(e) and m.upward > 1 - HALF
    )  # fmt: skip
    sentence = (
        f"a learning rate {k:.3g} times as high would stay below half of the stability limit (now {m.over} of it), and "
        f"gain faster: a step takes {progress_of_step(m):.2g} of the way, and noise maintains "
        f"{noise_share(e).mean:.2g} of what is left"
    )
    return [(k, Finding(Cause.RATE_TOO_LOW, certain, k, None, sentence))]


def noise_limited(e: Evidence) -> list[Ranked]:
    m, B = e.last, e.batch_size
    share = noise_share(e)
    if share.mean <= HALF or not noise_matters(e) or m.over.low >= 1:
        return []
    sentence = (
        f"at this rate and a batch of {B} noise holds the loss about {m.floor.mean:.3g} above the minimum, "
        f"no less than {share.low:.2g} of the excess; a batch of {2 * B} or half the rate would halve it"
    )
    return [(2.0, Finding(Cause.NOISE_LIMITED, share.low > HALF and m.regular, 2.0 * B, None, sentence))]


def ill_conditioned(e: Evidence) -> list[Ranked]:
    m, kappa = e.last, condition_number(e.last)
    if loss_rose(e) or not can_improve(e) or not TENFOLD <= kappa < math.inf or _mixed_leaf(e) is not None:
        return []
    plain, heavy = math.log(10) * kappa / 4, math.log(10) * math.sqrt(kappa) / 4
    if plain < e.num_steps and m.over.high < 1 / TWICE:
        return []  # with its best rate the run would get there in as many steps
    resolved = m.regular and m.over.low > 0 and m.upward > 1 - HALF
    certain = resolved and can_surely_improve(e) and noise_share(e).high < HALF
    sentence = (
        f"the condition number is about {kappa:.2g}: what is left lies in directions so much flatter than the "
        f"steepest; to get ten times nearer takes gradient descent {plain:.2g} steps at its best rate, momentum "
        f"{heavy:.2g}"
    )
    return [(math.sqrt(kappa), Finding(Cause.ILL_CONDITIONED, certain, kappa, None, sentence))]


def mixed_scales(e: Evidence) -> list[Ranked]:
    found = _mixed_leaf(e)
    if found is None or noise_share(e).mean > HALF or not can_improve(e):
        return []
    ratio, flat, steep = found
    m = e.last
    certain = m.regular and noise_share(e).high < HALF and can_surely_improve(e) and not loss_rose(e)
    sentence = (
        f"{steep} limits the rate of all: its largest curvature is {ratio:.2g} times that within {flat}, which "
        "holds the most of what is left to gain; a rate for each leaf or entry (Adam, RMSProp) would remove the limit"
    )
    return [(ratio, Finding(Cause.MIXED_SCALES, certain, ratio, steep, sentence))]


def _mixed_leaf(e: Evidence) -> tuple[float, str, str] | None:
    """(ratio, flat, steep): the steepest leaf `steep`, the leaf `flat` with most of what is left, and their ratio.

    `flat` is at least ten times flatter than `steep`. None unless the leaves that are at least ten times flatter
    together hold at least half of what is left to gain.
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


def has_negative_curvature(m: Moment) -> bool:
    """Whether there is negative curvature that is significant beside the largest curvature."""
    return m.lowest.high < 0 and -m.lowest.mean >= WORTH * 2 * m.over.mean


def saddle(e: Evidence) -> list[Ranked]:
    m = e.last
    if loss_rose(e) or not m.lowest.high < 0:
        return []
    growth = -m.lowest.mean * float(np.sum(m.lowest_share * m.steadiness))
    along = m.upward < HALF and m.descent.low > 0  # the step goes along negative curvature
    nothing_gained = e.first.loss.low <= m.loss.high and m.descent.low <= 0
    stalled = not can_improve(e) or m.descent.high <= 0 or nothing_gained
    if growth <= 0 or not (along or stalled):
        return []
    certain = m.regular and has_negative_curvature(m) and (along or growth * e.num_steps >= 1)
    leaf = _leaf(e, m.lowest_share)
    sentence = (
        f"there is little left to gain by positive curvature, and the loss bends down: along a direction mostly in "
        f"{leaf} the distance grows {1 + growth:.4g} times a step, e-fold in {1 / growth:.3g} steps"
    )
    return [(math.inf, Finding(Cause.SADDLE, certain, 1 + growth, leaf, sentence))]


def dead_parameters(e: Evidence) -> list[Ranked]:
    found = []
    at_saddle = bool(saddle(e))
    for i, name in enumerate(e.names):
        no_gradient = float(min(e.first.still[i], e.last.still[i]) / e.sizes[i])
        unmoved = float(e.last.unmoved[i] / e.sizes[i])
        if max(no_gradient, unmoved) < HALF or (at_saddle and e.last.lowest_share[i] > WORTH):
            continue
        if no_gradient >= HALF:
            why = f"{no_gradient:.0%} of the entries of {name} have no gradient in any minibatch that was examined"
        else:
            why = (
                f"{unmoved:.0%} of the entries of {name} have not moved since the start, although they have a gradient"
            )
        share = max(no_gradient, unmoved)
        found.append((1e3 * share, Finding(Cause.DEAD_PARAMETERS, True, share, name, why)))
    return found


def overfitting(e: Evidence) -> list[Ranked]:
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
    quiet = noise_share(e).high < HALF or not can_improve(e)
    steady = not (has_negative_curvature(m) or loss_rose(e) or may_still_fall(e))
    resolved = m.regular and m.over.high < 1 and quiet and steady
    sentence = (
        f"no cause was found: the rate is {m.over} of the stability limit, noise maintains {noise_share(e).mean:.2g} "
        f"of what is left, and about {m.left} is left to gain beside {loss_decrease(e):.3g} gained"
    )
    if not resolved:
        sentence += "; the evidence does not exclude the other causes: probe more often (a smaller probe_every)"
    return Finding(Cause.HEALTHY, resolved, 1.0, None, sentence)


def _leaf(e: Evidence, shares: np.ndarray) -> str:
    return e.names[int(np.argmax(shares))]


def _inverse(x: float) -> float:
    return 1 / x if x > 0 else math.inf


RULES: tuple[Callable[[Evidence], list[Ranked]], ...] = (
    rate_too_high, edge_of_stability, saddle, dead_parameters, mixed_scales, rate_too_low, ill_conditioned,
    noise_limited, overfitting,
)  # fmt: skip
