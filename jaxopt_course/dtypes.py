"""Which dtype to compute in. Asked for by name and cast to, so that JAX's strict promotion has nothing to object to."""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_32_bits(dtype: Any) -> Any:
    """The dtype itself, or float32 for those of 16 bits and less."""
    return jnp.dtype(dtype) if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def widest(*dtypes: Any) -> Any:
    """What JAX's standard promotion makes of several dtypes, also where the user forbids it to act in silence."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)
