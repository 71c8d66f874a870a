"""The paths of two optimizers as rows of numbers, and their differences relative to the scale of the path."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Batch, Objective, Params, PyTree, Updates
from jaxopt_course.comparison.rules import SLOTS, Rule, start, step
from jaxopt_course.comparison.steppers import ROLES, Stepper
from jaxopt_course.dtypes import standard_promotion

SIGNED = ("first moment", "velocity", "parameters")  # slots that cancellation may take through zero


class RunSetup(NamedTuple):
    """How optimizers are run: from `params`, for `num_steps` steps, with the gradients `gradient(params, count)`."""

    params: Params
    num_steps: int
    gradient: Callable[[Params, int], Updates]

    @property
    def leaves(self) -> list[np.ndarray]:
        return jax.tree.leaves(self.params)

    @property
    def cuts(self) -> np.ndarray:
        """Offset of each leaf in a row of numbers, and the length of the row."""
        return np.cumsum([0, *(leaf.size for leaf in self.leaves)])

    def place(self, at: int) -> tuple[str, tuple[int, ...]]:
        """The path of the leaf that entry `at` of a row belongs to, and the index in that leaf."""
        number = int(np.searchsorted(self.cuts, at, side="right") - 1)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.params)]
        index = np.unravel_index(at - self.cuts[number], self.leaves[number].shape)
        return paths[number], tuple(int(i) for i in index)

    def tree(self, row: np.ndarray) -> PyTree:
        """Reshape a row of numbers into a tree like the parameters."""
        parts = zip(np.split(row, self.cuts[1:-1]), self.leaves, strict=True)
        shaped = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in parts]
        return jax.tree.unflatten(jax.tree.structure(self.params), shaped)


class Path(NamedTuple):
    """The path of an optimizer.

    `params`: `[steps + 1, n]`; `grads`: `[steps, n]`; `slots`: the quantities after each step by name, `[n]` each.
    """

    params: np.ndarray
    grads: np.ndarray
    slots: list[dict[str, np.ndarray]]


@functools.lru_cache(maxsize=8)
def _compiled_gradient(objective: Objective) -> Callable[..., Updates]:
    return jax.jit(jax.grad(objective))


def gradient_of(objective: Objective, batches: Sequence[Batch] | None) -> Callable[[Params, int], Updates]:
    """The gradient as a function of the parameters and the step."""
    compiled = _compiled_gradient(objective)
    batches = None if batches is None else list(batches)

    def gradient(params: Params, count: int) -> Updates:
        data = () if batches is None else (batches[count % len(batches)],)
        with standard_promotion():
            return jax.tree.map(np.asarray, compiled(jax.tree.map(jnp.asarray, params), *data))

    return gradient


def record_path(stepper: Stepper, setup: RunSetup) -> Path:
    """Run an optimizer and record its path."""
    params, state = setup.params, stepper.start(setup.params)
    rows, grads, slots = [_flat(params)], [], []
    for count in range(setup.num_steps):
        g = setup.gradient(params, count)
        params, state, _ = stepper.step(params, state, g, count)
        rows.append(_flat(params))
        grads.append(_flat(g))
        slots.append(_slots_of(stepper, state, rows[-1]))
    return Path(np.array(rows), np.array(grads), slots)


def _slots_of(stepper: Stepper, state: PyTree, row: np.ndarray) -> dict[str, np.ndarray]:
    """The moments in a state that have one entry for each parameter, and the parameters."""
    held = {role: np.concatenate([np.ravel(x) for x in found]) for role, found in stepper.slots(state).items()}
    moments = {role: value.astype(float) for role, value in held.items() if value.size == row.size and role in SLOTS}
    return moments | {"parameters": row}


def simulate(rule: Rule, path: Path) -> Path:
    """The path of a rule in float64, with the starting point and the gradients of another path."""
    w, rows, slots = path.params[0][None], [path.params[0]], []
    moments = start(rule, np.zeros_like(w))
    constant = not isinstance(rule.learning_rate, tuple)
    rates = (rule.learning_rate,) * len(path.grads) if constant else rule.learning_rate[rule.rate_count :]
    with np.errstate(all="ignore"):
        for count, g in enumerate(path.grads):
            update, moments, seen = step(rule, g[None], w, count, rates[count], moments)
            w = w + update
            rows.append(w[0])
            slots.append({name: np.broadcast_to(value, w.shape)[0] for name, value in seen.items()})
    return Path(np.array(rows), path.grads, slots)


def check_restartable(name: str, stepper: Stepper, setup: RunSetup, path: Path, rtol: float) -> None:
    """Raise ValueError if a restarted optimizer takes a different first step than it did on its path."""
    g = setup.gradient(setup.params, 0)
    again = _flat(stepper.step(setup.params, stepper.start(setup.params), g, 0)[0])
    largest = np.max(np.abs(again), initial=0.0, where=np.isfinite(again))
    if not np.allclose(again, path.params[1], rtol=0, atol=rtol * largest, equal_nan=True):
        raise ValueError(
            f"{name} remembers earlier runs: when it is restarted, its first step is different. Keep its memory in a "
            "state, or make it an object that can be copied, or reset it at step 0"
        )


def _flat(tree: PyTree) -> np.ndarray:
    rows = [np.ravel(leaf).astype(complex if np.iscomplexobj(leaf) else float) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros(0), *rows])


def relative_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The difference of every entry after each step, relative to the scale of its path so far, `[steps, n]`.

    The scale of an entry is its largest magnitude so far, or the width of the range that it has passed through if that
    is more. The present size of an entry is not its scale, because an entry near zero is as uncertain as the numbers
    that were added to get there: rounding leaves eps times the largest of them, and an error of d in the length of
    every step leaves d times the distance. Other entries do not contribute to the scale, because they may be in another
    unit.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        scales = [_scale(x) for x in (a, b)]
        size = np.maximum(*scales)[1:]
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))[1:]
        relative = np.divide(difference, size, out=np.zeros_like(difference), where=difference != 0)
    return np.where(np.isfinite(relative), relative, np.inf)


def _scale(rows: np.ndarray) -> np.ndarray:
    size = np.maximum.accumulate(np.abs(rows), axis=0)
    parts = [rows.real, rows.imag] if np.iscomplexobj(rows) else [rows]
    for part in parts:
        size = np.maximum(size, np.maximum.accumulate(part, axis=0) - np.minimum.accumulate(part, axis=0))
    return size


def largest_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest relative difference of any entry after each step, `[steps]`."""
    return relative_differences(a, b).max(axis=1, initial=0.0)


class Paths(NamedTuple):
    """The paths of two optimizers: `a` and `own_b` each on its own gradients, `b` on the gradients of `a`."""

    a: Path
    own_b: Path
    b: Path


class Differences(NamedTuple):
    """Differences between two optimizers.

    `own`, `shared`: `[steps]`, the largest relative difference after each step, with each optimizer on its own path and
    with both on the gradients of the first; `ulps`: the largest of `shared`, in units of the rounding of a leaf's
    dtype.
    """

    own: np.ndarray
    shared: np.ndarray
    ulps: float


def record_both(steppers: tuple[Stepper, Stepper], setup: RunSetup, names: tuple[str, str], rtol: float) -> Paths:
    """Record the paths of two optimizers; raise ValueError if one of them remembers earlier runs."""
    a, b = steppers
    path, own_b = record_path(a, setup), record_path(b, setup)
    check_restartable(names[0], a, setup, path, rtol)
    check_restartable(names[1], b, setup, own_b, rtol)
    return Paths(path, own_b, record_path(b, setup._replace(gradient=lambda _, count: setup.tree(path.grads[count]))))


def differences_of(paths: Paths, setup: RunSetup) -> Differences:
    """Compute the `Differences` of two optimizers from their paths."""
    eps = np.concatenate([np.zeros(0), *(np.full(x.size, float(jnp.finfo(x.dtype).eps)) for x in setup.leaves)])
    shared = relative_differences(paths.a.params, paths.b.params)
    own = largest_differences(paths.a.params, paths.own_b.params)
    return Differences(own, shared.max(axis=1, initial=0.0), float(np.max(shared / eps, initial=0.0)))


@dataclass(frozen=True)
class FirstDifference:
    """Where two optimizers first differ beyond rounding on the same gradients; steps are counted from 1."""

    step: int
    path: str
    index: tuple[int, ...]
    slot: str
    a: float
    b: float

    def __str__(self) -> str:
        where = f"params{self.path}{list(self.index) if self.index else ''}"
        return f"step {self.step}, {where}, {self.slot}: {self.a:.9g} and {self.b:.9g}"


def first_difference(
    a: Path, b: Path, setup: RunSetup, rtol: float, names: Sequence[str] = (*SLOTS, *ROLES)
) -> FirstDifference | None:
    """The first step that differs, and in it the first slot in the order from gradient to parameters; None if equal.

    Slots that cannot pass through zero are sums of positive terms; they are compared relative to their present size.
    Signed slots are compared relative to the scale of their path.
    """
    found: list[tuple[int, int, str]] = []  # step, order of the slot, name
    for order, name in enumerate(names):
        at = np.flatnonzero((_slot_differences(a, b, name) > rtol).any(axis=1))
        found += [(int(at[0]), order, name)] if len(at) else []
    if not found:
        return None
    count, _, slot = min(found)
    worst = int(np.argmax(_slot_differences(a, b, slot)[count]))
    x, y = a.slots[count][slot][worst], b.slots[count][slot][worst]
    return FirstDifference(count + 1, *setup.place(worst), slot, x.item(), y.item())


def _slot_differences(a: Path, b: Path, name: str) -> np.ndarray:
    """The relative differences of one slot, `[steps, n]`; no steps if the slot is not known of both."""
    columns = [[slots[name] for slots in path.slots if name in slots] for path in (a, b)]
    x, y = (np.array(column) for column in columns)
    if len(x) != len(y) or x.shape != y.shape or len(x) != len(a.grads) or x.ndim != 2:
        return np.zeros((0, 1))
    if name in SIGNED:
        first = a.params[:1] if name == "parameters" else np.zeros_like(x[:1])
        return relative_differences(np.vstack([first, x]), np.vstack([first, y]))
    size = np.maximum(np.abs(x), np.abs(y))
    with np.errstate(invalid="ignore"):
        difference = np.where(x == y, 0.0, np.abs(x - y) / np.where(size > 0, size, 1.0))
    return np.where(np.isfinite(difference), difference, np.inf)
