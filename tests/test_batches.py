"""The plan of minibatches: every example once an epoch, in an order that only the key and the epoch decide."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxopt_course.data import BatchPlan, minibatches, shuffled

KEY = jax.random.key(0)
PLAN = jax.jit(minibatches, static_argnames=("num_examples", "batch_size", "num_epochs", "drop_last"))  # eager is slow


def check(plan: BatchPlan, num_examples: int, batch_size: int, num_epochs: int, drop_last: bool) -> None:
    full, last = np.asarray(plan.full), np.asarray(plan.last)
    num_batches, rest = divmod(num_examples, batch_size)
    assert full.dtype == last.dtype == np.int32
    assert full.shape == (num_epochs, num_batches, batch_size)
    assert last.shape == (num_epochs, 0 if drop_last else rest)
    for epoch in range(num_epochs):
        visited = np.concatenate([full[epoch].ravel(), last[epoch]])
        if drop_last:
            assert len(np.unique(visited)) == len(visited) == num_batches * batch_size
            assert set(visited) <= set(range(num_examples))
        else:
            np.testing.assert_array_equal(np.sort(visited), np.arange(num_examples))


@settings(max_examples=12)
@example(1, 1, True).via("one example")
@example(25, 25, False).via("the whole set in one batch")
@example(25, 13, False).via("more left over than not")
@given(st.sampled_from([1, 2, 12, 25]), st.integers(1, 25), st.booleans())
def test_every_example_once_an_epoch(num_examples: int, batch_size: int, drop_last: bool) -> None:
    batch_size = min(batch_size, num_examples)
    plan = minibatches(KEY, num_examples, batch_size, 2, drop_last=drop_last)
    check(plan, num_examples, batch_size, 2, drop_last)


def test_the_rest_is_dropped_unless_asked_for() -> None:
    default, dropped = minibatches(KEY, 7, 3, 2), PLAN(KEY, 7, 3, 2, drop_last=True)
    kept = PLAN(KEY, 7, 3, 2, drop_last=False)
    np.testing.assert_array_equal(default.full, dropped.full)
    np.testing.assert_array_equal(default.full, kept.full)
    assert default.last.shape == (2, 0)
    assert kept.last.shape == (2, 1)
    left_out = {*range(7)} - {*np.ravel(default.full[0]).tolist()}
    assert left_out == {*kept.last[0].tolist()}


def test_epochs_and_keys_differ_and_the_same_key_plans_the_same() -> None:
    plan, again, other = (np.asarray(PLAN(jax.random.key(seed), 50, 10, 4).full) for seed in (0, 0, 1))
    np.testing.assert_array_equal(plan, again)
    orders = [order.ravel().tolist() for order in (*plan, *other)]
    assert len({tuple(order) for order in orders}) == 8
    assert [*range(50)] not in orders


def test_made_in_pieces_it_is_the_same_plan() -> None:
    traces = 0

    @jax.jit
    def two_epochs(first: Any) -> BatchPlan:
        nonlocal traces
        traces += 1
        return minibatches(KEY, 7, 3, 2, drop_last=False, first_epoch=first)

    whole = PLAN(KEY, 7, 3, 6, drop_last=False)
    pieces = [two_epochs(first) for first in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate([p.full for p in pieces]), whole.full)
    np.testing.assert_array_equal(np.concatenate([p.last for p in pieces]), whole.last)
    assert traces == 1
    swept = jax.jit(jax.vmap(two_epochs))(jnp.arange(0, 6, 2, dtype=jnp.int32))
    np.testing.assert_array_equal(np.concatenate(swept.full), whole.full)


@pytest.mark.parametrize("num_examples", [41, 610])  # sorted by bits, and moved
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_generator_gives_an_epoch_its_own_order(impl: str, num_examples: int) -> None:
    key = jax.random.key(3, impl=impl)  # JAX documents that vmap over such keys changes the numbers
    plan = PLAN(key, num_examples, 20, 3).full.reshape(3, -1)
    for epoch in range(3):
        alone = minibatches(key, num_examples, 20, 1, first_epoch=epoch).full.ravel()
        assert len(np.unique(alone)) == len(alone) == num_examples - num_examples % 20
        np.testing.assert_array_equal(plan[epoch], alone)
        order = shuffled(jax.random.fold_in(key, epoch), num_examples)
        np.testing.assert_array_equal(alone, order[: len(alone)])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_the_first_epoch_may_be_of_any_integer_type(dtype: Any) -> None:
    expected = PLAN(KEY, 7, 3, 2, drop_last=False, first_epoch=3)
    found = PLAN(KEY, 7, 3, 2, drop_last=False, first_epoch=jnp.asarray(np.array(3, dtype)))
    np.testing.assert_array_equal(found.full, expected.full)
    np.testing.assert_array_equal(found.last, expected.last)
    assert found.full.dtype == jnp.int32


def test_jit_and_vmap_over_keys_equal_the_loop() -> None:
    plan = partial(PLAN, num_examples=7, batch_size=3, num_epochs=2, drop_last=False)
    keys = jax.random.split(KEY, 3)
    expected = [plan(key) for key in keys]
    found = jax.jit(jax.vmap(plan))(keys)
    np.testing.assert_array_equal(found.full, [p.full for p in expected])
    np.testing.assert_array_equal(found.last, [p.last for p in expected])
    assert len({np.asarray(p.full).tobytes() for p in expected}) == 3


def test_indices_are_int32_and_the_same_with_and_without_x64() -> None:
    with jax.enable_x64(False):
        narrow = PLAN(jax.random.key(0), 7, 3, 2, drop_last=False, first_epoch=1)
    wide = PLAN(jax.random.key(0), 7, 3, 2, drop_last=False, first_epoch=1)
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == b.dtype == jnp.int32
        np.testing.assert_array_equal(a, b)


def test_a_raw_key_of_the_old_kind_works() -> None:
    old = PLAN(jax.random.PRNGKey(0), 7, 3, 2, drop_last=False)
    np.testing.assert_array_equal(old.full, PLAN(jax.random.key(0), 7, 3, 2, drop_last=False).full)


def test_every_order_is_about_as_likely() -> None:
    """Chi-squared with 119 degrees of freedom: mean 119, standard deviation 15."""
    plan = np.asarray(PLAN(jax.random.key(7), 5, 1, 12_000).full)[:, :, 0]
    names, counts = np.unique(plan @ 10 ** np.arange(5), return_counts=True)
    assert len(names) == 120
    assert 60 < ((counts - 100) ** 2 / 100).sum() < 190
    follows = np.zeros((5, 5))  # one epoch's first example against the next one's: 16 degrees of freedom
    np.add.at(follows, (plan[:-1, 0], plan[1:, 0]), 1)
    assert ((follows - follows.mean()) ** 2 / follows.mean()).sum() < 50


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "num_epochs", "said"),
    [
        (5, 6, 1, "batch_size must be from 1 to the 5 examples of the data, got 6"),
        (5, 0, 1, "batch_size must be from 1 to the 5 examples of the data, got 0"),
        (5, -2, 1, "batch_size must be .* got -2"),
        (0, 1, 1, "the data is empty"),
        (-1, 1, 1, "the data is empty"),
        (5, 2, 0, "num_epochs must be at least 1, got 0"),
        (5, 2, -3, "num_epochs must be at least 1, got -3"),
    ],
)
def test_no_plan(own_errors: None, num_examples: int, batch_size: int, num_epochs: int, said: str) -> None:
    with pytest.raises(ValueError, match=f"minibatches: {said}"):
        minibatches(KEY, num_examples, batch_size, num_epochs)


@pytest.mark.parametrize("num_examples", [1, 2, 3, 4, 5, 6, 7])
def test_every_order_is_as_likely(num_examples: int) -> None:
    draws = 60_000
    keys = jax.random.split(jax.random.key(1), draws)
    orders = np.asarray(jax.jit(jax.vmap(partial(shuffled, num_examples=num_examples)))(keys))
    _, counts = np.unique(orders @ 10 ** np.arange(num_examples), return_counts=True)
    expected = draws / math.factorial(num_examples)
    assert len(counts) == math.factorial(num_examples)
    freedom = max(len(counts) - 1, 1)
    assert abs(np.sum((counts - expected) ** 2) / expected - len(counts) + 1) < 4 * math.sqrt(2 * freedom)


def is_odd(orders: np.ndarray) -> np.ndarray:
    """Sort each row by swaps and count them."""
    orders, odd = orders.copy(), np.zeros(len(orders), bool)
    rows = np.arange(len(orders))
    for i in range(orders.shape[1]):
        at = np.argmax(orders == i, axis=1)
        odd ^= at != i
        orders[rows, at] = orders[:, i]
        orders[:, i] = i
    return odd


@pytest.mark.parametrize("num_examples", [2, 8, 9, 121, 529, 1225])
def test_odd_and_even_orders_are_as_likely(num_examples: int) -> None:
    draws = 400
    keys = jax.random.split(jax.random.key(3), draws)
    odd = is_odd(np.asarray(jax.jit(jax.vmap(partial(shuffled, num_examples=num_examples)))(keys)))
    assert abs(odd.mean() - 0.5) < 4 * 0.5 / math.sqrt(draws)


@pytest.mark.parametrize("num_examples", [1000])
def test_places_and_neighbours_have_the_frequencies_of_uniform_orders(num_examples: int) -> None:
    """Chi-squared: which examples come first, in the middle, last; and the distance of each to the next in a table."""
    draws = 5_000
    keys = jax.random.split(jax.random.key(4), draws)
    orders = np.asarray(jax.jit(jax.vmap(partial(shuffled, num_examples=num_examples)))(keys))
    samples = [orders[:, i] for i in (0, 1, num_examples // 2, -1)]
    for stride in (1, math.isqrt(num_examples - 1) + 1):
        samples.append(((orders[:, stride:] - orders[:, :-stride]) % num_examples).ravel() - 1)
    for sample, kinds in zip(samples, [num_examples] * 4 + [num_examples - 1] * 2, strict=True):
        expected = sample.size / kinds
        chi2 = np.sum((np.bincount(sample, minlength=kinds) - expected) ** 2) / expected
        assert abs(chi2 - (kinds - 1)) < 5 * math.sqrt(2 * (kinds - 1))


@pytest.mark.parametrize("num_examples", [97, 529])
def test_neighbours_are_torn_apart(num_examples: int) -> None:
    """Where i goes says nothing of where i + 1 goes, nor of i itself."""
    keys = jax.random.split(jax.random.key(2), 200)
    orders = np.asarray(jax.vmap(lambda key: shuffled(key, num_examples))(keys)) / num_examples
    pairs = orders[:, :-1].ravel(), orders[:, 1:].ravel()
    assert abs(np.corrcoef(*pairs)[0, 1]) < 4 / math.sqrt(pairs[0].size) + 1 / num_examples
    assert np.all(np.abs(orders.mean(axis=0) - 0.5) < 6 * math.sqrt(1 / 12 / 200) + 1 / num_examples)
    apart = np.abs(np.diff(orders, axis=1)).mean()
    np.testing.assert_allclose(apart, 1 / 3, atol=0.01)  # as of two independent uniform numbers


def test_no_examples_have_no_order() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        shuffled(KEY, 0)


@pytest.mark.parametrize("num_examples", [500, 700], ids=["sorted", "moved"])
def test_outside_jit_a_plan_of_one_size_compiles_once(num_examples: int, caplog: pytest.LogCaptureFixture) -> None:
    def compiled(key: Any, first_epoch: int) -> int:
        caplog.clear()
        with jax.log_compiles():
            minibatches(key, num_examples, 100, 2, drop_last=False, first_epoch=first_epoch)
        return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)

    jax.clear_caches()
    assert compiled(KEY, 0) > 0
    assert compiled(jax.random.key(1), 2) == 0
