"""The compiled updates: one kernel for each leaf on a GPU, one pass for each array that is written on a CPU."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.contestants import CONTESTANTS

LAUNCHES = ("fusion", "copy", "custom-call", "reduce", "transpose", "broadcast", "concatenate", "while", "conditional")
SHAPES = {"kernel": (3, 3, 64, 128), "weights": (1000, 512), "bias": (1000,)}


def launches(text: str) -> list[str]:
    """The instructions of a compiled program's entry that launch a kernel for more than a scalar."""
    entry = text[text.index("\nENTRY ") :].split("\n}")[0]
    found = re.findall(r"= (.*?) ([a-z-]+)\(", entry)
    return [name for shape, name in found if name in LAUNCHES and re.search(r"\[\d", shape)]


def test_the_count_is_of_what_is_in_the_program() -> None:
    text = (
        "HloModule a\n\n%fused (p: f32[8]) -> f32[8] {\n  %x = f32[8]{0} fusion(%p), kind=kLoop\n}\n\n"
        "ENTRY %main (a: f32[8]) -> (f32[8], f32[]) {\n  %a = f32[8]{0} parameter(0)\n"
        "  %c = f32[] fusion(%a), kind=kLoop, calls=%scalar\n  %y = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused\n"
        "  %z = (f32[8]{0}, f32[8]{0}) fusion(%y), kind=kLoop, calls=%two\n  ROOT %t = tuple(%y, %c)\n}\n"
    )
    assert launches(text) == ["fusion", "fusion"]


def compiled_launches(rule: str) -> list[str]:
    """What the compiled update of a rule launches, parameters and state donated."""
    optimizer = CONTESTANTS[rule].make(1e-3)
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    text = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, params).compile().as_text()
    assert text is not None
    return launches(text)


@pytest.mark.parametrize("rule", CONTESTANTS)
def test_one_kernel_a_leaf(rule: str) -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("kernels are counted where there is a GPU")
    found = compiled_launches(rule)
    assert len(found) <= len(SHAPES), found


@pytest.mark.parametrize("rule", CONTESTANTS)
def test_on_a_cpu_one_pass_for_each_array_that_is_written(rule: str) -> None:
    """XLA writes one array in a pass there: the parameters and each moment. Nothing between them goes to memory."""
    if jax.default_backend() != "cpu":
        pytest.skip("passes are counted on a CPU")
    state = jax.eval_shape(CONTESTANTS[rule].make(1e-3).init, {"w": jax.ShapeDtypeStruct((2,), jnp.float32)})
    written = 1 + sum(leaf.ndim for leaf in jax.tree.leaves(state))
    found = compiled_launches(rule)
    assert len(found) <= written * len(SHAPES), found
