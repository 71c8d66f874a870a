"""Successes of L-BFGS in valleys so narrow that its last steps know nothing of the curvature along them: none is false.

Starts differ by rounding, so that nothing rests on luck.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course import Status

LANES = 8
FALSE = 1e-6  # above the minimum, in units of the value or of 1: no success


def heart(w: Any) -> Any:
    """The dipole model of the heart in six unknowns, as a sum of squares: Dennis, Gay and Vu (1985)."""
    a, c, t, u, v, x = w
    b, d = -0.816 - a, -0.017 - c
    residuals = [
        t * a + u * b - v * c - x * d + 1.826,
        v * a + x * b + t * c + u * d + 0.754,
        a * (t**2 - v**2) - 2 * c * t * v + b * (u**2 - x**2) - 2 * d * u * x + 4.839,
        c * (t**2 - v**2) + 2 * a * t * v + d * (u**2 - x**2) + 2 * b * u * x + 3.259,
        a * t * (t**2 - 3 * v**2)
        + c * v * (v**2 - 3 * t**2)
        + b * u * (u**2 - 3 * x**2)
        + d * x * (x**2 - 3 * u**2)
        + 14.023,
        c * t * (t**2 - 3 * v**2)
        - a * v * (v**2 - 3 * t**2)
        + d * u * (u**2 - 3 * x**2)
        - b * x * (x**2 - 3 * u**2)
        - 15.467,
    ]
    return jnp.sum(jnp.stack(residuals) ** 2)


GRID = np.linspace(-1.8, 1.8, 35)
POWERS = GRID[:, None] ** (2 * np.arange(8))
HEIGHTS = 40 / (0.3 + GRID**2) + np.sin(7 * GRID)


def powers(w: Any) -> Any:
    """A fit of even powers, linear but of condition number 1e12."""
    return jnp.sum((POWERS @ w - HEIGHTS) ** 2)


A = np.array([[0.0, 0.0, 0.0], [0.13725e-6, 937.62, -42.207], [0.0, 0.0, 0.0]])
B = np.array([[0.0060893, -44.292, 2.0011], [0.1388e-6, -1886.0, 42.362], [-0.13877e-6, 42.362, -2.0705]])
C = np.array([[0.0, 44.792, 0.0], [0.0, 948.21, 0.0], [0.0, -42.684, 0.0]])


def economy(w: Any) -> Any:
    """A X^2 + B X + C = 0 for a matrix, as a sum of squares: Cooley and Hansen's economy, by Ceria (1995)."""
    return jnp.sum((A @ w @ w + B @ w + C) ** 2)


TIMES = np.linspace(5e-5, 5.6e-4, 200)
PEAKS = np.array([2e-3, -3.5, 0.114, 3.7e-4, 5.6e-6, 0.13, 1.66e-4, 3e-5])


def spectrum(w: Any) -> Any:
    """Two bells on a line at times far below 1."""
    bells = w[2] * jnp.exp(-0.5 * ((w[3] - TIMES) / w[4]) ** 2) + w[5] * jnp.exp(-0.5 * ((w[6] - TIMES) / w[7]) ** 2)
    return w[0] + w[1] * TIMES + bells


def peaks(w: Any) -> Any:
    """A fit of them in units of an error of 0.03, with a ripple that it cannot follow."""
    return jnp.sum(((spectrum(w) - spectrum(PEAKS)) / 0.03 + np.sin(9e4 * TIMES)) ** 2)


class Valley(NamedTuple):
    """A function, where to start, the minimum in reach, and how many of the lanes must end in success there."""

    fn: Callable[[Any], Any]
    start: Any
    minimum: float
    successes: int


VALLEYS = {
    "heart": Valley(heart, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0], 0.0, 0),  # a valley leads on to infinity at 16.6
    "powers": Valley(powers, np.full(8, 100.0), 28.272672276505, LANES),
    "economy": Valley(economy, np.zeros((3, 3)), 0.0, LANES),
    "economy from elsewhere": Valley(economy, np.full((3, 3), 0.1), 0.0, LANES),
    "peaks": Valley(peaks, [0.0, 0.0, 0.01, 3.7e-4, 1e-5, 0.098, 1.67e-4, 1e-5], 99.8304862, LANES // 2),
    "peaks from elsewhere": Valley(peaks, [0.0, 0.0, 0.05, 3.6e-4, 1e-5, 0.1, 1.7e-4, 2e-5], 91.8201722885, LANES // 2),
}


@pytest.mark.parametrize("name", VALLEYS)
def test_no_success_in_a_valley_is_false(name: str) -> None:
    valley = VALLEYS[name]
    start = np.asarray(valley.start)
    starts = start * (1 + 1e-13 * np.random.default_rng(0).standard_normal((LANES, *start.shape)))

    def solve(w: Any) -> Any:
        return jc.minimize(valley.fn, jc.lbfgs(), w, max_steps=3000)._replace(state=None)

    result = jax.device_get(jax.jit(jax.vmap(solve))(starts))
    success, left = result.status > 0, result.value - valley.minimum
    lines = [
        f"{Status(int(status)).name} {over:.2e} above the minimum after {evals} evaluations"
        for status, over, evals in zip(result.status, left, result.num_evals, strict=True)
    ]
    assert not np.any(success & (left > FALSE * max(1, abs(valley.minimum)))), lines
    assert np.sum(success) >= valley.successes, lines


def test_a_gradient_that_jax_cannot_differentiate_leaves_the_word_of_the_last_steps() -> None:
    @jax.custom_vjp
    def bowl(w: Any) -> Any:
        return jnp.sum((w - 1) ** 2)

    bowl.defvjp(lambda w: (bowl(w), w), lambda w, scale: (2 * scale * (w - 1),))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.hessian(bowl)(jnp.ones(2))
    result = jc.minimize(bowl, jc.lbfgs(), np.array([3.0, -2.0]))
    assert Status(int(result.status)) > 0
    np.testing.assert_allclose(result.params, 1, rtol=1e-12)
