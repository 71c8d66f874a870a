"""What can be the matter with a run, and how it is said."""

from enum import StrEnum
from typing import NamedTuple


class Cause(StrEnum):
    """What limits a training run.

    - `RATE_TOO_HIGH`: beyond the rule's stability limit, and the loss rose or does not settle; `factor`: rate over the
      limit.
    - `EDGE_OF_STABILITY`: at the limit without diverging; `factor`: rate over the limit.
    - `RATE_TOO_LOW`: a rate `factor` times as high would be at most half of the limit, and gain faster.
    - `NOISE_LIMITED`: minibatch noise undoes at least half of what steps gain; `factor`: the batch size that would
      halve the noise.
    - `ILL_CONDITIONED`: what is left to gain lies in directions `factor` times flatter than the steepest.
    - `SADDLE`: stalled where the loss still bends down; `factor`: growth of the distance a step.
    - `DEAD_PARAMETERS`: entries that have no gradient, or are not moved; `factor`: their share of the leaf.
    - `MIXED_SCALES`: one leaf limits the rate of all; `factor`: how many times another leaf's rate could be raised.
    - `OVERFITTING`: what `eval_fn` reports got worse while the loss fell; `factor`: how many standard errors.
    - `HEALTHY`: nothing of these; `factor`: 1.

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
    """One cause. `certain`: the evidence excludes the others that would explain the same; `factor`: the number that
    the sentence speaks of, see `Cause`; `leaf`: the path of the one that is to blame, if one is; `evidence`: the
    sentence, with its numbers and their errors."""

    cause: Cause
    certain: bool
    factor: float
    leaf: str | None
    evidence: str


class Diagnosis(NamedTuple):
    """`findings`, the most important first; `str()` of it is their sentences."""

    findings: tuple[Finding, ...]

    @property
    def cause(self) -> Cause:
        """Of the first finding."""
        return self.findings[0].cause

    def __str__(self) -> str:
        return "\n".join(
            f"{finding.cause}{'' if finding.certain else ' (not certain)'}: {finding.evidence}"
            for finding in self.findings
        )
