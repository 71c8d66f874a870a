"""What a rule looks like on paper, and what it is called elsewhere. Everything is read off its switches."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxopt_course.comparison.rules import Rule


class Notation(NamedTuple):
    g: str
    m: str
    v: str
    w: str
    lr: str
    b1: str
    b2: str
    rho: str
    eps: str
    decay: str
    power: str
    to: str
    root: Callable[[str], str]
    ratio: Callable[[str, str], str]
    times: str


TEXT = Notation(
    "g", "m", "v", "w", "lr", "b1", "b2", "rho", "eps", "wd", "^", " = ", "sqrt({})".format, "{} / ({})".format, " * "
)
LATEX = Notation(
    "g",
    "m",
    "v",
    "w",
    r"\eta",
    r"\beta_1",
    r"\beta_2",
    r"\rho",
    r"\epsilon",
    r"\lambda",
    "^",
    r" \leftarrow ",
    r"\sqrt{{{}}}".format,
    r"\frac{{{}}}{{{}}}".format,
    r" ",
)


def lines(rule: Rule, n: Notation) -> list[str]:
    """The recurrence, a line for every state, the step last."""
    r, out, x = rule, [], n.times
    decays = not is_zero(r.weight_decay)
    if decays and r.decay_kind == "coupled":
        out.append(f"{n.g}{n.to}{n.g} + {n.decay}{x}{n.w}")
    top = n.g
    if not is_zero(r.b1):
        fresh = f"{n.lr}{x}{n.g}" if r.rate_place == "inside the first moment" else n.g
        out.append(f"{n.m}{n.to}{n.b1}{x}{n.m} + (1 - {n.b1}){x}{fresh}")
        top = n.m
        if r.nesterov in ("Dozat", "same correction"):
            top = f"({n.b1}{x}{n.m} + (1 - {n.b1}){x}{n.g})"
    c1, c2 = (f"(1 - {b}{n.power}t)" for b in (n.b1, n.b2))
    hat = r.eps_place == "on the uncorrected moment" and r.correct_second
    rate = n.lr
    if r.correct_first and hat:
        rate = f"{n.lr}{x}{n.ratio(n.root(c2[1:-1]), c1[1:-1])}"
    elif r.correct_first:
        top = n.ratio(top, c1[1:-1])
    u = top
    if r.second != "none":
        squares = (
            f"{n.v} + {n.g}{n.power}2" if r.second == "sum" else f"{n.b2}{x}{n.v} + (1 - {n.b2}){x}{n.g}{n.power}2"
        )
        start = "" if is_zero(r.initial) else f"    (v_0 = {r.initial:g})"
        out.append(f"{n.v}{n.to}{squares}{start}")
        second = n.v if r.amsgrad == "none" else "v_max"
        if r.amsgrad != "none":
            kept = n.ratio(n.v, c2[1:-1]) if r.amsgrad == "of corrected moments" else n.v
            out.append(f"v_max{n.to}max(v_max, {kept})")
        if r.correct_second and not hat and r.amsgrad != "of corrected moments":
            second = n.ratio(second, c2[1:-1])
        inside = r.eps_place == "inside the root"
        below = n.root(f"{second} + {n.eps}") if inside else f"{n.root(second)} + {n.eps}"
        u = n.ratio(top, below) if n is LATEX or not inside else f"{top} / {below}"
    if not is_zero(r.rho):
        name = "velocity" if n is TEXT else "u"
        fresh = f"{rate}{x}{u}" if r.rate_place == "inside the velocity" else u
        gain = "" if is_zero(r.dampening) else f"(1 - dampening){x}" if n is TEXT else f"(1 - d){x}"
        out.append(f"{name}{n.to}{n.rho}{x}{name} + {gain}{fresh}")
        u = f"{fresh} + {n.rho}{x}{name}" if r.nesterov == "look-ahead" else name
        u = f"({u})" if " + " in u and r.rate_place == "outside" else u
    inside = r.rate_place == "inside the first moment" or (r.rate_place != "outside" and not is_zero(r.rho))
    moved = u if inside else f"{rate}{x}{u}"
    decayed = f" - {n.lr}{x}{n.decay}{x}{n.w}" if decays and r.decay_kind != "coupled" else ""
    out.append(f"{n.w}{n.to}{n.w} - {moved}{decayed}")
    return out


def is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def in_words(rule: Rule, group: str) -> str:
    """What a rule has for one of the `GROUPS` of switches."""
    r = rule
    corrected = {(True, True): "of both moments", (False, False): "none", (True, False): "of the first moment"}
    memories = [f"{r.b1:.6g} in the first moment"] * (not is_zero(r.b1)) + [f"{r.rho:.6g}"] * (not is_zero(r.rho))
    kinds = {"mean": f"a mean that keeps {r.b2:.6g}", "sum": "a sum", "none": "none"}
    words = {
        "learning rate": _number(r.learning_rate),
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


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:g}, {value[1]:g}, ..., {value[-1]:g}"
    return f"{value:.6g}" if isinstance(value, int | float) else "a schedule" if callable(value) else str(value)


def call(name: str, **arguments: Any) -> str:
    """A call as code, defaults and all."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def optax_call(rule: Rule) -> str | None:
    """Stock optax that is this rule; None where there is none."""
    r, decays = rule, not is_zero(rule.weight_decay)
    base, momentum = Rule(), None if is_zero(rule.rho) else rule.rho
    lr: dict[str, Any] = {"learning_rate": r.learning_rate}
    look = {"nesterov": True} if r.nesterov == "look-ahead" else {}
    inside = r.eps_place == "inside the root"
    found = None
    if not is_zero(r.dampening) or r.eps_place == "on the uncorrected moment" or r.first_count != 1:
        return None
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


def torch_call(rule: Rule) -> str | None:
    """Stock torch that is this rule; None where there is none."""
    r, decays = rule, not is_zero(rule.weight_decay)
    lr: dict[str, Any] = {"lr": r.learning_rate}
    wd = {"weight_decay": r.weight_decay} if decays else {}
    decoupled = decays and r.decay_kind != "coupled"
    outside = r.eps_place == "outside the root" and r.rate_place == "outside" and r.first_count == 1
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
    """Stock Keras that is this rule; None where there is none."""
    r, decays = rule, not is_zero(rule.weight_decay)
    lr: dict[str, Any] = {"learning_rate": r.learning_rate}
    wd = {"weight_decay": r.weight_decay} if decays else {}
    if (decays and r.decay_kind == "coupled") or not is_zero(r.dampening) or r.first_count != 1:
        return None
    inside = r.eps_place == "inside the root"
    buffered = is_zero(r.rho) or r.rate_place == "inside the velocity" or not callable(r.learning_rate)
    if r.second == "none" and is_zero(r.b1) and buffered:
        more: dict[str, Any] = {} if is_zero(r.rho) else {"momentum": r.rho}
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
