"""Style of all figures: one colour and dash pattern for each optimizer, axes, scales, and names beside lines."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from jaxopt_course.looks import COLORS, DASHES, pairs


def line_style(label: str) -> dict[str, Any]:
    """The style of a line by its label: `line_styles` for a figure with only this line.

    Example:
      >>> line_style("Adam") == line_style("optax.adam") == line_style("jc.adam(0.05)")
      True
      >>> line_style("Adam")["color"]
      '#009E73'
    """
    return line_styles([label])[label]


def line_styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The style of every line in a figure; an optimizer has the same colour and dash pattern in all figures.

    SGD, Momentum, Nesterov, AdaGrad, RMSProp, Adam, Adam without correction, Newton, Newton-CG and L-BFGS are known,
    in any spelling ("Adam", "adam", "optax.adam", "Adam (0.05)", "Adam, B = 4", "jc.adam(0.05)"). If several labels of
    one figure name the same optimizer, the first has its style, and the others have its colour with other dashes.

    Every other label has a style that no known optimizer has. This style depends on the label; it depends on the other
    labels only as far as is needed to distinguish the lines of a figure. Up to nine lines differ in colour and in dash
    pattern, up to 80 in one of the two.

    Args:
      labels: labels of all lines of the figure, in order.

    Returns:
      label -> keyword arguments of matplotlib's `plot`: `color`, `linestyle` and `lw`.

    Example:
      >>> styles = line_styles(["SGD", "sgd, batch 16", "my rule"])
      >>> [style["color"] for style in styles.values()]
      ['#0072B2', '#0072B2', '#882255']
      >>> len({str(style["linestyle"]) for style in styles.values()})
      3

    Source: Okabe and Ito (2002), "Color universal design"; Tol (2021), "Colour schemes", SRON/EPS/TN/09-002.
    """
    return {label: _keywords(*pair) for label, pair in pairs(labels).items()}


def _keywords(color: int, dashes: int) -> dict[str, Any]:
    return {"color": COLORS[color], "linestyle": _pattern(dashes), "lw": 1.8}


def _pattern(dashes: int) -> Any:
    """A dash pattern in matplotlib's form."""
    return (0, DASHES[dashes]) if DASHES[dashes] else "solid"


def _axes(title: str, xlabel: str, ylabel: str, size: tuple[float, float] = (8.0, 4.8)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    _dress(axes, title, xlabel, ylabel)
    return figure, axes


def _dress(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)


def _log_scale(axes: Axes, which: str, *, decades: bool = False) -> None:
    """Make an axis logarithmic, with plain numbers at powers of ten.

    Unless `decades`, there are minor ticks at 2 and 5 times the powers, with numbers on the vertical axis.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator() if decades else LogLocator(subs=(2, 5)))
    axis.set_minor_formatter("{x:g}" if which == "y" and not decades else NullFormatter())


def _note(axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int], **style: Any) -> None:
    style = {"color": "0.3", "size": 9, **style}
    axes.annotate(text, place, offset, textcoords="offset points", **style)


def _label_ends(
    figure: Figure,
    axes: Axes,
    ends: Mapping[str, tuple[float, float]],
    styles: Mapping[str, Mapping[str, Any]] | None = None,
    gap: float = 0.062,
) -> None:
    """Write each name beside the end of its line, with a thin line between them.

    Names are at least `gap` of the height apart. If the end of a line is not finite, its name is at the top, without a
    connecting line.
    """
    figure.draw_without_rendering()  # fixes the limits, on which the positions below depend
    styles = line_styles(ends) if styles is None else styles
    low, high = axes.get_ylim()
    to_axes = axes.transScale + axes.transLimits
    found = {name: np.isfinite(end).all() for name, end in ends.items()}
    places = {name: float(to_axes.transform(end)[1]) if found[name] else 1.0 for name, end in ends.items()}
    order = sorted(places, key=lambda name: places[name])
    heights = np.array([places[name] for name in order])
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    heights -= max(0.0, heights[-1] - 1.0) if len(heights) else 0.0
    for i in range(len(heights) - 2, -1, -1):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    for name, height in zip(order, heights, strict=True):
        color = styles[name]["color"]
        thread = {"arrowstyle": "-", "color": color, "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1}
        axes.annotate(
            name,
            xy=ends[name] if found[name] else (1.0, height),
            xycoords="data" if found[name] else "axes fraction",
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=color,
            va="center",
            size=10,
            arrowprops=thread if found[name] else None,
            annotation_clip=False,
        )
    axes.set_ylim(low, high)
