"""Figures of curves, and animations of paths."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from jaxopt_course.landscape import GradientField
from jaxopt_course.looks import COLORS
from jaxopt_course.plots.style import _axes, _label_ends, line_styles
from jaxopt_course.plots.trails import Path as Trail
from jaxopt_course.plots.trails import _inside, runs_of, trajectories

GREYS, TINTS = 32, (1.0, 0.7, 0.4)
SHOWN = 1e-4  # values below this share of the largest do not extend the logarithmic part of the axis
HOLD = 1500  # milliseconds for which the last frame is shown


def curves(
    x: np.ndarray, lines: Mapping[str, np.ndarray], *, title: str, xlabel: str, ylabel: str, scale: str = "linear"
) -> Figure:
    """Plot functions of one variable.

    Args:
      x: `[points]`, ascending.
      lines: name -> `[points]`.
      title: what is shown.
      xlabel: label of the horizontal axis.
      ylabel: label of the vertical axis.
      scale: scale of the vertical axis: "linear", or "symlog", which distinguishes small values from 0. It is
        logarithmic down to 1e-4 of the largest value, and linear below.

    Returns:
      A figure with a linear horizontal axis.

    Raises:
      ValueError: the scale is unknown.

    Example:
      >>> x = np.linspace(0.0, 9.0, 10)
      >>> lines = {"hinge": np.maximum(1 - x, 0), "softmax": np.log1p(np.exp(-x))}
      >>> curves(x, lines, title="Two losses", xlabel="score", ylabel="loss", scale="symlog").axes[0].get_yscale()
      'symlog'
    """
    figure, axes = _axes(title, xlabel, ylabel)
    if scale == "symlog":
        sizes = np.abs(np.concatenate([np.ravel(values) for values in lines.values()] or [np.ones(1)]))
        most = float(sizes.max(initial=0.0)) or 1.0
        least = float(np.min(sizes, where=sizes > SHOWN * most, initial=most))
        axes.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(least)))
    elif scale != "linear":
        raise ValueError(f'curves: scale is "linear" or "symlog", got {scale!r}')
    for name, style in line_styles(lines).items():
        axes.plot(x, lines[name], **style)
    _label_ends(figure, axes, {name: (float(x[-1]), float(values[-1])) for name, values in lines.items()})
    return figure


def write_descent(
    path: str | os.PathLike[str],
    field: GradientField,
    paths: Mapping[str, Trail],
    *,
    title: str,
    minimizers: np.ndarray | None = None,
    frames: int = 50,
    milliseconds: int = 100,
) -> Path:
    """Write an animated GIF of paths that grow over contours; it repeats and pauses at its last frame.

    Args:
      path: path of the file.
      field: from `landscape.gradient_field`.
      paths: name -> `[steps, 2]`, or a record of `landscape.paths`; all paths have the same length.
      title: which surface, and which settings; the number of steps is appended.
      minimizers: `[k, 2]`.
      frames: number of frames, including the first and the last step.
      milliseconds: duration of a frame.

    Returns:
      The path of the file.

    Example:
      >>> import tempfile
      >>> import jaxopt_course as jc
      >>> field = jc.landscape.gradient_field(lambda x, y: x**2 + y**2, (5, 5), window=((-1.0, 1.0), (-1.0, 1.0)))
      >>> line = np.linspace([0.9, 0.9], [0.0, 0.0], 7)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = write_descent(f"{folder}/line.gif", field, {"SGD": line}, title="A line", frames=2)
      ...     with Image.open(path) as picture:
      ...         print(picture.format, picture.n_frames)
      GIF 2
    """
    figure = trajectories(field, paths, title=title, minimizers=minimizers)
    axes, canvas = figure.axes[0], FigureCanvasAgg(figure)
    runs = [run for trail in paths.values() for run in runs_of(trail)]
    lines: list[Any] = axes.lines[len(axes.lines) - 3 * len(runs) :]  # for each path: the path, its start, its end
    length = max(len(steps) for steps in runs)
    shown = np.unique(np.linspace(0, length - 1, frames).round().astype(int))
    palette = _palette()
    pictures = []
    for step in shown:
        for (line, _, dot), steps in zip(zip(*[iter(lines)] * 3, strict=True), runs, strict=True):
            walked, end = _inside(field, steps[: step + 1])
            line.set_data(*walked.T)
            dot.set_data(*end[:, None])
        axes.set_title(f"{title}: step {step}")
        figure.set_dpi(72)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        pictures.append(picture.quantize(palette=palette, dither=Image.Dither.NONE))
    first, *rest = pictures
    stays = [milliseconds] * len(rest) + [HOLD]
    path = Path(path)
    first.save(path, save_all=True, append_images=rest, duration=stays, loop=0, optimize=False)
    return path


def _palette() -> Image.Image:
    """The palette of all frames: greys for the contours, and the colours of lines and of their blurred edges."""
    greys = np.linspace(0, 1, GREYS)[:, None].repeat(3, axis=1)
    lines = [tint * np.array(to_rgb(color)) + (1 - tint) * 0.9 for tint in TINTS for color in COLORS]
    holder = Image.new("P", (1, 1))
    holder.putpalette(np.round(255 * np.concatenate([greys, lines])).astype(int).ravel().tolist())
    return holder
