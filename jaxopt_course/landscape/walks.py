"""Record the path of an optimizer from one start or from many, for figures and measurements."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxopt_course.annotations import AnyOptimizer, Array, ArrayLike
from jaxopt_course.dtypes import check_floating
from jaxopt_course.landscape.fields import function_of_vector
from jaxopt_course.problems.surfaces import Surface


class Paths(NamedTuple):
    """The path of an optimizer from one start, or from several with a leading axis; NumPy arrays.

    `params[..., T + 1, n]`: the start and the point after each of T steps; `values[..., T + 1]`: the function at these
    points; `steps[...]`: the number of steps taken. It is less than T if the next point or its value was not finite;
    the last finite point is then repeated.
    """

    params: Any
    values: Any
    steps: Any


def settled(values: ArrayLike, bound: float) -> np.ndarray:
    """Find the index along the last axis from which on all values are at most the bound.

    The index is infinity if the last value is above the bound. For the values of a path, it is the number of steps
    after which the path stays at or below the bound. The first crossing would favour a path that rises again.

    Example:
      >>> settled(np.array([[5.0, 0.1, 3.0, 0.2], [5.0, 0.1, 0.1, 3.0]]), 1.0)
      array([ 3., inf])
    """
    above = ~(np.asarray(values) <= bound)  # NaN is above
    index = np.where(above, np.arange(1, above.shape[-1] + 1), 0).max(axis=-1)
    return np.where(index < above.shape[-1], index, np.inf)


def paths(
    fn: Surface | Callable[..., Array],
    optimizer: AnyOptimizer,
    start: ArrayLike,
    num_steps: int,
    *,
    noise: float = 0.0,
    key: Array | None = None,
) -> Paths:
    r"""Record the path of an optimizer from one start or from several, such as for figures of paths.

    $$w_{t+1} = w_t + u_t, \qquad u_t, \sigma_{t+1} = \mathrm{update}\bigl(\nabla f(w_t) + \epsilon_t, \sigma_t, w_t
      \bigr), \qquad \epsilon_t \sim N(0, s^2 I)$$

    All starts run in one compiled loop. Every rule gets `value`, `grad` and `value_fn`, so rules with a line search
    work too. With noise, the function at step t is f(w) + <epsilon_t, w>.

    Args:
      fn: a `Surface`, a function of a vector `[n]`, or a function of two numbers `(x, y)`.
      optimizer: any optax transformation, ours or not.
      start: `[n]`, or `[N, n]` for N paths.
      num_steps: T, the number of steps from each start.
      noise: s, standard deviation of the Gaussian noise in each coordinate of every gradient.
      key: random key for the noise, which differs between starts.

    Returns:
      `Paths(params, values, steps)`, which `plots.trajectories`, `plots.surface_3d`, `plots.write_descent` and
      `lab.write` accept.

    Raises:
      ValueError: `start` has another shape, or there is noise but no key.
      TypeError: `start` is not floating point.

    Example:
      >>> import jaxopt_course as jc
      >>> valley = jc.surfaces.SURFACES["rosenbrock"]
      >>> for optimizer in (jc.adam(0.05), jc.lbfgs()):
      ...     walked = paths(valley, optimizer, valley.start, 60)
      ...     print(walked.params.shape, f"{walked.values[0]:.1f} -> {walked.values[-1]:.1g}")
      (61, 2) 24.2 -> 4
      (61, 2) 24.2 -> 0
      >>> paths(lambda x, y: x**4 + y**2, jc.sgd(0.1), np.array([[1.0, 1.0], [9.0, 0.0]]), 100).steps
      array([100,   2], dtype=int32)

    Source: the lecture's pictures of descent.
    """
    starts = jnp.asarray(start)
    check_floating(starts)
    if starts.ndim not in (1, 2):
        raise ValueError(f"paths: start is one point [n] or several [N, n], got shape {starts.shape}")
    if noise and key is None:
        raise ValueError("paths: noise takes a key: key=jax.random.key(0)")
    many = jnp.atleast_2d(starts)
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(many))
    walked = _walk(
        function_of_vector(fn), optimizer, num_steps, bool(noise), many, jnp.asarray(noise, many.dtype), keys
    )
    walked = jax.tree.map(np.asarray, walked)
    return walked if starts.ndim == 2 else Paths(*(part[0] for part in walked))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _walk(
    fn: Callable[[Array], Array],
    optimizer: AnyOptimizer,
    num_steps: int,
    noisy: bool,
    starts: Array,
    noise: Array,
    keys: Array,
) -> Paths:
    update = optax.with_extra_args_support(optimizer).update

    def one(start: Array, key: Array) -> Paths:
        def step(carry: Any, t: Array) -> tuple[Any, Any]:
            w, value, state, moving, steps = carry
            draw = noise * jax.random.normal(jax.random.fold_in(key, t), w.shape, w.dtype) if noisy else None
            objective = fn if draw is None else lambda w: fn(w) + jnp.vdot(draw, w)
            here, grad = jax.value_and_grad(objective)(w)
            updates, changed = update(grad, state, w, value=here, grad=grad, value_fn=objective)
            moved = optax.apply_updates(w, updates)
            there = fn(moved)
            moving &= jnp.isfinite(moved).all() & jnp.isfinite(there)
            kept = jax.tree.map(partial(jnp.where, moving), (moved, there, changed), (w, value, state))
            return (*kept, moving, steps + moving.astype(jnp.int32)), kept[:2]

        first = fn(start)
        carry = (start, first, optimizer.init(start), jnp.isfinite(first), jnp.int32(0))
        (*_, steps), (params, values) = lax.scan(step, carry, jnp.arange(num_steps))
        return Paths(jnp.concatenate([start[None], params]), jnp.append(first, values), steps)

    return jax.vmap(one)(starts, keys)
