"""Which examples go into which step: a plan of indices, made ahead, that visits every example once an epoch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_course.annotations import Array, Int


class BatchPlan(NamedTuple):
    """Indices of examples: `full[E, K, B]`, K whole batches an epoch, and `last[E, r]`, the rest of each epoch.

    `r` is 0 where the rest is dropped or there is none. Both are int32. `full.reshape(-1, B)` is a plan to scan over.
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
    """Plan epochs of minibatches, each epoch in an order of its own.

    Epoch e is the order that sorts random words drawn with `jax.random.fold_in(key, e)`, so a long plan can be made a
    few epochs at a time. Pure: it works under `jit` and under `vmap` over keys. Shuffling costs more than a small
    training step, so plan once.

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
    words = jax.vmap(lambda epoch: jax.random.bits(jax.random.fold_in(key, epoch), (num_examples,), jnp.uint32))(epochs)
    order = jnp.argsort(words, axis=1).astype(jnp.int32)  # one sort, where jax.random.permutation takes two
    whole = num_examples - num_examples % batch_size
    full = order[:, :whole].reshape(num_epochs, -1, batch_size)
    return BatchPlan(full, order[:, whole : whole if drop_last else num_examples])


def check_batch_size(where: str, num_examples: int, batch_size: int) -> None:
    if num_examples < 1:
        raise ValueError(f"{where}: the data is empty")
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"{where}: batch_size must be from 1 to the {num_examples} examples there are, got {batch_size}"
        )
