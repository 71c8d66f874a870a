"""The gradient checkers on the corpus: no wrong function passes, and hardly a right one fails.

A share of the functions is taken, always the same one; `CORPUS=whole make test` takes all of them.
"""

import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from experiments.gradcheck_corpus import ACCEPTED, Judged, holds, judge, open_cases, table
from experiments.report import print_blocks
from jaxopt_course.gradients import Verdict
from tests import gradient_faults
from tests.gradient_corpus import CASES, mutants, right_gradients, right_samples, second_order_mutants, wrong_samples
from tests.gradient_faults import Sample

WHOLE = os.environ.get("CORPUS") == "whole"
EVERY = 1 if WHOLE else 8  # functions
FEWEST = 150  # of either side


@pytest.fixture(autouse=True)
def compiled_code_is_let_go() -> Iterator[None]:
    """Each check compiles its own, some 10 MB, and runs it once: polishing it would take longer than running it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def show(judged: list[Judged], capsys: pytest.CaptureFixture[str]) -> None:
    if WHOLE:
        with capsys.disabled():
            print_blocks(table(judged), *open_cases(judged))


def test_the_corpus_is_large_and_half_of_it_is_wrong() -> None:
    right = right_samples()
    names = [sample.name for sample in right]
    assert len(set(names)) == len(names) >= FEWEST
    dtypes = {jnp.result_type(leaf).name for sample in right for leaf in jax.tree.leaves(sample.params)}
    assert dtypes >= {"float64", "float32", "bfloat16"}
    assert all(right_gradients(case.name) for case in list(CASES.values())[::10])


def test_mutants_keep_the_value_and_are_the_same_each_time() -> None:
    for case in list(CASES.values())[:: 4 * EVERY]:
        made = [*mutants(case), *second_order_mutants(case)]
        assert [kind for kind, _ in made] == [kind for kind, _ in (*mutants(case), *second_order_mutants(case))]
        expected = case.f(case.params, *case.args)
        for kind, wrong in made:
            given = wrong(case.params, *case.args)
            same = jax.tree.map(lambda x, y: x.dtype == y.dtype and jnp.array_equal(x, y), given, expected)
            assert all(jax.tree.leaves(same)), f"{case.name}, {kind}"


def test_right_functions_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    judged = [judge(sample, True) for sample in right_samples()[::EVERY]]
    show(judged, capsys)
    assert holds(judged), open_cases(judged)
    at_kinks = [one for one in judged if one.name in CASES and CASES[one.name].at_kink]
    assert {one.verdict for one in at_kinks} <= {Verdict.KINK}


def test_wrong_functions_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    judged = [judge(sample, False) for sample in wrong_samples()[1::EVERY]]
    show(judged, capsys)
    assert len(judged) >= FEWEST // EVERY
    assert holds(judged), open_cases(judged)


def test_every_mutant_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    """Of some cases, all that can be made of them."""
    cases = list(CASES.values())[:: 5 * EVERY]
    made = [Sample(kind, case.name, f, case.params, case.args) for case in cases for kind, f in mutants(case)]
    judged = [judge(sample, False) for sample in made]
    show(judged, capsys)
    assert holds(judged), open_cases(judged)


ONCE_MISJUDGED = {
    True: (
        "offset of 1e8 beside a sine",
        "sine at 1e8",
        "tanh(1e8 (w - 1)) at 1",
        "flat beside steep",
        "sine with ripples of 1e-9",
        "masked logits",
        "mean without NaN",
        "power at the end of its domain",
        "tail of erfinv",
        "float32 leaf of 1e-24",
        "float32 leaf of 1e20",
        "float32 log determinant",
        "insists on float32, 300",
    ),
    False: (
        "ignores it",
        "its absolute value",
        "of each output, ignored",
        "two signs beside 1e9",
        "zero for a flat entry",
        "sign of 1e-9 of the largest",
        "3e-6 in one of 1,100",
        "1e6 forgotten",
        "1e9 in one of 300 forgotten",
    ),
}


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_what_was_once_misjudged(right: bool) -> None:
    samples = {sample.name: sample for sample in (gradient_faults.RIGHT if right else gradient_faults.WRONG)}
    for name in ONCE_MISJUDGED[right]:
        judged = judge(samples[name], right)
        assert (judged.verdict in ACCEPTED) if right else judged.verdict is Verdict.FAIL, name
        assert not judged.is_over, name


def test_second_derivatives(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [case for case in CASES.values() if case.order == 2][2 :: 2 * EVERY]
    judged = []
    for case in cases:
        right = Sample("right", case.name, case.f, case.params, case.args)
        judged.append(judge(right, True, jc.gradgradcheck)._replace(coordinates=10**9))  # no bound on evaluations
        for kind, f in second_order_mutants(case):
            judged.append(judge(Sample(kind, case.name, f, case.params, case.args), False, jc.gradgradcheck))
    show(judged, capsys)
    assert np.mean([one.right for one in judged]) < 0.9
    assert holds(judged), open_cases(judged)
