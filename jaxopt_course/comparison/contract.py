"""The clauses of the contract. Each takes a trial and parameters, and returns what it found, or raises what is wrong."""

import io
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_course.comparison.subjects import ROLES, SLOW, relaxed

SCALES = 2.0 ** np.array([-4, 3])  # exact in every dtype
SIXTEEN = (jnp.bfloat16, jnp.float16)
ZEROS = 3000  # steps without a gradient after one of 10: nu at b2 = 0.999 is then 0.05 of what it was
CLOSE = 1e-4  # float32, a few steps


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
        with relaxed():
            return self.opt.init(jax.tree.map(jnp.asarray, params))

    def update(self, grads: Any, state: Any, params: Any, opt: Any = None) -> tuple[Any, Any]:
        """With all that optax's optimizers may ask for: an objective whose gradient here is the one given."""

        def value_fn(new: Any) -> Any:
            moved = jax.tree.map(lambda n, p: (n - p).astype(jnp.float32), new, params)
            slope = jax.tree.map(lambda g: jnp.asarray(g).astype(jnp.float32), grads)
            return optax.tree.vdot(slope, moved) + 0.5 * optax.tree.vdot(moved, moved)

        value = jnp.zeros((), jnp.float32)
        with relaxed(), jax.numpy_rank_promotion("allow"):
            opt = self.opt if opt is None else optax.with_extra_args_support(opt)
            return opt.update(grads, state, params, value=value, grad=grads, value_fn=value_fn)

    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """`update` on arrays: at once where it is quick, compiled where it is not."""
        arrays = [jax.tree.map(jnp.asarray, tree) for tree in (grads, params)]
        began = time.perf_counter()
        updates, new = (self._compiled or self.update)(arrays[0], state, arrays[1])
        jax.block_until_ready(updates)
        if time.perf_counter() - began > 3 * SLOW:
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


def gradients(params: Any, count: int = 3, scale: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(1)

    def draw(leaf: Any) -> np.ndarray:
        return (scale * rng.standard_normal(np.shape(leaf))).astype(np.asarray(leaf).dtype)

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
    need(jax.tree.structure(old) == jax.tree.structure(new), f"{what} changed its structure")


# The clauses


def structure(trial: Trial, params: Any) -> None:
    shapes = jax.eval_shape(trial.init, params)
    updates, state = jax.eval_shape(trial.update, params, shapes, params)
    same_kinds("the state", shapes, state)
    same_kinds("the updates, beside the parameters:", params, updates)

    def scanned(params: Any) -> Any:
        def body(state: Any, _: Any) -> tuple[Any, None]:
            return trial.update(params, state, params)[1], None

        return jax.lax.scan(body, trial.init(params), length=3)[0]

    jax.eval_shape(scanned, params)
    same_kinds("the state", trial.init(params), trial.run(params, gradients(params, 1))[1])


def compiles_once(trial: Trial, params: Any) -> str:
    traces = 0

    @jax.jit
    def step(g: Any, state: Any, w: Any) -> Any:
        nonlocal traces
        traces += 1
        return trial.update(g, state, w)

    state, w = trial.init(params), jax.tree.map(jnp.asarray, params)
    eager_state, found = state, []
    for g in gradients(params):
        updates, state = step(g, state, w)
        found.append(updates)
    need(traces == 1, f"traced {traces} times in 3 steps")
    for g, compiled in zip(gradients(params), found, strict=True):
        updates, eager_state = trial.step(g, eager_state, w)
        off = apart(updates, compiled)
        need(off < CLOSE or not finite(updates), f"compiled and not compiled differ by {off:.1e}")
    return "traced once"


def x64(trial: Trial, params: Any) -> None:
    for on, dtype in ((True, np.float64), (True, np.float32), (False, np.float32)):
        with jax.enable_x64(on):
            own = cast(params, dtype)
            state = trial.init(own)
            updates, new = trial.update(jax.tree.map(jnp.asarray, own), state, jax.tree.map(jnp.asarray, own))
            words = f"with x64 {'on' if on else 'off'} and {np.dtype(dtype)} parameters"
            same_kinds(f"{words}, the updates", own, updates)
            same_kinds(f"{words}, the state", state, new)


def low_precision(trial: Trial, params: Any) -> None:
    for dtype in (np.float32, *SIXTEEN):
        own = cast(params, dtype)
        for size in (0.0, 1e-4, 1.0, 6e4):
            _, state, updates = trial.run(own, [constant(own, size), constant(own, -size)])
            same_kinds(f"{np.dtype(dtype)}: the updates", own, updates[-1])
            need_finite(updates, f"{np.dtype(dtype)}: a gradient of {size:g} gives an update of")


def moments_decay(trial: Trial, params: Any) -> str:
    """In 16 bits as in float32: what one gradient left behind, after many of zero."""
    left = {}
    for dtype in (np.float32, *SIXTEEN):
        own = cast(params, dtype)
        own_arrays, zero = jax.tree.map(jnp.asarray, own), jax.tree.map(jnp.asarray, constant(own, 0.0))
        state = trial.run(own, [constant(own, 10.0)])[1]

        def body(state: Any, _: Any, zero: Any = zero, w: Any = own_arrays) -> tuple[Any, None]:
            return trial.update(zero, state, w)[1], None

        later = jax.jit(lambda state, body=body: jax.lax.scan(body, state, length=ZEROS)[0])(state)
        before, after = (
            [np.abs(np.asarray(leaf, float)).max(initial=0) for leaf in floats(s)] for s in (state, later)
        )
        left[np.dtype(dtype).name] = [a / b if b > 0 else 0.0 for a, b in zip(after, before, strict=True)]
    full = left.pop("float32")
    if not any(left_over < 0.5 for left_over in full):
        raise NotApplicable("nothing that it keeps decays")
    for name, fractions in left.items():
        for kept, right in zip(fractions, full, strict=True):
            need(
                right >= 0.5 or kept < max(1.5 * right, 1e-2),
                f"{name}: a moment stays at {kept:.3g} of its start where float32 leaves {right:.3g}",
            )
    return f"to {min(full):.2g} after {ZEROS} zeros"


def zero_gradient(trial: Trial, params: Any) -> None:
    _, state, updates = trial.run(params, [constant(params, 0.0)] * 3)
    need_finite(updates, "a gradient of zero gives an update of")
    if finite(floats(trial.init(params))):
        need_finite(floats(state), "a gradient of zero leaves in the state")


def extreme_gradients(trial: Trial, params: Any) -> None:
    for name, size in (("huge", 1e15), ("tiny", 1e-30)):
        _, _, updates = trial.run(params, [constant(params, size), constant(params, -size)])
        need_finite(updates, f"a {name} gradient, {size:g}, gives an update of")


def nan_gradient(trial: Trial, params: Any) -> str:
    bad = jax.tree.map(np.array, gradients(params, 1)[0])
    leaf = jax.tree.leaves(bad)[0]
    leaf[(0,) * leaf.ndim] = np.nan
    _, _, (updates,) = trial.run(params, [bad])
    values = numbers(updates)
    if not values.any() and not np.isnan(values).any():
        return "the step is left out"
    need(np.isnan(values[0]), f"a NaN in the gradient becomes an update of {values[0]:g}: it is hidden")
    return "stays in its entry" if not np.isnan(values[1:]).any() else "spreads"


def trees(trial: Trial, params: Any) -> None:
    rng = np.random.default_rng(2)
    vector = rng.standard_normal(3).astype(np.float32)
    odd = {
        "an empty tree": {},
        "a scalar": np.array(0.5, np.float32),
        "None among the leaves": {"a": vector, "b": None},
        "mixed dtypes": {"a": vector, "b": vector.astype(jnp.bfloat16)},
        "nested lists and tuples": [(vector,), {"x": [vector]}],
    }
    for name, tree in odd.items():
        try:
            state = trial.init(tree)
            updates, new = trial.step(tree, state, tree)
        except Exception as problem:
            raise Violation(f"{name}: {type(problem).__name__}: {' '.join(str(problem).split())[:120]}") from problem
        same_kinds(f"{name}: the updates", tree, updates)
        same_kinds(f"{name}: the state", state, new)


def equivariance(trial: Trial, params: Any) -> str:
    """Permuting and flattening, which an elementwise rule does not notice."""
    flat, flat_g = numbers(params).astype(np.float32), [numbers(g).astype(np.float32) for g in gradients(params)]
    order = np.random.default_rng(3).permutation(len(flat))
    whole = trial.run(flat, flat_g)[2]
    permuted = trial.run(flat[order], [g[order] for g in flat_g])[2]
    tree = trial.run(params, gradients(params))[2]
    lost = [
        name
        for name, off in (
            ("permutation", apart([np.asarray(u)[order] for u in whole], permuted)),
            ("flattening", apart(whole, tree)),
        )
        if off > CLOSE
    ]
    if lost:
        raise NotApplicable(f"none under {' and '.join(lost)}: it looks at more than single entries")
    return "under permutation and flattening"


def scaling(trial: Trial, params: Any) -> str:
    """A fingerprint: what becomes of the updates when every gradient is multiplied by c."""
    still = constant(params, 0.0)
    plain = trial.run(still, gradients(params))[2]
    scaled = {c: trial.run(still, gradients(params, scale=c))[2] for c in SCALES.tolist()}
    if all(apart(u, jax.tree.map(lambda x, c=c: c * x, plain)) < 1e-5 for c, u in scaled.items()):
        return "linear"
    worst = max(apart(u, plain) for u in scaled.values())
    if worst < 1e-3:
        return f"invariant to {worst:.0e}"
    return "neither linear nor invariant"


def vmaps(trial: Trial, params: Any) -> None:
    lanes = [jax.tree.map(lambda leaf, k=k: np.asarray(leaf) * np.asarray(k, np.asarray(leaf).dtype), params) for k in (1, 2, -0.5)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    updates, state = jax.vmap(lambda p: trial.update(p, trial.init(p), p))(stack)
    updates, _ = jax.vmap(trial.update)(stack, state, stack)
    for number, lane in enumerate(lanes):
        _, one = trial.step(lane, trial.init(lane), lane)
        alone, _ = trial.step(lane, one, lane)
        off = apart(jax.tree.map(lambda leaf, n=number: leaf[n], updates), alone)
        need(off < CLOSE, f"lane {number} differs from running alone by {off:.1e}")


def traced_hyperparameters(trial: Trial, params: Any) -> str:
    if trial.make is None:
        raise NotApplicable("give a function learning_rate -> optimizer")
    make, w = trial.make, jax.tree.map(jnp.asarray, params)

    @jax.jit
    def traced(rate: Any) -> Any:
        opt = make(rate)
        return trial.update(w, opt.init(w), w, opt)[0]

    for rate in (1e-2, 0.5):
        with relaxed():
            opt = make(rate)
            off = apart(traced(rate), trial.update(w, opt.init(w), w, opt)[0])
        need(off < CLOSE, f"a traced learning rate of {rate} differs from a static one by {off:.1e}")
    return "of the learning rate"


def composition(trial: Trial, params: Any) -> None:
    w, gs = jax.tree.map(jnp.asarray, params), gradients(params, 1)
    g = jax.tree.map(jnp.asarray, gs[0])
    alone = trial.update(g, trial.init(w), w)[0]
    chained = optax.chain(optax.identity(), trial.opt, optax.scale(0.5))
    with relaxed():
        half, _ = trial.update(g, chained.init(w), w, chained)
    off = apart(jax.tree.map(lambda x: 2 * x, half), alone)
    need(off < CLOSE, f"in optax.chain its updates differ by {off:.1e}")
    every_second = optax.MultiSteps(trial.opt, 2)
    with relaxed():
        state = every_second.init(w)
        nothing, state = every_second.update(g, state, w, **_extras(g, w))
        both, state = every_second.update(g, state, w, **_extras(g, w))
    need(not numbers(nothing).any(), "in optax.MultiSteps it moves before all gradients are there")
    off = apart(both, alone)
    need(off < CLOSE, f"in optax.MultiSteps its updates differ by {off:.1e}")


def _extras(grads: Any, params: Any) -> dict[str, Any]:
    def value_fn(new: Any) -> Any:
        moved = jax.tree.map(jnp.subtract, new, params)
        return optax.tree.vdot(grads, moved) + 0.5 * optax.tree.vdot(moved, moved)

    return {"value": jnp.zeros((), jnp.float32), "grad": grads, "value_fn": value_fn}


def last_count(trial: Trial, params: Any) -> str:
    end = np.iinfo(np.int32).max
    state = trial.run(params, gradients(params, 1))[1]
    if not _counts(state):
        raise NotApplicable("it counts no steps")
    late = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(end - 1, jnp.int32) if _is_count(path, leaf) else leaf, state
    )
    _, late, updates = trial.run(params, gradients(params), late)
    need(min(_counts(late)) > 0, f"the step count runs over to {min(_counts(late))}")
    need_finite(updates, f"at step {end} an update is")
    return "saturates"


def _counts(state: Any) -> list[int]:
    return [int(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state) if _is_count(path, leaf)]


def _is_count(path: Any, leaf: Any) -> bool:
    names = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
    return jnp.result_type(leaf) == jnp.int32 and np.ndim(leaf) == 0 and any(n in ROLES["step count"] for n in names)


def differentiable(trial: Trial, params: Any) -> str:
    """The derivative, by the start, of where ten steps lead, when a feature is dead."""
    alive = jax.tree.map(lambda leaf: np.arange(np.size(leaf)).reshape(np.shape(leaf)) % 2 + (np.size(leaf) == 1), params)

    def end(start: Any) -> Any:
        def body(carry: Any, _: Any) -> tuple[Any, None]:
            w, state = carry
            g = jax.tree.map(lambda x, a: x * a.astype(x.dtype), w, alive)
            updates, state = trial.update(g, state, w)
            return (optax.apply_updates(w, updates), state), None

        (w, _), _ = jax.lax.scan(body, (start, trial.init(start)), length=10)
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(w))

    try:
        slope = jax.jit(jax.grad(end))(jax.tree.map(jnp.asarray, params))
    except (ValueError, NotImplementedError) as problem:
        if "while_loop" in str(problem) or "Reverse-mode" in str(problem):
            raise NotApplicable("it has a loop without a reverse mode") from problem
        raise
    need_finite(slope, "the derivative by the start is")
    return "through 10 steps"


def serialisation(trial: Trial, params: Any) -> None:
    _, state, _ = trial.run(params, gradients(params, 2))
    leaves, tree = jax.tree.flatten(state)
    for leaf in leaves:
        need(isinstance(leaf, np.ndarray | jax.Array | int | float | np.generic), f"the state holds a {type(leaf).__name__}, no array")
    raw = [jax.random.key_data(x) if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else x for x in leaves]
    file = io.BytesIO()
    np.savez(file, *[np.asarray(x).astype(np.float32) if np.asarray(x).dtype == jnp.bfloat16 else np.asarray(x) for x in raw])
    file.seek(0)
    with np.load(file, allow_pickle=False) as saved:
        loaded = [jnp.asarray(saved[name]).astype(jnp.result_type(x)) for name, x in zip(saved.files, raw, strict=True)]
    keys = [jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) for x in leaves]
    loaded = [jax.random.wrap_key_data(x) if is_key else x for x, is_key in zip(loaded, keys, strict=True)]
    g = gradients(params, 3)[2]
    a, b = trial.step(g, state, params)[0], trial.step(g, tree.unflatten(loaded), params)[0]
    need(apart(a, b) == 0, "after saving and loading the next update differs")


def purity(trial: Trial, params: Any) -> None:
    """The same in, the same out, and nothing that was given is changed."""
    g = gradients(params, 2)
    given = jax.tree.map(np.array, params)
    state = trial.init(given)
    before = [np.array(x) for x in jax.tree.leaves(state) if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)]
    own_g = jax.tree.map(np.array, g[0])
    with relaxed():
        first, after_first = trial.update(own_g, state, given)
    need(apart(given, params) == 0, "it writes into the parameters")
    need(apart(own_g, g[0]) == 0, "it writes into the gradients")
    trial.step(g[1], after_first, params)
    second, _ = trial.step(g[0], state, params)
    off = apart(first, second)
    need(off < CLOSE or not finite(first), f"called twice with the same state it gives updates that differ by {off:.1e}: it remembers")
    kept = [x for x in jax.tree.leaves(state) if not jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)]
    need(all(np.array_equal(x, y, equal_nan=True) for x, y in zip(before, kept, strict=True)), "it writes into the state it is given")
    again = trial.init(given)
    fresh, _ = trial.step(g[0], again, params)
    need(apart(first, fresh) < CLOSE or not finite(first), "a new state is not as the first one was: it remembers")


def randomness(trial: Trial, params: Any) -> str:
    """Entries that are alike get updates that differ: then there is noise, and it must be new at every step."""
    still = np.zeros(16, np.float32)
    _, _, updates = trial.run(still, [np.ones(16, np.float32)] * 3)
    values = [np.asarray(u, float) for u in updates]
    if all(np.ptp(v) <= CLOSE * max(np.abs(v).max(), 1e-30) for v in values):
        return "none"
    noise = [v - v.mean() for v in values]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        size = np.linalg.norm(noise[one]) * np.linalg.norm(noise[other])
        alike = abs(noise[one] @ noise[other]) / size if size > 0 else 1.0
        need(alike < 0.99, f"the noise of steps {one + 1} and {other + 1} is the same: a key is used twice")
    return "new at every step"


CHECKS: dict[str, Callable[[Trial, Any], str | None]] = {
    "state and updates keep their kind": structure,
    "one compile, equal to none": compiles_once,
    "x64 on and off": x64,
    "16 bits: finite, same dtype": low_precision,
    "16 bits: moments decay": moments_decay,
    "zero gradient": zero_gradient,
    "huge and tiny gradients": extreme_gradients,
    "NaN gradient": nan_gradient,
    "odd trees": trees,
    "equivariance": equivariance,
    "response to scaling": scaling,
    "vmap equals loop": vmaps,
    "traced hyperparameters": traced_hyperparameters,
    "chain and MultiSteps": composition,
    "step count at int32's end": last_count,
    "gradients through steps": differentiable,
    "serialisation": serialisation,
    "purity": purity,
    "randomness": randomness,
}
