"""Clauses of the contract about JAX transformations, optax wrappers and checkpoints; they work as in `numerics`."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_course.annotations import Array, ArrayLike, OptState, Params, Updates
from jaxopt_course.contract.trial import (
    Leaf,
    NotApplicable,
    Trial,
    cast,
    finite,
    gradients,
    is_key,
    numbers,
    relative_difference,
    require,
    require_finite,
    require_same_types,
)
from jaxopt_course.dtypes import standard_promotion

CLOSE = 1e-4  # tolerance for a few steps in float32


def structure(trial: Trial, params: Params) -> None:
    """State and updates keep structure, shapes and dtypes, also under `lax.scan`."""
    shapes = jax.eval_shape(trial.init, params)
    updates, state = jax.eval_shape(trial.update, params, shapes, params)
    require_same_types("the state", shapes, state)
    require_same_types("the updates, beside the parameters:", params, updates)

    def scanned(params: Params) -> OptState:
        def body(state: OptState, _: None) -> tuple[OptState, None]:
            return trial.update(params, state, params)[1], None

        return jax.lax.scan(body, trial.init(params), length=3)[0]

    jax.eval_shape(scanned, params)
    require_same_types("the state", trial.init(params), trial.run(params, gradients(params, 1)).state)


def compiles_once(trial: Trial, params: Params) -> str:
    """The step compiles once for all steps, and the compiled step equals the step that is not compiled."""
    traces = 0

    @jax.jit
    def step(g: Updates, state: OptState, w: Params) -> tuple[Updates, OptState]:
        nonlocal traces
        traces += 1
        return trial.update(g, state, w)

    state, w = trial.init(params), jax.tree.map(jnp.asarray, params)
    eager_state, found = state, []
    for g in gradients(params):
        updates, state = step(g, state, w)
        found.append(updates)
    require(traces == 1, f"traced {traces} times in 3 steps")
    for g, compiled in zip(gradients(params), found, strict=True):
        updates, eager_state = trial.eager(jax.tree.map(jnp.asarray, g), eager_state, w)
        off = relative_difference(updates, compiled)
        require(off < CLOSE or not finite(updates), f"compiled and not compiled differ by {off:.1e}")
    return "traced once"


def x64(trial: Trial, params: Params) -> None:
    """Dtypes are preserved with x64 enabled and disabled."""
    for on, dtype in ((True, np.float64), (True, np.float32), (False, np.float32)):
        with jax.enable_x64(on):
            own = cast(params, dtype)
            state = jax.eval_shape(trial.init, own)
            updates, new = jax.eval_shape(trial.update, own, state, own)
            words = f"with x64 {'on' if on else 'off'} and {np.dtype(dtype)} parameters"
            require_same_types(f"{words}, the updates", own, updates)
            require_same_types(f"{words}, the state", state, new)


def vmaps(trial: Trial, params: Params) -> None:
    """Under `vmap` every lane takes the same steps as alone."""

    def lane_of(factor: float) -> Params:
        return jax.tree.map(lambda leaf: np.asarray(leaf) * np.asarray(factor, np.asarray(leaf).dtype), params)

    lanes = [lane_of(factor) for factor in (1.0, 2.0, -0.5)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    step = jax.jit(jax.vmap(trial.update))
    _, state = step(stack, jax.vmap(trial.init)(stack), stack)
    updates, _ = step(stack, state, stack)
    for number, lane in enumerate(lanes):
        _, one = trial.step(lane, trial.init(lane), lane)
        alone, _ = trial.step(lane, one, lane)
        off = relative_difference(jax.tree.map(lambda leaf, n=number: leaf[n], updates), alone)
        require(off < CLOSE, f"lane {number} differs from running alone by {off:.1e}")


def traced_hyperparameters(trial: Trial, params: Params) -> str:
    """A traced learning rate gives the same updates as a static one."""
    if trial.make is None:
        raise NotApplicable("give a function learning_rate -> optimizer")
    make, w = trial.make, jax.tree.map(jnp.asarray, params)

    @jax.jit
    def traced(rate: Array) -> Updates:
        opt = make(rate)
        return trial.update(w, opt.init(w), w, opt)[0]

    for rate in (1e-2, 0.5):
        with standard_promotion():
            opt = make(rate)
            off = relative_difference(traced(rate), trial.update(w, opt.init(w), w, opt)[0])
        require(off < CLOSE, f"a traced learning rate of {rate} differs from a static one by {off:.1e}")
    return "of the learning rate"


def composition(trial: Trial, params: Params) -> None:
    """In `optax.chain` and `optax.MultiSteps` the optimizer takes the same steps as alone."""
    (g,) = gradients(params, 1)
    alone, _ = trial.step(g, trial.init(params), params)
    chained = Trial(optax.chain(optax.identity(), trial.opt, optax.scale(0.5)), None, trial.cases)
    half, _ = chained.step(g, chained.init(params), params)
    off = relative_difference(jax.tree.map(lambda x: 2 * x, half), alone)
    require(off < CLOSE, f"in optax.chain its updates differ by {off:.1e}")
    multi = optax.MultiSteps(trial.opt, 2)
    every_second = Trial(optax.GradientTransformationExtraArgs(multi.init, multi.update), None, trial.cases)
    nothing, state = every_second.step(g, every_second.init(params), params)
    both, _ = every_second.step(g, state, params)
    require(not numbers(nothing).any(), "in optax.MultiSteps it moves before it has all gradients")
    off = relative_difference(both, alone)
    require(off < CLOSE, f"in optax.MultiSteps its updates differ by {off:.1e}")


def differentiable(trial: Trial, params: Params) -> str:
    """The derivative of the end of ten steps with respect to the start is finite, also if gradient entries are 0."""

    def alive(leaf: ArrayLike) -> np.ndarray:
        return np.asarray(np.arange(np.size(leaf)).reshape(np.shape(leaf)) % 2 + (np.size(leaf) == 1))

    masks = jax.tree.map(alive, params)

    def end(start: Params) -> Array:
        def body(carry: tuple[Params, OptState], _: None) -> tuple[tuple[Params, OptState], None]:
            w, state = carry
            g = jax.tree.map(lambda x, mask: x * mask.astype(x.dtype), w, masks)
            updates, state = trial.update(g, state, w)
            return (optax.apply_updates(w, updates), state), None

        (w, _), _ = jax.lax.scan(body, (start, trial.init(start)), length=10)
        return sum((jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(w)), jnp.zeros((), jnp.float32))

    try:
        slope = jax.jit(jax.grad(end))(jax.tree.map(jnp.asarray, params))
    except (ValueError, NotImplementedError) as problem:
        if "while_loop" in str(problem) or "Reverse-mode" in str(problem):
            raise NotApplicable("it contains a loop that has no reverse-mode derivative") from problem
        raise
    require_finite(slope, "the derivative by the start is")
    return "through 10 steps"


def serialisation(trial: Trial, params: Params) -> None:
    """A state that was saved as arrays and loaded again gives the same step."""
    state = trial.run(params, gradients(params, 2)).state
    leaves, structure = jax.tree.flatten(state)
    for leaf in leaves:
        is_array = isinstance(leaf, np.ndarray | jax.Array | int | float | np.generic)
        require(is_array, f"the state holds a {type(leaf).__name__}, which is not an array")
    file = io.BytesIO()
    np.savez(file, *[_saved(leaf) for leaf in leaves])
    file.seek(0)
    with np.load(file, allow_pickle=False) as saved:
        loaded = [_loaded(saved[name], leaf) for name, leaf in zip(saved.files, leaves, strict=True)]
    g = gradients(params, 3)[2]
    a, b = trial.step(g, state, params)[0], trial.step(g, jax.tree.unflatten(structure, loaded), params)[0]
    require(relative_difference(a, b) == 0, "after saving and loading the next update differs")


def _saved(leaf: Leaf) -> np.ndarray:
    """A leaf as an array of a dtype that NumPy files support."""
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def _loaded(array: np.ndarray, like: Leaf) -> Array:
    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array))
    return jnp.asarray(array).astype(jnp.result_type(like))
