"""L-BFGS as the textbook has it, in NumPy: the two-loop recursion on lists, and BFGS updates of a dense matrix."""

import numpy as np

Pairs = list[tuple[np.ndarray, np.ndarray]]  # (s, y), the oldest first


def newest_gamma(pairs: Pairs) -> float:
    """Nocedal and Wright (2006), eq. 7.20; 1 where there are no pairs."""
    if not pairs:
        return 1.0
    s, y = pairs[-1]
    return float(s @ y / (y @ y))


def two_loop_product(g: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Nocedal and Wright (2006), algorithm 7.4."""
    q, alphas = g, []
    for s, y in reversed(pairs):
        alpha = s @ q / (y @ s)
        q = q - alpha * y
        alphas.append(alpha)
    r = newest_gamma(pairs) * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = y @ r / (y @ s)
        r = r + s * (alpha - beta)
    return r


def dense_inverse_hessian(pairs: Pairs, size: int) -> np.ndarray:
    """Nocedal and Wright (2006), eq. 7.16, from gamma times the identity."""
    h, identity = newest_gamma(pairs) * np.eye(size), np.eye(size)
    for s, y in pairs:
        v = identity - np.outer(y, s) / (y @ s)
        h = v.T @ h @ v + np.outer(s, s) / (y @ s)
    return h
