"""One interface to all kinds of optimizers: optax transformations, torch optimizers and plain functions."""

import copy
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_course.annotations import AnyOptimizer, OptState, Params, PyTree, Updates
from jaxopt_course.comparison.programs import external_state
from jaxopt_course.dtypes import standard_promotion

ROLES = {  # role of a part of a state -> names that libraries give it
    "first moment": ("mu", "m", "exp_avg", "exp_avgs"),
    "second moment": ("nu", "v", "exp_avg_sq", "square_avg", "sum", "sum_of_squares"),
    "velocity": ("trace", "momentum_buffer", "velocity"),
    "step count": ("count", "step"),
}
Slots = dict[str, list[np.ndarray]]


class Stepper(NamedTuple):
    """An optimizer as `start(params) -> state` and `step(params, state, grads, count) -> (params, state, updates)`.

    Arguments and results are trees of NumPy arrays. `updates`: what was added to the parameters, as precisely as it can
    be known; `count`: 0 at the first step. `slots(state)`: the arrays of the state for each of `ROLES`. `traceable`:
    the same optimizer as a transformation that JAX can trace, None if there is none. `code_of()`: the name of the
    library class if the optimizer is one whose rule is known not to change from step to step, else "".
    """

    start: Callable[[Params], OptState]
    step: Callable[[Params, OptState, Updates, int], tuple[Params, OptState, Updates]]
    slots: Callable[[OptState], Slots]
    traceable: AnyOptimizer | None = None
    code_of: Callable[[], str] = lambda: ""


def as_stepper(optimizer: Any) -> Stepper:
    """The `Stepper` of an optax transformation, a function `(params, grads, step) -> params`, or a callable object."""
    if isinstance(optimizer, Stepper):
        return optimizer
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return _transformation(optimizer)
    if callable(optimizer):
        return _function(optimizer)
    raise TypeError(
        "an optimizer is an optax transformation, jc.torch_optimizer(lambda params: torch.optim...(params)), or "
        f"a function (params, grads, step) -> params; got {type(optimizer).__name__}"
    )


def _transformation(optimizer: AnyOptimizer) -> Stepper:
    def apply(params: Params, state: OptState, grads: Updates) -> tuple[Params, OptState, Updates]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    compiled = jax.jit(apply)
    chosen: Callable[..., tuple[Params, OptState, Updates]] | None = None

    def start(params: Params) -> OptState:
        with standard_promotion():
            return optimizer.init(jax.tree.map(jnp.asarray, params))

    def step(params: Params, state: OptState, grads: Updates, count: int) -> tuple[Params, OptState, Updates]:
        nonlocal chosen
        with standard_promotion():
            params, grads = (jax.tree.map(jnp.asarray, tree) for tree in (params, grads))
            if chosen is None:
                chosen = compiled if _can_be_compiled(optimizer, compiled, params, state, grads) else apply
            params, state, updates = chosen(params, state, grads)
            params, updates = (jax.tree.map(np.asarray, tree) for tree in (params, updates))
        return params, state, updates

    return Stepper(start, step, _slots, optimizer)


def _can_be_compiled(optimizer: AnyOptimizer, compiled: Any, *args: PyTree) -> bool:
    """Whether an optimizer can be traced, and tracing changes nothing that it keeps outside its state.

    All steps of an optimizer are compiled or none is: the two differ by rounding, in a schedule by that of float32.
    """
    before = external_state(optimizer.update)
    try:
        compiled.eval_shape(*args)
    except Exception:  # a step that is not compiled succeeds, or raises the same
        return False
    return external_state(optimizer.update) == before


def _function(function: Callable[[Params, Updates, int], Params]) -> Stepper:
    """The `Stepper` of a function; a callable object, which may keep state, is copied at every start."""
    is_plain = isinstance(function, FunctionType)

    def start(_: Params) -> OptState:
        return function if is_plain else copy.deepcopy(function)

    def step(params: Params, state: OptState, grads: Updates, count: int) -> tuple[Params, OptState, Updates]:
        with standard_promotion():
            new = state(jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, grads), count)
        new = jax.tree.map(lambda n, p: np.asarray(n).astype(np.result_type(p)), new, params)
        return new, state, _updates_between(new, params)

    def update(grads: Updates, count: OptState, params: Params | None = None) -> tuple[Updates, OptState]:
        new = function(params, grads, count)
        return jax.tree.map(lambda n, p: n - p, new, params), count + 1

    traceable = optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), update) if is_plain else None
    return Stepper(start, step, lambda _: {}, traceable)


def _updates_between(new: Params, old: Params) -> Updates:
    with np.errstate(invalid="ignore"):
        return jax.tree.map(np.subtract, new, old)


def torch_optimizer(make: Callable[[list[Any]], Any]) -> Stepper:
    """Wrap a torch optimizer for `parity`.

    Args:
      make: builds the optimizer from a list of parameters, such as `lambda w: torch.optim.Adam(w, lr=1e-3)`.

    Returns:
      A `Stepper`.

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

    def tensor(leaf: np.ndarray) -> torch.Tensor:
        leaf = np.asarray(leaf)
        wide = leaf if leaf.dtype in (np.float32, np.float64) else leaf.astype(np.float32)
        return torch.tensor(wide).to(getattr(torch, leaf.dtype.name))

    def array(t: torch.Tensor, like: np.ndarray) -> np.ndarray:
        wide = t.detach().to(torch.float32) if t.dtype == torch.bfloat16 else t.detach()
        return wide.numpy().astype(np.asarray(like).dtype).copy()

    def start(params: Params) -> OptState:
        weights = [tensor(leaf).requires_grad_(True) for leaf in jax.tree.leaves(params)]
        return weights, make(weights)

    def step(params: Params, state: OptState, grads: Updates, count: int) -> tuple[Params, OptState, Updates]:
        weights, optimizer = state
        leaves, structure = jax.tree.flatten(params)
        with torch.no_grad():
            for weight, leaf, g in zip(weights, leaves, jax.tree.leaves(grads), strict=True):
                weight.copy_(tensor(leaf))
                weight.grad = tensor(g).to(weight.dtype)
        optimizer.step()
        new = jax.tree.unflatten(structure, [array(w, leaf) for w, leaf in zip(weights, leaves, strict=True)])
        return new, state, _updates_between(new, params)

    def slots(state: OptState) -> Slots:
        weights, optimizer = state
        found: Slots = {}
        for weight in weights:
            for name, value in optimizer.state.get(weight, {}).items():
                role = _role(name)
                if role and hasattr(value, "detach"):
                    found.setdefault(role, []).append(value.detach().double().numpy().copy())
        return found

    def code_of() -> str:
        made = make([torch.zeros(1, requires_grad=True)])
        kinds = [getattr(torch.optim, name) for name in ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop")]
        hooks = [getattr(made, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post")]
        changes = "step" in vars(made) or any(hooks) or any(group.get("lr_decay") for group in made.param_groups)
        return f"torch.optim.{type(made).__name__}" if type(made) in kinds and not changes else ""

    return Stepper(start, step, slots, None, code_of)


def _role(name: str) -> str | None:
    return next((role for role, names in ROLES.items() if name in names), None)


def _slots(state: PyTree) -> Slots:
    found: Slots = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        roles = [_role(getattr(key, "name", str(getattr(key, "key", "")))) for key in path]
        role = next(filter(None, roles), None)
        if role:
            found.setdefault(role, []).append(np.asarray(leaf))
    return found
