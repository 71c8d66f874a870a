"""Figures of landscapes: fields, maps of learning rates and of basins, and measurement beside theory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from jaxopt_course.landscape import GradientField
from jaxopt_course.looks import OKABE_ITO
from jaxopt_course.plots.style import _axes, _dress, _label_ends, _log_scale, _note, line_styles

LEVELS = 18  # contours
ARROWS = 21  # along each side
SQUARE = (7.4, 6.0)


def gradient_arrows(field: GradientField, *, title: str, contours: bool = True) -> Figure:
    """A surface as contours with its gradient as arrows, which point uphill and are longer where it is steeper.

    The length of an arrow is proportional to the root of the gradient's norm, and the longest fills its cell of the
    grid: so arrows do not cover one another where it is steep and can be seen where it is flat.

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
    cell = np.array([np.ptp(field.x) / max(1, X[some].shape[1] - 1), np.ptp(field.y) / max(1, X[some].shape[0] - 1)])
    slopes = field.gradient[some] / cell  # of a cell, so that the axes may have different units
    norms = np.linalg.norm(slopes, axis=-1, keepdims=True)
    longest = max(float(norms.max()), np.finfo(float).tiny)
    u, v = np.moveaxis(cell * slopes / np.sqrt(np.maximum(norms, np.finfo(float).tiny) * longest), -1, 0)
    keywords: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "pivot": "mid", "width": 0.003}
    axes.quiver(X[some], Y[some], u, v, color="#D55E00", **keywords)
    axes.set_xlabel("x\nlength of an arrow: root of the slope")
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
    joined = any(name not in theory for measured, theory in panels.values() for name in measured)
    note = "marks: measured; lines: theory" + "; thin lines only join marks without theory" * joined
    figure.supxlabel(note, size=9, color="0.3")
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


def _norm(values: Any, span: int = 100) -> Normalize:
    """Logarithmic where positive values span more than so many times."""
    low, high = float(np.min(values)), float(np.max(values))
    return LogNorm(low, high) if 0 < low < high / span else Normalize(low, high)
