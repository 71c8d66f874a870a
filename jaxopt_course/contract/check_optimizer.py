"""Check any optimizer against the contract, with one line in a test."""

import enum
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxopt_course.annotations import Params
from jaxopt_course.contract import interfaces, numerics
from jaxopt_course.contract.trial import Factory, NotApplicable, Trial, Violation, cases_like

CHECKS: dict[str, Callable[[Trial, Params], str | None]] = {
    "state and updates keep their kind": interfaces.structure,
    "one compile, equal to none": interfaces.compiles_once,
    "x64 on and off": interfaces.x64,
    "16 bits: finite, same dtype": numerics.low_precision,
    "16 bits: moments decay": numerics.moments_decay,
    "zero gradient": numerics.zero_gradient,
    "huge and tiny gradients": numerics.extreme_gradients,
    "NaN gradient": numerics.nan_gradient,
    "odd trees": numerics.trees,
    "equivariance": numerics.equivariance,
    "response to scaling": numerics.scaling,
    "vmap equals loop": interfaces.vmaps,
    "traced hyperparameters": interfaces.traced_hyperparameters,
    "chain and MultiSteps": interfaces.composition,
    "step count at int32's end": numerics.last_count,
    "gradients through steps": interfaces.differentiable,
    "serialisation": interfaces.serialisation,
    "purity": numerics.purity,
    "randomness": numerics.randomness,
}


class Outcome(enum.StrEnum):
    """The outcome of one row of a contract."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Row:
    """One clause of a contract and its outcome.

    `name`: the clause; `detail`: what was found; `case`: for a failure, the smallest case that shows it.
    """

    name: str
    outcome: Outcome
    detail: str = ""
    case: str = ""


class ContractError(AssertionError):
    """An optimizer does not satisfy the contract; `report` holds all rows."""

    def __init__(self, report: "ContractReport"):
        super().__init__(f"\n{report}")
        self.report = report


@dataclass(frozen=True)
class ContractReport:
    """The outcome of `check_optimizer`: one row for each clause; `str()` gives a table."""

    rows: tuple[Row, ...]
    strict: bool = False

    @property
    def failed(self) -> tuple[Row, ...]:
        bad = (Outcome.FAILED, Outcome.NOT_APPLICABLE) if self.strict else (Outcome.FAILED,)
        return tuple(row for row in self.rows if row.outcome in bad)

    @property
    def ok(self) -> bool:
        return not self.failed

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def raise_if_failed(self) -> "ContractReport":
        """Raise `ContractError`, an AssertionError that shows the table, unless every row passed."""
        if not self.ok:
            raise ContractError(self)
        return self

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        kept = sum(row.outcome is Outcome.PASSED for row in self.rows)
        out = [f"{'kept' if self.ok else 'BROKEN'}: {kept} of {len(self.rows)} rows passed, {len(self.failed)} failed"]
        for row in self.rows:
            case = f"   smallest case: {row.case}" if row.case else ""
            out.append(f"  {row.name:<{width}}  {row.outcome:<14}  {row.detail}{case}".rstrip())
        return "\n".join(out)


def check_optimizer(opt: Any, *, params: Params | None = None, strict: bool = False) -> ContractReport:
    """Check the properties of an optimizer that loops, compilers, sweeps and checkpoints rely on.

    The rows: structure, shape and dtype of the state under `jit` and `scan`; x64 on and off; float32, bfloat16 and
    float16, in which moments must decay; gradients that are zero, huge, tiny or NaN; empty trees, scalars, None and
    mixed dtypes; equivariance under permutation and flattening; the response to a scaled gradient, which characterizes
    the rule; `vmap`; traced hyperparameters; `optax.chain` and `optax.MultiSteps`; step counters near the end of their
    dtype; gradients through ten steps; serialisation; purity, randomness and one compile for all steps.

    Args:
      opt: an optax transformation, or a function `learning_rate -> transformation`. If a function is given, its
        learning rate is traced as well.
      params: a tree like the parameters to optimize, floating point; by default the tree of a small classifier.
      strict: whether a row that is not applicable counts as failed.

    Returns:
      A `ContractReport`; in a test, call its `.raise_if_failed()`.

    Raises:
      TypeError: `opt` is not an optimizer.

    Example:
      >>> import optax
      >>> report = check_optimizer(optax.adam(1e-3))
      >>> print(report["16 bits: moments decay"].detail)
      bfloat16: a moment stays at 1 of its start where float32 leaves 0.0497
    """
    make: Factory | None = None
    if not hasattr(opt, "update"):
        if not callable(opt):
            raise TypeError(
                "check_optimizer: expected an optax transformation or a function learning_rate -> transformation, "
                f"got {type(opt).__name__}"
            )
        make, opt = opt, opt(1e-2)
    trial = Trial(opt, make, cases_like(params))
    return ContractReport(tuple(_row(name, check, trial) for name, check in CHECKS.items()), strict)


def _row(name: str, check: Callable[[Trial, Params], str | None], trial: Trial) -> Row:
    """Check one clause on the largest case; if that fails, report the smallest case that fails."""
    *smaller, largest = trial.cases.items()
    try:
        return Row(name, Outcome.PASSED, check(trial, largest[1]) or "")
    except NotApplicable as reason:
        return Row(name, Outcome.NOT_APPLICABLE, str(reason))
    except Exception as problem:
        first = problem
    for case, params in [*smaller, largest]:
        try:
            check(trial, params)
        except NotApplicable:
            continue
        except Exception as problem:
            return Row(name, Outcome.FAILED, _message(problem), case)
    return Row(name, Outcome.FAILED, _message(first), largest[0])


def _message(problem: Exception) -> str:
    if isinstance(problem, Violation):
        return str(problem)
    line = traceback.extract_tb(problem.__traceback__)[-1]
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__} in {line.name}: {text[:150]}{'...' if len(text) > 150 else ''}"
