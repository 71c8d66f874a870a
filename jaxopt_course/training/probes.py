r"""What limits a training run, measured on the way: gradient noise, curvature against the rule's stability limit, and
what a step gains and loses.

With G the gradient of the whole loss, C the covariance of a minibatch's, H the Hessian, and A the rule's response
(`response`), each from minibatches that are independent of one another, so that no product of two has a bias:

$$G^T A G \approx g_1^T A g_2, \qquad \mathrm{tr}(A C) \approx \tfrac12 (g_1 - g_2)^T A (g_1 - g_2), \qquad
  \lambda_{\max}(A^{1/2} H A^{1/2}) \ge v^T A^{1/2} H_3 A^{1/2} v, \qquad \tfrac12 G^T H^{-1} G \ge \tfrac12 g_2^T x$$

where v and x, a few steps of conjugate gradients on H x = g, come from other minibatches.

Source: McCandlish et al. (2018), "An empirical model of large-batch training", arXiv:1812.06162, appendix A; Cohen et
al. (2021), ICLR; `landscape.lanczos` for the curvatures.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, ArrayLike, Batch, Float, Int, Params
from jaxopt_course.landscape.lanczos import Extreme, extremes, lanczos
from jaxopt_course.training.response import Response
from jaxopt_course.training.vectors import Vectors

EXAMPLES = 256  # at least so many in the curvature of a survey, in at least
BLOCKS = 16  # minibatches
AT_ONCE = 256  # examples whose gradients are computed side by side
FEWEST = 2  # minibatches for a product with the Hessian
PRODUCTS = 16  # with the Hessian, for both ends of the spectrum, and as many for the way to the minimum
SINGULAR = 1e-6  # curvature that counts as none, relative to the largest
LEAF_PRODUCTS = 8  # for the largest curvature within each leaf, where there are at most
MOST_LEAVES = 32


class Pair(NamedTuple):
    """Two minibatches. Sums over the entries of each leaf, `[..., leaves]`.

    - `signal`: $g_1 \\cdot g_2$, which estimates $|G|^2$; `noise`: half of $|g_1 - g_2|^2$, the trace of C.
    - `descent`: $g_1 A g_2$ with the steady response, what a step gains to first order; `diffusion`: that of the noise,
      tr(A C), a quarter of which is the floor that noise holds the loss above at small rates.
    - `update`, `size`: squared norm of the steady step of $g_1$, and of the parameters.
    """

    signal: Float[Array, "... leaves"]
    noise: Float[Array, "... leaves"]
    descent: Float[Array, "... leaves"]
    diffusion: Float[Array, "... leaves"]
    update: Float[Array, "... leaves"]
    size: Float[Array, "... leaves"]


class Probe(NamedTuple):
    """A brief look. `sharpness`: $v^T M v$ for the direction v that earlier looks found, M of the curvature in units of
    the response: from 2 on the rule is unstable; `regular` as in `Response`."""

    pair: Pair
    loss: Float[Array, ""]
    sharpness: Float[Array, ""]
    regular: Array


class Survey(NamedTuple):
    """A thorough look, of many minibatches.

    - `pairs`, `losses`: of independent minibatches, `[blocks]`.
    - `highest`, `lowest`: extreme eigenvalues of M on one set of minibatches, without vectors; `highest_fresh`,
      `lowest_fresh` `[blocks]`: their Rayleigh quotients on each minibatch of another set.
    - `highest_share`, `lowest_share`: `[leaves]`, of the squared vectors; `leaf_highest`: `[leaves]`, the largest
      eigenvalue of M within each leaf, NaN where there are too many leaves.
    - `left` `[blocks, leaves]`: what conjugate gradients on one set of minibatches find to gain, judged on another set;
      `upward`: the part of the descent along directions of positive curvature, from 0 to 1.
    - `still` `[leaves]`: entries whose gradient was 0 in every minibatch; `unmoved`: entries that are as at the start.
    - `steady`, `alternating` `[leaves]`: mean responses of the entries; `regular` as in `Response`.
    """

    pairs: Pair
    losses: Float[Array, " blocks"]
    highest: Extreme
    lowest: Extreme
    highest_fresh: Float[Array, " blocks"]
    lowest_fresh: Float[Array, " blocks"]
    highest_share: Float[Array, " leaves"]
    lowest_share: Float[Array, " leaves"]
    leaf_highest: Float[Array, " leaves"]
    left: Float[Array, "blocks leaves"]
    upward: Float[Array, ""]
    still: Int[Array, " leaves"]
    unmoved: Int[Array, " leaves"]
    steady: Float[Array, " leaves"]
    alternating: Float[Array, " leaves"]
    regular: Array


class Scene(NamedTuple):
    """The loss of minibatches at a point, on flat vectors; `params` as a tree, `at` flat."""

    flat: Vectors
    loss: Callable[[Params, Batch], Array]
    data: Batch
    params: Params
    at: Float[Array, " n"]

    def gradient(self, rows: Int[Array, " B"]) -> tuple[Array, Array]:
        """Value and gradient of the minibatch of these examples."""
        value, grads = jax.value_and_grad(self.loss)(self.params, self._batch(rows))
        return value, self.flat.vector(grads)

    def product(self, rows: Int[Array, " B"], v: Float[Array, " n"]) -> Float[Array, " n"]:
        """The Hessian of the minibatch times v; by reverse mode twice where the loss has no forward mode."""
        gradient, tree = jax.grad(lambda w: self.loss(w, self._batch(rows))), self.flat.tree(v)
        try:
            product = jax.jvp(gradient, (self.params,), (tree,))[1]
        except TypeError:  # JAX's error for a custom_vjp
            product = jax.vjp(gradient, self.params)[1](tree)[0]
        return self.flat.vector(product)

    def _batch(self, rows: Array) -> Batch:
        return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), self.data)


def brief_probe(
    scene: Scene, response: Response, rows: Int[Array, "3 B"], v: Array, shift: Array
) -> tuple[Probe, Array]:
    """A brief look with three minibatches, and the direction for the next one."""
    value, g1 = scene.gradient(rows[0])
    _, g2 = scene.gradient(rows[1])
    pair = _pair(scene, response, g1, g2)
    root = jnp.sqrt(response.alternating)
    Mv = root * scene.product(rows[2], root * v)
    ahead = Mv + shift * v
    size = jnp.linalg.norm(ahead)
    found = jnp.where((size > 0) & jnp.isfinite(size), ahead / jnp.where(size > 0, size, 1), v)
    return Probe(pair, value, jnp.vdot(v, Mv), response.regular), found


def survey(
    scene: Scene, response: Response, start: Array, rows: Int[Array, "3 blocks B"], key: Array
) -> tuple[Survey, Array]:
    """A thorough look, and the direction of largest curvature; `rows` are three sets of minibatches."""
    flat, root, (_, blocks, size) = scene.flat, jnp.sqrt(response.alternating), rows.shape
    fit = rows[0, : min(blocks, max(FEWEST, -(-EXAMPLES // size)))]

    def over(fn: Callable[[Array], Any], rows: Array) -> Any:
        return lax.map(fn, rows, batch_size=max(1, AT_ONCE // size))

    def product(v: ArrayLike, row: Array) -> Array:
        return root * scene.product(row, root * v)

    def mean_product(v: Array) -> Array:
        return jnp.mean(over(partial(product, v), fit), axis=0)

    draw = jax.random.normal(key, start.shape, start.dtype)
    count = min(PRODUCTS, flat.size)
    lowest, highest = extremes(mean_product, draw, jax.random.fold_in(key, 1), count)
    descent = root * jnp.mean(over(lambda row: scene.gradient(row)[1], rows[0]), axis=0)
    way, upward = _way_down(mean_product, descent, count, jax.random.fold_in(key, 2))

    def block(rows: Array) -> tuple[Any, ...]:
        value, g1 = scene.gradient(rows[1])
        _, g2 = scene.gradient(rows[2])
        pair = _pair(scene, response, g1, g2)
        bends = (jnp.vdot(v.vector, product(v.vector, rows[1])) for v in (lowest, highest))
        return value, pair, flat.leaf_sums(g2 * root * way) / 2, jnp.maximum(jnp.abs(g1), jnp.abs(g2)) > 0, *bends

    losses, pairs, left, moving, lowest_fresh, highest_fresh = over(block, jnp.swapaxes(rows, 0, 1))
    sizes = jnp.array(flat.sizes, flat.dtype)
    return Survey(
        pairs=pairs,
        losses=losses,
        highest=highest._replace(vector=jnp.zeros(0)),
        lowest=lowest._replace(vector=jnp.zeros(0)),
        highest_fresh=highest_fresh,
        lowest_fresh=lowest_fresh,
        highest_share=flat.leaf_sums(jnp.square(highest.vector)),
        lowest_share=flat.leaf_sums(jnp.square(lowest.vector)),
        leaf_highest=_leaf_extremes(flat, mean_product, draw, jax.random.fold_in(key, 3)),
        left=left,
        upward=upward,
        still=flat.leaf_sums((~jnp.any(moving, axis=0)).astype(int)),
        unmoved=flat.leaf_sums((scene.at == start).astype(int)),
        steady=flat.leaf_sums(response.steady) / sizes,
        alternating=flat.leaf_sums(response.alternating) / sizes,
        regular=response.regular,
    ), jnp.asarray(highest.vector)


def _way_down(product: Callable[[Array], Array], g: Array, count: int, key: Array) -> tuple[Array, Array]:
    """$M^{-1} g$ in the Krylov space of g, along positive curvature, and the share of |g|^2 that lies there."""
    size = jnp.linalg.norm(g)
    Q, T = lanczos(product, jnp.where(size > 0, g / jnp.where(size > 0, size, 1), 1 / g.size**0.5), key, count)
    values, vectors = jnp.linalg.eigh(T)
    upward = values > SINGULAR * jnp.max(jnp.abs(values))
    parts = jnp.where(upward, vectors[0] / jnp.where(upward, values, 1), 0)
    return size * (vectors @ parts) @ Q, jnp.sum(jnp.where(upward, jnp.square(vectors[0]), 0))


def _pair(scene: Scene, response: Response, g1: Array, g2: Array) -> Pair:
    sums, A, apart = scene.flat.leaf_sums, response.steady, jnp.square(g1 - g2) / 2
    return Pair(
        sums(g1 * g2), sums(apart), sums(A * g1 * g2), sums(A * apart), sums(jnp.square(A * g1)),
        sums(jnp.square(scene.at)),
    )  # fmt: skip


def _leaf_extremes(flat: Vectors, product: Callable[[Array], Array], draw: Array, key: Array) -> Array:
    if len(flat.sizes) > MOST_LEAVES:
        return jnp.full(len(flat.sizes), jnp.nan, draw.dtype)

    def within(leaf: Array) -> Array:
        mask = flat.spread((jnp.arange(len(flat.sizes)) == leaf).astype(draw.dtype))
        start = mask * draw
        start = start / jnp.maximum(jnp.linalg.norm(start), jnp.finfo(start.dtype).tiny)
        _, T = lanczos(lambda v: mask * product(mask * v), start, key, min(LEAF_PRODUCTS, flat.size))
        return jnp.linalg.eigvalsh(T)[-1]

    return lax.map(within, jnp.arange(len(flat.sizes)))
