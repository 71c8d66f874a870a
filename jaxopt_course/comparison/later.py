"""Check whether an optimizer whose first steps were identified can deviate from its rule later.

Its program must have no branches on values (`programs`). What depends only on the step count (a schedule, a bias
correction) is evaluated: the optimizer is started with its counters at other counts, takes a few steps, and every
update is compared with the rule's. The counts are all counts below `DENSE`, the neighbours of powers of 2 and 10, and
the neighbours of every number in the program and of their sums, differences and multiples. These suffice because a
program that switches at some step must contain that step.
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, Params
from jaxopt_course.comparison.programs import GRADS, PARAMS, Program, inspect
from jaxopt_course.comparison.rules import Rule, solve_rate, start, step
from jaxopt_course.comparison.steppers import Stepper
from jaxopt_course.dtypes import standard_promotion

DENSE, MOST_COUNTS, LAST = 4096, 8192, 2**31 - 8
STEPS = len(GRADS)
NOT_TRACED = {  # what an optimizer does that JAX cannot trace, in words
    jax.errors.TracerBoolConversionError: "it decides in Python by a value",
    jax.errors.TracerArrayConversionError: "it makes a NumPy array of a value",
    jax.errors.ConcretizationTypeError: "it makes a Python number of a value",
}


def rounding_at(counts: np.ndarray) -> np.ndarray:
    """Relative difference that counts as rounding at a step count t: 1 - t / (t + 1) has an error of eps * t."""
    return 1e-9 + 4e-16 * counts


class Later(NamedTuple):
    """What is known of the later steps of an optimizer.

    `doubts`: why they may deviate from the rule, empty if they cannot; `evidence`: what was examined, in words;
    `rates`: the learning rates of a schedule `[counts, STEPS]`, None if they are constant or unknown.
    """

    doubts: tuple[str, ...]
    evidence: str = ""
    rates: np.ndarray | None = None


def later_steps(steppers: tuple[Stepper, Stepper], rules: tuple[Rule, Rule], params: Params) -> tuple[Later, Later]:
    """Examine the later steps of two optimizers with equal rules, both from the same step counts."""
    with jax.enable_x64(True), standard_promotion():
        programs = [_program(stepper, rule, params) for stepper, rule in zip(steppers, rules, strict=True)]
        traced = [program for program in programs if isinstance(program, Program)]
        counts = counts_to_try(frozenset().union(*(program.numbers for program in traced)))
        counts = np.minimum(counts, min((program.last_count for program in traced), default=LAST))
        first, second = (
            program if isinstance(program, Later) else _compare_with_rule(program, rule, counts)
            for program, rule in zip(programs, rules, strict=True)
        )
    if first.doubts or second.doubts:
        return first, second
    return _with_rates_compared((first, second), rules, counts)


def _with_rates_compared(
    later: tuple[Later, Later], rules: tuple[Rule, Rule], counts: np.ndarray
) -> tuple[Later, Later]:
    """Add a doubt about one of the two if their learning rates differ at some step."""
    first, second = later
    steps = counts[:, None] + np.arange(1, STEPS + 1)
    a, b = (_known_rates(x, rule, len(steps)) for x, rule in zip(later, rules, strict=True))
    if a is None or b is None:
        return first, second._replace(doubts=("only the first steps of a schedule are known",))
    other = np.abs(a - b) > rounding_at(steps) * np.maximum(np.abs(a), np.abs(b)) + 1e-300
    if not other.any():
        return later
    at = steps[other].min()
    rates = [x[other & (steps == at)][0] + 0.0 for x in (a, b)]
    first_changes = np.isclose(rates[1], rules[1].learning_rate, rtol=1e-6).all()
    words = "its learning rate at step {:,} is {:.6g}, not {:.6g}"
    if first_changes:
        return first._replace(doubts=(words.format(at, rates[0], rates[1]),)), second
    return first, second._replace(doubts=(words.format(at, rates[1], rates[0]),))


def _known_rates(later: Later, rule: Rule, size: int) -> np.ndarray | None:
    """The learning rates `[size, STEPS]` as far as they are known; a constant rate need not be evaluated."""
    if later.rates is not None:
        return np.broadcast_to(later.rates, (size, STEPS))
    return None if isinstance(rule.learning_rate, tuple) else np.full((size, STEPS), rule.learning_rate)


def _program(stepper: Stepper, rule: Rule, params: Params) -> Program | Later:
    """The program of an optimizer; a `Later` if it needs no program or has none."""
    if code := stepper.code_of():
        return Later((), f"it is {code} itself, in which nothing else depends on the step")
    if stepper.traceable is None:
        return Later(("it is Python code that JAX cannot trace, and may change later",))
    try:
        return inspect(stepper.traceable, rule, params)
    except Exception as error:  # JAX cannot trace it, for whatever reason
        reason = next((words for kind, words in NOT_TRACED.items() if isinstance(error, kind)), type(error).__name__)
        return Later((f"its program cannot be traced: {reason}; it may change later",))


def counts_to_try(numbers: Iterable[int]) -> np.ndarray:
    """The step counts to start from, `[MOST_COUNTS]`; see the module docstring."""
    powers = [*(2**k for k in range(12, 32)), *(10**k for k in range(4, 10))]
    single = sorted(numbers)[:200]
    pairs = itertools.chain.from_iterable(
        (x + y, abs(x - y), x * y) for x, y in itertools.combinations_with_replacement(single[:24], 2)
    )
    near = [base + k for base in (*powers, *single) for k in range(-3, 4)]
    near += [multiple * x - k for x in single for multiple in (2, 3, 10, 100) for k in (0, 1)]
    near += [base + k for base in pairs for k in (-1, 0)]
    chosen = dict.fromkeys([*range(DENSE), LAST, *(int(n) for n in near if 0 <= n <= LAST)])
    found = np.array(list(chosen)[:MOST_COUNTS])
    return np.pad(found, (0, MOST_COUNTS - len(found)), mode="edge")  # one shape, so that compiled code is reused


def _compare_with_rule(program: Program, rule: Rule, counts: np.ndarray) -> Later:
    """Compare the updates from every step count with the rule's."""
    evidence = "its program has no branch on a value"
    if program.ignores_counters:
        counts, evidence = counts[:1], f"{evidence}, and nothing in it depends on the step"
    else:
        evidence = f"{evidence}, and it was started at {len(np.unique(counts)):,} step counts up to {counts.max():,}"
    try:
        updates = _updates_from(program, counts)
    except Exception as error:  # it may not accept a state with other counters
        return Later((*program.doubts, f"it cannot be started at another count ({type(error).__name__})"))
    rates, wrong = _rates(rule, updates, counts)
    doubts, steps = list(program.doubts), counts[:, None] + np.arange(1, STEPS + 1)
    if wrong.any():
        doubts.append(f"at step {steps[wrong].min():,} its update is no longer the rule's")
    return Later(tuple(doubts), "" if doubts else evidence, rates)


def _updates_from(program: Program, counts: np.ndarray) -> np.ndarray:
    """The first updates from the initial state with its counters set to each count, `[counts, STEPS, n]`."""
    leaves, structure = jax.tree.flatten(program.state)

    def updates_from(count: Array) -> Array:
        own = [x + count.astype(x.dtype) if i in program.counters else x for i, x in enumerate(leaves)]
        state, found = jax.tree.unflatten(structure, own), []
        for g in GRADS:
            grads = jax.tree.map(lambda _, g=g: jnp.asarray(g), program.params)
            updates, state = program.optimizer.update(grads, state, program.params)
            found.append(jnp.concatenate(jax.tree.leaves(updates)))
        return jnp.stack(found)

    return np.asarray(jax.vmap(updates_from)(jnp.asarray(counts, jnp.int32)))


def _rates(rule: Rule, updates: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The learning rates, and where any entry deviates from the rule, both `[counts, STEPS]`."""
    size, n = updates.shape[0], updates.shape[2]
    params, moments, of_base = np.resize(PARAMS, n), start(rule, np.zeros((size, n))), start(rule, np.zeros((size, 1)))
    rates, wrong = np.zeros((size, STEPS)), np.zeros((size, STEPS), bool)
    with np.errstate(all="ignore"):
        for k, g in enumerate(GRADS):
            late, seen = counts[:, None] + k, updates[:, k]
            rate, of_base = solve_rate(rule, seen[:, :1], np.full((size, 1), g[0]), late, of_base)
            made, moments, _ = step(rule, np.resize(g, (size, n)), params, late, rate, moments)
            scale = np.maximum(np.abs(seen), np.abs(made)) + 1e-300
            near = rounding_at(late) * scale + 4e-16 * np.abs(params)
            wrong[:, k] = ~(np.abs(made - seen) <= near).all(axis=1)
            rates[:, k] = np.broadcast_to(rate, (size, 1))[:, 0]
    return rates, wrong
