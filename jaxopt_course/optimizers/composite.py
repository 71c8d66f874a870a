r"""Steps under bounds and L1 penalties: to the minimum of a quadratic model of f plus the term itself.

$$\min_x \; g^T (x - w) + \tfrac12 (x - w)^T B (x - w) + h(x)$$

For bounds this is a projected quasi-Newton step, for L1 a proximal Newton step. `model_minimum` holds the parameters
that h holds and takes a Newton step of the model in the others, until nothing more changes. Where B is the Hessian
among the free parameters, Newton's fast convergence is kept. Everything here works on flat vectors.

Source: Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints"; Lee, Sun and
Saunders (2014), "Proximal Newton-type methods for minimizing composite functions".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array
from jaxopt_course.optimizers.separable import Separable

PARTS = (1.0, 0.5, 0.25, 1 / 16, 1 / 256)  # of a step that leaves the face


class ModelStep(NamedTuple):
    """`step`: d with B d = -q among the free parameters, 0 in the others; `convex`: whether B was positive definite
    there, else the model is left after this step; `hidden`: what an inexact solve may miss of the gain;
    `num_products`: products with B that it took."""

    step: Array
    convex: Array
    hidden: Array
    num_products: Array


class Model(NamedTuple):
    """A quadratic model: `product(v)` is B v, `newton_step(free, q)` a `ModelStep`; `most_rounds` bounds the number of
    sets of held parameters that are tried."""

    product: Callable[[Array], Array]
    newton_step: Callable[[Array, Array], ModelStep]
    most_rounds: int = 50


class Target(NamedTuple):
    """Where a model of f + h is least: the `direction` there from the parameters, the `gain` that the model promises,
    inf where that is not known, and the products with B that it took."""

    direction: Array
    gain: Array
    num_products: Array


class _Round(NamedTuple):
    """`x`, `change` = B (x - w), the subgradient `q` of the model there, and the `value` of the model; `known`: whether
    the value tells what there is to gain."""

    x: Array
    change: Array
    q: Array
    value: Array
    hidden: Array
    known: Array
    over: Array
    rounds: Array
    num_products: Array


class _Trial(NamedTuple):
    """The best of the trials so far, with B (x - w) and the value of the model there, and how many were `tried`."""

    x: Array
    change: Array
    value: Array
    tried: Array


def _better(
    best: _Trial, x: Array, product: Callable[[Array], Array], w: Array, value: Callable[[Array, Array], Array]
) -> _Trial:
    """The best trial with one more."""
    change = product(x - w)
    reached = value(x, change)
    lower = reached < best.value
    return _Trial(
        jnp.where(lower, x, best.x),
        jnp.where(lower, change, best.change),
        jnp.where(lower, reached, best.value),
        best.tried + 1,
    )


def model_minimum(w: Array, g: Array, h: Separable, model: Model, active: Array) -> Target:
    """The minimizer of the model plus h over all x, from w.

    Args:
      w: parameters, a vector, within the bounds.
      g: the gradient of f there.
      h: the term, of vectors.
      model: B, positive definite, or at least on the set that is free.
      active: False for no rounds at all.
    """

    def value(x: Array, change: Array) -> Array:
        curved = jnp.maximum(jnp.dot(x - w, change), 0) / 2  # where it is negative, the slope alone must lead down
        return jnp.dot(x - w, g) + curved + h.penalty(x, g.dtype) - h.penalty(w, g.dtype)

    def again(state: _Round) -> _Round:
        free = h.free(state.x, state.q)
        step, convex, hidden, num_products = model.newton_step(free, jnp.where(free, state.q, 0))
        face = h.face(state.x, state.q)
        whole = face.project(state.x + step)
        inside = jnp.all(whole == state.x + step)
        lengths: list[Array | float] = [*PARTS[1:], jnp.minimum(face.longest(state.x, step), 1)]
        down = -state.q * (jnp.linalg.norm(step) / jnp.linalg.norm(state.q))
        others = [face.project(state.x + t * step) for t in lengths]
        others += [face.project(state.x + t * down) for t in PARTS[::2]]
        trials = jnp.stack([whole, *others])
        found = lax.while_loop(  # the whole step is enough where it stays on its face
            lambda best: (best.tried == 0) | (~inside & (best.tried < len(trials))),
            lambda best: _better(best, trials[best.tried], model.product, w, value),
            _Trial(state.x, state.change, jnp.full((), jnp.inf, g.dtype), jnp.zeros((), jnp.int32)),
        )
        x, change, reached = found.x, found.change, found.value
        lower = reached < state.value
        q = h.subgradient(x, g + change)
        released = jnp.any(h.free(x, q) & ~free)
        return _Round(
            x=jnp.where(lower, x, state.x),
            change=jnp.where(lower, change, state.change),
            q=jnp.where(lower, q, state.q),
            value=jnp.where(lower, reached, state.value),
            hidden=hidden,
            known=convex,
            over=~lower | ~convex | (inside & ~released),
            rounds=state.rounds + 1,
            num_products=state.num_products + num_products + found.tried,
        )

    zero, none = jnp.zeros((), g.dtype), jnp.zeros((), jnp.int32)
    q = h.subgradient(w, g)
    at_rest = ~jnp.any(q != 0) | ~active  # an entry that is NaN is not at rest
    start = _Round(w, jnp.zeros_like(w), q, zero, zero, jnp.array(True), at_rest, none, none)
    end = lax.while_loop(lambda state: ~state.over & (state.rounds < model.most_rounds), again, start)
    gain = jnp.maximum(end.hidden - end.value, jnp.finfo(g.dtype).tiny)
    gain = jnp.where(end.known & end.over, gain, jnp.inf)
    return Target(end.x - w, lax.stop_gradient(gain), end.num_products)
