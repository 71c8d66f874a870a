"""The nearest-neighbour classifier, the lecture's first: training stores the images, prediction finds the closest ones.

`scores` and `predict` accept any k and both of the lecture's distances. They are exact: the neighbours are those of a
brute-force search in float64. Images are uint8 pixels, which are not converted, or floating point.
"""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import Array, ArrayLike, Float, Int, Shaped
from jaxopt_course.problems import neighbor_search

__all__ = ["Model", "neighbors", "predict", "scores", "train", "vote"]

METRICS = ("l1", "l2")
CHUNK, CHUNK_BYTES = 2048, 12 * 2**20  # default size of a tile of images, in float32: 1024 images of 32x32x3


def __dir__() -> list[str]:
    return __all__


class Model(NamedTuple):
    """The training data: `images[N, D]` as they were given, `labels[N]`, and `classes[C]`, the numbers 0..C-1.

    `centre[D]` is a point near the mean of the images; `norms[N]` are derived from their distances to it, for the
    search.
    """

    images: Shaped[Array, "N D"]
    labels: Int[Array, " N"]
    classes: Int[Array, " C"]
    centre: Float[Array, " D"]
    norms: Shaped[Array, " N"]


def train(
    images: Shaped[ArrayLike, "N D"], labels: Shaped[ArrayLike, " N"], *, num_classes: int | None = None
) -> Model:
    """Store all images and their labels.

    Args:
      images: `[N, D]`, uint8 or floating point, one image per row; stored as given, without a floating-point copy.
      labels: `[N]`, integers from 0.
      num_classes: C; the default is one more than the largest label. Under `jit` it must be given.

    Returns:
      `Model`.

    Raises:
      ValueError: no images, images and labels that do not match, images of another integer dtype, images with a NaN, an
        infinity or a value above 1e150, labels that are not integers, negative, or not below `num_classes`. Under
        `jit`, where values are not known, such images make every prediction -1 and every score NaN; such labels do so
        for the test images whose neighbours have them.

    Example:
      >>> import numpy as np
      >>> model = train(np.array([[0, 0], [9, 9], [9, 8]], np.uint8), np.array([0, 1, 1]))
      >>> model.images.dtype.name, model.classes.tolist()
      ('uint8', [0, 1])

    Source: the lecture's `NearestNeighbor.train`, "memorize all data and labels".
    """
    images = _as_images("train", "images", images)
    labels, classes = _as_labels(images, labels, num_classes)
    with jax.enable_x64(True):
        centre, norms = neighbor_search.prepare(images, chunk_size=_chunk_size(images))
    if not isinstance(centre, jax.core.Tracer) and bool(jnp.isnan(centre[0])):
        raise ValueError(f"train: {_first_unusable('images', images)}")
    return Model(images, labels, classes, centre, norms)


def neighbors(
    model: Model,
    test_images: Shaped[ArrayLike, "B D"],
    *,
    k: int = 1,
    metric: str = "l2",
    chunk_size: int | None = None,
) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
    r"""Find the k training images nearest to each test image, nearest first.

    $$d_1(a, b) = \sum_p |a_p - b_p|, \qquad d_2(a, b) = \sqrt{\sum_p (a_p - b_p)^2}$$

    The neighbours are those of a brute-force search; of images at equal distances, those with the lowest index come
    first. Distances of uint8 pixels are compared as integers. Distances of floating-point images are compared in
    float64, computed from the images as given. Bounds on the rounding error of matrix products decide which distances
    must be computed in this way, so that no neighbour is missed. (If distances differ by less than the resolution of
    float64, its rounding decides; float32 values below 1.2e-38 count as zero, as in XLA.) Many floating-point images at
    about the same distance, such as duplicates, make the search slower.

    The function compiles once for each shape, k and metric. It is pure, and works under `jit` and `vmap`.

    Args:
      model: made by `train`.
      test_images: `[B, D]`, uint8 if the model's are, else floating point.
      k: from 1 to N.
      metric: "l1" or "l2".
      chunk_size: number of images in a tile, for training and for test images; by default as many as take 12 MiB in
        float32, at most 2048. The memory needed besides the data is a few tiles of images and of distances, however
        many images there are.

    Returns:
      Indices `[B, k]` int32 of training images, and the distances `[B, k]`, float32 (float64 for float64 images).

    Raises:
      ValueError: no test images, a number of features other than the model's, k that is not from 1 to N, an unknown
        metric, a chunk size below 1, a NaN, an infinity or a value above 1e150. Under `jit`, where values are not
        known, the neighbours of such an image have index -1 and distance NaN.

    Example:
      >>> import numpy as np
      >>> model = train(np.array([[0, 0], [3, 4], [5, 0]], np.uint8), np.array([0, 1, 1]))
      >>> indices, distances = neighbors(model, np.array([[0, 0]], np.uint8), k=3)
      >>> print(indices, distances)  # the last two are equally far
      [[0 1 2]] [[0. 5. 5.]]
      >>> print(neighbors(model, np.array([[0, 0]], np.uint8), k=3, metric="l1")[0])
      [[0 2 1]]

    Source: the lecture's "Distance Metric to compare images".
    """
    test_images = _as_images("neighbors", "test_images", test_images)
    k = _check_search(model, test_images, k, metric)
    if chunk_size is None:
        chunk_size = _chunk_size(test_images)
    elif operator.index(chunk_size) < 1:
        raise ValueError(f"neighbors: chunk_size must be at least 1 image, got {chunk_size}")
    known = not isinstance(test_images, jax.core.Tracer) and test_images.dtype != jnp.uint8
    if known and (message := _first_unusable("test_images", test_images)):
        raise ValueError(f"neighbors: {message}")
    memory = model.images, model.centre, model.norms
    with jax.enable_x64(True):
        return neighbor_search.search(*memory, test_images, k=k, metric=metric, chunk_size=min(chunk_size, 2**20))


def scores(
    model: Model,
    test_images: Shaped[ArrayLike, "B D"],
    *,
    k: int = 1,
    metric: str = "l2",
    chunk_size: int | None = None,
) -> Float[Array, "B C"]:
    """The share of each class among the k nearest neighbours, which can be passed to `accuracy` like any other scores.

    Args:
      model: made by `train`.
      test_images, k, metric, chunk_size: as for `neighbors`.

    Returns:
      Scores `[B, C]`, multiples of 1/k.

    Raises:
      ValueError: as for `neighbors`. Under `jit`, scores are NaN for images without valid neighbours.

    Example:
      >>> import numpy as np
      >>> model = train(np.array([[0], [1], [2], [9]], np.uint8), np.array([0, 1, 1, 2]))
      >>> print(scores(model, np.array([[0]], np.uint8), k=4))
      [[0.25 0.5  0.25]]
    """
    indices, _ = neighbors(model, test_images, k=k, metric=metric, chunk_size=chunk_size)
    return vote(model, indices)


def vote(model: Model, indices: Int[ArrayLike, "B k"]) -> Float[Array, "B C"]:
    """The share of each class among given neighbours. The result of one search can be used for every smaller k.

    Args:
      model: made by `train`.
      indices: `[B, k]`, of training images, from `neighbors`.

    Returns:
      Scores `[B, C]`, NaN for a row with a negative index.

    Example:
      >>> import numpy as np
      >>> model = train(np.array([[0], [1], [2], [9]], np.uint8), np.array([0, 1, 1, 2]))
      >>> indices, _ = neighbors(model, np.array([[0]], np.uint8), k=4)
      >>> [vote(model, indices[:, :k]).argmax().item() for k in (1, 2, 3, 4)]
      [0, 0, 1, 1]
    """
    return _votes(model.labels, model.classes, jnp.asarray(indices))


def predict(
    model: Model,
    test_images: Shaped[ArrayLike, "B D"],
    *,
    k: int = 1,
    metric: str = "l2",
    chunk_size: int | None = None,
) -> Int[Array, " B"]:
    """The most frequent class among the k nearest neighbours; if classes tie, the smallest.

    Args:
      model: made by `train`.
      test_images, k, metric, chunk_size: as for `neighbors`.

    Returns:
      Labels `[B]`, int32.

    Raises:
      ValueError: as for `neighbors`. Under `jit`, the label is -1 for images without valid neighbours.

    Example:
      >>> import jaxopt_course as jc
      >>> digits = jc.data.load("digits", raw=True)
      >>> model = train(*digits.train)
      >>> test_images, test_labels = digits.test
      >>> predicted = predict(model, test_images, k=3, metric="l2")
      >>> bool((predicted == test_labels).mean() > 0.98)
      True

    Source: the lecture's `NearestNeighbor.predict` and "K-Nearest Neighbors"; Cover and Hart (1967), "Nearest neighbor
    pattern classification", IEEE Trans. Inf. Theory 13.
    """
    shares = scores(model, test_images, k=k, metric=metric, chunk_size=chunk_size)
    return jnp.where(jnp.isnan(shares[:, 0]), -1, jnp.argmax(shares, axis=1).astype(jnp.int32))


@jax.jit
def _votes(labels: Array, classes: Array, indices: Array) -> Array:
    cast = labels.at[indices].get(mode="clip")
    known = jnp.all((indices >= 0) & (cast >= 0) & (cast < len(classes)), axis=1)
    votes = cast[:, :, None] == classes[None, None]
    return jnp.where(known[:, None], jnp.mean(votes, axis=1, dtype=float), jnp.nan)


def _as_images(where: str, name: str, images: Any) -> Array:
    images = jnp.asarray(images)
    if images.ndim != 2 or images.size == 0:
        empty = "" if images.size else "not empty, "
        raise ValueError(
            f"{where}: {name} must be {empty}one image per row, [N, D], got shape {images.shape}"
            + (f"; flatten them first: {name}.reshape(len({name}), -1)" if images.ndim > 2 else "")
        )
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{where}: {name} must be uint8 pixels or floating point, got {images.dtype}; cast them")
    return images


def _as_labels(images: Array, labels: Any, num_classes: int | None) -> tuple[Array, Array]:
    given, labels = labels, jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"train: labels must be integers, got {labels.dtype}; expected class indices 0, 1, ...")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"train: labels of shape {labels.shape} do not match images of shape {images.shape}; "
            f"expected labels of shape {images.shape[:1]}, one for each image"
        )
    if num_classes is not None and operator.index(num_classes) < 1:
        raise ValueError(f"train: num_classes must be at least 1, got {num_classes}")
    if isinstance(labels, jax.core.Tracer):
        if num_classes is None:
            raise ValueError("train: under jit the labels are not known, pass num_classes")
    else:
        values = np.asarray(given)  # as given: with x64 off, a 64-bit label would wrap around into the valid range
        limit = 2**31 if num_classes is None else num_classes
        bad = np.flatnonzero((values < 0) | (values >= limit))
        if len(bad):
            raise ValueError(
                f"train: {len(bad)} of {len(values)} labels are out of range, the first is "
                f"labels[{bad[0]}] = {values[bad[0]]}; expected 0 <= label"
                + (f" < {num_classes} classes" if num_classes is not None else " < 2**31")
            )
        num_classes = int(values.max()) + 1 if num_classes is None else num_classes
    return labels.astype(jnp.int32), jnp.arange(num_classes, dtype=jnp.int32)


def _check_search(model: Model, test_images: Array, k: int, metric: str) -> int:
    shape, pixels = model.images.shape, model.images.dtype == jnp.uint8
    if metric not in METRICS:
        raise ValueError(f"neighbors: unknown metric {metric!r}; there are {', '.join(map(repr, METRICS))}")
    if test_images.shape[1] != shape[1]:
        raise ValueError(
            f"neighbors: test_images of shape {test_images.shape} do not match the model's images of shape {shape}; "
            f"expected test_images [B, {shape[1]}]"
        )
    if (test_images.dtype == jnp.uint8) != pixels:
        raise ValueError(
            f"neighbors: test_images are {test_images.dtype}, the model's images {model.images.dtype}; "
            "distances between pixels and scaled features are meaningless, pass both in the same form"
        )
    if not 1 <= operator.index(k) <= shape[0]:
        raise ValueError(f"neighbors: k must be from 1 to the {shape[0]} images of the model, got {k}")
    return operator.index(k)


def _chunk_size(images: Array) -> int:
    return max(1, min(CHUNK, CHUNK_BYTES // (4 * images.shape[1])))


def _first_unusable(name: str, images: Array) -> str:
    """Return a message about the first value that cannot be used, or an empty string."""
    with jax.enable_x64(True):
        usable = np.asarray(_usable(images))
    if usable.all():
        return ""
    row = int(np.argmin(usable))
    values = np.asarray(images[row], np.float64)
    column = int(np.argmin(np.abs(values) < neighbor_search.LARGE))
    return (
        f"{len(usable) - int(usable.sum())} of {len(usable)} images cannot be compared, the first has "
        f"{name}[{row}, {column}] = {values[column]}; expected finite values below {neighbor_search.LARGE:g}"
    )


_usable = jax.jit(neighbor_search.is_usable)
