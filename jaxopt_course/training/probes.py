r"""What limits a training run, measured on the way: gradient noise, curvature against the rule's stability limit, and
what a step gains and loses.

With G the gradient of the whole loss, C the covariance of a minibatch's, H the Hessian, and A the rule's response
(`response`), each from minibatches that are independent of one another, so that no product of two has a bias:

$$G^T A G \approx g_1^T A g_2, \qquad \mathrm{tr}(A C) \approx \tfrac12 (g_1 - g_2)^T A (g_1 - g_2), \qquad
  \lambda_{\max}(A^{1/2} H A^{1/2}) \ge v^T A^{1/2} H_3 A^{1/2} v, \qquad \tfrac12 G^T H^{-1} G \ge \tfrac12 g_2^T x$$

where v and x, a few steps of conjugate gradients on H x = g, come from other minibatches.

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

EXAMPLES = 256  # at least so many in the curvature of a survey, in at least
BLOCKS = 16  # minibatches
AT_ONCE = 256  # examples whose gradients are computed side by side
FEWEST = 2  # minibatches for a product with the Hessian
PRODUCTS = 16  # with the Hessian, for both ends of the spectrum, and as many for the way to the minimum
SINGULAR = 1e-6  # curvature that counts as none, relative to the largest
PARTS = 6  # of the way to the minimum that are tried: the whole, a quarter, a quarter of that ...
LEAF_PRODUCTS = 8  # for the largest curvature within each leaf, where there are at most
MOST_LEAVES = 32


class Pair(NamedTuple):
    """Two minibatches. Sums over the entries of each leaf, `[..., leaves]`.

    - `signal`: $g_1 \\cdot g_2$, which estimates $|G|^2$; `noise`: half of $|g_1 - g_2|^2$, the trace of C.
    - `descent`: $g_1 A g_2$ with the steady response, what a step gains to first order; `diffusion`: that of the noise,
      tr(A C), a quarter of which is the floor that noise holds the loss above at small rates.
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
    """A brief look. `sharpness`: $v^T M v$ for the direction v that earlier looks found, M of the curvature in units of
    the response: from 2 on the rule is unstable."""

    pair: Pair
    loss: Float[Array, ""]
    sharpness: Float[Array, ""]


class Sight(NamedTuple):
    """What a brief look takes from earlier ones.

    - `direction[n]`: of largest curvature so far; `shift`: how far the lowest curvature is below 0.
    - `steady`, `alternating` `[leaves]`: the sums of the rule's response over its immediate part.
    """

    direction: Float[Array, " n"]
    shift: Float[Array, ""]
    steady: Float[Array, " leaves"]
    alternating: Float[Array, " leaves"]


class Survey(NamedTuple):
    """A thorough look, of many minibatches.

    - `pairs`, `losses`: of independent minibatches, `[blocks]`.
    - `curved_signal`, `curved_noise` `[blocks]`: $g_1^T H_3 g_2$, which estimates $G^T H G$, and
      $\\tfrac12 (g_1 - g_2)^T H_3 (g_1 - g_2)$, tr(H C).
    - `trace` `[draws]`: $z^T H_3 z$ for random signs z, which estimates tr(H) (Hutchinson); at least `BLOCKS` draws.
    - `highest`, `lowest`: extreme eigenvalues of M on one set of minibatches, without vectors; `highest_fresh`,
      `lowest_fresh` `[blocks]`: their Rayleigh quotients on each minibatch of another set.
    - `highest_share`, `lowest_share`: `[leaves]`, of the squared vectors; `leaf_highest`: `[leaves]`, the largest
      eigenvalue of M within each leaf, NaN where there are too many leaves.
    - `left` `[blocks, leaves]`: what conjugate gradients on one set of minibatches expect to gain, by the gradients of
      another set; `gains` `[blocks, PARTS]`: what the loss of those gains at parts of that way, from the whole down;
      `upward`: the part of the descent along directions of positive curvature, from 0 to 1.
    - `still` `[leaves]`: entries whose gradient was 0 in every minibatch; `unmoved`: entries that are as at the start.
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


class Scene(NamedTuple):
    """The loss of minibatches at a point, and the rule that moves it, on flat vectors. `has_forward`: whether the
    gradient of the loss has a forward derivative."""

    loss: Callable[[Params, Batch], Array]
    data: Batch
    rule: Rule
    state: OptState
    has_forward: bool

    @property
    def flat(self) -> Vectors:
        return self.rule.flat

    def gradient(self, rows: Int[Array, " B"], update: Array | None = None) -> tuple[Array, Array]:
        """Value and gradient of the minibatch of these examples; at the parameters, or after an update of them."""
        params = self.rule.params
        if update is not None:
            params = optax.apply_updates(params, self.flat.tree(update))
        value, grads = jax.value_and_grad(self.loss)(params, self._batch(rows))
        return value, self.flat.vector(grads)

    def value(self, rows: Int[Array, " B"], update: Float[Array, " n"]) -> Array:
        """The loss of the minibatch after an update of the parameters."""
        return self.loss(optax.apply_updates(self.rule.params, self.flat.tree(update)), self._batch(rows))

    def bend(self, rows: Int[Array, " B"], v: Float[Array, " n"]) -> tuple[Array, Array]:
        """The gradient, and the Hessian times v; by reverse mode twice where the loss has no forward mode."""
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
    """Whether JAX can differentiate the gradient in forward mode; it cannot where the loss has a custom_vjp."""

    def product(tangent: Params) -> Params:
        return jax.jvp(jax.grad(lambda w: loss(w, batch)), (params,), (tangent,))[1]

    try:  # JAX says so at once under vmap, and without it when it compiles, if at all
        jax.eval_shape(jax.vmap(product), jax.tree.map(lambda leaf: leaf[None], params))
    except TypeError:
        return False
    return True


def brief_probe(scene: Scene, sight: Sight, rows: Int[Array, "3 B"]) -> tuple[Probe, Array]:
    """A brief look with three minibatches, and the direction for the next one.

    It costs three gradients and one product with the Hessian. The response is its immediate part, times what the
    last survey found the whole to be.
    """
    v, spread = sight.direction, scene.flat.spread
    value, g1 = scene.gradient(rows[0])
    update, immediate = scene.rule.immediate(scene.state, g1)
    root = jnp.sqrt(jnp.maximum(immediate * spread(sight.alternating), 0))
    g2, Hv = scene.bend(rows[1], root * v)
    pair = scene.pair(jnp.maximum(immediate * spread(sight.steady), 0), update, g1, g2, rows[2])
    Mv = root * Hv
    ahead = Mv + sight.shift * v
    size = jnp.linalg.norm(ahead)
    found = jnp.where((size > 0) & jnp.isfinite(size), ahead / jnp.where(size > 0, size, 1), v)
    return Probe(pair, value, jnp.vdot(v, Mv)), found


def survey(
    scene: Scene, response: Response, start: Array, rows: Int[Array, "4 blocks B"], key: Array
) -> tuple[Survey, Sight]:
    """A thorough look, and what brief ones take from it; `rows` are four sets of minibatches."""
    flat, root, (_, blocks, size) = scene.flat, jnp.sqrt(response.alternating), rows.shape
    fit = rows[0, : min(blocks, max(FEWEST, -(-EXAMPLES // size)))]

    def over(fn: Callable[[Any], Any], given: Any) -> Any:
        return lax.map(fn, given, batch_size=max(1, AT_ONCE // size))

    def product(v: ArrayLike) -> Array:
        return jnp.mean(over(lambda row: root * scene.bend(row, root * v)[1], fit), axis=0)

    descent = root * jnp.mean(over(lambda row: scene.gradient(row)[1], rows[0]), axis=0)
    lowest, highest, way, upward, leaf_highest = _spectra(flat, product, descent, key)

    def block(given: tuple[Array, Array]) -> tuple[Any, ...]:
        rows, key = given
        values, gradients = jax.vmap(scene.gradient)(rows[1:3])
        signs = jax.random.rademacher(key, (-(-BLOCKS // blocks), flat.size), flat.dtype)
        directions = jnp.stack([root * lowest.vector, root * highest.vector, *gradients, *signs])
        products = jax.vmap(lambda v: scene.bend(rows[3], v)[1])(directions)
        forms = directions @ products.T
        update = scene.rule.step(scene.state, gradients[0])[0]
        ahead = lax.map(
            lambda part: scene.value(rows[2], -part * root * way), 0.25 ** jnp.arange(PARTS, dtype=way.dtype)
        )
        return (
            values[0], scene.pair(response.steady, update, gradients[0], gradients[1], rows[3]),
            flat.leaf_sums(gradients[1] * root * way) / 2, values[1] - ahead, jnp.any(gradients != 0, axis=0),
            forms[0, 0], forms[1, 1], forms[2, 3], (forms[2, 2] - 2 * forms[2, 3] + forms[3, 3]) / 2,
            jnp.diagonal(forms)[4:],
        )  # fmt: skip

    seen = over(block, (jnp.swapaxes(rows, 0, 1), jax.random.split(jax.random.fold_in(key, 0x74726163), blocks)))
    losses, pairs, left, gains, moving, lowest_fresh, highest_fresh, curved_signal, curved_noise, trace = seen
    sizes, at_once = jnp.array(flat.sizes, flat.dtype), flat.leaf_sums(response.immediate)
    steady, alternating = flat.leaf_sums(response.steady), flat.leaf_sums(response.alternating)
    sight = Sight(
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
        unmoved=flat.leaf_sums((flat.vector(scene.rule.params) == start).astype(int)),
        steady=steady / sizes,
        alternating=alternating / sizes,
        regular=response.regular,
    ), sight


def condensed(survey: Survey) -> Probe:
    """A survey as a brief look: its means."""
    return Probe(
        jax.tree.map(lambda rows: rows.mean(axis=0), survey.pairs),
        survey.losses.mean(),
        jnp.asarray(survey.highest.value),
    )


def _spectra(
    flat: Vectors, product: Callable[[Array], Array], descent: Array, key: Array
) -> tuple[Extreme, Extreme, Array, Array, Array]:
    """Lowest and highest curvature, the way down and the share of |g|^2 that lies along it, the highest in each leaf.

    All are read from Krylov spaces, one after another in one loop, so that the product is compiled once: of a random
    start, of the descent g, and of the random start within each leaf. The way is $M^{-1} g$ in the second space, along
    positive curvature.
    """
    count, leaves, dtype = min(PRODUCTS, flat.size), len(flat.sizes), descent.dtype
    draw, size = jax.random.normal(key, descent.shape, dtype), jnp.linalg.norm(descent)

    def krylov(job: Array, found: "_Found") -> "_Found":
        whole = job < 2
        mask = jnp.where(whole, 1, flat.spread((jnp.arange(leaves) == job - 2).astype(dtype)))
        start = mask * jnp.where((job == 1) & (size > 0), descent, draw)
        start = start / jnp.maximum(jnp.linalg.norm(start), jnp.finfo(dtype).tiny)
        steps = jnp.where(whole, count, min(LEAF_PRODUCTS, count))
        Q, T = lanczos(lambda v: mask * product(mask * v), start, jax.random.fold_in(key, job), count, steps)
        values, vectors = jnp.linalg.eigh(T)
        ahead = values > SINGULAR * jnp.max(jnp.abs(values))
        parts = jnp.where(ahead, vectors[0] / jnp.where(ahead, values, 1), 0)
        return _Found(
            values=jnp.where(job == 0, values, found.values),
            ritz=jnp.where(job == 0, vectors[:, jnp.array([0, -1])].T @ Q, found.ritz),
            way=jnp.where(job == 1, size * (vectors @ parts) @ Q, found.way),
            upward=jnp.where(job == 1, jnp.sum(jnp.where(ahead, jnp.square(vectors[0]), 0)), found.upward),
            highest=found.highest.at[jnp.where(whole, leaves, job - 2)].set(values[-1], mode="drop"),
        )

    blank = _Found(
        jnp.zeros(count, dtype), jnp.zeros((2, flat.size), dtype), jnp.zeros_like(descent), jnp.zeros((), dtype),
        jnp.full(leaves, jnp.nan, dtype),
    )  # fmt: skip
    found = lax.fori_loop(0, 2 + (leaves if leaves <= MOST_LEAVES else 0), krylov, blank)
    return *bounded(product, found.values, found.ritz), found.way, found.upward, found.highest


class _Found(NamedTuple):
    """What `_spectra` takes from the Krylov spaces."""

    values: Float[Array, " k"]
    ritz: Float[Array, "2 n"]
    way: Float[Array, " n"]
    upward: Float[Array, ""]
    highest: Float[Array, " leaves"]
