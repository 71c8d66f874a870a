"""Figures of training runs and gradient checks, with labels on the lines themselves.

Figures are made without pyplot: nothing is shown, nothing is kept, nothing has to be closed. `figure.savefig(path)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxopt_course.plots.style import OKABE_ITO, _axes, _dress, _label_ends, _log_scale, _note, _pattern, line_styles

WIDE, FAR = 4, 100  # a logarithm is worth it from here; beyond so many typical sizes a linear axis shows no detail


def learning_curves(
    losses: Mapping[str, np.ndarray],
    *,
    title: str,
    xlabel: str = "epoch",
    ylabel: str,
    scale: str | None = None,
    relative_to: float | str | None = None,
) -> Figure:
    """Loss against time, one line for each name: the median over seeds, and a band from the least to the greatest.

    Args:
      losses: name -> `[seeds, times]`, times counted from 1; values that are not finite are left out.
      title: what is shown, and on which data.
      xlabel: the unit of time, of which there are whole ones.
      ylabel: which loss.
      scale: of the vertical axis: "log", "linear" or "symlog" (linear around 0, logarithmic beyond). Unless given,
        "log" where all values are positive and span a factor of 4, "symlog" where they are not all positive and the
        largest is more than 100 times the typical size, else "linear".
      relative_to: draw the distance above this value, such as a known optimum, in place of the loss; "best": above the
        lowest loss of any run, which itself is left out where the axis is logarithmic. It tells curves apart that end
        close to one another.

    Returns:
      A figure. A name whose values are all not finite stands beside the top, without a line.

    Raises:
      ValueError: a logarithmic axis for values that are not all positive, an unknown scale or reference.

    Example:
      >>> losses = {"SGD": np.array([[2.0, 0.5, -0.8]]), "Adam": np.array([[2.0, 0.1, -0.9]])}
      >>> learning_curves(losses, title="digits", ylabel="negative log likelihood").axes[0].get_yscale()
      'linear'
      >>> axes = learning_curves(losses, title="digits", ylabel="loss", relative_to="best").axes[0]
      >>> axes.get_yscale(), axes.get_ylabel()
      ('log', 'loss - (-0.9)')
    """
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
    rates: np.ndarray,
    losses: Mapping[str, np.ndarray],
    *,
    title: str,
    ylabel: str,
    ceiling: float,
    scale: str | None = None,
) -> Figure:
    """Final loss against learning rate: a wide valley forgives, a narrow one does not. Best rates are marked.

    Args:
      rates: `[rates]`, ascending.
      losses: name -> `[rates, seeds]`; the line is the mean over seeds, and a run that diverged (a value that is not
        finite, or above the ceiling) counts as the ceiling.
      title: what is shown, and on which data.
      ylabel: which loss.
      ceiling: the loss where the picture ends.
      scale: of the vertical axis, as for `learning_curves`.

    Returns:
      A figure with a logarithmic horizontal axis.

    Raises:
      ValueError: a logarithmic axis for values that are not all positive, an unknown scale.

    Example:
      >>> losses = {"SGD": np.array([[0.4], [-0.7], [np.inf]])}
      >>> figure = rate_robustness(np.array([0.01, 0.1, 1.0]), losses, title="digits", ylabel="loss", ceiling=2.3)
      >>> figure.axes[0].get_yscale(), figure.axes[0].lines[1].get_xydata().tolist()
      ('linear', [[0.1, -0.7]])
    """
    figure, axes = _axes(title, "learning rate", ylabel)
    _log_scale(axes, "x")
    values = {name: np.asarray(of_rule, float) for name, of_rule in losses.items()}
    means = {n: np.minimum(np.where(np.isfinite(v), v, ceiling), ceiling).mean(axis=1) for n, v in values.items()}
    _loss_scale(axes, [*means.values(), np.array([ceiling])], scale)
    ends, styles = {}, line_styles(losses)
    for name, mean in means.items():
        axes.plot(rates, mean, **styles[name])
        lowest = int(np.argmin(mean))
        axes.plot(rates[lowest], mean[lowest], "o", color=styles[name]["color"], ms=7, mec="white")
        ends[name] = (float(rates[-1]), float(mean[-1]))
    axes.axhline(ceiling, color="0.6", lw=0.8)
    _note(axes, "diverged or worse", (rates[0], ceiling), (0, 4), color="0.4")
    _label_ends(figure, axes, ends, styles)
    return figure


def _above(losses: Mapping[str, np.ma.MaskedArray], relative_to: float | str) -> tuple[dict[str, Any], float]:
    """Losses minus a reference, and the reference."""
    if isinstance(relative_to, str) and relative_to != "best":
        raise ValueError(f'learning_curves: relative_to is a number or "best", got {relative_to!r}')
    if relative_to == "best":
        relative_to = min((float(values.min()) for values in losses.values() if values.count()), default=0.0)
    return {name: values - float(relative_to) for name, values in losses.items()}, float(relative_to)


def _last(times: np.ndarray, values: np.ma.MaskedArray) -> tuple[float, float]:
    """Where a line ends; NaN where there is none."""
    there = np.flatnonzero(~np.ma.getmaskarray(values))
    return (float(times[there[-1]]), float(values[there[-1]])) if len(there) else (np.nan, np.nan)


def _loss_scale(axes: Axes, values: Sequence[np.ndarray], scale: str | None) -> None:
    """The vertical scale that shows all the values, or the one asked for, if it does."""
    every = np.ma.concatenate([np.ma.masked_invalid(part).ravel() for part in values] or [[]]).compressed()
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


def templates(
    weights: Mapping[str, np.ndarray], image_shape: Sequence[int], class_names: Sequence[str], *, title: str
) -> Figure:
    """The rows of W as images, the lecture's templates: one row of pictures for each name, one column for each class.

    Each picture is divided by its largest weight. Grey ones go from blue (pixels that speak against the class) over
    white to red (for it); in those with three channels a weight of zero is mid-grey.

    Args:
      weights: name -> `W[C, D]` with D the product of the image's shape.
      image_shape: `(H, W)` or `(H, W, 3)`.
      class_names: C names.
      title: what is shown, and on which data.

    Returns:
      A figure.
    """
    height, width, *channels = image_shape
    rows, columns = len(weights), len(class_names)
    mosaic = np.full((rows, columns, height + 1, width + 1, *channels), np.nan)  # a gap below and right of each
    for i, W in enumerate(weights.values()):
        images = np.asarray(W, float).reshape(columns, *image_shape)
        largest = np.abs(images).reshape(columns, -1).max(axis=1).reshape(-1, *[1] * len(image_shape))
        mosaic[i, :, :height, :width] = images / np.where(largest > 0, largest, 1)
    picture = mosaic.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), *channels)
    figure, axes = _axes(title, "", "", size=(1.8 + 0.85 * columns, 0.9 + 0.85 * rows))
    axes.imshow(np.nan_to_num(0.5 + 0.5 * picture, nan=1.0) if channels else picture, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_xticks(np.arange(columns) * (width + 1) + (width - 1) / 2, class_names)
    axes.set_yticks(np.arange(rows) * (height + 1) + (height - 1) / 2, list(weights))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], *, title: str) -> Figure:
    """How often each true class (row) was taken for each class (column): counts written in, shaded by share of the row.

    Args:
      counts: `[C, C]`, examples.
      class_names: C names.
      title: what is shown, and on which data.

    Returns:
      A figure.
    """
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _axes(title, "predicted", "true", size=(6.4, 6.0))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(class_names)), class_names)
    axes.set_yticks(range(len(class_names)), class_names)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(
                j, i, str(count), ha="center", va="center", size=9, color="white" if shares[i, j] > 0.5 else "black"
            )
    return figure


def step_size_errors(
    steps: np.ndarray,
    errors: Mapping[str, Mapping[str, np.ndarray]],
    predicted: Mapping[str, Mapping[str, np.ndarray]],
    optima: Mapping[str, Mapping[str, tuple[float, float]]],
    slopes: Sequence[tuple[str, float, float, float]],
    *,
    title: str,
) -> Figure:
    """Error of a numerical gradient against its step: cut off on the right, rounded off on the left.

    Args:
      steps: `[steps]`, ascending.
      errors: dtype -> method -> `[steps]`, relative; values that are not finite are left out. Colours tell dtypes
        apart, dashes methods.
      predicted: the same, by theory; thin and grey.
      optima: dtype -> method -> (step, error) where theory has the least error; a tick on the prediction.
      slopes: (name, step, error, slope) where one is to be written: beside a rising line, above and below falling ones.
      title: what is shown, and on which data.

    Returns:
      A figure with two logarithmic axes.
    """
    figure, axes = _axes(title, "step h", "relative error of the numerical gradient", size=(9.0, 6.2))
    _log_scale(axes, "x", decades=True)
    _log_scale(axes, "y", decades=True)
    for color, (dtype, methods) in zip(OKABE_ITO, errors.items(), strict=False):
        for number, (method, values) in enumerate(methods.items()):
            axes.plot(steps, predicted[dtype][method], color="0.75", lw=0.8, zorder=1)
            axes.plot(
                steps, np.ma.masked_invalid(np.asarray(values, float)), color=color, linestyle=_pattern(number), lw=1.8
            )
            best = optima[dtype][method]
            axes.plot(*best, "|", color=color, ms=22, mew=2)
        first = next(iter(methods))
        beside = int(np.argmin(np.abs(np.log(steps / optima[dtype][first][0]) + np.log(100))))  # left of the valley
        place = (float(steps[beside]), float(methods[first][beside]))
        _note(axes, dtype, place, (14, 10), color=color, size=11, bbox={"fc": "white", "ec": "none", "pad": 1})
    _note(axes, "best h in theory", best, (0, -14), ha="center", va="top")
    falling = 0
    for name, step, error, slope in slopes:
        low = slope > 0 or falling % 2
        offset, side = ((9, -12), "left") if slope > 0 else ((-6, -10), "right") if low else ((12, 10), "left")
        _note(axes, f"{name}: slope {slope:+.2f}", (step, error), offset, ha=side)
        falling += slope < 0
    every = np.concatenate([values for methods in errors.values() for values in methods.values()])
    every = every[np.isfinite(every) & (every > 0)]
    axes.set_ylim(every.min() / 15, 1.5 * every.max())  # theory leaves the picture
    return figure


def gradient_costs(
    sizes: np.ndarray,
    costs: Mapping[str, Mapping[str, np.ndarray]],
    slopes: Mapping[str, Mapping[str, float]],
    *,
    title: str,
) -> Figure:
    """What gradients cost against the number of parameters: a panel for each unit, a line for each way.

    Args:
      sizes: `[sizes]`, numbers of parameters, ascending.
      costs: unit -> way -> `[sizes]`.
      slopes: unit -> way -> the exponent that was fitted, written at the end of the line.
      title: what is shown, and on which data.

    Returns:
      A figure with logarithmic axes.
    """
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    figure.suptitle(title)
    for axes, (unit, ways) in zip(np.ravel(figure.subplots(1, len(costs))), costs.items(), strict=True):
        _dress(axes, "", "parameters n", unit)
        _log_scale(axes, "x", decades=True)
        _log_scale(axes, "y", decades=True)
        styles, named, ends = line_styles(ways), {}, {}
        for way, values in ways.items():
            axes.plot(sizes, values, marker="o", ms=4, **styles[way])
            name = f"{way}\n$n^{{{slopes[unit][way]:.2f}}}$"
            named[name], ends[name] = styles[way], (float(sizes[-1]), float(values[-1]))
        _label_ends(figure, axes, ends, named)
    return figure
