"""Style of all figures: one colour and dash pattern for each optimizer, axes, scales, and names beside lines."""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from zlib import crc32

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLORS = (*OKABE_ITO, "#882255", "#999933")  # the last two are wine and olive of Paul Tol
DASHES: tuple[tuple[float, ...], ...] = (  # on, off, on, off, ... in line widths; empty: solid
    (),
    (6, 2),
    (10, 3),
    (4, 1.5, 1, 1.5, 1, 1.5),
    (2, 1.5),
    (6, 2, 1.5, 2),
    (1, 1),
    (8, 1.5, 1, 1.5, 1, 1.5, 1, 1.5),
    (3, 1.2, 3, 1.2, 1, 1.2),
    (1, 2.5),
)
RULES = {  # rule -> indices of (colour, dash pattern); Adam without correction has the colour of Adam
    "sgd": (0, 0),
    "momentum": (1, 1),
    "adam": (2, 2),
    "adagrad": (3, 3),
    "rmsprop": (4, 4),
    "nesterov": (5, 5),
    "newton": (6, 6),
    "lbfgs": (7, 7),
    "newtoncg": (8, 8),
    "adamuncorrected": (2, 9),
}
SPELLINGS = {
    "gradientdescent": "sgd",
    "heavyball": "momentum",
    "sgdmomentum": "momentum",
    "sgdwithmomentum": "momentum",
    "nesterovmomentum": "nesterov",
    "nesterovsmomentum": "nesterov",
    "nag": "nesterov",
    "adamnocorrection": "adamuncorrected",
    "adamnobiascorrection": "adamuncorrected",
    "adamwithoutcorrection": "adamuncorrected",
    "adamwithoutbiascorrection": "adamuncorrected",
    "uncorrectedadam": "adamuncorrected",
    "adamalmost": "adamuncorrected",
}
VARIANTS = {("momentum", "nesterov=true"): "nesterov", ("adam", "biascorrection=false"): "adamuncorrected"}
HEAD = re.compile(r"(?:\w+\.)*(?P<name>[A-Za-z][\w' -]*?)(?P<settings>\s*[(\[,:@].*|\s+\w+\s*=.*|\s+[-+.]?\d.*)?")
SPARE = [  # all other pairs; the first ones share neither colour nor dashes with one another
    (color, (color + shift) % len(DASHES))
    for shift in range(1, len(DASHES))
    for color in range(len(COLORS))
    if (color, (color + shift) % len(DASHES)) not in RULES.values()
]


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


def pairs(labels: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The colour and the dash pattern of every line in a figure, as indices into `COLORS` and `DASHES`."""
    chosen: dict[str, tuple[int, int]] = {}
    rules = {label: rule_of(label) for label in labels}
    for label, rule in rules.items():
        if rule is not None and RULES[rule] not in chosen.values():
            chosen[label] = RULES[rule]
    for label, rule in rules.items():
        if label not in chosen:
            color = RULES[rule][0] if rule else None
            chosen[label] = _farthest(label, color, list(chosen.values()))
    return {label: chosen[label] for label in rules}


def rule_of(label: str) -> str | None:
    """The key of `RULES` that a label names, or None."""
    if (whole := _known(label)) is not None:
        return whole
    found = HEAD.fullmatch(label.strip())
    if found is None or (rule := _known(found["name"])) is None:
        return None
    settings = re.sub(r"[^a-z=]", "", (found["settings"] or "").lower())
    return next((variant for (plain, words), variant in VARIANTS.items() if plain == rule and words in settings), rule)


def _known(name: str) -> str | None:
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    key = SPELLINGS.get(letters, letters)
    return key if key in RULES else None


def _farthest(label: str, color: int | None, taken: list[tuple[int, int]]) -> tuple[int, int]:
    """The spare pair (of one colour, if given) that shares least with the taken ones; the search starts by label."""
    place = crc32(label.encode()) % len(COLORS)
    first, rest = SPARE[: len(COLORS)], SPARE[len(COLORS) :]
    free = [pair for pair in (*first[place:], *first[:place], *rest) if color in (None, pair[0])]

    def shared(pair: tuple[int, int]) -> int:
        return sum(100 * (pair == other) + 2 * (pair[0] == other[0]) + (pair[1] == other[1]) for other in taken)

    return min(free, key=shared)


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
