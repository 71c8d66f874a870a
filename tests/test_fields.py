"""Fields against the differences of the lecture, and a map of basins that is right, start by start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.landscape import basins, descend, gradient_field

SURFACES = jc.surfaces.SURFACES


@pytest.mark.parametrize("name", ["hill", "himmelblau"])
def test_a_field_is_the_gradient_at_every_point(name: str) -> None:
    surface = SURFACES[name]
    field = gradient_field(surface, (5, 7))
    assert field.values.shape == (5, 7)
    assert field.gradient.shape == field.differences.shape == field.error.shape == (5, 7, 2)
    assert ((field.x[0], field.x[-1]), (field.y[0], field.y[-1])) == surface.window
    for row, column in ((0, 0), (2, 5), (4, 6)):
        point = jnp.array([field.x[column], field.y[row]])
        assert field.values[row, column] == pytest.approx(float(surface.fn(point)), rel=1e-14)
        np.testing.assert_allclose(field.gradient[row, column], jax.grad(surface.fn)(point), rtol=1e-12)
    h = field.x[1] - field.x[0]
    central = (field.values[2, 4] - field.values[2, 2]) / (2 * h)
    assert field.differences[2, 3, 0] == pytest.approx(central, rel=1e-12)


@pytest.mark.parametrize("name", ["hill", "beale", "rastrigin"])
def test_differences_have_the_error_that_theory_gives_them(name: str) -> None:
    """h^2/6 of the third derivative within, h/2 of the second at the edges: of half the h a quarter and a half."""
    coarse, fine = (gradient_field(SURFACES[name], (n, n)).error for n in (201, 401))
    inner = [np.abs(e[1:-1, 1:-1]).max() for e in (coarse[40:-40, 40:-40], fine[80:-80, 80:-80])]
    assert inner[0] / inner[1] == pytest.approx(4, rel=0.1)
    edges = [np.abs(e[n // 2, 0, 0]) for e, n in ((coarse, 201), (fine, 401))]
    assert edges[0] / edges[1] == pytest.approx(2, rel=0.1)


def test_differences_of_a_parabola_are_exact_inside() -> None:
    field = gradient_field(SURFACES["bowl_100_turned"], (21, 31))
    assert np.abs(field.error[1:-1, 1:-1]).max() < 1e-11 * np.abs(field.gradient).max()
    assert np.abs(field.error[0]).max() > 1  # one-sided: h/2 times a curvature of 75


def test_a_grid_too_small() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        gradient_field(SURFACES["hill"], (1, 5))


@pytest.mark.parametrize("optimizer", [jc.adam(0.1), optax.sgd(1e-3, momentum=0.9)], ids=["adam", "optax"])
def test_every_start_goes_its_own_way(optimizer: Any) -> None:
    """In turns of thousands, with one left over: bit for bit the path of that start alone."""
    f = SURFACES["himmelblau"].fn
    starts = np.random.default_rng(0).uniform(-4, 4, (8193, 2))
    ends = descend(f, optimizer, jnp.asarray(starts), 60)

    @jax.jit
    def step(w: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(f)(w), state, w)
        return optax.apply_updates(w, updates), state

    for i in (0, 4711, 8192):
        w, state = jnp.asarray(starts[i]), optimizer.init(jnp.asarray(starts[i]))
        for _ in range(60):
            w, state = step(w, state)
        np.testing.assert_allclose(ends[i], w, rtol=1e-12)


def test_basins_are_labelled_by_the_minimum_that_was_reached() -> None:
    surface = SURFACES["himmelblau"]
    starts = np.concatenate([surface.minimizers + 0.3, surface.minimizers - 0.3])
    ends = descend(surface.fn, jc.adam(0.05), jnp.asarray(starts), 400)
    assert basins(ends, surface.minimizers).tolist() == [0, 1, 2, 3] * 2
    far = np.array([[0.0, 0.0], [np.nan, 0.0], [np.inf, -np.inf], surface.minimizers[2] + [0.09, 0.0]])
    with np.errstate(invalid="raise"):
        assert basins(far, surface.minimizers).tolist() == [4, 4, 4, 2]
    assert basins(far, np.zeros((0, 2))).tolist() == [0] * 4
