"""What a point is, how sure that is, and how long a saddle holds: against known spectra and against theory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course.landscape import classify, escape_time, extreme_curvatures
from jaxopt_course.landscape.quadratic_theory import escape_steps

SURFACES = jc.surfaces.SURFACES


@pytest.mark.parametrize("name", SURFACES)
def test_all_critical_points_of_the_surfaces(name: str) -> None:
    surface = SURFACES[name]
    for kind, params in surface.critical_points:
        x = jnp.array(params)
        found = classify(surface.fn, x)
        assert found.kind == kind
        exact = np.linalg.eigvalsh(jax.jit(jax.hessian(surface.fn))(x))
        assert abs(float(found.lowest.value) - exact[0]) <= found.lowest.error + 1e-300
        assert abs(float(found.highest.value) - exact[1]) <= found.highest.error + 1e-300
        if kind in ("saddle", "maximum"):
            here, ahead = float(surface.fn(x)), float(surface.fn(x + 1e-3 * found.negative_curvature))
            assert ahead - here == pytest.approx(1e-6 / 2 * exact[0], rel=0.05)
        else:
            assert found.negative_curvature is None
    away = classify(surface.fn, jnp.asarray(surface.start) + 0.1)
    assert away.kind == "not stationary"
    assert away.grad_norm == pytest.approx(np.linalg.norm(jax.grad(surface.fn)(jnp.asarray(surface.start) + 0.1)))


@pytest.mark.parametrize("name", ["rosenbrock", "bowl_10000", "himmelblau"])
def test_critical_points_in_float32(name: str) -> None:
    for kind, params in SURFACES[name].critical_points:
        assert classify(SURFACES[name].fn, jnp.array(params, jnp.float32)).kind == kind


def turned(spectrum: jax.Array, normal: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A quadratic with that spectrum, turned by a reflection, a permutation and another: no coordinate is an axis."""
    normal = normal / jnp.linalg.norm(normal)

    def reflect(w: jax.Array) -> jax.Array:
        return w - 2 * jnp.dot(normal, w) * normal

    return lambda w: jnp.sum(spectrum * reflect(reflect(w)[::-1]) ** 2) / 2


class Spectrum(NamedTuple):
    """Eigenvalues of a Hessian and what the point is then."""

    values: np.ndarray
    kind: str


RNG = np.random.default_rng(0)
SPECTRA = {
    "negative": Spectrum(-np.repeat([1.0, 2.0, 5.0, 7.0], 100), "maximum"),
    "singular": Spectrum(np.repeat([0.0, 0.5, 2.0], [5, 200, 195]), "degenerate"),
    "all equal": Spectrum(np.full(400, 3.0), "minimum"),
    "n = 10,000": Spectrum(np.append(RNG.uniform(1, 100, 9999), -2.0), "saddle"),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name: str) -> None:
    values, kind = SPECTRA[name]
    f = turned(jnp.asarray(values), jnp.cos(jnp.arange(1.0, len(values) + 1) ** 2))
    found = classify(f, jnp.zeros(len(values)))
    assert found.kind == kind
    assert abs(found.lowest.value - values.min()) <= found.lowest.error <= found.lowest.beyond
    assert abs(found.highest.value - values.max()) <= found.highest.error <= found.highest.beyond
    assert found.num_products <= 800
    if values.min() < 0:
        u = found.negative_curvature
        assert float(jnp.linalg.norm(u)) == pytest.approx(1)
        assert 2 * float(f(u)) == pytest.approx(values.min(), abs=float(found.lowest.error))


def test_bounds_hold_in_1000_of_1000_random_cases() -> None:
    """Spectra of all sorts, before and after convergence; every claim of `Extreme`, each time."""
    cases, n = 1000, 40
    rng = np.random.default_rng(1)
    spectra = rng.standard_normal((cases, n))
    spectra[1::5] = np.sign(spectra[1::5]) * 10 ** rng.uniform(-6, 2, (200, n))
    spectra[2::5] = np.round(spectra[2::5])  # multiple eigenvalues
    spectra[3::5, 3:] = 1 + 1e-3 * spectra[3::5, 3:]  # a cluster and a few far away
    spectra[4::5] = np.abs(spectra[4::5]) ** 3
    normals, keys = rng.standard_normal((cases, n)), jax.random.split(jax.random.key(2), cases)
    scale = np.abs(spectra).max(axis=1)

    @jax.jit
    @jax.vmap
    def extremes(spectrum: Any, normal: Any, key: Any) -> Any:
        return extreme_curvatures(turned(spectrum, normal), jnp.zeros(n), key, 25)

    low, high = jax.device_get(extremes(jnp.asarray(spectra), jnp.asarray(normals), keys))
    for found, truth, outwards in ((low, spectra.min(axis=1), -1), (high, spectra.max(axis=1), 1)):
        nearest = np.abs(found.value[:, None] - spectra).min(axis=1)
        assert np.sum(nearest <= found.error) == cases  # an eigenvalue is within the error
        missed = outwards * (truth - found.value)
        assert np.sum(missed >= -1e-13 * scale) == cases  # and the extreme is at or beyond the value
        assert np.sum(missed <= found.beyond) == cases
        settled = found.error <= 1e-6 * scale
        assert 0.3 < settled.mean() < 1
        assert np.all(missed[settled] <= 1000 * found.error[settled])  # once settled, it is the extreme ...
        assert np.mean(missed[settled] <= found.error[settled]) > 0.99  # ... but for close neighbours
        np.testing.assert_allclose(np.linalg.norm(found.vector, axis=1), 1, rtol=1e-12)


def test_dense_and_lanczos_agree_on_a_tree_of_parameters() -> None:
    def f(params: Any) -> jax.Array:
        return jnp.sum(jnp.cos(params["a"])) + jnp.sum(params["b"] ** 2) * (1 + jnp.sum(params["a"] ** 2))

    x = {"a": jnp.linspace(-0.2, 0.2, 40).reshape(4, 10), "b": jnp.linspace(0, 0.3, 20)}
    dense = classify(f, x)
    low, high = extreme_curvatures(f, x, jax.random.key(0), 60)
    assert float(low.value) == pytest.approx(float(dense.lowest.value), abs=float(low.error))
    assert float(high.value) == pytest.approx(float(dense.highest.value), abs=float(high.error))
    assert dense.kind == "not stationary"
    assert jax.tree.map(jnp.shape, dense.negative_curvature) == {"a": (4, 10), "b": (20,)}
    assert classify(f, x, gtol=100.0).kind == "saddle"


def test_float32_claims_no_more_than_it_knows() -> None:
    spectrum = jnp.linspace(-1, 1, 210, dtype=jnp.float32)
    low, high = extreme_curvatures(
        lambda w: jnp.sum(spectrum * w**2) / 2, jnp.zeros(210, jnp.float32), jax.random.key(0), 210
    )
    assert low.value.dtype == jnp.float32
    assert abs(float(low.value) + 1) <= float(low.error) < 1e-4
    assert abs(float(high.value) - 1) <= float(high.error) < 1e-4


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: classify(lambda w: jnp.sum(w) / 0.0, jnp.ones(2)), ValueError, "must be finite"),
        (lambda: classify(lambda w: jnp.sum(jnp.abs(w) ** 1.5), jnp.zeros(2)), ValueError, "Hessian .* not finite"),
        (lambda: classify(lambda w: jnp.float32(0), jnp.zeros(2, int)), TypeError, "floating point"),
        (lambda: classify(lambda w: jnp.float32(0), {}), ValueError, "no parameters"),
        (
            lambda: extreme_curvatures(lambda w: jnp.sum(w**2), jnp.zeros(3), jax.random.key(0), 4),
            ValueError,
            "from 1 to n = 3, got 4",
        ),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


@pytest.mark.parametrize("rule", [(0.1, 0.0, False), (0.05, 0.8, False), (0.05, 0.8, True)], ids=str)
def test_escapes_take_as_long_as_theory_says(rule: tuple[float, float, bool]) -> None:
    """Mean over 2,000 runs within five standard errors, on a pure saddle; theory's small-noise error is below that."""
    rate, rho, nesterov = rule
    optimizer = jc.momentum(rate, rho, nesterov) if rho else jc.sgd(rate)
    keys = jax.random.split(jax.random.key(0), 2000)

    @jax.jit
    def escapes(noise: jax.Array) -> Any:
        return jax.vmap(lambda key: escape_time(SURFACES["saddle"].fn, jnp.zeros(2), optimizer, noise, key))(keys)

    for noise in (1e-4, 1e-6):
        steps, escaped, params = jax.device_get(escapes(jnp.float64(noise)))
        assert escaped.all()
        assert np.linalg.norm(params, axis=1).min() > 1
        assert np.abs(params[:, 1]).min() > 0.99  # along the way down
        theory, deviation = escape_steps(-1.0, noise, 1.0, *rule), steps.std() / np.sqrt(len(steps))
        assert abs(steps.mean() - theory) < 5 * deviation
        if not rho:  # the textbook's formula, to its own accuracy
            leading = np.log(1 / (noise * np.sqrt(rate / 2))) / rate
            assert steps.mean() == pytest.approx(leading, rel=0.15)


def test_a_saddle_without_noise_holds_for_ever() -> None:
    found = escape_time(SURFACES["double_well"].fn, jnp.zeros(2), jc.sgd(0.1), 0.0, jax.random.key(0), max_steps=50)
    assert (int(found.steps), bool(found.escaped)) == (50, False)
    np.testing.assert_array_equal(found.params, 0)
