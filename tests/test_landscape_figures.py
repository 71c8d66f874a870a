"""Figures of landscapes, made from tiny data: labelled, not blank, and true to the arrays they were given."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import jaxopt_course as jc
from jaxopt_course.landscape import GradientField

X, Y = np.linspace(-2, 2, 9), np.linspace(-1, 3, 7)
VALUES = 1.0 + X[None, :] ** 2 + 3 * Y[:, None] ** 2
GRADIENT = np.stack(np.broadcast_arrays(2 * X[None, :], 6 * Y[:, None]), axis=-1)
FIELD = GradientField(X, Y, VALUES, GRADIENT, GRADIENT + 0.1)
PATHS = {
    "SGD": np.array([[-1.5, 2.0], [-1.0, 0.5], [5.0, 0.0], [-0.5, 0.2]]),  # the third point is outside
    "Adam": np.array([[-1.5, 2.0], [-0.4, 1.0], [0.1, 0.1], [np.nan, np.nan]]),
}
ON_SURFACE = {name: np.column_stack([p, 1 + p[:, 0] ** 2 + 3 * p[:, 1] ** 2]) for name, p in PATHS.items()}
NOISY = np.random.default_rng(0).normal(size=(4, 5, 2)) / 4
COVARIANCE = np.array([[0.5, 0.1], [0.1, 0.2]])
RATES, RHOS = np.geomspace(0.01, 1, 5), np.linspace(0, 0.9, 3)
STEPS = np.array([[900.0, 90, 9, np.inf, np.inf], [800, 80, 8, 7, np.inf], [700, 70, 7, 6, np.nan]])
LABELS = np.array([[0, 0, 1], [0, 2, 1]])
MEASURED = {"SGD": np.array([[1.0, 10, 100], [2, 20, np.inf]]), "Newton": np.array([[1.0, 10, 100], [1, 1, 1]])}
THEORY = {"SGD": np.array([[1.0, 10, 100], [2.1, 21, 210]])}
MINIMIZERS = np.array([[0.0, 0.0], [1.0, 1.0]])

FIGURES: dict[str, Callable[[], Figure]] = {
    "arrows": lambda: jc.plots.gradient_arrows(FIELD, title="T"),
    "arrows alone": lambda: jc.plots.gradient_arrows(FIELD, title="T", contours=False),
    "heat": lambda: jc.plots.heat_map(FIELD, title="T"),
    "surface": lambda: jc.plots.surface_3d(FIELD, title="T", paths=ON_SURFACE),
    "paths": lambda: jc.plots.trajectories(FIELD, PATHS, title="T", minimizers=MINIMIZERS, dots=True),
    "ensemble": lambda: jc.plots.noisy_ensemble(FIELD, NOISY, NOISY.mean(axis=0), {2: COVARIANCE}, title="T"),
    "rates": lambda: jc.plots.learning_rate_map(
        RATES, RHOS, STEPS, title="T", other="rho", limit=0.2 * (1 + RHOS), best=(0.1, 0.45)
    ),
    "basins": lambda: jc.plots.basin_map(X[:3], Y[:2], LABELS, ["a", "b", "none"], title="T", minimizers=MINIMIZERS),
    "theory": lambda: jc.plots.beside_theory(
        {"left": (MEASURED, THEORY), "right": (THEORY, {})}, title="T", xlabel="condition", ylabel="steps"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_not_blank_and_labelled(name: str) -> None:
    figure, file = FIGURES[name](), io.BytesIO()
    figure.savefig(file, dpi=50)
    file.seek(0)
    assert imread(file)[..., :3].std() > 0.02
    assert "T" in (figure.get_suptitle(), *(axes.get_title() for axes in figure.axes))
    assert figure.axes[0].get_xlabel()
    assert figure.axes[0].get_ylabel()


def lines(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(line.get_xydata(), float) for line in figure.axes[0].lines]


def test_arrows_are_the_gradient() -> None:
    axes: Any = FIGURES["arrows"]().axes[0]
    (quiver,) = [c for c in axes.collections if hasattr(c, "U")]
    np.testing.assert_array_equal(quiver.get_offsets().reshape(7, 9, 2)[..., 0], np.broadcast_to(X, (7, 9)))
    arrows = np.stack([quiver.U, quiver.V], axis=-1).reshape(7, 9, 2)
    cell = np.array([X[1] - X[0], Y[1] - Y[0]])
    slopes, drawn = GRADIENT / cell, arrows / cell
    norms, lengths = np.linalg.norm(slopes, axis=-1), np.linalg.norm(drawn, axis=-1)
    np.testing.assert_allclose(lengths, np.sqrt(norms / norms.max()), atol=1e-12)  # the longest fills its cell
    np.testing.assert_allclose(drawn * norms[..., None], slopes * lengths[..., None], atol=1e-9)


def test_of_a_fine_grid_some_arrows_are_drawn() -> None:
    fine = jc.landscape.gradient_field(jc.surfaces.SURFACES["hill"], (50, 90))
    axes: Any = jc.plots.gradient_arrows(fine, title="T").axes[0]
    (quiver,) = [c for c in axes.collections if hasattr(c, "U")]
    assert quiver.U.size == 17 * 18


def test_heat_is_the_values_and_logarithmic_where_they_span_decades() -> None:
    mesh: Any = FIGURES["heat"]().axes[0].collections[0]
    np.testing.assert_array_equal(mesh.get_array().reshape(7, 9), VALUES)
    wide: Any = jc.plots.heat_map(FIELD, title="T", values=10.0 ** np.arange(63).reshape(7, 9)).axes[0].collections[0]
    assert (type(mesh.norm).__name__, type(wide.norm).__name__) == ("Normalize", "LogNorm")


def test_paths_leave_gaps_where_the_window_does_not_show_them() -> None:
    figure = FIGURES["paths"]()
    drawn = lines(figure)
    (stars,) = [points for points in drawn if len(points) == 2]
    np.testing.assert_array_equal(stars, MINIMIZERS)
    expected = PATHS["SGD"].copy()
    expected[2] = np.nan
    sgd, adam = (points for points in drawn if len(points) == 4)
    np.testing.assert_array_equal(sgd, expected)
    np.testing.assert_array_equal(adam, PATHS["Adam"])
    dots = [points[0].tolist() for points in drawn if len(points) == 1]
    assert dots == [[-1.5, 2.0], [-0.5, 0.2], [-1.5, 2.0], [0.1, 0.1]]  # the start and the last point shown, each
    assert {text.get_text() for text in figure.axes[0].texts} == set(PATHS)


def test_a_path_that_is_nowhere_in_the_window_is_no_error() -> None:
    figure = jc.plots.trajectories(FIELD, {"far": np.full((3, 2), 99.0)}, title="T")
    figure.draw_without_rendering()
    assert np.isnan(lines(figure)[0]).all()


def test_paths_on_the_surface() -> None:
    axes: Any = FIGURES["surface"]().axes[0]
    drawn: list[Any] = [np.ma.filled(np.ma.asarray(part, float), np.nan) for part in axes.lines[0].get_data_3d()]
    expected = ON_SURFACE["SGD"].copy()
    expected[2] = np.nan
    np.testing.assert_array_equal(np.column_stack(drawn), expected)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(PATHS)


@pytest.mark.parametrize("starts", [np.array([-1.5, 2.0]), np.array([[-1.5, 2.0], [1.0, 1.0]])])
def test_records_are_drawn_as_they_are(starts: np.ndarray) -> None:
    walked = jc.landscape.paths(lambda x, y: 1 + x**2 + 3 * y**2, jc.sgd(0.1), starts, 5)
    runs = walked.params.reshape(-1, 6, 2)
    flat = jc.plots.trajectories(FIELD, {"SGD": walked}, title="T")
    np.testing.assert_array_equal([line for line in lines(flat) if len(line) == 6], runs)
    axes: Any = jc.plots.surface_3d(FIELD, title="T", paths={"SGD": walked}).axes[0]
    lifted = [np.column_stack(line.get_data_3d()) for line in axes.lines if len(line.get_data_3d()[0]) == 6]
    np.testing.assert_array_equal(lifted, np.concatenate([runs, walked.values.reshape(-1, 6, 1)], axis=-1))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SGD"]
    if starts.ndim == 2:
        figure = jc.plots.noisy_ensemble(FIELD, walked, runs.mean(axis=0), {2: COVARIANCE}, title="T")
        np.testing.assert_array_equal(lines(figure)[0], runs[0])


def test_time_is_marked_along_paths_with_numbers_where_there_is_room() -> None:
    path = np.column_stack([np.linspace(-1.5, 1.5, 41), np.linspace(2.0, 0.0, 41)])
    stays = np.where(np.arange(41)[:, None] < 20, path, path[20])  # stands still from step 20 on
    figure = jc.plots.trajectories(FIELD, {"SGD": path, "Adam": stays}, title="T", every=10)
    texts: list[Any] = list(figure.axes[0].texts)
    numbers = [(text.get_text(), text.xy) for text in texts if text.get_text().isdigit()]
    assert [number for number, _ in numbers] == ["10", "20", "30", "40"]  # of the other the same points: left out
    for number, place in numbers:
        np.testing.assert_allclose(place, path[int(number)])
    marks = [points for points in lines(figure) if len(points) == 4]
    np.testing.assert_array_equal(marks, [path[10::10], stays[10::10]])


def test_an_ellipse_holds_95_percent() -> None:
    figure = FIGURES["ensemble"]()
    drawn = lines(figure)
    for path, line in zip(NOISY, drawn, strict=False):
        np.testing.assert_array_equal(line, path)
    np.testing.assert_array_equal(drawn[4], NOISY.mean(axis=0))
    away = drawn[5] - NOISY.mean(axis=0)[2]
    np.testing.assert_allclose(np.einsum("ti,ij,tj->t", away, np.linalg.inv(COVARIANCE), away), 5.991464547)  # chi^2, 2
    np.testing.assert_array_equal(drawn[6], NOISY[:, 2])
    assert [text.get_text() for text in figure.axes[0].texts] == ["step 2"]


def test_maps_are_white_where_it_never_came() -> None:
    figure = FIGURES["rates"]()
    mesh: Any = figure.axes[0].collections[0]
    shown = mesh.get_array().reshape(3, 5)
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~np.isfinite(STEPS))
    np.testing.assert_array_equal(shown.compressed(), STEPS[np.isfinite(STEPS)])
    limit, star = lines(figure)
    np.testing.assert_allclose(limit, np.column_stack([0.2 * (1 + RHOS), RHOS]))
    assert star.tolist() == [[0.1, 0.45]]
    assert figure.axes[0].get_xscale() == "log"


def test_basins_have_a_colour_each() -> None:
    figure = FIGURES["basins"]()
    mesh: Any = figure.axes[0].collections[0]
    np.testing.assert_array_equal(mesh.get_array().reshape(2, 3), LABELS)
    assert len({tuple(mesh.cmap(mesh.norm(label))) for label in range(3)}) == 3
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == ["a", "b", "none"]


def test_marks_are_measured_and_lines_are_theory() -> None:
    left, right = FIGURES["theory"]().axes
    drawn: list[Any] = list(left.lines)
    theory, measured, newton = drawn
    np.testing.assert_array_equal(theory.get_xydata().T, THEORY["SGD"])
    np.testing.assert_array_equal(measured.get_xydata().T, MEASURED["SGD"][:, :2])
    np.testing.assert_array_equal(newton.get_xydata().T, MEASURED["Newton"])
    assert theory.get_color() == measured.get_color() != newton.get_color()
    assert (theory.get_marker(), measured.get_marker(), measured.get_linewidth()) == ("None", "o", 0)
    assert newton.get_linewidth() > 0  # joined: there is no theory to compare it with
    assert {"SGD", "Newton"} <= {text.get_text() for text in left.texts}
    assert (left.get_title(), right.get_title()) == ("left", "right")
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")


def test_eight_curves_can_be_told_apart() -> None:
    many = {f"{i}": np.array([[1.0, 2.0], [i + 1.0, i + 2.0]]) for i in range(8)}
    axes = jc.plots.beside_theory({"": ({}, many)}, title="T", xlabel="x", ylabel="y").axes[0]
    drawn: list[Any] = list(axes.lines)
    assert len({line.get_color() for line in drawn}) == len({str(line._dash_pattern) for line in drawn}) == 8


@pytest.mark.parametrize("height", [1.5, 30.0, 1e4])
def test_an_axis_of_theory_has_at_least_two_numbers(height: float) -> None:
    line = np.array([[1.0, 10.0, 100.0], [2.0, 2 * height**0.5, 2 * height]])
    figure = jc.plots.beside_theory({"": ({}, {"SGD": line})}, title="T", xlabel="x", ylabel="y")
    figure.savefig(io.BytesIO(), dpi=50)
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    assert sum(bool(tick.label1.get_text()) and low <= tick.get_loc() <= high for tick in ticks) >= 2
