"""Figure of a training run: its loss, and below it the quantities that a diagnosis uses."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxopt_course.diagnosis import Evidence
from jaxopt_course.plots.style import _dress, _label_ends, _log_scale, _note, line_styles
from jaxopt_course.statistics import running_mean
from jaxopt_course.training import TrainResult

SMOOTH = 25  # the loss is averaged over 1 / SMOOTH of the run
MANY = 300  # an axis that spans more than this factor shows decades only
BEYOND = 1e30  # values above this, from a run that has diverged, are left out
LEAVES = 8  # the most leaves whose updates are drawn, the largest first


def diagnosis(result: TrainResult, *, title: str = "") -> Figure:
    """Plot the loss of a run with probes, the rate over the stability limit, the noise scale and the size of updates.

    Four panels against the step:

    - the loss of each minibatch, its running mean, and a band from the minimum to the loss that noise maintains at the
      end;
    - the learning rate divided by the rule's stability limit: above 1, steps along the steepest direction grow;
    - the gradient noise scale divided by the batch size: above 1, more than half of a step is noise;
    - the norm of an update divided by the norm of the parameters, for each leaf.

    Args:
      result: the result of `train(..., probe_every=)`, or the `result` of its `NonFiniteError`.
      title: what was trained, and on which data.

    Returns:
      A figure.

    Raises:
      ValueError: the result has no probes.

    Example:
      >>> import jax
      >>> import jaxopt_course as jc
      >>> digits = jc.data.load("digits")
      >>> objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
      >>> params = jc.scores.init_linear(jax.random.key(0), num_classes=10, num_features=64)
      >>> result = jc.train(objective, jc.sgd(1e-4), params, digits.train, key=jax.random.key(1), batch_size=64,
      ...                   num_steps=200, probe_every=50)
      >>> [axes.get_ylabel() for axes in diagnosis(result, title="softmax regression, digits").axes]
      ['loss', 'rate / stability limit', 'noise scale / batch', 'update / parameters']
    """
    seen = Evidence.of(result)
    figure = Figure(figsize=(8.0, 9.0), layout="constrained")
    loss, over, noise, updates = figure.subplots(4, 1, sharex=True, height_ratios=[1.6, 1, 1, 1])
    _dress(loss, title, "", "loss")
    _loss(loss, seen)
    _dress(over, "", "", "rate / stability limit")
    _against_one(over, seen.looks.steps, seen.looks.over, "unstable above")
    _dress(noise, "", "", "noise scale / batch")
    _against_one(noise, seen.looks.steps, seen.looks.noise_scale / seen.batch_size, "mostly noise above")
    _dress(updates, "", "step", "update / parameters")
    _updates(figure, updates, seen)
    return figure


def _loss(axes: Axes, seen: Evidence) -> None:
    losses = np.ma.masked_invalid(np.where(np.abs(seen.losses) < BEYOND, seen.losses, np.nan))
    steps, window = np.arange(1, len(losses) + 1), max(1, len(losses) // SMOOTH)
    axes.plot(steps, losses, color="0.75", lw=0.6)
    axes.plot(
        steps[: len(steps) - window + 1] + window // 2,
        running_mean(losses.filled(np.nan), window),
        color="#0072b2",
        lw=1.8,
    )
    positive = losses.compressed()
    if len(positive) and positive.min() > 0 and positive.max() > 10 * positive.min():
        _log_scale(axes, "y")
    minimum = seen.last.loss.mean - seen.last.left.mean
    if np.isfinite([minimum, seen.last.floor.mean]).all() and minimum > 0 and seen.last.floor.mean > 0:
        axes.axhspan(minimum, minimum + seen.last.floor.mean, color="#e69f00", alpha=0.25, lw=0)
        _note(
            axes, "held up by noise", (float(len(losses)), minimum + seen.last.floor.mean), (-4, 2), ha="right", size=9
        )


def _against_one(axes: Axes, steps: np.ndarray, values: np.ndarray, above: str) -> None:
    shown = np.ma.masked_invalid(np.where((values > 0) & (values < BEYOND), values, np.nan))
    axes.plot(steps, shown, "o-", color="#0072b2", lw=1.4, ms=3)
    around = [*shown.compressed(), 1.0]
    _log_scale(axes, "y", decades=bool(max(around) > MANY * min(around)))
    axes.axhline(1.0, color="0.35", lw=1.0, ls=(0, (4, 3)))
    _note(axes, above, (float(steps[-1]), 1.0), (-2, 3), ha="right", size=9)
    axes.set_ylim(min(around) / 2, max(around) * 2)


def _updates(figure: Figure, axes: Axes, seen: Evidence) -> None:
    ratios = np.where(seen.looks.update_ratio > 0, seen.looks.update_ratio, np.nan)
    ratios = np.where(ratios < BEYOND, ratios, np.nan)
    largest = np.argsort(-seen.sizes, kind="stable")[:LEAVES]
    ends = {}
    for leaf, style in zip(largest, line_styles(seen.names[leaf] for leaf in largest).values(), strict=True):
        if not np.isnan(ratios[:, leaf]).all():
            axes.plot(seen.looks.steps, ratios[:, leaf], **style)
            last = np.flatnonzero(~np.isnan(ratios[:, leaf]))[-1]
            ends[seen.names[leaf]] = (float(seen.looks.steps[last]), float(ratios[last, leaf]))
    known = ratios[:, largest][~np.isnan(ratios[:, largest])]
    _log_scale(axes, "y", decades=bool(len(known) and known.max() > MANY * known.min()))
    _label_ends(figure, axes, ends, gap=0.12)
