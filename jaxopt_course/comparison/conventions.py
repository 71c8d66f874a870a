r"""Conventions of SGD, momentum, AdaGrad, RMSProp, Adam, AdamW and Lion in four libraries.

Rules of the same name differ between libraries. A convention is a record of switches (`rules.Rule`). Its formula, the
library calls that equal it and the optimizer are all derived from the switches, so that they cannot disagree.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxopt_course.annotations import Array, ArrayLike, Optimizer, Params, PyTree, Updates
from jaxopt_course.comparison.formulas import CALLS, LATEX, TEXT, describe, is_zero, lines, lines_of_both
from jaxopt_course.comparison.rules import GROUPS, Moments, Number, Rule, start, step
from jaxopt_course.dtypes import at_least_32_bits, check_floating
from jaxopt_course.optimizers.hyperparameters import decay_rate, learning_rate_at, not_negative
from jaxopt_course.optimizers.leaves import check_match

__all__ = ["LIBRARIES", "Convention", "ConventionState"]
__all__ += ["differences", "explain", "explanation", "get", "make", "names"]

LIBRARIES = ("lecture", "optax", "torch", "keras")
COMMON = {  # hyperparameters of each rule: name in `Convention.defaults` -> field of `Rule`
    "sgd": {},
    "momentum": {"rho": "rho"},
    "nesterov": {"rho": "rho"},
    "adagrad": {"eps": "eps", "initial": "initial"},
    "rmsprop": {"decay": "b2", "eps": "eps", "rho": "rho"},
    "adam": {"b1": "b1", "b2": "b2", "eps": "eps"},
}
COMMON |= dict.fromkeys(("adam_uncorrected", "adamw", "amsgrad"), COMMON["adam"])
COMMON["lion"] = {"b1": "b1", "b2": "memory"}
SOURCES = {
    "lecture": "Johnson, Deep Learning for Computer Vision, lecture 4, and Stanford's CS231n",
    "optax": "optax 0.2.8, optax/_src/alias.py and transform.py",
    "torch": "torch 2.13.0, torch/optim",
    "keras": "Keras 3.15.1, keras/src/optimizers",
}
_LECTURE = {
    "sgd": Rule(0.01, wide=True),
    "momentum": Rule(0.01, rho=0.9, wide=True),
    "nesterov": Rule(0.01, rho=0.9, nesterov="look-ahead", wide=True),
    "adagrad": Rule(0.01, second="sum", eps=1e-7, wide=True),
    "rmsprop": Rule(0.01, second="mean", b2=0.99, eps=1e-7, wide=True),
    "adam_uncorrected": Rule(1e-3, b1=0.9, b2=0.999, second="mean", eps=1e-7, wide=True),
}
_LECTURE["adam"] = _LECTURE["adam_uncorrected"]._replace(correct_first=True, correct_second=True)
_LECTURE["adamw"] = _LECTURE["adam"]._replace(weight_decay=0.01, decay_kind="decoupled")
_BASE = _LECTURE | {"amsgrad": _LECTURE["adam"], "lion": Rule(1e-3, b1=0.9, memory=0.99, sign=True)}
_INSIDE = {"rate_place": "inside the velocity"}
_DIFFERENT: dict[str, dict[str, dict[str, Number]]] = {  # switches that differ from the lecture's
    "optax": {
        "sgd": {},
        "momentum": {},
        "nesterov": {},
        "adagrad": {"initial": 0.1, "eps_place": "inside the root"},
        "rmsprop": {"b2": 0.9, "eps": 1e-8, "eps_place": "inside the root", **_INSIDE},
        "adam": {"eps": 1e-8},
        "adamw": {"eps": 1e-8, "weight_decay": 1e-4},
        "amsgrad": {"eps": 1e-8, "amsgrad": "of corrected moments"},
        "lion": {"weight_decay": 1e-3, "decay_kind": "decoupled"},
    },
    "torch": {
        "sgd": {"learning_rate": 1e-3},
        "momentum": {"learning_rate": 1e-3, "damp_first": False},
        "nesterov": {"learning_rate": 1e-3, "damp_first": False},
        "adagrad": {"eps": 1e-10},
        "rmsprop": {"eps": 1e-8},
        "adam": {"eps": 1e-8},
        "adamw": {"eps": 1e-8, "weight_decay": 1e-2},
        "amsgrad": {"eps": 1e-8, "amsgrad": "of raw moments"},
    },
    "keras": {
        "sgd": {"decay_kind": "decoupled"},
        "momentum": {"decay_kind": "decoupled", **_INSIDE},
        "nesterov": {"decay_kind": "decoupled", **_INSIDE},
        "adagrad": {
            "learning_rate": 1e-3,
            "initial": 0.1,
            "eps_place": "inside the root",
            "decay_kind": "decoupled",
        },
        "rmsprop": {
            "learning_rate": 1e-3,
            "b2": 0.9,
            "eps_place": "inside the root",
            "decay_kind": "decoupled",
            **_INSIDE,
        },
        "adam": {"eps_place": "on the uncorrected moment", "decay_kind": "decoupled"},
        "adamw": {"eps_place": "on the uncorrected moment", "weight_decay": 4e-3},
        "amsgrad": {
            "eps_place": "on the uncorrected moment",
            "amsgrad": "of raw moments",
            "decay_kind": "decoupled",
        },
        "lion": {"decay_kind": "decoupled"},
    },
}


def __dir__() -> list[str]:
    return __all__


@dataclasses.dataclass(frozen=True)
class Convention:
    """One rule as one library defines it.

    `switches`: the values of all switches, at the library's defaults (`lr = 0.01` if it has no default); `formula`,
    `latex`: the recurrence, one line for each state; `calls`: the equal calls in optax, torch and Keras, None where
    there is none; `source`: where the convention was read.

    Example:
      >>> print(get("rmsprop", "torch").formula)
      v = b2 * v + (1 - b2) * g^2
      w = w - lr * g / (sqrt(v) + eps)
      >>> get("rmsprop", "torch").calls["optax"]
      'optax.rmsprop(learning_rate=0.01, decay=0.99, eps=1e-08, eps_in_sqrt=False)'
    """

    rule: str
    library: str
    switches: Rule

    @property
    def formula(self) -> str:
        return "\n".join(lines(self.switches, TEXT))

    @property
    def latex(self) -> str:
        return " \\\\\n".join(lines(self.switches, LATEX))

    @property
    def defaults(self) -> dict[str, Number]:
        return {name: getattr(self.switches, field) for name, field in self._names().items()}

    @property
    def calls(self) -> dict[str, str | None]:
        return {library: call(self.switches) for library, call in CALLS.items()}

    @property
    def source(self) -> str:
        return SOURCES[self.library]

    def _names(self) -> dict[str, str]:
        return {"learning_rate": "learning_rate", **COMMON[self.rule], "weight_decay": "weight_decay"}

    def with_values(self, **hyperparameters: Number) -> "Convention":
        """The same convention with other hyperparameters, named as in `defaults`."""
        names = self._names() | {"dampening": "dampening"}
        if unknown := hyperparameters.keys() - names.keys():
            raise TypeError(
                f"{self.library}'s {self.rule} has no {', '.join(sorted(unknown))}; it has {', '.join(names)}"
            )
        return dataclasses.replace(
            self, switches=self.switches._replace(**{names[name]: value for name, value in hyperparameters.items()})
        )

    def make(self, **hyperparameters: Number) -> Optimizer:
        """Make an optimizer that implements this convention.

        Hyperparameters are named as in `defaults` and are numbers or traced scalars; the learning rate may be a
        schedule.
        """
        return make(self.with_values(**hyperparameters).switches)


class ConventionState(NamedTuple):
    """`count`: steps taken, int32; the others: trees like the parameters, None if the rule does not need them."""

    count: Array  # type: ignore[assignment]  # optax's name; tuple.count is not used
    mu: Updates | None
    nu: Updates | None
    nu_max: Updates | None
    trace: Updates | None


def make(rule: Rule) -> Optimizer:
    """Make the optimizer that a `Rule` describes.

    Example:
      >>> optimizer, w = make(get("sgd", "torch").switches._replace(learning_rate=0.5)), jnp.array([4.0, -2.0])
      >>> print(optimizer.update(w, optimizer.init(w), w)[0])  # gradient descent on |w|^2 / 2
      [-2.  1.]
    """
    rule = _checked(rule)
    rate_at = learning_rate_at(rule.learning_rate)
    kept = (not is_zero(rule.b1), rule.second != "none", rule.amsgrad != "none", not is_zero(rule.rho))
    decays = not is_zero(rule.weight_decay)

    def columns_of(rows: Sequence[Sequence[ArrayLike]], like: PyTree, number: int) -> list[PyTree]:
        """Transpose rows, one for each leaf, into trees, one for each column."""
        structure = jax.tree.structure(like)
        return [jax.tree.unflatten(structure, column) for column in zip(*rows, strict=True)] or [like] * number

    def init(params: Params) -> ConventionState:
        check_floating(params)
        rows = [start(rule, jnp.zeros(jnp.shape(x), _dtype_of(rule, x))) for x in jax.tree.leaves(params)]
        slots = columns_of(rows, params, 4)
        return ConventionState(jnp.zeros((), jnp.int32), *(s if k else None for s, k in zip(slots, kept, strict=True)))

    def update(
        grads: Updates, state: ConventionState, params: Params | None = None, **_: object
    ) -> tuple[Updates, ConventionState]:
        if decays and params is None:
            raise ValueError("weight decay needs the parameters: call update(grads, state, params)")
        like = grads if params is None else params
        check_match(grads, "parameters", like)
        rate, rows = rate_at(state.count), []
        for number, (g, w) in enumerate(zip(jax.tree.leaves(grads), jax.tree.leaves(like), strict=True)):
            old = [jax.tree.leaves(slot)[number] if k else None for slot, k in zip(state[1:], kept, strict=True)]
            rows.append(_leaf_update(rule, g, w, state.count, rate, old))
        updates, *slots = columns_of(rows, grads, 5)
        slots = [s if k else None for s, k in zip(slots, kept, strict=True)]
        return updates, ConventionState(optax.safe_increment(state.count), *slots)

    return optax.GradientTransformationExtraArgs(init, update)


def _checked(rule: Rule) -> Rule:
    checked = {name: decay_rate(name, getattr(rule, name)) for name in ("b1", "b2", "rho", "memory")}
    checked |= {name: not_negative(name, getattr(rule, name)) for name in ("eps", "initial", "weight_decay")}
    return rule._replace(**checked)


def _dtype_of(rule: Rule, leaf: ArrayLike) -> DTypeLike:
    """The dtype of a leaf's moments and arithmetic."""
    dtype = jnp.result_type(leaf)
    return at_least_32_bits(dtype) if rule.wide else dtype


def _leaf_update(
    rule: Rule, g: ArrayLike, w: ArrayLike, count: Array, rate: Number, old: Sequence[ArrayLike | None]
) -> list[ArrayLike]:
    """The update of a leaf and its new moments; in `old`, moments that the rule does not keep are None."""
    dtype = _dtype_of(rule, w)
    real, none = jnp.finfo(dtype).dtype, jnp.zeros((), dtype)
    scalars = {name: x.astype(real) for name, x in rule._asdict().items() if isinstance(x, jax.Array)}
    moments = Moments(*(none if m is None else m for m in old))
    own_w = none if is_zero(rule.weight_decay) else jnp.asarray(w).astype(dtype)
    rate = rate if isinstance(rate, float) else rate.astype(real)
    own_count = count.astype(at_least_32_bits(real))
    made = step(rule._replace(**scalars), jnp.asarray(g).astype(dtype), own_w, own_count, rate, moments)
    new = [n.astype(m.dtype) for n, m in zip(made.moments, moments, strict=True)]
    return [made.update.astype(jnp.result_type(w)), *new]


TABLE = {(rule, "lecture"): Convention(rule, "lecture", switches) for rule, switches in _LECTURE.items()}
TABLE |= {
    (rule, library): Convention(rule, library, _BASE[rule]._replace(wide=False, **own))
    for library, rows in _DIFFERENT.items()
    for rule, own in rows.items()
}


def names() -> list[tuple[str, str]]:
    """All known conventions, as pairs (rule, library).

    Example:
      >>> [library for rule, library in names() if rule == "adam"]
      ['lecture', 'optax', 'torch', 'keras']
    """
    return list(TABLE)


def get(rule: str, library: str) -> Convention:
    """The convention of a rule in a library, at that library's defaults.

    Example:
      >>> get("adagrad", "optax").defaults
      {'learning_rate': 0.01, 'eps': 1e-07, 'initial': 0.1, 'weight_decay': 0.0}
    """
    if (rule, library) not in TABLE:
        rules, libraries = (sorted({key[i] for key in TABLE}) for i in (0, 1))
        known = [key[1] for key in TABLE if key[0] == rule] or libraries
        raise KeyError(
            f"no {rule!r} of {library!r}: rules are {', '.join(rules)}; {rule!r} is known of {', '.join(known)}"
        )
    return TABLE[rule, library]


def differences(a: Rule, b: Rule) -> tuple[str, ...]:
    """The groups of switches in which two rules differ, in the order of `GROUPS`.

    Example:
      >>> differences(get("adam", "lecture").switches, get("adam", "optax").switches)
      ('epsilon', 'moment dtype')
    """
    return tuple(group for group, fields in GROUPS.items() if any(getattr(a, f) != getattr(b, f) for f in fields))


def explain(rule: str, library: str) -> None:
    """Print a convention beside the lecture's; lines that differ are marked with !.

    Example:
      >>> explain("momentum", "keras")
      momentum                 lecture                        keras
      !                        velocity = rho * velocity + g  velocity = rho * velocity + lr * g
      ! step                   w = w - lr * velocity          w = w - velocity
      ! learning rate's place  outside                        inside the velocity
      ! weight decay           none                           none, decoupled
      ! moment dtype           float32 in 16 bits             as computed
        lecture's in optax: optax.sgd(learning_rate=0.01, momentum=0.9)
        keras's in optax: optax.chain(optax.scale_by_learning_rate(learning_rate=0.01), optax.trace(decay=0.9))
        lecture's in torch: torch.optim.SGD(lr=0.01, momentum=0.9)
        keras's in torch: no equal call
        lecture's in keras: keras.optimizers.SGD(learning_rate=0.01, momentum=0.9)
        keras's in keras: keras.optimizers.SGD(learning_rate=0.01, momentum=0.9)
        lecture: Johnson, Deep Learning for Computer Vision, lecture 4, and Stanford's CS231n
        keras: Keras 3.15.1, keras/src/optimizers
    """
    print(explanation(rule, library))


def explanation(rule: str, library: str) -> str:
    """The text that `explain` prints.

    Example:
      >>> explanation("adagrad", "torch").splitlines()[0].split()
      ['adagrad', 'lecture', 'torch']
    """
    ours, theirs = get(rule, "lecture" if (rule, "lecture") in TABLE else "optax"), get(rule, library)
    written = lines_of_both(ours.switches, theirs.switches, TEXT)
    pairs: list[tuple[str, ...]] = list(itertools.zip_longest(*written, fillvalue=""))
    rows: list[tuple[str, ...]] = [*(("", x, y) for x, y in pairs[:-1]), ("step", *pairs[-1])]
    for group in differences(ours.switches, theirs.switches):
        rows.append((group, *(describe(convention.switches, group) for convention in (ours, theirs))))
    marked = [(f"{'!' if x != y else ' '} {what}", x, y) for what, x, y in rows]
    calls = [(name, c.library, c.calls[name] or "no equal call") for name in CALLS for c in (ours, theirs)]
    said = [f"  {library}'s in {name}: {call}" for name, library, call in calls]
    sources = [f"  {convention.library}: {convention.source}" for convention in (ours, theirs)]
    return "\n".join([*_columns([(rule, ours.library, theirs.library), *marked]), *said, *dict.fromkeys(sources)])


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
