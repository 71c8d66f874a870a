"""Real 32x32x3 images without a download: patches of ten photographs that ship with scikit-image and scikit-learn."""

from importlib import resources
from typing import NamedTuple

import numpy as np

SIZE = 32
MIN_RANGE = 8  # of the 255 levels; a patch with a smaller range in every channel is empty, such as black or plain sky


class Photograph(NamedTuple):
    """A class of patches: its name, and the package and file that contain the photograph."""

    name: str
    package: str
    file: str


PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "data/astronaut.png"),
    Photograph("cat", "skimage", "data/chelsea.png"),
    Photograph("coffee", "skimage", "data/coffee.png"),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg"),
    Photograph("galaxies", "skimage", "data/hubble_deep_field.jpg"),
    Photograph("motorcycle", "skimage", "data/motorcycle_left.png"),
    Photograph("retina", "skimage", "data/retina.jpg"),
    Photograph("rocket", "skimage", "data/rocket.jpg"),
    Photograph("temple", "sklearn", "datasets/images/china.jpg"),
    Photograph("tissue", "skimage", "data/ihc.png"),
)
SOURCE = (
    "patches of ten colour photographs that ship in scikit-image and scikit-learn, a class each: train from the left "
    "two thirds of a photograph, test from the rest, 32 columns between them; not CIFAR-10, nor comparable with it"
)


def photograph_patches(
    num_train: int, num_test: int, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Draw 32x32 patches in random order: `(pixels[N, 3072] uint8, labels[N] int32)` for train and for test.

    The train patches are from the left two thirds of each photograph. The test patches are from the part to the right
    of a gap as wide as a patch. Patches of one part may overlap, but no pixel is in both parts. The sizes of the
    classes differ by at most one patch.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[], []]
    labels = [rng.permutation(np.arange(count) % len(PHOTOGRAPHS)).astype(np.int32) for count in (num_train, num_test)]
    shares = [np.bincount(part, minlength=len(PHOTOGRAPHS)) for part in labels]
    for number, photograph in enumerate(PHOTOGRAPHS):
        pixels = _pixels(photograph)
        end = 2 * pixels.shape[1] // 3
        for patches, share, side in zip(parts, shares, (pixels[:, :end], pixels[:, end + SIZE :]), strict=True):
            patches.append(_draw(rng, side, int(share[number]), photograph.name))
    train, test = (_in_order(patches, part) for patches, part in zip(parts, labels, strict=True))
    return (train, labels[0]), (test, labels[1])


def _pixels(photograph: Photograph) -> np.ndarray:
    from PIL import Image  # scikit-image requires it

    with (resources.files(photograph.package) / photograph.file).open("rb") as file, Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _draw(rng: np.random.Generator, side: np.ndarray, count: int, name: str) -> np.ndarray:
    """Draw `count` different patches that are not empty, as rows of pixels."""
    windows = np.lib.stride_tricks.sliding_window_view(side, (SIZE, SIZE), axis=(0, 1))  # [rows, columns, 3, 32, 32]
    rows, columns = windows.shape[:2]
    found: list[np.ndarray] = []
    places = iter(rng.permutation(rows * columns))
    while len(found) < count <= rows * columns and (place := next(places, None)) is not None:
        patch = windows[place // columns, place % columns]
        if np.ptp(patch, axis=(1, 2)).max() >= MIN_RANGE:
            found.append(patch.transpose(1, 2, 0).ravel())
    if len(found) < count:
        raise ValueError(f"load: 'patch10' has fewer patches of the {name} than the {count:,} requested")
    return np.stack(found) if found else np.empty((0, SIZE * SIZE * 3), np.uint8)


def _in_order(patches: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Return the patches of all classes in the order of the labels."""
    pixels = np.empty((len(labels), SIZE * SIZE * 3), np.uint8)
    for number, rows in enumerate(patches):
        pixels[labels == number] = rows
    return pixels
