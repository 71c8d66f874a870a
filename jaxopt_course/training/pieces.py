"""A solve in compiled pieces, with a progress bar and a callback between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_course.annotations import AnyOptimizer, Array, Objective, Params, PyTree
from jaxopt_course.status import Status
from jaxopt_course.training.meshes import explicit_mesh
from jaxopt_course.training.progress import is_bar_wanted, progress_bar
from jaxopt_course.training.real_parameters import joined
from jaxopt_course.training.solve import Given, Options, Piece, Result, solve

STEPS_UNTIL_CALLBACK = 10
STEPS_UNTIL_SHOWN = 100


class SolveSnapshot(NamedTuple):
    """The argument of a callback of `minimize`: the number of steps taken, the point that the solve would return now,
    and the value and gradient norm there.
    """

    step: int
    value: float
    grad_norm: float
    params: Params


class Watch(NamedTuple):
    """The observers of a solve: a progress bar, a callback, or none."""

    progress: bool | None
    callback: Callable[[SolveSnapshot], Any] | None
    max_steps: Array | int

    def is_wanted(self, given: Given) -> bool:
        """Whether to solve in pieces. Raise TypeError for a callback if this is not possible."""
        traced = _is_traced((given, self.max_steps))
        possible = not traced and explicit_mesh((given.params, given.data)) is None
        if self.callback is not None and not possible:
            where = "under jit, vmap and grad" if traced else "on a mesh with explicit axes"
            raise TypeError(f"minimize: callback is a Python function, which cannot be called {where}; use trace=True")
        return possible and (self.callback is not None or is_bar_wanted("minimize", self.progress))


def solve_in_pieces(
    callables: tuple[Objective, AnyOptimizer, PyTree], given: Given, options: Options, watch: Watch
) -> Result:
    """Return the same result as `solve`, computed in pieces with the same steps."""
    run = solve.bound(callables)
    stride = STEPS_UNTIL_SHOWN if watch.callback is None else STEPS_UNTIL_CALLBACK
    piece = Piece(None, jnp.int32(stride))
    with progress_bar("minimize", watch.progress, int(watch.max_steps), name="value") as show:
        while True:
            result, carry = run(given, piece, options=options)
            if _is_traced(result):  # the objective closes over a tracer
                if watch.callback is not None:
                    raise TypeError("minimize: callback is a Python function, which cannot be called under jit")
                return run(given, options=options)[0]
            step = int(result.num_steps)
            show(step, float(result.value))
            stopped = watch.callback is not None and _call(watch.callback, step, result, callables[2])
            if int(result.status) != Status.RUNNING:
                return result
            if stopped:
                return result._replace(status=jnp.int32(Status.INTERRUPTED))
            piece = Piece(carry, jnp.int32(step + stride))


def _call(callback: Callable[[SolveSnapshot], Any], step: int, result: Result, functions: PyTree) -> bool:
    """Call the callback, and return whether it asks to stop."""
    params = joined(result.params, functions)
    return callback(SolveSnapshot(step, float(result.value), float(result.grad_norm), params)) is True


def _is_traced(tree: PyTree) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
