"""Figures of sweeps and races: learning curves, losses against hyperparameters, and intervals of differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxopt_course.plots.style import _axes, _label_ends, _log_scale, _note, line_styles
from jaxopt_course.sweeps import RaceResult, SweepResult

WIDE, FAR = 4, 100  # spans from which on an axis is logarithmic: of positive values, and relative to the typical size


def learning_curves(
    losses: Mapping[str, np.ndarray] | SweepResult,
    *,
    title: str = "",
    xlabel: str = "epoch",
    ylabel: str = "minibatch loss, epoch mean",
    scale: str | None = None,
    relative_to: float | str | None = None,
) -> Figure:
    """Plot losses against time, one line for each name: the median over seeds, with a band from minimum to maximum.

    Args:
      losses: name -> `[seeds, times]`, times counted from 1; values that are not finite are left out. For a
        `SweepResult`: the best point of each method, averaged over each epoch.
      title: what is shown, and on which data.
      xlabel: the unit of time.
      ylabel: which loss.
      scale: scale of the vertical axis: "log", "linear" or "symlog" (linear around 0, logarithmic beyond). Default:
        "log" if all values are positive and span a factor of 4, "symlog" if they are not all positive and the largest
        is more than 100 times the typical size, else "linear".
      relative_to: plot the distance above this value, such as a known optimum, instead of the loss. "best" is the
        lowest loss of any run, which itself is left out if the axis is logarithmic. This distinguishes curves that end
        close to one another.

    Returns:
      A figure. If no value of a name is finite, the name is beside the top, without a line.

    Raises:
      ValueError: the axis is logarithmic and not all values are positive, or the scale or the reference is unknown.

    Example:
      >>> losses = {"SGD": np.array([[2.0, 0.5, -0.8]]), "Adam": np.array([[2.0, 0.1, -0.9]])}
      >>> learning_curves(losses, title="digits", ylabel="negative log likelihood").axes[0].get_yscale()
      'linear'
      >>> axes = learning_curves(losses, title="digits", ylabel="loss", relative_to="best").axes[0]
      >>> axes.get_yscale(), axes.get_ylabel()
      ('log', 'loss - (-0.9)')
    """
    if isinstance(losses, SweepResult):
        losses = {label: losses.epoch_loss(label) for label in losses.labels}
    drawn = {name: np.ma.masked_invalid(np.atleast_2d(np.asarray(v, float))) for name, v in losses.items()}
    if relative_to is not None:
        drawn, reference = _above(drawn, relative_to)
        ylabel += f" - ({reference:.6g})" if reference < 0 else f" - {reference:.6g}"
        if relative_to == "best" and scale in (None, "log"):
            drawn = {name: np.ma.masked_less_equal(values, 0) for name, values in drawn.items()}
    figure, axes = _axes(title, xlabel, ylabel)
    _loss_scale(axes, list(drawn.values()), scale)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends, styles = {}, line_styles(losses)
    for name, values in drawn.items():
        times, middle, style = np.arange(1, values.shape[1] + 1), np.ma.median(values, axis=0), styles[name]
        axes.fill_between(times, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, lw=0)
        axes.plot(times, middle, marker="o" if middle.count() == 1 else None, **style)
        ends[name] = _last(times, middle)
    _label_ends(figure, axes, ends, styles)
    return figure


def rate_robustness(
    rates: np.ndarray | SweepResult,
    losses: Mapping[str, np.ndarray] | None = None,
    *,
    title: str = "",
    ylabel: str = "final training loss",
    ceiling: float | None = None,
    scale: str | None = None,
    name: str = "learning_rate",
) -> Figure:
    """Plot the final loss against the learning rate, with the best rates marked.

    A method with a wide valley is robust to the choice of the rate; a method with a narrow valley is not.

    Args:
      rates: `[rates]`, ascending; or a `SweepResult`, which contains the losses too. They are then shown at the best
        settings of the other hyperparameters.
      losses: name -> `[rates, seeds]`. The line is the mean over seeds. A run that diverged (a value that is not
        finite, or above the ceiling) counts as the ceiling.
      title: what is shown, and on which data.
      ylabel: which loss.
      ceiling: the largest loss in the figure. Default for a `SweepResult`: the mean loss at the start.
      scale: scale of the vertical axis, as for `learning_curves`.
      name: for a `SweepResult`, the hyperparameter on the horizontal axis.

    Returns:
      A figure with a logarithmic horizontal axis.

    Raises:
      ValueError: the axis is logarithmic and not all values are positive, the scale is unknown, or an argument is
        missing.

    Example:
      >>> losses = {"SGD": np.array([[0.4], [-0.7], [np.inf]])}
      >>> figure = rate_robustness(np.array([0.01, 0.1, 1.0]), losses, title="digits", ylabel="loss", ceiling=2.3)
      >>> figure.axes[0].get_yscale(), figure.axes[0].lines[1].get_xydata().tolist()
      ('linear', [[0.1, -0.7]])
    """
    if isinstance(rates, SweepResult):
        ceiling = float(rates.start_loss.mean()) if ceiling is None else ceiling
        valleys = {label: rates.profile(label, name) for label in rates.labels}
    elif losses is None or ceiling is None:
        raise ValueError("rate_robustness: give rates, losses and ceiling, or a SweepResult")
    else:
        valleys = {label: (np.asarray(rates), np.asarray(of_rule, float)) for label, of_rule in losses.items()}
    figure, axes = _axes(title, name.replace("_", " "), ylabel)
    every = np.concatenate([tried for tried, _ in valleys.values()])
    if every.min() > 0:
        _log_scale(axes, "x")
    means = {n: np.minimum(np.where(np.isfinite(v), v, ceiling), ceiling).mean(axis=1) for n, (_, v) in valleys.items()}
    _loss_scale(axes, [*means.values(), np.array([ceiling])], scale)
    ends, styles = {}, line_styles(means)
    for label, mean in means.items():
        tried = valleys[label][0]
        axes.plot(tried, mean, **styles[label])
        lowest = int(np.argmin(mean))
        axes.plot(tried[lowest], mean[lowest], "o", color=styles[label]["color"], ms=7, mec="white")
        ends[label] = (float(tried[-1]), float(mean[-1]))
    axes.axhline(ceiling, color="0.6", lw=0.8)
    _note(axes, "diverged or worse", (every.min(), ceiling), (0, 4), color="0.4")
    _label_ends(figure, axes, ends, styles)
    return figure


def expected_best(result: SweepResult, *, title: str = "", ylabel: str = "expected best training loss") -> Figure:
    """Plot the expected loss of the best of k random trials, one line for each method.

    The figure shows how much tuning a method needs.

    Args:
      result: result of a sweep, preferably over random points, because these are exchangeable. The loss of a point is
        its mean over seeds.
      title: what is shown, and on which data.
      ylabel: which loss.

    Returns:
      A figure.

    Example:
      >>> from jaxopt_course.sweeps import MethodResult, Points
      >>> loss, ones = np.array([[0.9], [0.3], [0.5]]), np.ones((3, 1), int)
      >>> points = Points(learning_rate=[0.01, 1.0, 0.1])
      >>> method = MethodResult(points, loss, 0 * ones, ones, loss[..., None], None, best=1, params=None)
      >>> result = SweepResult({"SGD": method}, 1, 1, np.zeros(0, int), np.ones(1), "none")  # as from `jc.sweep`
      >>> axes = expected_best(result, title="A bowl").axes[0]
      >>> axes.get_xlabel(), axes.lines[0].get_xdata().tolist(), [text.get_text() for text in axes.texts]
      ('points tried', [1, 2, 3], ['SGD'])

    Source: Dodge et al. (2019), "Show your work: improved reporting of experimental results", EMNLP.
    """
    figure, axes = _axes(title, "points tried", ylabel)
    lines = {label: result.expected_best(label) for label in result.labels}
    _loss_scale(axes, [*lines.values()], None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    styles = line_styles(lines)
    for label, values in lines.items():
        axes.plot(np.arange(1, len(values) + 1), values, **styles[label])
    _label_ends(figure, axes, {n: (float(len(v)), float(v[-1])) for n, v in lines.items()}, styles)
    return figure


def race_intervals(result: RaceResult, *, title: str = "", reference: str | None = None) -> Figure:
    """Plot the differences in loss between all methods and a reference on fresh seeds, with their intervals.

    If an interval does not contain 0, the race has shown a difference. If it does, its dot is open.

    Args:
      result: result of a race.
      title: what is shown, and on which data.
      reference: the method at 0; by default the method with the lowest mean loss.

    Returns:
      A figure with one row for each method, best first.

    Example:
      >>> from jaxopt_course.sweeps import MethodResult, Points
      >>> def one_point(*losses):
      ...     loss, ones = np.array([losses]), np.ones((1, len(losses)), int)
      ...     return MethodResult(Points(learning_rate=[0.1]), loss, 0 * ones, ones, loss[..., None], None, 0, None)
      >>> methods = {"SGD": one_point(0.5, 0.6, 0.4), "Adam": one_point(0.2, 0.31, 0.09)}
      >>> sweep = SweepResult(methods, 1, 1, np.zeros(0, int), np.ones(3), "none")
      >>> axes = race_intervals(RaceResult(sweep, sweep, None, num_pairs=1)).axes[0]  # as from `jc.race`
      >>> [label.get_text() for label in axes.get_yticklabels()], axes.get_xlabel()
      (['Adam', 'SGD'], 'loss minus that of Adam')
    """
    order = [label for group in result.ranking for label in group]
    reference = order[0] if reference is None else reference
    figure, axes = _axes(title, f"loss minus that of {reference}", "", size=(8.0, 1.4 + 0.45 * len(order)))
    styles = line_styles(result.labels)
    for row, label in enumerate(order):
        style = {"color": styles[label]["color"], "lw": 2.2}
        if label == reference:
            axes.plot(0, row, "D", color=style["color"], ms=7)
            continue
        comparison = result.compare(label, reference)
        if not np.isfinite(comparison.difference):
            _note(axes, "diverged", (0.0, float(row)), (8, -4), color=style["color"])
            continue
        axes.plot(comparison.interval, (row, row), solid_capstyle="butt", **style)
        face = "white" if comparison.better is None else style["color"]
        axes.plot(comparison.difference, row, "o", color=style["color"], mfc=face, ms=8, mew=2)
    axes.axvline(0, color="0.6", lw=0.8, zorder=0)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(len(order) - 0.5, -0.5)
    return figure


def hyperparameter_map(
    result: SweepResult, label: str, across: str, up: str, *, title: str = "", ceiling: float | None = None
) -> Figure:
    """Plot the final loss against two hyperparameters of a method: cells for a grid, dots for random points.

    If the method has more hyperparameters, the best of their points is shown. A cross marks a point that diverged or is
    no better than the ceiling; a ring marks the best point.

    Args:
      result: result of a sweep.
      label: the method.
      across: the hyperparameter on the horizontal axis.
      up: the hyperparameter on the vertical axis.
      title: what is shown, and on which data.
      ceiling: the loss at which the colours end; by default the mean loss at the start.

    Returns:
      A figure.

    Example:
      >>> from jaxopt_course.sweeps import MethodResult, Points
      >>> loss, ones = np.array([[0.9], [0.3], [0.5], [2.0]]), np.ones((4, 1), int)
      >>> points = Points(learning_rate=[0.01, 0.01, 0.1, 0.1], rho=[0.0, 0.9, 0.0, 0.9])
      >>> method = MethodResult(points, loss, 0 * ones, ones, loss[..., None], None, best=1, params=None)
      >>> result = SweepResult({"Momentum": method}, 1, 1, np.zeros(0, int), np.ones(1), "none")  # as from `jc.sweep`
      >>> axes = hyperparameter_map(result, "Momentum", "learning_rate", "rho").axes[0]
      >>> axes.get_xlabel(), [label.get_text() for label in axes.get_yticklabels()]
      ('learning rate', ['0', '0.9'])
      >>> cross, ring = axes.lines
      >>> cross.get_xydata().tolist(), ring.get_xydata().tolist()  # (column, row) of the worst and the best point
      ([[1.0, 1.0]], [[0.0, 1.0]])
    """
    points, means = result.points(label), result.loss(label).mean(axis=1)
    ceiling = float(result.start_loss.mean()) if ceiling is None else ceiling
    cells: dict[tuple[float, float], float] = {}
    for x, y, mean in zip(points[across], points[up], means, strict=True):
        cells[float(x), float(y)] = min(float(mean), cells.get((float(x), float(y)), np.inf))
    (x, y), losses = np.array([*cells]).T, np.array([*cells.values()])
    fine = losses < ceiling
    figure, axes = _axes(title, across.replace("_", " "), up.replace("_", " "), size=(6.8, 5.2))
    wide = fine.any() and losses[fine].min() > 0 and losses[fine].max() > WIDE * losses[fine].min()
    norm = (LogNorm if wide else Normalize)(*((losses[fine].min(), losses[fine].max()) if fine.any() else (0, 1)))
    columns, rows = np.unique(x), np.unique(y)
    is_grid = len(cells) == len(columns) * len(rows) and min(len(columns), len(rows)) > 1
    if is_grid:  # cells of equal size, labelled with their values
        x, y = np.searchsorted(columns, x), np.searchsorted(rows, y)
        picture = np.full((len(rows), len(columns)), np.nan)
        picture[y[fine], x[fine]] = losses[fine]
        drawn: Any = axes.imshow(picture, norm=norm, cmap="viridis_r", origin="lower", aspect="auto")
        axes.set_xticks(range(len(columns)), [f"{value:.3g}" for value in columns], rotation=45, ha="right")
        axes.set_yticks(range(len(rows)), [f"{value:.3g}" for value in rows])
    else:
        drawn = axes.scatter(x[fine], y[fine], c=losses[fine], norm=norm, cmap="viridis_r", s=60)
        for values, which in ((x, "x"), (y, "y")):
            if values.min() > 0 and values.max() > FAR * values.min():
                _log_scale(axes, which, decades=True)
    axes.plot(x[~fine], y[~fine], "x", color="0.5", ms=7, mew=1.5)
    if fine.any():
        best = int(np.argmin(losses))
        axes.plot(x[best], y[best], "o", ms=14, mfc="none", mec="#D55E00", mew=2.5)
        figure.colorbar(drawn, ax=axes, label="final training loss")
    return figure


def _above(losses: Mapping[str, np.ma.MaskedArray], relative_to: float | str) -> tuple[dict[str, Any], float]:
    """The losses minus a reference, and the reference."""
    if isinstance(relative_to, str) and relative_to != "best":
        raise ValueError(f'learning_curves: relative_to is a number or "best", got {relative_to!r}')
    if relative_to == "best":
        relative_to = min((float(values.min()) for values in losses.values() if values.count()), default=0.0)
    return {name: values - float(relative_to) for name, values in losses.items()}, float(relative_to)


def _last(times: np.ndarray, values: np.ma.MaskedArray) -> tuple[float, float]:
    """The last point of a line; NaN if it has no point."""
    there = np.flatnonzero(~np.ma.getmaskarray(values))
    return (float(times[there[-1]]), float(values[there[-1]])) if len(there) else (np.nan, np.nan)


def _loss_scale(axes: Axes, values: Sequence[np.ndarray], scale: str | None) -> None:
    """Set the vertical scale: the given one if it can show all values, or by default one chosen from the values."""
    every = np.ma.concatenate([np.ma.masked_invalid(part).ravel() for part in values] or [np.ma.array([])]).compressed()
    sizes = np.abs(every[every != 0])
    typical = float(np.median(sizes)) if sizes.size else 1.0
    if scale is None:
        positive = every.size > 0 and every.min() > 0
        wide = positive and every.max() >= WIDE * every.min()
        scale = "log" if wide else "symlog" if not positive and sizes.max(initial=0) > FAR * typical else "linear"
    if scale == "log" and every.size and every.min() <= 0:
        raise ValueError(f'scale="log" shows no values at or below 0, and the least is {every.min():.4g}: use "symlog"')
    if scale == "log":
        _log_scale(axes, "y")
    elif scale == "symlog":
        axes.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(typical)))
    elif scale != "linear":
        raise ValueError(f'scale is "log", "linear" or "symlog", got {scale!r}')
