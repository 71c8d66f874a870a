"""Identify an optimizer's rule from its responses to probe gradients.

Every coordinate of the probes is a separate experiment. For each combination of discrete switches, a few responses give
the hyperparameters in closed form (`closed_forms`). Every combination is then run along the probes. The matches are
those that reproduce every update to rounding. There may be several: with a constant learning rate, a rate inside the
velocity and a rate outside it are equivalent.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxopt_course.annotations import Params, PyTree
from jaxopt_course.comparison.closed_forms import (
    BASE,
    BIG,
    CURVE,
    SIZES,
    STRUCTURED,
    TINY,
    TINY_PARAM,
    UNIT_PARAM,
    Switches,
    candidates,
)
from jaxopt_course.comparison.rules import DTYPES, RESIDUAL, Observations, Rule, shortest_decimal, survivors, table
from jaxopt_course.comparison.steppers import Stepper

EARLY = 8  # number of steps in which every switch has an effect
SPARE_DIGITS = 2  # a match may have this many digits more than the shortest
LONG = 7  # most digits that are counted for one number


class Probes(NamedTuple):
    """`grads`: `[steps, coordinates]`; `params`: `[coordinates]`, the same at every step."""

    grads: np.ndarray
    params: np.ndarray


class Identified(NamedTuple):
    """`rules`: every known rule that reproduces an optimizer to rounding; `why_none`: the reason if there is no such
    rule, else "".
    """

    rules: list[Rule]
    why_none: str = ""


def identify(stepper: Stepper, params: Params, num_steps: int = EARLY, near: Rule | None = None) -> Identified:
    """Find the known rules that reproduce the optimizer to rounding.

    If the closed forms find nothing and `near` is given, rules one or two switches away from `near` are tried.
    """
    probes = make_probes(num_steps)
    try:
        seen = observe(stepper, probes, params)
    except Exception as error:  # whatever an optimizer raises that cannot run on the probes
        return Identified([], f"on probe gradients it raises {_in_one_line(error)}")
    if seen.shape != probes.grads.shape:
        return Identified([], "its updates of probe parameters do not have their shape")
    if not np.isfinite(seen).all():
        return Identified([], "its updates on probe gradients are not finite")
    observations = Observations(probes.grads, probes.params, seen, float(seen[0, UNIT_PARAM]))
    with np.errstate(all="ignore"):
        found = survivors(candidates(seen), observations)
        if not found and moves_by_sign(seen):
            found = survivors(sign_rule(stepper, seen), observations)
        if not found and near is not None:
            found = survivors(table(list(neighbours(near))), observations, free_rate=False)
    if not found:
        return Identified([], "its updates on probe gradients are those of no combination of known conventions")
    return Identified(simplest_rules(found, initial_accumulator(stepper, params)))


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


def make_probes(num_steps: int) -> Probes:
    """Make the probes: the layout of `closed_forms` in the first steps, then random gradients."""
    rng = np.random.default_rng(0)
    steps = max(num_steps, EARLY)
    flips = BIG * (1 - 2 * np.eye(STRUCTURED))
    late = np.array([0, BIG, BIG, BIG])
    still = np.zeros((STRUCTURED, 1))
    tiny = np.full((STRUCTURED, 1), TINY)
    curve = np.broadcast_to(SIZES, (STRUCTURED, len(SIZES)))
    scales = 10.0 ** rng.uniform(-4, 2, 12)
    mixed = scales * rng.standard_normal((STRUCTURED, 12))
    falling = BIG * 8.0 ** -np.arange(STRUCTURED)[:, None]
    early = np.hstack([np.full((STRUCTURED, 1), BIG), flips, late[:, None], still, still, tiny, curve, mixed, falling])
    params = np.zeros(early.shape[1])
    params[UNIT_PARAM], params[TINY_PARAM] = 1.0, TINY
    params[-7:-1] = [1.0, -1.0, 10.0, -0.1, 30.0, 0.01]
    sizes = np.abs(early).max(axis=0) * 10.0 ** rng.uniform(-1, 0, (1, len(params)))
    later = rng.standard_normal((steps - STRUCTURED, len(params))) * sizes
    return Probes(np.vstack([early, later]), params)


def observe(stepper: Stepper, probes: Probes, params: Params) -> np.ndarray:
    """Record the updates on the probes, `[steps, coordinates]`, in float64.

    The probes are passed as one vector if the optimizer accepts a vector, else as several trees like `params`.
    """
    with jax.enable_x64(True):
        try:
            return _run(stepper, probes)
        except Exception:  # whatever it raises on a vector, it may take the user's tree
            return np.hstack(list(_run_on_trees(stepper, probes, params)))


def _run_on_trees(stepper: Stepper, probes: Probes, params: Params) -> Iterator[np.ndarray]:
    leaves, structure = jax.tree.flatten(params)
    sizes, count = [np.size(leaf) for leaf in leaves], len(probes.params)
    for first in range(0, count, sum(sizes)):
        chosen = np.arange(first, first + sum(sizes)) % count

        def to_tree(row: np.ndarray, chosen: np.ndarray = chosen) -> PyTree:
            parts = zip(np.split(row[chosen], np.cumsum(sizes)[:-1]), leaves, strict=True)
            return jax.tree.unflatten(structure, [part.reshape(np.shape(leaf)) for part, leaf in parts])

        yield _run(stepper, probes, to_tree)[:, : min(sum(sizes), count - first)]


def _run(stepper: Stepper, probes: Probes, to_tree: Callable[[np.ndarray], PyTree] = np.array) -> np.ndarray:
    params, rows = to_tree(probes.params), []
    state = stepper.start(params)
    for count, g in enumerate(probes.grads):
        _, state, updates = stepper.step(params, state, to_tree(g), count)
        rows.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)]).astype(float))
    return np.array(rows)


def moves_by_sign(seen: np.ndarray) -> bool:
    """Whether the length of the first step does not depend on the size of the gradient."""
    return bool(seen[0, BASE] != 0 and np.all(np.abs(seen[0, CURVE] / seen[0, BASE] - 1) < RESIDUAL))


def sign_rule(stepper: Stepper, seen: np.ndarray) -> Rule | None:
    """Lion with its two decay rates, from the gradients at which the sign of its step changes.

    After one gradient of 1 and k gradients of 0, m = b2^k (1 - b2). With the next gradient -x, the step has the sign of
    b1 m - (1 - b1) x, which changes at x_k = b2^k (1 - b2) b1 / (1 - b1). Hence b2 = x_1 / x_0, and
    b1 / (1 - b1) = x_0 / (1 - b2).
    """
    with jax.enable_x64(True):
        try:
            x = [_turning_point(stepper, zeros) for zeros in (0, 1)]
        except Exception:  # it does not take a vector
            return None
    memory = shortest_decimal(x[1] / x[0], RESIDUAL)
    odds = x[0] / (1 - memory)
    b1 = shortest_decimal(odds / (1 + odds), RESIDUAL)
    if not (0 < memory < 1 and 0 < b1 < 1):
        return None
    kind = "decoupled" if seen[0, UNIT_PARAM] else "coupled"
    return table([Rule(b1=b1, memory=memory, sign=True, decay_kind=kind)])


def _turning_point(stepper: Stepper, zeros: int) -> float:
    """The x at which the step after gradients 1, 0, ..., 0, -x is 0, by repeated search on a grid."""
    low, high = -30.0, 30.0  # natural logarithms
    while high - low > 1e-14 * max(abs(low), 1.0):
        tried = np.linspace(low, high, 64)
        grads = np.vstack([np.ones_like(tried), *[np.zeros_like(tried)] * zeros, -np.exp(tried)])
        turned = _run(stepper, Probes(grads, np.zeros_like(tried)))[-1] > 0
        at = int(np.argmax(turned))
        if at == 0 or tried[at - 1] >= tried[at]:
            break
        low, high = tried[at - 1], tried[at]
    return float(np.exp((low + high) / 2))


def initial_accumulator(stepper: Stepper, params: Params) -> float | None:
    """The initial second moment in the optimizer's state; None if the state does not show one value."""
    with jax.enable_x64(True):
        try:
            found = stepper.slots(stepper.start(params)).get("second moment", [])
        except Exception:  # as in `identify`
            return None
    values = {float(value) for leaf in found for value in np.unique(leaf)}
    return values.pop() if len(values) == 1 else None


def simplest_rules(found: list[Rule], initial: float | None) -> list[Rule]:
    """Of rules that are equivalent on the probes, those with the shortest description."""
    found = list(dict.fromkeys(found))
    known = [rule for rule in found if initial is not None and abs(rule.initial - initial) <= 1e-9 * abs(initial)]
    found = known or found
    constant = [rule for rule in found if not isinstance(rule.learning_rate, tuple)]
    lengths = {rule: description_length(rule) for rule in constant or found}
    limit = min(lengths.values(), default=0) + (SPARE_DIGITS if constant else LONG)
    return sorted((rule for rule in lengths if lengths[rule] <= limit), key=lengths.__getitem__)


def description_length(rule: Rule) -> int:
    """Number of digits in all numbers of a rule, plus one for each switch that differs from plain SGD."""
    digits = 0
    for value, default in zip(rule, Rule(), strict=True):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and number != 0:
                short = shortest_decimal(number if number < 0.5 or number > 1 else 1 - number, 1e-11)
                digits += min(len(f"{short:.12e}".split("e")[0].replace(".", "").rstrip("0")) or 1, LONG)
        digits += not isinstance(value, float | tuple) and value != default
    return digits


def neighbours(rule: Rule) -> Iterator[Rule]:
    """The rules one or two switches away."""
    single = list(single_changes(rule))
    yield from (rule._replace(**flip) for flip in single)
    for one, other in itertools.combinations(single, 2):
        if not one.keys() & other.keys():
            yield rule._replace(**one, **other)


def single_changes(rule: Rule) -> Iterator[Switches]:
    """Single changes of a rule that some library makes, at the same hyperparameters."""
    choices = {
        "moment_dtype": [f"{how}{name}" for name in DTYPES for how in ("", "stored as ", "decayed in ", "both ")],
        "eps_place": ["outside the root", "inside the root", "on the uncorrected moment"] if rule.eps else [],
        "amsgrad": ["none", "of raw moments", "of corrected moments"] if rule.second == "mean" else [],
        "nesterov": ["none", "Dozat", "same correction"] if rule.b1 else ["none", "look-ahead"] if rule.rho else [],
    }
    for field, values in choices.items():
        yield from ({field: value} for value in values if value != getattr(rule, field))
    if rule.second == "mean":
        yield {"correct_first": not rule.correct_first, "correct_second": not rule.correct_second}
        yield {"correct_first": not rule.correct_first}
        yield {"correct_second": not rule.correct_second}
    yield from ({"eps": eps} for eps in (1e-10, 1e-8, 1e-7, 1e-6, 1e-3) if rule.second != "none" and eps != rule.eps)
