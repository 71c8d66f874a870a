"""The causes that can limit a run, and the records that report them."""

from enum import StrEnum
from typing import NamedTuple


class Cause(StrEnum):
    """What limits a training run.

    - `RATE_TOO_HIGH`: the learning rate is above the stability limit of the rule, and the loss rose or does not settle;
      `factor`: the rate divided by the limit.
    - `EDGE_OF_STABILITY`: the rate is at the limit and the run does not diverge; `factor`: the rate divided by the
      limit.
    - `RATE_TOO_LOW`: a rate `factor` times as high would be at most half of the limit, and the loss would fall faster.
    - `NOISE_LIMITED`: minibatch noise undoes at least half of what steps gain; `factor`: the batch size that would
      halve the noise.
    - `ILL_CONDITIONED`: what is left to gain lies in directions `factor` times flatter than the steepest.
    - `SADDLE`: the run stalled at a point of negative curvature; `factor`: growth of the distance per step.
    - `DEAD_PARAMETERS`: entries have no gradient or are not updated; `factor`: their share of the leaf.
    - `MIXED_SCALES`: one leaf limits the rate of all; `factor`: how many times another leaf's rate could be raised.
    - `OVERFITTING`: a result of `eval_fn` got worse while the loss fell; `factor`: by how many standard errors.
    - `HEALTHY`: none of these; `factor`: 1.

    Example:
      >>> Cause("SADDLE").name
      'SADDLE'
    """

    RATE_TOO_HIGH = "RATE_TOO_HIGH"
    EDGE_OF_STABILITY = "EDGE_OF_STABILITY"
    RATE_TOO_LOW = "RATE_TOO_LOW"
    NOISE_LIMITED = "NOISE_LIMITED"
    ILL_CONDITIONED = "ILL_CONDITIONED"
    SADDLE = "SADDLE"
    DEAD_PARAMETERS = "DEAD_PARAMETERS"
    MIXED_SCALES = "MIXED_SCALES"
    OVERFITTING = "OVERFITTING"
    HEALTHY = "HEALTHY"


class Finding(NamedTuple):
    """One cause that was found.

    `certain`: whether the evidence excludes other causes that would explain the same observations; `factor`: the main
    number, see `Cause`; `leaf`: the path of the leaf that is the cause, or None; `evidence`: a sentence with the
    numbers and their errors.
    """

    cause: Cause
    certain: bool
    factor: float
    leaf: str | None
    evidence: str


class Diagnosis(NamedTuple):
    """`findings`, the most important first; `str()` gives their sentences."""

    findings: tuple[Finding, ...]

    @property
    def cause(self) -> Cause:
        """The cause of the first finding."""
        return self.findings[0].cause

    def __str__(self) -> str:
        return "\n".join(
            f"{finding.cause}{'' if finding.certain else ' (not certain)'}: {finding.evidence}"
            for finding in self.findings
        )
