"""Diagnose a rule at a point of a known function."""

from collections.abc import Callable
from typing import Any

from jaxopt_course.annotations import Array, Params
from jaxopt_course.diagnosis.causes import Cause, Diagnosis, Finding
from jaxopt_course.diagnosis.rules import NEAR
from jaxopt_course.landscape import Settings, classify
from jaxopt_course.landscape.quadratic_theory import growth, stability_limit


def diagnose_point(settings: Settings, fn: Callable[[Any], Array], x: Params) -> Diagnosis:
    """Diagnose whether a rule is stable at x, from the extreme curvatures at x."""
    found = classify(fn, x)
    steepest, lowest = float(found.highest.value), float(found.lowest.value)
    limit = stability_limit(steepest, settings.rho, settings.nesterov)
    ratio, factor = settings.learning_rate / limit, float(growth(settings, steepest))
    here = f"(curvature {steepest:.3g}, limit {limit:.3g}; {factor:.2g}x a step)"
    sentence = f"the learning rate is {ratio:.2g} times the stability limit {here}"
    if steepest <= 0:
        sentence = f"no learning rate overshoots here: the largest curvature is {steepest:.3g}"
    findings = []
    if ratio >= NEAR:
        cause = Cause.RATE_TOO_HIGH if ratio >= 1 else Cause.EDGE_OF_STABILITY
        findings.append(Finding(cause, True, ratio, None, sentence))
    if found.negative_curvature is not None and steepest > 0:
        faster = float(growth(settings, lowest))
        down = f"along a direction of negative curvature ({lowest:.3g}) the distance grows {faster:.3g} times a step"
        findings.append(Finding(Cause.SADDLE, found.kind == "saddle", faster, None, down))
    findings = findings or [Finding(Cause.HEALTHY, True, 1.0, None, sentence)]
    return Diagnosis(tuple(findings))
