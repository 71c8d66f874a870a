"""Shapes in signatures: jaxtyping's where it is already loaded, inert names elsewhere.

The tests load jaxtyping first and have beartype check every annotated call. A user's import pays nothing.
"""

import sys
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

Array = jax.Array
ArrayLike = jax.Array | np.ndarray

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Int, Shaped
else:

    class _Inert:
        def __class_getitem__(cls, _: object) -> Any:
            return Any

    Bool = Float = Int = Shaped = _Inert

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "Shaped"]
