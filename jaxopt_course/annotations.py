"""Names for what flows through the library, and shapes in signatures.

`PyTree` and its special cases name a tree of arrays by its role; a type checker sees `Any`, a reader sees what flows.
Shapes are jaxtyping's where it is already loaded and inert names elsewhere: the tests load jaxtyping first and have
beartype check every annotated call, a user's import pays nothing.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
import optax

Array = jax.Array
ArrayLike = jax.Array | np.ndarray

PyTree: TypeAlias = Any  # a tree whose leaves are arrays
Params: TypeAlias = PyTree
Updates: TypeAlias = PyTree  # like the parameters: gradients, and what is added to the parameters
OptState: TypeAlias = PyTree  # of an optimizer
Batch: TypeAlias = PyTree  # examples along the first axis
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs
AnyOptimizer: TypeAlias = Any  # with `init` and `update`: ours, optax's, `optax.MultiSteps`
Number: TypeAlias = int | float | np.number
Objective: TypeAlias = Callable[..., Any]  # (params, batch) -> scalar, or (scalar, aux)

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Int, Shaped
else:

    class _Inert:
        def __class_getitem__(cls, _: object) -> Any:
            return Any

    Bool = Float = Int = Shaped = _Inert

__all__ = [
    "AnyOptimizer",
    "Array",
    "ArrayLike",
    "Batch",
    "Bool",
    "Float",
    "Int",
    "Number",
    "Objective",
    "OptState",
    "Optimizer",
    "Params",
    "PyTree",
    "Shaped",
    "Updates",
]
