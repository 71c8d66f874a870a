r"""Every first-order rule of the four libraries as one rule, whose switches are what they disagree about.

With g the gradient, w the parameters and t the step:

    g = g + weight_decay * w                             where the decay is coupled
    m = b1 * m + (1 - b1) * g                            m = g for b1 = 0
    v = b2 * v + (1 - b2) * g^2                          or v = v + g^2, or no v at all; v starts at `initial`
    u = (m / c1) / (sqrt(v / c2) + eps)                  c1 = 1 - b1^t and c2 = 1 - b2^t, where corrected
    velocity = rho * velocity + (1 - dampening) * u      velocity = u for rho = 0
    w = w - learning_rate * velocity                     less learning_rate * weight_decay * w where it is decoupled

The same lines run on JAX arrays for one rule, whose switches are then Python's own values, and on NumPy arrays
`[candidates, coordinates]` for many rules at once, whose switches are then columns `[candidates, 1]`.
"""

from typing import Any, NamedTuple, no_type_check

import jax.numpy as jnp
import numpy as np


class Rule(NamedTuple):
    """A point in the space of conventions: plain SGD, but for what is said otherwise."""

    learning_rate: Any = 1.0  # a number, or a schedule
    b1: Any = 0.0
    b2: Any = 0.0
    second: Any = "none"  # "mean", "sum"
    initial: Any = 0.0
    eps: Any = 0.0
    eps_place: Any = "outside the root"  # "inside the root", "on the uncorrected moment"
    correct_first: Any = False
    correct_second: Any = False
    first_count: Any = 1  # t at the first step
    rate_count: Any = 0  # what a schedule is asked at the first step
    amsgrad: Any = "none"  # "of raw moments", "of corrected moments"
    rho: Any = 0.0
    dampening: Any = 0.0
    damp_first: Any = True
    nesterov: Any = "none"  # "look-ahead", "Dozat", "same correction"
    rate_place: Any = "outside"  # "inside the velocity", "inside the first moment"
    weight_decay: Any = 0.0
    decay_kind: Any = "coupled"  # "decoupled", "decoupled, after the step", "decoupled from the learning rate"
    moment_dtype: Any = "as computed"  # m's: "bfloat16", "stored as ...", "decayed in ..."; m's and v's: "both ..."
    wide: Any = False  # 16-bit parameters: moments and arithmetic in float32


GROUPS = {
    "learning rate": ("learning_rate",),
    "momentum": ("b1", "rho"),
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
    """What a rule remembers of a leaf; zeros where it does not need it."""

    first: Any
    second: Any
    largest: Any
    velocity: Any


SLOTS = ("learning rate", "first moment", "second moment", "correction", "denominator", "velocity", "parameters")


def start(rule: Rule, like: Any) -> Moments:
    zeros = like * 0
    return Moments(zeros, zeros + rule.initial, zeros, zeros)


def step(rule: Rule, g: Any, w: Any, count: Any, rate: Any, moments: Moments) -> tuple[Any, Moments, dict[str, Any]]:
    """One step of every leaf: the update, which is added, what is remembered, and every slot on the way."""
    r, xp = rule, np if isinstance(g, np.ndarray) else jnp
    g = g + pick(r.decay_kind == "coupled", r.weight_decay, 0.0) * w
    enters = pick(r.rate_place == "inside the first moment", rate, 1.0) * g
    m, kept_m = remembered(r.moment_dtype, r.b1, moments.first, (1 - r.b1) * enters)
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
    u = m_hat / denominator * pick(r.rate_place == "inside the velocity", rate, 1.0)

    gain = 1 - r.dampening * pick(r.damp_first, 1.0, xp.where(count > 0, 1.0, 0.0))
    velocity, kept_velocity = remembered(r.moment_dtype, r.rho, moments.velocity, gain * u)
    moved = pick(r.nesterov == "look-ahead", u + r.rho * velocity, velocity)
    update = -pick(r.rate_place == "outside", rate, 1.0) * moved
    decay = r.weight_decay * pick(r.decay_kind == "decoupled from the learning rate", 1.0, rate)
    base = w + pick(r.decay_kind == "decoupled, after the step", update, 0.0)
    update = update - pick(r.decay_kind == "coupled", 0.0, decay) * base

    values = (rate, m, v, c1 / xp.sqrt(c2), denominator, velocity, w + update)
    slots = dict(zip(SLOTS, values, strict=True))
    return update, Moments(kept_m, v, largest, kept_velocity), slots


@no_type_check  # as all below: called thousands of times, and whatever is given is right
def pick(condition: Any, yes: Any, no: Any) -> Any:
    """A choice made by Python where it can be, elementwise among candidates."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no


@no_type_check
def one_minus_power(b: Any, t: Any, xp: Any) -> Any:
    """1 - b^t without cancellation; 1 for b = 0."""
    return -xp.expm1(t * xp.log1p(-(1 - b)))


@no_type_check
def tiny(v: Any) -> Any:
    return np.finfo(v.dtype).tiny


@no_type_check
def remembered(kind: Any, decay: Any, old: Any, new: Any) -> tuple[Any, Any]:
    """decay * old + new, as it is used and as it is stored, in the dtype of the moments."""
    if isinstance(kind, str) and kind == "as computed":
        return decay * old + new, decay * old + new
    faded = rounded(kind, ("decayed in ",), rounded(kind, ("decayed in ",), decay + 0 * new) * old)
    used = pick(decay > 0, rounded(kind, ("", "both "), faded + new), new)
    return used, rounded(kind, ("stored as ", "decayed in "), used)


@no_type_check
def rounded(kind: Any, hows: tuple[str, ...], value: Any) -> Any:
    """The value in the moments' dtype, where that is one of several ways to keep them."""
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
