"""One interface to whatever moves parameters: an optax transformation, a torch optimizer, or a plain function."""

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

SLOW = 0.02  # seconds a step may take uncompiled; rules of a few operations are done before a compiler has begun
ROLES = {
    "first moment": ("mu", "m", "exp_avg", "exp_avgs"),
    "second moment": ("nu", "v", "exp_avg_sq", "square_avg", "sum", "sum_of_squares"),
    "velocity": ("trace", "momentum_buffer", "velocity"),
    "step count": ("count", "step"),
}


class Subject(NamedTuple):
    """`start(params) -> state`; `step(params, state, grads, count) -> (params, state, updates)`.

    Trees of NumPy arrays go in and come out; `updates` are what was added, as precisely as can be known; `count` is 0
    at first; `slots(state)` is what the state holds of the roles in `ROLES`, a list of arrays each.
    """

    start: Callable[[Any], Any]
    step: Callable[[Any, Any, Any, int], tuple[Any, Any, Any]]
    slots: Callable[[Any], dict[str, list[np.ndarray]]]


def as_subject(optimizer: Any) -> Subject:
    """Whatever moves parameters, as a `Subject`."""
    if isinstance(optimizer, Subject):
        return optimizer
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return _transformation(optimizer)
    if callable(optimizer):
        return _function(optimizer)
    raise TypeError(
        "an optimizer is an optax transformation, jc.torch_optimizer(lambda params: torch.optim...(params)), or "
        f" a function (params, grads, step) -> params; got {type(optimizer).__name__}"
    )


def relaxed() -> Any:
    """Optax adds integers to floats; whoever forbids that in code of his own can still compare."""
    return jax.numpy_dtype_promotion("standard")


def _transformation(optimizer: Any) -> Subject:
    def apply(params: Any, state: Any, grads: Any) -> tuple[Any, Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    apply_now: Callable[..., tuple[Any, Any, Any]] = apply

    def start(params: Any) -> Any:
        with relaxed():
            return optimizer.init(jax.tree.map(jnp.asarray, params))

    def step(params: Any, state: Any, grads: Any, count: int) -> tuple[Any, Any, Any]:
        nonlocal apply_now
        began = time.perf_counter()
        with relaxed(), jax.numpy_rank_promotion("allow"):
            params, grads = (jax.tree.map(jnp.asarray, tree) for tree in (params, grads))
            params, state, updates = apply_now(params, state, grads)
            params, updates = (jax.tree.map(np.asarray, tree) for tree in (params, updates))
        if count > 0 and time.perf_counter() - began > SLOW:
            apply_now = jax.jit(apply)
        return params, state, updates

    return Subject(start, step, _roles)


def _function(function: Callable[[Any, Any, int], Any]) -> Subject:
    """A function has no state that could be started again; an object that can be called is copied at every start."""

    def start(_: Any) -> Any:
        return function if isinstance(function, type(start)) else copy.deepcopy(function)

    def step(params: Any, state: Any, grads: Any, count: int) -> tuple[Any, Any, Any]:
        with relaxed():
            new = state(jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, grads), count)
        new = jax.tree.map(lambda n, p: np.asarray(n).astype(np.result_type(p)), new, params)
        return new, state, _moved(new, params)

    return Subject(start, step, lambda _: {})


def _moved(new: Any, old: Any) -> Any:
    with np.errstate(invalid="ignore"):
        return jax.tree.map(np.subtract, new, old)


def torch_optimizer(make: Callable[[list[Any]], Any]) -> Subject:
    """A torch optimizer for `parity`; `make` takes the list of parameters, as `lambda w: torch.optim.Adam(w, lr=1e-3)`.

    Example:
      >>> try:
      ...     import torch
      ...     adam = torch_optimizer(lambda params: torch.optim.Adam(params, lr=0.1))
      ...     w = np.array([1.0])
      ...     print(adam.step(w, adam.start(w), np.array([3.0]), 0)[0])
      ... except ImportError:
      ...     print("[0.9]")
      [0.9]
    """
    import torch

    def tensor(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        wide = leaf if leaf.dtype in (np.float32, np.float64) else leaf.astype(np.float32)
        return torch.tensor(wide).to(getattr(torch, leaf.dtype.name))

    def array(t: Any, like: Any) -> np.ndarray:
        wide = t.detach().to(torch.float32) if t.dtype == torch.bfloat16 else t.detach()
        return wide.numpy().astype(np.asarray(like).dtype).copy()

    def start(params: Any) -> Any:
        weights = [tensor(leaf).requires_grad_(True) for leaf in jax.tree.leaves(params)]
        return weights, make(weights)

    def step(params: Any, state: Any, grads: Any, count: int) -> tuple[Any, Any, Any]:
        weights, optimizer = state
        leaves, structure = jax.tree.flatten(params)
        with torch.no_grad():
            for weight, leaf, g in zip(weights, leaves, jax.tree.leaves(grads), strict=True):
                weight.copy_(tensor(leaf))
                weight.grad = tensor(g).to(weight.dtype)
        optimizer.step()
        new = jax.tree.unflatten(structure, [array(w, leaf) for w, leaf in zip(weights, leaves, strict=True)])
        return new, state, _moved(new, params)

    def slots(state: Any) -> dict[str, list[np.ndarray]]:
        weights, optimizer = state
        found: dict[str, list[np.ndarray]] = {}
        for weight in weights:
            for name, value in optimizer.state.get(weight, {}).items():
                role = _role(name)
                if role and hasattr(value, "detach"):
                    found.setdefault(role, []).append(value.detach().double().numpy().copy())
        return found

    return Subject(start, step, slots)


def _role(name: str) -> str | None:
    return next((role for role, names in ROLES.items() if name in names), None)


def _roles(state: Any) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        roles = [_role(getattr(key, "name", str(getattr(key, "key", "")))) for key in path]
        role = next(filter(None, roles), None)
        if role:
            found.setdefault(role, []).append(np.asarray(leaf))
    return found
