"""Surfaces: a second set of formulas in 50 digits, what is published about them, and noise of the stated covariance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp

import jaxopt_course as jc

SURFACES, NOISY = jc.surfaces.SURFACES, jc.surfaces.NOISY
each_surface = pytest.mark.parametrize("name", SURFACES)


def _bowl(condition: int, angle: Any = 0) -> Callable[[Any, Any], Any]:
    def f(x: Any, y: Any) -> Any:
        u, v = mp.matrix([[mp.cos(angle), mp.sin(angle)], [-mp.sin(angle), mp.cos(angle)]]) * mp.matrix([x, y])
        return (u * u + condition * v * v) / 2

    return f


IN_50_DIGITS: dict[str, Callable[[Any, Any], Any]] = {
    "hill": lambda x, y: 2277 * 16 / (16 + x * x + y * y),
    "bowl_1": _bowl(1),
    "bowl_10": _bowl(10),
    "bowl_100": _bowl(100),
    "bowl_10000": _bowl(10_000),
    "bowl_100_turned": lambda x, y: _bowl(100, mp.pi / 6)(x, y),
    "saddle": lambda x, y: (x - y) * (x + y) / 2,
    "monkey_saddle": lambda x, y: mp.re((mp.mpc(x, y)) ** 3),
    "plateau": lambda x, y: 1 - mp.exp(-(x * x + y * y) / 2),
    "double_well": lambda x, y: ((x - 1) * (x + 1)) ** 2 / 4 + y * y / 2,
    "rosenbrock": lambda x, y: (10 * (y - x * x)) ** 2 + (x - 1) ** 2,
    "beale": lambda x, y: sum((mp.mpf(c) - x + x * y**i) ** 2 for c, i in (("1.5", 1), ("2.25", 2), ("2.625", 3))),
    "himmelblau": lambda x, y: (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2,
    "rastrigin": lambda x, y: 20 + x * x + y * y - 10 * (mp.cos(2 * mp.pi * x) + mp.cos(2 * mp.pi * y)),
    "styblinski_tang": lambda x, y: sum(z**4 - 16 * z**2 + 5 * z for z in (x, y)) / 2,
}
COUNTS = {  # minima, saddles, maxima: Himmelblau (1972), p. 428; a product of three roots each way; one of a hill
    "himmelblau": (4, 4, 1),
    "styblinski_tang": (4, 4, 1),
    "hill": (0, 0, 1),
    "beale": (1, 2, 0),
}
PUBLISHED = {  # name -> (a minimizer, the minimum) as printed in the collections of Jamil and Yang (2013)
    "himmelblau": ((3.0, 2.0), 0.0),
    "styblinski_tang": ((-2.903534, -2.903534), -78.33233),
    "beale": ((3.0, 0.5), 0.0),
    "rosenbrock": ((1.0, 1.0), 0.0),
    "rastrigin": ((0.0, 0.0), 0.0),
}


def gradient(f: Callable[[Any, Any], Any], x: Any, y: Any) -> list:
    return [mp.diff(f, (x, y), order) for order in ((1, 0), (0, 1))]


def hessian(f: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    xx, xy, yy = (mp.diff(f, (x, y), order) for order in ((2, 0), (1, 1), (0, 2)))
    return mp.matrix([[xx, xy], [xy, yy]])


def test_names() -> None:
    assert all(name == surface.name for name, surface in SURFACES.items())
    assert set(SURFACES) == set(IN_50_DIGITS) == set(NOISY)


@each_surface
def test_values_and_gradients_against_50_digits(name: str) -> None:
    surface, f = SURFACES[name], IN_50_DIGITS[name]
    low, high = np.transpose(surface.window)
    points = np.vstack([surface.start, np.random.default_rng(0).uniform(low, high, (7, 2))])
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(surface.fn)))(points)
    with mp.workdps(50):
        sizes = [max(abs(f(*map(mp.mpf, p))), 1) for p in points.tolist()]
        errors = [
            abs(f(*map(mp.mpf, p)) - v) / s for p, v, s in zip(points.tolist(), values.tolist(), sizes, strict=True)
        ]
        exact = np.array([gradient(f, *p) for p in points.tolist()], float)
    assert max(errors) < 1e-13
    np.testing.assert_allclose(grads, exact, rtol=1e-12, atol=1e-13 * np.abs(exact).max())


@each_surface
def test_critical_points_are_where_50_digits_say(name: str) -> None:
    surface, f = SURFACES[name], IN_50_DIGITS[name]
    with mp.workdps(50):
        for kind, (x, y) in surface.critical_points:
            H = hessian(f, x, y)
            low, high = mp.eigsy(H, eigvals_only=True)
            if kind == "degenerate":
                assert max(map(abs, gradient(f, x, y))) < 1e-40
                assert max(abs(low), abs(high)) < 1e-40
                continue
            step = mp.lu_solve(H, mp.matrix(gradient(f, x, y)))  # one Newton step: to the root, or it is none
            assert float(mp.norm(step)) <= 1.2e-16 * max(abs(x), abs(y), 0.1)
            assert kind == ("minimum" if low > 0 else "maximum" if high < 0 else "saddle")


@each_surface
def test_minima(name: str) -> None:
    surface, f = SURFACES[name], IN_50_DIGITS[name]
    minima = {point.params for point in surface.critical_points if point.kind == "minimum"}
    assert {tuple(map(float, m)) for m in surface.minimizers} <= minima
    with mp.workdps(50):
        for x, y in surface.minimizers.tolist():
            assert abs(f(mp.mpf(x), mp.mpf(y)) - surface.minimum) <= 1e-14 * max(1, abs(surface.minimum))
    (x0, x1), (y0, y1) = surface.window
    X, Y = np.meshgrid(np.linspace(x0, x1, 101), np.linspace(y0, y1, 101))
    values = jax.jit(jax.vmap(surface.fn))(np.stack([X.ravel(), Y.ravel()], axis=1))
    assert float(values.min()) >= surface.minimum
    for x, y in [surface.start, *surface.minimizers, *(p.params for p in surface.critical_points)]:
        assert x0 <= x <= x1
        assert y0 <= y <= y1
    if not len(surface.minimizers):  # far away it goes on downhill
        far = 1e4 * np.array([0.1, 1.0])
        assert float(surface.fn(far)) < float(values.min())


@pytest.mark.parametrize("name", COUNTS)
def test_all_critical_points_are_there(name: str) -> None:
    kinds = [point.kind for point in SURFACES[name].critical_points]
    assert tuple(kinds.count(kind) for kind in ("minimum", "saddle", "maximum")) == COUNTS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_minima(name: str) -> None:
    point, value = PUBLISHED[name]
    assert np.abs(SURFACES[name].minimizers - np.array(point)).max(axis=1).min() < 1e-6
    assert SURFACES[name].minimum == pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize("name", ["rosenbrock", "beale"])
def test_the_same_function_as_in_the_collection(name: str) -> None:
    x = np.array([0.3, -1.7])
    assert float(SURFACES[name].fn(x)) == pytest.approx(float(jc.mgh.PROBLEMS[name].fn(x)), rel=1e-14)
    np.testing.assert_array_equal(SURFACES[name].start, jc.mgh.PROBLEMS[name].start)


@pytest.mark.parametrize(("condition", "angle"), [(1.0, 0.0), (7.5, 0.3), (1e8, -1.0)])
def test_bowls_of_any_condition_number(condition: float, angle: float) -> None:
    bowl = jc.surfaces.bowl(condition, angle)
    values, vectors = np.linalg.eigh(jax.hessian(bowl.fn)(jnp.zeros(2)))
    np.testing.assert_allclose(values, [1, condition], rtol=1e-6)
    if condition > 1:
        assert abs(vectors[:, 0] @ [np.cos(angle), np.sin(angle)]) == pytest.approx(1)


@each_surface
def test_noise_has_the_stated_covariance(name: str) -> None:
    """A gradient that is the true one plus a matrix times standard normals has that matrix' square as covariance."""
    surface, covariance, objective = NOISY[name]
    assert surface is SURFACES[name]
    x = jnp.asarray(surface.start)
    draws = jnp.concatenate([jnp.zeros((1, 2)), jnp.eye(2)])
    plain, *columns = jax.jit(jax.vmap(jax.grad(objective), (None, 0)))(x, draws)
    np.testing.assert_allclose(plain, jax.grad(surface.fn)(x), rtol=1e-12)
    root = np.stack([c - plain for c in columns], axis=1)
    np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-10, atol=1e-10 * covariance.max())
    assert np.linalg.eigvalsh(covariance)[0] > 0


def test_noise_of_keys_and_of_minibatches() -> None:
    covariance = np.array([[4.0, -1.0], [-1.0, 0.5]])
    surface, stated, objective = jc.surfaces.noisy(SURFACES["himmelblau"], covariance)
    np.testing.assert_array_equal(stated, covariance)
    x, count = jnp.array([1.0, 2.0]), 40_000
    truth, gradients = np.asarray(jax.grad(surface.fn)(x)), jax.jit(jax.vmap(jax.grad(objective), (None, 0)))
    keys = jax.random.split(jax.random.key(3), count)
    batches = jax.random.normal(keys[0], (count, 5, 2))
    for draws, expected in ((keys, covariance), (batches, covariance / 5)):
        noise = np.asarray(gradients(x, draws)) - truth
        deviations = np.sqrt((expected**2 + np.outer(*2 * [np.diag(expected)])) / count)  # of a sample covariance
        assert np.all(np.abs(np.cov(noise.T) - expected) < 4 * deviations)
        assert np.all(np.abs(noise.mean(axis=0)) < 4 * np.sqrt(np.diag(expected) / count))


def test_float32_stays_float32() -> None:
    for surface, _, objective in NOISY.values():
        x = jnp.asarray(surface.start, jnp.float32)
        assert surface.fn(x).dtype == objective(x, jnp.ones((3, 2))).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: SURFACES["beale"].fn(jnp.zeros(3)), ValueError, r"beale: params must have shape \(2,\), got \(3,\)"),
        (lambda: SURFACES["beale"].fn(jnp.zeros(2, int)), TypeError, "floating point"),
        (lambda: jc.surfaces.bowl(0.5), ValueError, "condition number must be finite and >= 1"),
        (lambda: jc.surfaces.noisy(SURFACES["beale"], np.ones(2)), ValueError, r"symmetric and \[2, 2\]"),
        (
            lambda: jc.surfaces.noisy(SURFACES["beale"], np.diag([1.0, -1.0])),
            ValueError,
            "must not have a negative eigenvalue",
        ),
        (lambda: NOISY["beale"].objective(jnp.zeros(2), jnp.zeros(3)), ValueError, "draws must be"),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
