"""Means and spreads of features, without a floating-point copy of the data; and scores of data that stays as it is."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course.data import feature_statistics, statistics

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3000, 7), dtype=np.uint8)
PIXELS[:, 3] = 200


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_equal_numpy_over_all_blocks(dtype: type) -> None:
    inputs: np.ndarray = PIXELS.astype(dtype)
    mean, scale = feature_statistics(inputs)
    expected = inputs.astype(float).std(0)
    expected[3] = 1
    np.testing.assert_allclose(mean, inputs.astype(float).mean(0), rtol=1e-7)
    np.testing.assert_allclose(scale, expected, rtol=1e-7)
    assert mean.dtype == scale.dtype == (np.float64 if dtype is np.float64 else np.float32)


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_what_never_varies_has_the_scale_1_and_not_that_of_its_rounding(value: float) -> None:
    mean, scale = feature_statistics(np.full((5000, 1), value))
    assert (mean.tolist(), scale.tolist()) == ([value], [1])


def test_a_large_offset_loses_no_digits() -> None:
    inputs = 1e9 + RNG.standard_normal((5000, 2))
    _, scale = feature_statistics(inputs)
    np.testing.assert_allclose(scale, (inputs - 1e9).std(0), rtol=1e-7)


def test_a_file_is_read_block_by_block(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    np.testing.assert_array_equal(feature_statistics(mapped)[1], feature_statistics(PIXELS)[1])
    assert len(PIXELS) > statistics.BLOCK


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 2, 3)])
def test_no_table_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[N, D\]"):
        feature_statistics(np.zeros(shape))


def test_scores_of_raw_pixels_are_those_of_standardised_ones() -> None:
    mean, scale = feature_statistics(PIXELS)
    params = jc.scores.init_linear(jax.random.key(0), 4, 7, dtype=jnp.float32)
    score_fn = jc.scores.standardized(jc.scores.linear, mean, scale)
    by_hand = ((PIXELS[:9] - mean.astype(np.float64)) / scale) @ np.asarray(params["W"], np.float64).T
    np.testing.assert_allclose(score_fn(params, PIXELS[:9]), by_hand, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(score_fn(params, PIXELS[0]), by_hand[0], rtol=1e-4, atol=1e-6)
    wide = jc.scores.standardized(jc.scores.linear, mean.astype(np.float64), scale.astype(np.float64))
    np.testing.assert_allclose(wide(params, PIXELS[:9].astype(np.float32)), by_hand, rtol=1e-12)


def test_statistics_may_be_whole_numbers_or_traced() -> None:
    W, pixels = jnp.ones((4, 7)), PIXELS[:9]
    expected = ((pixels - 128.0) / 64) @ np.ones((7, 4))
    whole = jc.scores.standardized(jc.scores.linear, jnp.full(7, 128), jnp.full(7, 64))
    np.testing.assert_allclose(whole(W, pixels), expected)
    of_statistics = jax.jit(lambda mean, scale: jc.scores.standardized(jc.scores.linear, mean, scale)(W, pixels))
    np.testing.assert_allclose(of_statistics(jnp.full(7, 128.0), jnp.full(7, 64.0)), expected)


@pytest.mark.parametrize(("mean", "scale"), [([0.0], [0.0]), ([0.0], [-1.0]), ([np.nan], [1.0]), ([0.0], [np.inf])])
def test_statistics_that_are_none_are_refused(mean: list[float], scale: list[float]) -> None:
    with pytest.raises(ValueError, match="scales above 0"):
        jc.scores.standardized(jc.scores.linear, jnp.array(mean), jnp.array(scale))


@pytest.mark.usefixtures("own_errors")
def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        jc.scores.standardized(jc.scores.linear, jnp.zeros(2), jnp.ones(3))
    score_fn = jc.scores.standardized(jc.scores.linear, jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"\(5, 3\) for statistics of \(2,\)"):
        score_fn(jnp.zeros((4, 3)), jnp.zeros((5, 3)))
