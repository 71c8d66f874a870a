"""Minibatch plans: indices of the examples of each step, made in advance, with every example once in each epoch."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxopt_course.annotations import Array, Int

SORTED_BELOW = 512  # up to this many examples, sorting random bits is not slower, and all orders are equally likely
SHUFFLE_ROUNDS = 8


class BatchPlan(NamedTuple):
    """Indices of examples: `full[E, K, B]`, K whole batches per epoch, and `last[E, r]`, the remainder of each epoch.

    `r` is 0 if the remainder is dropped or empty. Both arrays are int32. To scan over a plan, use
    `full.reshape(-1, B)`.
    """

    full: Int[Array, "E K B"]
    last: Int[Array, "E r"]


def minibatches(
    key: Array,
    num_examples: int,
    batch_size: int,
    num_epochs: int,
    *,
    drop_last: bool = True,
    first_epoch: int | Array = 0,
) -> BatchPlan:
    """Plan epochs of minibatches, each epoch in its own random order.

    Epoch e is `shuffled(jax.random.fold_in(key, e), num_examples)`, with any of JAX's generators, so a long plan can be
    made a few epochs at a time. The function is pure; it works under `jit` and under `vmap` over keys.

    Args:
      key: a `jax.random` key.
      num_examples: N, at least 1.
      batch_size: B, from 1 to N.
      num_epochs: E, at least 1.
      drop_last: drop the last, partial batch of each epoch, or keep it as `last`.
      first_epoch: number of the first epoch, which may be traced.

    Returns:
      `BatchPlan(full[E, K, B], last[E, r])` with K = N // B and r = N % B, or 0 when dropped.

    Raises:
      ValueError: no examples, a batch larger than the data, no epochs.

    Example:
      >>> import jax
      >>> plan = minibatches(jax.random.key(0), num_examples=7, batch_size=3, num_epochs=2, drop_last=False)
      >>> plan.full.shape, plan.last.shape
      ((2, 2, 3), (2, 1))
      >>> sorted([*plan.full[1].ravel().tolist(), *plan.last[1].tolist()])
      [0, 1, 2, 3, 4, 5, 6]

    Source: the lecture's "Stochastic Gradient Descent", minibatches of the shuffled training set.
    """
    check_batch_size("minibatches", num_examples, batch_size)
    if num_epochs < 1:
        raise ValueError(f"minibatches: num_epochs must be at least 1, got {num_epochs}")
    epochs = jnp.asarray(first_epoch, jnp.int32) + jnp.arange(num_epochs, dtype=jnp.int32)
    order = _orders(key, epochs, num_examples)
    whole = num_examples - num_examples % batch_size
    full = order[:, :whole].reshape(num_epochs, -1, batch_size)
    return BatchPlan(full, order[:, whole : whole if drop_last else num_examples])


@partial(jax.jit, static_argnames="num_examples")  # without it, every call outside jit would recompile the loop
def _orders(key: Array, epochs: Int[Array, " E"], num_examples: int) -> Int[Array, "E N"]:
    """The order of each epoch; by a loop, because `vmap` would change what some of JAX's generators give."""
    return lax.map(lambda epoch: shuffled(jax.random.fold_in(key, epoch), num_examples), epochs)


def shuffled(key: Array, num_examples: int) -> Int[Array, " N"]:
    """The numbers 0..N-1 in random order, in time proportional to N.

    Up to N = 512, the numbers are sorted by 64 random bits each, and every order is equally likely. For larger N, each
    number is written as row and column of a table of about sqrt(N) by sqrt(N) places. Eight times, every place is moved
    down by a random amount that depends only on its column, then across by a random amount that depends only on its
    row. Each move is invertible, so no two places collide. A place beyond the end is moved again until it is inside.
    Finally, a random bit decides whether the first two numbers are swapped, so that odd and even orders are equally
    likely. Not all N! orders are possible, because there are too few random bits; but the positions of examples, and
    which examples are neighbours, have the frequencies of a uniform order.

    Args:
      key: a `jax.random` key.
      num_examples: N, at least 1.

    Returns:
      A permutation `[N]`, int32.

    Example:
      >>> import jax
      >>> sorted(shuffled(jax.random.key(0), 6).tolist())
      [0, 1, 2, 3, 4, 5]

    Raises:
      ValueError: no examples.

    Source: Black and Rogaway (2002), "Ciphers with arbitrary finite domains", CT-RSA, the generalized Feistel cipher
    with cycle walking, with tables of random numbers as round functions.
    """
    if num_examples < 1:
        raise ValueError(f"shuffled: num_examples must be at least 1, got {num_examples}")
    return _sorted_by_bits(key, num_examples) if num_examples <= SORTED_BELOW else _shuffled_by_moves(key, num_examples)


def _sorted_by_bits(key: Array, num_examples: int) -> Array:
    high, low = jax.random.bits(key, (2, num_examples), jnp.uint32)
    return lax.sort((high, low, jnp.arange(num_examples, dtype=jnp.int32)), num_keys=2)[2]


@partial(jax.jit, static_argnames="num_examples")  # without it, every call outside jit would recompile the loops
def _shuffled_by_moves(key: Array, num_examples: int) -> Array:
    rows = math.isqrt(num_examples - 1) + 1
    columns = -(-num_examples // rows)
    keys = jax.random.split(key, 3)  # down, across, swap; one draw for both moves compiles sooner than two
    shape, below = (SHUFFLE_ROUNDS * rows,), jnp.array([rows, columns], jnp.int32)
    moves = jax.vmap(lambda key, limit: jax.random.randint(key, shape, 0, limit, jnp.int32))(keys[:2], below)
    down, across = moves[0, : SHUFFLE_ROUNDS * columns].reshape(-1, columns), moves[1].reshape(-1, rows)

    def move(place: tuple[Array, Array], by: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        row, column = place
        row = (row + by[0][column]) % rows
        column = (column + by[1][row]) % columns
        return (row, column), None

    def walk(i: Array) -> Array:
        (row, column), _ = lax.scan(move, (i // columns, i % columns), (down, across))
        return row * columns + column

    def walk_on(i: Array) -> Array:
        return jnp.where(i >= num_examples, walk(i), i)

    places = jnp.arange(num_examples, dtype=jnp.int32)
    swaps = jax.random.bernoulli(keys[2]).astype(jnp.int32)
    places = jnp.where(places < 2, places ^ swaps, places)  # swapped before the walk: XLA errs in a swap in place
    return lax.while_loop(lambda i: jnp.any(i >= num_examples), walk_on, walk(places))


def check_batch_size(where: str, num_examples: int, batch_size: int) -> None:
    if num_examples < 1:
        raise ValueError(f"{where}: the data is empty")
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"{where}: batch_size must be from 1 to the {num_examples} examples of the data, got {batch_size}"
        )
