"""Mean and standard deviation of features, computed without a floating-point copy of the data."""

import numpy as np

from jaxopt_course.arrays import check_arrays

BLOCK = 256  # examples converted to floating point at a time


def feature_statistics(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every feature, for `scores.standardized`; no floating-point copy is made.

    Args:
      inputs: `[N, D]`, of any real dtype, such as uint8 pixels of the training part; a `numpy.memmap` is read once.

    Returns:
      `(mean[D], scale[D])`, float32 (float64 for float64 inputs); the scale of a constant feature is 1.

    Raises:
      ValueError: inputs that are not `[N, D]`, have no examples, or are masked.

    Example:
      >>> mean, scale = feature_statistics(np.array([[0, 7], [4, 7]], np.uint8))
      >>> mean.tolist(), scale.tolist()
      ([2.0, 7.0], [2.0, 1.0])

    Source: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1, block by block.
    """
    check_arrays("feature_statistics: inputs", inputs)
    if inputs.ndim != 2 or not len(inputs):
        raise ValueError(f"feature_statistics: inputs must be [N, D] with N >= 1, got shape {inputs.shape}")
    mean, deviation = moments(inputs)
    dtype = np.float64 if inputs.dtype == np.float64 else np.float32
    return mean.astype(dtype), np.where(deviation > 0, deviation, 1).astype(dtype)


def moments(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of every feature in float64; a constant feature has deviation exactly 0."""
    count, mean, squares = 0, np.zeros(inputs.shape[1]), np.zeros(inputs.shape[1])
    varies = np.zeros(inputs.shape[1], bool)
    for first in range(0, len(inputs), BLOCK):
        block = inputs[first : first + BLOCK].astype(float)
        varies |= (block != inputs[0]).any(0)
        shift = block.mean(0) - mean
        share = len(block) / (count + len(block))
        squares += block.var(0) * len(block) + shift**2 * count * share
        mean += shift * share
        count += len(block)
    return np.where(varies, mean, inputs[0]), np.where(varies, np.sqrt(squares / count), 0)
