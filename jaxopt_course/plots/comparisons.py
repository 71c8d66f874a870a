"""Figures of comparisons: differences between two optimizers, and outcomes of the contract."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxopt_course.looks import OKABE_ITO
from jaxopt_course.plots.style import _axes, _label_ends, _log_scale, _note, line_styles

LEAST = 1e-18  # a difference of 0 is drawn here


def difference_curves(curves: Mapping[str, np.ndarray], *, title: str, tolerance: float) -> Figure:
    """Plot differences between two optimizers against the step, such as with and without the cause of the difference.

    Args:
      curves: name -> `[steps]`, relative differences. Zeros are drawn at the bottom; values that are not finite are
        left out.
      title: which optimizers are compared, and on what.
      tolerance: differences up to this value are rounding; drawn as a grey line.

    Returns:
      A figure with a logarithmic vertical axis.

    Example:
      >>> differences = {"Adam": np.array([1e-9, 1e-6, 1e-5]), "same epsilon": np.array([0.0, 1e-16, 1e-15])}
      >>> axes = difference_curves(differences, title="Adam, ours and optax's", tolerance=1e-12).axes[0]
      >>> axes.get_xlabel(), axes.get_yscale()
      ('step', 'log')
      >>> [text.get_text() for text in axes.texts]
      ['above this it is no rounding', 'equal to the last bit', 'same epsilon', 'Adam']
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
    """Plot which optimizer satisfies which clause: a dot if it passed, a cross if it failed, nothing if not applicable.

    Args:
      outcomes: optimizer -> "passed", "failed" or "not applicable" for every clause.
      clauses: names of the clauses.
      title: what was checked.

    Returns:
      A figure with one row for each optimizer and one column for each clause.

    Example:
      >>> outcomes = {"SGD": ["passed", "not applicable"], "Adam": ["passed", "failed"]}
      >>> axes = contract_grid(outcomes, ["purity", "16 bits"], title="Two optimizers").axes[0]
      >>> [label.get_text() for label in axes.get_yticklabels()]
      ['SGD', 'Adam']
      >>> dots, crosses = axes.collections
      >>> dots.get_offsets().tolist(), crosses.get_offsets().tolist()
      ([[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]])
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
