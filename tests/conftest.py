"""Every test runs in float64 and with nothing promoted in silence; shapes in signatures are checked at every call."""

from collections.abc import Iterator

import jax
import jaxtyping
import pytest
from hypothesis import settings

jaxtyping.install_import_hook("jaxopt_course", "beartype.beartype")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture
def own_errors() -> Iterator[None]:
    """Let wrong arguments through to the library's own checks instead of the shape checker's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
