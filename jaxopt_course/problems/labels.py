"""Checks of class labels, shared by every function that takes labels."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, ArrayLike, Bool


def check_labels(where: str, scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Return scores and labels as arrays, or raise ValueError if they do not match or are out of range.

    Label values are checked if they are known. Under `jit` they are not known; use `in_range` to find invalid labels.
    """
    scores, given = jnp.asarray(scores), labels
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"{where}: scores must be real floating point, got {scores.dtype}")
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"{where}: scores must be [..., C] with C >= 1 classes, got shape {scores.shape}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{where}: labels must be integers, got {labels.dtype}; "
            f"expected class indices 0..{scores.shape[-1] - 1}, not one-hot rows"
        )
    if labels.shape != scores.shape[:-1]:
        raise ValueError(
            f"{where}: labels of shape {labels.shape} do not match scores of shape {scores.shape}; "
            f"expected labels of shape {scores.shape[:-1]}, one for each row of scores"
        )
    known = not isinstance(labels, jax.core.Tracer) and labels.is_fully_addressable
    if known and labels.size:
        values = np.asarray(given)  # as given: with x64 off, a 64-bit label would wrap around into the valid range
        bad = np.argwhere((values < 0) | (values >= scores.shape[-1]))
        if len(bad):
            index = tuple(int(i) for i in bad[0])
            raise ValueError(
                f"{where}: {len(bad)} of {labels.size} labels are out of range, the first is "
                f"labels[{', '.join(map(str, index))}] = {values[index]}; "
                f"expected 0 <= label < {scores.shape[-1]} classes"
            )
    return scores, labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def in_range(scores: Array, labels: Array) -> Bool[Array, "..."]:
    """Whether each label is a valid class index."""
    return (labels >= 0) & (labels < scores.shape[-1])


def is_correct_class(scores: Array, labels: Array) -> Bool[Array, "... C"]:
    """Return a mask that is True at each row's labelled class; a row whose label is out of range is all False."""
    classes = jnp.arange(scores.shape[-1], dtype=labels.dtype)
    return jnp.expand_dims(labels, -1) == jnp.broadcast_to(classes, scores.shape)
