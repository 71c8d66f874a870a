"""A training run that saves all the time, for processes that are killed in the middle of it."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_course as jc

jax.config.update("jax_enable_x64", True)  # like the tests
STEPS = 300


def run(folder: str, out: str, cache: str) -> None:
    """Train to the end, going on from what is in the folder; write the outcome, every bit of it, to a file."""
    jax.config.update("jax_compilation_cache_dir", cache)  # the compiler is not what is killed here
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    result = trained(checkpoint_dir=folder, checkpoint_every=3)
    aside = Path(f"{out}.part{os.getpid()}")
    with aside.open("wb") as file:
        np.savez(file, *[np.asarray(leaf) for leaf in jax.tree.leaves(tuple(result))])
    aside.replace(out)


def trained(**options: Any) -> Any:
    defaults = {"num_steps": STEPS, "chunk_size": 3, "eval_fn": lambda p: p["b"], "eval_every": 50}
    return jc.train(OBJECTIVE, OPTIMIZER, *problem(), key=jax.random.key(5), batch_size=8, **{**defaults, **options})


def problem() -> tuple[Any, Any]:
    """Parameters and data."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((60, 5)), rng.integers(0, 3, 60).astype(np.int32)
    return {"W": jnp.zeros((3, 5)), "b": jnp.zeros(3)}, data


OBJECTIVE = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
OPTIMIZER = jc.adam(0.05)
