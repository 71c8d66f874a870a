"""Figures are made from tiny data: labelled, not blank, and true to the arrays they were given."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import jaxopt_course as jc

RNG = np.random.default_rng(0)
LOSSES = {"SGD": np.exp(RNG.standard_normal((3, 5))), "Adam": np.exp(RNG.standard_normal((3, 5)))}
RATES = np.logspace(-3, 1, 5)
FINAL = {"SGD": np.array([[1.0, 2.0], [0.5, 0.6], [0.1, 0.2], [0.3, np.inf], [np.nan, 9.0]]), "Adam": np.ones((5, 2))}
GREY = {"SGD": RNG.standard_normal((3, 12)), "Adam": RNG.standard_normal((3, 12))}
COLOUR = {"SGD": RNG.standard_normal((2, 48))}
COUNTS = np.array([[5, 1], [0, 7]])
STEPS = np.logspace(-8, 0, 9)
ERRORS = {
    "float32": {"forward": STEPS + 1e-7 / STEPS, "central": STEPS**2 + 1e-7 / STEPS},
    "float64": {"forward": STEPS + 1e-16 / STEPS, "central": np.where(STEPS > 1e-8, STEPS**2 + 1e-16 / STEPS, np.nan)},
}
PREDICTED = {dtype: {method: 2 * e for method, e in methods.items()} for dtype, methods in ERRORS.items()}
OPTIMA = {
    "float32": {"forward": (3e-4, 6e-4), "central": (4e-3, 4e-5)},
    "float64": {"forward": (1e-8, 2e-8), "central": (4e-6, 4e-11)},
}
PICTURES = [RNG.integers(0, 17, (3, 4, 4)), RNG.integers(0, 17, (2, 4, 4))]
PHOTOGRAPHS = [RNG.integers(0, 256, (2, 4, 4, 3))]
SIZES = np.array([10.0, 100.0, 1000.0])
COSTS = {
    "evaluations": {"numerical": 2 * SIZES, "analytic": np.ones(3)},
    "seconds": {"numerical": 1e-6 * SIZES**2, "analytic": 1e-6 * SIZES},
}
POWERS = {"evaluations": {"numerical": 1.0, "analytic": 0.0}, "seconds": {"numerical": 2.0, "analytic": 1.0}}

FIGURES: dict[str, Callable[[], Figure]] = {
    "curves": lambda: jc.plots.learning_curves(LOSSES, title="T", ylabel="loss"),
    "rates": lambda: jc.plots.rate_robustness(RATES, FINAL, title="T", ylabel="loss", ceiling=2.3),
    "grey": lambda: jc.plots.templates(GREY, (4, 3), ("a", "b", "c"), title="T"),
    "colour": lambda: jc.plots.templates(COLOUR, (4, 4, 3), ("a", "b"), title="T"),
    "bare images": lambda: jc.plots.image_grid(PHOTOGRAPHS, names=["row"], top=255.0, title="T"),
    "confusion": lambda: jc.plots.confusion_matrix(COUNTS, ("a", "b"), title="T"),
    "steps": lambda: jc.plots.step_size_errors(
        STEPS, ERRORS, PREDICTED, OPTIMA, [("forward", 1e-3, 1e-3, 1.0), ("central", 1e-7, 1e-9, -0.98)], title="T"
    ),
    "images": lambda: jc.plots.image_grid(
        PICTURES,
        [["a", "b", "c"], ["d", "e"]],
        names=["first", "second"],
        top=16.0,
        title="T",
        marked=[[False, True, False], [False, False]],
        columns=["x", "1", "2"],
    ),
    "photographs": lambda: jc.plots.image_grid(PHOTOGRAPHS, [["a", "b"]], names=["row"], top=255.0, title="T"),
    "differences": lambda: jc.plots.difference_curves(
        {"own": STEPS, "removed": np.array([0.0, np.nan, 1e-16])}, title="T", tolerance=1e-12
    ),
    "grid": lambda: jc.plots.contract_grid(
        {"sgd": ["passed", "failed"], "adam": ["not applicable", "passed"]}, ["a", "b"], title="T"
    ),
    "costs": lambda: jc.plots.gradient_costs(SIZES, COSTS, POWERS, title="T"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_not_blank_and_titled(name: str) -> None:
    figure, file = FIGURES[name](), io.BytesIO()
    figure.savefig(file, dpi=60)
    file.seek(0)
    pixels = imread(file)
    assert pixels[..., :3].std() > 0.02
    assert "T" in (figure.get_suptitle(), *(axes.get_title() for axes in figure.axes))


@pytest.mark.parametrize("name", ["curves", "rates"])
def test_lines_are_labelled_directly_and_differ_without_colour(name: str) -> None:
    (axes,) = FIGURES[name]().axes
    assert {"SGD", "Adam"} <= {text.get_text() for text in axes.texts}
    lines: list[Any] = [line for line in axes.lines if np.size(line.get_xdata()) > 2]
    assert len({str(line._dash_pattern) for line in lines}) == len(lines)
    assert axes.get_xlabel()
    assert axes.get_ylabel() == "loss"


def test_curves_show_the_median_over_seeds() -> None:
    (axes,) = FIGURES["curves"]().axes
    for line, values in zip(axes.lines, LOSSES.values(), strict=True):
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), np.median(values, axis=0))
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float), np.arange(1, 6))
    assert axes.get_yscale() == "log"


def test_rates_count_what_diverged_as_the_ceiling() -> None:
    (axes,) = FIGURES["rates"]().axes
    expected = [1.5, 0.55, 0.15, (0.3 + 2.3) / 2, 2.3]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), float), expected)
    best: Any = axes.lines[1]
    assert (float(best.get_xdata()[0]), float(best.get_ydata()[0])) == (RATES[2], pytest.approx(0.15))


NEGATIVE = {"SGD": np.array([[2.0, 0.5, -0.8]]), "Adam": np.array([[2.0, 0.1, -0.9]])}


def ends(axes: Any) -> dict[str, tuple[float, float]]:
    """name -> the point that its thread leads to."""
    return {text.get_text(): (float(text.xy[0]), float(text.xy[1])) for text in axes.texts}


def test_losses_below_zero_are_shown_to_their_ends_with_their_names() -> None:
    (axes,) = jc.plots.learning_curves(NEGATIVE, title="T", ylabel="loss").axes
    assert axes.get_yscale() == "linear"
    assert ends(axes) == {"SGD": (3.0, -0.8), "Adam": (3.0, -0.9)}
    assert axes.get_ylim()[0] < -0.9
    far = {"SGD": np.array([[1e6, 3.0, 1.0, 0.0, -1.0, -2.0]])}
    (axes,) = jc.plots.learning_curves(far, title="T", ylabel="loss").axes
    assert axes.get_yscale() == "symlog"
    assert ends(axes) == {"SGD": (6.0, -2.0)}
    flat = {"SGD": np.array([[2.30, 2.29, 2.27]])}
    assert jc.plots.learning_curves(flat, title="T", ylabel="loss").axes[0].get_yscale() == "linear"
    assert jc.plots.learning_curves(flat, title="T", ylabel="loss", scale="log").axes[0].get_yscale() == "log"
    for scale in ("linear", "symlog"):
        (axes,) = jc.plots.learning_curves(NEGATIVE, title="T", ylabel="loss", scale=scale).axes
        assert (axes.get_yscale(), len(axes.texts)) == (scale, 2)


def test_a_logarithm_of_what_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no values at or below 0, and the least is -0\.9"):
        jc.plots.learning_curves(NEGATIVE, title="T", ylabel="loss", scale="log")
    with pytest.raises(ValueError, match="got 'cubic'"):
        jc.plots.learning_curves(NEGATIVE, title="T", ylabel="loss", scale="cubic")
    with pytest.raises(ValueError, match='a number or "best"'):
        jc.plots.learning_curves(NEGATIVE, title="T", ylabel="loss", relative_to="worst")


def test_names_of_lines_that_diverged_are_kept() -> None:
    losses = {"SGD": np.array([[1.0, 2.0, np.nan, np.inf]]), "Adam": np.full((2, 4), np.nan)}
    (axes,) = jc.plots.learning_curves(losses, title="T", ylabel="loss").axes
    assert ends(axes)["SGD"] == (2.0, 2.0)
    adam: Any = next(text for text in axes.texts if text.get_text() == "Adam")
    assert np.isfinite(adam.xyann).all()


def test_distances_above_the_best_or_above_an_optimum() -> None:
    losses = {"SGD": np.array([[1.0, 0.31, 0.302]]), "Adam": np.array([[1.0, 0.31, 0.301]])}
    (axes,) = jc.plots.learning_curves(losses, title="T", ylabel="loss", relative_to="best").axes
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log", "loss - 0.301")
    lines: list[Any] = [np.ma.filled(np.ma.asarray(line.get_ydata(), float), np.nan) for line in axes.lines]
    sgd, adam = lines
    np.testing.assert_allclose(sgd, [0.699, 0.009, 0.001])
    np.testing.assert_allclose(adam, [0.699, 0.009, np.nan])  # the best itself has no logarithm
    assert ends(axes)["Adam"] == (2.0, pytest.approx(0.009))
    (axes,) = jc.plots.learning_curves(losses, title="T", ylabel="loss", relative_to=0.3).axes
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata(), float), [0.7, 0.01, 0.001])


def test_epochs_are_whole() -> None:
    figure = jc.plots.learning_curves(NEGATIVE, title="T", ylabel="loss")
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_rates_below_zero_keep_their_marks() -> None:
    losses = {"SGD": np.array([[0.4], [-0.7], [np.inf]]), "Adam": np.array([[0.2], [0.1], [0.3]])}
    (axes,) = jc.plots.rate_robustness(RATES[:3], losses, title="T", ylabel="loss", ceiling=2.3).axes
    assert (axes.get_yscale(), axes.get_xscale()) == ("linear", "log")
    marks = [np.asarray(line.get_xydata())[0].tolist() for line in axes.lines if line.get_marker() == "o"]
    assert marks == [[RATES[1], -0.7], [RATES[1], 0.1]]
    assert axes.get_ylim()[0] < -0.7
    with pytest.raises(ValueError, match="symlog"):
        jc.plots.rate_robustness(RATES[:3], losses, title="T", ylabel="loss", ceiling=2.3, scale="log")


def test_templates_show_the_rows_of_w() -> None:
    (axes,) = FIGURES["grey"]().axes
    picture: Any = np.ma.filled(np.ma.asarray(axes.images[0].get_array(), float), np.nan)
    for i, W in enumerate(GREY.values()):
        for j, template in enumerate(W):
            block = picture[5 * i : 5 * i + 4, 4 * j : 4 * j + 3]  # pictures of 4 x 3 and a gap of 1
            np.testing.assert_allclose(block, template.reshape(4, 3) / np.abs(template).max())
    assert [label.get_text() for label in axes.get_yticklabels()] == list(GREY)
    (axes,) = FIGURES["colour"]().axes
    shown = np.asarray(axes.images[0].get_array())
    for j, template in enumerate(COLOUR["SGD"]):
        block = shown[:4, 5 * j : 5 * j + 4]
        np.testing.assert_allclose(block, 0.5 + 0.5 * template.reshape(4, 4, 3) / np.abs(template).max())


def test_confusion_writes_the_counts() -> None:
    (axes,) = FIGURES["confusion"]().axes
    assert sorted(text.get_text() for text in axes.texts) == ["1", "5", "7"]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array(), float), np.array([[5 / 6, 1 / 6], [0, 1]]))


def test_steps_show_errors_theory_and_its_optimum() -> None:
    (axes,) = FIGURES["steps"]().axes
    lines: list[Any] = list(axes.lines)
    number = 0
    for dtype, methods in ERRORS.items():
        for method, errors in methods.items():
            theory, measured, tick = lines[3 * number : 3 * number + 3]
            np.testing.assert_allclose(theory.get_ydata(), PREDICTED[dtype][method])
            np.testing.assert_allclose(np.ma.filled(np.ma.asarray(measured.get_ydata()), np.nan), errors)
            np.testing.assert_allclose((tick.get_xdata()[0], tick.get_ydata()[0]), OPTIMA[dtype][method])
            assert tick.get_color() == measured.get_color() != theory.get_color()
            number += 1
    measured = lines[1::3]
    assert len({(line.get_color(), str(line._dash_pattern)) for line in measured}) == 4
    assert measured[0].get_color() == measured[1].get_color() != measured[2].get_color()  # colours are dtypes
    assert str(measured[0]._dash_pattern) == str(measured[2]._dash_pattern) != str(measured[1]._dash_pattern)
    texts = {text.get_text() for text in axes.texts}
    assert {"float32", "float64", "forward: slope +1.00", "central: slope -0.98"} <= texts
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    low, high = axes.get_ylim()
    assert low < 1e-11
    assert high > 10  # every finite error is in the picture


def test_costs_have_a_panel_for_each_unit_and_say_the_power() -> None:
    panels = FIGURES["costs"]().axes
    for axes, (unit, ways) in zip(panels, COSTS.items(), strict=True):
        assert axes.get_ylabel() == unit
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        lines: list[Any] = list(axes.lines)
        for line, costs in zip(lines, ways.values(), strict=True):
            np.testing.assert_allclose(line.get_xdata(), SIZES)
            np.testing.assert_allclose(line.get_ydata(), costs)
        assert len({str(line._dash_pattern) for line in lines}) == 2
    labels = [sorted(text.get_text() for text in axes.texts) for axes in panels]
    assert labels[0] == ["analytic\n$n^{0.00}$", "numerical\n$n^{1.00}$"]
    assert labels[1] == ["analytic\n$n^{1.00}$", "numerical\n$n^{2.00}$"]


def test_labels_do_not_overlap_when_lines_end_at_one_place() -> None:
    same = {f"name {i}": np.full((1, 3), 0.1) for i in range(7)}
    (axes,) = jc.plots.learning_curves(same, title="T", ylabel="loss").axes
    labels: list[Any] = list(axes.texts)
    heights = sorted(label.xyann[1] for label in labels)
    assert min(np.diff(heights)) > 0.06
    assert max(heights) <= 1.0 + 1e-9


def test_image_grid_shows_each_image_with_its_caption_and_frames_what_is_marked() -> None:
    (axes,) = FIGURES["images"]().axes
    shown: list[Any] = list(axes.images)
    every = [image for row in PICTURES for image in row]
    for picture, image in zip(shown, every, strict=True):
        np.testing.assert_allclose(picture.get_array(), image / 16)
        assert (picture.get_cmap().name, picture.get_clim()) == ("gray", (0, 1))
    lefts, rights, bottoms, tops = np.array([picture.get_extent() for picture in shown]).T
    np.testing.assert_allclose(rights - lefts, 1)
    np.testing.assert_allclose(bottoms - tops, 1)  # row 0 of an image is at the top
    assert axes.yaxis_inverted()
    assert (lefts[1] > rights[0], tops[3] > bottoms[0], lefts[3] == lefts[0]) == (True, True, True)
    captions: list[Any] = list(axes.texts)
    assert [text.get_text() for text in captions] == list("abcde")
    (frame,) = axes.patches
    assert frame.get_bbox().bounds == (lefts[1], tops[1], 1, 1)  # type: ignore[attr-defined]
    assert captions[1].get_color() != captions[0].get_color()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "1", "2"]


def test_image_grid_shows_colours_as_they_are() -> None:
    (axes,) = FIGURES["photographs"]().axes
    for picture, image in zip(axes.images, PHOTOGRAPHS[0], strict=True):
        np.testing.assert_allclose(np.asarray(picture.get_array()), image / 255)


def test_a_long_title_of_a_narrow_grid_is_wrapped() -> None:
    title = "Test images with a wrong nearest neighbour, and their six nearest (L2)"
    figure = jc.plots.image_grid([np.zeros((1, 4, 4))], names=["row"], top=1.0, title=title)
    figure.savefig(io.BytesIO(), dpi=50)
    shown = figure.axes[0].title
    assert shown.get_text().split() == title.split()
    assert shown.get_window_extent().width <= figure.bbox.width * 1.05
