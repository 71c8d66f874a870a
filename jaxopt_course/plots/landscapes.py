"""Figures of landscapes: fields, paths, maps of learning rates and of basins, and measurement beside theory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from jaxopt_course.landscape import GradientField
from jaxopt_course.plots.style import OKABE_ITO, _axes, _dress, _label_ends, _log_scale, _note, line_styles

LEVELS = 18  # contours
ARROWS = 21  # along each side
SQUARE = (7.4, 6.0)


def gradient_arrows(field: GradientField, *, title: str, contours: bool = True) -> Figure:
    """A surface as contours with its gradient as arrows, which point uphill and are as long as it is steep.

    Args:
      field: from `landscape.gradient_field`; of a finer grid than 21 x 21 only some arrows are drawn.
      title: which surface.
      contours: whether to draw them under the arrows.

    Returns:
      A figure.
    """
    figure, axes = _axes(title, "x", "y", size=SQUARE)
    if contours:
        _contours(figure, axes, field, "f(x, y)")
    rows, columns = (max(1, -(-n // ARROWS)) for n in field.values.shape)
    some = slice(rows // 2, None, rows), slice(columns // 2, None, columns)
    X, Y = np.meshgrid(field.x, field.y)
    u, v = np.moveaxis(field.gradient[some], -1, 0)
    axes.quiver(X[some], Y[some], u, v, color="#D55E00", angles="xy", width=0.003)
    return figure


def heat_map(field: GradientField, *, title: str, values: np.ndarray | None = None, label: str = "f(x, y)") -> Figure:
    """A surface as colours, one for each point of its grid.

    Args:
      field: from `landscape.gradient_field`.
      title: which surface.
      values: `[rows, columns]`, drawn in place of the surface's own, such as the size of the field's error.
      label: what the colours are.

    Returns:
      A figure; the scale of colours is logarithmic where positive values span more than two decades.
    """
    shown = np.asarray(field.values if values is None else values)
    figure, axes = _axes(title, "x", "y", size=SQUARE)
    mesh = axes.pcolormesh(field.x, field.y, shown, cmap="viridis", norm=_norm(shown), shading="nearest")
    figure.colorbar(mesh, ax=axes, label=label)
    return figure


def surface_3d(
    field: GradientField,
    *,
    title: str,
    paths: Mapping[str, np.ndarray] | None = None,
    view: tuple[int, int] = (35, -60),
) -> Figure:
    """A surface in space, with paths on it.

    Args:
      field: from `landscape.gradient_field`.
      title: which surface, and whose paths.
      paths: name -> `[steps, 3]`: x, y and the surface's value there; points outside the window are left out.
      view: elevation and azimuth, degrees.

    Returns:
      A figure.
    """
    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    X, Y = np.meshgrid(field.x, field.y)
    axes.plot_surface(X, Y, field.values, cmap="Greys_r", alpha=0.75, lw=0, norm=_norm(field.values), zorder=1)
    for name, style in line_styles(paths or {}).items():
        path, end = _inside(field, np.asarray((paths or {})[name], float))
        axes.plot(*path.T, **style, label=name, zorder=3)
        axes.plot(*end[:, None], "o", color=style["color"], zorder=4)
    if paths:
        axes.legend(loc="upper left", handlelength=4, frameon=False)
    axes.view_init(*view)
    axes.set(title=title, xlabel="x", ylabel="y", zlabel="f(x, y)")
    axes.zaxis.labelpad = 12
    return figure


def trajectories(
    field: GradientField,
    paths: Mapping[str, np.ndarray],
    *,
    title: str,
    minimizers: np.ndarray | None = None,
    dots: bool = False,
) -> Figure:
    """Paths over contours: a circle where they start, a dot where each ends, stars at the minimizers.

    Args:
      field: from `landscape.gradient_field`.
      paths: name -> `[steps, 2]`; points outside the window, or not finite, are left out.
      title: which surface, and which settings.
      minimizers: `[k, 2]`.
      dots: whether each step is marked.

    Returns:
      A figure.
    """
    figure, axes = _axes(title, "x", "y", size=(9.0, 6.0))
    _contours(figure, axes, field, "")
    _stars(axes, minimizers)
    ends, styles = {}, line_styles(paths)
    for name, style in styles.items():
        path, end = _inside(field, np.asarray(paths[name], float))
        axes.plot(*path.T, **style, marker="." if dots else "", ms=5)
        axes.plot(*path[:1].T, "o", mfc="white", mec="black", ms=7, zorder=4)
        axes.plot(*end[:, None], "o", color=style["color"], mec="white", ms=7, zorder=5)
        ends[name] = (float(end[0]), float(end[1])) if np.isfinite(end).all() else (field.x[-1], field.y[-1])
    _window(axes, field)
    _label_ends(figure, axes, ends, styles)
    return figure


def noisy_ensemble(
    field: GradientField, paths: np.ndarray, mean: np.ndarray, covariances: Mapping[int, np.ndarray], *, title: str
) -> Figure:
    """Many noisy paths from one start, their mean by theory, and the ellipse that holds 95% of them at some steps.

    Args:
      field: from `landscape.gradient_field`.
      paths: `[runs, steps, 2]`.
      mean: `[steps, 2]`, by theory.
      covariances: step -> `[2, 2]`, by theory.
      title: which surface, and which settings.

    Returns:
      A figure.
    """
    figure, axes = _axes(title, "x", "y", size=SQUARE)
    _contours(figure, axes, field, "")
    for path in paths:
        axes.plot(*path.T, color=OKABE_ITO[0], lw=0.5, alpha=0.4)
    axes.plot(*mean.T, color="black", lw=2)
    circle = np.sqrt(-2 * np.log(0.05)) * np.stack([np.cos(turn := np.linspace(0, 2 * np.pi, 100)), np.sin(turn)])
    for step, covariance in covariances.items():
        values, vectors = np.linalg.eigh(covariance)
        ring = mean[step, :, None] + (vectors * np.sqrt(np.maximum(values, 0))) @ circle
        axes.plot(*ring, color=OKABE_ITO[1], lw=1.8)
        axes.plot(*paths[:, step].T, ".", color=OKABE_ITO[1], ms=3, alpha=0.6)
        top = ring[:, np.argmax(ring[1])]
        _note(axes, f"step {step}", (float(top[0]), float(top[1])), (0, 4), ha="center", color=OKABE_ITO[1], size=10)
    _window(axes, field)
    return figure


def learning_rate_map(
    rates: np.ndarray,
    others: np.ndarray,
    steps: np.ndarray,
    *,
    title: str,
    other: str,
    limit: np.ndarray | None = None,
    best: tuple[float, float] | None = None,
    label: str = "steps",
) -> Figure:
    """How many steps it takes at each learning rate and each value of another hyperparameter.

    Args:
      rates: `[rates]`, ascending.
      others: `[others]`, ascending.
      steps: `[others, rates]`; white where it is not finite: it never came there.
      title: which surface, and how near is there.
      other: the name of the other hyperparameter.
      limit: `[others]`, the stability limit by theory.
      best: (rate, other), the optimum by theory.
      label: what the colours are.

    Returns:
      A figure with a logarithmic horizontal axis; colours are logarithmic where steps span more than a decade.
    """
    figure, axes = _axes(title, "learning rate", other, size=(8.0, 5.4))
    shown = np.ma.masked_invalid(np.asarray(steps, float))
    mesh = axes.pcolormesh(
        rates, others, shown, cmap="viridis_r", norm=_norm(shown, 10), shading="nearest", rasterized=True
    )
    figure.colorbar(mesh, ax=axes, label=label, format="{x:g}")
    axes.set_xscale("log")
    bounds = axes.get_xlim(), axes.get_ylim()
    if limit is not None:
        axes.plot(limit, others, color="#D55E00", lw=2.2)
        middle = len(others) // 2
        box = {"fc": "white", "ec": "none", "pad": 1, "alpha": 0.8}
        place = (float(limit[middle]), float(others[middle]))
        _note(axes, "stability limit", place, (8, 0), color="#D55E00", size=10, bbox=box)
    if best is not None:
        axes.plot(*best, "*", color="white", mec="black", ms=15)
    axes.set(xlim=bounds[0], ylim=bounds[1])
    return figure


def basin_map(
    x: np.ndarray, y: np.ndarray, labels: np.ndarray, names: Sequence[str], *, title: str, minimizers: np.ndarray
) -> Figure:
    """To which minimizer each start leads: one colour for each, grey where it leads to none.

    Args:
      x: `[columns]`, of the starts.
      y: `[rows]`.
      labels: `[rows, columns]`, integers: k for none of k minimizers.
      names: k names of the minimizers, and one of none.
      title: which surface, optimizer and number of steps.
      minimizers: `[k, 2]`.

    Returns:
      A figure.
    """
    figure, axes = _axes(title, "x", "y", size=SQUARE)
    kinds = len(names)
    colors = ListedColormap([*[OKABE_ITO[i % len(OKABE_ITO)] for i in range(kinds - 1)], "0.75"])
    norm = BoundaryNorm(np.arange(kinds + 1) - 0.5, kinds)
    mesh = axes.pcolormesh(x, y, labels, cmap=colors, norm=norm, shading="nearest", rasterized=True)
    bar = figure.colorbar(mesh, ax=axes, ticks=range(kinds))
    bar.ax.set_yticklabels(names)
    bar.ax.tick_params(length=0)
    _stars(axes, minimizers)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    return figure


def beside_theory(
    panels: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log_y: bool = True,
) -> Figure:
    """What was measured as marks, what theory says as lines of the same colour: a panel for each case.

    Args:
      panels: name -> (measured, theory), each name of a curve -> `(x[points], y[points])`; what is not finite is left
        out. Curves of both have the same colour; a measured one without theory is joined by a thin line.
      title: what is shown, and on which data.
      xlabel: of all panels.
      ylabel: of all panels.
      log_y: whether the vertical axis is logarithmic, as the horizontal one is.

    Returns:
      A figure.
    """
    figure = Figure(figsize=(1.4 + 5.6 * len(panels), 5.0), layout="constrained")
    figure.suptitle(title)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    figure.supxlabel("marks: measured; lines: theory", size=9, color="0.3")
    styles = line_styles(name for panel in panels.values() for curves in panel for name in curves)
    for axes, (panel, (measured, theory)) in zip(row, panels.items(), strict=True):
        _dress(axes, panel, xlabel, ylabel if axes is row[0] else "")
        _log_scale(axes, "x", decades=True)
        if log_y:
            _log_scale(axes, "y", decades=True)
        ends = {}
        for name in dict.fromkeys([*measured, *theory]):
            style = styles[name]
            for curves, look in (
                (theory, style),
                (measured, {"color": style["color"], "marker": "o", "ms": 5, "lw": 0}),
            ):
                if name not in curves:
                    continue
                if curves is measured and name not in theory:
                    look = {**look, "lw": 0.8, "linestyle": style["linestyle"]}
                points = np.asarray(curves[name], float)
                points = points[:, np.isfinite(points).all(axis=0)]
                axes.plot(*points, **look)
                if points.size:
                    ends[name] = (float(points[0, -1]), float(points[1, -1]))
                else:
                    ends.pop(name, None)
        _label_ends(figure, axes, ends, styles)
    return figure


def _contours(figure: Figure, axes: Axes, field: GradientField, label: str) -> None:
    low, high = float(field.values.min()), float(field.values.max())
    steep = high - low > 150 * (float(np.quantile(field.values, 0.1)) - low)  # a narrow valley
    levels = low + (high - low) * np.linspace(0, 1, LEVELS) ** (6 if steep else 2)  # closer together at the bottom
    greys = [str(grey) for grey in np.linspace(0.78, 1, LEVELS - 1)]
    shown = axes.contourf(field.x, field.y, field.values, levels, colors=greys)
    axes.contour(field.x, field.y, field.values, levels, colors="0.6", linewidths=0.6, linestyles="solid")
    if label:
        figure.colorbar(shown, ax=axes, label=label, format="{x:.3g}")
    _window(axes, field)


def _window(axes: Axes, field: GradientField) -> None:
    axes.set(xlim=(field.x[0], field.x[-1]), ylim=(field.y[0], field.y[-1]))


def _stars(axes: Axes, minimizers: np.ndarray | None) -> None:
    if minimizers is not None and len(minimizers):
        axes.plot(*np.asarray(minimizers).T, "*", color="white", mec="black", ms=14, lw=0, zorder=3)


def _inside(field: GradientField, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The path, with gaps where the window does not show it, and the last point that it shows (or NaN)."""
    shown = np.isfinite(path).all(axis=1)
    shown &= (field.x[0] <= path[:, 0]) & (path[:, 0] <= field.x[-1])
    shown &= (field.y[0] <= path[:, 1]) & (path[:, 1] <= field.y[-1])
    path = np.where(shown[:, None], path, np.nan)
    return path, path[np.flatnonzero(shown)[-1] if shown.any() else 0]


def _norm(values: Any, span: int = 100) -> Normalize:
    """Logarithmic where positive values span more than so many times."""
    low, high = float(np.min(values)), float(np.max(values))
    return LogNorm(low, high) if 0 < low < high / span else Normalize(low, high)
