"""The gradient checkers on the corpus: no wrong function passes, and hardly a right one fails.

`CORPUS=whole make test` takes every wrong function, otherwise every third one.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import jaxopt_course as jc
from jaxopt_course.gradients import Verdict
from tests.gradient_corpus import CASES, Case, Function, mutants, right_gradients, second_order_mutants

KINDS = {  # parts of like size, for processes to share
    "the whole gradient": ("sign", "factor", "zero"),
    "one entry": ("one entry",),
    "another point or mode": ("stale residual", "wrong jvp, right vjp", "beyond the slopes"),
    "part of the gradient": ("one leaf", "transposed", "conjugate", "dropped broadcast sum"),
}
FEWEST_MUTANTS, FEWEST_SECOND_ORDER = 330, 40
EVERY = 1 if os.environ.get("CORPUS") == "whole" else 3  # wrong functions, unless all of them are asked for
NOT_REJECTED = (Verdict.PASS, Verdict.KINK, Verdict.CONSTANT)
REJECTED = (Verdict.FAIL, Verdict.NONFINITE, Verdict.NONDETERMINISTIC)


@pytest.fixture(autouse=True)
def compiled_code_is_let_go() -> Iterator[None]:
    """Each check compiles its own, some 10 MB, and runs it once: polishing it would take longer than running it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


class Checked(NamedTuple):
    """A function's row in the table, its name and the verdict on it."""

    row: str
    name: str
    verdict: Verdict


def checked(check: Callable[..., Any], row: str, case: Case, f: Function) -> Checked:
    return Checked(row, case.name, check(f, case.params, *case.args).verdict)


def show(found: list[Checked], capsys: pytest.CaptureFixture[str]) -> None:
    """A table of how often each verdict came, a row for each kind of function."""
    table = Table("", *Verdict, "all", title="Verdicts on the gradient corpus")
    for row in dict.fromkeys(one.row for one in found):
        counts = Counter(one.verdict for one in found if one.row == row)
        table.add_row(row, *(str(counts[verdict] or "") for verdict in Verdict), str(counts.total()))
    with capsys.disabled():
        Console(width=130).print("", table)


def named(found: list[Checked], *verdicts: Verdict) -> list[str]:
    return [f"{name} ({row}): {verdict}" for row, name, verdict in found if verdict in verdicts]


def assert_few_rejected(found: list[Checked]) -> None:
    rejected, undecided = named(found, *REJECTED), named(found, Verdict.INCONCLUSIVE)
    assert len(rejected) <= 0.01 * len(found), f"right functions rejected: {rejected}"
    assert len(undecided) < 0.05 * len(found), f"right functions undecided: {undecided}"


def assert_none_passed(found: list[Checked]) -> None:
    passed, undecided = named(found, *NOT_REJECTED), named(found, Verdict.INCONCLUSIVE)
    assert not passed, f"wrong functions not rejected: {passed}"
    assert len(undecided) < 0.05 * len(found), f"wrong functions undecided: {undecided}"


def test_the_corpus_is_sound_and_large() -> None:
    first, second = 0, 0
    for case in CASES.values():
        outputs = jax.tree.leaves(case.f(case.params, *case.args))
        assert all(np.isfinite(np.asarray(y, complex)).all() for y in outputs), case.name
        assert all(np.isfinite(grad).all() for grad in right_gradients(case.name)[0]), case.name
        kinds = [kind for kind, _ in mutants(case)]
        assert kinds or case.mutations == () or case.order == 2, f"{case.name} has no mutants"
        first, second = first + len(kinds), second + len(list(second_order_mutants(case)))
    assert first >= FEWEST_MUTANTS
    assert second >= FEWEST_SECOND_ORDER


def test_mutants_keep_the_value_and_are_the_same_each_time() -> None:
    for case in list(CASES.values())[::5]:
        made = [*mutants(case), *second_order_mutants(case)]
        assert [kind for kind, _ in made] == [kind for kind, _ in (*mutants(case), *second_order_mutants(case))]
        expected = case.f(case.params, *case.args)
        for kind, wrong in made:
            given = wrong(case.params, *case.args)
            same = jax.tree.map(lambda x, y: x.dtype == y.dtype and jnp.array_equal(x, y), given, expected)
            assert all(jax.tree.leaves(same)), f"{case.name}, {kind}"


def test_right_functions_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    found = [checked(jc.gradcheck, "right", case, case.f) for case in CASES.values()]
    twice = [case for case in CASES.values() if case.order == 2]
    found += [checked(jc.gradgradcheck, "right, second order", case, case.f) for case in twice]
    show(found, capsys)
    assert_few_rejected(found)
    missed = [name for _, name, verdict in found if CASES[name].at_kink and verdict is not Verdict.KINK]
    assert not missed, f"kinks not seen: {missed}"


@pytest.mark.parametrize("part", KINDS)
def test_wrong_functions_are_rejected(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [(kind, case, f) for case in CASES.values() for kind, f in mutants(case, KINDS[part])][::EVERY]
    found = [checked(jc.gradcheck, *one) for one in wrong]
    show(found, capsys)
    assert_none_passed(found)


def test_wrong_second_derivatives_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [(kind, case, f) for case in CASES.values() for kind, f in second_order_mutants(case)][::EVERY]
    found = [checked(jc.gradgradcheck, *one) for one in wrong]
    show(found, capsys)
    assert_none_passed(found)
