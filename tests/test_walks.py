"""Recorded paths: those of a plain loop, for rules of every kind, from one start and from many."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.landscape import Paths, gradient_field, paths, settled

VALLEY = jc.surfaces.SURFACES["rosenbrock"]
RULES: dict[str, Callable[[], Any]] = {
    "adam": lambda: jc.adam(0.05),
    "momentum": lambda: jc.momentum(5e-4),
    "newton": jc.newton,
    "lbfgs": jc.lbfgs,
    "optax.adam": lambda: optax.adam(0.05),
    "optax.lbfgs": optax.lbfgs,
    "a chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), jc.sgd(0.01)),
}


def by_hand(fn: Any, rule: Any, start: Any, steps: int) -> np.ndarray:
    w, state, walked = jnp.asarray(start), rule.init(jnp.asarray(start)), [np.asarray(start)]

    @jax.jit
    def step(w: Any, state: Any) -> Any:
        value, grad = jax.value_and_grad(fn)(w)
        updates, state = optax.with_extra_args_support(rule).update(grad, state, w, value=value, grad=grad, value_fn=fn)
        return optax.apply_updates(w, updates), state

    for _ in range(steps):
        w, state = step(w, state)
        walked.append(np.asarray(w))
    return np.stack(walked)


@pytest.mark.parametrize("name", RULES)
def test_paths_are_those_of_a_plain_loop(name: str) -> None:
    with jax.numpy_dtype_promotion("standard"):  # optax.lbfgs mixes integers with floats
        rule = RULES[name]()
        walked = paths(VALLEY, rule, VALLEY.start, 20)
        np.testing.assert_allclose(walked.params, by_hand(VALLEY.fn, rule, VALLEY.start, 20), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(walked.values, jax.vmap(VALLEY.fn)(jnp.asarray(walked.params)), rtol=1e-12, atol=1e-15)
    assert walked.params.shape == (21, 2)
    assert walked.steps == 20


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_many_starts_go_their_own_ways(name: str) -> None:
    starts, rule = np.array([[-1.2, 1.0], [0.5, 0.5], [2.0, -1.0]]), RULES[name]()
    walked = paths(VALLEY, rule, starts, 12)
    assert (walked.params.shape, walked.values.shape, walked.steps.shape) == ((3, 13, 2), (3, 13), (3,))
    for number, start in enumerate(starts):
        np.testing.assert_allclose(walked.params[number], paths(VALLEY, rule, start, 12).params, rtol=1e-9)


def test_one_that_diverges_is_frozen_and_the_others_go_on() -> None:
    starts = np.array([[1.0, 1.0], [9.0, 0.0], [np.inf, 0.0]])
    walked = paths(lambda x, y: x**4 + y**2, jc.sgd(0.1), starts, 100)
    assert walked.steps[0] == 100
    assert 1 < walked.steps[1] < 100
    assert walked.steps[2] == 0
    assert np.isfinite(walked.params[:2]).all()
    assert np.isfinite(walked.values[:2]).all()
    assert (walked.params[1, walked.steps[1] :] == walked.params[1, -1]).all()


def test_a_surface_a_function_of_two_numbers_and_one_of_a_vector_are_the_same() -> None:
    def of_two(x: Any, y: Any) -> Any:
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    def of_vector(w: Any) -> Any:
        return of_two(w[0], w[1])

    ways = [paths(fn, jc.adam(0.1), VALLEY.start, 10).params for fn in (VALLEY, of_two, of_vector)]
    fields = [gradient_field(fn, (5, 4), window=VALLEY.window) for fn in (VALLEY, of_two, of_vector)]
    for way, field in zip(ways[1:], fields[1:], strict=True):
        np.testing.assert_allclose(way, ways[0], rtol=1e-12)
        np.testing.assert_allclose(field.values, fields[0].values, rtol=1e-12)
        np.testing.assert_allclose(field.gradient, fields[0].gradient, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="needs its window"):
        gradient_field(of_two)


def test_nothing_is_compiled_twice() -> None:
    traces = []

    def fn(x: Any, y: Any) -> Any:
        traces.append(0)
        return x**2 + y**2

    paths(fn, jc.sgd(0.1), np.ones(2), 3)
    before = len(traces)
    paths(fn, jc.sgd(0.1), np.zeros(2), 3)
    assert len(traces) == before > 0


def test_noise_has_its_covariance_and_differs_between_starts() -> None:
    def flat(w: Any) -> Any:
        return 0.0 * jnp.sum(w)

    key = jax.random.key(0)
    walked = paths(flat, jc.sgd(1.0), np.zeros((2000, 2)), 2, noise=3.0, key=key)
    steps = np.diff(walked.params, axis=1).reshape(-1, 2)
    np.testing.assert_allclose(np.cov(steps.T), 9 * np.eye(2), atol=0.6)
    np.testing.assert_array_equal(walked.values, 0)
    again = paths(flat, jc.sgd(1.0), np.zeros((2000, 2)), 2, noise=3.0, key=key)
    np.testing.assert_array_equal(walked.params, again.params)
    with pytest.raises(ValueError, match="noise takes a key"):
        paths(flat, jc.sgd(1.0), np.zeros(2), 2, noise=3.0)


def test_wrong_starts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 2\)"):
        paths(VALLEY, jc.sgd(0.1), np.zeros((1, 1, 2)), 2)
    with pytest.raises(TypeError):
        paths(VALLEY, jc.sgd(0.1), np.zeros(2, int), 2)


def test_settled_is_the_last_crossing() -> None:
    values = np.array([[9.0, 0.5, 4.0, 0.9], [9.0, 0.5, 0.4, 0.3], [0.1, 0.1, 0.1, 2.0], [0.1, np.nan, 0.1, 0.1]])
    np.testing.assert_array_equal(settled(values, 1.0), [3, 1, np.inf, 2])
    assert isinstance(paths(VALLEY, jc.sgd(1e-3), VALLEY.start, 2), Paths)
