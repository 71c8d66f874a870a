"""The one question: what limits this run?"""

from jaxopt_course.diagnosis.causes import Diagnosis
from jaxopt_course.diagnosis.evidence import gather
from jaxopt_course.diagnosis.rules import findings
from jaxopt_course.training import TrainResult


def diagnose(result: TrainResult) -> Diagnosis:
    """Say what limits a training run, with numbers, from its probes."""
    if getattr(getattr(result, "trace", None), "probes", None) is None:
        raise ValueError("diagnose: the result has no probes; train with probe_every=, such as probe_every=100")
    return Diagnosis(findings(gather(result)))
