"""The Moré-Garbow-Hillstrom problems: a second set of formulas in 50 digits, and what is published about them."""

from collections.abc import Callable
from decimal import Decimal
from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp

import jaxopt_course as jc
from jaxopt_course.problems import mgh_data

PROBLEMS = jc.mgh.PROBLEMS
each_problem = pytest.mark.parametrize("name", PROBLEMS)

SIZES = {  # n and m, in the order of the paper
    "rosenbrock": (2, 2),
    "freudenstein_roth": (2, 2),
    "powell_badly_scaled": (2, 2),
    "brown_badly_scaled": (2, 3),
    "beale": (2, 3),
    "jennrich_sampson": (2, 10),
    "helical_valley": (3, 3),
    "bard": (3, 15),
    "gaussian": (3, 15),
    "meyer": (3, 16),
    "gulf": (3, 10),
    "box_3d": (3, 10),
    "powell_singular": (4, 4),
    "wood": (4, 6),
    "kowalik_osborne": (4, 11),
    "brown_dennis": (4, 20),
    "osborne_1": (5, 33),
    "biggs_exp6": (6, 13),
    "osborne_2": (11, 65),
    "watson": (6, 31),
    "extended_rosenbrock": (10, 10),
    "extended_powell_singular": (12, 12),
    "penalty_i": (10, 11),
    "penalty_ii": (10, 20),
    "variably_dimensioned": (10, 12),
    "trigonometric": (10, 10),
    "brown_almost_linear": (10, 10),
    "discrete_boundary_value": (10, 10),
    "discrete_integral_equation": (10, 10),
    "broyden_tridiagonal": (10, 10),
    "broyden_banded": (10, 10),
    "linear_full_rank": (10, 20),
    "linear_rank_one": (10, 20),
    "linear_rank_one_zero": (10, 20),
    "chebyquad": (8, 8),
}

MINPACK_START = {  # |f(start)|: MINPACK-1's test problems, as Apache Commons Math records them
    "rosenbrock": 24.2**0.5,
    "helical_valley": 50.0,
    "powell_singular": 14.6628782986152,
    "freudenstein_roth": 20.0124960961895,
    "bard": 6.45613629515967,
    "kowalik_osborne": 0.0728915102882945,
    "meyer": 41153.4665543031,
    "watson": 5.47722557505166,
    "box_3d": 32.1115837449572,
    "jennrich_sampson": 64.5856498144943,
    "brown_dennis": 2815.43839161816,
    "chebyquad": 0.196513862833975,
    "brown_almost_linear": 16.5302162063499,
    "osborne_1": 0.937564021037838,
    "osborne_2": 1.44686540984712,
}

PUBLISHED = {  # (name, place among the minima): as printed in the paper, which cuts digits off as often as it rounds
    ("freudenstein_roth", 1): "48.9842",
    ("jennrich_sampson", 0): "124.362",
    ("bard", 0): "8.21487e-3",
    ("bard", 3): "17.4286",
    ("gaussian", 0): "1.12793e-8",
    ("meyer", 0): "87.9458",
    ("kowalik_osborne", 0): "3.07505e-4",
    ("kowalik_osborne", 2): "1.02734e-3",
    ("brown_dennis", 0): "85822.2",
    ("osborne_1", 0): "5.46489e-5",
    ("biggs_exp6", 6): "5.65565e-3",
    ("osborne_2", 0): "4.01377e-2",
    ("watson", 0): "2.28767e-3",
    ("penalty_i", 0): "7.08765e-5",
    ("penalty_ii", 0): "2.93660e-4",
    ("trigonometric", 4): "2.79506e-5",
    ("brown_almost_linear", 2): "1",
    ("linear_full_rank", 0): "10",
    ("linear_rank_one", 0): "4.63415",  # this and the next: m = 20 in the paper's closed form
    ("linear_rank_one_zero", 0): "6.13514",
    ("chebyquad", 0): "3.51687e-3",
    ("biggs_exp6", 7): "0.30636677262479",  # not in the paper: SolvOpt's test set
}
ZEROS = set(PROBLEMS) - {name for name, place in PUBLISHED if place == 0}

RAYS: dict[tuple[str, int], Callable[[float], list[float]]] = {  # the minima without params: here, for large s
    ("beale", 1): lambda s: [-s, 1 + 111 / 112 / s],
    ("bard", 3): lambda s: [12.61 / 15, -s, -s],
    ("box_3d", 2): lambda s: [s, s, 0],
    ("kowalik_osborne", 2): lambda s: [s, -14.07588340060331, -45.25719173932302 * s, -28.23149689908782 * s],
    ("biggs_exp6", 7): lambda s: [1.227555947524032, s, 0.83270306333466, -1, 1.227555947524032, 0.83270306333466],
}


def _powell_singular(x: list) -> list:
    rows = []
    for a, b, c, d in zip(x[0::4], x[1::4], x[2::4], x[3::4], strict=True):
        rows += [a + 10 * b, mp.sqrt(5) * (c - d), (b - 2 * c) ** 2, mp.sqrt(10) * (a - d) ** 2]
    return rows


def _rosenbrock(x: list) -> list:
    return [r for a, b in zip(x[0::2], x[1::2], strict=True) for r in (10 * (b - a * a), 1 - a)]


def _helical_valley(x: list) -> list:
    turn = mp.atan(x[1] / x[0]) / (2 * mp.pi) + (mp.mpf(1) / 2 if x[0] < 0 else 0)
    return [10 * (x[2] - 10 * turn), 10 * (mp.hypot(x[0], x[1]) - 1), x[2]]


def _gulf(x: list) -> list:
    t = [mp.mpf(i) / 100 for i in range(1, 11)]
    y = [25 + mp.cbrt(2500 * mp.log(s) ** 2) for s in t]
    return [mp.exp(-(abs(b - x[1]) ** x[2]) / x[0]) - s for s, b in zip(t, y, strict=True)]


def _brown_dennis(x: list) -> list:
    t = [mp.mpf(i) / 5 for i in range(1, 21)]
    return [(x[0] + s * x[1] - mp.exp(s)) ** 2 + (x[2] + x[3] * mp.sin(s) - mp.cos(s)) ** 2 for s in t]


def _biggs_exp6(x: list) -> list:
    def model(s: mp.mpf, a: list) -> mp.mpf:
        return a[2] * mp.exp(-s * a[0]) - a[3] * mp.exp(-s * a[1]) + a[5] * mp.exp(-s * a[4])

    return [model(mp.mpf(i) / 10, x) - model(mp.mpf(i) / 10, [1, 10, 1, 5, 4, 3]) for i in range(1, 14)]


def _osborne_2(x: list) -> list:
    rows = []
    for i, y in enumerate(mgh_data.OSBORNE_2):
        t = mp.mpf(i) / 10
        rows.append(_decimal(y) - x[0] * mp.exp(-t * x[4]))
        rows[-1] -= mp.fsum(x[k] * mp.exp(-((t - x[k + 7]) ** 2) * x[k + 4]) for k in (1, 2, 3))
    return rows


def _watson(x: list) -> list:
    t = [mp.mpf(i) / 29 for i in range(1, 30)]
    u = [mp.fsum(a * s**k for k, a in enumerate(x)) for s in t]
    slope = [mp.fsum(k * a * s ** (k - 1) for k, a in enumerate(x) if k) for s in t]
    return [b - a * a - 1 for a, b in zip(u, slope, strict=True)] + [x[0], x[1] - x[0] ** 2 - 1]


def _penalty_ii(x: list) -> list:
    n, e, soft = len(x), [mp.exp(a / 10) for a in x], mp.sqrt(mp.mpf(10) ** -5)
    one = [e[i] + e[i - 1] - mp.exp(mp.mpf(i + 1) / 10) - mp.exp(mp.mpf(i) / 10) for i in range(1, n)]
    two = [e[i] - mp.exp(-mp.mpf(1) / 10) for i in range(1, n)]
    return [x[0] - mp.mpf(2) / 10, *(soft * r for r in one + two), mp.fsum((n - i) * x[i] ** 2 for i in range(n)) - 1]


def _variably_dimensioned(x: list) -> list:
    total = mp.fsum(i * (a - 1) for i, a in enumerate(x, 1))
    return [a - 1 for a in x] + [total, total**2]


def _trigonometric(x: list) -> list:
    cosines = mp.fsum(mp.cos(a) for a in x)
    return [len(x) - cosines + i * (1 - mp.cos(a)) - mp.sin(a) for i, a in enumerate(x, 1)]


def _brown_almost_linear(x: list) -> list:
    return [a + mp.fsum(x) - len(x) - 1 for a in x[:-1]] + [mp.fprod(x) - 1]


def _boundary_value(x: list) -> list:
    h, u = mp.mpf(1) / (len(x) + 1), [0, *x, 0]
    return [2 * u[i] - u[i - 1] - u[i + 1] + h**2 * (u[i] + i * h + 1) ** 3 / 2 for i in range(1, len(x) + 1)]


def _integral_equation(x: list) -> list:
    n, h = len(x), mp.mpf(1) / (len(x) + 1)
    t = [i * h for i in range(1, n + 1)]
    cubes = [(a + s + 1) ** 3 for a, s in zip(x, t, strict=True)]
    rows = []
    for i in range(n):
        below = mp.fsum(t[j] * cubes[j] for j in range(i + 1))
        above = mp.fsum((1 - t[j]) * cubes[j] for j in range(i + 1, n))
        rows.append(x[i] + h / 2 * ((1 - t[i]) * below + t[i] * above))
    return rows


def _broyden_tridiagonal(x: list) -> list:
    u = [0, *x, 0]
    return [(3 - 2 * u[i]) * u[i] - u[i - 1] - 2 * u[i + 1] + 1 for i in range(1, len(x) + 1)]


def _broyden_banded(x: list) -> list:
    n = len(x)
    near = [[x[j] * (1 + x[j]) for j in range(max(0, i - 5), min(n, i + 2)) if j != i] for i in range(n)]
    return [a * (2 + 5 * a * a) + 1 - mp.fsum(terms) for a, terms in zip(x, near, strict=True)]


def _linear_rank_one_zero(x: list) -> list:
    total = mp.fsum(j * x[j - 1] for j in range(2, len(x)))
    return [-1, *((i - 1) * total - 1 for i in range(2, 20)), -1]


def _chebyquad(x: list) -> list:
    def integral(i: int) -> mp.mpf:
        return mp.mpf(0) if i % 2 else mp.mpf(-1) / (i * i - 1)

    return [mp.fsum(mp.chebyt(i, 2 * a - 1) for a in x) / len(x) - integral(i) for i in range(1, len(x) + 1)]


def _decimal(y: float) -> mp.mpf:
    """The number as printed in the paper, not the float64 next to it."""
    return mp.mpf(repr(y))


def _fit(table: tuple, model: Any) -> Any:
    return lambda x: [_decimal(y) - model(i, x) for i, y in enumerate(table, 1)]


def _bard(i: int, x: list) -> mp.mpf:
    return x[0] + i / ((16 - i) * x[1] + min(i, 16 - i) * x[2])


def _kowalik_osborne(i: int, x: list) -> mp.mpf:
    u = _decimal(mgh_data.KOWALIK_OSBORNE_U[i - 1])
    return x[0] * (u * u + u * x[1]) / (u * u + u * x[2] + x[3])


REFERENCES: dict[str, Any] = {
    "rosenbrock": _rosenbrock,
    "freudenstein_roth": lambda x: [
        -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1],
        -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1],
    ],
    "powell_badly_scaled": lambda x: [10**4 * x[0] * x[1] - 1, mp.exp(-x[0]) + mp.exp(-x[1]) - mp.mpf("1.0001")],
    "brown_badly_scaled": lambda x: [x[0] - 10**6, x[1] - mp.mpf("2e-6"), x[0] * x[1] - 2],
    "beale": _fit((1.5, 2.25, 2.625), lambda i, x: x[0] * (1 - x[1] ** i)),
    "jennrich_sampson": lambda x: [2 + 2 * i - mp.exp(i * x[0]) - mp.exp(i * x[1]) for i in range(1, 11)],
    "helical_valley": _helical_valley,
    "bard": _fit(mgh_data.BARD, _bard),
    "gaussian": _fit(mgh_data.GAUSSIAN, lambda i, x: x[0] * mp.exp(-x[1] * (mp.mpf(8 - i) / 2 - x[2]) ** 2 / 2)),
    "meyer": _fit(mgh_data.MEYER, lambda i, x: x[0] * mp.exp(x[1] / (45 + 5 * i + x[2]))),
    "gulf": _gulf,
    "box_3d": lambda x: [
        mp.exp(-t * x[0]) - mp.exp(-t * x[1]) - x[2] * (mp.exp(-t) - mp.exp(-10 * t))
        for t in (mp.mpf(i) / 10 for i in range(1, 11))
    ],
    "powell_singular": _powell_singular,
    "wood": lambda x: [
        *_rosenbrock(x[:2]),
        mp.sqrt(90) * (x[3] - x[2] ** 2),
        1 - x[2],
        mp.sqrt(10) * (x[1] + x[3] - 2),
        (x[1] - x[3]) / mp.sqrt(10),
    ],
    "kowalik_osborne": _fit(mgh_data.KOWALIK_OSBORNE_Y, _kowalik_osborne),
    "brown_dennis": _brown_dennis,
    "osborne_1": _fit(
        mgh_data.OSBORNE_1,
        lambda i, x: x[0] + x[1] * mp.exp(-10 * (i - 1) * x[3]) + x[2] * mp.exp(-10 * (i - 1) * x[4]),
    ),
    "biggs_exp6": _biggs_exp6,
    "osborne_2": _osborne_2,
    "watson": _watson,
    "extended_rosenbrock": _rosenbrock,
    "extended_powell_singular": _powell_singular,
    "penalty_i": lambda x: [
        *((a - 1) * mp.sqrt(mp.mpf(10) ** -5) for a in x),
        mp.fsum(a * a for a in x) - mp.mpf(1) / 4,
    ],
    "penalty_ii": _penalty_ii,
    "variably_dimensioned": _variably_dimensioned,
    "trigonometric": _trigonometric,
    "brown_almost_linear": _brown_almost_linear,
    "discrete_boundary_value": _boundary_value,
    "discrete_integral_equation": _integral_equation,
    "broyden_tridiagonal": _broyden_tridiagonal,
    "broyden_banded": _broyden_banded,
    "linear_full_rank": lambda x: [(x[i] if i < len(x) else 0) - 2 * mp.fsum(x) / 20 - 1 for i in range(20)],
    "linear_rank_one": lambda x: [i * mp.fsum(j * a for j, a in enumerate(x, 1)) - 1 for i in range(1, 21)],
    "linear_rank_one_zero": _linear_rank_one_zero,
    "chebyquad": _chebyquad,
}


def exact(name: str, x: Any) -> mp.mpf:
    return mp.fsum(r * r for r in REFERENCES[name]([mp.mpf(a) for a in x]))


@cache
def derivatives(name: str) -> Any:
    fn = PROBLEMS[name].fn
    return jax.jit(lambda x: (fn(x), jax.grad(fn)(x), jax.hessian(fn)(x)))


def at(name: str, x: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient and Hessian."""
    value, grad, hessian = derivatives(name)(jnp.asarray(x, float))
    return float(value), np.asarray(grad), np.asarray(hessian)


def placed(name: str) -> list[Any]:
    return [m for m in PROBLEMS[name].minima if m.params is not None]


def test_all_of_them_in_the_order_of_the_paper() -> None:
    assert [*PROBLEMS] == [*SIZES]
    assert [p.number for p in PROBLEMS.values()] == [*range(1, 36)]
    assert [p.name for p in PROBLEMS.values()] == [*SIZES]
    assert {name: jax.eval_shape(p.residuals, jnp.asarray(p.start)).shape for name, p in PROBLEMS.items()} == {
        name: (m,) for name, (_, m) in SIZES.items()
    }
    for name, p in PROBLEMS.items():
        assert p.fn.__name__ == p.residuals.__name__ == name
        for vector in (p.start, *(m.params for m in placed(name))):
            assert isinstance(vector, np.ndarray)
            assert vector.dtype == np.float64
            assert vector.shape == (SIZES[name][0],)
            assert not vector.flags.writeable


@each_problem
def test_value_and_gradient_are_those_of_50_digits(name: str) -> None:
    start, n = PROBLEMS[name].start, SIZES[name][0]
    beside = start * (1 + 0.01 * np.arange(1, n + 1)) + 0.001 * np.cos(np.arange(n))  # where nothing is symmetric
    with mp.workdps(50):
        for x in (start, beside):
            value, grad, _ = at(name, x)
            assert abs(value - exact(name, x)) <= 1e-12 * abs(value)
            h = mp.mpf(10) ** -17
            steps = [[mp.mpf(a) + h * (i == j) for j, a in enumerate(x)] for i in range(n)]
            back = [[mp.mpf(a) - h * (i == j) for j, a in enumerate(x)] for i in range(n)]
            slopes = [(exact(name, s) - exact(name, b)) / (2 * h) for s, b in zip(steps, back, strict=True)]
            np.testing.assert_allclose(grad, np.array(slopes, float), rtol=1e-9, atol=1e-12 * np.abs(grad).max())


@pytest.mark.parametrize("name", MINPACK_START)
def test_value_at_the_start_is_minpacks(name: str) -> None:
    assert at(name, PROBLEMS[name].start)[0] ** 0.5 == pytest.approx(MINPACK_START[name], rel=1e-13)


@each_problem
def test_minima_are_minima(name: str) -> None:
    for minimum in placed(name):
        x, (value, grad, hessian) = minimum.params, at(name, minimum.params)
        assert value == pytest.approx(minimum.value, rel=1e-10, abs=1e-20)
        with mp.workdps(50):
            assert float(exact(name, x)) == pytest.approx(minimum.value, rel=1e-13, abs=1e-20)
        widths = np.sqrt(np.diag(hessian)) + (
            np.diag(hessian) == 0
        )  # in units of 1 / width the Hessian has ones on its diagonal
        away = np.abs(grad / widths)
        rounding = 1e-13 * (np.abs(hessian) @ np.abs(x) / widths + np.sqrt(minimum.value))
        assert (away <= rounding).all(), (away, rounding)
        assert np.linalg.eigvalsh(hessian / np.outer(widths, widths))[0] >= -1e-13


@each_problem
def test_a_global_minimum_comes_first(name: str) -> None:
    values = [m.value for m in PROBLEMS[name].minima]
    assert min(values) == values[0] >= 0
    assert (values[0] == 0) == (name in ZEROS)


def test_minima_are_the_published_ones() -> None:
    for (name, place), digits in PUBLISHED.items():
        last_digit = Decimal(1).scaleb(int(Decimal(digits).as_tuple().exponent))
        assert abs(Decimal(PROBLEMS[name].minima[place].value) - Decimal(digits)) < last_digit, name


def test_minima_at_infinity_are_approached_from_above() -> None:
    nowhere = {(name, i) for name, p in PROBLEMS.items() for i, m in enumerate(p.minima) if m.params is None}
    assert nowhere == RAYS.keys()
    for (name, place), ray in RAYS.items():
        values = [at(name, ray(s))[0] for s in (3, 10, 30, 100, 1e3, 1e4, 1e5, 1e6)]
        limit = PROBLEMS[name].minima[place].value
        assert all(a >= b - 1e-12 * b for a, b in pairwise(values)), (name, values)
        assert values[-1] == pytest.approx(limit, rel=1e-4, abs=1e-20), name
        assert values[-1] >= limit * (1 - 1e-12), name


def test_biggs_has_a_saddle_where_its_symmetric_start_leads() -> None:
    x = placed("biggs_exp6")[6].params.copy()
    x[[2, 5]] = (x[2] + x[5]) / 2
    value, grad, hessian = at("biggs_exp6", x)
    assert value == pytest.approx(PROBLEMS["biggs_exp6"].minima[6].value)
    assert np.abs(grad).max() < 1e-14
    assert np.linalg.eigvalsh(hessian)[0] < -1e-3


def test_brown_almost_linear_goes_below_its_local_minimum() -> None:
    x = placed("brown_almost_linear")[2].params + 0.1 * np.array([1.0] * 9 + [-10.0])
    assert at("brown_almost_linear", x)[0] < 1


@each_problem
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(name: str, dtype: str) -> None:
    x = jnp.asarray(PROBLEMS[name].start, dtype)
    fn = PROBLEMS[name].fn
    shapes = [jax.eval_shape(f, x) for f in (fn, jax.grad(fn), jax.hessian(fn))]
    assert [s.dtype for s in shapes] == [dtype] * 3
    assert [s.shape for s in shapes] == [(), x.shape, (*x.shape, *x.shape)]


def test_without_float64_a_start_becomes_float32() -> None:
    expected = {name: at(name, p.start)[0] for name, p in PROBLEMS.items()}
    with jax.enable_x64(False):
        values = jax.jit(lambda: {name: p.fn(p.start) for name, p in PROBLEMS.items()})()
    for name, value in values.items():
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(expected[name], rel=1e-3), name


@pytest.mark.parametrize("name", ["helical_valley", "gulf", "trigonometric"])
def test_vmap_equals_a_loop(name: str) -> None:
    fn, start = PROBLEMS[name].fn, PROBLEMS[name].start
    batch = jnp.asarray(start + np.linspace(-0.5, 0.5, 5 * len(start)).reshape(5, -1))
    one_by_one = [at(name, x) for x in batch]
    together = jax.jit(jax.vmap(jax.value_and_grad(fn)))(batch)
    np.testing.assert_allclose(together[0], [value for value, _, _ in one_by_one], rtol=1e-13)
    np.testing.assert_allclose(together[1], [grad for _, grad, _ in one_by_one], rtol=1e-11)


@each_problem
def test_derivatives_are_finite_where_the_function_is(name: str) -> None:
    n = SIZES[name][0]
    awkward = [np.zeros(n), np.ones(n), -np.ones(n), -np.full(n, 50.0), *np.eye(n), *-np.eye(n)]
    awkward += [300 * e for e in np.eye(n)] + [PROBLEMS[name].start + 300 * e for e in np.eye(n)]
    for x in awkward:
        value, grad, hessian = at(name, x)
        if np.isfinite(value):
            assert np.isfinite(grad).all(), x
            assert np.isfinite(hessian).all(), x


def test_gulf_on_its_kinks() -> None:
    y = 25 + (-50 * np.log(np.arange(1, 11) / 100)) ** (2 / 3)
    for x3, power in ((0.15, 0.0), (1.0, 0.0), (1.5, 0.0), (0.0, 1.0), (-1.0, np.inf)):
        x = np.array([5.0, y[3], x3])
        value, grad, hessian = at("gulf", x)
        assert float(jc.mgh.gulf(jnp.asarray(x))[3]) == pytest.approx(np.exp(-power / 5) - 0.04, rel=1e-12)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()
        assert np.isfinite(hessian).all()


def test_the_angle_of_the_helix_jumps_where_the_papers_does() -> None:
    for x1, x2, turns in ((1, 0, 0), (1, 1, 0.125), (0, 1, 0.25), (-1, 1, 0.375), (-1, 0, 0.5), (-1, -1, 0.625)):
        assert float(jc.mgh.helical_valley(jnp.array([x1, x2, 0.0]))[0]) == pytest.approx(-100 * turns)
    for side, turns in ((-1e-9, 0.75), (0.0, -0.25), (1e-9, -0.25)):
        assert float(jc.mgh.helical_valley(jnp.array([side, -1.0, 0.0]))[0]) == pytest.approx(-100 * turns)


def test_other_lengths() -> None:
    ninth = [-0.153070644166722e-4, 0.999789703934597, 0.0147639634910978, 0.146342330145992, 1.00082109454817]
    ninth += [-2.61773112070507, 4.10440313943354, -3.14361226236241, 1.05262640378759]  # MINPACK's minimizer for n = 9
    assert float(jnp.sum(jc.mgh.watson(jnp.array(ninth)) ** 2)) == pytest.approx(1.39976e-6, rel=1e-5)
    for n in (2, 4, 8):
        x = jax.ShapeDtypeStruct((n,), jnp.float32)
        for residuals in (jc.mgh.extended_rosenbrock, jc.mgh.chebyquad, jc.mgh.broyden_banded):
            assert jax.eval_shape(residuals, x).shape == (n,)
        assert jax.eval_shape(jc.mgh.linear_full_rank, x).shape == (20,)


def test_wrong_arguments() -> None:
    fn = PROBLEMS["rosenbrock"].fn
    with pytest.raises(ValueError, match=r"rosenbrock: expected params of shape \(2,\), got \(3,\)"):
        fn(jnp.ones(3))
    with pytest.raises(TypeError, match="floating point"):
        fn(jnp.ones(2, int))
