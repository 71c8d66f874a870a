r"""Measurements of what limits a training run: gradient noise, curvature relative to the rule's stability limit, and
the expected gain and loss of a step.

G is the gradient of the whole loss, C the covariance of a minibatch gradient, H the Hessian, and A the rule's response
(`response`). Each factor is estimated from independent minibatches, so that no product of two is biased:

$$G^T A G \approx g_1^T A g_2, \qquad \mathrm{tr}(A C) \approx \tfrac12 (g_1 - g_2)^T A (g_1 - g_2), \qquad
  \lambda_{\max}(A^{1/2} H A^{1/2}) \ge v^T A^{1/2} H_3 A^{1/2} v, \qquad \tfrac12 G^T H^{-1} G \ge \tfrac12 g_2^T x$$

where v and x are computed on other minibatches; x is the result of a few steps of conjugate gradients on H x = g.

Source: McCandlish et al. (2018), "An empirical model of large-batch training", arXiv:1812.06162, appendix A; Cohen et
al. (2021), ICLR; `landscape.lanczos` for the curvatures; Hutchinson (1990), Commun. Stat. Simul. Comput. 19(2), for
the trace.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxopt_course.annotations import Array, ArrayLike, Batch, Float, Int, OptState, Params
from jaxopt_course.landscape.lanczos import Extreme, bounded, lanczos
from jaxopt_course.training.response import Response, Rule
from jaxopt_course.training.vectors import Vectors

MIN_EXAMPLES = 256  # fewest examples for the curvature in a survey
MIN_BLOCKS = 16  # fewest minibatches for the curvature in a survey
EXAMPLES_AT_ONCE = 256  # examples whose gradients are computed in parallel
MIN_MINIBATCHES = 2  # fewest minibatches for a product with the Hessian
PRODUCTS = 16  # products with the Hessian for both ends of the spectrum, and as many for the step to the minimum
SINGULAR = 1e-6  # curvature that counts as 0, relative to the largest
NUM_FRACTIONS = 6  # fractions tried of the step to the minimum: the whole, a quarter, a quarter of that ...
LEAF_PRODUCTS = 8  # products for the largest curvature within each leaf, if there are at most MAX_LEAVES
MAX_LEAVES = 32


class Pair(NamedTuple):
    """Measurements on a pair of minibatches. All but `cosine` are sums over the entries of each leaf, `[..., leaves]`.

    - `signal`: $g_1 \\cdot g_2$, which estimates $|G|^2$; `noise`: half of $|g_1 - g_2|^2$, the trace of C.
    - `descent`: $g_1 A g_2$ with the steady response, the first-order gain of a step; `diffusion`: the same for the
      noise, tr(A C), a quarter of which is the level above which noise keeps the loss at small rates.
    - `update`, `size`: squared norm of the update for $g_1$, and of the parameters.
    - `cosine` `[...]`: of $g_1$ and the gradient of a third minibatch after that update.
    """

    signal: Float[Array, "... leaves"]
    noise: Float[Array, "... leaves"]
    descent: Float[Array, "... leaves"]
    diffusion: Float[Array, "... leaves"]
    update: Float[Array, "... leaves"]
    size: Float[Array, "... leaves"]
    cosine: Float[Array, "..."]


class Probe(NamedTuple):
    """A brief probe. `sharpness`: $v^T M v$ for the direction v found by earlier probes, where M is the curvature in
    units of the response; from 2 on, the rule is unstable.
    """

    pair: Pair
    loss: Float[Array, ""]
    sharpness: Float[Array, ""]


class ProbeState(NamedTuple):
    """The state that a brief probe takes from earlier ones.

    - `direction[n]`: direction of largest curvature so far; `shift`: how far the lowest curvature is below 0.
    - `steady`, `alternating` `[leaves]`: the sums of the rule's response over its immediate part.
    """

    direction: Float[Array, " n"]
    shift: Float[Array, ""]
    steady: Float[Array, " leaves"]
    alternating: Float[Array, " leaves"]


class Survey(NamedTuple):
    """A thorough measurement on many minibatches.

    - `pairs`, `losses`: of independent minibatches, `[blocks]`.
    - `curved_signal`, `curved_noise` `[blocks]`: $g_1^T H_3 g_2$, which estimates $G^T H G$, and
      $\\tfrac12 (g_1 - g_2)^T H_3 (g_1 - g_2)$, tr(H C).
    - `trace` `[draws]`: $z^T H_3 z$ for random signs z, which estimates tr(H) (Hutchinson); at least `MIN_BLOCKS`.
    - `highest`, `lowest`: extreme eigenvalues of M on one set of minibatches, without vectors; `highest_fresh`,
      `lowest_fresh` `[blocks]`: their Rayleigh quotients on each minibatch of another set.
    - `highest_share`, `lowest_share`: `[leaves]`, of the squared vectors; `leaf_highest`: `[leaves]`, the largest
      eigenvalue of M within each leaf, NaN if there are too many leaves.
    - `left` `[blocks, leaves]`: expected gain of a step from conjugate gradients on one set of minibatches, by the
      gradients of another set; `gains` `[blocks, NUM_FRACTIONS]`: decrease of the loss of the other set at fractions of
      that step, from the whole down; `upward`: the share of the squared gradient along directions of positive
      curvature, from 0 to 1.
    - `still` `[leaves]`: number of entries whose gradient was 0 in every minibatch; `unmoved`: number of entries that
      equal their start.
    - `steady`, `alternating` `[leaves]`: mean responses of the entries; `regular` as in `Response`.
    """

    pairs: Pair
    losses: Float[Array, " blocks"]
    curved_signal: Float[Array, " blocks"]
    curved_noise: Float[Array, " blocks"]
    trace: Float[Array, " draws"]
    highest: Extreme
    lowest: Extreme
    highest_fresh: Float[Array, " blocks"]
    lowest_fresh: Float[Array, " blocks"]
    highest_share: Float[Array, " leaves"]
    lowest_share: Float[Array, " leaves"]
    leaf_highest: Float[Array, " leaves"]
    left: Float[Array, "blocks leaves"]
    gains: Float[Array, "blocks parts"]
    upward: Float[Array, ""]
    still: Int[Array, " leaves"]
    unmoved: Int[Array, " leaves"]
    steady: Float[Array, " leaves"]
    alternating: Float[Array, " leaves"]
    regular: Array


class LossAtPoint(NamedTuple):
    """The loss of minibatches at a point and the optimizer's rule, on flat vectors.

    `has_forward`: whether the gradient of the loss has a forward-mode derivative.
    """

    loss: Callable[[Params, Batch], Array]
    data: Batch
    rule: Rule
    state: OptState
    has_forward: bool

    @property
    def flat(self) -> Vectors:
        return self.rule.flat

    def gradient(self, rows: Int[Array, " B"], update: Array | None = None) -> tuple[Array, Array]:
        """Return value and gradient of the minibatch with these examples, at the parameters or after an update."""
        params = self.rule.params
        if update is not None:
            params = optax.apply_updates(params, self.flat.tree(update))
        value, grads = jax.value_and_grad(self.loss)(params, self._batch(rows))
        return value, self.flat.vector(grads)

    def value(self, rows: Int[Array, " B"], update: Float[Array, " n"]) -> Array:
        """Return the loss of the minibatch after an update of the parameters."""
        return self.loss(optax.apply_updates(self.rule.params, self.flat.tree(update)), self._batch(rows))

    def hessian_product(self, rows: Int[Array, " B"], v: Float[Array, " n"]) -> tuple[Array, Array]:
        """Return the gradient, and the Hessian times v; with reverse mode twice if there is no forward mode."""
        gradient, tree = jax.grad(lambda w: self.loss(w, self._batch(rows))), self.flat.tree(v)
        if self.has_forward:
            grads, product = jax.jvp(gradient, (self.rule.params,), (tree,))
        else:
            grads, back = jax.vjp(gradient, self.rule.params)
            product = back(tree)[0]
        return self.flat.vector(grads), self.flat.vector(product)

    def pair(self, steady: Array, update: Array, g1: Array, g2: Array, rows: Int[Array, " B"]) -> Pair:
        """Compare two gradients, and the first with that of a minibatch after the update."""
        _, later = self.gradient(rows, update)
        sums, apart = self.flat.leaf_sums, jnp.square(g1 - g2) / 2
        size = jnp.linalg.norm(g1) * jnp.linalg.norm(later)
        return Pair(
            sums(g1 * g2), sums(apart), sums(steady * g1 * g2), sums(steady * apart), sums(jnp.square(update)),
            sums(jnp.square(self.flat.vector(self.rule.params))), jnp.vdot(g1, later) / jnp.where(size > 0, size, 1),
        )  # fmt: skip

    def _batch(self, rows: Array) -> Batch:
        return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), self.data)


def has_forward(loss: Callable[[Params, Batch], Array], params: Params, batch: Batch) -> bool:
    """Whether JAX can differentiate the gradient in forward mode; it cannot if the loss has a custom_vjp."""

    def product(tangent: Params) -> Params:
        return jax.jvp(jax.grad(lambda w: loss(w, batch)), (params,), (tangent,))[1]

    try:  # under vmap, JAX raises the error during tracing; without vmap, when it compiles, or never
        jax.eval_shape(jax.vmap(product), jax.tree.map(lambda leaf: leaf[None], params))
    except TypeError:
        return False
    return True


def brief_probe(point: LossAtPoint, sight: ProbeState, rows: Int[Array, "3 B"]) -> tuple[Probe, Array]:
    """Take a brief probe on three minibatches, and return it with the direction for the next one.

    It costs three gradients and one product with the Hessian. The response is its immediate part, times the ratio of
    the whole to the immediate response in the last survey.
    """
    v, spread = sight.direction, point.flat.spread
    value, g1 = point.gradient(rows[0])
    update, immediate = point.rule.immediate(point.state, g1)
    root = jnp.sqrt(jnp.maximum(immediate * spread(sight.alternating), 0))
    g2, Hv = point.hessian_product(rows[1], root * v)
    pair = point.pair(jnp.maximum(immediate * spread(sight.steady), 0), update, g1, g2, rows[2])
    Mv = root * Hv
    ahead = Mv + sight.shift * v
    size = jnp.linalg.norm(ahead)
    found = jnp.where((size > 0) & jnp.isfinite(size), ahead / jnp.where(size > 0, size, 1), v)
    return Probe(pair, value, jnp.vdot(v, Mv)), found


def survey(
    point: LossAtPoint, response: Response, start: Array, rows: Int[Array, "4 blocks B"], key: Array
) -> tuple[Survey, ProbeState]:
    """Take a survey on four sets of minibatches `rows`, and return it with the state for brief probes."""
    flat, root, (_, blocks, size) = point.flat, jnp.sqrt(response.alternating), rows.shape
    fit = rows[0, : min(blocks, max(MIN_MINIBATCHES, -(-MIN_EXAMPLES // size)))]

    def over(fn: Callable[[Any], Any], given: Any) -> Any:
        return lax.map(fn, given, batch_size=max(1, EXAMPLES_AT_ONCE // size))

    def product(v: ArrayLike) -> Array:
        return jnp.mean(over(lambda row: root * point.hessian_product(row, root * v)[1], fit), axis=0)

    descent = root * jnp.mean(over(lambda row: point.gradient(row)[1], rows[0]), axis=0)
    lowest, highest, way, upward, leaf_highest = _spectra(flat, product, descent, key)

    def block(given: tuple[Array, Array]) -> tuple[Any, ...]:
        rows, key = given
        values, gradients = jax.vmap(point.gradient)(rows[1:3])
        signs = jax.random.rademacher(key, (-(-MIN_BLOCKS // blocks), flat.size), flat.dtype)
        directions = jnp.stack([root * lowest.vector, root * highest.vector, *gradients, *signs])
        products = jax.vmap(lambda v: point.hessian_product(rows[3], v)[1])(directions)
        forms = directions @ products.T
        update = point.rule.step(point.state, gradients[0])[0]
        ahead = lax.map(
            lambda part: point.value(rows[2], -part * root * way), 0.25 ** jnp.arange(NUM_FRACTIONS, dtype=way.dtype)
        )
        return (
            values[0], point.pair(response.steady, update, gradients[0], gradients[1], rows[3]),
            flat.leaf_sums(gradients[1] * root * way) / 2, values[1] - ahead, jnp.any(gradients != 0, axis=0),
            forms[0, 0], forms[1, 1], forms[2, 3], (forms[2, 2] - 2 * forms[2, 3] + forms[3, 3]) / 2,
            jnp.diagonal(forms)[4:],
        )  # fmt: skip

    seen = over(block, (jnp.swapaxes(rows, 0, 1), jax.random.split(jax.random.fold_in(key, 0x74726163), blocks)))
    losses, pairs, left, gains, moving, lowest_fresh, highest_fresh, curved_signal, curved_noise, trace = seen
    sizes, at_once = jnp.array(flat.sizes, flat.dtype), flat.leaf_sums(response.immediate)
    steady, alternating = flat.leaf_sums(response.steady), flat.leaf_sums(response.alternating)
    sight = ProbeState(
        jnp.asarray(highest.vector),
        jnp.maximum(-jnp.asarray(lowest.value), 0),
        *(jnp.where(at_once != 0, whole / jnp.where(at_once != 0, at_once, 1), 0) for whole in (steady, alternating)),
    )
    return Survey(
        pairs=pairs,
        losses=losses,
        curved_signal=curved_signal,
        curved_noise=curved_noise,
        trace=trace.ravel(),
        highest=highest._replace(vector=jnp.zeros(0)),
        lowest=lowest._replace(vector=jnp.zeros(0)),
        highest_fresh=highest_fresh,
        lowest_fresh=lowest_fresh,
        highest_share=flat.leaf_sums(jnp.square(highest.vector)),
        lowest_share=flat.leaf_sums(jnp.square(lowest.vector)),
        leaf_highest=leaf_highest,
        left=left,
        gains=gains,
        upward=upward,
        still=flat.leaf_sums((~jnp.any(moving, axis=0)).astype(int)),
        unmoved=flat.leaf_sums((flat.vector(point.rule.params) == start).astype(int)),
        steady=steady / sizes,
        alternating=alternating / sizes,
        regular=response.regular,
    ), sight


def survey_means(survey: Survey) -> Probe:
    """Return the means of a survey as a brief probe."""
    return Probe(
        jax.tree.map(lambda rows: rows.mean(axis=0), survey.pairs),
        survey.losses.mean(),
        jnp.asarray(survey.highest.value),
    )


def _spectra(
    flat: Vectors, product: Callable[[Array], Array], descent: Array, key: Array
) -> tuple[Extreme, Extreme, Array, Array, Array]:
    """Return the lowest and highest curvature, the step to the minimum, the share of |g|^2 along positive curvature,
    and the highest curvature in each leaf.

    All are computed from Krylov spaces: of a random start, of the descent g, and of the random start within each leaf.
    One loop computes them one after another, so that the product is compiled only once. The step is $M^{-1} g$ in the
    second space, along directions of positive curvature.
    """
    count, leaves, dtype = min(PRODUCTS, flat.size), len(flat.sizes), descent.dtype
    draw, size = jax.random.normal(key, descent.shape, dtype), jnp.linalg.norm(descent)

    def krylov(job: Array, found: "_KrylovResults") -> "_KrylovResults":
        whole = job < 2
        mask = jnp.where(whole, 1, flat.spread((jnp.arange(leaves) == job - 2).astype(dtype)))
        start = mask * jnp.where((job == 1) & (size > 0), descent, draw)
        start = start / jnp.maximum(jnp.linalg.norm(start), jnp.finfo(dtype).tiny)
        steps = jnp.where(whole, count, min(LEAF_PRODUCTS, count))
        Q, T = lanczos(lambda v: mask * product(mask * v), start, jax.random.fold_in(key, job), count, steps)
        values, vectors = jnp.linalg.eigh(T)
        ahead = values > SINGULAR * jnp.max(jnp.abs(values))
        parts = jnp.where(ahead, vectors[0] / jnp.where(ahead, values, 1), 0)
        return _KrylovResults(
            values=jnp.where(job == 0, values, found.values),
            ritz=jnp.where(job == 0, vectors[:, jnp.array([0, -1])].T @ Q, found.ritz),
            way=jnp.where(job == 1, size * (vectors @ parts) @ Q, found.way),
            upward=jnp.where(job == 1, jnp.sum(jnp.where(ahead, jnp.square(vectors[0]), 0)), found.upward),
            highest=found.highest.at[jnp.where(whole, leaves, job - 2)].set(values[-1], mode="drop"),
        )

    blank = _KrylovResults(
        jnp.zeros(count, dtype), jnp.zeros((2, flat.size), dtype), jnp.zeros_like(descent), jnp.zeros((), dtype),
        jnp.full(leaves, jnp.nan, dtype),
    )  # fmt: skip
    found = lax.fori_loop(0, 2 + (leaves if leaves <= MAX_LEAVES else 0), krylov, blank)
    return *bounded(product, found.values, found.ritz), found.way, found.upward, found.highest


class _KrylovResults(NamedTuple):
    """The results that `_spectra` computes from the Krylov spaces."""

    values: Float[Array, " k"]
    ritz: Float[Array, "2 n"]
    way: Float[Array, " n"]
    upward: Float[Array, ""]
    highest: Float[Array, " leaves"]
