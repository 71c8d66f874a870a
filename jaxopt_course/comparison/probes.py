"""Gradients made to tell one convention from another: every coordinate is an experiment of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_course.comparison.subjects import Subject

BIG = 2.0**40  # next to it any epsilon and any initial accumulator is nothing
TINY = 1e-30  # next to any epsilon it is nothing
SIZES = 10.0 ** np.arange(4, -31, -1)
EARLY = 8  # steps in which every switch shows
STRUCTURED = 4  # steps whose gradients are laid out by hand; the others are random

BASE, FLIPS, LATE, DECAYING, DECAYING_TINY, FEELING_TINY = 0, slice(1, 5), 5, 6, 7, 8  # coordinates
CURVE = slice(9, 9 + len(SIZES))


class Probes(NamedTuple):
    grads: np.ndarray  # [steps, coordinates]
    params: np.ndarray  # [coordinates], the same at every step


def make_probes(num_steps: int) -> Probes:
    """Each coordinate is an experiment of its own."""
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
    params[DECAYING], params[DECAYING_TINY] = 1.0, TINY
    params[-7:-1] = [1.0, -1.0, 10.0, -0.1, 30.0, 0.01]
    sizes = np.abs(early).max(axis=0)
    later = (
        sizes * rng.standard_normal((steps - STRUCTURED, len(params))) * 10.0 ** rng.uniform(-1, 0, (1, len(params)))
    )
    return Probes(np.vstack([early, later]), params)


def observe(subject: Subject, probes: Probes, params: Any) -> np.ndarray:
    """The updates `[steps, coordinates]` along the probes.

    On one vector where the optimizer takes it, else dealt out over trees like the user's.
    """
    with jax.enable_x64(True):
        try:
            return _run(subject, probes)
        except Exception:
            leaves, structure = jax.tree.flatten(params)
            sizes = [np.size(leaf) for leaf in leaves]
            count = len(probes.params)
            found = []
            for first in range(0, count, sum(sizes)):
                chosen = np.arange(first, first + sum(sizes)) % count
                cuts = np.cumsum(sizes)[:-1]

                def deal(row: np.ndarray, chosen: Any = chosen, cuts: Any = cuts) -> Any:
                    parts = np.split(row[chosen], cuts)
                    return jax.tree.unflatten(
                        structure, [p.reshape(np.shape(leaf)) for p, leaf in zip(parts, leaves, strict=True)]
                    )

                rows = _run(subject, probes, deal)
                found.append(rows[:, : min(sum(sizes), count - first)])
            return np.hstack(found)


def _run(subject: Subject, probes: Probes, deal: Callable[[np.ndarray], Any] = np.array) -> np.ndarray:
    params, rows = deal(probes.params), []
    state = subject.start(params)
    for count, g in enumerate(probes.grads):
        _, state, updates = subject.step(params, state, deal(g), count)
        rows.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)]).astype(float))
    return np.array(rows)
