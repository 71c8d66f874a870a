"""Write a rule down: its recurrence, its conventions in words, and its calls in optax, torch and Keras."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxopt_course.comparison.rules import GROUPS, Number, Rule

Arguments = dict[str, Any]  # arguments of a call, by name


class Notation(NamedTuple):
    """How the symbols of a recurrence are written."""

    g: str = "g"
    m: str = "m"
    v: str = "v"
    w: str = "w"
    lr: str = "lr"
    b1: str = "b1"
    b2: str = "b2"
    rho: str = "rho"
    eps: str = "eps"
    decay: str = "wd"
    dampening: str = "dampening"
    velocity: str = "velocity"
    to: str = " = "
    times: str = " * "
    sign: str = "sign({})"
    root: str = "sqrt({})"
    ratio: str = "{} / ({})"


TEXT = Notation()
LATEX = Notation(
    lr=r"\eta",
    b1=r"\beta_1",
    b2=r"\beta_2",
    rho=r"\rho",
    eps=r"\epsilon",
    decay=r"\lambda",
    dampening="d",
    velocity="u",
    to=r" \leftarrow ",
    times=" ",
    sign=r"\mathrm{{sign}}({})",
    root=r"\sqrt{{{}}}",
    ratio=r"\frac{{{}}}{{{}}}",
)
SYMBOLS = {  # hyperparameters that appear in a recurrence -> field of `Notation`
    "learning_rate": "lr",
    "b1": "b1",
    "b2": "b2",
    "memory": "b2",
    "rho": "rho",
    "eps": "eps",
    "weight_decay": "decay",
    "dampening": "dampening",
}


def lines_of_both(a: Rule, b: Rule, notation: Notation) -> tuple[list[str], list[str]]:
    """The recurrences of two rules, with the values of those hyperparameters that differ written as numbers."""
    fields = differing_numbers(a, b)
    shown = []
    for rule in (a, b):
        values = {SYMBOLS[field]: f"{getattr(rule, field):.6g}" for field in fields}
        shown.append(lines(rule, notation._replace(**values)))
    return shown[0], shown[1]


def differing_numbers(a: Rule, b: Rule) -> list[str]:
    """The hyperparameters to show as numbers: those of the groups in which two rules differ only by numbers.

    A hyperparameter that is 0 in one of the rules is left out (except `eps`), because its term is then missing there.
    """
    if (a.sign, a.second) != (b.sign, b.second):
        return []
    found = []
    for fields in GROUPS.values():
        values = {field: (getattr(a, field), getattr(b, field)) for field in fields}
        differing = [field for field, (x, y) in values.items() if x != y]
        if all(isinstance(x, float | int) and not isinstance(x, bool) for field in differing for x in values[field]):
            found += [f for f in differing if f in SYMBOLS and (f == "eps" or 0 not in values[f])]
    return found


def lines(rule: Rule, n: Notation) -> list[str]:
    """The recurrence, one line for each state; the last line is the step."""
    r, x, out = rule, n.times, []
    decays = not is_zero(r.weight_decay)
    if decays and r.decay_kind == "coupled":
        out.append(f"{n.g}{n.to}{n.g} + {n.decay}{x}{n.w}")
    first, numerator = _first_moment(rule, n)
    rate, numerator = _corrected(rule, n, numerator)
    second, u = _second_moment(rule, n, numerator)
    velocity, u = _velocity(rule, n, rate, u)
    inside = r.rate_place == "inside the first moment" or (r.rate_place != "outside" and not is_zero(r.rho))
    moved = u if inside else f"{rate}{x}{u}"
    decayed = f" - {n.lr}{x}{n.decay}{x}{n.w}" if decays and r.decay_kind != "coupled" else ""
    return [*out, *first, *second, *velocity, f"{n.w}{n.to}{n.w} - {moved}{decayed}"]


def _first_moment(rule: Rule, n: Notation) -> tuple[list[str], str]:
    """The lines of the first moment, and the expression that replaces the gradient in the following lines."""
    x = n.times
    if rule.sign:
        ahead = n.sign.format(f"{n.b1}{x}{n.m} + (1 - {n.b1}){x}{n.g}")
        return [f"u{n.to}{ahead}", f"{n.m}{n.to}{n.b2}{x}{n.m} + (1 - {n.b2}){x}{n.g}"], "u"
    if is_zero(rule.b1):
        return [], n.g
    fresh = f"{n.lr}{x}{n.g}" if rule.rate_place == "inside the first moment" else n.g
    line = f"{n.m}{n.to}{n.b1}{x}{n.m} + (1 - {n.b1}){x}{fresh}"
    if rule.nesterov in ("Dozat", "same correction"):
        return [line], f"({n.b1}{x}{n.m} + (1 - {n.b1}){x}{n.g})"
    return [line], n.m


def _on_raw_moment(rule: Rule) -> bool:
    return bool(rule.eps_place == "on the uncorrected moment" and rule.correct_second)


def _corrected(rule: Rule, n: Notation, numerator: str) -> tuple[str, str]:
    """The learning rate and the first moment with their bias corrections."""
    c1, c2 = f"1 - {n.b1}^t", f"1 - {n.b2}^t"
    if rule.correct_first and _on_raw_moment(rule):
        return f"{n.lr}{n.times}{n.ratio.format(n.root.format(c2), c1)}", numerator
    return n.lr, n.ratio.format(numerator, c1) if rule.correct_first else numerator


def _second_moment(rule: Rule, n: Notation, numerator: str) -> tuple[list[str], str]:
    """The lines of the second moment, and the direction divided by the root of the second moment."""
    r, x, c2 = rule, n.times, f"1 - {n.b2}^t"
    if r.second == "none":
        return [], numerator
    squares = f"{n.v} + {n.g}^2" if r.second == "sum" else f"{n.b2}{x}{n.v} + (1 - {n.b2}){x}{n.g}^2"
    out = [f"{n.v}{n.to}{squares}{'' if is_zero(r.initial) else f'    (v_0 = {r.initial:g})'}"]
    second = n.v
    if r.amsgrad != "none":
        kept = n.ratio.format(n.v, c2) if r.amsgrad == "of corrected moments" else n.v
        out.append(f"v_max{n.to}max(v_max, {kept})")
        second = "v_max"
    if r.correct_second and not _on_raw_moment(r) and r.amsgrad != "of corrected moments":
        second = n.ratio.format(second, c2)
    if r.eps_place == "inside the root":
        below = n.root.format(f"{second} + {n.eps}")
        return out, f"{numerator} / {below}" if n.to == TEXT.to else n.ratio.format(numerator, below)
    return out, n.ratio.format(numerator, f"{n.root.format(second)} + {n.eps}")


def _velocity(rule: Rule, n: Notation, rate: str, u: str) -> tuple[list[str], str]:
    """The line of the velocity, and the expression that is subtracted from the parameters."""
    r, x = rule, n.times
    if is_zero(r.rho):
        return [], u
    fresh = f"{rate}{x}{u}" if r.rate_place == "inside the velocity" else u
    gain = "" if is_zero(r.dampening) else f"(1 - {n.dampening}){x}"
    line = f"{n.velocity}{n.to}{n.rho}{x}{n.velocity} + {gain}{fresh}"
    u = f"{fresh} + {n.rho}{x}{n.velocity}" if r.nesterov == "look-ahead" else n.velocity
    return [line], f"({u})" if " + " in u and r.rate_place == "outside" else u


def is_zero(value: Number) -> bool:
    """Whether a hyperparameter is known to be 0; False for a traced value."""
    return isinstance(value, int | float) and value == 0


def describe(rule: Rule, group: str) -> str:
    """Describe the switches of a rule in one of the `GROUPS`."""
    r = rule
    corrected = {(True, True): "of both moments", (False, False): "none", (True, False): "of the first moment"}
    memories = [f"{r.b1:.6g} in the {'direction' if r.sign else 'first moment'}"] * (not is_zero(r.b1))
    memories += [f"{r.memory:.6g} in the first moment"] * bool(r.sign) + [f"{r.rho:.6g}"] * (not is_zero(r.rho))
    kinds = {"mean": f"a mean that keeps {r.b2:.6g}", "sum": "a sum", "none": "none"}
    words = {
        "learning rate": _number(r.learning_rate),
        "direction": "its sign" if r.sign else "its value",
        "momentum": " and ".join(memories) or "none",
        "second moment": kinds[r.second],
        "initial accumulator": _number(r.initial),
        "epsilon": "none" if is_zero(r.eps) else f"{_number(r.eps)} {r.eps_place}",
        "bias correction": corrected.get((bool(r.correct_first), bool(r.correct_second)), "of the second moment"),
        "step count": f"from {r.first_count}" if not r.rate_count else f"schedule read {r.rate_count} step later",
        "dampening": f"{_number(r.dampening)}{'' if r.damp_first else ' but not at the first step'}",
        "weight decay": f"{'none,' if is_zero(r.weight_decay) else _number(r.weight_decay)} {r.decay_kind}",
        "moment dtype": "float32 in 16 bits" if r.wide else r.moment_dtype,
        "AMSGrad": r.amsgrad,
        "Nesterov's form": r.nesterov,
        "learning rate's place": r.rate_place,
    }[group]
    return "none" if words == "none, coupled" else words


def _number(value: Number) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:g}, {value[1]:g}, ..., {value[-1]:g}"
    return f"{value:.6g}" if isinstance(value, int | float) else "a schedule" if callable(value) else str(value)


def call(name: str, **arguments: Any) -> str:
    """A call as code, with all arguments written out."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def optax_call(rule: Rule) -> str | None:
    """The optax call that equals a rule, or None."""
    r, decays = rule, not is_zero(rule.weight_decay)
    base, momentum = Rule(), None if is_zero(rule.rho) else rule.rho
    lr: Arguments = {"learning_rate": r.learning_rate}
    look = {"nesterov": True} if r.nesterov == "look-ahead" else {}
    inside = r.eps_place == "inside the root"
    found = None
    if not is_zero(r.dampening) or r.eps_place == "on the uncorrected moment" or r.first_count != 1:
        return None
    if r.sign:
        return _lion(rule, "optax.lion", ("learning_rate", "b1", "b2"), always=True)
    if r.second == "none" and is_zero(r.b1):
        if momentum is None or r.rate_place == "outside":
            found = call("optax.sgd", **lr, **({"momentum": momentum} if momentum else {}), **look)
        elif r.rate_place == "inside the velocity":
            scaled = call("optax.scale_by_learning_rate", **lr)
            found = f"optax.chain({scaled}, {call('optax.trace', decay=momentum, **look)})"
    elif r.second == "sum" and is_zero(r.b1) and momentum is None and inside:
        found = call("optax.adagrad", **lr, initial_accumulator_value=r.initial, eps=r.eps)
    elif r.second == "sum" and is_zero(r.b1) and momentum is None and is_zero(r.initial):
        found = (
            'optax.inject_hyperparams(optax.rmsprop, static_args=("eps_in_sqrt",))('
            f"learning_rate=lambda t: {r.learning_rate!r} / (t + 1.0) ** 0.5, decay=lambda t: t / (t + 1.0), "
            f"eps=lambda t: {r.eps!r} / (t + 1.0) ** 0.5, eps_in_sqrt=False)"
        )
    elif r.second == "mean" and is_zero(r.b1) and not r.correct_second:
        if momentum is None or r.rate_place == "inside the velocity":
            extra = {"initial_scale": r.initial} if not is_zero(r.initial) else {}
            extra |= {"momentum": momentum} if momentum else {}
            found = call("optax.rmsprop", **lr, decay=r.b2, eps=r.eps, eps_in_sqrt=inside, **extra, **look)
    elif r.second == "mean" and momentum is None and is_zero(r.initial) and r.rate_place == base.rate_place:
        eps = {"eps": 0.0, "eps_root": r.eps} if inside else {"eps": r.eps}
        both = {"b1": r.b1, "b2": r.b2, **eps}
        decoupled = decays and r.decay_kind == "decoupled"
        if r.amsgrad == "of corrected moments" and r.correct_first and r.correct_second:
            found = call("optax.amsgrad", **lr, **both)
        elif r.amsgrad == "none" and r.correct_first and r.correct_second:
            wd = {"weight_decay": r.weight_decay} if decoupled else {}
            found = call("optax.adamw" if decoupled else "optax.adam", **lr, **both, **wd)
            decays = decays and not decoupled
        elif r.amsgrad == "none" and not r.correct_first and not r.correct_second:
            made = call("optax.adam", **lr, **both)
            found = f"{made} with state = optax.tree.set(state, count=2**30)"
    if found and decays:
        added = call("optax.add_decayed_weights", weight_decay=r.weight_decay)
        return f"optax.chain({added}, {found})" if r.decay_kind == "coupled" else None
    return found


def _lion(rule: Rule, name: str, parameters: tuple[str, str, str], always: bool) -> str | None:
    """The call of Lion; `always`: pass the weight decay even if it is 0, because the library's default is not 0."""
    decays = not is_zero(rule.weight_decay)
    if (decays and rule.decay_kind != "decoupled") or not is_zero(rule.rho):
        return None
    values = dict(zip(parameters, (rule.learning_rate, rule.b1, rule.memory), strict=True))
    return call(name, **values, **({"weight_decay": rule.weight_decay} if decays or always else {}))


def torch_call(rule: Rule) -> str | None:
    """The torch call that equals a rule, or None."""
    r, decays = rule, not is_zero(rule.weight_decay)
    lr: Arguments = {"lr": r.learning_rate}
    wd = {"weight_decay": r.weight_decay} if decays else {}
    decoupled = decays and r.decay_kind != "coupled"
    outside = not r.sign and r.eps_place == "outside the root" and r.rate_place == "outside" and r.first_count == 1
    if not outside or (r.nesterov not in ("none", "look-ahead")) or (decoupled and is_zero(r.b1)):
        return None
    if r.second == "none" and is_zero(r.b1):
        more = {} if is_zero(r.rho) else {"momentum": r.rho}
        if not is_zero(r.dampening):
            if r.damp_first:
                return None
            more["dampening"] = r.dampening
        return call("torch.optim.SGD", **lr, **more, **wd, **({"nesterov": True} if r.nesterov != "none" else {}))
    if r.second == "sum" and is_zero(r.b1) and is_zero(r.rho):
        more = {} if is_zero(r.initial) else {"initial_accumulator_value": r.initial}
        return call("torch.optim.Adagrad", **lr, eps=r.eps, **more, **wd)
    if r.second == "mean" and is_zero(r.b1) and not r.correct_second and is_zero(r.initial):
        more = {} if is_zero(r.rho) else {"momentum": r.rho}
        return call("torch.optim.RMSprop", **lr, alpha=r.b2, eps=r.eps, **more, **wd)
    corrected = r.correct_first and r.correct_second and r.amsgrad != "of corrected moments"
    if r.second == "mean" and corrected and is_zero(r.initial) and is_zero(r.rho):
        more = {"amsgrad": True} if r.amsgrad != "none" else {}
        name = "torch.optim.AdamW" if decoupled else "torch.optim.Adam"
        return call(name, **lr, betas=(r.b1, r.b2), eps=r.eps, **wd, **more)
    return None


def keras_call(rule: Rule) -> str | None:
    """The Keras call that equals a rule, or None."""
    r, decays = rule, not is_zero(rule.weight_decay)
    lr: Arguments = {"learning_rate": r.learning_rate}
    wd = {"weight_decay": r.weight_decay} if decays else {}
    if (decays and r.decay_kind == "coupled") or not is_zero(r.dampening) or r.first_count != 1:
        return None
    if r.sign:
        return _lion(rule, "keras.optimizers.Lion", ("learning_rate", "beta_1", "beta_2"), always=False)
    inside = r.eps_place == "inside the root"
    buffered = is_zero(r.rho) or r.rate_place == "inside the velocity" or not callable(r.learning_rate)
    if r.second == "none" and is_zero(r.b1) and buffered:
        more: Arguments = {} if is_zero(r.rho) else {"momentum": r.rho}
        return call("keras.optimizers.SGD", **lr, **more, **({"nesterov": True} if r.nesterov != "none" else {}), **wd)
    if r.second == "sum" and inside and is_zero(r.b1) and is_zero(r.rho):
        return call("keras.optimizers.Adagrad", **lr, initial_accumulator_value=r.initial, epsilon=r.eps, **wd)
    if r.second == "mean" and inside and is_zero(r.b1) and is_zero(r.initial) and not r.correct_second:
        more = {} if is_zero(r.rho) else {"momentum": r.rho}
        return call("keras.optimizers.RMSprop", **lr, rho=r.b2, epsilon=r.eps, **more, **wd)
    hat = r.eps_place == "on the uncorrected moment" and r.correct_first and r.correct_second
    if r.second == "mean" and hat and is_zero(r.rho) and is_zero(r.initial):
        more = {"amsgrad": True} if r.amsgrad != "none" else {}
        name = "keras.optimizers.AdamW" if decays else "keras.optimizers.Adam"
        return call(name, **lr, beta_1=r.b1, beta_2=r.b2, epsilon=r.eps, **wd, **more)
    return None


CALLS: dict[str, Callable[[Rule], str | None]] = {"optax": optax_call, "torch": torch_call, "keras": keras_call}
