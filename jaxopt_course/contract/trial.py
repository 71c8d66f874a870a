"""Tools for the clauses of the contract: the optimizer under test, parameters and gradients, comparisons."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from jaxopt_course.annotations import AnyOptimizer, Array, ArrayLike, Optimizer, OptState, Params, PyTree, Updates
from jaxopt_course.dtypes import standard_promotion

Leaf: TypeAlias = ArrayLike | float  # of a state
Factory: TypeAlias = Callable[[Any], AnyOptimizer]  # of a learning rate
LOOPS = {"while", "scan", "cond"}  # primitives that are compiled again at every call outside `jit`


class Violation(Exception):
    """The optimizer violates a clause; the message states how."""


class NotApplicable(Exception):
    """A clause does not apply to this optimizer; the message states why."""


class Run(NamedTuple):
    """The end of a run of an optimizer; `updates` holds one tree for each step."""

    params: Params
    state: OptState
    updates: list[Updates]


class Trial:
    """An optimizer under test; `make` is the function that made it, or None; `cases` are parameters by description."""

    def __init__(self, opt: AnyOptimizer, make: Factory | None, cases: dict[str, Params]):
        self.make, self.cases = make, cases
        self.opt: Optimizer = optax.with_extra_args_support(opt)
        self._repeated = jax.jit(self._repeat)

    def init(self, params: Params) -> OptState:
        with standard_promotion():
            return self.opt.init(jax.tree.map(jnp.asarray, params))

    def update(
        self, grads: Updates, state: OptState, params: Params, opt: AnyOptimizer | None = None
    ) -> tuple[Updates, OptState]:
        """Call `update` with the extra arguments of optax, for an objective whose gradient at `params` is `grads`."""
        extras = objective_like(grads, params)
        with standard_promotion():
            chosen = self.opt if opt is None else optax.with_extra_args_support(opt)
            return chosen.update(grads, state, params, **extras)

    @functools.cached_property
    def has_loops(self) -> bool:
        """Whether the optimizer contains loops, such as a line search; its steps are then compiled for all clauses."""
        try:
            w = next(iter(self.cases.values()))
            program = jax.make_jaxpr(self.update)(w, self.init(w), w)
        except Exception:  # the clauses will report the error
            return False
        return any(name in LOOPS for name in _primitives(program.jaxpr))

    def eager(self, grads: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        """`update` without compiling; loops are run by Python too."""
        with jax.disable_jit(self.has_loops):
            return self.update(grads, state, params)

    def step(self, grads: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        """`update` on arrays: compiled if the optimizer has loops, else not."""
        return self.repeat(grads, state, params, 1) if self.has_loops else self.update(*_arrays(grads, state, params))

    def repeat(self, grads: Updates, state: OptState, params: Params, times: int) -> tuple[Updates, OptState]:
        """The last update and the state after `times` steps with the same gradient and parameters."""
        grads, state, params = _arrays(grads, state, params)
        return self._repeated(grads, state, params, jnp.asarray(times, jnp.int32))

    def _repeat(self, grads: Updates, state: OptState, params: Params, times: Array) -> tuple[Updates, OptState]:
        shapes = jax.eval_shape(self.update, grads, state, params)[0]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def body(_: Array, carry: tuple[Updates, OptState]) -> tuple[Updates, OptState]:
            return self.update(grads, carry[1], params)

        return jax.lax.fori_loop(0, times, body, (nothing, state))

    def run(self, params: Params, grads: Sequence[Updates], state: OptState | None = None) -> Run:
        """Take one step for each gradient."""
        state, updates = self.init(params) if state is None else state, []
        for g in grads:
            found, state = self.step(g, state, params)
            params = optax.apply_updates(jax.tree.map(jnp.asarray, params), found)
            updates.append(found)
        return Run(params, state, updates)


def _arrays(grads: Updates, state: OptState, params: Params) -> tuple[Updates, OptState, Params]:
    return jax.tree.map(jnp.asarray, grads), state, jax.tree.map(jnp.asarray, params)


def _primitives(program: Any) -> Iterator[str]:
    for equation in program.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from _primitives(inner)


def objective_like(grads: Updates, params: Params) -> dict[str, Any]:
    """Extra arguments of optax for an objective whose value at `params` is 0 and whose gradient there is `grads`."""

    def value_fn(new: Params) -> Array:
        moved = jax.tree.map(lambda n, p: (n - p).astype(jnp.float32), new, params)
        slope = jax.tree.map(lambda g: jnp.asarray(g).astype(jnp.float32), grads)
        return optax.tree.vdot(slope, moved) + 0.5 * optax.tree.vdot(moved, moved)

    return {"value": jnp.zeros((), jnp.float32), "grad": grads, "value_fn": value_fn}


# Parameters and gradients


def cases_like(params: Params | None) -> dict[str, Params]:
    """Parameters of increasing size by description; the last is `params`."""
    rng = np.random.default_rng(0)
    if params is None:
        params = {"W": rng.standard_normal((3, 4)), "b": rng.standard_normal(3)}
        params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    params = jax.tree.map(np.asarray, params)
    one = np.array(0.5, np.float32)
    return {"one number": one, "two numbers": np.array([0.5, -1.5], np.float32), describe(params): params}


def describe(params: Params) -> str:
    """The first leaves of a tree: path, dtype and shape."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shown = [f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more leaves" if len(shown) > 4 else "")


def gradients(params: Params, count: int = 3, scale: float = 1.0) -> list[Updates]:
    """Random gradients for `count` steps, the same at every call."""
    rng = np.random.default_rng(1)

    def draw(leaf: ArrayLike) -> np.ndarray:
        return np.asarray(scale * rng.standard_normal(np.shape(leaf)), np.asarray(leaf).dtype)

    return [jax.tree.map(draw, params) for _ in range(count)]


def constant(params: Params, value: float) -> Updates:
    """A tree like the parameters with the same number in every entry."""
    return jax.tree.map(lambda leaf: np.full(np.shape(leaf), value, np.asarray(leaf).dtype), params)


def cast(params: Params, dtype: DTypeLike) -> Params:
    """The parameters in another dtype."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)


# Comparing


def require(condition: object, *words: object) -> None:
    """Raise `Violation` unless the condition holds."""
    if not condition:
        raise Violation(" ".join(map(str, words)))


def require_finite(tree: PyTree, words: str) -> None:
    """Raise `Violation` with the first number that is not finite, if there is one."""
    bad = [value for value in numbers(tree) if not np.isfinite(value)]
    require(not bad, f"{words} {bad[0] if bad else ''}")


def numbers(tree: PyTree) -> np.ndarray:
    """All entries of all leaves, in float64."""
    leaves = [np.ravel(np.asarray(leaf)).astype(float) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def floats(tree: PyTree) -> list[Leaf]:
    """The leaves that are floating point."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]


def is_key(leaf: Leaf) -> bool:
    """Whether a leaf is a random key, which array functions do not accept."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key))


def finite(tree: PyTree) -> bool:
    """Whether every entry is finite."""
    return bool(np.isfinite(numbers(tree)).all())


def relative_difference(a: PyTree, b: PyTree) -> float:
    """The largest absolute difference of two trees, relative to their largest absolute entry."""
    x, y = numbers(a), numbers(b)
    if x.shape != y.shape:
        return np.inf
    size = np.max(np.abs(np.concatenate([x, y])), initial=0.0)
    return float(np.max(np.abs(x - y), initial=0.0) / size) if size > 0 else 0.0


def require_same_types(what: str, old: PyTree, new: PyTree) -> None:
    """Raise `Violation` unless structure, shapes and dtypes are the same."""
    before, after = _types(old), _types(new)
    for path in [*before, *after]:
        was, now = before.get(path, "nothing"), after.get(path, "nothing")
        require(was == now, f"{what}{path} was {was} and became {now}")
    structures: list[object] = [jax.tree.structure(tree) for tree in (old, new)]
    require(structures[0] == structures[1], f"{what} changed its structure")


def _types(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): f"{jnp.result_type(x)}{list(np.shape(x))}" for p, x in leaves}
