"""The contract: ours keep it, optax.adam breaks it where it is known to, each planted defect is found by its row."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.contract import ContractError, ContractReport, Outcome, Row
from jaxopt_course.contract.check_optimizer import CHECKS, _row
from jaxopt_course.contract.trial import Trial, cases_like

KIND, ONCE, PURE = "state and updates keep their kind", "one compile, equal to none", "purity"
END = "step count at int32's end"
FINITE, DECAY = "16 bits: finite, same dtype", "16 bits: moments decay"


def one_row(name: str, optimizer: Any, make: Any = None) -> Row:
    return _row(name, CHECKS[name], Trial(optimizer, make, cases_like(None)))


class Memory(NamedTuple):
    count: Any  # type: ignore[assignment]  # optax's name; tuple.count is not used
    mu: Any
    extra: Any = ()


def momentum_like(
    step: Callable[[Any, Any, Any], tuple[Any, Any]] = lambda g, m, w: (-0.1 * m, 0.9 * m + g),
    count: Callable[[Any], Any] = lambda c: jnp.minimum(c, 2**31 - 2) + 1,
    start: Callable[[Any], Any] = jnp.zeros_like,
    extra: Callable[[Any], Any] = lambda e: e,
    first: Any = (),
    zero: Any = None,
) -> optax.GradientTransformation:
    """A sound optimizer with places where something can be planted."""

    def init(params: Any) -> Memory:
        return Memory(jnp.zeros((), jnp.int32) if zero is None else zero, jax.tree.map(start, params), first)

    def update(grads: Any, state: Memory, params: Any) -> tuple[Any, Memory]:
        pairs = jax.tree.map(step, grads, state.mu, params)
        updates, mu = (jax.tree.map(lambda _, p, i=i: p[i], grads, pairs) for i in (0, 1))
        return updates, Memory(count(state.count), mu, extra(state.extra))

    return optax.GradientTransformation(init, update)


def stateless(update: Callable[[Any, Any], Any]) -> optax.GradientTransformation:
    return optax.GradientTransformation(lambda _: (), lambda g, state, params: (update(g, params), state))


def remembering() -> optax.GradientTransformation:
    calls: list[int] = []

    def update(g: Any, params: Any) -> Any:
        calls.append(1)
        return jax.tree.map(lambda x: -x / len(calls), g)

    return stateless(update)


def writing(g: Any, params: Any) -> Any:
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, np.ndarray):
            leaf *= 0.5
    return g


def noisy(g: Any, params: Any) -> Any:
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(0), jnp.shape(x), x.dtype), g)


CLOCK = itertools.count(1)


def counting(dtype: Any, hold: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Gradient descent with a counter that is held somewhere in the state, and wraps around."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rising = lambda x: x + jnp.ones((), x.dtype) if jnp.issubdtype(jnp.result_type(x), jnp.integer) else x  # noqa: E731
        return jax.tree.map(lambda g: -g, grads), jax.tree.map(rising, state)

    return optax.GradientTransformation(lambda _: hold(jnp.zeros((), dtype)), update)


def correcting() -> optax.GradientTransformation:
    """A correction by the step after this one, which is no more at the end of int32."""

    def update(grads: Any, count: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.sqrt((count + jnp.int32(2)).astype(jnp.float32))
        return jax.tree.map(lambda g: -g * factor.astype(g.dtype), grads), optax.safe_increment(count)

    return optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), update)


def writing_state() -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if isinstance(jax.tree.leaves(grads)[0], np.ndarray):
            state[0][...] += 1
        return jax.tree.map(lambda g: -g, grads), state

    return optax.GradientTransformation(lambda _: (np.zeros(2, np.float32),), update)


DEFECTS: dict[str, tuple[str, Any, str]] = {
    "dtype drift": (
        KIND,
        momentum_like(lambda g, m, w: (-g, (0.9 * m.astype(g.dtype) + g).astype(jnp.bfloat16))),
        "was float32[] and became bfloat16[]",
    ),
    "shape drift": (
        KIND,
        momentum_like(lambda g, m, w: (-g, jnp.stack([m + g, g]))),
        "was float32[] and became float32[2]",
    ),
    "state that grows": (KIND, momentum_like(extra=lambda e: (*e, jnp.zeros(()))), "was nothing and became"),
    "updates in another dtype": (
        KIND,
        stateless(lambda g, w: jax.tree.map(lambda x: x.astype(jnp.bfloat16), g)),
        "bfloat16",
    ),
    "ignored structure": (KIND, stateless(lambda g, w: list(jax.tree.leaves(g))), "the updates"),
    "a recompile": (ONCE, momentum_like(zero=0, count=lambda c: c + jnp.int32(1)), "traced 2 times in 3 steps"),
    "NaN at a zero gradient": ("zero gradient", stateless(lambda g, w: jax.tree.map(lambda x: -x / abs(x), g)), "nan"),
    "overflow": (
        "huge and tiny gradients",
        stateless(lambda g, w: jax.tree.map(lambda x: -x * jnp.exp(abs(x)), g)),
        "a huge gradient, 1e+15, gives an update of",
    ),
    "a NaN that is hidden": (
        "NaN gradient",
        stateless(lambda g, w: jax.tree.map(lambda x: jnp.nan_to_num(x) + 1, g)),
        "it is hidden",
    ),
    "hidden Python state": (PURE, remembering(), "it remembers"),
    "parameters written to": (PURE, stateless(writing), "it writes into the parameters"),
    "a key used twice": ("randomness", stateless(noisy), "a key is used twice"),
    "a moment in 16 bits": (DECAY, momentum_like(lambda g, m, w: (-g, m * 0.999 + g)), "bfloat16: a moment stays at 1"),
    "an epsilon lost in float16": (
        FINITE,
        stateless(lambda g, w: jax.tree.map(lambda x: -x / (abs(x) + 1e-8), g)),
        "float16: a gradient of 0 gives an update of nan",
    ),
    "a count that runs over": (
        END,
        momentum_like(count=lambda c: c + 1),
        "runs over to -21474836",
    ),
    "an infinite derivative": (
        "gradients through steps",
        stateless(lambda g, w: jax.tree.map(lambda x: -x / (jnp.sqrt(x * x) + 1e-8), g)),
        "the derivative by the start is nan",
    ),
    "only one leaf": (
        "odd trees",
        stateless(
            lambda g, w: (
                jax.tree.map(lambda x: x * jax.tree.leaves(g)[0].sum().astype(x.dtype), g)
                if jax.tree.leaves(g)[0].ndim
                else g
            )
        ),
        "an empty tree: IndexError",
    ),
    "a batch taken for a vector": (
        "vmap equals loop",
        stateless(
            lambda g, w: jax.tree.map(lambda x: jax.pure_callback(_normed, x, x, vmap_method="broadcast_all"), g)
        ),
        "differs from running alone",
    ),
    "what cannot be saved": ("serialisation", momentum_like(first=("fast",)), "str"),
    "a counter in a tuple": (END, counting(jnp.int32, lambda c: (0.5, c)), "state[1] runs over to -21474836"),
    "a counter that is the state": (END, counting(jnp.int32, lambda c: c), "the counter state runs over to -21474836"),
    "a counter named t": (END, counting(jnp.int32, lambda c: {"t": c}), "state['t'] runs over to -21474836"),
    "a counter of 16 bits": (END, counting(jnp.int16, lambda c: {"epoch": c}), "runs over to -3276"),
    "a counter of 8 bits": (END, counting(jnp.uint8, lambda c: [c]), "after 255"),
    "a counter for every entry": (END, counting(jnp.int32, lambda c: [jnp.stack([c, c])]), "runs over"),
    "a correction that is lost at the end": (END, correcting(), "at step 2147483647 an update is"),
    "a state written to": (PURE, writing_state(), "it writes into the state it is given"),
    "gradients written to": (PURE, stateless(lambda g, w: writing(w, g)), "it writes into the gradients"),
    "a clock": (PURE, stateless(lambda g, w: jax.tree.map(lambda x: x * next(CLOCK), g)), "it remembers"),
    "a step that Python decides": (
        KIND,
        stateless(lambda g, w: jax.tree.map(lambda x: -x if x.sum() > 0 else x, g)),
        "TracerBoolConversionError",
    ),
    "a state of float64 with x64 on": (
        "x64 on and off",
        momentum_like(lambda g, m, w: (-g, m + g), start=lambda w: jnp.zeros(jnp.shape(w), jnp.float32)),
        "with x64 on and float64 parameters",
    ),
    "float16 that overflows": (
        FINITE,
        stateless(lambda g, w: jax.tree.map(lambda x: -x * abs(x) / (abs(x) + 1), g)),
        "float16: a gradient of 60000",
    ),
    "one row for the whole batch": (
        "vmap equals loop",
        stateless(
            lambda g, w: jax.tree.map(
                lambda x: jax.pure_callback(lambda y: np.asarray(y * 0 + y.max()), x, x, vmap_method="broadcast_all"), g
            )
        ),
        "differs from running alone",
    ),
}


def _normed(x: Any) -> Any:
    return np.asarray(x / np.linalg.norm(x), np.asarray(x).dtype)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_by_its_row(name: str) -> None:
    row, optimizer, words = DEFECTS[name]
    found = one_row(row, optimizer)
    assert found.outcome is Outcome.FAILED, found
    assert words in found.detail
    assert found.case


def test_there_are_enough_of_them() -> None:
    assert len(DEFECTS) >= 30
    assert {row for row, _, _ in DEFECTS.values()} >= {KIND, ONCE, PURE, FINITE, DECAY, END}


def test_what_is_no_step_counter_is_left_alone() -> None:
    """The number of stored pairs ends at the memory size; a cycle ends at its length."""
    assert one_row(END, jc.sgd(0.1)).outcome is Outcome.NOT_APPLICABLE
    cyclic = optax.GradientTransformation(
        lambda _: jnp.zeros((), jnp.int32), lambda g, count, _: (g, (count + jnp.int32(1)) % jnp.int32(7))
    )
    assert one_row(END, cyclic).detail == "it counts no steps"


def test_a_branch_on_a_hyperparameter_is_found() -> None:
    def make(rate: Any) -> optax.GradientTransformation:
        return optax.sgd(rate if rate > 0 else 0.0)

    assert one_row("traced hyperparameters", make(0.1), make).outcome is Outcome.FAILED
    assert one_row("traced hyperparameters", jc.sgd(0.1), jc.sgd).outcome is Outcome.PASSED
    assert one_row("traced hyperparameters", jc.sgd(0.1)).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("row", [row for row in CHECKS if row not in ("traced hyperparameters", DECAY)])
def test_the_sound_one_keeps_every_row(row: str) -> None:
    found = one_row(row, momentum_like())
    assert found.outcome is Outcome.PASSED, found


@pytest.mark.usefixtures("own_errors")  # NumPy arrays are given to see whether they are written to
@pytest.mark.parametrize("make", [jc.sgd, jc.momentum, jc.adagrad, jc.rmsprop, jc.adam], ids=lambda make: make.__name__)
def test_ours_keep_every_row(make: Callable[..., Any]) -> None:
    report = jc.check_optimizer(make)
    assert report.ok, str(report)
    assert {row.name for row in report.rows if row.outcome is Outcome.NOT_APPLICABLE} <= {
        DECAY,
        END,
    }
    assert report["equivariance"].detail == "under permutation and flattening"
    linear = make in (jc.sgd, jc.momentum)
    assert report["response to scaling"].detail.startswith("linear" if linear else "invariant")
    assert "kept: " in str(report)


def test_optax_adam() -> None:
    adam = optax.adam(1e-3)
    never = one_row(DECAY, adam)
    assert never.detail == "bfloat16: a moment stays at 1 of its start where float32 leaves 0.0497"
    assert "float16: a gradient of 0 gives an update of nan" in one_row(FINITE, adam).detail
    assert one_row("gradients through steps", adam).case == "two numbers"  # one of them dead
    for row in (KIND, ONCE, PURE, "zero gradient", "odd trees", "vmap equals loop"):
        assert one_row(row, adam).outcome is Outcome.PASSED


def test_other_kinds_of_rule() -> None:
    assert one_row("equivariance", optax.lamb(1e-2)).detail.startswith("none under flattening")
    assert one_row("randomness", optax.noisy_sgd(1e-2, key=0)).detail == "new at every step"
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    assert one_row("response to scaling", clipped).detail == "neither linear nor invariant"
    skipping = optax.apply_if_finite(optax.sgd(0.1), 5)
    assert one_row("NaN gradient", skipping).detail == "the step is left out"
    searching = optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5))
    assert one_row(KIND, searching).outcome is Outcome.PASSED


def test_report() -> None:
    rows = (Row("a", Outcome.PASSED), Row("b", Outcome.NOT_APPLICABLE, "no b"), Row("c", Outcome.PASSED, "fine"))
    assert ContractReport(rows).raise_if_failed().ok
    strict = ContractReport(rows, strict=True)
    with pytest.raises(ContractError, match="BROKEN: 2 of 3 rows passed, 1 failed") as caught:
        strict.raise_if_failed()
    assert caught.value.report["b"].detail == "no b"
    broken = ContractReport((*rows, Row("d", Outcome.FAILED, "it bites", "one number")))
    assert broken.failed == (broken["d"],)
    assert "it bites   smallest case: one number" in str(broken)


def test_parameters_of_ones_own() -> None:
    trial = Trial(optax.sgd(0.1), None, cases_like({"kernel": jnp.ones((2, 2, 3), jnp.float32)}))
    assert list(trial.cases)[-1] == "['kernel'] float32[2, 2, 3]"
    assert _row(KIND, CHECKS[KIND], trial).outcome is Outcome.PASSED


def test_what_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match="an optax transformation or a function"):
        jc.check_optimizer("adam")
