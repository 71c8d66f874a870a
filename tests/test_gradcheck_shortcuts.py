"""Many entries in few evaluations, and budgets: nothing wrong hides in a group, and no budget is overdrawn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course.gradients import Verdict

MANY = 2_000


def point(n: int = MANY) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(n))


def waves(w: Any) -> Any:
    return jnp.sum(jnp.sin(w) * jnp.exp(w / 4))


def altered(alter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda w: alter(jax.grad(waves)(w))


WRONG = {
    "one entry by 3e-6": (lambda g: g.at[777].mul(1 + 3e-6), {777}),
    "one sign": (lambda g: g.at[11].mul(-1.0), {11}),
    "two errors that cancel": (lambda g: g.at[5].add(1e-3).at[9].add(-1e-3), {5, 9}),
    "two swapped": (lambda g: g.at[5].set(g[6]).at[6].set(g[5]), {5, 6}),
}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_wrong_hides_in_a_group(case: str) -> None:
    alter, places = WRONG[case]
    report = jc.gradcheck(waves, point(), grad_fn=altered(alter))
    assert report.verdict is Verdict.FAIL, report
    assert {entry.index[0] for entry in report.wrong} == places
    assert report.leaves[0].speaks_for == MANY


def test_errors_of_either_sign_everywhere() -> None:
    signs = jnp.where(jnp.arange(MANY) % 2 == 0, 1.0, -1.0)
    report = jc.gradcheck(waves, point(), grad_fn=altered(lambda g: g + 1e-4 * signs))
    assert report.verdict is Verdict.FAIL
    assert report.leaves[0].wrong >= 500  # those that are swept before the rest is taken as seen


def test_right_entries_take_less_than_two_evaluations_each() -> None:
    report = jc.gradcheck(waves, point()).raise_if_failed()
    assert report.verdict is Verdict.PASS
    assert report.leaves[0].speaks_for == MANY
    assert report.evaluations < 2 * MANY


def test_kinks_and_blank_entries_in_a_group() -> None:
    at_zero, blank = jnp.arange(MANY) % 100 == 3, jnp.arange(MANY) % 4 == 0
    w = jnp.where(at_zero, 0.0, point())

    def f(w: Any) -> Any:
        return jnp.sum(jnp.where(blank, 0.0, jnp.abs(w) + jnp.sin(w)))

    report = jc.gradcheck(f, w)
    assert report.verdict is Verdict.KINK, report
    assert report.leaves[0].unmoved == int(blank.sum())
    beyond = jc.gradcheck(f, w, grad_fn=lambda w: jnp.where(at_zero, 2.5, jax.grad(f)(w)))
    assert beyond.verdict is Verdict.FAIL
    assert {entry.index[0] for entry in beyond.wrong} == set(np.flatnonzero(at_zero & ~blank).tolist())


@pytest.mark.parametrize("max_evals", [1, 20, 40, 90, 200])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_budget_holds_along_directions(max_evals: int, wrong: bool) -> None:
    grad_fn = altered(lambda g: g.at[7].mul(1.5 if wrong else 1.0))
    report = jc.gradcheck(waves, point(300), mode="directional", max_evals=max_evals, grad_fn=grad_fn)
    assert report.evaluations <= max(max_evals, 5)  # the point itself, to see whether it moves and how long it takes
    if max_evals < 34:
        assert report.verdict is Verdict.INCONCLUSIVE
        assert "34 evaluations" in str(report)
    else:
        assert report.verdict is (Verdict.FAIL if wrong else Verdict.PASS)
    if max_evals == 200:
        assert [entry.index for entry in report.wrong] == ([(7,)] if wrong else [])


def test_what_insists_on_float32_is_sent_to_directions_with_the_numbers() -> None:
    def f(w: Any) -> Any:
        return jnp.sum(jnp.tanh(w.astype(jnp.float32)) ** 2)

    w = point().astype(jnp.float32)
    report = jc.gradcheck(f, w)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert 'mode="directional" needs fewer of them, and 44 evaluations' in str(report)
    along = jc.gradcheck(lambda w: jnp.sum(jnp.sin(w.astype(jnp.float32))), w, mode="directional")
    assert along.verdict is Verdict.PASS, along
    assert along.evaluations <= 50


def test_units_of_two_hundred_decades() -> None:
    units = 10.0 ** np.arange(-100, 100, 2.0)
    w = np.random.default_rng(7).standard_normal(100) * units
    report = jc.gradcheck(lambda w: jnp.sum(jnp.cos(w / units)), jnp.asarray(w))
    assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE), report
    assert not report.wrong


def test_terms_of_twelve_decades() -> None:
    """Entries that noise hides do not keep the sweeps from those that can be told."""
    scales = jnp.asarray(10.0 ** np.linspace(-6, 6, MANY))
    report = jc.gradcheck(lambda w: jnp.sum(scales * jnp.sin(w)), point())
    assert report.verdict is Verdict.PASS, report


def test_only_the_wrong_one_is_named_near_the_border_of_a_domain() -> None:
    w = jnp.asarray(10.0 ** np.random.default_rng(7).uniform(-12, 0, 100))
    report = jc.gradcheck(lambda w: -jnp.sum(jnp.log(w)), w, grad_fn=lambda w: jnp.asarray(-1 / w).at[3].mul(-1.0))
    assert report.verdict is Verdict.FAIL
    assert [entry.index for entry in report.wrong] == [(3,)]
