r"""Bounds and L1 penalties: a separable term h of the objective.

$$h(w) = \sum_i \lambda_i |w_i| \quad \text{for} \quad l \le w \le u, \qquad \infty \text{ elsewhere}$$

At a minimum of f + h, 0 is in $g + \partial h(w)$. `subgradient` is the element of that set with the smallest entries.
A parameter is *held* at a kink or an end of h if a gradient step does not move it away: at a bound, or at 0 if the
gradient is within the strength.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxopt_course.annotations import Array, Params, PyTree, Updates


class Separable(NamedTuple):
    """`lower`, `upper`: bounds, like the parameters, infinite for parameters without bounds; `strength`: lambda, like
    the parameters, or None if nothing is penalized.
    """

    lower: Params
    upper: Params
    strength: Params | None

    def project(self, params: Params) -> Params:
        """Return the nearest point within the bounds; a parameter within rounding of a bound is set to the bound."""

        def on_bounds(w: Array, low: Array, high: Array) -> Array:
            near = 4 * jnp.finfo(w.dtype).eps * jnp.abs(w)
            w = jnp.where(jnp.isfinite(high) & (high - w <= near), high, w)
            return jnp.where(jnp.isfinite(low) & (w - low <= near), low, w)

        inside = optax.projections.projection_box(params, self.lower, self.upper)
        return jax.tree.map(on_bounds, inside, self.lower, self.upper)

    def penalty(self, params: Params, dtype: Any) -> Array:
        """Return the sum of lambda |w|, a scalar."""
        if self.strength is None:
            return jnp.zeros((), dtype)
        parts = jax.tree.map(lambda w, s: jnp.sum(s * jnp.abs(w)).astype(dtype), params, self.strength)
        return optax.tree.sum(parts).astype(dtype)

    def subgradient(self, params: Params, grads: Updates) -> Updates:
        """Return the element of g + dh(w) with the smallest entries, like `grads`; it is 0 for held parameters."""

        def least(g: Array, lowest: Array, highest: Array) -> Array:
            return jnp.maximum(g + lowest, 0) + jnp.minimum(g + highest, 0)

        return jax.tree.map(least, grads, *self._slopes(params, grads))

    def margins(self, params: Params, grads: Updates) -> Updates:
        """Return how much each gradient entry may change before its held parameter is released; 0 for free ones."""

        def margin(g: Array, lowest: Array, highest: Array) -> Array:
            return jnp.minimum(-g - lowest, highest + g)

        return jax.tree.map(margin, grads, *self._slopes(params, grads))

    def _slopes(self, params: Params, like: Updates) -> tuple[Updates, Updates]:
        """Return the ends of the subdifferential of h, in the dtypes of `like`."""

        def ends(w: Array, g: Array, low: Array, high: Array, s: Array) -> tuple[Array, Array]:
            w, low, high, s = (leaf.astype(g.dtype) for leaf in (w, low, high, s))
            lowest = jnp.where(w <= low, -jnp.inf, jnp.where(w > 0, s, -s))
            return lowest, jnp.where(w >= high, jnp.inf, jnp.where(w < 0, -s, s))

        pairs = jax.tree.map(ends, params, like, self.lower, self.upper, self._strengths(params))
        lowest, highest = jax.tree.transpose(jax.tree.structure(params), None, pairs)
        return lowest, highest

    def free(self, params: Params, subgradient: Updates) -> PyTree:
        """Return which parameters are not held, a tree of booleans."""

        def is_free(w: Array, q: Array, low: Array, high: Array, s: Array) -> Array:
            return ~((w <= low) | (w >= high) | ((w == 0) & (s > 0))) | (q != 0)

        return jax.tree.map(is_free, params, subgradient, self.lower, self.upper, self._strengths(params))

    def face(self, params: Params, subgradient: Updates) -> "Separable":
        """Return the bounds within which h is linear: those of h, and 0 for penalized parameters."""
        if self.strength is None:
            return self

        def signs(w: Array, q: Array, s: Array) -> Array:
            return jnp.where(s > 0, jnp.where(w != 0, jnp.sign(w), -jnp.sign(q)), 0)

        sign = jax.tree.map(signs, params, subgradient, self.strength)
        lower = jax.tree.map(lambda low, s: jnp.where(s > 0, jnp.maximum(low, 0), low), self.lower, sign)
        upper = jax.tree.map(lambda high, s: jnp.where(s < 0, jnp.minimum(high, 0), high), self.upper, sign)
        return Separable(lower, upper, None)

    def slopes_along(self, params: Params, direction: Updates, *, ahead: bool) -> Updates:
        """Return the one-sided derivatives of h along a direction: `ahead` of the point, or behind it."""
        if self.strength is None:
            return optax.tree.zeros_like(direction)

        def slope(w: Array, d: Array, s: Array) -> Array:
            side = jnp.sign(d) if ahead else -jnp.sign(d)
            return s.astype(d.dtype) * jnp.where(w != 0, jnp.sign(w).astype(d.dtype), side)

        return jax.tree.map(slope, params, direction, self.strength)

    def proximal(self, params: Params, length: Any) -> Params:
        r"""Return the minimizer over x of h(x) + |x - w|^2 / (2 t): w shrunk by t lambda, then projected."""

        def shrunk(w: Array, s: Array) -> Array:
            step = jnp.asarray(length).astype(w.dtype) * s.astype(w.dtype)
            return jnp.sign(w) * jnp.maximum(jnp.abs(w) - step, 0)

        return self.project(jax.tree.map(shrunk, params, self._strengths(params)))

    def proximal_direction(self, params: Params, grads: Updates, length: Array) -> Updates:
        """Return the direction from the parameters to the end of a proximal gradient step of this length."""

        def stepped(w: Array, g: Array) -> Array:
            return w.astype(g.dtype) - length.astype(g.dtype) * g

        wide = jax.tree.map(lambda w, g: w.astype(g.dtype), params, grads)
        return optax.tree.sub(self.proximal(jax.tree.map(stepped, params, grads), length), wide)

    def longest(self, params: Params, direction: Updates) -> Array:
        """Return the length at which params + length * direction reaches the first bound."""

        def first(w: Array, d: Array, low: Array, high: Array) -> Array:
            room = jnp.where(d < 0, low - w, high - w).astype(d.dtype)
            return jnp.min(jnp.where(d == 0, jnp.inf, room / jnp.where(d == 0, 1, d)), initial=jnp.inf)

        lengths = jax.tree.leaves(jax.tree.map(first, params, direction, self.lower, self.upper))
        return jnp.min(jnp.stack(lengths))

    def ravelled(self, dtype: Any) -> "Separable":
        """Return the same term for the parameters as one vector."""
        return Separable(*(None if part is None else ravelled(part, dtype) for part in self))

    def _strengths(self, params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, params) if self.strength is None else self.strength


def ravelled(tree: PyTree, dtype: Any) -> Array:
    """Return all entries of a tree as one vector of that dtype."""
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)])
