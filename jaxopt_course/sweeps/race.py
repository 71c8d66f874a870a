"""Races: compare methods at their best points on fresh seeds, with confidence intervals of the differences."""

import os
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import jax

from jaxopt_course.annotations import Array, Number, Objective, Params, PyTree
from jaxopt_course.sweeps.methods import Factory, methods_of
from jaxopt_course.sweeps.points import Grid, Points
from jaxopt_course.sweeps.race_result import RaceResult
from jaxopt_course.sweeps.sweep import sweep
from jaxopt_course.training.checks import check_key_argument, whole_number


def race(
    objective: Objective,
    optimizers: Mapping[str, Factory],
    grid: Grid | Mapping[str, Grid],
    init: Callable[[Array], Params] | Params,
    data: PyTree,
    *,
    key: Array,
    num_seeds: Number = 3,
    num_fresh_seeds: Number = 10,
    target: Number | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> RaceResult:
    r"""Tune each method, then compare the methods at their best points on fresh seeds.

    $$d_s = L(w_T(a, \theta_a, s)) - L(w_T(b, \theta_b, s)), \qquad s = 1, \dots, F \text{ fresh}$$

    Every method must be tuned on the same number of points; otherwise the race would be unfair and is refused. The loss
    of the best point in the tuning is biased downwards, because the point was selected by it, so it is not reported.
    The reported losses come from fresh seeds, which the tuning has not used. They are paired: all methods have the same
    starts and minibatches.

    With `k_tune, k_fresh = jax.random.split(key)`, the tuning is `sweep(..., key=k_tune, num_seeds=num_seeds)`, and the
    fresh runs are a sweep over the best points with `key=k_fresh` and `num_seeds=num_fresh_seeds`.

    The result holds for the methods at the points that this tuning found and for this data; another grid may give
    another result.

    Args:
      objective, optimizers, grid, init, data: as for `sweep`; at least two methods.
      key: a `jax.random` key.
      num_seeds: number of seeds for the tuning.
      num_fresh_seeds: F, the number of fresh seeds, at least 2.
      target: the loss for `steps_ratio`, which counts the steps to it. Default, for each pair: the loss that both have
        reached at the end with every fresh seed.
      checkpoint_dir: as for `sweep`; it holds the tuning and the fresh runs.
      **options: `batch_size`, `num_steps` or `num_epochs`, and all other arguments of `sweep`.

    Returns:
      `RaceResult`: `.loss[label]`, `.compare(a, b)`, `.ranking`, `.verdict`; `str()` gives a table.

    Raises:
      ValueError: the methods have different numbers of points, or there are fewer than two methods or fresh seeds.
      TypeError, ValueError, ...: as `sweep`.

    Example:
      >>> import jax
      >>> import optax
      >>> import jaxopt_course as jc
      >>> digits = jc.data.load("digits")
      >>> objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
      >>> init = lambda key: jc.scores.init_linear(key, num_classes=10, num_features=64)
      >>> result = jc.race(objective, {"SGD": jc.sgd, "AdamW": optax.adamw}, {"learning_rate": [0.01, 0.1]}, init,
      ...                  digits.train, key=jax.random.key(0), num_fresh_seeds=5, batch_size=64, num_epochs=3)
      >>> comparison = result.compare("AdamW", "SGD")
      >>> comparison.better, comparison.interval[1] < 0
      ('AdamW', True)

    Source: for the protocol Sivaprasad et al. (2020), "Optimizer benchmarking needs to account for hyperparameter
    tuning", ICML; Bouthillier et al. (2021), "Accounting for variance in machine learning benchmarks", MLSys.
    """
    check_key_argument("race", key)
    fresh_seeds = whole_number("race", "num_fresh_seeds", num_fresh_seeds, 2)
    methods = methods_of("race", optimizers, grid)
    if len(methods) < 2:
        raise ValueError(f"race: a race needs at least two methods, got {[method.label for method in methods]}")
    counts = {method.label: method.points.count for method in methods}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"race: every method must be tuned on the same number of points, got {counts}; more points are an "
            "advantage. sweeps.random draws the same number for any grid; sweep accepts different numbers"
        )
    k_tune, k_fresh = jax.random.split(key)
    folders = [None if checkpoint_dir is None else Path(checkpoint_dir) / part for part in ("tuning", "fresh")]
    tuned = sweep(
        objective, optimizers, grid, init, data, key=k_tune, num_seeds=num_seeds, checkpoint_dir=folders[0], **options
    )
    best = {label: tuned.best(label) for label in tuned.labels}
    points = {
        label: Points({name: [value] for name, value in found.hyperparameters.items()}) for label, found in best.items()
    }
    options = {**options, "halving": None}
    fresh = sweep(
        objective, optimizers, points, init, data, key=k_fresh, num_seeds=fresh_seeds, checkpoint_dir=folders[1],
        **options,
    )  # fmt: skip
    comparisons = len([*combinations(fresh.labels, 2)])
    return RaceResult(tuned, fresh, None if target is None else float(target), comparisons)
