"""Points: the hyperparameter settings that a sweep tries, as arrays of equal length."""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxopt_course.annotations import Array, Number
from jaxopt_course.training.checks import check_key_argument, whole_number

Values: TypeAlias = Iterable[Number] | np.ndarray | Array
Grid: TypeAlias = Mapping[str, Values]
Distribution: TypeAlias = Callable[[Array, int], np.ndarray]  # (key, n) -> n values


class Points(dict[str, np.ndarray]):
    """P settings of hyperparameters: name -> `[P]`. Point i has the i-th value of every array.

    A plain dict of values stands for every combination of the values; `Points` are used without combining.

    Example:
      >>> from jaxopt_course.sweeps import Points
      >>> Points(learning_rate=[0.1, 0.01], b1=[0.0, 0.9]).at(1)
      {'learning_rate': 0.01, 'b1': 0.9}

    Raises:
      TypeError: a value is not a number.
      ValueError: there are no names or no values, the arrays have different lengths or rank 2, or a value is NaN.
    """

    def __init__(self, *args: Any, **values: Any):
        arrays = {name: check_values(name, given) for name, given in dict(*args, **values).items()}
        if not arrays:
            raise ValueError("points: there is no hyperparameter; name at least one")
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"points: every hyperparameter needs as many values as the others, got {lengths}")
        super().__init__(arrays)

    @property
    def count(self) -> int:
        """The number of points P."""
        return len(next(iter(self.values())))

    def at(self, index: int) -> dict[str, float | int]:
        """The settings of one point, as Python numbers."""
        return {name: values[index].item() for name, values in self.items()}

    def select(self, indices: Any) -> "Points":
        """The points at these indices."""
        return Points({name: values[indices] for name, values in self.items()})


def check_values(name: str, given: Any) -> np.ndarray:
    """Convert the values of one hyperparameter to an array `[P]` of float64 or int64."""
    if callable(given) or isinstance(given, Mapping | str | bytes):
        what = "a function; for random values use sweeps.random" if callable(given) else f"a {type(given).__name__}"
        raise TypeError(f"points: the values of {name} must be numbers, such as [0.01, 0.1]; got {what}")
    if not hasattr(given, "dtype"):
        given = [*given] if isinstance(given, Iterable) else given
    array = np.asarray(given)
    if array.dtype.kind not in "iuf" and not jax.dtypes.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"points: the values of {name} must be numbers, got {array.dtype}; other values cannot vary inside one "
            "compiled program: make a method for each, such as {'momentum': jc.momentum, "
            "'nesterov': functools.partial(jc.momentum, nesterov=True)}"
        )
    if array.ndim != 1:
        hint = f"; for one value write [{array.item():g}]" if array.ndim == 0 else ""
        raise ValueError(
            f"points: the values of {name} must be a list or an array of rank 1, got rank {array.ndim}{hint}"
        )
    if array.size == 0:
        raise ValueError(f"points: {name} has no values")
    array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)
    if np.isnan(array).any():
        raise ValueError(f"points: {name}[{int(np.isnan(array).argmax())}] is NaN")
    return array


def product(**values: Values) -> Points:
    """Make a point of every combination of the values; the values of the last name vary fastest.

    Args:
      **values: name -> numbers.

    Returns:
      `Points`; their number is the product of the numbers of values.

    Raises:
      TypeError, ValueError: as for `Points`.

    Example:
      >>> import jaxopt_course as jc
      >>> points = jc.sweeps.product(learning_rate=[0.1, 0.01], b1=[0.0, 0.9])
      >>> [points.at(i) for i in range(points.count)][1:3]
      [{'learning_rate': 0.1, 'b1': 0.9}, {'learning_rate': 0.01, 'b1': 0.0}]
    """
    arrays = [check_values(name, given) for name, given in values.items()]
    meshes = np.meshgrid(*arrays, indexing="ij")
    return Points({name: mesh.ravel() for name, mesh in zip(values, meshes, strict=True)})


def random(key: Array, num_points: Number, /, **distributions: Distribution) -> Points:
    """Draw independent random points, which cover each hyperparameter better than a grid with as many points.

    The values of a name depend only on the key and the name; adding another hyperparameter does not change them.

    Args:
      key: a `jax.random` key.
      num_points: P, the number of points, at least 1.
      **distributions: name -> `log_uniform(...)`, `uniform(...)`, `choice(...)`, or a function `(key, n) -> n numbers`.

    Returns:
      `Points`, P of them.

    Raises:
      TypeError: a value is not a distribution.
      ValueError: there is less than one point.

    Example:
      >>> import jax
      >>> import jaxopt_course as jc
      >>> points = jc.sweeps.random(jax.random.key(0), 20, learning_rate=jc.sweeps.log_uniform(1e-4, 1.0),
      ...                           b1=jc.sweeps.choice([0.0, 0.9]))
      >>> points.count, bool(points["learning_rate"].min() >= 1e-4), sorted({*points["b1"].tolist()})
      (20, True, [0.0, 0.9])

    Source: Bergstra and Bengio (2012), "Random search for hyper-parameter optimization", JMLR 13, section 1.
    """
    check_key_argument("random", key)
    count = whole_number("random", "num_points", num_points, 1)
    for name, distribution in distributions.items():
        if not callable(distribution):
            raise TypeError(
                f"random: {name} must be a distribution, such as sweeps.log_uniform(1e-4, 1.0); "
                f"for fixed values use sweeps.choice({distribution!r:.60})"
            )
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in distributions}
    return Points({name: distribution(keys[name], count) for name, distribution in distributions.items()})


def uniform(low: Number, high: Number) -> Distribution:
    """A uniform distribution between `low` and `high`.

    Example:
      >>> values = random(jax.random.key(0), 1000, rho=uniform(0.5, 1.0))["rho"]
      >>> f"{values.min():.2f} to {values.max():.2f}, mean {values.mean():.2f}"
      '0.50 to 1.00, mean 0.75'
    """
    _check_range("uniform", low, high)
    return lambda key, n: low + (high - low) * _unit(key, n)


def log_uniform(low: Number, high: Number) -> Distribution:
    """A distribution whose logarithm is uniform between `low` > 0 and `high`.

    For example, values between 0.001 and 0.01 are as likely as values between 0.01 and 0.1.

    Example:
      >>> rates = random(jax.random.key(0), 100_000, learning_rate=log_uniform(1e-3, 0.1))["learning_rate"]
      >>> f"{rates.min():.4f} to {rates.max():.3f}; {np.mean(rates < 0.01):.2f} of the values are below 0.01"
      '0.0010 to 0.100; 0.50 of the values are below 0.01'
    """
    _check_range("log_uniform", low, high)
    if low <= 0:
        raise ValueError(f"log_uniform: low must be above 0, got {low}; for values at and below 0 use uniform")
    return lambda key, n: np.clip(low * (high / low) ** _unit(key, n), low, high)


def choice(values: Values) -> Distribution:
    """A distribution in which each of the values is equally likely.

    Example:
      >>> sizes = random(jax.random.key(0), 1000, memory_size=choice([5, 10, 20]))["memory_size"]
      >>> [int(size) for size in np.unique(sizes)], bool(np.bincount(sizes).max() < 400)
      ([5, 10, 20], True)
    """
    array = check_values("choice", values)
    return lambda key, n: array[np.asarray(jax.random.randint(key, (n,), 0, len(array)))]


def _check_range(name: str, low: Number, high: Number) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name}: low must be below high, both finite; got {low} and {high}")


def _unit(key: Array, n: int) -> np.ndarray:
    """Uniform values in [0, 1), in float64 even if JAX has no float64."""
    return np.asarray(jax.random.bits(key, (n,), "uint32")).astype(np.float64) / 2**32
