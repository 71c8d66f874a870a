"""What JAX, optax and a checkpoint do with an optimizer: clauses of the contract, as in `clauses`."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_course.contract.trial import (
    NotApplicable,
    Trial,
    apart,
    cast,
    finite,
    gradients,
    need,
    need_finite,
    numbers,
    objective_like,
    same_kinds,
)
from jaxopt_course.dtypes import standard_promotion

CLOSE = 1e-4  # float32, a few steps


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
            state = jax.eval_shape(trial.init, own)
            updates, new = jax.eval_shape(trial.update, own, state, own)
            words = f"with x64 {'on' if on else 'off'} and {np.dtype(dtype)} parameters"
            same_kinds(f"{words}, the updates", own, updates)
            same_kinds(f"{words}, the state", state, new)


def vmaps(trial: Trial, params: Any) -> None:
    lanes = [
        jax.tree.map(lambda leaf, k=k: np.asarray(leaf) * np.asarray(k, np.asarray(leaf).dtype), params)
        for k in (1, 2, -0.5)
    ]
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
        with standard_promotion():
            opt = make(rate)
            off = apart(traced(rate), trial.update(w, opt.init(w), w, opt)[0])
        need(off < CLOSE, f"a traced learning rate of {rate} differs from a static one by {off:.1e}")
    return "of the learning rate"


def composition(trial: Trial, params: Any) -> None:
    w, gs = jax.tree.map(jnp.asarray, params), gradients(params, 1)
    g = jax.tree.map(jnp.asarray, gs[0])
    alone = trial.update(g, trial.init(w), w)[0]
    chained = optax.chain(optax.identity(), trial.opt, optax.scale(0.5))
    with standard_promotion():
        half, _ = trial.update(g, chained.init(w), w, chained)
    off = apart(jax.tree.map(lambda x: 2 * x, half), alone)
    need(off < CLOSE, f"in optax.chain its updates differ by {off:.1e}")
    every_second = optax.MultiSteps(trial.opt, 2)
    with standard_promotion():
        state = every_second.init(w)
        nothing, state = every_second.update(g, state, w, **objective_like(g, w))
        both, state = every_second.update(g, state, w, **objective_like(g, w))
    need(not numbers(nothing).any(), "in optax.MultiSteps it moves before all gradients are there")
    off = apart(both, alone)
    need(off < CLOSE, f"in optax.MultiSteps its updates differ by {off:.1e}")


def differentiable(trial: Trial, params: Any) -> str:
    """The derivative, by the start, of where ten steps lead, when a feature is dead."""
    alive = jax.tree.map(
        lambda leaf: np.arange(np.size(leaf)).reshape(np.shape(leaf)) % 2 + (np.size(leaf) == 1), params
    )

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
        need(
            isinstance(leaf, np.ndarray | jax.Array | int | float | np.generic),
            f"the state holds a {type(leaf).__name__}, no array",
        )
    raw = [jax.random.key_data(x) if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else x for x in leaves]
    file = io.BytesIO()
    np.savez(
        file, *[np.asarray(x).astype(np.float32) if np.asarray(x).dtype == jnp.bfloat16 else np.asarray(x) for x in raw]
    )
    file.seek(0)
    with np.load(file, allow_pickle=False) as saved:
        loaded = [jnp.asarray(saved[name]).astype(jnp.result_type(x)) for name, x in zip(saved.files, raw, strict=True)]
    keys = [jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) for x in leaves]
    loaded = [jax.random.wrap_key_data(x) if is_key else x for x, is_key in zip(loaded, keys, strict=True)]
    g = gradients(params, 3)[2]
    a, b = trial.step(g, state, params)[0], trial.step(g, jax.tree.unflatten(tree, loaded), params)[0]
    need(apart(a, b) == 0, "after saving and loading the next update differs")
