"""Figures of landscapes: fields, maps of learning rates and of basins, and measurements beside theory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from jaxopt_course.landscape import GradientField
from jaxopt_course.looks import OKABE_ITO
from jaxopt_course.plots.style import _axes, _dress, _label_ends, _log_scale, _note, line_styles

LEVELS = 18  # number of contour levels
ARROWS = 21  # the most arrows along each side
SQUARE = (7.4, 6.0)


def gradient_arrows(field: GradientField, *, title: str, contours: bool = True) -> Figure:
    """Plot a surface as contours and its gradient as arrows, which point uphill.

    The length of an arrow is proportional to the square root of the gradient's norm, and the longest arrow fills its
    cell of the grid. Thus arrows do not overlap in steep regions and remain visible in flat regions.

    Args:
      field: from `landscape.gradient_field`. If its grid is finer than 21 x 21, only some arrows are drawn.
      title: which surface.
      contours: whether to draw contours under the arrows.

    Returns:
      A figure.

    Example:
      >>> import jaxopt_course as jc
      >>> field = jc.landscape.gradient_field(lambda x, y: x**2 + 3 * y**2, (5, 5), window=((-1.0, 1.0), (-1.0, 1.0)))
      >>> axes = gradient_arrows(field, title="A bowl", contours=False).axes[0]
      >>> (arrows,) = axes.collections
      >>> arrows.U.reshape(5, 5)[2].round(2).tolist()  # along y = 0, uphill is away from 0
      [-0.28, -0.2, 0.0, 0.2, 0.28]
    """
    figure, axes = _axes(title, "x", "y", size=SQUARE)
    if contours:
        _contours(figure, axes, field, "f(x, y)")
    rows, columns = (max(1, -(-n // ARROWS)) for n in field.values.shape)
    some = slice(rows // 2, None, rows), slice(columns // 2, None, columns)
    X, Y = np.meshgrid(field.x, field.y)
    cell = np.array([np.ptp(field.x) / max(1, X[some].shape[1] - 1), np.ptp(field.y) / max(1, X[some].shape[0] - 1)])
    slopes = field.gradient[some] / cell  # relative to a cell, so that the axes may have different units
    norms = np.linalg.norm(slopes, axis=-1, keepdims=True)
    longest = max(float(norms.max()), np.finfo(float).tiny)
    u, v = np.moveaxis(cell * slopes / np.sqrt(np.maximum(norms, np.finfo(float).tiny) * longest), -1, 0)
    keywords: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "pivot": "mid", "width": 0.003}
    axes.quiver(X[some], Y[some], u, v, color="#D55E00", **keywords)
    axes.set_xlabel("x\nlength of an arrow: root of the slope")
    return figure


def heat_map(field: GradientField, *, title: str, values: np.ndarray | None = None, label: str = "f(x, y)") -> Figure:
    """Plot a surface as colours, one colour for each point of its grid.

    Args:
      field: from `landscape.gradient_field`.
      title: which surface.
      values: `[rows, columns]`, values to draw instead of the surface's, such as the size of the field's error.
      label: what the colours show.

    Returns:
      A figure. If all values are positive and span more than two decades, the scale of colours is logarithmic.

    Example:
      >>> import jaxopt_course as jc
      >>> field = jc.landscape.gradient_field(lambda x, y: x**2 + y, (3, 4), window=((0.0, 3.0), (0.0, 2.0)))
      >>> figure = heat_map(field, title="A valley", label="height")
      >>> axes, colorbar = figure.axes
      >>> axes.collections[0].get_array().tolist()[0], colorbar.get_ylabel()
      ([0.0, 1.0, 4.0, 9.0], 'height')
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
    """Plot the number of steps to a target against the learning rate and another hyperparameter.

    Args:
      rates: `[rates]`, ascending.
      others: `[others]`, ascending values of the other hyperparameter.
      steps: `[others, rates]`, steps to the target; values that are not finite (target not reached) are white.
      title: which surface, and which target.
      other: name of the other hyperparameter.
      limit: `[others]`, the stability limit by theory.
      best: (rate, other), the optimum by theory.
      label: what the colours show.

    Returns:
      A figure with a logarithmic horizontal axis. If the steps span more than a decade, colours are logarithmic.

    Example:
      >>> steps = np.array([[40.0, 9.0, np.inf], [30.0, 7.0, 20.0]])
      >>> limit = np.array([0.2, 0.4])
      >>> figure = learning_rate_map(
      ...     np.array([0.01, 0.1, 1.0]), np.array([0.0, 0.9]), steps, title="A bowl", other="rho", limit=limit
      ... )
      >>> axes, colorbar = figure.axes
      >>> axes.get_xscale(), axes.get_ylabel(), axes.texts[0].get_text(), colorbar.get_ylabel()
      ('log', 'rho', 'stability limit', 'steps')
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
    """Plot the minimizer that a run from each start reaches: one colour for each minimizer, grey for none.

    Args:
      x: `[columns]`, coordinates of the starts.
      y: `[rows]`, coordinates of the starts.
      labels: `[rows, columns]`, integers: the index of the minimizer, or k for none of the k minimizers.
      names: k names of the minimizers, and one name for "none".
      title: which surface, optimizer and number of steps.
      minimizers: `[k, 2]`.

    Returns:
      A figure.

    Example:
      >>> x, y = np.linspace(-2.0, 2.0, 5), np.linspace(-1.0, 1.0, 3)
      >>> labels = np.tile([0, 0, 2, 1, 1], (3, 1))
      >>> wells = np.array([[-1.0, 0.0], [1.0, 0.0]])
      >>> axes, colorbar = basin_map(x, y, labels, ["left", "right", "none"], title="Basins", minimizers=wells).axes
      >>> [label.get_text() for label in colorbar.get_yticklabels()], axes.lines[0].get_xdata().tolist()
      (['left', 'right', 'none'], [-1.0, 1.0])
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
    """Plot measurements as marks and theory as lines of the same colour, with one panel for each case.

    Args:
      panels: name -> (measured, theory), each a mapping from the name of a curve to `(x[points], y[points])`; points
        that are not finite are left out. A measured curve without theory is joined by a thin line.
      title: what is shown, and on which data.
      xlabel: label of the horizontal axes.
      ylabel: label of the vertical axes.
      log_y: whether the vertical axis is logarithmic; the horizontal axis always is.

    Returns:
      A figure.

    Example:
      >>> t = np.array([1.0, 10.0, 100.0])
      >>> measured, theory = {"SGD": (t, 1.1 / t)}, {"SGD": (t, 1 / t)}
      >>> axes = beside_theory({"a bowl": (measured, theory)}, title="Decay", xlabel="step", ylabel="f").axes[0]
      >>> [(str(line.get_marker()), line.get_color()) for line in axes.lines]
      [('None', '#0072B2'), ('o', '#0072B2')]
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
        for which in "xy" if log_y else "x":
            low, high = getattr(axes, f"get_{which}lim")()
            if high < 100 * low:  # powers of ten alone would be one tick, or none
                _log_scale(axes, which)
        _label_ends(figure, axes, ends, styles)
    return figure


def _contours(figure: Figure, axes: Axes, field: GradientField, label: str) -> None:
    low, high = float(field.values.min()), float(field.values.max())
    steep = high - low > 150 * (float(np.quantile(field.values, 0.1)) - low)  # a narrow valley
    levels = low + (high - low) * np.linspace(0, 1, LEVELS) ** (6 if steep else 2)  # denser near the minimum
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
    """A logarithmic norm if all values are positive and span more than a factor of `span`, else a linear one."""
    low, high = float(np.min(values)), float(np.max(values))
    return LogNorm(low, high) if 0 < low < high / span else Normalize(low, high)
