"""`gradcheck` on a corpus of functions with right and wrong gradients: its verdicts and their cost.

The functions are part of the test suite, which the wheel does not contain, so this command needs a checkout.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import track

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.report import Table, print_blocks
from jaxopt_course.gradients import GradientReport, Verdict

KEPT = 20  # compiled programs are cleared after this many functions
FEW = 300  # the bound on evaluations applies to functions with up to this many coordinates
MOST_UNDECIDED = 0.05  # largest accepted share of undecided verdicts among the right functions
ACCEPTED = (Verdict.PASS, Verdict.KINK)
REJECTED = (Verdict.FAIL, Verdict.NONFINITE, Verdict.NONDETERMINISTIC)


class Judged(NamedTuple):
    """A function of the corpus, whether its gradient is right, and the verdict of the check."""

    kind: str
    name: str
    right: bool
    coordinates: int
    verdict: Verdict
    evaluations: int
    seconds: float

    @property
    def is_false(self) -> bool:
        """Whether a right gradient was rejected, or a wrong gradient was accepted or found to be constant."""
        return self.verdict in REJECTED if self.right else self.verdict in (*ACCEPTED, Verdict.CONSTANT)

    @property
    def is_undecided(self) -> bool:
        return self.verdict is Verdict.INCONCLUSIVE or (self.right and self.verdict is Verdict.CONSTANT)

    @property
    def is_over(self) -> bool:
        """Whether a right function with n coordinates, at most `FEW`, took more than 50 (n + 10) evaluations."""
        return self.right and self.coordinates <= FEW and self.evaluations > 50 * (self.coordinates + 10)


def judge(sample: Any, right: bool, check: Callable[..., GradientReport] = jc.gradcheck) -> Judged:
    """Check one `Sample` of the corpus: its kind, name, f, params and args."""
    start = time.perf_counter()
    report = check(sample.f, sample.params, *sample.args)
    seconds = time.perf_counter() - start
    coordinates = sum(leaf.entries for leaf in report.leaves)
    return Judged(sample.kind, sample.name, right, coordinates, report.verdict, report.evaluations, seconds)


def main(*, quiet: bool, as_json: bool) -> int:
    """Judge the whole corpus, and print the table. 1 if a verdict is false, or too many are open."""
    judged: list[Judged] = []
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        try:
            from tests.gradient_corpus import right_samples, wrong_samples
        except ImportError as error:
            raise UsageError(f"--corpus needs the tests of a checkout, run from its root: {error}") from error
        corpus = [(True, sample) for sample in right_samples()] + [(False, sample) for sample in wrong_samples()]
        for right, sample in track(corpus, "gradcheck", console=Console(stderr=True), disable=quiet):
            judged.append(judge(sample, right))
            if len(judged) % KEPT == 0:
                jax.clear_caches()
    if as_json:
        print(json.dumps([one._asdict() | {"verdict": str(one.verdict)} for one in judged]))
    elif not quiet:
        print_blocks(table(judged), *open_cases(judged))
    return 0 if holds(judged) else 1


def holds(judged: Iterable[Judged]) -> bool:
    right = [one for one in judged if one.right]
    few_open = sum(one.is_undecided for one in right) <= MOST_UNDECIDED * len(right)
    return few_open and not any(one.is_false or one.is_over for one in judged)


def table(judged: list[Judged]) -> Table:
    """A table of the number of verdicts, with one row for each kind of function."""
    rows = []
    for right in (True, False):
        of = [one for one in judged if one.right == right]
        for kind in dict.fromkeys(one.kind for one in of):
            rows.append(_row("right" if right else "wrong", kind, [one for one in of if one.kind == kind]))
        if of:
            rows.append(_row("right" if right else "wrong", "all", of))
    right_ones = [one for one in judged if one.right]
    undecided = sum(one.is_undecided for one in right_ones)
    note = (
        f"{len(judged)} functions: {sum(one.is_false for one in judged if not one.right)} false passes, "
        f"{sum(one.is_false for one in right_ones)} false failures, {undecided} of {len(right_ones)} right ones "
        f"undecided; {sum(one.is_over for one in judged)} of those with up to {FEW} coordinates n took more than "
        "50 (n + 10) evaluations. Seconds are medians, compiling included."
    )
    head = ["gradient", "kind", *map(str, Verdict), "all", "false", "evaluations", "s"]
    return Table(head, rows, "Verdicts on a corpus of functions", note, 2, "(wrong)")


def _row(side: str, kind: str, of: list[Judged]) -> list[str]:
    counts = Counter(one.verdict for one in of)
    cells = [str(counts[verdict] or "") for verdict in Verdict]
    evaluations = f"{statistics.median(one.evaluations for one in of):,.0f}"
    seconds = f"{statistics.median(one.seconds for one in of):.2f}"
    return [side, kind, *cells, str(len(of)), str(sum(one.is_false for one in of)), evaluations, seconds]


def open_cases(judged: Iterable[Judged]) -> list[str]:
    """One line for each verdict that is false, undecided or too expensive."""
    return [
        f"{'right' if one.right else 'wrong'}: {one.name}: {one.verdict}, {one.evaluations:,} evaluations"
        for one in judged
        if one.is_false or one.is_undecided or one.is_over
    ]
