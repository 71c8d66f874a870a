"""Two optimizers in lock step: where they part, how the difference grows, and which convention is to blame."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.comparison.identify import description_length, identify
from jaxopt_course.comparison.parity_report import Cause, ParityReport, Parting
from jaxopt_course.comparison.rules import GROUPS, SLOTS, Rule, start, step
from jaxopt_course.comparison.subjects import ROLES, Subject, as_subject, relaxed
from jaxopt_course.dtypes import check_floating

RTOL = {8: 1e-12, 4: 5e-6, 2: 0.1}  # by bytes of a parameter: what 50 steps of rounding may come to
SAME = 1e-9  # hyperparameters that are told apart no better are the same


class Walk(NamedTuple):
    """`params`: `[steps + 1, n]`; `grads`: `[steps, n]`; `slots`: what the state held after each step."""

    params: np.ndarray
    grads: np.ndarray
    slots: list[dict[str, list[np.ndarray]]]


def parity(
    opt_a: Any,
    opt_b: Any,
    objective: Callable[..., Any],
    params: Any,
    batches: Sequence[Any] | None = None,
    *,
    num_steps: int = 50,
    rtol: float | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> ParityReport:
    r"""Where two optimizers part beyond rounding, and which of the known conventions removes the difference.

    Both run (a) each on its own path $w^{(i)}_{t+1} = w^{(i)}_t + u^{(i)}(\nabla f(w^{(i)}_t))$, and (b) both on the
    gradients along the first one's path. The difference at a step is $\max |a - b|$ in a leaf, relative to the largest
    parameter there. Apart from that, each is shown gradients made to tell one convention from another, in float64, and
    what it does is matched to rounding with every combination of the known conventions. The cause is the least set of
    conventions in which a match of one differs from a match of the other; it is certain if there is one such set only,
    and if the two matches also follow the two paths.

    Args:
      opt_a: an optax transformation, a `torch_optimizer`, or a function `(params, grads, step) -> params`, `step` 0 at
        first. An object that can be called is copied before it is run; a function must not remember earlier calls,
        unless it forgets them at step 0.
      opt_b: another.
      objective: `f(params)`, or `f(params, batch)` with batches; a scalar.
      params: where both start, floating point.
      batches: one for each step, from the first again when they are spent.
      num_steps: steps of each.
      rtol: what passes for rounding; by default 1e-12 in float64, 5e-6 in float32, 0.1 in 16 bits.
      names: what to call them.

    Returns:
      A `ParityReport`; print it.

    Raises:
      TypeError: what is no optimizer, parameters that are not floating point.

    Example:
      >>> import optax
      >>> f = lambda w: jnp.sum(jnp.array([1.0, 1e-3, 1e-6]) * w**2)
      >>> report = parity(optax.adam(1e-2), optax.adam(1e-2, eps=1e-6), f, jnp.ones(3))
      >>> print(report.verdict, *report.causes)
      DIFFERENT epsilon: 1e-08 in a, 1e-06 in b

    Source: the table of conventions, `jc.conventions`.
    """
    check_floating(params)
    a, b = as_subject(opt_a), as_subject(opt_b)
    params = jax.tree.map(np.asarray, params)
    leaves = jax.tree.leaves(params)
    widths = [leaf.dtype.itemsize for leaf in leaves]
    rtol = RTOL[min(widths, default=8)] if rtol is None else rtol
    gradient = _gradient(objective, batches)
    walk_a = _walk(a, params, num_steps, gradient)
    own_b = _walk(b, params, num_steps, gradient)
    tree = jax.tree.structure(params)
    walk_b = _walk(b, params, num_steps, lambda _, count: _unflat(walk_a.grads[count], leaves, tree))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    cuts = np.cumsum([0, *(leaf.size for leaf in leaves)])

    rules_a = identify(a, params, num_steps)
    rules_b = identify(b, params, num_steps, near=rules_a[0] if rules_a else None)
    if rules_b and not rules_a:
        rules_a = identify(a, params, num_steps, near=rules_b[0])
    rules_a, rules_b = (_followed(r, w, cuts, rtol) for r, w in ((rules_a, walk_a), (rules_b, walk_b)))
    shared = differences(walk_a.params, walk_b.params, cuts)
    own = differences(walk_a.params, own_b.params, cuts)
    parted = bool(np.nanmax(shared, initial=0.0) > rtol or not np.isfinite(shared).all())
    causes, pair = _causes(rules_a, rules_b, names)
    if not causes and parted and min(widths, default=8) < 4:
        causes = _sixteen_bits(a, b, params, names)
    removed = differences(_follow(pair[1], walk_a)[0], walk_b.params, cuts) if pair else None
    return ParityReport(
        names=names,
        num_steps=num_steps,
        dtype=", ".join(sorted({str(leaf.dtype) for leaf in leaves})),
        rtol=rtol,
        own=own,
        shared=shared,
        ulps=_ulps(walk_a.params, walk_b.params, leaves, cuts),
        parting=_parting(walk_a, walk_b, pair, leaves, paths, cuts, rtol) if parted else None,
        causes=causes,
        rules=(rules_a[0] if rules_a else None, rules_b[0] if rules_b else None) if not pair else pair,
        identified=(bool(rules_a), bool(rules_b)),
        removed=removed,
    )


@functools.lru_cache(maxsize=8)
def _compiled_gradient(objective: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(jax.grad(objective))


def _gradient(objective: Callable[..., Any], batches: Sequence[Any] | None) -> Callable[[Any, int], Any]:
    compiled = _compiled_gradient(objective)
    batches = None if batches is None else list(batches)

    def at(params: Any, count: int) -> Any:
        data = () if batches is None else (batches[count % len(batches)],)
        with relaxed():
            return compiled(jax.tree.map(jnp.asarray, params), *data)

    return at


def _walk(subject: Subject, params: Any, num_steps: int, gradient: Callable[[Any, int], Any]) -> Walk:
    state, rows, grads, slots = subject.start(params), [_flat(params)], [], []
    for count in range(num_steps):
        g = jax.tree.map(np.asarray, gradient(params, count))
        params, state, _ = subject.step(params, state, g, count)
        rows.append(_flat(params))
        grads.append(_flat(g))
        slots.append(subject.slots(state))
    return Walk(np.array(rows), np.array(grads), slots)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(leaf).astype(_wide(leaf)) for leaf in jax.tree.leaves(tree))])


def _wide(leaf: Any) -> Any:
    return np.complex128 if np.iscomplexobj(leaf) else np.float64


def _unflat(row: np.ndarray, leaves: Sequence[np.ndarray], tree: Any) -> Any:
    parts = np.split(row, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return tree.unflatten([p.reshape(leaf.shape).astype(leaf.dtype) for p, leaf in zip(parts, leaves, strict=True)])


def differences(a: np.ndarray, b: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """`[steps]`: the largest difference in a leaf relative to its largest parameter, from the first step on."""
    worst = np.zeros(len(a) - 1)
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        if last > first:
            x, y = a[1:, first:last], b[1:, first:last]
            size = np.maximum(np.abs(x).max(axis=1), np.abs(y).max(axis=1))
            apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y)).max(axis=1)
            worst = np.maximum(worst, np.divide(apart, size, out=np.zeros_like(apart), where=apart != 0))
    return worst


def _ulps(a: np.ndarray, b: np.ndarray, leaves: Sequence[np.ndarray], cuts: np.ndarray) -> float:
    """The largest difference in units of the spacing of floats at a leaf's largest parameter."""
    spacing = [float(jnp.finfo(leaf.dtype).eps) for leaf in leaves]
    each = [
        np.nanmax(differences(a[:, i:j], b[:, i:j], np.array([0, j - i])), initial=0.0) / eps
        for i, j, eps in zip(cuts[:-1], cuts[1:], spacing, strict=True)
    ]
    return float(max(each, default=0.0))


# Causes


def _follow(rule: Rule, walk: Walk) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """The path of a rule under the gradients of a walk, from its start, and every slot at every step."""
    w, rows, slots = walk.params[0][None], [walk.params[0]], []
    moments = start(rule, np.zeros_like(w))
    rule = Rule(*(np.array([[v]]) if isinstance(v, str) else v for v in rule))
    constant = not isinstance(rule.learning_rate, tuple)
    rates = (rule.learning_rate,) * len(walk.grads) if constant else rule.learning_rate[rule.rate_count :]
    with np.errstate(all="ignore"):
        for count, g in enumerate(walk.grads):
            update, moments, seen = step(rule, g[None], w, count, rates[count], moments)
            w = w + update
            rows.append(w[0])
            slots.append({name: np.broadcast_to(value, w.shape)[0] for name, value in seen.items()})
    return np.array(rows), slots


def _followed(rules: list[Rule], walk: Walk, cuts: np.ndarray, rtol: float) -> list[Rule]:
    """Those that also lead along the path that was walked."""
    if np.iscomplexobj(walk.params):
        return []
    return [rule for rule in rules if np.max(differences(_follow(rule, walk)[0], walk.params, cuts), initial=0) <= rtol]


def differing(a: Rule, b: Rule) -> tuple[str, ...]:
    """The groups in which two rules differ by more than can be told apart."""

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, str | bool) or isinstance(y, str | bool):
            return x == y
        x, y = np.asarray(x, float), np.asarray(y, float)
        if x.shape != y.shape and x.ndim == y.ndim:
            return False
        return bool(np.all(np.abs(x - y) <= SAME * np.maximum(np.abs(x), np.abs(y))))

    idle = {"eps_place": a.eps == 0 and b.eps == 0, "decay_kind": a.weight_decay == 0 and b.weight_decay == 0}
    return tuple(
        group
        for group, fields in GROUPS.items()
        if not all(same(getattr(a, f), getattr(b, f)) or idle.get(f, False) for f in fields)
    )


def _causes(
    rules_a: list[Rule], rules_b: list[Rule], names: tuple[str, str]
) -> tuple[tuple[Cause, ...], tuple[Rule, Rule] | None]:
    """The least sets of conventions in which a match of a differs from a match of b."""
    sets: dict[tuple[str, ...], tuple[Rule, Rule]] = {}
    for a, b in itertools.product(rules_a, rules_b):
        scaled = ((a, _damped_like(b, a)), (_damped_like(a, b), b))
        for both in (_one_schedule(a, b), *(pair for pair in scaled if pair != (a, b))):
            sets.setdefault(differing(*both), both)
    if not sets:
        return (), None
    least = min(map(len, sets))
    chosen = {groups: sets[groups] for groups in sorted(sets, key=lambda g: sum(map(description_length, sets[g])))}
    chosen = {groups: pair for groups, pair in chosen.items() if len(groups) == least}
    pair = next(iter(chosen.values()))
    if least == 0:
        return (), pair
    return tuple(Cause(groups, *both, names, certain=len(chosen) == 1) for groups, both in chosen.items()), pair


def _damped_like(rule: Rule, other: Rule) -> Rule:
    """The same with the other's dampening, where a dampening of every gradient is but a smaller learning rate."""
    if rule.rho == 0 or rule.nesterov != "none" or not rule.damp_first or isinstance(rule.learning_rate, tuple):
        return rule
    if rule.dampening == other.dampening:
        return rule
    rate = rule.learning_rate * (1 - rule.dampening) / (1 - other.dampening)
    return rule._replace(learning_rate=rate, dampening=other.dampening)


def _one_schedule(a: Rule, b: Rule) -> tuple[Rule, Rule]:
    """Of two learning rates that are one schedule read a step apart, the schedule, and where it is read first."""
    x, y = a.learning_rate, b.learning_rate
    if isinstance(x, tuple) and isinstance(y, tuple) and len(x) > 2:
        for early, late, swap in ((x, y, False), (y, x, True)):
            if np.allclose(early[1:], late[:-1], rtol=SAME, atol=0):
                whole = (*early, late[-1])
                pair = [a, b][:: -1 if swap else 1]
                pair = [rule._replace(learning_rate=whole, rate_count=k) for k, rule in enumerate(pair)]
                return (pair[1], pair[0]) if swap else (pair[0], pair[1])
    return a, b


def _sixteen_bits(a: Subject, b: Subject, params: Any, names: tuple[str, str]) -> tuple[Cause, ...]:
    """The same rule in float64, parted in 16 bits: are the moments kept in another dtype?"""
    kept = []
    for subject in (a, b):
        slots = subject.slots(subject.start(params))
        moments = [leaf for role in ("first moment", "second moment", "velocity") for leaf in slots.get(role, [])]
        kept.append(sorted({str(leaf.dtype) for leaf in moments}))
    if not all(kept) or kept[0] == kept[1]:
        return ()
    dtypes = [Rule(moment_dtype=", ".join(names_)) for names_ in kept]
    return (Cause(("moment dtype",), *dtypes, names, certain=False),)


# Places


def _parting(
    a: Walk,
    b: Walk,
    pair: tuple[Rule, Rule] | None,
    leaves: Sequence[np.ndarray],
    paths: Sequence[str],
    cuts: np.ndarray,
    rtol: float,
) -> Parting:
    """The first step, and in it the first slot on the way from the gradient to the parameters, that differs."""
    slots_a, slots_b = ([_known(walk, count) for count in range(len(walk.grads))] for walk in (a, b))
    if pair:
        slots_a, slots_b = (_follow(rule, a)[1] for rule in pair)
    for count, (x, y) in enumerate(zip(slots_a, slots_b, strict=True)):
        for name in (*SLOTS, *ROLES):
            if name not in x or name not in y or x[name].shape != y[name].shape:
                continue
            apart, size = np.abs(x[name] - y[name]), np.maximum(np.abs(x[name]), np.abs(y[name])).max(initial=0)
            apart = np.where((x[name] == y[name]), 0.0, np.where(np.isnan(apart), np.inf, apart))
            if apart.max(initial=0) > rtol * size:
                return _place(count, name, x[name], y[name], apart, leaves, paths, cuts)
    worst = int(np.nanargmax(differences(a.params, b.params, cuts)))
    x, y = a.params[worst + 1], b.params[worst + 1]
    return _place(worst, "parameters", x, y, np.nan_to_num(np.abs(x - y), nan=np.inf), leaves, paths, cuts)


def _known(walk: Walk, count: int) -> dict[str, np.ndarray]:
    """The moments that a state holds for every parameter, and the parameters."""
    size = len(walk.params[0])
    held = {role: np.concatenate([np.ravel(x) for x in found]) for role, found in walk.slots[count].items()}
    moments = {role: value.astype(float) for role, value in held.items() if value.size == size and role in SLOTS}
    return moments | {"parameters": walk.params[count + 1]}


def _place(
    count: int,
    slot: str,
    x: np.ndarray,
    y: np.ndarray,
    apart: np.ndarray,
    leaves: Sequence[np.ndarray],
    paths: Sequence[str],
    cuts: np.ndarray,
) -> Parting:
    at = int(np.argmax(apart))
    leaf = int(np.searchsorted(cuts, at, side="right") - 1)
    index = tuple(int(i) for i in np.unravel_index(at - cuts[leaf], leaves[leaf].shape))
    return Parting(count + 1, paths[leaf], index, slot, x[at].item(), y[at].item())
