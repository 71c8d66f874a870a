"""What can be compared without differences: forward with reverse mode, cotangents, compiled with plain f."""

import numpy as np

from jaxopt_course.gradients.analytic import Gradient
from jaxopt_course.gradients.estimates import BARS
from jaxopt_course.gradients.numerical import Numerical, whole_ray
from jaxopt_course.gradients.report import Consistency, Verdict
from jaxopt_course.gradients.subject import Leaves, run_plainly
from jaxopt_course.gradients.verdicts import Trial


def nondeterminism(own: Gradient, numerical: Numerical, plain: Leaves, eps: float) -> float:
    """How far two runs of f at one point are apart. It is run again only where something does not fit to rounding."""
    if not np.array_equal(numerical.here, numerical.again, equal_nan=True):
        return _most(np.abs(numerical.here - numerical.again))
    question = numerical.question
    if not own.outputs:
        return 0.0
    rounding = 4 * eps * size_at(own)
    if (np.abs(np.asarray(question.readings.of(own.outputs)) - question.here) <= rounding).all():
        return 0.0
    again = np.asarray(question.readings.of(run_plainly(question.title, question.args)))
    return _most(np.where(np.abs(again - question.here) > rounding, np.abs(again - question.here), 0.0))


def size_at(own: Gradient) -> np.ndarray:
    """What rounding of f is relative to, [M]: its value, and what it changes by over a unit."""
    here = own.question.here
    size = np.abs(here) + own.slopes(whole_ray(own.args, own.weights))[1][0]
    return np.maximum(size, max(1e-3 * size.max(), 1e-300))


def compare_without_differences(trial: Trial, plain: Leaves) -> tuple[Consistency, ...]:
    own, numerical = trial.sides.own, trial.numerical
    rows = []
    side = trial.sides.sharpest
    if side.has_reverse and side.forward is not None:
        rows.append(_forward_against_reverse(trial))
    if side.grad_fn is None and side.has_reverse:
        tolerance = max(1e-8, float(np.sqrt(_eps_of(trial))))
        rows.append(_row("linear in its cotangent", max(side.bend, 0.0), tolerance))
    readings, here = numerical.question.readings, numerical.question.here
    slack, allowed = np.sqrt(trial.sides.eps) * size_at(own), "in units of what rounding allows"
    if own.outputs:
        compiled = np.asarray(readings.of(own.outputs))
        rows.append(_row("compiled against not", _most(np.abs(compiled - here) / slack), 1.0, allowed))
    if numerical.way.batch > 1:
        apart = _most(np.abs(numerical.here - here) / slack)
        rows.append(_row("vectorised against one by one", apart, 1.0, allowed))
    return tuple(rows)


def _forward_against_reverse(trial: Trial) -> Consistency:
    """Both modes along one ray, relative to the terms of the slope.

    They round differently, and ill-conditioned linear algebra makes more of it than any fixed tolerance allows: where
    they differ, the gradient at two points that are the same to rounding says how much of that is noise.
    """
    side, eps = trial.sides.sharpest, _eps_of(trial)
    assert side.forward is not None
    slope, norm = (x[0] for x in side.slopes(whole_ray(side.args, side.weights)))
    tolerance = max(1e-8, float(np.sqrt(eps)))
    with np.errstate(all="ignore"):
        scale = np.maximum(norm, 100 * eps * np.abs(trial.numerical.here) / tolerance)
        apart = np.where(side.forward == slope, 0.0, np.abs(side.forward - slope))
        errors = np.where(apart == 0, 0.0, apart / scale)
    name, error = "forward against reverse mode", _most(errors)
    if error <= tolerance:
        return _row(name, error, tolerance)
    noise = np.full_like(slope, eps * side.args.sizes.max())  # tangents are as large as the parameters
    for there in trial.sides.nearby(trial.rng):
        by_reverse = there.slopes(whole_ray(there.args, there.weights))[0][0]
        by_forward = side.forward if there.forward is None else there.forward
        noise = np.max([noise, np.abs(by_reverse - slope), np.abs(by_forward - side.forward)], axis=0)
    if (apart <= np.maximum(BARS * noise, tolerance * scale)).all():
        return Consistency(name, Verdict.INCONCLUSIVE, error, "within the rounding of the gradient itself")
    return _row(name, error, tolerance)


def _eps_of(trial: Trial) -> float:
    return trial.numerical.eps if trial.sides.exact is not None else trial.sides.eps


def _row(name: str, error: float, tolerance: float, detail: str = "") -> Consistency:
    return Consistency(name, Verdict.PASS if error <= tolerance else Verdict.FAIL, float(error), detail)


def _most(errors: np.ndarray) -> float:
    return float(np.nan_to_num(errors, nan=np.inf).max())
