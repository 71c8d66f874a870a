"""Extreme eigenvalues of a symmetric matrix from its products with vectors, with error bounds."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, ArrayLike, Float

FAILURE_PROBABILITY = 1e-10  # probability that the bound `Extreme.beyond` does not hold

Product = Callable[[Array], Array]


class Extreme(NamedTuple):
    """An extreme eigenvalue of a symmetric matrix H, as computed by Lanczos.

    `vector[n]`, u: the approximate eigenvector, of norm 1; `value`: its Rayleigh quotient u'Hu; `error`: the norm of
    the residual Hu - value u plus a bound on rounding. These statements always hold:

    - The true extreme is at `value` or beyond it, up to rounding: the least eigenvalue is <= `value`, the largest is
      >= `value`.
    - Some eigenvalue is within `error` of `value` (a theorem).
    - With probability at least 1 - 1e-10 the true extreme is at most `beyond` beyond `value` (a theorem about random
      starts).

    With more products, `beyond` shrinks slowly and `error` fast. The extreme itself is within `error` unless it has a
    close neighbour. If the start contains R times as much of that neighbour as of the extreme, the extreme is within R
    errors; R > 1000 has a probability of 1 in 1,500.
    """

    value: Float[ArrayLike, "..."]
    error: Float[ArrayLike, "..."]
    vector: Float[ArrayLike, "... n"]
    beyond: Float[ArrayLike, "..."]


def extremes(product: Product, start: Float[Array, " n"], key: Array, num_products: int) -> tuple[Extreme, Extreme]:
    r"""Estimate the least and the greatest eigenvalue by Lanczos. Pure.

    $$H Q_k = Q_k T_k + \beta_k q_{k+1} e_k', \qquad Q_k' Q_k = I, \qquad T_k s = \theta s, \qquad
      \exists \lambda: |\lambda - \theta| \le \lVert H u - \theta u \rVert, \quad u = Q_k s$$

    Every vector is orthogonalized against all previous ones twice, so that no eigenvalue appears more than once by
    rounding. If the Krylov space is exhausted, a new random direction continues it, so that multiple eigenvalues are
    found too.

    Args:
      product: `v -> H v`, `[n]` to `[n]`.
      start: the starting vector, not 0; `Extreme.beyond` holds for a random start.
      key: random key for the directions that continue an exhausted space.
      num_products: k, from 1 to n; the memory is k vectors of n numbers, and two more products are taken.

    Returns:
      `(lowest, highest)`.

    Raises:
      ValueError: `num_products` is not from 1 to n.

    Example:
      >>> H, key = jnp.diag(jnp.arange(1.0, 101.0)), jax.random.key(0)
      >>> lowest, highest = extremes(lambda v: H @ v, jax.random.normal(key, (100,)), key, num_products=50)
      >>> print(f"{lowest.value:.3f} {highest.value:.3f}")
      1.000 100.000

    Source: Parlett (1998), "The symmetric eigenvalue problem", theorem 4.5.1 (error) and chapter 13 (Lanczos);
    Kuczynski and Wozniakowski (1992), SIAM J. Matrix Anal. Appl. 13(4), theorem 4.2 (beyond).
    """
    k, n = num_products, start.size
    if not 1 <= k <= n:
        raise ValueError(f"extremes: num_products must be from 1 to n = {n}, got {k}")
    Q, T = lanczos(product, start / jnp.linalg.norm(start), key, k)
    values, vectors = jnp.linalg.eigh(T)
    return bounded(product, values, vectors[:, jnp.array([0, -1])].T @ Q)


def bounded(product: Product, values: Float[Array, " k"], ritz: Float[Array, "2 n"]) -> tuple[Extreme, Extreme]:
    """The lowest and the highest Ritz value with error bounds, from all Ritz `values` and the two Ritz vectors.

    The Krylov space must come from a random start.
    """
    (k,), (_, n), dtype = values.shape, ritz.shape, ritz.dtype
    spread = values[-1] - values[0]
    sure = jnp.square(jnp.log(1.648 * math.sqrt(n) / FAILURE_PROBABILITY) / (2 * k - 1)).astype(dtype)
    beyond = jnp.where(k == n, 0, jnp.where(sure < 0.5, sure / jnp.maximum(1 - 2 * sure, 0.01) * spread, jnp.inf))
    rounding = 4 * math.sqrt(n) * jnp.finfo(dtype).eps * jnp.max(jnp.abs(values))

    def extreme(u: Array) -> Extreme:
        u = u / jnp.linalg.norm(u)
        Hu = product(u)
        value = jnp.dot(u, Hu)
        error = jnp.linalg.norm(Hu - value * u) + rounding
        return Extreme(value, error, u, jnp.maximum(beyond, error).astype(dtype))

    both = lax.map(extreme, ritz)
    lowest, highest = (jax.tree.map(lambda rows, i=i: rows[i], both) for i in (0, 1))
    return lowest, highest


def lanczos(
    product: Product, start: Float[Array, " n"], key: Array, k: int, steps: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Orthonormal rows Q[k, n] and the tridiagonal T[k, k] = Q H Q', from a start of norm 1.

    If `steps`, which may be traced, is less than k, only that many steps are taken and the rest is 0.
    """
    n, dtype = start.size, start.dtype
    last = jnp.asarray(k if steps is None else steps)
    tiny = 10 * math.sqrt(n) * jnp.finfo(dtype).eps

    def against(Q: Array, v: Array) -> Array:
        for _ in range(2):  # two passes suffice: Parlett, section 6.9
            v = v - (Q @ v) @ Q
        return v

    def step(j: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        Q, alpha, beta, size = carry
        Hq = product(Q[j])
        size = jnp.maximum(size, jnp.linalg.norm(Hq))
        rest = against(Q, Hq)
        norm = jnp.linalg.norm(rest)
        exhausted = norm <= tiny * size
        fresh = lax.cond(
            exhausted, lambda: against(Q, jax.random.normal(jax.random.fold_in(key, j), (n,), dtype)), lambda: rest
        )
        Q = Q.at[jnp.where(j + 1 == last, k, j + 1)].set(fresh / jnp.linalg.norm(fresh), mode="drop")
        return (
            Q,
            alpha.at[j].set(jnp.dot(Q[j], Hq)),
            beta.at[j].set(jnp.where(exhausted | (j + 1 == last), 0, norm)),
            size,
        )

    Q = jnp.zeros((k, n), dtype).at[0].set(start)
    zeros = jnp.zeros(k, dtype)
    Q, alpha, beta, _ = lax.fori_loop(0, last, step, (Q, zeros, zeros, jnp.zeros((), dtype)))
    return Q, jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
