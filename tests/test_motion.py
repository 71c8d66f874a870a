"""Curves hold the data they were given, and an animation grows to the picture that stands still."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

import jaxopt_course as jc
from jaxopt_course.landscape import GradientField

X = np.linspace(-1.0, 1.0, 9)
BOWL = X[:, None] ** 2 + X**2
FIELD = GradientField(X, X, BOWL, np.zeros((9, 9, 2)), np.zeros((9, 9, 2)))


def test_curves_are_the_data() -> None:
    lines = {"square": X**2, "cube": X**3}
    figure = jc.plots.curves(X, lines, title="two", xlabel="x", ylabel="y")
    (axes,) = figure.axes
    drawn: list[Any] = list(axes.lines)
    for line, values in zip(drawn, lines.values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([X, values]))
    assert {text.get_text() for text in axes.texts} == set(lines)
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("two", "x", "y")


def test_what_is_small_and_what_is_zero_can_be_told_apart() -> None:
    lines = {"hinge": np.maximum(-X, 0), "softmax": np.exp(-3 * (X + 1))}
    (axes,) = jc.plots.curves(X, lines, title="two", xlabel="x", ylabel="y", scale="symlog").axes
    heights = {n: axes.transData.transform((1.0, float(values[-1])))[1] for n, values in lines.items()}
    assert heights["softmax"] - heights["hinge"] > 10  # pixels, for a difference of 0.0025
    with pytest.raises(ValueError, match="got 'log'"):
        jc.plots.curves(X, lines, title="two", xlabel="x", ylabel="y", scale="log")


def test_an_animation_shows_ever_more_of_the_paths(tmp_path: Path) -> None:
    steps = np.linspace(1, 0, 31)
    paths = {"SGD": np.column_stack([-0.8 * steps, 0 * steps]), "astray": np.column_stack([steps + 5, steps])}
    written = jc.plots.write_descent(tmp_path / "a.gif", FIELD, paths, title="t", frames=7, milliseconds=40)
    with Image.open(written) as picture:
        shown = [(np.asarray(f.convert("RGB"), int), f.info["duration"]) for f in ImageSequence.Iterator(picture)]
    frames, durations = zip(*shown, strict=True)
    assert len(frames) == 7
    blue = [int(((f[..., 2] - f[..., 0]) > 60).sum()) for f in frames]  # of the first path, and its name
    assert all(less < more for less, more in pairwise(blue))
    assert durations[0] == 40
    assert durations[-1] > 1000


def test_no_more_frames_than_steps(tmp_path: Path) -> None:
    path = {"short": np.array([[0.1, 0.1], [0.4, 0.4], [0.7, 0.7]])}
    with Image.open(jc.plots.write_descent(tmp_path / "a.gif", FIELD, path, title="t")) as picture:
        assert getattr(picture, "n_frames", 1) == 3
