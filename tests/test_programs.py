"""Programs of callables: compiled once for each callable, whatever it is, and freed with it."""

import concurrent.futures
import functools
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course.training import programs
from jaxopt_course.training.programs import Program

POINT = jnp.arange(3.0)


class Counted:
    """A Program that evaluates an objective and takes a step on it, and the number of its traces."""

    def __init__(self, **options: Any):
        self.traces = 0

        def descend(callables: Any, w: Any, rate: Any = 0.25, *, twice: bool = False) -> Any:
            self.traces += 1
            objective, scale = callables
            for _ in range(1 + twice):
                w = w - scale(rate) * jax.grad(lambda w: objective(w))(w)
            return w, objective(w)

        self.program = Program(descend, **options)

    def __call__(self, objective: Any, w: Any = POINT, *args: Any, scale: Any = jnp.positive, **kwargs: Any) -> Any:
        return self.program((objective, scale), w, *args, **kwargs)


def squared(w: Any) -> Any:
    return jnp.sum(w**2)


def distance(centre: Any, w: Any) -> Any:
    return jnp.sum((w - centre) ** 2)


def scaled_distance(factor: Any, centre: Any, w: Any) -> Any:
    return factor * distance(centre, w)


def distance_from(w: Any, *, centre: Any) -> Any:
    return distance(centre, w)


class Method:
    def __init__(self, centre: Any):
        self.centre = centre

    def loss(self, w: Any) -> Any:
        return distance(self.centre, w)


class Slots:
    __slots__ = ("centre",)

    def __init__(self, centre: Any):
        self.centre = centre

    def __call__(self, w: Any) -> Any:
        return distance(self.centre, w)


class Record(NamedTuple):
    name: str
    fn: Callable[..., Any]
    centre: Any
    factor: float

    def __call__(self, w: Any) -> Any:
        return self.factor * self.fn(self.centre, w)


@dataclass
class WithEquality:
    centre: Any

    def __call__(self, w: Any) -> Any:
        return distance(self.centre, w)


@dataclass(frozen=True)
class WithHash:
    centre: float

    def __call__(self, w: Any) -> Any:
        return distance(self.centre, w)


@jax.tree_util.register_pytree_node_class
class WithoutHashInside:
    """A pytree whose static part can be neither hashed nor compared."""

    def __init__(self, centre: Any):
        self.centre = centre

    def __call__(self, w: Any) -> Any:
        return distance(jnp.asarray(self.centre), w)

    def tree_flatten(self) -> Any:
        return (), self.centre

    @classmethod
    def tree_unflatten(cls, centre: Any, _: Any) -> Any:
        return cls(centre)


def custom(centre: Any) -> Any:
    f = jax.custom_vjp(lambda w: distance(centre, w))
    f.defvjp(lambda w: (distance(centre, w), w), lambda w, g: (2 * (w - centre) * g,))
    return f


CENTRE = np.array([1.0, -2.0, 0.5])
KEPT_AS_THEY_ARE: dict[str, Callable[[Any], Any]] = {
    "function": lambda c: lambda w: distance(c, w),
    "jitted": lambda c: jax.jit(lambda w: distance(c, w)),
    "checkpointed": lambda c: jax.checkpoint(lambda w: distance(c, w)),
    "custom_vjp": custom,
    "no weak reference": Slots,
    "equality": WithEquality,
    "pytree without hash": lambda c: WithoutHashInside(np.asarray(c)),
}
TAKEN_APART: dict[str, Callable[[Any], Any]] = {
    "partial": lambda c: functools.partial(distance, c),
    "Partial": lambda c: jax.tree_util.Partial(distance, c),
    "partial of a partial": lambda c: functools.partial(functools.partial(scaled_distance, 1.0), c),
    "partial by keyword": lambda c: functools.partial(distance_from, centre=c),
    "NamedTuple": lambda c: Record("centred", distance, c, 1.0),
    "method of a NamedTuple": lambda c: Record("centred", distance, c, 1.0).__call__,
}


@pytest.mark.parametrize("make", (KEPT_AS_THEY_ARE | TAKEN_APART).values(), ids=KEPT_AS_THEY_ARE | TAKEN_APART)
def test_every_callable_is_called_and_compiled_once(make: Any) -> None:
    run, objective = Counted(), make(jnp.array(CENTRE))
    for _ in range(3):
        w, value = run(objective)
        np.testing.assert_allclose(w, (POINT + CENTRE) / 2)
        np.testing.assert_allclose(value, np.sum((POINT - CENTRE) ** 2) / 4)
    assert run.traces == 1


@pytest.mark.parametrize("make", TAKEN_APART.values(), ids=TAKEN_APART)
def test_arrays_in_a_callable_are_data(make: Any) -> None:
    run = Counted()
    for shift in range(3):
        np.testing.assert_allclose(run(make(CENTRE + shift))[0], (POINT + CENTRE + shift) / 2)
    assert run.traces == 1
    slope = jax.grad(lambda c: run(make(c))[1])(jnp.array(CENTRE))
    np.testing.assert_allclose(slope, (CENTRE - POINT) / 2)


def test_an_equinox_module_and_its_method() -> None:
    eqx = pytest.importorskip("equinox")

    class Centred(eqx.Module):
        centre: Any
        power: int = eqx.field(static=True)

        def __call__(self, w: Any) -> Any:
            return jnp.sum((w - self.centre) ** self.power)

        def halved(self, w: Any) -> Any:
            return self(w) / 2

    run = Counted()
    for shift in range(3):
        centre = jnp.array(CENTRE + shift)
        np.testing.assert_allclose(run(Centred(centre, 2))[1], np.sum((POINT - centre) ** 2) / 4)
        np.testing.assert_allclose(run(Centred(centre, 2).halved)[1], np.sum((POINT - centre) ** 2) * 9 / 32)
        np.testing.assert_allclose(run(Centred(centre, 4), rate=0.0)[1], np.sum((POINT - centre) ** 4))
    assert run.traces == 3


def test_a_method_of_an_object_is_compiled_once_and_does_not_keep_it_alive() -> None:
    run, held = Counted(), Method(jnp.array(CENTRE))
    for _ in range(3):
        np.testing.assert_allclose(run(held.loss)[0], (POINT + CENTRE) / 2)
    assert run.traces == 1
    alive = weakref.ref(held)
    del held
    gc.collect()
    assert alive() is None
    assert len(run.program) == 0


def test_equal_objects_with_a_hash_share_what_is_compiled() -> None:
    run = Counted()
    for centre in (1.0, 2.0, 1.0, 2.0):
        np.testing.assert_allclose(run(WithHash(centre))[0], (POINT + centre) / 2)
    assert run.traces == 2


def test_values_that_are_equal_but_not_the_same_are_told_apart() -> None:
    def described(value: Any, w: Any) -> Any:
        return jnp.sum(w) + float((type(value) is int) + 2 * (str(value) == "-0.0"))

    run = Counted()
    for value in (1, 1.0, True, 0.0, -0.0):
        _, seen = run(functools.partial(described, value), rate=0.0)
        assert seen == 3 + (type(value) is int) + 2 * (str(value) == "-0.0")
    assert run.traces == 5


KINDS = [kind for kind in KEPT_AS_THEY_ARE if kind not in ("no weak reference", "pytree without hash")]


@pytest.mark.parametrize("kind", [*KINDS, *TAKEN_APART])
def test_what_dies_is_freed_with_its_arrays(kind: str) -> None:
    run, size = Counted(), 1013
    for i in range(3):
        run((KEPT_AS_THEY_ARE | TAKEN_APART)[kind](jnp.full(size, float(i))), jnp.zeros(size))
    gc.collect()
    assert [array.shape for array in jax.live_arrays() if array.size == size] == []
    assert len(run.program) <= 1


def test_what_dies_is_freed_also_where_a_derivative_rule_is_kept_in_the_program() -> None:
    def value_and_step(callables: Any, w: Any) -> Any:  # the value keeps its rule in the jaxpr
        return callables[0](w), jax.grad(callables[0])(w)

    program, objective = Program(value_and_step), custom(jnp.full(1013, 1.0))
    program((objective,), jnp.zeros(1013))
    alive = weakref.ref(objective)
    del objective
    gc.collect()
    assert alive() is None
    assert len(program) == 0


def test_memory_is_bounded_for_what_must_be_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MAX_KEPT_ALIVE", 3)
    run, size = Counted(), 1013
    for i in range(6):
        run(Slots(jnp.full(size, float(i))), jnp.zeros(size))
    run(squared)
    gc.collect()
    assert {float(array[0]) for array in jax.live_arrays() if array.size == size} == {3, 4, 5}
    monkeypatch.setattr(programs, "MAX_COMPILED", 4)
    functions = [lambda w, k=k: k * squared(w) for k in range(6)]
    for function in functions:
        run(function)
    assert len(run.program) == 4
    traces = run.traces
    run(functions[-1])
    assert run.traces == traces  # the last ones are there
    run(functions[0])
    assert run.traces == traces + 1  # the first are not


def test_under_transformations() -> None:
    run, centred = Counted(), functools.partial(distance, CENTRE)
    expected = run(centred, POINT)
    np.testing.assert_allclose(jax.jit(lambda w: run(centred, w)[0])(POINT), expected[0])
    points = jnp.stack([POINT, POINT + 1])
    np.testing.assert_allclose(jax.vmap(lambda w: run(centred, w)[0])(points)[1], (POINT + 1 + CENTRE) / 2)
    np.testing.assert_allclose(jax.grad(lambda w: run(centred, w)[1])(POINT), (POINT - CENTRE) / 2)

    def over_a_closure(centre: Any) -> Any:
        return run(lambda w: distance(centre, w), POINT)[1]

    np.testing.assert_allclose(jax.grad(over_a_closure)(jnp.array(CENTRE)), (CENTRE - POINT) / 2)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(over_a_closure))(jnp.stack([CENTRE, CENTRE + 1])),
        [np.sum((POINT - CENTRE) ** 2) / 4, np.sum((POINT - CENTRE - 1) ** 2) / 4],
    )


def test_options_of_jit() -> None:
    run = Counted(static_argnames="twice", donate_argnums=1)
    w = jnp.array(POINT)
    np.testing.assert_allclose(run(squared, w, twice=True)[0], POINT / 4)
    assert w.is_deleted()
    np.testing.assert_allclose(run(squared, jnp.array(POINT), twice=False)[0], POINT / 2)
    assert run.traces == 2
    lowered = run.program.lower((squared, jnp.positive), POINT, twice=True)
    assert "stablehlo" in lowered.as_text()


def test_caches_that_are_cleared_are_filled_again() -> None:
    run = Counted()
    first = run(squared)
    jax.clear_caches()
    jax.tree.map(np.testing.assert_array_equal, run(squared), first)
    assert len(run.program) == 1


def test_from_several_threads() -> None:
    run = Counted()

    def work(i: int) -> Any:
        own = functools.partial(distance, float(i % 4) * np.ones(3))
        return [float(run(own)[1]) + float(run(lambda w: i * squared(w), rate=0.0)[1]) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(16)))
    for i, values in enumerate(found):
        np.testing.assert_allclose(values, np.sum((POINT - i % 4) ** 2) / 4 + i * 5.0)


def test_train_takes_any_callable_and_keeps_none() -> None:
    size = 1013

    def trained(objective: Any) -> Any:
        return jc.train(
            objective, jc.sgd(0.1), jnp.zeros(size), POINT, key=jax.random.key(0), batch_size=3, num_steps=2
        )

    for i in range(3):
        centre = jnp.full(size, float(i))
        for make in (
            lambda c: lambda w, x: distance(c, w),
            lambda c: functools.partial(lambda c, w, x: distance(c, w), c),
        ):
            np.testing.assert_allclose(trained(make(centre)).params, 0.36 * i, rtol=1e-12)
        del centre
    gc.collect()
    assert [array.shape for array in jax.live_arrays() if array.size == size] == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_array_changed_in_place_is_seen_by_every_loop(dtype: Any, tmp_path: Path) -> None:
    """In a closure, in a default argument, and through a function; by a solve, and by a run with checkpoints."""
    target = np.array([1.0, 2.0], dtype)
    away: Callable[[Any], Any] = lambda w: w - target  # noqa: E731
    objectives: list[Callable[..., Any]] = [
        lambda w, _=None: jnp.sum((w - target) ** 2),
        lambda w, _=None, target=target: jnp.sum((w - target) ** 2),
        lambda w, _=None: jnp.sum(away(w) ** 2),
    ]
    optimizer, rows = jc.sgd(0.25), np.ones((4, 1), dtype)
    with jax.enable_x64(False):
        for run in range(3):
            for number, objective in enumerate(objectives):
                start = jnp.zeros(2)
                solved = jc.minimize(objective, optimizer, start).params
                folder = tmp_path / f"{number}_{run}"
                key = jax.random.key(0)
                trained = jc.train(
                    objective, optimizer, start, rows, key=key, batch_size=2, num_steps=40, checkpoint_dir=folder
                ).params
                np.testing.assert_allclose(solved, target, rtol=1e-5)
                np.testing.assert_allclose(trained, target, rtol=1e-5)
            target *= 3


def test_equal_content_compiles_once_and_what_is_outdated_is_freed() -> None:
    target, traces = np.zeros(2), []

    def gradient(objective: Any, w: Any) -> Any:
        traces.append(1)
        return jax.grad(objective)(w)

    program = Program(gradient)
    objective: Callable[[Any], Any] = lambda w: jnp.sum((w - target) ** 2)  # noqa: E731
    for _ in range(3):
        program(objective, jnp.ones(2))
    assert len(traces) == 1
    for change in range(3):
        target += 1 + change
        np.testing.assert_allclose(program(objective, jnp.ones(2)), 2 * (1 - target))
        assert len(program) == 1
    assert len(traces) == 4
