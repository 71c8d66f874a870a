"""The function that diagnoses a training run."""

from collections.abc import Callable
from typing import Any

from jaxopt_course.annotations import Array, Params
from jaxopt_course.diagnosis.causes import Diagnosis
from jaxopt_course.diagnosis.evidence import Evidence
from jaxopt_course.diagnosis.rules import findings
from jaxopt_course.diagnosis.surface import diagnose_point
from jaxopt_course.landscape import Settings
from jaxopt_course.training import TrainResult


def diagnose(
    result: TrainResult | Settings, fn: Callable[[Any], Array] | None = None, x: Params | None = None
) -> Diagnosis:
    r"""Diagnose what limits a training run, with numbers, from its probes; for any model and optimizer.

    The rule is characterized by the response of its updates to small changes of the gradient, as two sums over the
    following steps: A, the alternating sum, and S, the steady sum. With $\lambda$ the largest eigenvalue of
    $A^{1/2} H A^{1/2}$, the rate is

    $$\tfrac12 \lambda_{\max}(A^{1/2} H A^{1/2})$$

    times the stability limit (for gradient descent $\eta \lambda / 2$, for Adam $\lambda \eta / 38$ on the
    preconditioned Hessian with b1 = 0.9). A step covers the fraction $G^T S G / (G^T H^{-1} G)$ of the way to the
    minimum. Noise of covariance C holds the loss above the minimum by $\tfrac14 \mathrm{tr}(S C)$ to
    $1 / (1 - \lambda / 2)$ times that.

    All quantities are estimated from mutually independent minibatches, with intervals of 99.9 %. A finding is `certain`
    if these intervals exclude the other side of its threshold.

    Args:
      result: the result of `train(..., probe_every=)`, or the `result` of its `NonFiniteError`; or, for a known
        function, the `landscape.Settings` of the rule.
      fn, x: for `Settings` only, `fn(x) -> scalar` and a point.

    Returns:
      `Diagnosis(findings)`: certain findings first, then by how much faster the run could become. If nothing was found,
      the only finding is HEALTHY.

    Raises:
      ValueError: the result has no probes, or the run was interrupted before its last probe or took no step.
      TypeError: `result` is not a result, or settings are given without a function and a point.

    Example:
      >>> import jax
      >>> import jaxopt_course as jc
      >>> digits = jc.data.load("digits")
      >>> objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
      >>> params = jc.scores.init_linear(jax.random.key(0), num_classes=10, num_features=64)
      >>> slow = jc.train(objective, jc.sgd(1e-4), params, digits.train, key=jax.random.key(1), batch_size=64,
      ...                 num_steps=200, probe_every=50)
      >>> found = diagnose(slow).findings[0]
      >>> found.cause.name, found.certain, found.factor > 20
      ('RATE_TOO_LOW', True, True)
      >>> bowl = jc.surfaces.bowl(25.0)
      >>> print(diagnose(jc.landscape.Settings(0.136), bowl.fn, bowl.start))
      RATE_TOO_HIGH: the learning rate is 1.7 times the stability limit (curvature 25, limit 0.08; 2.4x a step)

    Source: Cohen et al. (2021), "Gradient descent on neural networks typically occurs at the edge of stability", ICLR;
    Cohen et al. (2022), arXiv:2207.14484, eq. 2; McCandlish et al. (2018), arXiv:1812.06162; Mandt, Hoffman, Blei
    (2017), JMLR 18(134), eq. 13.
    """
    if isinstance(result, Settings):
        if fn is None or x is None:
            raise TypeError(
                "diagnose: with the Settings of a rule, give a function and a point: diagnose(settings, fn, x)"
            )
        return diagnose_point(result, fn, x)
    return Diagnosis(findings(Evidence.of(result)))
