"""Performance profiles of solvers."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxopt_course.plots.style import _axes, _label_ends, line_styles


def performance_profiles(costs: Mapping[str, np.ndarray], *, title: str, cost: str) -> Figure:
    r"""Plot performance profiles: how often each solver is within a given factor of the best solver.

    Let $c_{p,s}$ be the cost of solver s on problem p. The line of s is the fraction of all problems on which its cost
    is within a factor $\tau$ of the best. The left end of a line shows speed, the right end reliability.

    $$\rho_s(\tau) = \frac{1}{n_p} \left| \left\{ p : c_{p,s} \leq \tau \min_{s'} c_{p,s'} \right\} \right|$$

    Args:
      costs: solver -> `[problems]`, positive costs; inf or NaN if it did not solve the problem.
      title: what is shown, and on which problems.
      cost: what was counted.

    Returns:
      A figure with a logarithmic horizontal axis, from 1 to the largest ratio.

    Example:
      >>> costs = {"Newton": np.array([10.0, 20.0, np.inf]), "L-BFGS": np.array([30.0, 20.0, 40.0])}
      >>> axes = performance_profiles(costs, title="Three problems", cost="evaluations").axes[0]
      >>> [line.get_ydata()[[0, -1]].round(2).tolist() for line in axes.lines]  # fastest; solved at all
      [[0.67, 0.67], [0.67, 1.0]]

    References:
      Dolan and Moré, Benchmarking optimization software with performance profiles, Math. Program. 91 (2002), eq. 2.
    """
    figure, axes = _axes(title, f"{cost}, in multiples of the best solver's", "fraction of problems solved", (9.0, 5.4))
    spent = np.stack([np.asarray(values, float) for values in costs.values()])
    spent = np.where(spent > 0, spent, np.inf)  # NaN too
    best = spent.min(axis=0)
    ratios = np.where(np.isfinite(spent), spent / np.where(np.isfinite(best), best, 1), np.inf)
    furthest = 1.05 * max(2.0, np.max(ratios, where=np.isfinite(ratios), initial=1.0))
    ends, styles = {}, line_styles(costs)
    for name, of_solver in zip(costs, ratios, strict=True):
        reached = np.sort(of_solver[np.isfinite(of_solver)])
        steps = np.unique(np.concatenate([[1.0], reached, [furthest]]))
        fractions = np.searchsorted(reached, steps, side="right") / len(of_solver)
        axes.plot(steps, fractions, drawstyle="steps-post", **styles[name])
        ends[name] = (float(furthest), float(fractions[-1]))
    axes.set(xscale="log", xlim=(1, furthest), ylim=(0, 1.02))
    ticks = 2.0 ** np.arange(0, np.log2(furthest), max(1, round(np.log2(furthest) / 8)))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _label_ends(figure, axes, ends, styles)
    return figure
