"""Scalar fields on a grid: values, gradients by autodiff and by differences, and the ends of runs from many starts."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxopt_course.annotations import Array, ArrayLike, Float, Int
from jaxopt_course.arrays import check_arrays
from jaxopt_course.problems.surfaces import Surface

LANES = 8192  # starts that are optimized together, so that their optimizer states fit into a core's cache


class GradientField(NamedTuple):
    """A surface on a grid, as float arrays; the last axis of a gradient is (d/dx, d/dy).

    `x[columns]`, `y[rows]`: the coordinates of the grid; `values[rows, columns]`: the surface;
    `gradient[rows, columns, 2]`: the gradient by autodiff; `differences[rows, columns, 2]`: the gradient by
    `np.gradient`, from the values on the grid alone.
    """

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    gradient: np.ndarray
    differences: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Differences minus gradient `[rows, columns, 2]`: h^2/6 f''' inside, h/2 f'' at the edges of the grid."""
        return self.differences - self.gradient


class OfCoordinates(NamedTuple):
    """A function of two numbers as a function of a vector; equal for equal functions, which avoids recompilation."""

    fn: Callable[[Array, Array], Array]

    def __call__(self, w: Array) -> Array:
        return self.fn(w[0], w[1])


def function_of_vector(fn: Surface | Callable[..., Array]) -> Callable[[Array], Array]:
    """Convert a `Surface`, a function of a vector or a function of two numbers (x, y) to `w[n] -> scalar`."""
    if isinstance(fn, Surface):
        return fn.fn
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return fn
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    of_vector: Any = OfCoordinates(fn) if len(needed) == 2 else fn
    return of_vector


Window = tuple[tuple[float, float], tuple[float, float]]


def gradient_field(
    surface: Surface | Callable[..., Array], shape: tuple[int, int] = (41, 41), *, window: Window | None = None
) -> GradientField:
    r"""Compute the gradient of a surface on a grid, exactly and by the central differences of `np.gradient`.

    $$\frac{\partial f}{\partial x}(x, y) \approx \frac{f(x + h, y) - f(x - h, y)}{2 h}, \qquad
      \text{one-sided at the edges}$$

    Args:
      surface: a `Surface`; or a function of a vector `[2]` or of two numbers `(x, y)`, which needs a window.
      shape: `(rows, columns)` of the grid, at least 2 each.
      window: `((x_low, x_high), (y_low, y_high))`; by default the window of the surface.

    Returns:
      `GradientField`; its `error` is the error of the differences.

    Raises:
      ValueError: the grid is too small for differences, or a function is given without a window.

    Example:
      >>> import jaxopt_course as jc
      >>> hill = jc.surfaces.SURFACES["hill"]
      >>> for n in (41, 81, 161):
      ...     print(f"{np.abs(gradient_field(hill, (n, n)).error[1:-1, 1:-1]).max():.2f}")
      6.70
      1.72
      0.43
      >>> gradient_field(lambda x, y: x**2 + 3 * y, (3, 2), window=((-1.0, 1.0), (0.0, 2.0))).gradient[0]
      array([[-2.,  3.],
             [ 2.,  3.]], dtype=float32)

    Source: the lecture's gradient field; Fornberg (1988), "Generation of finite difference formulas on arbitrarily
    spaced grids", Mathematics of Computation 51, table 1.
    """
    if min(shape) < 2:
        raise ValueError(f"gradient_field: differences take at least 2 rows and 2 columns, got {shape}")
    window = surface.window if window is None and isinstance(surface, Surface) else window
    if window is None:
        raise ValueError("gradient_field: a function needs its window: window=((x_low, x_high), (y_low, y_high))")
    (left, right), (low, high) = window
    y, x = np.linspace(low, high, shape[0]), np.linspace(left, right, shape[1])
    points = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1), float)
    values, gradient = map(np.asarray, _values_and_gradients(function_of_vector(surface), points))
    d_dy, d_dx = np.gradient(values, y, x)
    return GradientField(x, y, values, gradient, np.stack([d_dx, d_dy], axis=-1))


@partial(jax.jit, static_argnums=0)
def _values_and_gradients(fn: Callable[[Array], Array], points: Array) -> tuple[Array, Array]:
    return jax.vmap(jax.vmap(jax.value_and_grad(fn)))(points)


@partial(jax.jit, static_argnums=(0, 1, 3))
def descend(
    fn: Callable[[Array], Array], optimizer: optax.GradientTransformation, starts: Float[Array, "N n"], num_steps: int
) -> Float[Array, "N n"]:
    r"""Run an optimizer from each of many starts and return where it ends, such as for a map of basins.

    $$w_{t+1} = w_t + u(\nabla f(w_t)), \qquad \text{every start by itself}$$

    Args:
      fn: `fn(params[n]) -> scalar`.
      optimizer: any optax transformation that needs gradients only.
      starts: `[N, n]`, floating point. A million are possible, because they are processed in groups.
      num_steps: number of steps from each start.

    Returns:
      The ends `[N, n]`; the ends of diverged runs are not finite.

    Example:
      >>> import jaxopt_course as jc
      >>> himmelblau = jc.surfaces.SURFACES["himmelblau"]
      >>> starts = jax.random.uniform(jax.random.key(0), (10_000, 2), minval=-5.0, maxval=5.0)
      >>> ends = descend(himmelblau.fn, jc.adam(0.1), starts, 300)
      >>> print((np.bincount(basins(ends, himmelblau.minimizers)) / len(ends)).round(1))
      [0.3 0.3 0.2 0.2]

    Source: Strang (2019), "Linear algebra and learning from data", section VI.4, for the picture.
    """

    def one(start: Array) -> Array:
        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(fn)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (end, _), _ = lax.scan(step, (start, optimizer.init(start)), length=num_steps)
        return end

    return lax.map(one, starts, batch_size=min(LANES, max(1, len(starts))))


def basins(ends: ArrayLike, minimizers: ArrayLike, radius: float = 0.1) -> Int[np.ndarray, " N"]:
    """Assign each end to its nearest minimizer.

    Args:
      ends: `[N, n]`, such as from `descend`; ends that are not finite belong to no minimizer.
      minimizers: `[k, n]`.
      radius: the largest distance between an end and its minimizer; units of parameter.

    Returns:
      `[N]`, integers: the index of the nearest minimizer, or k if none of the k minimizers is within the radius.

    Example:
      >>> basins(np.array([[0.0, 0.99], [5.0, 5.0], [np.nan, 1.0]]), np.array([[0.0, -1.0], [0.0, 1.0]]))
      array([1, 2, 2])
    """
    check_arrays("basins: ends", ends)
    check_arrays("basins: minimizers", minimizers)
    minimizers = np.asarray(minimizers)
    nearest = np.full(len(ends), radius)
    found = np.full(len(ends), len(minimizers))
    for number, minimizer in enumerate(minimizers):
        away = np.linalg.norm(np.asarray(ends) - minimizer, axis=1)
        found, nearest = np.where(away < nearest, number, found), np.fmin(away, nearest)
    return found
