"""The 35 problems of Moré, Garbow and Hillstrom by L-BFGS and Newton's methods: where they end, and what they say."""

from typing import Any

import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course import Status

METHODS: dict[str, Any] = {"lbfgs": jc.lbfgs(), "newton": jc.newton(), "newton_cg": jc.newton_cg()}
ACCURACY = 1e-8
NOT_REACHED: set[tuple[str, str]] = set()


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
    assert np.isfinite(value)
    assert status > 0 or (method, name) in HUMBLE, str(result)


HUMBLE: set[tuple[str, str]] = set()


def test_what_is_not_reached_is_little() -> None:
    for method, most in (("lbfgs", 2), ("newton", 0), ("newton_cg", 1)):
        assert sum(m == method for m, _ in NOT_REACHED) <= most
