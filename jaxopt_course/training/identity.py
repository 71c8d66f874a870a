"""The identity of a run: its settings, its functions, its start and every example of its data."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_course.annotations import AnyOptimizer, Array, Objective, OptState, Params, PyTree
from jaxopt_course.arrays import on_host
from jaxopt_course.training.checks import check_not_traced
from jaxopt_course.training.feed import StepPlan
from jaxopt_course.training.fingerprints import (
    Cancelled,
    constant_bytes,
    fingerprint_arrays,
    fingerprint_function,
    row_ranges,
    trace,
)
from jaxopt_course.training.steps import scalar_and_aux

COMPARED_FIRST_BYTES = 100 * 2**20  # up to this size, a resumed run waits for the hashes before its first step
DATA_BLOCKS = 64  # ranges of examples that are hashed separately


class Identity:
    """The facts that must be the same when a run is resumed. A thread computes the hashes while the run continues.

    `settings`: values that are compared directly, as JSON; `functions`: jaxprs by name; `arrays`: trees of arrays by
    name. `is_small`: whether the data is small enough to wait for its hashes.
    """

    def __init__(self, settings: dict[str, Any], functions: dict[str, Any], arrays: dict[str, PyTree]):
        check_not_traced("train", **{name: jaxpr.consts for name, jaxpr in functions.items()})
        self.settings = settings
        arrays = jax.tree.map(_comparable, arrays)
        sizes = [leaf.nbytes for leaf in jax.tree.leaves(arrays)] + [*map(constant_bytes, functions.values())]
        self.is_small = sum(sizes) <= COMPARED_FIRST_BYTES
        self._cancelled = threading.Event()
        pool = ThreadPoolExecutor(1)
        self._hashed: Future[dict[str, Any]] = pool.submit(self._hash, functions, arrays)
        pool.shutdown(wait=False)

    @property
    def is_known(self) -> bool:
        """Whether everything has been hashed."""
        return self._hashed.done()

    def facts(self) -> dict[str, Any]:
        """Return all facts as JSON; this waits for the hashes."""
        versions = {"jax": jax.__version__, "optax": optax.__version__}
        return {"versions": versions, "settings": self.settings, **self._hashed.result()}

    def cancel(self) -> None:
        """Stop hashing, because the result is no longer needed."""
        self._cancelled.set()

    def _hash(self, functions: dict[str, Any], arrays: dict[str, PyTree]) -> dict[str, Any]:
        try:
            return {
                "functions": {name: fingerprint_function(jaxpr) for name, jaxpr in functions.items()},
                "arrays": {
                    name: fingerprint_arrays(tree, DATA_BLOCKS if name == "data" else 1, cancelled=self._cancelled)
                    for name, tree in arrays.items()
                },
            }
        except Cancelled:
            return {"functions": {}, "arrays": {}}


class RunParts(NamedTuple):
    """The arguments of `train` that determine its numbers. `state` is None if the optimizer's `init` creates it."""

    objective: Objective
    optimizer: AnyOptimizer
    params: Params
    state: OptState | None
    data: PyTree
    plan: StepPlan
    has_aux: bool
    on_nonfinite: str
    has_eval_fn: bool
    probe_every: int | None = None

    def aux_shapes(self) -> PyTree:
        """Return a tree like the aux of one step; None without aux."""
        if not self.has_aux:
            return None
        return jax.eval_shape(self.objective, self.params, _batch_shapes(self.data, self.plan.batch_size))[1]


def run_identity(parts: RunParts) -> Identity:
    """Return the identity of a call of `train`; all functions are traced again, so that changed constants are seen."""
    settings = {
        "key": np.asarray(jax.random.key_data(parts.plan.key)).tolist(),
        "batch_size": parts.plan.batch_size,
        "drop_last": parts.plan.drop_last,
        "has_aux": parts.has_aux,
        "on_nonfinite": parts.on_nonfinite,
        "eval_fn": parts.has_eval_fn,
    }
    if parts.probe_every is not None:
        settings["probe_every"] = parts.probe_every
    arrays = {"params": parts.params, "data": parts.data}
    if parts.state is not None:
        arrays["state"] = parts.state
    return Identity(settings, _trace_parts(parts), arrays)


def _trace_parts(parts: RunParts) -> dict[str, Any]:
    """Trace the objective with its gradient on every batch shape, the optimizer's `update` and, if possible, `init`."""
    shapes = jax.tree.map(_shape_of, parts.params)
    value_and_grad = jax.value_and_grad(
        lambda params, batch: scalar_and_aux("train", parts.objective(params, batch), parts.has_aux), has_aux=True
    )
    plan = parts.plan
    traced = {"objective": trace(value_and_grad, shapes, _batch_shapes(parts.data, plan.batch_size))}
    if (rest := plan.num_examples % plan.batch_size) and not plan.drop_last:
        traced["objective on the last batch"] = trace(value_and_grad, shapes, _batch_shapes(parts.data, rest))
    value = _shape_of(traced["objective"].out_avals[0])
    state = parts.optimizer.init(parts.params) if parts.state is None else parts.state
    traced["optimizer"] = trace(partial(_update, parts.optimizer), shapes, shapes, state, value)
    if parts.state is None:
        traced["optimizer's initial state"] = _trace_init(parts.optimizer, shapes, state)
    return traced


def _update(optimizer: AnyOptimizer, params: Params, grads: PyTree, state: OptState, value: Array) -> PyTree:
    """Take one update. The objective is traced separately; here a bowl replaces the `value_fn` of a line search."""

    def bowl(params: Params) -> Array:
        return sum((jnp.sum((p * jnp.conj(p)).real).astype(value.dtype) for p in jax.tree.leaves(params)), 0 * value)

    update = optax.with_extra_args_support(optimizer).update
    updates, state = update(grads, state, params, value=value, grad=grads, value_fn=bowl)
    return optax.apply_updates(params, updates), state


def _trace_init(optimizer: AnyOptimizer, shapes: PyTree, state: OptState) -> Any:
    try:
        return trace(optimizer.init, shapes)
    except Exception:  # `init` needs concrete values: then the state that it created is compared
        return trace(lambda: state)


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Describe the differences between the facts of two runs; empty if there are none."""
    found = [*setting_differences(theirs["settings"], ours["settings"]), *_layout_differences(theirs, ours)]
    if not found:  # functions traced on other shapes always differ
        found = [*_function_differences(theirs, ours), *_value_differences(theirs, ours)]
    return "; ".join(found)


def setting_differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [
        f"its {name} is {theirs.get(name)}, here it is {ours.get(name)}"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]


def not_compared(facts: dict[str, Any]) -> list[str]:
    """Describe what the facts do not cover."""
    gaps = [
        f"the {name} calls Python ({', '.join(function['opaque'])}), whose code is not compared"
        for name, function in facts["functions"].items()
        if function["opaque"]
    ]
    for name, path, leaf in _leaves(facts["arrays"]):
        if leaf["rows_hashed"] < leaf["rows"]:
            gaps.append(f"{name}{path} is too large to hash: {leaf['rows_hashed']:,} of {leaf['rows']:,} rows were")
    return gaps


def _leaves(arrays: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    return ((name, path, leaf) for name, leaves in arrays.items() for path, leaf in leaves.items())


def _layout_differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    there, here = ({(n, p): leaf for n, p, leaf in _leaves(facts["arrays"])} for facts in (theirs, ours))
    for name, path in dict.fromkeys([*there, *here]):
        kinds = [f"{leaf['dtype']}{leaf['shape']}" if leaf else "absent" for leaf in (
            there.get((name, path)), here.get((name, path)))]  # fmt: skip
        if kinds[0] != kinds[1]:
            yield f"its {name}{path} is {kinds[0]}, here it is {kinds[1]}"


def _value_differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    for name, path, here in _leaves(ours["arrays"]):
        there = theirs["arrays"][name][path]
        if there["rows_hashed"] != here["rows_hashed"]:
            yield f"its {name}{path} was hashed in {there['rows_hashed']:,} rows, here in {here['rows_hashed']:,}"
        elif there["blocks"] != here["blocks"]:
            pairs = zip(there["blocks"], here["blocks"], row_ranges(here["rows"], DATA_BLOCKS), strict=False)
            ranges = [f"{first} to {last - 1}" for a, b, (first, last) in pairs if a != b] if name == "data" else []
            where = f" among the examples {', '.join(ranges[:3])}{', ...' if ranges[3:] else ''}" if ranges else ""
            yield f"its {name}{path} has other values{where}"


def _function_differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    versions = theirs["versions"], ours["versions"]
    traced = ""
    if versions[0] != versions[1]:
        a, b = (", ".join(f"{name} {version}" for name, version in facts.items()) for facts in versions)
        traced = f" (traced with {a}, here with {b}; other versions may trace the same function to other operations)"
    for name in dict.fromkeys([*theirs["functions"], *ours["functions"]]):
        there, here = (facts["functions"].get(name) for facts in (theirs, ours))
        if there is None or here is None:
            yield f"only one of the two has the {name}"
        elif there["hash"] != here["hash"]:
            yield f"its {name} is another one: {_how_functions_differ(there, here)}{traced}"


def _how_functions_differ(there: dict[str, Any], here: dict[str, Any]) -> str:
    numbers = [[n for n in a["numbers"] if n not in b["numbers"]][:6] for a, b in ((there, here), (here, there))]
    a, b = there["operations"], here["operations"]
    counts = [f"{op} {a.get(op, 0)} times, here {b.get(op, 0)}" for op in sorted({*a, *b}) if a.get(op) != b.get(op)]
    kinds = [constant.split()[0] for constant in here["constants"] if constant not in there["constants"]]
    details = []
    if any(numbers):
        details.append(f"numbers {', '.join(numbers[0]) or 'none'}, here {', '.join(numbers[1]) or 'none'}")
    if counts:
        details.append(f"operations {', '.join(counts[:4])}{', ...' if counts[4:] else ''}")
    if kinds:
        details.append(f"other values in the constants {', '.join(dict.fromkeys(kinds))}")
    return "; ".join(details) or "the same operations, arranged otherwise"


def _comparable(leaf: Any) -> Any:
    """Return the leaf as an array; random keys become integer arrays."""
    if jnp.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf if hasattr(leaf, "nbytes") else np.asarray(leaf)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf))


def _batch_shapes(data: PyTree, size: int) -> PyTree:
    def batch(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = on_host(leaf[:1]).dtype if isinstance(leaf, np.ndarray) else leaf.dtype
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), dtype)

    return jax.tree.map(batch, data)
