"""A solve that somebody watches: the same result, and arguments that people give by habit."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc


def rosenbrock(w: Any) -> Any:
    return jnp.sum(100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2)


START = jnp.tile(jnp.array([-1.2, 1.0]), 10)


@pytest.mark.parametrize("optimizer", [jc.lbfgs(), jc.newton(), jc.newton_cg(), jc.adam(0.01), jc.momentum(1e-4)])
def test_the_result_is_the_same_as_without(optimizer: Any) -> None:
    seen: list[Any] = []
    options: dict[str, Any] = {"max_steps": 150, "trace": True}
    watched = jc.minimize(rosenbrock, optimizer, START, callback=seen.append, **options)
    alone = jc.minimize(rosenbrock, optimizer, START, **options)
    for a, b in zip(jax.tree.leaves(watched), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert [snapshot.step for snapshot in seen[:-1]] == [10 * (i + 1) for i in range(len(seen) - 1)]
    assert seen[-1].step == alone.num_steps
    assert seen[0].value == np.min(alone.trace.value[:11])
    assert seen[0].params.shape == START.shape


def test_a_callback_may_stop_the_solve() -> None:
    result = jc.minimize(rosenbrock, jc.lbfgs(), START, callback=lambda seen: seen.step >= 20)
    assert result.status == jc.Status.INTERRUPTED
    assert result.num_steps == 20
    assert result.value < rosenbrock(START)


def test_trees_bounds_and_complex_parameters_are_seen_as_they_are() -> None:
    seen: list[Any] = []

    def objective(w: Any) -> Any:
        away = w["z"] - (1 + 2j)
        return (away * away.conj()).real ** 2 + jnp.sum((w["x"] - 3) ** 4)

    start = {"z": jnp.array(0j), "x": jnp.zeros(2)}
    jc.minimize(objective, jc.sgd(0.01), start, max_steps=25, callback=seen.append)
    assert [snapshot.step for snapshot in seen] == [10, 20, 25]
    assert seen[0].params["z"].dtype == complex
    jc.minimize(lambda w: jnp.sum((w - 3) ** 4), jc.lbfgs(), jnp.zeros(2), bounds=(0, 1), callback=seen.append)
    assert np.all(seen[-1].params == 1)


@pytest.mark.parametrize("where", [jax.jit, jax.grad])
def test_under_jit_and_grad_a_callback_is_refused(where: Any) -> None:
    def by_argument(start: Any) -> Any:
        return jc.minimize(rosenbrock, jc.lbfgs(), start, callback=print).value

    def by_closure(shift: Any) -> Any:
        return jc.minimize(lambda w: jnp.sum((w - shift) ** 2), jc.lbfgs(), START, callback=print).value

    for f, argument in ((by_argument, START), (by_closure, 1.0)):
        with pytest.raises(TypeError, match="callback is a Python function"):
            where(f)(argument)


def test_a_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    watched = jc.minimize(rosenbrock, jc.lbfgs(), START, progress=True)
    alone = jc.minimize(rosenbrock, jc.lbfgs(), START)
    assert watched.num_evals == alone.num_evals
    np.testing.assert_allclose(watched.params, alone.params, rtol=1e-9)
    grad = jax.grad(lambda t: jc.minimize(lambda w: jnp.sum((w - t) ** 2), jc.lbfgs(), START, progress=True).value)
    assert abs(grad(1.0)) < 1e-12
    capsys.readouterr()


HABITS = {
    "args": "data=",
    "jac": "custom_jvp",
    "tol": "gtol=",
    "maxiter": "max_steps=",
    "constraints": "bounds=",
    "method": "jc.lbfgs",
    "lr": "jc.sgd",
    "hyperparams_prox": "l1=",
    "nonsense": "'nonsense'",
}


@pytest.mark.parametrize("habit", HABITS)
def test_habits_are_answered_with_the_name_of_ours(habit: str) -> None:
    minimize: Any = jc.minimize
    with pytest.raises(TypeError, match=re.escape(HABITS[habit])):
        minimize(rosenbrock, jc.lbfgs(), START, **{habit: 1})
