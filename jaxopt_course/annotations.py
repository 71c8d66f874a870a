"""Type aliases for the values that functions exchange, and array shapes in signatures.

`PyTree` and its special cases name a tree of arrays by its role. For a type checker they are all `Any`.
Shapes are those of jaxtyping if jaxtyping is already imported, and names without effect otherwise. The tests import
jaxtyping first, and beartype then checks every annotated call; users do not pay for an import of jaxtyping.
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
Updates: TypeAlias = PyTree  # structure and shapes of the parameters: gradients, and what is added to the parameters
OptState: TypeAlias = PyTree  # state of an optimizer
Batch: TypeAlias = PyTree  # arrays with the examples along the first axis
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs
AnyOptimizer: TypeAlias = Any  # any object with `init` and `update`: ours, optax's, `optax.MultiSteps`
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
