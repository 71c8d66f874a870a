"""Textbook twins of scores, losses and their gradients: plain loops over examples, and mpmath at 50 digits."""

from typing import Any

import mpmath
import numpy as np

DIGITS = 50


def linear(W: np.ndarray, b: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """The lecture's f(x, W) = Wx + b, for one example."""
    scores = np.zeros(len(W))
    for c in range(len(W)):
        for d in range(len(x)):
            scores[c] += float(W[c, d]) * float(x[d])
        scores[c] += 0.0 if b is None else float(b[c])
    return scores


def multiclass_hinge(scores: np.ndarray, labels: np.ndarray, margin: float = 1.0) -> np.ndarray:
    """The lecture's L_i, with the right class left out of the sum by hand."""
    losses = []
    for row, label in zip(scores, labels, strict=True):
        margins = np.maximum(0, row - row[label] + margin)
        margins[label] = 0
        losses.append(margins.sum())
    return np.array(losses)


def crammer_singer_hinge(scores: np.ndarray, labels: np.ndarray, margin: float = 1.0) -> np.ndarray:
    losses = []
    for row, label in zip(scores, labels, strict=True):
        worst = 0.0
        for j in range(len(row)):
            if j != label:
                worst = max(worst, row[j] - row[label] + margin)
        losses.append(worst)
    return np.array(losses)


def softmax_cross_entropy(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The direct formula, for scores that do not overflow."""
    exponentials = np.exp(scores)
    return -np.log(exponentials[np.arange(len(labels)), labels] / exponentials.sum(1))


def softmax_cross_entropy_exact(scores: np.ndarray, label: int) -> tuple[Any, list[Any]]:
    """The loss of one example and its gradient softmax - onehot, as mpmath numbers."""
    with mpmath.workdps(DIGITS):
        ratios = [mpmath.exp(mpmath.mpf(float(s)) - mpmath.mpf(float(scores[label]))) for s in scores]
        wrong = mpmath.fsum(r for j, r in enumerate(ratios) if j != label)
        gradient = [r / (1 + wrong) for r in ratios]
        gradient[label] = -wrong / (1 + wrong)
        return mpmath.log1p(wrong), gradient


def relative_error(value: Any, truth: Any) -> float:
    with mpmath.workdps(DIGITS):
        return float(abs(mpmath.mpf(float(value)) - truth) / abs(truth))
