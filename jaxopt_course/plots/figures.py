"""Figures of classifiers and gradient checks, with labels beside the lines.

Figures are made without pyplot: they are not shown, not stored globally, and need not be closed. To save one, call
`figure.savefig(path)`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxopt_course.looks import OKABE_ITO
from jaxopt_course.plots.style import _axes, _dress, _label_ends, _log_scale, _note, _pattern, line_styles


def templates(
    weights: Mapping[str, np.ndarray], image_shape: Sequence[int], class_names: Sequence[str], *, title: str
) -> Figure:
    """Plot the rows of W as images (templates): one row of images for each name, one column for each class.

    Each image is divided by its largest absolute weight. With one channel, colours go from blue (negative weights,
    evidence against the class) over white to red (positive weights). With three channels, a weight of zero is mid-grey.

    Args:
      weights: name -> `W[C, D]`, where D is the product of the image's shape.
      image_shape: `(H, W)` or `(H, W, 3)`.
      class_names: C names.
      title: what is shown, and on which data.

    Returns:
      A figure.

    Example:
      >>> axes = templates({"SGD": np.eye(3, 4)}, (2, 2), ["cat", "dog", "ship"], title="Templates").axes[0]
      >>> [label.get_text() for label in axes.get_xticklabels()], [label.get_text() for label in axes.get_yticklabels()]
      (['cat', 'dog', 'ship'], ['SGD'])
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
    """Plot how often each true class (row) was predicted as each class (column), shaded by the share of the row.

    Args:
      counts: `[C, C]`, numbers of examples.
      class_names: C names.
      title: what is shown, and on which data.

    Returns:
      A figure; counts other than 0 are written in.

    Example:
      >>> axes = confusion_matrix(np.array([[8, 2], [0, 5]]), ["cat", "dog"], title="Test images").axes[0]
      >>> axes.get_xlabel(), axes.get_ylabel(), [text.get_text() for text in axes.texts]
      ('predicted', 'true', ['8', '2', '5'])
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
    """Plot the error of a numerical gradient against its step; truncation dominates on the right, rounding on the left.

    Args:
      steps: `[steps]`, ascending.
      errors: dtype -> method -> `[steps]`, relative errors; values that are not finite are left out. Each dtype has a
        colour, each method a dash pattern.
      predicted: dtype -> method -> `[steps]`, the errors predicted by theory; thin grey lines.
      optima: dtype -> method -> (step, error), where theory predicts the least error; drawn as a tick.
      slopes: (name, step, error, slope) for each slope to write at a point: beside a rising line, above or below a
        falling one.
      title: what is shown, and on which data.

    Returns:
      A figure with two logarithmic axes.

    Example:
      >>> steps = 10.0 ** np.arange(-8, 0)
      >>> errors = {"float64": {"central": steps**2 + 1e-16 / steps}}
      >>> optima = {"float64": {"central": (4e-6, 4e-11)}}
      >>> figure = step_size_errors(steps, errors, errors, optima, [("central", 1e-2, 1e-4, 2.0)], title="A cube")
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['float64', 'best h in theory', 'central: slope +2.00']
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
        beside = int(np.argmin(np.abs(np.log(steps / optima[dtype][first][0]) + np.log(100))))  # left of the optimum
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
    axes.set_ylim(every.min() / 15, 1.5 * every.max())  # without regard to the prediction
    return figure


def gradient_costs(
    sizes: np.ndarray,
    costs: Mapping[str, Mapping[str, np.ndarray]],
    slopes: Mapping[str, Mapping[str, float]],
    *,
    title: str,
) -> Figure:
    """Plot the cost of gradients against the number of parameters: a panel for each unit, a line for each method.

    Args:
      sizes: `[sizes]`, numbers of parameters, ascending.
      costs: unit -> method -> `[sizes]`.
      slopes: unit -> method -> fitted exponent, which is written at the end of the line.
      title: what is shown, and on which data.

    Returns:
      A figure with logarithmic axes.

    Example:
      >>> sizes = np.array([10, 100, 1000])
      >>> costs = {"evaluations": {"differences": 2 * sizes, "autodiff": np.full(3, 3)}}
      >>> slopes = {"evaluations": {"differences": 1.0, "autodiff": 0.0}}
      >>> axes = gradient_costs(sizes, costs, slopes, title="Cost of a gradient").axes[0]
      >>> axes.get_ylabel(), [text.get_text() for text in axes.texts]
      ('evaluations', ['autodiff\\n$n^{0.00}$', 'differences\\n$n^{1.00}$'])
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
