"""Clauses of the contract about numbers: each returns what it found, or raises `Violation` or `NotApplicable`."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import OptState, Params
from jaxopt_course.contract.trial import (
    Leaf,
    NotApplicable,
    Trial,
    Violation,
    cast,
    constant,
    finite,
    floats,
    gradients,
    is_key,
    numbers,
    relative_difference,
    require,
    require_finite,
    require_same_types,
)

SCALES = 2.0 ** np.array([-4, 3])  # exact in every dtype
HALF_PRECISION = (jnp.bfloat16, jnp.float16)
ZEROS = 3000  # steps of zero gradient after one gradient of 10: with b2 = 0.999, nu decays to 0.05 of its value
CLOSE = 1e-4  # tolerance for a few steps in float32
NOISE_ENTRIES = 12  # number of entries that suffices to detect noise
STEPS_TO_COUNT = 4  # number of steps that suffices to detect a counter


def low_precision(trial: Trial, params: Params) -> None:
    """In 32 and 16 bits, updates are finite and have the dtype of the parameters for gradients of every size."""
    for dtype in (np.float32, *HALF_PRECISION):
        own = cast(params, dtype)
        for size in (0.0, 1e-4, 1.0, 6e4):
            updates = trial.run(own, [constant(own, size), constant(own, -size)]).updates
            require_same_types(f"{np.dtype(dtype)}: the updates", own, updates[-1])
            require_finite(updates, f"{np.dtype(dtype)}: a gradient of {size:g} gives an update of")


def moments_decay(trial: Trial, params: Params) -> str:
    """In 16 bits, moments decay as in float32 after one gradient and many gradients of zero."""
    left = {}
    for dtype in (np.float32, *HALF_PRECISION):
        own = cast(params, dtype)
        state = trial.run(own, [constant(own, 10.0)]).state
        later = trial.repeat(constant(own, 0.0), state, own, ZEROS)[1]
        before, after = ([np.abs(np.asarray(leaf, float)).max(initial=0) for leaf in floats(s)] for s in (state, later))
        left[np.dtype(dtype).name] = [a / b if b > 0 else 0.0 for a, b in zip(after, before, strict=True)]
    full = left.pop("float32")
    if not any(left_over < 0.5 for left_over in full):
        raise NotApplicable("it has no state that decays")
    for name, fractions in left.items():
        for kept, right in zip(fractions, full, strict=True):
            require(
                right >= 0.5 or kept < max(1.5 * right, 1e-2),
                f"{name}: a moment stays at {kept:.3g} of its start where float32 leaves {right:.3g}",
            )
    return f"to {min(full):.2g} after {ZEROS} zeros"


def zero_gradient(trial: Trial, params: Params) -> None:
    """Gradients of zero leave updates and state finite."""
    _, state, updates = trial.run(params, [constant(params, 0.0)] * 3)
    require_finite(updates, "a gradient of zero gives an update of")
    if finite(floats(trial.init(params))):
        require_finite(floats(state), "a gradient of zero leaves in the state")


def extreme_gradients(trial: Trial, params: Params) -> None:
    """Very large and very small gradients leave updates finite."""
    for name, size in (("huge", 1e15), ("tiny", 1e-30)):
        _, _, updates = trial.run(params, [constant(params, size), constant(params, -size)])
        require_finite(updates, f"a {name} gradient, {size:g}, gives an update of")


def nan_gradient(trial: Trial, params: Params) -> str:
    """A NaN in the gradient gives a NaN in the update, or the whole step is skipped."""
    bad = jax.tree.map(np.array, gradients(params, 1)[0])
    leaf = jax.tree.leaves(bad)[0]
    leaf[(0,) * leaf.ndim] = np.nan
    _, _, (updates,) = trial.run(params, [bad])
    values = numbers(updates)
    if not values.any() and not np.isnan(values).any():
        return "the step is left out"
    require(np.isnan(values[0]), f"a NaN in the gradient becomes an update of {values[0]:g}: it is hidden")
    return "stays in its entry" if not np.isnan(values[1:]).any() else "spreads"


def trees(trial: Trial, params: Params) -> None:
    """Empty, scalar, nested and mixed-dtype trees are accepted; updates and state keep their structure and dtype."""
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
            state = jax.eval_shape(trial.init, tree)
            updates, new = jax.eval_shape(trial.update, tree, state, tree)
        except Exception as problem:
            raise Violation(f"{name}: {type(problem).__name__}: {' '.join(str(problem).split())[:120]}") from problem
        require_same_types(f"{name}: the updates", tree, updates)
        require_same_types(f"{name}: the state", state, new)


def equivariance(trial: Trial, params: Params) -> str:
    """Permuting or flattening the parameters permutes or flattens the updates, as for every elementwise rule."""
    flat, flat_g = numbers(params).astype(np.float32), [numbers(g).astype(np.float32) for g in gradients(params)]
    order = np.random.default_rng(3).permutation(len(flat))
    whole = trial.run(flat, flat_g).updates
    permuted = trial.run(flat[order], [g[order] for g in flat_g]).updates
    tree = trial.run(params, gradients(params)).updates
    lost = [
        name
        for name, off in (
            ("permutation", relative_difference([np.asarray(u)[order] for u in whole], permuted)),
            ("flattening", relative_difference(whole, tree)),
        )
        if off > CLOSE
    ]
    if lost:
        raise NotApplicable(f"none under {' and '.join(lost)}: an entry's update depends on other entries")
    return "under permutation and flattening"


def scaling(trial: Trial, params: Params) -> str:
    """The response of the updates if every gradient is multiplied by c, which characterizes the rule."""
    still = constant(params, 0.0)
    plain = trial.run(still, gradients(params)).updates
    scaled = {c: trial.run(still, gradients(params, scale=c)).updates for c in SCALES.tolist()}
    if all(relative_difference(u, jax.tree.map(lambda x, c=c: c * x, plain)) < 1e-5 for c, u in scaled.items()):
        return "linear"
    worst = max(relative_difference(u, plain) for u in scaled.values())
    if worst < 1e-3:
        return f"invariant to {worst:.0e}"
    return "neither linear nor invariant"


def last_count(trial: Trial, params: Params) -> str:
    """If every counter of the state is set one step before the end of its dtype, it saturates and does not overflow."""
    states = [trial.init(params)]
    for g in gradients(params, STEPS_TO_COUNT):
        states.append(trial.step(g, states[-1], params)[1])
    places = [place for place in rising_by_one(states) if _still_counts(trial, params, states[-1], place)]
    if not places:
        raise NotApplicable("it counts no steps")
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(states[-1])]
    end = [_largest(leaf) for leaf in jax.tree.leaves(states[-1])]
    state = states[-1]
    for place in places:
        state = with_counter(state, place, end[place] - 1)
    _, after, updates = trial.run(params, gradients(params), state)
    for place in places:
        value = int(np.min(np.asarray(jax.tree.leaves(after)[place])))
        require(value >= end[place] - 1, f"the counter state{names[place]} runs over to {value} after {end[place]}")
    require_finite(updates, f"at step {end[places[0]]} an update is")
    return "saturates"


def rising_by_one(states: list[OptState]) -> list[int]:
    """The integer leaves that rise by one from every state to the next.

    Counters are detected by their values, because a counter may have any name, or none if it is in a tuple or is the
    whole state.
    """

    def rises(leaves: tuple[Leaf, ...]) -> bool:
        if not np.size(leaves[0]) or not all(jnp.issubdtype(jnp.result_type(x), jnp.integer) for x in leaves):
            return False
        return bool(np.all(np.diff([np.asarray(x).astype(object) for x in leaves], axis=0) == 1))

    columns = zip(*(jax.tree.leaves(state) for state in states), strict=True)
    return [place for place, leaves in enumerate(columns) if rises(leaves)]


def _still_counts(trial: Trial, params: Params, state: OptState, place: int) -> bool:
    """Whether the leaf also rises by one from a larger count, unlike the number of stored pairs of L-BFGS."""
    later = min(1000, _largest(jax.tree.leaves(state)[place]) // 2)
    new = trial.step(gradients(params, 1)[0], with_counter(state, place, later), params)[1]
    return bool(np.all(np.asarray(jax.tree.leaves(new)[place]) == later + 1))


def with_counter(state: OptState, place: int, value: int) -> OptState:
    """The state with one of its leaves, a counter, set to another value."""
    leaves, structure = jax.tree.flatten(state)
    leaves[place] = jnp.full(np.shape(leaves[place]), value, jnp.result_type(leaves[place]))
    return jax.tree.unflatten(structure, leaves)


def _largest(leaf: Leaf) -> int:
    dtype = jnp.result_type(leaf)
    return int(jnp.iinfo(dtype).max) if jnp.issubdtype(dtype, jnp.integer) else 0


def purity(trial: Trial, params: Params) -> None:
    """Equal inputs give equal outputs, and no input is changed."""
    g = gradients(params, 2)
    given, own_g = jax.tree.map(np.array, params), jax.tree.map(np.array, g[0])
    state = trial.init(given)
    before = _copies(state)
    first, after_first = trial.eager(own_g, state, given)
    require(relative_difference(given, params) == 0, "it writes into the parameters")
    require(relative_difference(own_g, g[0]) == 0, "it writes into the gradients")
    trial.eager(g[1], after_first, params)
    second, _ = trial.eager(g[0], state, params)
    off = relative_difference(first, second)
    require(
        off < CLOSE or not finite(first),
        f"called twice with the same state it gives updates that differ by {off:.1e}: it remembers",
    )
    kept = zip(before, _copies(state), strict=True)
    require(all(np.array_equal(x, y, equal_nan=True) for x, y in kept), "it writes into the state it is given")
    fresh, _ = trial.eager(g[0], trial.init(given), params)
    require(
        relative_difference(first, fresh) < CLOSE or not finite(first),
        "a new state is not as the first one was: it remembers",
    )


def _copies(state: OptState) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(state) if not is_key(leaf)]


def randomness(trial: Trial, params: Params) -> str:
    """If equal entries get different updates, the rule has noise, and the noise must be new at every step."""
    size = max(numbers(params).size, NOISE_ENTRIES)
    updates = trial.run(np.zeros(size, np.float32), [np.ones(size, np.float32)] * 3).updates
    values = [np.asarray(u, float) for u in updates]
    if all(np.ptp(v) <= CLOSE * max(np.abs(v).max(), 1e-30) for v in values):
        return "none"
    noise = [v - v.mean() for v in values]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        length = np.linalg.norm(noise[one]) * np.linalg.norm(noise[other])
        alike = abs(noise[one] @ noise[other]) / length if length > 0 else 1.0
        require(alike < 0.99, f"the noise of steps {one + 1} and {other + 1} is the same: a key is used twice")
    return "new at every step"
