"""What every clause of the contract works with: an optimizer on trial, parameters and gradients, ways to compare."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_course.dtypes import standard_promotion


class Violation(Exception):
    """A clause is broken; the message says how."""


class NotApplicable(Exception):
    """A clause has nothing to say about this optimizer; the message says why."""


def need(condition: Any, *words: Any) -> None:
    if not condition:
        raise Violation(" ".join(map(str, words)))


def cases_like(params: Any) -> dict[str, Any]:
    """Parameters from the smallest up; the last is the tree that is asked about."""
    rng = np.random.default_rng(0)
    if params is None:
        params = {"W": rng.standard_normal((3, 4)), "b": rng.standard_normal(3)}
        params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    params = jax.tree.map(lambda leaf: np.asarray(leaf), params)
    one = np.array(0.5, np.float32)
    return {"one number": one, "two numbers": np.array([0.5, -1.5], np.float32), describe(params): params}


def need_finite(tree: Any, words: str) -> None:
    bad = [value for value in numbers(tree) if not np.isfinite(value)]
    need(not bad, f"{words} {bad[0] if bad else ''}")


def describe(params: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shown = [f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more leaves" if len(shown) > 4 else "")


class Trial:
    """An optimizer with what every clause needs of it."""

    def __init__(self, opt: Any, make: Callable[[Any], Any] | None, cases: dict[str, Any]):
        self.make, self.cases = make, cases
        self.opt = optax.with_extra_args_support(opt)
        self._compiled: Callable[..., Any] | None = None

    def init(self, params: Any) -> Any:
        with standard_promotion():
            return self.opt.init(jax.tree.map(jnp.asarray, params))

    def update(self, grads: Any, state: Any, params: Any, opt: Any = None) -> tuple[Any, Any]:
        """With all that optax's optimizers may ask for: an objective whose gradient here is the one given."""

        extras = objective_like(grads, params)
        with standard_promotion():
            opt = self.opt if opt is None else optax.with_extra_args_support(opt)
            return opt.update(grads, state, params, **extras)

    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """`update` on arrays: at once where it is quick, compiled where it is not."""
        arrays = [jax.tree.map(jnp.asarray, tree) for tree in (grads, params)]
        began = time.perf_counter()
        updates, new = (self._compiled or self.update)(arrays[0], state, arrays[1])
        jax.block_until_ready(updates)
        if time.perf_counter() - began > 0.06:
            self._compiled = self._compiled or jax.jit(self.update)
        return updates, new

    def run(self, params: Any, grads: list[Any], state: Any = None) -> tuple[Any, Any, list[Any]]:
        """Parameters and state after the gradients, and every update."""
        state, every = self.init(params) if state is None else state, []
        for g in grads:
            updates, state = self.step(g, state, params)
            params = optax.apply_updates(jax.tree.map(jnp.asarray, params), updates)
            every.append(updates)
        return params, state, every


def objective_like(grads: Any, params: Any) -> dict[str, Any]:
    """What optax's optimizers may ask for: an objective whose value here is 0 and whose gradient is the one given."""

    def value_fn(new: Any) -> Any:
        moved = jax.tree.map(lambda n, p: (n - p).astype(jnp.float32), new, params)
        slope = jax.tree.map(lambda g: jnp.asarray(g).astype(jnp.float32), grads)
        return optax.tree.vdot(slope, moved) + 0.5 * optax.tree.vdot(moved, moved)

    return {"value": jnp.zeros((), jnp.float32), "grad": grads, "value_fn": value_fn}


def gradients(params: Any, count: int = 3, scale: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(1)

    def draw(leaf: Any) -> np.ndarray:
        return np.asarray(scale * rng.standard_normal(np.shape(leaf)), np.asarray(leaf).dtype)

    return [jax.tree.map(draw, params) for _ in range(count)]


def constant(params: Any, value: float) -> Any:
    return jax.tree.map(lambda leaf: np.full(np.shape(leaf), value, np.asarray(leaf).dtype), params)


def cast(params: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)


def numbers(tree: Any) -> np.ndarray:
    leaves = [np.ravel(np.asarray(leaf)).astype(float) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]


def finite(tree: Any) -> bool:
    return bool(np.isfinite(numbers(tree)).all())


def apart(a: Any, b: Any) -> float:
    """The largest difference relative to the largest number."""
    x, y = numbers(a), numbers(b)
    if x.shape != y.shape:
        return np.inf
    size = np.max(np.abs(np.concatenate([x, y])), initial=0.0)
    return float(np.max(np.abs(x - y), initial=0.0) / size) if size > 0 else 0.0


def kinds(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): f"{jnp.result_type(x)}{list(np.shape(x))}" for p, x in leaves}


def same_kinds(what: str, old: Any, new: Any) -> None:
    """Structure, shapes and dtypes."""
    before, after = kinds(old), kinds(new)
    for path in [*before, *after]:
        was, now = before.get(path, "nothing"), after.get(path, "nothing")
        need(was == now, f"{what}{path} was {was} and became {now}")
    structures: list[Any] = [jax.tree.structure(tree) for tree in (old, new)]
    need(structures[0] == structures[1], f"{what} changed its structure")
