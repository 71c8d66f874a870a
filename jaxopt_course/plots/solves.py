"""Figures of full-batch solves: excess over the minimum against cost, and coefficients under an L1 penalty."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxopt_course.plots.style import _dress, _log_scale, _note, line_styles

WAYS = np.array(  # directions from a dot to its name
    [(1, 0), (1, -0.7), (1, 0.7), (-1, -0.7), (-1, 0), (-1, 0.7), (0.7, 1.3), (0.7, -1.3), (0.4, 2), (0.4, -2)]
)
PLACES = np.concatenate([away * WAYS for away in (9, 14, 20, 28, 38, 50, 64, 80)])  # offsets of a name, in points
THREADED = 14  # names farther away than this are connected to their dot by a thin line
DOT, MARGIN = 4, 2  # radius of a dot in points; margin around a name in pixels
COLUMN = 6  # width of a column in pixels; columns are named from right to left, ends in a column from the top
WORSE, FAR = (
    5,
    0.15,
)  # costs of a connecting line over a name or dot, and of distance; a covered point of a line costs 1


def coefficient_paths(strengths: np.ndarray, coefficients: np.ndarray, *, title: str) -> Figure:
    """Plot coefficients against the strength of an L1 penalty, and below them the number of nonzero coefficients.

    Args:
      strengths: `[S]`, positive, in any order.
      coefficients: `[S, n]`.
      title: what is shown, and on which data.

    Returns:
      A figure with a logarithmic axis of strengths, the strongest penalty on the left.

    Example:
      >>> coefficients = np.array([[0.0, 0.0], [0.5, 0.0], [0.9, -0.3]])
      >>> figure = coefficient_paths(np.array([1.0, 0.1, 0.01]), coefficients, title="Two features")
      >>> upper, lower = figure.axes
      >>> lower.get_xlabel(), lower.lines[0].get_xdata().tolist(), lower.lines[0].get_ydata().tolist()
      ('strength', [1.0, 0.1, 0.01], [0, 1, 2])
    """
    order = np.argsort(-np.asarray(strengths, float))
    strengths, coefficients = np.asarray(strengths, float)[order], np.asarray(coefficients, float)[order]
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _dress(upper, title, "", "coefficient")
    _dress(lower, "", "strength", "not 0")
    moving = coefficients[:, np.any(coefficients != 0, axis=0)]
    final = moving[-1] if moving.size else np.zeros(0)
    colours = colormaps["coolwarm"](0.5 + 0.5 * final / max(np.abs(final).max(initial=0), np.finfo(float).tiny))
    for path, colour in zip(moving.T, colours, strict=True):
        upper.plot(strengths, path, color=colour, linewidth=0.8)
    upper.axhline(0, color="0.3", linewidth=0.8)
    lower.plot(strengths, np.sum(coefficients != 0, axis=1), color="0.2", marker="o", markersize=3)
    lower.set_ylim(bottom=0)
    _log_scale(lower, "x", decades=True)
    lower.invert_xaxis()
    return figure


def convergence_curves(
    excess: Mapping[str, np.ndarray],
    costs: Mapping[str, Mapping[str, np.ndarray]],
    *,
    title: str,
    ylabel: str,
    floor: float,
) -> Figure:
    """Plot the excess of each method over the minimum against its cost, with a panel for each unit of cost.

    Args:
      excess: name -> `[points]`, value minus minimum. Values that are not finite are left out; values below the floor
        are drawn at the floor.
      costs: unit -> name -> `[points]`, positive and ascending.
      title: what is minimised, and on which data.
      ylabel: which value, above what.
      floor: the least significant difference; drawn as a grey line if any method comes near it.

    Returns:
      A figure with logarithmic axes. A dot marks the end of each method, with its name beside it.

    Example:
      >>> excess = {"L-BFGS": np.array([1.0, 1e-3, 1e-9])}
      >>> costs = {"evaluations": {"L-BFGS": np.array([1, 4, 9])}, "seconds": {"L-BFGS": np.array([0.1, 0.2, 0.4])}}
      >>> figure = convergence_curves(excess, costs, title="Digits", ylabel="loss - minimum", floor=1e-15)
      >>> [axes.get_xlabel() for axes in figure.axes], figure.axes[0].texts[0].get_text()
      (['evaluations', 'seconds'], 'L-BFGS')
    """
    figure = Figure(figsize=(12.0, 5.4), layout="constrained")
    figure.suptitle(title)
    styles = line_styles(excess)
    heights = {n: np.maximum(np.ma.masked_invalid(np.asarray(v, float)), floor) for n, v in excess.items()}
    every = np.ma.concatenate(list(heights.values())).compressed()
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (unit, spent) in zip(panels, costs.items(), strict=True):
        _dress(axes, "", unit, ylabel if axes is panels[0] else "")
        _log_scale(axes, "x", decades=True)
        _log_scale(axes, "y", decades=True)
        for name, height in heights.items():
            axes.plot(spent[name], height, **styles[name])
        if every.size:
            axes.set_ylim(every.min() / 8, 3 * every.max())
            low, high = axes.get_xlim()
            high *= (high / low) ** 0.3  # space for names
            axes.set_xlim(low, high)
            if every.min() < 10 * floor:
                axes.plot((low, high), (floor, floor), color="0.6", lw=0.8, zorder=0)
                _note(axes, "no better can be told", (low, floor), (4, 2), color="0.4", size=8)
    figure.draw_without_rendering()  # fixes the positions in pixels
    for axes, spent in zip(panels, costs.values(), strict=True):
        _name_ends(axes, {name: _last(spent[name], height) for name, height in heights.items()}, styles)
    return figure


def _last(spent: np.ndarray, height: np.ma.MaskedArray) -> tuple[float, float] | None:
    """The last point of a line; None if it has no point."""
    drawn = np.flatnonzero(~np.ma.getmaskarray(height))
    return (float(spent[drawn[-1]]), float(height[drawn[-1]])) if len(drawn) else None


def _name_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float] | None], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw a dot at each end, and write each name where it covers the least of the lines, dots and earlier names."""
    points, frame = axes.figure.dpi / 72, axes.bbox
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    there = {name: end for name, end in ends.items() if end}
    spots = {name: np.asarray(axes.transData.transform(end)) for name, end in there.items()}
    dots = [spot + DOT * points * np.mgrid[-1:2, -1:2].reshape(2, -1).T for spot in spots.values()]
    taken = np.concatenate([np.zeros((0, 2)), *(_pixels(axes, line.get_xydata()) for line in axes.lines), *dots])
    for name in sorted(spots, key=lambda name: (-spots[name][0] // COLUMN, -spots[name][1])):
        color, end = styles[name]["color"], there[name]
        axes.plot(*end, "o", color=color, ms=5)
        label: Any = axes.annotate(name, end, (0, 0), textcoords="offset points", size=9, color=color, va="center")
        size = label.get_window_extent().size + 2 * MARGIN
        places = spots[name] + points * PLACES
        low = places - size * np.stack([PLACES[:, 0] < 0, np.full(len(PLACES), 0.5)], axis=1)
        threads = spots[name] + np.linspace(0, 1, 12)[:, None, None] * (places - spots[name])
        others = [
            (s - DOT * points, s + DOT * points) for s in spots.values() if max(abs(s - spots[name])) > DOT * points
        ]
        crossed = sum((_inside(threads, *box).sum(axis=0) for box in boxes + others), np.zeros(len(PLACES)))
        covered = _inside(taken[:, None], low, low + size).sum(axis=0)
        outside = np.any((low < frame.min) | (low + size > frame.max), axis=1)
        best = int(np.argmin(np.where(outside, np.inf, covered + WORSE * crossed + FAR * np.abs(PLACES).max(axis=1))))
        label.set_ha("right" if PLACES[best, 0] < 0 else "left")
        label.xyann = tuple(PLACES[best])
        if np.abs(PLACES[best]).max() > THREADED:
            thread = {"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", end, tuple(PLACES[best]), textcoords="offset points", arrowprops=thread)
        boxes.append((low[best], low[best] + size))
        grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 30)]), axis=-1).reshape(-1, 2)
        taken = np.concatenate([taken, low[best] + grid * size, threads[:, best]])


def _inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.all((low < points) & (points < high), axis=-1)


def _pixels(axes: Axes, places: Any) -> np.ndarray:
    """A line as points on the canvas that are three pixels apart."""
    corners = axes.transData.transform(np.ma.filled(np.ma.asarray(places, float), np.nan))
    corners = corners[np.isfinite(corners).all(axis=1)]
    if not len(corners):
        return corners
    walked = np.append(0, np.cumsum(np.hypot(*np.diff(corners, axis=0).T)))
    steps = np.arange(0, walked[-1] + 3, 3)
    return np.stack([np.interp(steps, walked, side) for side in corners.T], axis=1)
