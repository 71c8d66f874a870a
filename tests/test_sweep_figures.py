"""Figures of sweeps and races: true to the numbers, nothing lost, and results taken as they are."""

from typing import Any

import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course.sweeps import MethodResult, Points
from tests.test_races import made


def result(points: dict[str, Points], loss: dict[str, Any], **changes: Any) -> jc.SweepResult:
    """A sweep with these losses `[P, S]`, whose curves fall to them in two epochs of two steps."""
    methods = {}
    for label, values in loss.items():
        final = np.asarray(values, float)
        curve = final[..., None] * np.array([4.0, 3.0, 2.0, 1.0])
        zeros = np.zeros(final.shape, int)
        best = int(np.argmin(final.mean(axis=1)))
        methods[label] = MethodResult(points[label], final, zeros, zeros + 4, curve, None, best, None)
    start = np.full(final.shape[1], 2.3)
    return jc.SweepResult(methods, 4, 2, np.zeros(0, int), start, "none")


def xy(line: Any) -> np.ndarray:
    """The points of a line, `[n, 2]`."""
    return np.asarray(line.get_xydata(), float)


GRID = jc.sweeps.product(learning_rate=[0.01, 0.1, 1.0], b1=[0.0, 0.9])
LOSS = np.array([[1.0, 1.2], [0.9, 1.1], [0.2, 0.4], [0.1, 0.3], [np.inf, 5.0], [3.0, 4.0]])
SWEEP = result({"Adam": GRID, "SGD": GRID}, {"Adam": LOSS, "SGD": LOSS + 0.05})


def test_curves_are_those_of_the_best_points_by_epoch() -> None:
    axes = jc.plots.learning_curves(SWEEP, title="T").axes[0]
    np.testing.assert_allclose(xy(axes.lines[0]), [[1, 0.2 * 3.5], [2, 0.2 * 1.5]])
    np.testing.assert_allclose(SWEEP.epoch_loss("Adam"), [[0.35, 0.15], [1.05, 0.45]])


def test_valleys_take_the_best_of_the_other_hyperparameters() -> None:
    values, losses = SWEEP.profile("Adam", "learning_rate")
    np.testing.assert_array_equal(values, [0.01, 0.1, 1.0])
    np.testing.assert_array_equal(losses, LOSS[[1, 3, 5]])
    axes = jc.plots.rate_robustness(SWEEP, title="T").axes[0]
    np.testing.assert_allclose(xy(axes.lines[0]), [[0.01, 1.0], [0.1, 0.2], [1.0, 2.3]])
    zero = jc.plots.rate_robustness(SWEEP, title="T", name="b1").axes[0]  # an axis with a 0 is linear
    assert (zero.get_xscale(), zero.get_xlabel()) == ("linear", "b1")
    with pytest.raises(KeyError, match="was not tuned by 'eps'"):
        jc.plots.rate_robustness(SWEEP, title="T", name="eps")
    with pytest.raises(ValueError, match="or a SweepResult"):
        jc.plots.rate_robustness(np.ones(3), title="T")


def test_the_expected_best_is_that_of_random_trials() -> None:
    """Closed form beside 200,000 simulated searches; a point that diverged counts as no progress."""
    expected, rng = SWEEP.expected_best("Adam"), np.random.default_rng(0)
    means = np.where(np.isfinite(LOSS.mean(axis=1)), LOSS.mean(axis=1), 2.3)
    assert expected[0] == pytest.approx(means.mean())
    for trials in (2, 6):
        simulated = means[rng.integers(0, 6, (200_000, trials))].min(axis=1).mean()
        assert expected[trials - 1] == pytest.approx(simulated, rel=0.01)
    axes = jc.plots.expected_best(SWEEP, title="T").axes[0]
    np.testing.assert_allclose(xy(axes.lines[0])[:, 1], expected)


def test_a_forest_of_intervals() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal((3, 10))
    race = made({"a": 1 + noise[0], "b": 1.1 + noise[1], "c": 1 + noise[2], "d": np.full(10, np.inf)})
    axes = jc.plots.race_intervals(race, title="T").axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == [label for group in race.ranking for label in group]
    first = names[0]
    rows = {name: [line for line in axes.lines if (xy(line)[:, 1] == row).all()]
            for row, name in enumerate(names)}  # fmt: skip
    for name in {"b", "c", "a"} - {first}:
        comparison = race.compare(name, first)
        bar, dot = rows[name]
        np.testing.assert_allclose(xy(bar)[:, 0], comparison.interval)
        assert (dot.get_markerfacecolor() == "white") == (comparison.better is None)
    assert "diverged" in [text.get_text() for text in axes.texts]
    assert jc.plots.race_intervals(race, title="T", reference="b").axes[0].get_xlabel() == "loss minus that of b"


def test_a_map_of_two_hyperparameters() -> None:
    figure = jc.plots.hyperparameter_map(SWEEP, "Adam", "learning_rate", "b1", title="T")
    picture = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(picture)[:, :2], LOSS.mean(axis=1).reshape(3, 2).T[:, :2])
    crosses, ring = figure.axes[0].lines
    assert sorted(map(tuple, xy(crosses).tolist())) == [(2.0, 0.0), (2.0, 1.0)]
    assert xy(ring).tolist() == [[1.0, 1.0]]
    points = Points(learning_rate=[0.01, 0.3, 2.0], b1=[0.5, 0.1, 0.9], b2=[0.9, 0.9, 0.9])
    scattered = result({"Adam": points}, {"Adam": [[1.0], [0.2], [9.0]]})
    axes = jc.plots.hyperparameter_map(scattered, "Adam", "learning_rate", "b1", title="T").axes[0]
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_offsets()), [[0.01, 0.5], [0.3, 0.1]])
    assert axes.get_xscale() == "log"
    nothing = result({"Adam": points}, {"Adam": [[np.inf], [9.0], [np.inf]]})
    jc.plots.hyperparameter_map(nothing, "Adam", "learning_rate", "b1", title="T")
