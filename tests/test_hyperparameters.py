"""Factories called again with equal arguments return the same optimizer; a rate of 0 is a rate."""

import functools
import inspect
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.annotations import Optimizer
from jaxopt_course.optimizers import hyperparameters
from jaxopt_course.optimizers.hyperparameters import cached_factory

FACTORIES = [jc.sgd, jc.momentum, jc.adagrad, jc.rmsprop, jc.adam]
each_factory = pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)


def search(length: Any = 1.0) -> Any:
    return length


@cached_factory
def searching(memory: int = 10, search: Any = search, flag: bool = False) -> Optimizer:
    """Any factory whose arguments may be functions."""
    if memory == 0:
        raise ValueError("no memory")
    return Optimizer(lambda params: memory, lambda grads, state, params=None, **_: (search, flag))


@each_factory
def test_equal_numbers_give_the_same_optimizer(factory: Any) -> None:
    assert factory(0.01) is factory(0.01) is factory(learning_rate=0.01)
    assert factory(0.01) is not factory(0.02)
    assert factory(np.float32(0.5)) is factory(np.float32(0.5))
    assert factory(1.0) is not factory(1)
    assert factory(0.0) is not factory(-0.0)
    assert jc.momentum(0.1, nesterov=True) is not jc.momentum(0.1)
    assert "learning_rate" in inspect.signature(factory).parameters
    assert factory.__doc__.startswith(inspect.unwrap(factory).__doc__[:20])


@each_factory
def test_jit_compiles_once_for_optimizers_made_anew(factory: Any) -> None:
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def step(optimizer: Any, w: Any) -> Any:
        traces.append(optimizer)
        return optimizer.update(w, optimizer.init(w), w)

    for _ in range(3):
        step(factory(0.125), jnp.ones(2))
    assert len(traces) == 1


@each_factory
def test_arrays_tracers_and_schedules_are_not_kept(factory: Any) -> None:
    schedule = optax.linear_schedule(0.0, 0.1, 10)
    for rate in (jnp.asarray(0.1), np.array(0.1), schedule):
        assert factory(rate) is not factory(rate)
    made: list[Any] = []
    jax.jit(lambda rate: made.append((factory(rate), factory(rate))))(0.1)
    assert made[0][0] is not made[0][1]


def test_functions_and_partials_are_compared_by_what_they_are() -> None:
    half = functools.partial(search, length=0.5)
    assert searching() is searching(10) is searching(10, search)
    assert searching(search=half) is searching(search=functools.partial(search, length=0.5)) is not searching()
    assert searching(search=half) is not searching(search=functools.partial(search, length=0.25))
    assert searching(search=half) is not searching(search=functools.partial(search, 0.5))
    assert searching(True) is not searching(1)

    def local() -> float:
        return 1.0

    def closure() -> Any:
        return half

    array = np.ones(3)
    assert searching(search=local) is searching(search=local)
    for kept_alive in (closure, lambda x=array: x, functools.partial(search, array), functools.partial(closure)):
        assert searching(search=kept_alive) is not searching(search=kept_alive)


def test_errors_are_raised_at_every_call(own_errors: None) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no memory"):
            searching(0)
        with pytest.raises(ValueError, match="learning_rate must be"):
            jc.adam(-1.0)
        with pytest.raises(TypeError, match="unexpected keyword"):
            jc.adam(rate=1.0)  # type: ignore[call-arg]


def test_the_cache_is_bounded_and_keeps_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyperparameters, "CACHE_SIZE", 3)
    first = searching(100)
    for memory in range(101, 110):
        searching(memory)
        assert searching(100) is first
    again = searching(109)
    for memory in range(110, 114):
        searching(memory)
    assert searching(109) is not again


def test_threads_get_the_same_optimizer() -> None:
    made: list[Any] = []
    threads = [threading.Thread(target=lambda: made.append(jc.adam(0.0625, 0.5))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(optimizer) for optimizer in made}) == 1


@each_factory
def test_a_learning_rate_of_zero_is_legal(factory: Any) -> None:
    w = jnp.ones(2)
    for optimizer in (factory(0.0), factory(0), factory(jnp.asarray(0.0))):
        updates, _ = optimizer.update(w, optimizer.init(w), w)
        assert not jnp.any(updates)


@each_factory
def test_injected_schedules_may_start_at_zero(factory: Any) -> None:
    train_state = pytest.importorskip("flax.training.train_state")
    warm_up = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100)
    injected = optax.inject_hyperparams(factory)(learning_rate=warm_up)
    with jax.numpy_dtype_promotion("standard"):
        state = train_state.TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=injected)
        first = state.apply_gradients(grads=state.params)
        second = first.apply_gradients(grads=state.params)
    assert jnp.array_equal(first.params["w"], state.params["w"])
    assert bool(jnp.all(second.params["w"] < first.params["w"]))
