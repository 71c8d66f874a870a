"""Test functions of two variables, among them those pictured in the lecture, with their minima and critical points.

`SURFACES[name]` is a `Surface`; `bowl(condition)` makes a bowl of any condition number, and
`noisy(surface, covariance)` adds gradient noise of that covariance to any surface. `NOISY[name]` contains one noisy
version of each, ready for training.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, ArrayLike
from jaxopt_course.dtypes import check_floating

__all__ = ["NOISY", "SURFACES", "CriticalPoint", "Noisy", "Surface", "bowl", "hill", "noisy"]
__all__ += ["beale", "double_well", "himmelblau", "monkey_saddle", "plateau", "rastrigin", "rosenbrock", "saddle"]
__all__ += ["styblinski_tang"]


def __dir__() -> list[str]:
    return __all__


class CriticalPoint(NamedTuple):
    """A point of zero gradient: "minimum", "saddle", "maximum", or "degenerate" if the Hessian is singular."""

    kind: str
    params: tuple[float, float]


class Surface(NamedTuple):
    """A function of two variables, with its known minima and critical points.

    Args:
      name: as in `SURFACES`.
      fn: `fn(params[2]) -> scalar`, in the dtype of `params`. Raises ValueError for another shape, TypeError for
        integers.
      start: the start of paths `[2]`, float64.
      minimizers: the global minimizers `[k, 2]`, float64; none if the infimum is not attained.
      minimum: the infimum; -inf if the function is unbounded below.
      window: `((x_low, x_high), (y_low, y_high))`, the region to plot.
      critical_points: `CriticalPoint(kind, params)` records; all of them, except for Rastrigin, which has too many.

    Example:
      >>> import jaxopt_course as jc
      >>> beale = jc.surfaces.SURFACES["beale"]
      >>> found = jc.minimize(beale.fn, jc.lbfgs(), beale.start.astype("float32"))
      >>> f"{beale.fn(beale.start):.2f} -> {found.value:.2f} at {found.params.round(2)}; known: {beale.minimizers}"
      '14.20 -> 0.00 at [3.  0.5]; known: [[3.  0.5]]'
    """

    name: str
    fn: Callable[[ArrayLike], Array]
    start: np.ndarray
    minimizers: np.ndarray
    minimum: float
    window: tuple[tuple[float, float], tuple[float, float]]
    critical_points: tuple[CriticalPoint, ...]

    def __call__(self, params: ArrayLike) -> Array:
        """Return the function's value, so that a surface can be passed as an objective."""
        return self.fn(params)


class Noisy(NamedTuple):
    """A surface with gradient noise.

    Args:
      surface: the surface without noise.
      covariance: of the gradient noise of one draw `[2, 2]`, float64.
      objective: `objective(params[2], draws) -> scalar`. Its gradient is the surface's plus `root @ mean(draws)`, where
        `root` is the symmetric square root of the covariance. Draws are independent standard normals `[2]` or
        `[B, 2]`, such as a minibatch of a data set of draws (the noise of B draws has covariance / B), or one
        `jax.random` key, which gives one draw.
    """

    surface: Surface
    covariance: np.ndarray
    objective: Callable[[ArrayLike, Array], Array]


def noisy(surface: Surface, covariance: Any) -> Noisy:
    r"""Add Gaussian gradient noise with a given covariance to a surface.

    $$f(w, \xi) = f(w) + \langle C^{1/2} \bar\xi, w \rangle, \qquad \nabla f(w, \xi) \sim N(\nabla f(w), C / B)$$

    Args:
      surface: any surface.
      covariance: C, `[2, 2]`, symmetric and positive semidefinite; units of gradient^2.

    Returns:
      `Noisy(surface, covariance, objective)`.

    Raises:
      ValueError: a matrix that is not a covariance.

    Example:
      >>> import jax
      >>> import jaxopt_course as jc
      >>> bowl = noisy(jc.surfaces.bowl(10.0), 9.0 * np.eye(2))
      >>> draws = jax.random.normal(jax.random.key(0), (3000, 2))
      >>> key, start = jax.random.key(1), jnp.array([4.0, 1.0])
      >>> sgd = jc.sgd(0.1)
      >>> result = jc.train(bowl.objective, sgd, start, draws, key=key, batch_size=10, num_steps=300, progress=False)
      >>> f"{bowl.surface.fn(start):.1f} -> {bowl.surface.fn(result.params):.2f}, and the minimum is 0"
      '13.0 -> 0.02, and the minimum is 0'

    Source: Mandt, Hoffman, Blei (2017), "Stochastic gradient descent as approximate Bayesian inference", JMLR 18(134),
    eq. 4.
    """
    C = np.asarray(covariance, float)
    if C.shape != (2, 2) or not np.isfinite(C).all() or not np.allclose(C, C.T):
        raise ValueError(f"noisy: the covariance must be symmetric and [2, 2], got {covariance!r}")
    values, vectors = np.linalg.eigh(C)
    if values[0] < -1e-12 * abs(values[1]):
        raise ValueError(f"noisy: the covariance must not have a negative eigenvalue, got {values[0]:.3g}")
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def objective(params: ArrayLike, draws: Array) -> Array:
        w = jnp.asarray(params)
        if jnp.issubdtype(draws.dtype, jax.dtypes.prng_key):
            draws = jax.random.normal(draws, (2,), w.dtype)
        if draws.ndim not in (1, 2) or draws.shape[-1] != 2:
            raise ValueError(f"{surface.name}: draws must be [2], [B, 2] or a key, got shape {draws.shape}")
        xi = draws.astype(w.dtype).reshape(-1, 2).mean(axis=0)
        return surface.fn(w) + jnp.dot(jnp.asarray(root, w.dtype) @ xi, w)

    return Noisy(surface, C, objective)


def hill(height: float = 2277.0, radius: float = 4.0) -> Surface:
    """The lecture's hill h0 / (1 + (x^2 + y^2) / R^2), in metres over kilometres; 2,277 m high by default.

    The infimum 0 is not attained: descent moves away from the top for ever. The only critical point is the top.

    Example:
      >>> import jax
      >>> w = jnp.array([1.0, 1.0])
      >>> print(hill().fn(w).round(), jax.grad(hill().fn)(w).round())  # uphill is towards the top
      2024.0 [-225. -225.]

    Source: Langtangen (2016), "A primer on scientific programming with Python", 5th ed., appendix on vector fields.
    """

    def f(x: Array, y: Array) -> Array:
        return height / (1 + (x**2 + y**2) / radius**2)

    reach = 2.5 * radius
    return _surface("hill", f, (radius / 2, radius / 4), [], 0.0, _square(reach), maxima=[(0, 0)])


def bowl(condition: float, angle: float = 0.0) -> Surface:
    r"""A quadratic bowl whose curvatures are 1 and `condition`.

    $$f(x, y) = \tfrac12 (u^2 + \kappa v^2), \qquad u = x \cos a + y \sin a, \quad v = y \cos a - x \sin a$$

    Args:
      condition: kappa, at least 1: the ratio of the largest curvature to the smallest.
      angle: a, in radians, between the long axis and the first coordinate. It affects rules that scale coordinates.

    Returns:
      The surface.

    Raises:
      ValueError: a condition number below 1, or an argument that is not finite.

    Example:
      >>> import jax
      >>> H = jax.jit(jax.hessian(bowl(100.0, angle=0.5).fn))(jnp.zeros(2))
      >>> print(np.linalg.eigvalsh(H).round(2))
      [  1. 100.]
    """
    if not (1 <= condition < math.inf and math.isfinite(angle)):
        raise ValueError(f"bowl: the condition number must be finite and >= 1, got {condition} (angle {angle})")
    cos, sin = math.cos(angle), math.sin(angle)

    def f(x: Array, y: Array) -> Array:
        return ((cos * x + sin * y) ** 2 + condition * (cos * y - sin * x) ** 2) / 2

    start = (4 * cos - sin, 4 * sin + cos)
    return _surface(f"bowl_{condition:g}{'_turned' if angle else ''}", f, start, [(0, 0)], 0.0, _square(5))


def saddle(x: Array, y: Array) -> Array:
    """A saddle: the value falls along one axis and rises along the other."""
    return (x**2 - y**2) / 2


def monkey_saddle(x: Array, y: Array) -> Array:
    """A saddle with three descent directions and zero curvature at the critical point."""
    return x**3 - 3 * x * y**2


def plateau(x: Array, y: Array) -> Array:
    """A minimum in a plain: far away the gradient almost vanishes."""
    return 1 - jnp.exp(-(x**2 + y**2) / 2)  # not expm1: its derivative has an error of 1e-16 where it is smaller


def double_well(x: Array, y: Array) -> Array:
    """Two equal minima with a saddle between them."""
    return (x**2 - 1) ** 2 / 4 + y**2 / 2


def rosenbrock(x: Array, y: Array) -> Array:
    """A long curved valley (Rosenbrock 1960)."""
    return 100 * (y - x**2) ** 2 + (1 - x) ** 2


def beale(x: Array, y: Array) -> Array:
    """Flat valleys and steep corners (Beale 1958)."""
    return (1.5 - x * (1 - y)) ** 2 + (2.25 - x * (1 - y**2)) ** 2 + (2.625 - x * (1 - y**3)) ** 2


def himmelblau(x: Array, y: Array) -> Array:
    """Four equal minima around a maximum (Himmelblau 1972)."""
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def rastrigin(x: Array, y: Array) -> Array:
    """A bowl with a regular grid of local minima (Rastrigin 1974)."""
    return 20 + x**2 + y**2 - 10 * (jnp.cos(2 * math.pi * x) + jnp.cos(2 * math.pi * y))


def styblinski_tang(x: Array, y: Array) -> Array:
    """One deep minimum and three shallower ones (Styblinski and Tang 1990)."""
    return ((x**2 - 16) * x**2 + 5 * x + (y**2 - 16) * y**2 + 5 * y) / 2


Number = int | float
Pair = tuple[Number, Number]


def _square(reach: Number) -> tuple[Pair, Pair]:
    return (-reach, reach), (-reach, reach)


def _surface(
    name: str,
    formula: Callable[[Array, Array], Array],
    start: Pair,
    minimizers: Sequence[Pair],
    minimum: float,
    window: tuple[Pair, Pair],
    *,
    local_minima: Sequence[Pair] = (),
    saddles: Sequence[Pair] = (),
    maxima: Sequence[Pair] = (),
    degenerate: Sequence[Pair] = (),
) -> Surface:
    def fn(params: ArrayLike) -> Array:
        if jnp.shape(params) != (2,):
            raise ValueError(f"{name}: params must have shape (2,), got {jnp.shape(params)}; vmap over many points")
        check_floating(params)
        w = jnp.asarray(params)
        return formula(w[0], w[1])

    kinds = {"minimum": [*minimizers, *local_minima], "saddle": saddles, "maximum": maxima, "degenerate": degenerate}
    critical = tuple(CriticalPoint(kind, (float(x), float(y))) for kind, points in kinds.items() for x, y in points)
    known = np.array(minimizers, float).reshape(-1, 2)
    (left, right), (low, high) = window
    shown = (float(left), float(right)), (float(low), float(high))
    return Surface(name, fn, np.array(start, float), known, minimum, shown, critical)


_LOW, _TOP, _HIGH = -2.9035340277711771, 0.15673125678034010, 2.7468027709908370  # the roots of 4 z^3 - 32 z + 5
_RIM, _DENT = 0.50254603655467463, 0.99495863765233479  # the first roots of 2 z + 20 pi sin(2 pi z) above 0
_BEALE_SADDLE = (0.10053793732415836, -2.6445135850231250)

SURFACES: dict[str, Surface] = {
    surface.name: surface
    for surface in (
        hill(),
        bowl(1.0),
        bowl(10.0),
        bowl(100.0),
        bowl(10_000.0),
        bowl(100.0, angle=math.pi / 6),
        _surface("saddle", saddle, (2.0, 1e-3), [], -math.inf, _square(3), saddles=[(0, 0)]),
        _surface("monkey_saddle", monkey_saddle, (1.5, 0.1), [], -math.inf, _square(2), degenerate=[(0, 0)]),
        _surface("plateau", plateau, (3.0, 2.0), [(0, 0)], 0.0, _square(5)),
        _surface("double_well", double_well, (0.01, 1.5), [(-1, 0), (1, 0)], 0.0, ((-2, 2), (-2, 2)), saddles=[(0, 0)]),
        _surface("rosenbrock", rosenbrock, (-1.2, 1.0), [(1, 1)], 0.0, ((-2, 2), (-1, 3))),
        _surface("beale", beale, (1.0, 1.0), [(3, 0.5)], 0.0, _square(4.5), saddles=[(0, 1), _BEALE_SADDLE]),
        _surface(
            "himmelblau",
            himmelblau,
            (0.0, 0.0),
            [
                (3, 2),
                (-2.8051180869527449, 3.1313125182505730),
                (-3.7793102533777469, -3.2831859912861694),
                (3.5844283403304917, -1.8481265269644036),
            ],
            0.0,
            _square(5),
            saddles=[
                (-3.0730257507643896, -0.081353044287967512),
                (0.086677504555396352, 2.8842547011747761),
                (-0.12796134673068007, -1.9537149802445764),
                (3.3851541836070209, 0.073851879837749288),
            ],
            maxima=[(-0.27084459066734761, -0.92303855647998146)],
        ),
        _surface(
            "rastrigin",
            rastrigin,
            (3.3, -2.2),
            [(0, 0)],
            0.0,
            _square(5.12),
            local_minima=[(_DENT, 0), (_DENT, -_DENT)],
            saddles=[(_RIM, 0), (_RIM, _DENT)],
            maxima=[(_RIM, _RIM), (-_RIM, _RIM)],
        ),
        _surface(
            "styblinski_tang",
            styblinski_tang,
            (0.0, 0.0),
            [(_LOW, _LOW)],
            -78.332331407542831,
            _square(5),
            local_minima=[(_LOW, _HIGH), (_HIGH, _LOW), (_HIGH, _HIGH)],
            saddles=[(_TOP, _LOW), (_TOP, _HIGH), (_LOW, _TOP), (_HIGH, _TOP)],
            maxima=[(_TOP, _TOP)],
        ),
    )
}

_NOISE = {  # standard deviation of each coordinate of the gradient: about a tenth of its size at the start
    "hill": 30.0,
    "bowl_1": 0.4,
    "bowl_10": 1.0,
    "bowl_100": 10.0,
    "bowl_10000": 1000.0,
    "bowl_100_turned": 10.0,
    "saddle": 0.2,
    "monkey_saddle": 0.7,
    "plateau": 0.02,
    "double_well": 0.15,
    "rosenbrock": 20.0,
    "beale": 2.5,
    "himmelblau": 2.5,
    "rastrigin": 6.0,
    "styblinski_tang": 0.5,
}
NOISY: dict[str, Noisy] = {name: noisy(SURFACES[name], sd**2 * np.eye(2)) for name, sd in _NOISE.items()}
