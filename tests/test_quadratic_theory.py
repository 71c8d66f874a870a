"""The theory of the quadratic against the library's own optimizers: one run to 1e-10, ten thousand to their noise."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.landscape.quadratic_theory import (
    Settings,
    growth,
    noise_floor,
    optimal,
    predict,
    stability_limit,
)

METHODS = ("sgd", "momentum", "nesterov")
each_method = pytest.mark.parametrize("method", METHODS)
H = np.array([[6.0, 3.0, 1.0], [3.0, 5.0, 2.0], [1.0, 2.0, 4.0]])
C = np.array([[0.5, -0.2, 0.0], [-0.2, 0.3, 0.1], [0.0, 0.1, 0.2]])  # does not commute with H
START = np.array([1.0, -2.0, 0.5])
LEAST, LARGEST = np.linalg.eigvalsh(H)[[0, -1]]
STEPS = 300


def optimizer(method: str, rate: Any, rho: Any) -> Any:
    return jc.sgd(rate) if method == "sgd" else jc.momentum(rate, rho, method == "nesterov")


def simulate(method: str, settings: Settings, hessian: np.ndarray, start: np.ndarray, noise: Any) -> np.ndarray:
    """Parameters after every step `[S + 1, n]` of the library's optimizer on gradients with this noise `[S, n]`."""
    return np.asarray(SIMULATE(method, jnp.asarray(settings[:2]), *map(jnp.asarray, (hessian, start, noise))))


def _simulate(method: str, settings: Any, hessian: Any, start: Any, noise: Any) -> Any:
    rule = optimizer(method, settings[0], settings[1])

    def step(carry: Any, xi: Any) -> Any:
        w, state = carry
        updates, state = rule.update(hessian @ w + xi, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    _, path = jax.lax.scan(step, (start, rule.init(start)), noise)
    return jnp.concatenate([start[None], path])


SIMULATE = jax.jit(_simulate, static_argnums=0)


def tried(method: str) -> list[Settings]:
    """Overdamped, oscillating, at the optimum (where the two eigenvalues of A are one), and all but unstable."""
    nesterov, best = method == "nesterov", optimal(LEAST, LARGEST, method)[0]
    rho = 0.0 if method == "sgd" else 0.8
    limit = stability_limit(LARGEST, rho, nesterov)
    critical = (1 + math.sqrt(best.rho)) ** -2 / LARGEST  # some curvature has a double eigenvalue
    return [best] + [Settings(rate, rho, nesterov) for rate in (0.01, 0.1 * limit, critical, 0.999 * limit)]


@each_method
def test_prediction_is_the_run(method: str) -> None:
    times = np.arange(STEPS + 1)
    for settings in tried(method):
        path = simulate(method, settings, H, START, np.zeros((STEPS, 3)))
        predicted = predict(settings, H, START, times)
        np.testing.assert_allclose(predicted.mean, path, rtol=0, atol=1e-10 * np.abs(path).max())
        np.testing.assert_allclose(predicted.value, np.einsum("ti,ij,tj->t", path, H, path) / 2, rtol=0, atol=1e-9)
        assert not predicted.covariance.any()


@each_method
def test_prediction_is_the_run_downhill_for_ever_too(method: str) -> None:
    indefinite = np.diag([2.0, -0.5, 0.0])
    settings = Settings(0.1, 0.0 if method == "sgd" else 0.5, method == "nesterov")
    path = simulate(method, settings, indefinite, START, np.zeros((STEPS, 3)))
    predicted = predict(settings, indefinite, START, np.arange(STEPS + 1)).mean
    np.testing.assert_allclose(predicted, path, rtol=1e-10, atol=1e-12)


@each_method
def test_mean_and_covariance_of_10000_runs(method: str) -> None:
    """Every entry within five of its standard errors, at steps from the first to the stationary ones."""
    runs, steps = 10_000, 60
    rho = 0.0 if method == "sgd" else 0.7
    settings = Settings(0.4 * stability_limit(LARGEST, rho, method == "nesterov"), rho, method == "nesterov")
    draws = jax.random.normal(jax.random.key(0), (runs, steps, 3)) @ jnp.asarray(np.linalg.cholesky(C).T)
    many = jax.jit(jax.vmap(lambda noise: _simulate(method, settings[:2], jnp.asarray(H), jnp.asarray(START), noise)))
    paths = np.asarray(many(draws))
    times = np.array([1, 2, 3, 10, 60])
    predicted = predict(settings, H, START, times, C)
    for t, mean, covariance, value in zip(times, *predicted, strict=True):
        seen, spread = paths[:, t], np.sqrt(np.diag(covariance))
        assert np.all(np.abs(seen.mean(axis=0) - mean) < 5 * spread / math.sqrt(runs))
        errors = np.sqrt((covariance**2 + np.outer(spread, spread) ** 2) / runs)
        assert np.all(np.abs(np.cov(seen.T) - covariance) < 5 * errors)
        values = np.einsum("ri,ij,rj->r", seen, H, seen) / 2
        assert abs(values.mean() - value) < 5 * values.std() / math.sqrt(runs)
    floor = noise_floor(settings, H, C)
    assert abs(values.mean() - floor) < 5 * values.std() / math.sqrt(runs)
    assert predict(settings, H, START, [5000], C).value[0] == pytest.approx(floor, rel=1e-9)


@each_method
def test_stability_limit_lies_between_99_and_101_percent(method: str) -> None:
    rho, nesterov = 0.0 if method == "sgd" else 0.6, method == "nesterov"
    limit = stability_limit(LARGEST, rho, nesterov)
    sizes = {}
    for share in (0.99, 1.01):
        settings = Settings(share * limit, rho, nesterov)
        path = simulate(method, settings, H, START, np.zeros((3000, 3)))
        sizes[share] = np.abs(path[-1]).max()
        assert (growth(settings, np.linalg.eigvalsh(H)).max() < 1) == (share < 1)
        assert math.isinf(noise_floor(settings, H, C)) == (share > 1)
    assert sizes[0.99] < 1e-6
    assert sizes[1.01] > 1e6


@each_method
@pytest.mark.parametrize("condition", [1.0, 2.0, 30.0, 1e4])
def test_the_optimum_is_one(method: str, condition: float) -> None:
    """The factor is what the settings have over the whole range of curvatures, and no neighbour has a smaller."""
    curvatures = np.linspace(0.3, 0.3 * condition, 3001)
    best, factor = optimal(0.3, 0.3 * condition, method)
    assert growth(best, curvatures).max() == pytest.approx(factor, abs=2e-8)  # a double root: half the digits
    for d_rate in (-0.02, 0.0, 0.02):
        for d_rho in (-0.02, 0.0, 0.02):
            rho = 0.0 if method == "sgd" else float(np.clip(best.rho + d_rho * (1 - best.rho), 0, 0.999999))
            near = Settings(best.learning_rate * (1 + d_rate), rho, best.nesterov)
            assert growth(near, curvatures).max() >= factor - 2e-8


@each_method
def test_the_asymptotic_rate_is_the_one_of_long_runs(method: str) -> None:
    settings = Settings(0.05, 0.0 if method == "sgd" else 0.3, method == "nesterov")
    path = simulate(method, settings, H, START, np.zeros((STEPS, 3)))
    sizes = np.linalg.norm(path, axis=1)
    assert (sizes[200] / sizes[100]) ** 0.01 == pytest.approx(growth(settings, np.linalg.eigvalsh(H)).max(), rel=1e-3)


def test_floors_grow_with_the_rate_and_shrink_with_the_batch() -> None:
    assert noise_floor(Settings(0.02), H, C) > 1.9 * noise_floor(Settings(0.01), H, C)
    assert noise_floor(Settings(0.02), H, C / 8) == pytest.approx(noise_floor(Settings(0.02), H, C) / 8)
    values, vectors = np.linalg.eigh(H)
    along = np.diag(vectors.T @ C @ vectors)
    assert noise_floor(Settings(0.02, 0.5), values, along) == pytest.approx(noise_floor(Settings(0.02, 0.5), H, C))
    small = noise_floor(Settings(1e-6), H, C)
    assert small == pytest.approx(1e-6 * np.trace(C) / 4, rel=1e-4)  # lr tr(C) / 4, whatever H
    heavy = noise_floor(Settings(1e-6, 0.9), H, C)
    assert heavy == pytest.approx(10 * small, rel=1e-4)  # momentum is a rate of lr / (1 - rho)
    flat = np.diag([2.0, 0.0])
    assert noise_floor(Settings(0.1), flat, np.eye(2)) == pytest.approx(0.5 * 0.1 / (2 - 0.2))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: predict(Settings(0.1), np.ones((2, 3)), START, [1]), r"hessian: expected \[n, n\]"),
        (lambda: predict(Settings(0.1), np.array([[1.0, 2.0], [0.0, 1.0]]), START[:2], [1]), "not symmetric"),
        (lambda: predict(Settings(0.1), H, START[:2], [1]), r"start \[3\]"),
        (lambda: predict(Settings(0.1), H, START, [-1]), "steps"),
        (lambda: predict(Settings(0.1), H, START, [1], np.eye(2)), r"noise_covariance: expected \[3, 3\]"),
        (lambda: optimal(0.0, 1.0), "0 < least"),
        (lambda: optimal(1.0, 2.0, "adam"), "adam"),
        (lambda: jc.landscape.quadratic_theory.escape_steps(0.0, 1.0, 1.0, 0.1), "negative curvature"),
    ],
)
def test_errors(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
