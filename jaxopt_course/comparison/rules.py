r"""One rule with switches that covers every first-order rule of the four libraries.

With g the gradient, w the parameters and t the step:

    g = g + weight_decay * w                             if the decay is coupled
    m = b1 * m + (1 - b1) * g                            m = g for b1 = 0
    v = b2 * v + (1 - b2) * g^2                          or v = v + g^2, or no v at all; v starts at `initial`
    u = (m / c1) / (sqrt(v / c2) + eps)                  c1 = 1 - b1^t and c2 = 1 - b2^t if corrected, else 1
    velocity = rho * velocity + (1 - dampening) * u      velocity = u for rho = 0
    w = w - learning_rate * velocity                     minus learning_rate * weight_decay * w if it is decoupled

Lion takes u = sign(b1 * m + (1 - b1) * g) and then m = memory * m + (1 - memory) * g.

The same code runs on JAX arrays for one rule, whose switches are then Python values, and on NumPy arrays
`[candidates, coordinates]` for many rules at once, whose switches are then columns `[candidates, 1]`.
"""

from typing import Any, NamedTuple, TypeAlias, no_type_check

import jax.numpy as jnp
import numpy as np

Number: TypeAlias = Any  # a float, a traced scalar, or a column of candidates
Choice: TypeAlias = Any  # a string or a truth value, or a column of candidates
Values: TypeAlias = Any  # an array of NumPy or JAX


class Rule(NamedTuple):
    """The switches and hyperparameters of a rule; the defaults are plain SGD."""

    learning_rate: Number = 1.0  # a number, a schedule, or the values of a schedule at the first steps
    b1: Number = 0.0
    b2: Number = 0.0
    second: Choice = "none"  # "mean", "sum"
    initial: Number = 0.0
    eps: Number = 0.0
    eps_place: Choice = "outside the root"  # "inside the root", "on the uncorrected moment"
    correct_first: Choice = False
    correct_second: Choice = False
    first_count: Number = 1  # t at the first step
    rate_count: Number = 0  # the argument of a schedule at the first step
    amsgrad: Choice = "none"  # "of raw moments", "of corrected moments"
    rho: Number = 0.0
    dampening: Number = 0.0
    damp_first: Choice = True
    nesterov: Choice = "none"  # "look-ahead", "Dozat", "same correction"
    rate_place: Choice = "outside"  # "inside the velocity", "inside the first moment"
    weight_decay: Number = 0.0
    decay_kind: Choice = "coupled"  # "decoupled", "decoupled, after the step", "decoupled from the learning rate"
    moment_dtype: Choice = "as computed"  # m's: "bfloat16", "stored as ...", "decayed in ..."; m's and v's: "both ..."
    wide: Choice = False  # 16-bit parameters: moments and arithmetic in float32
    sign: Choice = False  # Lion: the step uses only the sign of the direction
    memory: Number = 0.0  # Lion: the decay of its first moment


GROUPS = {
    "learning rate": ("learning_rate",),
    "direction": ("sign",),
    "momentum": ("b1", "rho", "memory"),
    "second moment": ("second", "b2"),
    "initial accumulator": ("initial",),
    "epsilon": ("eps", "eps_place"),
    "bias correction": ("correct_first", "correct_second"),
    "step count": ("first_count", "rate_count"),
    "AMSGrad": ("amsgrad",),
    "dampening": ("dampening", "damp_first"),
    "Nesterov's form": ("nesterov",),
    "learning rate's place": ("rate_place",),
    "weight decay": ("weight_decay", "decay_kind"),
    "moment dtype": ("moment_dtype", "wide"),
}


class Moments(NamedTuple):
    """The moments of a leaf; zeros if the rule does not use them."""

    first: Values
    second: Values
    largest: Values
    velocity: Values


RESIDUAL = 1e-10  # difference that counts as rounding, relative to the largest update of an entry so far
SLOTS = ("learning rate", "first moment", "second moment", "correction", "denominator", "velocity", "parameters")


def start(rule: Rule, like: Values) -> Moments:
    """The moments before the first step."""
    zeros = like * 0
    return Moments(zeros, zeros + rule.initial, zeros, zeros)


class Step(NamedTuple):
    """`update`: is added to the parameters; `moments`: the new moments; `slots`: intermediate quantities by name."""

    update: Values
    moments: Moments
    slots: dict[str, Values]


def step(rule: Rule, g: Values, w: Values, count: Number, rate: Number, moments: Moments) -> Step:
    """One step of a leaf; `count` is 0 at the first step, and `rate` is the learning rate."""
    r, xp = rule, np if isinstance(g, np.ndarray) else jnp
    g = g + pick(r.decay_kind == "coupled", r.weight_decay, 0.0) * w
    enters = pick(r.rate_place == "inside the first moment", rate, 1.0) * g
    kept = pick(r.sign, r.memory, r.b1)
    m, kept_m = decayed_sum(r.moment_dtype, kept, moments.first, (1 - kept) * enters)
    square = xp.real(g * xp.conj(g)) if xp.iscomplexobj(g) else g * g
    v = pick(r.second == "sum", moments.second + square, r.b2 * moments.second + (1 - r.b2) * square)
    v = rounded(r.moment_dtype, ("both ",), v)

    t = count + r.first_count
    c1 = pick(r.correct_first, one_minus_power(r.b1, t, xp), 1.0)
    c2 = pick(r.correct_second, one_minus_power(r.b2, t, xp), 1.0)
    raw = pick(r.amsgrad == "of corrected moments", v / c2, v)
    largest = pick(r.amsgrad == "none", raw, xp.maximum(moments.largest, raw))
    v_hat = pick(r.amsgrad == "of corrected moments", largest, largest / c2)
    eps = pick(r.eps_place == "on the uncorrected moment", r.eps / xp.sqrt(c2), r.eps)
    inside = r.eps_place == "inside the root"
    denominator = xp.sqrt(v_hat + pick(inside, eps, tiny(v_hat))) + pick(inside, 0.0, eps)
    denominator = pick(r.second == "none", 1.0, denominator)

    next_c1 = pick(r.nesterov == "Dozat", pick(r.correct_first, one_minus_power(r.b1, t + 1, xp), 1.0), c1)
    ahead = r.b1 * m / next_c1 + (1 - r.b1) * g / c1
    m_hat = pick((r.nesterov == "Dozat") | (r.nesterov == "same correction"), ahead, m / c1)
    m_hat = pick(r.sign, xp.sign(r.b1 * moments.first + (1 - r.b1) * g), m_hat)
    u = m_hat / denominator * pick(r.rate_place == "inside the velocity", rate, 1.0)

    gain = 1 - r.dampening * pick(r.damp_first, 1.0, xp.where(count > 0, 1.0, 0.0))
    velocity, kept_velocity = decayed_sum(r.moment_dtype, r.rho, moments.velocity, gain * u)
    moved = pick(r.nesterov == "look-ahead", u + r.rho * velocity, velocity)
    update = -pick(r.rate_place == "outside", rate, 1.0) * moved
    decay = r.weight_decay * pick(r.decay_kind == "decoupled from the learning rate", 1.0, rate)
    base = w + pick(r.decay_kind == "decoupled, after the step", update, 0.0)
    update = update - pick(r.decay_kind == "coupled", 0.0, decay) * base

    values = (rate, m, v, c1 / xp.sqrt(c2), denominator, velocity, w + update)
    slots = dict(zip(SLOTS, values, strict=True))
    return Step(update, Moments(kept_m, v, largest, kept_velocity), slots)


def solve_rate(rule: Rule, update: Values, g: Values, count: Number, moments: Moments) -> tuple[Number, Moments]:
    """The learning rate for which a parameter at 0 gets this update, and the moments after that step.

    The update is affine in the rate, so trial steps with rates 0 and 1 determine it. Weight decay does not change a
    parameter at 0, except for a decay after the step, w + u - rate * weight_decay * (w + u), which shortens the step.
    The rate r found from the trial steps is then rate * (1 - rate * weight_decay), and `rate` is the smaller root.
    """
    bare = rule._replace(weight_decay=0.0)
    at = [step(bare, g, 0.0, count, trial, moments).update for trial in (0.0, 1.0)]
    rate = (update - at[0]) / (at[1] - at[0])
    after = step(bare, g, 0.0, count, rate, moments).moments
    root = np.sqrt(np.maximum(1 - 4 * rate * rule.weight_decay, 0.0))
    return np.where(rule.decay_kind == "decoupled, after the step", 2 * rate / (1 + root), rate), after


class Observations(NamedTuple):
    """Observed responses: `updates` for `grads`, both `[steps, n]`, at constant `params` `[n]`.

    Entry 0 of the parameters is 0; `decay_response` is the update of a parameter 1 by a first gradient of 0.
    """

    grads: np.ndarray
    params: np.ndarray
    updates: np.ndarray
    decay_response: float


def survivors(rule: Rule | None, seen: Observations, free_rate: bool = True) -> list[Rule]:
    """The candidates, given as one `Rule` of columns, that reproduce all observations to rounding.

    With `free_rate` the learning rate of each step is computed from entry 0; otherwise it is the candidate's own.
    """
    if rule is None:
        return []
    size = len(rule.b1)
    moments, of_base = start(rule, np.zeros((size, len(seen.params)))), start(rule, np.zeros((size, 1)))
    scale, rates = np.zeros(len(seen.params)), np.zeros((size, 0))
    for count, (g, u) in enumerate(zip(seen.grads, seen.updates, strict=True)):
        g0 = np.full((size, 1), g[0])
        if count == 0:
            first_rate = solve_rate(rule, u[0], g0, 0, of_base)[0] if free_rate else rule.learning_rate
            rule = _with_decay(rule, seen.decay_response, first_rate)
        rate = rule.learning_rate
        if free_rate:
            rate, of_base = solve_rate(rule, u[0], g0, count, of_base)
        update, moments, _ = step(rule, np.broadcast_to(g, moments.first.shape), seen.params, count, rate, moments)
        scale = np.maximum(scale, np.abs(u))
        wrong = np.abs(update - u) > RESIDUAL * scale + 4e-16 * np.abs(seen.params)
        good = ~wrong.any(axis=1) & np.isfinite(update).all(axis=1)
        rule, rates = _rows(rule, good), np.hstack([rates, np.broadcast_to(rate, (size, 1))])[good]
        moments, of_base = (Moments(*(_row_subset(y, good) for y in x)) for x in (moments, of_base))
        size = int(good.sum())
    return [_rule(rule, row, rates[row]) for row in range(size)]


def _rows(rule: Rule, keep: Values) -> Rule:
    return Rule(*(column[keep] for column in rule))


def _row_subset(values: Values, keep: Values) -> Values:
    return np.broadcast_to(values, (len(keep), values.shape[1]))[keep]


def _rule(rule: Rule, row: int, rates: np.ndarray) -> Rule:
    """One candidate with Python values; its learning rate is a number if it is constant, else a tuple."""
    constant = np.all(np.abs(rates / rates[0] - 1) < 1e-11)
    rate = shortest_decimal(rates[0], 1e-11) if constant else tuple(shortest_decimal(r, 1e-14) for r in rates.tolist())
    values = {name: column[row, 0].item() for name, column in rule._asdict().items()}
    values["damp_first"] = values["damp_first"] or values["dampening"] == 0
    return Rule(**values | {"learning_rate": rate})


def _with_decay(rule: Rule, decay_response: float, rate: Number) -> Rule:
    """The weight decay, from the update u of a parameter 1 by a gradient of zero.

    If the decay is decoupled, u = -rate * wd. If it is decoupled from the learning rate, u = -wd. If it is decoupled
    and applied after the step, u = -rate * wd too; but `solve_rate`, which does not know wd yet, then returns
    rate * (1 - rate * wd) = rate * (1 + u). A coupled decay has its own closed form.
    """
    free = rule.decay_kind == "decoupled from the learning rate"
    after = rule.decay_kind == "decoupled, after the step"
    rate = np.where(after, rate / (1 + decay_response), rate)
    pulled = -decay_response / np.where(free, 1.0, rate)
    pulled = np.vectorize(shortest_decimal)(pulled, 1e-7)
    return rule._replace(weight_decay=np.where(rule.decay_kind == "coupled", rule.weight_decay, pulled))


def table(rules: list[Rule]) -> Rule | None:
    """Stack rules into one `Rule` with a column for every switch; None if there are no rules."""
    if not rules:
        return None
    return Rule(*(np.array(column)[:, None] for column in zip(*rules, strict=True)))


@no_type_check  # this and all below are called thousands of times, only with our own arguments
def pick(condition: Choice, yes: Values, no: Values) -> Values:
    """`yes` if `condition` else `no`: by Python for one rule, elementwise for a column of candidates."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no


@no_type_check
def one_minus_power(b: Number, t: Number, xp: Any) -> Number:
    """1 - b^t without cancellation; 1 for b = 0."""
    return -xp.expm1(t * xp.log1p(-(1 - b)))


@no_type_check
def tiny(v: Values) -> float:
    return np.finfo(v.dtype).tiny


@no_type_check
def decayed_sum(kind: Choice, decay: Number, old: Values, new: Values) -> tuple[Values, Values]:
    """decay * old + new in the dtype of the moments: the value that is used, and the value that is stored."""
    if isinstance(kind, str) and kind == "as computed":
        return decay * old + new, decay * old + new
    faded = rounded(kind, ("decayed in ",), rounded(kind, ("decayed in ",), decay + 0 * new) * old)
    used = pick(decay > 0, rounded(kind, ("", "both "), faded + new), new)
    return used, rounded(kind, ("stored as ", "decayed in "), used)


@no_type_check
def rounded(kind: Choice, hows: tuple[str, ...], value: Values) -> Values:
    """The value rounded to the moments' dtype if `kind` is one of `hows` followed by a dtype, else unchanged."""
    names = [how + name for how in hows for name in DTYPES]
    if not isinstance(kind, np.ndarray):
        return value.astype(_dtype(kind)).astype(value.dtype) if kind in names else value
    for name in set(names) & set(np.unique(kind).tolist()):
        rows = np.broadcast_to(kind == name, value.shape)
        value = np.where(rows, value.astype(_dtype(name)).astype(value.dtype), value)
    return value


@no_type_check
def _dtype(kind: str) -> Any:
    return DTYPES[kind.rsplit(" ", 1)[-1]]


DTYPES: dict[str, Any] = {"bfloat16": jnp.bfloat16, "float32": np.float32}


@no_type_check  # called thousands of times
def shortest_decimal(value: float, relative: float) -> float:
    """The shortest decimal of at most nine digits within a relative distance of a value, else the value itself."""
    if value == 0 or not np.isfinite(value):
        return float(value)
    for digits in range(1, 10):
        short = float(f"{value:.{digits - 1}e}")
        if abs(short - value) <= relative * abs(value):
            return short
    return float(value)
