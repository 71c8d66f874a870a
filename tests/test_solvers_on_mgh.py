"""The 35 problems of Moré, Garbow and Hillstrom by L-BFGS and Newton: where they end, and if they say the truth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course import Status

METHODS: dict[str, Any] = {"lbfgs": jc.lbfgs(), "newton": jc.newton()}
ACCURACY = 1e-8
NOT_REACHED = {  # by the default tolerance on the gradient
    ("lbfgs", "gulf"),  # 3.5e-8: flat to the fourth order
    ("lbfgs", "penalty_ii"),  # 1e-8 within rounding: now above, now below
}


@pytest.mark.parametrize("name", jc.mgh.PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_ends_at_a_published_minimum(method: str, name: str) -> None:
    problem = jc.mgh.PROBLEMS[name]
    result = jc.minimize(problem.fn, METHODS[method], problem.start, max_steps=3000)
    value, status = float(result.value), Status(int(result.status))
    print(f"{name} by {method}: {result}")
    distances = [abs(value - m.value) / (m.value if m.value > ACCURACY else 1) for m in problem.minima]
    most = 10 * ACCURACY if (method, name) in NOT_REACHED else ACCURACY
    assert min(distances) <= most, f"{value} against {problem.minima}"
    gradient = float(jnp.max(jnp.abs(jax.grad(problem.fn)(result.params))))
    assert np.isfinite(value)
    if status > 0:  # no false success
        assert gradient <= 1.5e-8 * max(1, abs(value)) * (1 + 1e-6)
    else:  # one has a gradient whose own rounding is above any tolerance
        assert (name, status) == ("meyer", Status.ROUNDOFF_LIMITED)


def test_what_is_not_reached_is_little() -> None:
    for method, most in (("lbfgs", 2), ("newton", 0)):
        assert sum(m == method for m, _ in NOT_REACHED) <= most
