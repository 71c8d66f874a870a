"""Minimum, saddle or maximum? Extreme curvatures with bounds on their error, and how long a saddle holds."""

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

DENSE = 200  # up to so many parameters the Hessian is written down
SHARP = 1e-3  # the error of a curvature, relative to the largest, that is good enough to stop at
MARGIN = 1000  # errors: what may hide behind a close neighbour


class Classification(NamedTuple):
    """What a point is, and the evidence.

    Args:
      kind: "minimum", "saddle", "maximum", "degenerate" (a curvature that decides is zero within its error), or "not
        stationary".
      grad_norm: Euclidean.
      lowest, highest: curvature, its error and its direction; see `Extreme`.
      negative_curvature: a direction of norm 1, like x, along which the surface bends down most; None where it is not
        known to bend down.
      num_products: Hessian-vector products taken; n where the Hessian was written down.
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
    r"""Minimum, saddle, maximum or degenerate: the signs of the extreme curvatures at a point of zero gradient.

    $$\nabla f(x) = 0: \quad \lambda_{\min} > 0 \text{ minimum}, \quad \lambda_{\max} < 0 \text{ maximum}, \quad
      \lambda_{\min} < 0 < \lambda_{\max} \text{ saddle}$$

    Up to 200 parameters the eigenvalues are those of the Hessian; beyond, Lanczos finds the extreme ones from products
    of the Hessian with vectors, 40 of them at first and more while the answer is open.

    Args:
      fn: `fn(x) -> scalar`, twice differentiable.
      x: any tree of floating-point arrays, n numbers in all.
      gtol: the gradient counts as zero up to `gtol * max(1, |f(x)|)`; the root of the dtype's epsilon unless given.
      max_products: when to stop asking: 40, 160, and the rest together. Small curvatures beside large ones take many.
      key: of the random start of Lanczos; one and the same unless given.

    Returns:
      `Classification(kind, grad_norm, lowest, highest, negative_curvature, num_products)`.

    Raises:
      TypeError: parameters that are not floating point.
      ValueError: a value, gradient or Hessian that is not finite at x.

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
        products += number
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
    for number in (40, 160):
        if number < min(size, most):
            yield number
            most -= number
    yield min(size, most)


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
    r"""The least and the greatest eigenvalue of the Hessian at x, by Lanczos on Hessian-vector products. Pure.

    $$H Q_k = Q_k T_k + \beta_k q_{k+1} e_k', \qquad Q_k' Q_k = I, \qquad T_k s = \theta s, \qquad
      \exists \lambda: |\lambda - \theta| \le \lVert H u - \theta u \rVert, \quad u = Q_k s$$

    Args:
      fn: `fn(x) -> scalar`.
      x: any tree of floating-point arrays, n numbers in all.
      key: of the random start.
      num_products: k, from 1 to n; it keeps k vectors of n numbers.

    Returns:
      `(lowest, highest)`, each an `Extreme` with a bound on its error.

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
    """How a run left a critical point: steps taken, whether it left at all, and where it was then."""

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
    r"""Steps until an optimizer that starts exactly on a critical point is farther than a radius from it. Pure.

    Without noise it would stay on a saddle for ever. With it, distance grows geometrically along the direction of
    negative curvature, and theory says, with $\epsilon$ the noise's first foothold relative to the radius,

    $$T \approx \frac{\log(1 / \epsilon)}{\eta |\lambda_{\min}|}$$

    `quadratic_theory.escape_steps` has it without the approximation. `vmap` over keys for an ensemble.

    Args:
      fn: `fn(params) -> scalar`.
      x: the critical point, any tree.
      optimizer: any optax transformation that needs gradients only.
      noise: standard deviation of a Gaussian noise in each coordinate of every gradient; units of gradient.
      key: of the noise.
      radius: how far is away; units of parameter.
      max_steps: when to give up.

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
