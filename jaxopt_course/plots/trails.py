"""Figures of paths: over contours, on a surface in 3D, and ensembles of noisy paths beside theory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Stroke

from jaxopt_course.landscape import GradientField, Paths
from jaxopt_course.looks import OKABE_ITO
from jaxopt_course.plots.landscapes import SQUARE, _contours, _norm, _stars, _window
from jaxopt_course.plots.style import _axes, _label_ends, _note, line_styles

Path = np.ndarray | Paths
CROWDED = 0.035  # least distance between step numbers, as a share of the axes; nearer ones are left out


def trajectories(
    field: GradientField,
    paths: Mapping[str, Path],
    *,
    title: str,
    minimizers: np.ndarray | None = None,
    dots: bool = False,
    every: int | None = None,
) -> Figure:
    """Plot paths over contours, with a circle at each start, a dot at each end, and stars at the minimizers.

    Args:
      field: from `landscape.gradient_field`.
      paths: name -> `[steps, 2]`, or a record of `landscape.paths`. All runs of a record of several starts have the
        same style. Points that are outside the window or not finite are left out.
      title: which surface, and which settings.
      minimizers: `[k, 2]`.
      dots: whether to mark each step.
      every: if given, mark every `every` steps by a dot, with the number of steps if there is space.

    Returns:
      A figure.

    Example:
      >>> import jaxopt_course as jc
      >>> saddle = jc.surfaces.SURFACES["saddle"]
      >>> walked = {"SGD": jc.landscape.paths(saddle, jc.sgd(0.1), saddle.start, 60)}
      >>> figure = trajectories(jc.landscape.gradient_field(saddle), walked, title="Past a saddle", every=20)
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['20', '40', '60', 'SGD']
    """
    figure, axes = _axes(title, "x", "y", size=(9.0, 6.0))
    _contours(figure, axes, field, "")
    _stars(axes, minimizers)
    ends: dict[str, tuple[float, float]] = {}
    styles = line_styles(paths)
    for name, style in styles.items():
        for run in runs_of(paths[name]):
            path, end = _inside(field, run)
            axes.plot(*path.T, **style, marker="." if dots else "", ms=5)
            axes.plot(*path[:1].T, "o", mfc="white", mec="black", ms=7, zorder=4)
            axes.plot(*end[:, None], "o", color=style["color"], mec="white", ms=7, zorder=5)
            place = (float(end[0]), float(end[1])) if np.isfinite(end).all() else (field.x[-1], field.y[-1])
            ends.setdefault(name, place)
    _window(axes, field)
    if every is not None:
        _mark_time(axes, field, {n: _inside(field, runs_of(path)[0])[0] for n, path in paths.items()}, styles, every)
    _label_ends(figure, axes, ends, styles)
    return figure


def surface_3d(
    field: GradientField,
    *,
    title: str,
    paths: Mapping[str, Path] | None = None,
    view: tuple[int, int] = (35, -60),
) -> Figure:
    """Plot a surface in 3D with paths on it; the surface does not hide the paths.

    Args:
      field: from `landscape.gradient_field`.
      title: which surface, and which paths.
      paths: name -> a record of `landscape.paths`, or `[steps, 3]` with x, y and the surface's value. Points outside
        the window are left out. A circle marks the start, a dot the end.
      view: elevation and azimuth, in degrees.

    Returns:
      A figure.

    Example:
      >>> import jaxopt_course as jc
      >>> bowl = jc.surfaces.SURFACES["bowl_10"]
      >>> walked = {"SGD": jc.landscape.paths(bowl, jc.sgd(0.05), bowl.start, 60)}
      >>> figure = surface_3d(jc.landscape.gradient_field(bowl), title="A bowl", paths=walked)
      >>> len(figure.axes[0].lines[0].get_data_3d()[2])
      61
    """
    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    X, Y = np.meshgrid(field.x, field.y)
    axes.plot_surface(X, Y, field.values, cmap="Greys_r", alpha=0.75, lw=0, norm=_norm(field.values), zorder=1)
    styles = line_styles(paths or {})
    for name, lifted in (paths or {}).items():
        style = styles[name] | {"lw": 2.6}
        casing = [Stroke(linewidth=6, foreground="white"), Stroke()]
        for number, run in enumerate(runs_of(lifted, lift=True)):
            path, end = _inside(field, run)
            axes.plot(*path.T, **style, label="_" * (number > 0) + name, zorder=3, path_effects=casing)
            axes.plot(*path[:1].T, "o", mfc="white", mec="black", ms=7, zorder=5)
            axes.plot(*end[:, None], "o", color=style["color"], mec="white", ms=8, zorder=5)
    if paths:
        axes.legend(loc="upper left", handlelength=4, frameon=False)
    axes.view_init(*view)
    axes.set(title=title, xlabel="x", ylabel="y", zlabel="f(x, y)")
    axes.zaxis.labelpad = 12
    return figure


def noisy_ensemble(
    field: GradientField, paths: Path, mean: np.ndarray, covariances: Mapping[int, np.ndarray], *, title: str
) -> Figure:
    """Plot many noisy paths from one start, their mean by theory, and at some steps the ellipse that holds 95% of them.

    Args:
      field: from `landscape.gradient_field`.
      paths: `[runs, steps, 2]`, or a record of `landscape.paths` from several starts.
      mean: `[steps, 2]`, by theory.
      covariances: step -> `[2, 2]`, by theory.
      title: which surface, and which settings.

    Returns:
      A figure.

    Example:
      >>> import jaxopt_course as jc
      >>> field = jc.landscape.gradient_field(lambda x, y: x**2 + y**2, (5, 5), window=((-1.0, 1.0), (-1.0, 1.0)))
      >>> mean = np.linspace([0.9, 0.9], [0.0, 0.0], 4)
      >>> runs = mean + 0.01 * np.random.default_rng(0).standard_normal((5, 4, 2))
      >>> axes = noisy_ensemble(field, runs, mean, {3: 1e-4 * np.eye(2)}, title="Five runs").axes[0]
      >>> len(axes.lines), axes.texts[0].get_text()  # five runs, their mean, an ellipse, five points
      (8, 'step 3')
    """
    figure, axes = _axes(title, "x", "y", size=SQUARE)
    _contours(figure, axes, field, "")
    runs = runs_of(paths)
    for path in runs:
        axes.plot(*path.T, color=OKABE_ITO[0], lw=0.5, alpha=0.4)
    axes.plot(*mean.T, color="black", lw=2)
    circle = np.sqrt(-2 * np.log(0.05)) * np.stack([np.cos(turn := np.linspace(0, 2 * np.pi, 100)), np.sin(turn)])
    for step, covariance in covariances.items():
        values, vectors = np.linalg.eigh(covariance)
        ring = mean[step, :, None] + (vectors * np.sqrt(np.maximum(values, 0))) @ circle
        axes.plot(*ring, color=OKABE_ITO[1], lw=1.8)
        axes.plot(*np.stack([run[step] for run in runs]).T, ".", color=OKABE_ITO[1], ms=3, alpha=0.6)
        top = ring[:, np.argmax(ring[1])]
        _note(axes, f"step {step}", (float(top[0]), float(top[1])), (0, 4), ha="center", color=OKABE_ITO[1], size=10)
    _window(axes, field)
    return figure


def runs_of(path: Path, *, lift: bool = False) -> list[np.ndarray]:
    """The runs of a path, each `[steps, 2]`; with `lift`, runs of a record are `[steps, 3]` with the function value."""
    if isinstance(path, Paths):
        path = np.concatenate([path.params, np.expand_dims(path.values, -1)], axis=-1) if lift else path.params
    points = np.asarray(path, float)
    return list(points) if points.ndim == 3 else [points]


def _inside(field: GradientField, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The path with NaN at points outside the window, and its last point inside the window (or NaN)."""
    shown = np.isfinite(path).all(axis=1)
    shown &= (field.x[0] <= path[:, 0]) & (path[:, 0] <= field.x[-1])
    shown &= (field.y[0] <= path[:, 1]) & (path[:, 1] <= field.y[-1])
    path = np.where(shown[:, None], path, np.nan)
    return path, path[np.flatnonzero(shown)[-1] if shown.any() else 0]


def _mark_time(
    axes: Axes, field: GradientField, paths: Mapping[str, np.ndarray], styles: Mapping[str, Any], every: int
) -> None:
    """Draw a dot on each path after every `every` steps, and the number of steps if no other number is near."""
    corner, size = np.array([field.x[0], field.y[0]]), np.array([np.ptp(field.x), np.ptp(field.y)])
    numbers: list[np.ndarray] = []
    for name, path in paths.items():
        steps = np.arange(every, len(path), every)
        steps = steps[np.isfinite(path[steps]).all(axis=1)]
        color = styles[name]["color"]
        axes.plot(*path[steps].T, "o", color=color, mec="white", mew=0.6, ms=5, lw=0, zorder=4)
        for step in steps:
            spot = (path[step] - corner) / size
            if all(np.abs(spot - other).max() > CROWDED for other in numbers):
                numbers.append(spot)
                box = {"fc": "white", "ec": "none", "pad": 0.4, "alpha": 0.7}
                place = (float(path[step][0]), float(path[step][1]))
                _note(axes, str(step), place, (4, 4), color=color, size=8, bbox=box, zorder=6)
