r"""Steps under bounds and L1 penalties: minimize a quadratic model of f plus the exact term h.

$$\min_x \; g^T (x - w) + \tfrac12 (x - w)^T B (x - w) + h(x)$$

For bounds this is a projected quasi-Newton step, for L1 a proximal Newton step. `model_minimum` fixes the parameters
that h holds and takes a Newton step of the model in the free ones, until nothing changes. If B is the Hessian among the
free parameters, Newton's fast convergence is kept. All functions here take flat vectors.

Source: Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints"; Lee, Sun and
Saunders (2014), "Proximal Newton-type methods for minimizing composite functions".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array
from jaxopt_course.optimizers.separable import Separable

STEP_FRACTIONS = (1.0, 0.5, 0.25, 1 / 16, 1 / 256)  # lengths tried for a step that leaves the face


class ModelStep(NamedTuple):
    """A Newton step of the model.

    `step`: d with B d = -q among the free parameters, 0 in the others; `convex`: whether B was positive definite there;
    if it was not, the iteration ends after this step; `missed_gain`: upper estimate of the gain that an inexact solve
    does not count; `num_products`: number of products with B.
    """

    step: Array
    convex: Array
    missed_gain: Array
    num_products: Array


class Model(NamedTuple):
    """A quadratic model: `product(v)` returns B v, and `newton_step(free, q)` returns a `ModelStep`.

    `most_rounds` limits how many sets of held parameters are tried.
    """

    product: Callable[[Array], Array]
    newton_step: Callable[[Array, Array], ModelStep]
    most_rounds: int = 50


class Target(NamedTuple):
    """The minimizer of a model of f + h.

    `direction`: from the parameters to the minimizer; `gain`: the decrease that the model predicts, inf if it is not
    known; `num_products`: number of products with B.
    """

    direction: Array
    gain: Array
    num_products: Array


class _Round(NamedTuple):
    """State of the loop: `x`, `change` = B (x - w), the subgradient `q` of the model at x, and its `value`.

    `known`: whether the value determines the gain; `over`: whether the loop ends.
    """

    x: Array
    change: Array
    q: Array
    value: Array
    missed_gain: Array
    known: Array
    over: Array
    rounds: Array
    num_products: Array


class _Trial(NamedTuple):
    """The best trial point so far, with B (x - w) and the model value at it, and the number of points `tried`."""

    x: Array
    change: Array
    value: Array
    tried: Array


def _better(
    best: _Trial, x: Array, product: Callable[[Array], Array], w: Array, value: Callable[[Array, Array], Array]
) -> _Trial:
    """Return the better of the best trial and the new point x."""
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
    """Minimize the model plus h over all x, starting from w.

    Args:
      w: parameters, a vector, within the bounds.
      g: the gradient of f at w.
      h: the term h, for flat vectors.
      model: B, positive definite, or at least positive definite among the free parameters.
      active: if False, no iterations are made.
    """

    def value(x: Array, change: Array) -> Array:
        curved = jnp.maximum(jnp.dot(x - w, change), 0) / 2  # negative curvature is ignored: only the slope counts
        return jnp.dot(x - w, g) + curved + h.penalty(x, g.dtype) - h.penalty(w, g.dtype)

    def iterate(state: _Round) -> _Round:
        free = h.free(state.x, state.q)
        step, convex, missed_gain, num_products = model.newton_step(free, jnp.where(free, state.q, 0))
        face = h.face(state.x, state.q)
        whole = face.project(state.x + step)
        inside = jnp.all(whole == state.x + step)
        lengths: list[Array | float] = [*STEP_FRACTIONS[1:], jnp.minimum(face.longest(state.x, step), 1)]
        down = -state.q * (jnp.linalg.norm(step) / jnp.linalg.norm(state.q))
        others = [face.project(state.x + t * step) for t in lengths]
        others += [face.project(state.x + t * down) for t in STEP_FRACTIONS[::2]]
        trials = jnp.stack([whole, *others])
        found = lax.while_loop(  # if the whole step stays on its face, only that step is tried
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
            missed_gain=missed_gain,
            known=convex,
            over=~lower | ~convex | (inside & ~released),
            rounds=state.rounds + 1,
            num_products=state.num_products + num_products + found.tried,
        )

    zero, none = jnp.zeros((), g.dtype), jnp.zeros((), jnp.int32)
    q = h.subgradient(w, g)
    at_rest = ~jnp.any(q != 0) | ~active  # a NaN entry counts as nonzero
    start = _Round(w, jnp.zeros_like(w), q, zero, zero, jnp.array(True), at_rest, none, none)
    end = lax.while_loop(lambda state: ~state.over & (state.rounds < model.most_rounds), iterate, start)
    gain = jnp.maximum(end.missed_gain - end.value, jnp.finfo(g.dtype).tiny)
    gain = jnp.where(end.known & end.over, gain, jnp.inf)
    return Target(end.x - w, lax.stop_gradient(gain), end.num_products)
