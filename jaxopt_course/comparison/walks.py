"""Paths of optimizers and of rules, as rows of numbers."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.comparison.rules import Rule, start, step
from jaxopt_course.comparison.subjects import Subject, relaxed


class Walk(NamedTuple):
    """`params`: `[steps + 1, n]`; `grads`: `[steps, n]`; `slots`: what the state held after each step."""

    params: np.ndarray
    grads: np.ndarray
    slots: list[dict[str, list[np.ndarray]]]


@functools.lru_cache(maxsize=8)
def _compiled_gradient(objective: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.grad(objective))


def gradient_along(objective: Callable[..., Any], batches: Sequence[Any] | None) -> Callable[[Any, int], Any]:
    compiled = _compiled_gradient(objective)
    batches = None if batches is None else list(batches)

    def at(params: Any, count: int) -> Any:
        data = () if batches is None else (batches[count % len(batches)],)
        with relaxed():
            return compiled(jax.tree.map(jnp.asarray, params), *data)

    return at


def walk(subject: Subject, params: Any, num_steps: int, gradient: Callable[[Any, int], Any]) -> Walk:
    state, rows, grads, slots = subject.start(params), [_flat(params)], [], []
    for count in range(num_steps):
        g = jax.tree.map(np.asarray, gradient(params, count))
        params, state, _ = subject.step(params, state, g, count)
        rows.append(_flat(params))
        grads.append(_flat(g))
        slots.append(subject.slots(state))
    return Walk(np.array(rows), np.array(grads), slots)


def check_forgetful(
    name: str, subject: Subject, params: Any, path: Walk, gradient: Callable[[Any, int], Any], rtol: float
) -> None:
    """Raise ValueError if, started again, it takes another first step than it did."""
    if not len(path.grads):
        return
    g = jax.tree.map(np.asarray, gradient(params, 0))
    again = _flat(subject.step(params, subject.start(params), g, 0)[0])
    largest = np.max(np.abs(again), initial=0.0)
    if not np.allclose(again, path.params[1], rtol=0, atol=rtol * largest, equal_nan=True):
        raise ValueError(
            f"{name} remembers earlier runs: started again, its first step is another. Keep what it remembers in a "
            "state, or make it an object that can be copied, or let it forget at step 0"
        )


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(leaf).astype(_wide(leaf)) for leaf in jax.tree.leaves(tree))])


def _wide(leaf: Any) -> Any:
    return np.complex128 if np.iscomplexobj(leaf) else np.float64


def unflat(row: np.ndarray, leaves: Sequence[np.ndarray], tree: Any) -> Any:
    parts = np.split(row, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return jax.tree.unflatten(
        tree, [p.reshape(leaf.shape).astype(leaf.dtype) for p, leaf in zip(parts, leaves, strict=True)]
    )


def differences(a: np.ndarray, b: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """`[steps]`: the largest difference in a leaf relative to its largest parameter, from the first step on."""
    worst = np.zeros(len(a) - 1)
    for first, last in itertools.pairwise(cuts):
        if last > first:
            x, y = a[1:, first:last], b[1:, first:last]
            size = np.maximum(np.abs(x).max(axis=1), np.abs(y).max(axis=1))
            with np.errstate(invalid="ignore"):
                apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y)).max(axis=1)
                worst = np.maximum(worst, np.divide(apart, size, out=np.zeros_like(apart), where=apart != 0))
    return worst


def ulps(a: np.ndarray, b: np.ndarray, leaves: Sequence[np.ndarray], cuts: np.ndarray) -> float:
    """The largest difference in units of the spacing of floats at a leaf's largest parameter."""
    spacing = [float(jnp.finfo(leaf.dtype).eps) for leaf in leaves]
    each = [
        np.nanmax(differences(a[:, i:j], b[:, i:j], np.array([0, j - i])), initial=0.0) / eps
        for i, j, eps in zip(cuts[:-1], cuts[1:], spacing, strict=True)
    ]
    return float(max(each, default=0.0))


def follow(rule: Rule, walk: Walk) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """The path of a rule under the gradients of a walk, from its start, and every slot at every step."""
    w, rows, slots = walk.params[0][None], [walk.params[0]], []
    moments = start(rule, np.zeros_like(w))
    rule = Rule(*(np.array([[v]]) if isinstance(v, str) else v for v in rule))
    constant = not isinstance(rule.learning_rate, tuple)
    rates = (rule.learning_rate,) * len(walk.grads) if constant else rule.learning_rate[rule.rate_count :]
    with np.errstate(all="ignore"):
        for count, g in enumerate(walk.grads):
            update, moments, seen = step(rule, g[None], w, count, rates[count], moments)
            w = w + update
            rows.append(w[0])
            slots.append({name: np.broadcast_to(value, w.shape)[0] for name, value in seen.items()})
    return np.array(rows), slots


def those_that_follow(rules: list[Rule], walk: Walk, cuts: np.ndarray, rtol: float) -> list[Rule]:
    """Those that also lead along the path that was walked."""
    if np.iscomplexobj(walk.params):
        return []
    return [rule for rule in rules if np.max(differences(follow(rule, walk)[0], walk.params, cuts), initial=0) <= rtol]
