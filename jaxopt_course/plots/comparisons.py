"""Figures of comparisons: how far apart two optimizers are, and who keeps which clause of the contract."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxopt_course.looks import OKABE_ITO
from jaxopt_course.plots.style import _axes, _label_ends, _log_scale, _note, line_styles

LEAST = 1e-18  # equal to the last bit is drawn here


def difference_curves(curves: Mapping[str, np.ndarray], *, title: str, tolerance: float) -> Figure:
    """How the difference of two optimizers grows from step to step, and what is left when its cause is removed.

    Args:
      curves: name -> `[steps]`, relative differences; zeros are drawn at the bottom, what is not finite is left out.
      title: who is compared, and on what.
      tolerance: up to where a difference is rounding; a grey line.

    Returns:
      A figure with a logarithmic vertical axis.
    """
    figure, axes = _axes(title, "step", "largest relative difference", (8.6, 5.0))
    _log_scale(axes, "y", decades=True)
    axes.yaxis.set_major_formatter("{x:.0e}")
    ends, styles = {}, line_styles(curves)
    for name, values in curves.items():
        values = np.ma.masked_invalid(np.maximum(np.asarray(values, float), LEAST))
        steps = np.arange(1, len(values) + 1)
        axes.plot(steps, values, marker="o" if len(values) == 1 else None, **styles[name])
        drawn = np.flatnonzero(~np.ma.getmaskarray(values))
        if len(drawn):
            ends[name] = (float(steps[drawn[-1]]), float(values[drawn[-1]]))
    length = max((len(values) for values in curves.values()), default=1)
    axes.set_xlim(1, max(length, 2))
    axes.axhline(tolerance, color="0.6", lw=0.8)
    _note(axes, "above this it is no rounding", (1.0, tolerance), (4, 4), color="0.4")
    if any(np.any(np.asarray(values) == 0) for values in curves.values()):
        _note(axes, "equal to the last bit", (1.0, LEAST), (4, 4), color="0.4")
    _label_ends(figure, axes, ends, styles)
    return figure


def contract_grid(outcomes: Mapping[str, Sequence[str]], clauses: Sequence[str], *, title: str) -> Figure:
    """Which optimizer keeps which clause: a dot for kept, a cross for broken, nothing where it does not apply.

    Args:
      outcomes: optimizer -> "passed", "failed" or "not applicable" for every clause.
      clauses: their names.
      title: what was checked.

    Returns:
      A figure.
    """
    rows, columns = len(outcomes), len(clauses)
    figure, axes = _axes(title, "", "", size=(3.4 + 0.42 * columns, 3.0 + 0.27 * rows))
    styles: dict[str, dict[str, Any]] = {
        "passed": {"marker": "o", "s": 26, "color": OKABE_ITO[2]},
        "failed": {"marker": "X", "s": 80, "color": OKABE_ITO[1]},
    }
    for outcome, style in styles.items():
        places = [(x, y) for y, row in enumerate(outcomes.values()) for x, cell in enumerate(row) if cell == outcome]
        if places:
            axes.scatter(*zip(*places, strict=True), zorder=2, **style)
    axes.set_xticks(range(columns), clauses, rotation=45, ha="left", rotation_mode="anchor", size=9)
    axes.set_yticks(range(rows), list(outcomes), size=9)
    axes.set(xlim=(-0.6, columns - 0.4), ylim=(rows - 0.4, -0.6))
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(color="0.92", lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure
