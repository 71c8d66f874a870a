r"""The linear response of an optimizer to small changes of its gradients, measured by running its rule.

If a gradient changes by v in one step, the updates of this step and the next ones change by $-h_0 v, -h_1 v, \ldots$,
entry by entry. Along an eigenvector of the Hessian with curvature lambda the parameters then follow

$$w_{t+1} = w_t - \lambda \sum_j h_j w_{t-j}$$

This recurrence leaves the stable region through z = -1, where $\lambda \sum_j (-1)^j h_j = 2$; its slow directions
decay at the rate $\lambda \sum_j h_j$. For gradient descent both sums are the learning rate; for momentum they are
$\eta / (1 + \rho)$ and $\eta / (1 - \rho)$, for Adam, with D its division by $\sqrt{\hat\nu} + \epsilon$,
$\eta D (1 - b_1) / (1 + b_1)$ and $\eta D$.

Source: Cohen et al. (2021), "Gradient descent on neural networks typically occurs at the edge of stability", ICLR,
appendix B; Cohen et al. (2022), "Adaptive gradient methods at the edge of stability", arXiv:2207.14484, eq. 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import AnyOptimizer, Array, Bool, Float, OptState, Params
from jaxopt_course.training.vectors import Vectors

RESPONSE_STEPS = 4  # the step of the impulse and three more
WARM_UP = 31  # steps with random signs that initialize the moments; with one more sign they fill a word of random bits
SAME_TOLERANCE = 1e-2  # relative difference of responses that count as equal
LINEARITY_TOLERANCE = 0.5  # largest relative deviation of an update from proportionality to the gradient
ZERO_TOLERANCE = 1e-6  # relative size of a response that counts as 0


class Response(NamedTuple):
    """`alternating[n]`, `steady[n]`: the sums over j of $(-1)^j h_j$ and of $h_j$, `immediate[n]`: $h_0$, units of
    learning rate.

    `regular`: whether each entry responds only to itself, in proportion to the gradient, and the responses decay
    geometrically. Otherwise the two sums are not meaningful: clipping by norm mixes entries, and sign-based rules
    ignore sizes.
    """

    alternating: Float[Array, " n"]
    steady: Float[Array, " n"]
    immediate: Float[Array, " n"]
    regular: Bool[Array, ""]


class Rule(NamedTuple):
    """An optimizer at given parameters, on flat vectors."""

    flat: Vectors
    optimizer: AnyOptimizer
    params: Params

    def step(self, state: OptState, grads: Float[Array, " n"]) -> tuple[Array, OptState]:
        """Return the updates for these gradients, and the new state."""
        tree, update = self.flat.tree(grads), optax.with_extra_args_support(self.optimizer).update
        updates, state = update(
            tree, state, self.params, value=jnp.zeros(()), grad=tree, value_fn=lambda _: jnp.zeros(())
        )
        return self.flat.vector(updates), state

    def immediate(self, state: OptState, grads: Float[Array, " n"]) -> tuple[Array, Array]:
        """Return the updates for these gradients, and $h_0$, minus the derivative of each update by its gradient."""
        updates, answer = jax.jvp(lambda g: self.step(state, g)[0], (grads,), (jnp.ones_like(grads),))
        return updates, -answer


def linear_response(
    rule: Rule, state: OptState, grads: Float[Array, " n"], key: Array, warm: Bool[Array, ""]
) -> Response:
    """Return the response of a rule at a state, with `grads` as the gradient of the next steps. Pure.

    The sums include the whole geometric tail: from the second one on, responses decay by one factor for each leaf. If
    the state is not `warm`, it first takes steps with `grads` multiplied by random signs, so that its moments have the
    scale of the gradients that follow.

    Args:
      rule: the optimizer; JAX must be able to differentiate its `update`.
      state: of the optimizer.
      grads: of the loss.
      key: for the random signs.
      warm: whether the state has already been updated with gradients.

    Returns:
      The response; zeros if the rule responds only to signs, or not at all.
    """
    flat, step = rule.flat, rule.step
    bits = jax.random.bits(key, grads.shape, jnp.uint32)

    def signs(t: int | Array) -> Array:
        return 1 - 2 * (bits >> jnp.uint32(t) & 1).astype(grads.dtype)

    def warmed(state: OptState) -> OptState:
        return lax.fori_loop(0, WARM_UP, lambda t, state: step(state, signs(t) * grads)[1], state)

    state = lax.cond(warm, lambda state: state, warmed, state)

    def updates_after(change: Array) -> Array:
        first, later = step(state, grads + change)
        rows = [first]
        for _ in range(RESPONSE_STEPS - 1):
            row, later = step(later, grads)
            rows.append(row)
        return jnp.stack(rows)

    crossing = signs(WARM_UP)
    answers = jax.vmap(lambda v: -jax.jvp(updates_after, (jnp.zeros_like(grads),), (v,))[1])(
        jnp.stack([jnp.ones_like(grads), crossing])
    )
    h, crossed = answers[0], answers[1] * crossing[None]
    sums = flat.leaf_sums(h)  # [RESPONSE_STEPS, leaves]
    some = jnp.abs(sums[1]) > ZERO_TOLERANCE * jnp.abs(sums[0])
    factor = jnp.where(some, sums[2] / jnp.where(some, sums[1], 1), 0)
    decays = jnp.abs(sums[3] - factor * sums[2]) <= SAME_TOLERANCE * jnp.abs(sums[0])
    entrywise = jnp.linalg.norm(crossed - h) <= SAME_TOLERANCE * jnp.linalg.norm(h)
    rho = flat.spread(jnp.clip(factor, 0, 0.9999))
    alternating, steady = h[0] - h[1] / (1 + rho), h[0] + h[1] / (1 - rho)
    moved = step(state, jnp.zeros_like(grads))[0] - step(state, grads)[0]
    linear = jnp.linalg.norm(moved - h[0] * grads) <= LINEARITY_TOLERANCE * jnp.linalg.norm(moved)
    regular = entrywise & linear & jnp.all(decays & (factor >= -ZERO_TOLERANCE) & (factor < 1)) & jnp.any(h[0] != 0)
    return Response(jnp.maximum(alternating, 0), jnp.maximum(steady, 0), h[0], regular)
