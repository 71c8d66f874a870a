r"""The exact theory of gradient descent, momentum and Nesterov's method on a quadratic with noisy gradients.

$$f(w) = \tfrac12 w' H w, \qquad g_t = H w_t + \xi_t, \qquad \xi_t \sim N(0, C) \text{ independently}$$

Along an eigenvector of H with curvature lambda, each rule is a linear map of position and velocity z = (w, v),

$$z_{t+1} = A z_t + b \xi_t, \qquad A = \begin{pmatrix} 1 - \eta c \lambda & -\eta \rho d \\ \lambda & \rho
  \end{pmatrix}, \quad b = \begin{pmatrix} -\eta c \\ 1 \end{pmatrix}$$

with c = d = 1 for momentum (and rho = 0 for gradient descent), and c = 1 + rho and d = rho for Nesterov's form. From
this follow the mean A^t z_0, the covariance as a sum of powers, and the stability limit, at which an eigenvalue of A
reaches the unit circle.

All results are computed in float64 on the host, whatever the precision of JAX.
"""

import math
from typing import Any, NamedTuple

import numpy as np

EULER_GAMMA = 0.5772156649015329


class Settings(NamedTuple):
    """Settings of the rule `momentum(learning_rate, rho, nesterov)`; with rho = 0 it is `sgd(learning_rate)`."""

    learning_rate: float
    rho: float = 0.0
    nesterov: bool = False


class Prediction(NamedTuple):
    """Statistics of an ensemble of runs at T steps.

    `mean[T, n]`, `covariance[T, n, n]`: of w; `value[T]`: the mean of f.
    """

    mean: np.ndarray
    covariance: np.ndarray
    value: np.ndarray


def predict(settings: Settings, hessian: Any, start: Any, steps: Any, noise_covariance: Any = None) -> Prediction:
    r"""Compute the mean and covariance of the parameters after given numbers of steps, in closed form.

    $$E z_t = A^t z_0, \qquad \mathrm{Cov}_{ij} = C_{ij} \sum_{s < t} A_i^s b_i b_j' (A_j')^s$$

    Args:
      settings: settings of the rule.
      hessian: H `[n, n]`, symmetric; it may be indefinite.
      start: w_0 `[n]`, relative to the minimum at 0; the velocity starts at 0.
      steps: t, `[T]`, integers >= 0 in any order. The computing time grows with the logarithm of the largest.
      noise_covariance: C `[n, n]` of the gradient noise; no noise by default.

    Returns:
      `Prediction(mean, covariance, value)`; without noise all runs are equal, and the mean is their path.

    Raises:
      ValueError: the shapes do not fit, or the Hessian is not symmetric.

    Example:
      >>> H, start = np.diag([1.0, 25.0]), np.array([4.0, 1.0])
      >>> for rule in (Settings(0.05), Settings(0.05, rho=0.6), Settings(0.05, rho=0.6, nesterov=True)):
      ...     print(predict(rule, H, start, [0, 20, 40], 0.01 * np.eye(2)).value.round(4))
      [20.5     1.0285  0.1326]
      [2.05e+01 1.18e-02 8.00e-04]
      [2.05e+01 2.29e-02 1.90e-03]

    Source: Goh (2017), "Why momentum really works", Distill; Mandt, Hoffman, Blei (2017), JMLR 18(134), section 4.
    """
    H, C = _symmetric("hessian", hessian), None
    w0, t = np.asarray(start, float), np.asarray(steps)
    if w0.shape != H.shape[:1] or t.ndim != 1 or t.dtype.kind not in "iu" or (t < 0).any():
        raise ValueError(f"predict: expected start [{len(H)}] and steps [T] >= 0, got {w0.shape} and {steps!r}")
    curvatures, U = np.linalg.eigh(H)
    A, b = _transitions(settings, curvatures)
    mean = _powers(A, t)[:, :, 0, 0] * (U.T @ w0) @ U.T  # the velocity starts at 0
    covariance = np.zeros((len(t), *H.shape))
    if noise_covariance is not None:
        C = U.T @ _symmetric("noise_covariance", noise_covariance, len(H)) @ U
        covariance = U @ (C * _sums_of_powers(A, b, t)) @ U.T
    value = (np.einsum("ti,ij,tj->t", mean, H, mean) + np.einsum("ij,tij->t", H, covariance)) / 2
    return Prediction(mean, covariance, value)


def stability_limit(curvature: float, rho: float = 0.0, nesterov: bool = False) -> float:
    r"""Compute the learning rate at and above which the steps along a direction of this curvature do not shrink.

    $$\eta < \frac{2}{\lambda}, \qquad \eta < \frac{2 (1 + \rho)}{\lambda} \text{ (momentum)}, \qquad
      \eta < \frac{2 (1 + \rho)}{(1 + 2 \rho) \lambda} \text{ (Nesterov)}$$

    Args:
      curvature: lambda, the largest curvature.
      rho: momentum coefficient.
      nesterov: whether the rule has Nesterov's form.

    Returns:
      The limit; infinity if the curvature is not positive, because no step then overshoots.

    Example:
      >>> [round(stability_limit(25.0, *rule), 3) for rule in ((), (0.9,), (0.9, True))]
      [0.08, 0.152, 0.054]

    Source: Polyak (1964), theorem 9; for Nesterov, Jury's test of z^2 - (1 + rho) q z + rho q with q = 1 - eta lambda.
    """
    if curvature <= 0:
        return math.inf
    return 2 * (1 + rho) / ((1 + 2 * rho if nesterov else 1) * curvature)


def growth(settings: Settings, curvatures: Any) -> np.ndarray:
    """Compute the asymptotic factor per step for each curvature, the spectral radius of A; below 1 the rule converges.

    Example:
      >>> growth(Settings(0.03), [1.0, 25.0, 100.0, -1.0]).round(2)
      array([0.97, 0.25, 2.  , 1.03])
    """
    A, _ = _transitions(settings, np.asarray(curvatures, float))
    if not settings.rho:
        return np.asarray(np.abs(A[..., 0, 0]))
    half_trace, det = (A[..., 0, 0] + A[..., 1, 1]) / 2, A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]
    root = np.sqrt((half_trace**2 - det).astype(complex))
    return np.asarray(np.maximum(np.abs(half_trace + root), np.abs(half_trace - root)))


def optimal(least: float, largest: float, method: str = "momentum") -> tuple[Settings, float]:
    r"""Compute the settings with the best worst case over curvatures from `least` to `largest`.

    With $\kappa = L / \mu$, the settings and the factor per step are, for gradient descent, momentum and Nesterov's
    method in turn:

    $$\eta = \frac{2}{L + \mu}, \quad \frac{\kappa - 1}{\kappa + 1}; \qquad
      \eta = \Bigl(\frac{2}{\sqrt L + \sqrt\mu}\Bigr)^2, \;
      \rho = \Bigl(\frac{\sqrt\kappa - 1}{\sqrt\kappa + 1}\Bigr)^2, \quad \sqrt\rho; \qquad
      \eta = \frac{4}{3 L + \mu}, \; \rho = \frac{\sqrt{3 \kappa + 1} - 2}{\sqrt{3 \kappa + 1} + 2},
      \quad 1 - \frac{2}{\sqrt{3 \kappa + 1}}$$

    Args:
      least: mu > 0.
      largest: L >= mu.
      method: "sgd", "momentum" or "nesterov".

    Returns:
      `(settings, factor)`, where `factor` is the factor per step in the worst case.

    Raises:
      ValueError: the curvatures are not 0 < least <= largest, or the method is unknown.

    Example:
      >>> for method in ("sgd", "momentum", "nesterov"):
      ...     settings, factor = optimal(1.0, 100.0, method)
      ...     print(f"{method}: {math.log(1e-6) / math.log(factor):.0f} steps a millionfold")
      sgd: 691 steps a millionfold
      momentum: 69 steps a millionfold
      nesterov: 113 steps a millionfold

    Source: Lessard, Recht, Packard (2016), "Analysis and design of optimization algorithms via integral quadratic
    constraints", SIAM J. Optim. 26(1), proposition 1.
    """
    if not 0 < least <= largest < math.inf:
        raise ValueError(f"optimal: expected 0 < least <= largest, got {least} and {largest}")
    root = math.sqrt(largest / least)
    if method == "sgd":
        return Settings(2 / (largest + least)), (root**2 - 1) / (root**2 + 1)
    if method == "momentum":
        factor = (root - 1) / (root + 1)
        return Settings((2 / (math.sqrt(largest) + math.sqrt(least))) ** 2, factor**2), factor
    if method == "nesterov":
        three = math.sqrt(3 * root**2 + 1)
        return Settings(4 / (3 * largest + least), (three - 2) / (three + 2), True), 1 - 2 / three
    raise ValueError(f'optimal: expected "sgd", "momentum" or "nesterov", got {method!r}')


def noise_floor(settings: Settings, hessian: Any, noise_covariance: Any) -> float:
    r"""Compute the mean of f in the stationary state, in which noise and descent balance.

    $$E f = \tfrac12 \sum_i \lambda_i P_{ii}, \qquad P = A P A' + C_{ii} b b', \qquad
      \text{for sgd} \quad E f = \tfrac12 \sum_i \frac{\eta C_{ii}}{2 - \eta \lambda_i}$$

    Args:
      settings: settings of the rule.
      hessian: H `[n, n]`, symmetric, positive semidefinite; flat directions do not contribute to f. Or its eigenvalues
        `[n]`, which need to be computed only once for many settings.
      noise_covariance: C `[n, n]`; or, if `hessian` is given by its eigenvalues, the diagonal `[n]` of C along the
        eigenvectors. For a minibatch of B examples, C is 1 / B of that for a single example.

    Returns:
      The floor; infinity at and beyond the stability limit.

    Example:
      >>> H, C = np.diag([1.0, 25.0]), np.eye(2)
      >>> [round(noise_floor(Settings(rate), H, C), 4) for rate in (0.001, 0.01, 0.07, 0.08)]
      [0.0005, 0.0054, 0.1581, inf]

    Source: Mandt, Hoffman, Blei (2017), JMLR 18(134), eq. 13 in the limit of small rates.
    """
    if np.ndim(hessian) == np.ndim(noise_covariance) == 1:
        curvatures, C = np.asarray(hessian, float), np.asarray(noise_covariance, float)
    else:
        curvatures, U = np.linalg.eigh(_symmetric("hessian", hessian))
        C = np.sum(U * (_symmetric("noise_covariance", noise_covariance, len(U)) @ U), axis=0)
    flat = np.abs(curvatures) <= 1e-12 * np.abs(curvatures).max(initial=0)
    if growth(settings, curvatures[~flat]).max(initial=0) >= 1:
        return math.inf
    A, b = _transitions(settings, curvatures[~flat])
    pairs = np.einsum("nij,nkl->nikjl", A, A).reshape(-1, 4, 4)  # A P A' as a matrix on P
    sources = np.einsum("ni,nj->nij", b, b).reshape(-1, 4, 1)
    P = np.linalg.solve(np.eye(4) - pairs, sources)[:, 0, 0]
    return float(np.sum(curvatures[~flat] * P * C[~flat]) / 2)


def escape_steps(
    curvature: float, noise: float, radius: float, learning_rate: float, rho: float = 0.0, nesterov: bool = False
) -> float:
    r"""Compute the mean number of steps in which gradient noise alone drives a run from a saddle to a distance.

    $$T = \frac{\log(1 / \epsilon) + (\gamma + \log 2) / 2}{\log a} + \frac12, \qquad
      \text{for sgd} \quad a = 1 + \eta |\lambda|, \quad \epsilon = \frac{\eta \sigma}{r \sqrt{a^2 - 1}}$$

    For small rates T is $\log(1 / \epsilon) / (\eta |\lambda|)$. The constant $(\gamma + \log 2) / 2$ is the mean of
    -log|Z| for a standard normal Z; the summand 1/2 accounts for rounding up to whole steps. For other rules, a is the
    growth factor, and epsilon is the component of the noise along its eigenvector.

    Args:
      curvature: lambda < 0, the least curvature.
      noise: sigma, standard deviation of the gradient noise along that direction.
      radius: r, the distance from the saddle.
      learning_rate, rho, nesterov: settings of the rule.

    Returns:
      T, in steps; valid for noise that is small compared with `radius * |curvature|`.

    Raises:
      ValueError: the curvature is not negative.

    Example:
      >>> [round(escape_steps(-1.0, 1e-3, 1.0, 0.1, rho)) for rho in (0.0, 0.5, 0.9)]
      [96, 56, 33]

    Source: the first passage of an unstable linear process: Suzuki (1977), J. Stat. Phys. 16, 11-32.
    """
    if not curvature < 0:
        raise ValueError(f"escape_steps: a run escapes only along a negative curvature, got {curvature}")
    A, b = (part[0] for part in _transitions(Settings(learning_rate, rho, nesterov), np.array([curvature])))
    values, right = np.linalg.eig(A)
    top = int(np.argmax(values.real))
    a, amplitude = values[top].real, abs(right[0, top] * np.linalg.solve(right, b)[top])
    epsilon = amplitude * noise / (radius * math.sqrt(a**2 - 1))
    return float((math.log(1 / epsilon) + (EULER_GAMMA + math.log(2)) / 2) / math.log(a) + 0.5)


def _transitions(settings: Settings, curvatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A `[..., 2, 2]` and b `[..., 2]` for each curvature."""
    rate, rho, nesterov = settings
    ahead, kept = (1 + rho, rho**2) if nesterov else (1.0, rho)
    A = np.empty((*curvatures.shape, 2, 2))
    A[..., 0, 0], A[..., 0, 1] = 1 - rate * ahead * curvatures, -rate * kept
    A[..., 1, 0], A[..., 1, 1] = curvatures, rho
    return A, np.broadcast_to(np.array([-rate * ahead, 1.0]), (*curvatures.shape, 2))


def _powers(A: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """A^t `[T, ..., k, k]` for every t in steps, by squaring."""
    power = np.broadcast_to(np.eye(A.shape[-1]), (len(steps), *A.shape)).copy()
    for bit in range(int(steps.max(initial=0)).bit_length()):
        power = np.where(((steps >> bit) & 1).reshape(-1, *[1] * A.ndim) == 1, power @ A, power)
        A = A @ A
    return power


def _sums_of_powers(A: np.ndarray, b: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The position's part of the sum of A_i^s b_i b_j' A_j'^s, `[T, n, n]`, from powers of one augmented matrix."""
    n = len(A)
    step = np.zeros((n, n, 5, 5))
    step[..., :4, :4] = np.einsum("iab,jcd->ijacbd", A, A).reshape(n, n, 4, 4)
    step[..., :4, 4] = np.einsum("ia,jc->ijac", b, b).reshape(n, n, 4)
    step[..., 4, 4] = 1
    return _powers(step, steps)[..., 0, 4]


def _symmetric(name: str, matrix: Any, size: int | None = None) -> np.ndarray:
    M = np.asarray(matrix, float)
    if M.ndim != 2 or M.shape[0] != M.shape[1] or size not in (None, len(M)):
        raise ValueError(f"{name}: expected [{size or 'n'}, {size or 'n'}], got {M.shape}")
    if not np.allclose(M, M.T, rtol=1e-6, atol=1e-12 * np.abs(M).max(initial=0)):
        raise ValueError(f"{name} is not symmetric")
    return (M + M.T) / 2
