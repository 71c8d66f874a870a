"""The 35 unconstrained least-squares problems of Moré, Garbow and Hillstrom, a standard test collection.

`PROBLEMS[name]` is a record with the start and the known minima. Every objective is a sum of squares without a factor
of one half,

    f(x) = f_1(x)^2 + ... + f_m(x)^2,

and this file defines the residuals f_i, one function per problem, in the order and with the numbering of the paper.
The residuals of problems 20 to 35 also accept x of other lengths; the records are for the length of their `start`.

Overflow gives inf, as usual in floating point. Otherwise the gradient is finite wherever the function is: at a kink or
a pole, the term that contains it is treated as constant.

Source: Moré, Garbow, Hillstrom (1981), "Testing unconstrained optimization software", ACM Transactions on Mathematical
Software 7(1), 17-41, section 3.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, ArrayLike, Float
from jaxopt_course.dtypes import check_floating
from jaxopt_course.problems import mgh_data
from jaxopt_course.problems.mgh_data import Minimum

__all__ = ["PROBLEMS", "Minimum", "Problem"]


def __dir__() -> list[str]:
    return __all__


class Problem(NamedTuple):
    """A problem of the collection, with its known minima.

    Args:
      name: as in `PROBLEMS`.
      fn: `fn(params[n]) -> scalar`, the sum of squares of the residuals, in the dtype of `params`. Raises ValueError
        for another shape, TypeError for integers.
      start: the standard start `[n]`, in float64.
      minima: `Minimum(value, params)` records: a global one first, then the local ones.
      residuals: `residuals(params[n]) -> [m]`.
      number: its number in the paper, 1 to 35.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> problem = PROBLEMS["brown_dennis"]
      >>> x = jnp.asarray(problem.start)
      >>> for _ in range(10):  # Newton's method
      ...     x = x - jnp.linalg.solve(jax.hessian(problem.fn)(x), jax.grad(problem.fn)(x))
      >>> f"{problem.fn(problem.start):.3g} -> {problem.fn(x):.3g}; the minimum is {problem.minima[0].value:.3g}"
      '7.93e+06 -> 8.58e+04; the minimum is 8.58e+04'
    """

    name: str
    fn: Callable[[ArrayLike], Array]
    start: np.ndarray
    minima: tuple[Minimum, ...]
    residuals: Callable[[Array], Array]
    number: int


def rosenbrock(x: Float[Array, "2"]) -> Float[Array, "2"]:
    """Problem 1: the curved valley (Rosenbrock 1960)."""
    return jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def freudenstein_roth(x: Float[Array, "2"]) -> Float[Array, "2"]:
    """Problem 2: a local minimum in addition to the global one (Freudenstein and Roth 1963)."""
    return jnp.stack([x[0] - 13 + ((5 - x[1]) * x[1] - 2) * x[1], x[0] - 29 + ((x[1] + 1) * x[1] - 14) * x[1]])


def powell_badly_scaled(x: Float[Array, "2"]) -> Float[Array, "2"]:
    """Problem 3: coordinates of 1e-5 and 10 (Powell 1970)."""
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def brown_badly_scaled(x: Float[Array, "2"]) -> Float[Array, "3"]:
    """Problem 4: coordinates of 1e6 and 2e-6 (Brown, unpublished)."""
    return jnp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x: Float[Array, "2"]) -> Float[Array, "3"]:
    """Problem 5: a valley that runs off to infinity (Beale 1958)."""
    return jnp.stack([y - x[0] * (1 - x[1] ** i) for i, y in ((1, 1.5), (2, 2.25), (3, 2.625))])


def jennrich_sampson(x: Float[Array, "2"]) -> Float[Array, "10"]:
    """Problem 6, m = 10: large residuals (Jennrich and Sampson 1968)."""
    i = _one_to(10, x)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def helical_valley(x: Float[Array, "3"]) -> Float[Array, "3"]:
    """Problem 7: a valley that winds once around the third axis (Fletcher and Powell 1963)."""
    on_axis = (x[0] == 0) & (x[1] == 0)  # the angle is undefined there, and the radius has a kink
    x1, x2 = jnp.where(on_axis, 1, x[0]), jnp.where(on_axis, 0, x[1])
    left = x1 < 0  # the paper's angle, in turns, jumps on the negative half of the second axis, far from the start
    side = jnp.where(left, -1, 1).astype(x.dtype)
    theta = jnp.arctan2(side * x2, side * x1) / (2 * math.pi) + jnp.where(left, 0.5, 0).astype(x.dtype)
    radius = jnp.where(on_axis, 0, jnp.sqrt(x1**2 + x2**2))
    return jnp.stack([10 * (x[2] - 10 * theta), 10 * (radius - 1), x[2]])


def bard(x: Float[Array, "3"]) -> Float[Array, "15"]:
    """Problem 8: a rational fit (Bard 1970)."""
    u = _one_to(15, x)
    v = 16 - u
    return _like(x, mgh_data.BARD) - (x[0] + u / (v * x[1] + jnp.minimum(u, v) * x[2]))


def gaussian(x: Float[Array, "3"]) -> Float[Array, "15"]:
    """Problem 9: a fit of one bell curve, with very small residuals (Moré, Garbow and Hillstrom 1981)."""
    t = (8 - _one_to(15, x)) / 2
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - _like(x, mgh_data.GAUSSIAN)


def meyer(x: Float[Array, "3"]) -> Float[Array, "16"]:
    """Problem 10: the resistance of a thermistor, badly scaled and badly conditioned (Meyer 1970)."""
    t = 45 + 5 * _one_to(16, x)
    return x[0] * jnp.exp(x[1] / _off_pole(t + x[2])) - _like(x, mgh_data.MEYER)


def gulf(x: Float[Array, "3"]) -> Float[Array, "10"]:
    """Problem 11, m = 10: a Weibull curve; where the paper prints "y_i m i x_2", read y_i - x_2 (Cox 1969)."""
    t = np.arange(1, 11) / 100
    distance = jnp.abs(_like(x, 25 + (-50 * np.log(t)) ** (2 / 3)) - x[1])
    hit = distance == 0  # the slope of the power there is 0, infinite, or two-sided
    # Capped at the root of the largest number, where exp(-power / x1) is already 0; beyond it the slope is 0 * inf.
    cap = math.log(jnp.finfo(x.dtype).max) / 2
    log_power_of_0 = jnp.where(x[2] > 0, -jnp.inf, jnp.where(x[2] == 0, 0, cap)).astype(x.dtype)
    log_power = jnp.where(hit, log_power_of_0, x[2] * jnp.log(jnp.where(hit, 1, distance)))
    return jnp.exp(-jnp.exp(jnp.minimum(log_power, cap)) / _off_pole(x[0])) - _like(x, t)


def box_3d(x: Float[Array, "3"]) -> Float[Array, "10"]:
    """Problem 12, m = 10: two exponentials, with a line of minimizers (Box 1966)."""
    t = _one_to(10, x) / 10
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def powell_singular(x: Float[Array, "4"]) -> Float[Array, "4"]:
    """Problem 13: a Hessian of rank 2 at the minimizer (Powell 1962)."""
    return extended_powell_singular(x)


def wood(x: Float[Array, "4"]) -> Float[Array, "6"]:
    """Problem 14: two coupled valleys, with a saddle that looks like a minimum (Colville 1968)."""
    return jnp.stack(
        [
            10 * (x[1] - x[0] ** 2),
            1 - x[0],
            math.sqrt(90) * (x[3] - x[2] ** 2),
            1 - x[2],
            math.sqrt(10) * (x[1] + x[3] - 2),
            (x[1] - x[3]) / math.sqrt(10),
        ]
    )


def kowalik_osborne(x: Float[Array, "4"]) -> Float[Array, "11"]:
    """Problem 15: a rational fit of enzyme kinetics (Kowalik and Osborne 1968)."""
    u = _like(x, mgh_data.KOWALIK_OSBORNE_U)
    return _like(x, mgh_data.KOWALIK_OSBORNE_Y) - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x: Float[Array, "4"]) -> Float[Array, "20"]:
    """Problem 16, m = 20: large residuals (Brown and Dennis 1971)."""
    t = _one_to(20, x) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


def osborne_1(x: Float[Array, "5"]) -> Float[Array, "33"]:
    """Problem 17: a fit of two exponentials and a constant (Osborne 1972)."""
    t = 10 * (_one_to(33, x) - 1)
    return _like(x, mgh_data.OSBORNE_1) - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


def biggs_exp6(x: Float[Array, "6"]) -> Float[Array, "13"]:
    """Problem 18, m = 13: a fit of three exponentials, whose order is arbitrary (Biggs 1971)."""
    t = _one_to(13, x) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


def osborne_2(x: Float[Array, "11"]) -> Float[Array, "65"]:
    """Problem 19: a fit of one exponential and three bell curves (Osborne 1972)."""
    t = (_one_to(65, x) - 1) / 10
    bells = [x[1 + k] * jnp.exp(-((t - x[8 + k]) ** 2) * x[5 + k]) for k in range(3)]
    return _like(x, mgh_data.OSBORNE_2) - (x[0] * jnp.exp(-t * x[4]) + bells[0] + bells[1] + bells[2])


def watson(x: Float[Array, " n"]) -> Float[Array, "31"]:
    """Problem 20: u' = 1 + u^2 by a polynomial; the conditioning worsens with its degree (Kowalik and Osborne 1968)."""
    t, j = np.arange(1, 30)[:, None] / 29, np.arange(x.shape[0])
    u = _apply(t**j, x)
    slope = _apply(j * t ** np.maximum(j - 1, 0), x)
    return jnp.concatenate([slope - u**2 - 1, jnp.stack([x[0], x[1] - x[0] ** 2 - 1])])


def extended_rosenbrock(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 21, n even: Rosenbrock's valley, once for every two coordinates (Spedicato 1975)."""
    odd, even = x[::2], x[1::2]
    return jnp.stack([10 * (even - odd**2), 1 - odd], axis=1).ravel()


def extended_powell_singular(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 22, n a multiple of 4: Powell's singular function, once for every four (Spedicato 1975)."""
    a, b, c, d = x.reshape(-1, 4).T
    rows = [a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2]
    return jnp.stack(rows, axis=1).ravel()


def penalty_i(x: Float[Array, " n"]) -> Float[Array, " n+1"]:
    """Problem 23: the point near a sphere that is closest to the ones (Gill, Murray and Pitfield 1972)."""
    return jnp.append(math.sqrt(1e-5) * (x - 1), jnp.sum(x**2) - 0.25)


def penalty_ii(x: Float[Array, " n"]) -> Float[Array, " 2*n"]:
    """Problem 24: like `penalty_i`, with exponentials (Gill, Murray and Pitfield 1972)."""
    i, growth = _one_to(x.shape[0], x), jnp.exp(x / 10)
    y = jnp.exp(i[1:] / 10) + jnp.exp(i[:-1] / 10)
    soft = jnp.concatenate([growth[1:] + growth[:-1] - y, growth[1:] - math.exp(-0.1)])
    return jnp.concatenate([x[:1] - 0.2, math.sqrt(1e-5) * soft, jnp.sum(i[::-1] * x**2, keepdims=True) - 1])


def variably_dimensioned(x: Float[Array, " n"]) -> Float[Array, " n+2"]:
    """Problem 25: a quartic along one direction (Moré, Garbow and Hillstrom 1981)."""
    total = jnp.sum(_one_to(x.shape[0], x) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([total, total**2])])


def trigonometric(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 26: many minima (Spedicato 1975)."""
    rise = 2 * jnp.sin(x / 2) ** 2  # 1 - cos(x), without losing the digits of a small x
    return jnp.sum(rise) + _one_to(x.shape[0], x) * rise - jnp.sin(x)


def brown_almost_linear(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 27: all residuals are linear except one, a product (Brown 1969)."""
    linear = x + jnp.sum(x) - (x.shape[0] + 1)
    return jnp.append(linear[:-1], jnp.prod(x) - 1)


def discrete_boundary_value(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 28: u'' = (u + t + 1)^3 / 2 by differences (Moré and Cosnard 1979)."""
    h = 1 / (x.shape[0] + 1)
    padded, t = jnp.pad(x, 1), h * _one_to(x.shape[0], x)
    return 2 * x - padded[:-2] - padded[2:] + h**2 / 2 * (x + t + 1) ** 3


def discrete_integral_equation(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 29: the same equation, as an integral with Green's function (Moré and Cosnard 1979)."""
    h = 1 / (x.shape[0] + 1)
    t = h * np.arange(1, x.shape[0] + 1)
    kernel = np.minimum(t[:, None], t) * (1 - np.maximum(t[:, None], t))
    return x + h / 2 * _apply(kernel, (x + _like(x, t) + 1) ** 3)


def broyden_tridiagonal(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 30 (Broyden 1965)."""
    padded = jnp.pad(x, 1)
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


def broyden_banded(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 31: five neighbours below, one above (Broyden 1971)."""
    offset = np.arange(x.shape[0]) - np.arange(x.shape[0])[:, None]
    return x * (2 + 5 * x**2) + 1 - _apply((offset >= -5) & (offset <= 1) & (offset != 0), x * (1 + x))


def linear_full_rank(x: Float[Array, " n"]) -> Float[Array, "20"]:
    """Problem 32, m = 20 (Moré, Garbow and Hillstrom 1981)."""
    return jnp.pad(x, (0, 20 - x.shape[0])) - 2 / 20 * jnp.sum(x) - 1


def linear_rank_one(x: Float[Array, " n"]) -> Float[Array, "20"]:
    """Problem 33, m = 20: a plane of minimizers (Moré, Garbow and Hillstrom 1981)."""
    return _one_to(20, x) * jnp.sum(_one_to(x.shape[0], x) * x) - 1


def linear_rank_one_zero(x: Float[Array, " n"]) -> Float[Array, "20"]:
    """Problem 34, m = 20: like problem 33, with zero columns and rows (Moré, Garbow and Hillstrom 1981)."""
    total = jnp.sum((_one_to(x.shape[0], x) * x)[1:-1])
    return jnp.pad(_one_to(18, x), 1) * total - 1


def chebyquad(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Problem 35, m = n: nodes of equal weight that integrate Chebyshev polynomials on [0, 1] (Fletcher 1965)."""
    z = 2 * x - 1
    polynomials = [jnp.ones_like(z), z]
    for _ in range(1, x.shape[0]):
        polynomials.append(2 * z * polynomials[-1] - polynomials[-2])
    integrals = [0 if i % 2 else -1 / (i**2 - 1) for i in range(1, x.shape[0] + 1)]
    return jnp.mean(jnp.stack(polynomials[1 : x.shape[0] + 1]), axis=1) - _like(x, integrals)


def _one_to(m: int, x: Array) -> Array:
    return jnp.arange(1, m + 1, dtype=x.dtype)


def _like(x: Array, table: Any) -> Array:
    return jnp.asarray(table, x.dtype)


def _off_pole(denominator: Array) -> Array:
    """Replace 0 by a tiny number whose square does not underflow, because exp(-1 / 0) is 0 with a slope of NaN."""
    tiny = math.sqrt(jnp.finfo(denominator.dtype).tiny)
    return jnp.where(denominator == 0, tiny, denominator)


def _apply(matrix: np.ndarray, x: Array) -> Array:
    """Return the product with a constant matrix, in full precision also on accelerators."""
    return jnp.matmul(_like(x, matrix), x, precision="highest")


def _problem(number: int, residuals: Callable[[Array], Array]) -> Problem:
    name = residuals.__name__
    start = mgh_data.STARTS[name]

    def fn(params: ArrayLike) -> Array:
        check_floating(params)
        x = jnp.asarray(params)
        if x.shape != start.shape:
            raise ValueError(f"{name}: expected params of shape {start.shape}, got {x.shape}")
        return jnp.sum(residuals(x) ** 2)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"The sum of squares of the residuals `{name}`."
    return Problem(name, fn, start, mgh_data.MINIMA[name], residuals, number)


# The starts are in the paper's order, under the names of the functions above.
PROBLEMS: dict[str, Problem] = {
    name: _problem(number, globals()[name]) for number, name in enumerate(mgh_data.STARTS, 1)
}
