"""Two optimizers in lock step: where they part, how the difference grows, and which convention is to blame."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxopt_course.comparison.causes import SAME, least_causes, of_sixteen_bits
from jaxopt_course.comparison.identify import identify
from jaxopt_course.comparison.parity_report import ParityReport, Parting
from jaxopt_course.comparison.rules import SLOTS, Rule
from jaxopt_course.comparison.subjects import ROLES, as_subject
from jaxopt_course.comparison.walks import (
    Walk,
    check_forgetful,
    differences,
    follow,
    gradient_along,
    those_that_follow,
    ulps,
    unflat,
    walk,
)
from jaxopt_course.dtypes import check_floating

FOLLOWED = 20  # in float32 1 - b2 ** t is off by 6e-6 for many: a rule in exact arithmetic is followed no nearer
RTOL = {8: 1e-12, 4: 5e-6, 2: 0.03}  # by bytes of a parameter: what 50 steps of rounding may come to


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
      rtol: what passes for rounding; by default 1e-12 in float64, 5e-6 in float32, 0.03 in 16 bits.
      names: what to call them.

    Returns:
      A `ParityReport`; print it.

    Raises:
      TypeError: what is no optimizer, parameters that are not floating point.
      ValueError: no steps or no batches; an optimizer that, started again, takes another first step.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> f = lambda w: jnp.sum(jnp.array([1.0, 1e-3, 1e-6]) * w**2)
      >>> report = parity(optax.adam(1e-2), optax.adam(1e-2, eps=1e-6), f, jnp.ones(3))
      >>> print(report.verdict, *report.causes)
      DIFFERENT epsilon: 1e-08 outside the root in a, 1e-06 outside the root in b

    Source: the table of conventions, `jc.conventions`.
    """
    check_floating(params)
    if num_steps < 1 or (batches is not None and not len(batches)):
        got = f"num_steps = {num_steps}" if num_steps < 1 else "batches that are empty"
        raise ValueError(f"parity: nothing can be told from {got}; take at least one step, on at least one batch")
    a, b = as_subject(opt_a), as_subject(opt_b)
    params = jax.tree.map(np.asarray, params)
    leaves = jax.tree.leaves(params)
    widths = [leaf.dtype.itemsize for leaf in leaves]
    rtol = RTOL[min(widths, default=8)] if rtol is None else rtol
    gradient = gradient_along(objective, batches)
    walk_a = walk(a, params, num_steps, gradient)
    own_b = walk(b, params, num_steps, gradient)
    for name, optimizer, path in ((names[0], a, walk_a), (names[1], b, own_b)):
        check_forgetful(name, optimizer, params, path, gradient, rtol)
    tree = jax.tree.structure(params)
    walk_b = walk(b, params, num_steps, lambda _, count: unflat(walk_a.grads[count], leaves, tree))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    cuts = np.cumsum([0, *(leaf.size for leaf in leaves)])

    rules_a = identify(a, params, num_steps)
    rules_b = identify(b, params, num_steps, near=rules_a[0] if rules_a else None)
    if rules_b and not rules_a:
        rules_a = identify(a, params, num_steps, near=rules_b[0])
    if min(widths, default=8) >= 4:  # in 16 bits nothing follows for long
        near = rtol * (FOLLOWED if min(widths, default=8) == 4 else 1)
        rules_a, rules_b = (those_that_follow(r, w, cuts, near) for r, w in ((rules_a, walk_a), (rules_b, walk_b)))
    shared = differences(walk_a.params, walk_b.params, cuts)
    own = differences(walk_a.params, own_b.params, cuts)
    parted = bool(np.nanmax(shared, initial=0.0) > rtol or not np.isfinite(shared).all())
    causes, pair = least_causes(rules_a, rules_b, names)
    if not causes and parted and min(widths, default=8) < 4:
        causes = of_sixteen_bits(a, b, params, names)
    removed = differences(follow(pair[1], walk_a)[0], walk_b.params, cuts) if pair else None
    if removed is not None and removed.max(initial=0.0) > max(rtol, 0.1 * shared.max(initial=0.0)):
        causes = tuple(dataclasses.replace(cause, certain=False) for cause in causes)
    return ParityReport(
        names=names,
        num_steps=num_steps,
        dtype=", ".join(sorted({str(leaf.dtype) for leaf in leaves})),
        rtol=rtol,
        own=own,
        shared=shared,
        ulps=ulps(walk_a.params, walk_b.params, leaves, cuts),
        parting=_parting(walk_a, walk_b, pair, leaves, paths, cuts, rtol) if parted else None,
        causes=causes,
        rules=pair or (next(iter(rules_a), None), next(iter(rules_b), None)),
        identified=(bool(rules_a), bool(rules_b)),
        removed=removed,
    )


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
    names = [*SLOTS, *ROLES]
    if pair:  # in float64, on the same gradients: what is not different is the same
        slots_a, slots_b = (follow(rule, a)[1] for rule in pair)
        rtol = min(rtol, SAME)
        names = [name for name in SLOTS if name != "velocity" or pair[0].rho or pair[1].rho]
    for count, (x, y) in enumerate(zip(slots_a, slots_b, strict=True)):
        for name in names:
            if name not in x or name not in y or x[name].shape != y[name].shape:
                continue
            size = np.maximum(np.abs(x[name]), np.abs(y[name]))
            size = size.max(initial=0) if name == "parameters" else size
            with np.errstate(invalid="ignore"):
                apart = np.where(x[name] == y[name], 0.0, np.abs(x[name] - y[name]) / np.where(size > 0, size, 1.0))
            apart = np.nan_to_num(apart, nan=np.inf)
            if apart.max(initial=0) > rtol:
                return _place(count, name, x[name], y[name], apart, leaves, paths, cuts)
    worst = int(np.argmax(np.nan_to_num(differences(a.params, b.params, cuts), nan=np.inf) > rtol))
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
