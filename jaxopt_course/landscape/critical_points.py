"""Classify critical points by their extreme curvatures, with error bounds, and measure escape times from saddles."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxopt_course.annotations import Array, Bool, Int
from jaxopt_course.dtypes import check_floating
from jaxopt_course.landscape.lanczos import Extreme, extremes

DENSE = 200  # the Hessian is formed for up to this many parameters
SHARP = 1e-3  # stop if the error of a curvature relative to the largest is at most this
BOUNDS = 2  # products that `extremes` takes beyond the dimension of its space, for its error bounds
MARGIN = 1000  # an extreme with a close neighbour may be this many errors away


class Classification(NamedTuple):
    """The kind of a point, and the evidence for it.

    Args:
      kind: "minimum", "saddle", "maximum", "degenerate" (a curvature that decides the kind is zero within its error),
        or "not stationary".
      grad_norm: Euclidean norm of the gradient.
      lowest, highest: extreme curvatures with their errors and directions; see `Extreme`.
      negative_curvature: the direction of the lowest curvature, with norm 1 and the structure of x; None if that
        curvature is not known to be negative.
      num_products: number of Hessian-vector products; n if the Hessian was formed.
    """

    kind: str
    grad_norm: float
    lowest: Extreme
    highest: Extreme
    negative_curvature: Any
    num_products: int


def classify(
    fn: Callable[[Any], Array],
    x: Any,
    *,
    gtol: float | None = None,
    max_products: int = 800,
    key: Array | None = None,
) -> Classification:
    r"""Classify a critical point by the signs of its extreme curvatures: minimum, saddle, maximum or degenerate.

    $$\nabla f(x) = 0: \quad \lambda_{\min} > 0 \text{ minimum}, \quad \lambda_{\max} < 0 \text{ maximum}, \quad
      \lambda_{\min} < 0 < \lambda_{\max} \text{ saddle}$$

    For up to 200 parameters, the eigenvalues of the Hessian are computed. For more parameters, Lanczos finds the
    extreme eigenvalues from Hessian-vector products: 40 products at first, and more as long as the kind is undecided.

    Args:
      fn: `fn(x) -> scalar`, twice differentiable.
      x: any tree of floating-point arrays, n numbers in all.
      gtol: the gradient counts as zero if its norm is at most `gtol * max(1, |f(x)|)`. Default: the square root of the
        dtype's epsilon.
      max_products: the most Hessian-vector products, taken in rounds of 40, 160 and the rest. Small curvatures beside
        large ones need many.
      key: random key for the starting vector of Lanczos; a fixed key by default.

    Returns:
      `Classification(kind, grad_norm, lowest, highest, negative_curvature, num_products)`.

    Raises:
      TypeError: the parameters are not floating point.
      ValueError: the value, gradient or Hessian at x is not finite, or x has no parameters.

    Example:
      >>> import jaxopt_course as jc
      >>> well = jc.surfaces.SURFACES["double_well"].fn
      >>> found = classify(well, jnp.zeros(2))
      >>> f"{found.kind}: {found.lowest.value:.0f} along {np.abs(found.negative_curvature)}"
      'saddle: -1 along [1. 0.]'
      >>> descended = jc.minimize(well, jc.lbfgs(), found.negative_curvature).params
      >>> classify(well, descended).kind
      'minimum'

    Source: Parlett (1998), "The symmetric eigenvalue problem", theorem 4.5.1 (error) and chapter 13 (Lanczos);
    Kuczynski and Wozniakowski (1992), SIAM J. Matrix Anal. Appl. 13(4), theorem 4.2 (beyond).
    """
    check_floating(x)
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(x))
    if size == 0:
        raise ValueError("classify: x has no parameters")
    value, grad_norm = (float(part) for part in _value_and_grad_norm(fn, x))
    if not math.isfinite(value + grad_norm):
        raise ValueError(f"classify: f(x) is {value} and the gradient's norm {grad_norm}; both must be finite")
    eps = float(jnp.finfo(ravel_pytree(x)[0].dtype).eps)
    key = jax.random.key(0) if key is None else key
    products = 0
    for number in [size] if size <= DENSE else _rounds(size, max_products):
        if size <= DENSE:
            lowest, highest = _dense_extremes(fn, x)
        else:
            lowest, highest = jax.device_get(extreme_curvatures(fn, x, key, number))
        products += size if size <= DENSE else number + BOUNDS
        if not math.isfinite(lowest.error + highest.error):
            raise ValueError("classify: the Hessian at x has an entry that is not finite")
        scale = max(abs(float(lowest.value)), abs(float(highest.value)))
        none = 100 * math.sqrt(size) * eps * scale
        kind = _kind(lowest, highest, none, 1 if size <= DENSE else MARGIN)
        if max(lowest.error, highest.error) <= (none if kind == "degenerate" else SHARP * scale):
            break
    bends_down = float(lowest.value) < -none
    if grad_norm > (math.sqrt(eps) if gtol is None else gtol) * max(1.0, abs(value)):
        kind = "not stationary"
    down = ravel_pytree(x)[1](jnp.asarray(lowest.vector)) if bends_down else None
    return Classification(kind, grad_norm, lowest, highest, down, products)


def _rounds(size: int, most: int) -> Iterator[int]:
    """Yield the dimensions of Krylov spaces whose products, with those of the bounds, are at most `most` in all."""
    for number in (40, 160):
        if number < min(size, most):
            yield number - BOUNDS
            most -= number
    yield max(1, min(size, most - BOUNDS))


def _kind(lowest: Extreme, highest: Extreme, none: float, margin: int) -> str:
    if lowest.value < -none and highest.value > none:
        return "saddle"
    if lowest.value - margin * lowest.error > none:
        return "minimum"
    return "maximum" if highest.value + margin * highest.error < -none else "degenerate"


@partial(jax.jit, static_argnums=0)
def _value_and_grad_norm(fn: Callable[[Any], Array], x: Any) -> tuple[Array, Array]:
    value, grads = jax.value_and_grad(fn)(x)
    return value, jnp.linalg.norm(ravel_pytree(grads)[0])


@partial(jax.jit, static_argnums=0)
def _hessian(fn: Callable[[Any], Array], x: Any) -> Array:
    flat, unravel = ravel_pytree(x)
    return jax.hessian(lambda w: fn(unravel(w)))(flat)


def _dense_extremes(fn: Callable[[Any], Array], x: Any) -> tuple[Extreme, Extreme]:
    H = np.asarray(_hessian(fn, x))
    if not np.isfinite(H).all():
        raise ValueError("classify: the Hessian at x has an entry that is not finite")
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    error = len(H) * np.finfo(H.dtype).eps * np.abs(values).max()  # backward error of eigh: Anderson et al. (1999)
    lowest, highest = (Extreme(values[i], error, vectors[:, i], error) for i in (0, -1))
    return lowest, highest


@partial(jax.jit, static_argnums=(0, 3))
def extreme_curvatures(
    fn: Callable[[Any], Array], x: Any, key: Array, num_products: int = 40
) -> tuple[Extreme, Extreme]:
    r"""Estimate the least and the greatest eigenvalue of the Hessian at x by Lanczos. Pure.

    $$H Q_k = Q_k T_k + \beta_k q_{k+1} e_k', \qquad Q_k' Q_k = I, \qquad T_k s = \theta s, \qquad
      \exists \lambda: |\lambda - \theta| \le \lVert H u - \theta u \rVert, \quad u = Q_k s$$

    Args:
      fn: `fn(x) -> scalar`.
      x: any tree of floating-point arrays, n numbers in all.
      key: random key for the starting vector.
      num_products: k, from 1 to n; the memory is k vectors of n numbers, and two more Hessian-vector products are
        taken for the error bounds.

    Returns:
      `(lowest, highest)`, each an `Extreme` with a bound on its error.

    Raises:
      ValueError: `num_products` is not from 1 to n.

    Example:
      >>> spectrum = jnp.linspace(-0.5, 2.0, 10_000)
      >>> f = lambda w: jnp.sum(spectrum * w**2) / 2
      >>> low, high = extreme_curvatures(f, jnp.zeros(10_000), jax.random.key(0), 40)
      >>> print(f"{low.value:.3f} +- {low.error:.2f}, {high.value:.3f} +- {high.error:.2f}")
      -0.498 +- 0.01, 1.997 +- 0.01

    Source: as `classify`.
    """
    flat, unravel = ravel_pytree(x)
    k, n = num_products, flat.size
    if not 1 <= k <= n:
        raise ValueError(f"extreme_curvatures: num_products must be from 1 to n = {n}, got {k}")
    start = jax.random.normal(key, (n,), flat.dtype)

    def product(v: Array) -> Array:
        return jax.jvp(jax.grad(lambda w: fn(unravel(w))), (flat,), (v,))[1]

    return extremes(product, start, jax.random.fold_in(key, 1), k)


class Escape(NamedTuple):
    """How a run left a critical point.

    `steps`: steps taken; `escaped`: whether it left; `params`: the parameters after these steps.
    """

    steps: Int[Array, "..."]
    escaped: Bool[Array, "..."]
    params: Any


def escape_time(
    fn: Callable[[Any], Array],
    x: Any,
    optimizer: optax.GradientTransformation,
    noise: float | Array,
    key: Array,
    *,
    radius: float = 1.0,
    max_steps: int = 10_000,
) -> Escape:
    r"""Count the steps until an optimizer that starts on a critical point is farther than a radius from it. Pure.

    Without noise the optimizer would stay on a saddle forever. With noise, the distance grows geometrically along the
    direction of negative curvature. Let $\epsilon$ be the initial displacement by the noise relative to the radius;
    then, in theory,

    $$T \approx \frac{\log(1 / \epsilon)}{\eta |\lambda_{\min}|}$$

    `quadratic_theory.escape_steps` computes T without the approximation. For an ensemble, use `vmap` over keys.

    Args:
      fn: `fn(params) -> scalar`.
      x: the critical point, any tree.
      optimizer: any optax transformation that needs gradients only.
      noise: standard deviation of the Gaussian noise in each coordinate of every gradient; units of gradient.
      key: random key for the noise.
      radius: the distance from x that counts as escaped; units of parameter.
      max_steps: the most steps.

    Returns:
      `Escape(steps, escaped, params)`.

    Example:
      >>> import jaxopt_course as jc
      >>> f = lambda w: (w[0] ** 2 - w[1] ** 2) / 2
      >>> keys = jax.random.split(jax.random.key(0), 1000)
      >>> for noise in (1e-3, 1e-5):
      ...     steps = jax.vmap(lambda key: escape_time(f, jnp.zeros(2), jc.sgd(0.1), noise, key).steps)(keys)
      ...     theory = jc.landscape.quadratic_theory.escape_steps(-1.0, noise, 1.0, learning_rate=0.1)
      ...     print(f"{steps.mean():.0f} steps, theory {theory:.0f}")
      96 steps, theory 96
      144 steps, theory 144

    Source: Jin et al. (2017), "How to escape saddle points efficiently", ICML; Strogatz (2015), "Nonlinear dynamics and
    chaos", section 2.4, for the time constant.
    """
    flat, unravel = ravel_pytree(x)

    def going_on(carry: tuple[Any, ...]) -> Array:
        w, _, steps = carry
        return (jnp.linalg.norm(w - flat) <= radius) & (steps < max_steps)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        w, state, steps = carry
        draw = jax.random.normal(jax.random.fold_in(key, steps), flat.shape, flat.dtype)
        grads = jax.grad(lambda w: fn(unravel(w)))(w) + jnp.asarray(noise, flat.dtype) * draw
        updates, state = optimizer.update(unravel(grads), state, unravel(w))
        return w + ravel_pytree(updates)[0], state, steps + 1

    w, _, steps = lax.while_loop(going_on, step, (flat, optimizer.init(x), jnp.int32(0)))
    return Escape(steps, jnp.linalg.norm(w - flat) > radius, unravel(w))
