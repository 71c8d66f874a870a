"""The lecture's formulas in plain NumPy, as a student would type them: the references that every rule must equal."""

from collections.abc import Generator
from typing import Any

import numpy as np

Steps = Generator[np.ndarray, Any, None]

# Each takes w and yields, for every gradient sent in, the next w:  step = sgd(w, ...); next(step); w = step.send(g)


def sgd(w: np.ndarray, learning_rate: float) -> Steps:
    while True:
        g = yield w
        w = w - learning_rate * g


def momentum(w: np.ndarray, learning_rate: float, rho: float) -> Steps:
    v = np.zeros_like(w)
    while True:
        g = yield w
        v = rho * v + g
        w = w - learning_rate * v


def nesterov(w: np.ndarray, learning_rate: float, rho: float) -> Steps:
    """The lecture's rearranged form, with the learning rate inside the velocity."""
    v = np.zeros_like(w)
    while True:
        g = yield w
        old_v = v
        v = rho * v - learning_rate * g
        w = w + (-rho * old_v + (1 + rho) * v)


def adagrad(w: np.ndarray, learning_rate: float, eps: float) -> Steps:
    s = np.zeros_like(w)
    while True:
        g = yield w
        s = s + g * g
        w = w - learning_rate * g / (np.sqrt(s) + eps)


def rmsprop(w: np.ndarray, learning_rate: float, decay: float, eps: float) -> Steps:
    s = np.zeros_like(w)
    while True:
        g = yield w
        s = decay * s + (1 - decay) * g * g
        w = w - learning_rate * g / (np.sqrt(s) + eps)


def adam(w: np.ndarray, learning_rate: float, b1: float, b2: float, eps: float) -> Steps:
    m, v, t = np.zeros_like(w), np.zeros_like(w), 0
    while True:
        g = yield w
        t = t + 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        w = w - learning_rate * m_hat / (np.sqrt(v_hat) + eps)


def adam_uncorrected(w: np.ndarray, learning_rate: float, b1: float, b2: float, eps: float) -> Steps:
    m, v = np.zeros_like(w), np.zeros_like(w)
    while True:
        g = yield w
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        w = w - learning_rate * m / (np.sqrt(v) + eps)
