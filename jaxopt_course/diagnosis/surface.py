"""The diagnosis of a rule at a point of a known function."""

from collections.abc import Callable
from typing import Any

from jaxopt_course.annotations import Array, Params
from jaxopt_course.diagnosis.causes import Cause, Diagnosis, Finding
from jaxopt_course.diagnosis.rules import NEAR
from jaxopt_course.landscape import Settings, classify
from jaxopt_course.landscape.quadratic_theory import growth, stability_limit


def diagnose_point(settings: Settings, fn: Callable[[Any], Array], x: Params) -> Diagnosis:
    """Whether a rule is stable at x, from the extreme curvatures there."""
    found = classify(fn, x)
    steepest, lowest = float(found.highest.value), float(found.lowest.value)
    limit = stability_limit(steepest, settings.rho, settings.nesterov)
    ratio, factor = settings.learning_rate / limit, float(growth(settings, steepest))
    findings = []
    here = f"(curvature {steepest:.3g}, limit {limit:.3g}; {factor:.2g}x a step)"
    if ratio >= 1:
        sentence = f"the learning rate is {ratio:.2g} times the stability limit {here}"
        findings.append(Finding(Cause.RATE_TOO_HIGH, True, ratio, None, sentence))
    elif ratio >= NEAR:
        sentence = f"the learning rate is {ratio:.2g} times the stability limit {here}"
        findings.append(Finding(Cause.EDGE_OF_STABILITY, True, ratio, None, sentence))
    if found.negative_curvature is not None and found.kind != "maximum" and steepest > 0:
        faster = float(growth(settings, lowest))
        sentence = (
            f"along a direction of negative curvature ({lowest:.3g}) the distance grows {faster:.3g} times a step"
        )
        findings.append(Finding(Cause.SADDLE, found.kind == "saddle", faster, None, sentence))
    if not findings and steepest <= 0:
        sentence = f"no learning rate overshoots here: the largest curvature is {steepest:.3g}"
        findings.append(Finding(Cause.HEALTHY, True, 1.0, None, sentence))
    elif not findings:
        sentence = f"the learning rate is {ratio:.2g} times the stability limit {here}"
        findings.append(Finding(Cause.HEALTHY, True, 1.0, None, sentence))
    return Diagnosis(tuple(findings))
