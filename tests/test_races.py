"""Races: what is compared, how sure, and by simulation that the statistics keep what they promise."""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.statistics import (
    mean_ratio_interval,
    paired_interval,
    probability_below_zero,
    ratio_interval,
    seeds_needed,
    sign_test,
    steps_to,
)
from jaxopt_course.sweeps import MethodResult, Points

RNG = np.random.default_rng(0)
DATA = RNG.standard_normal((60, 4)), RNG.integers(0, 3, 60).astype(np.int32)
OBJECTIVE = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)


def init(key: jax.Array) -> Any:
    return jc.scores.init_linear(key, num_classes=3, num_features=4)


def raced(optimizers: Any, grid: Any = None, **options: Any) -> jc.RaceResult:
    options = {"key": jax.random.key(0), "num_seeds": 2, "batch_size": 12, "num_epochs": 4, **options}
    grid = {"learning_rate": [0.03, 0.1, 0.3]} if grid is None else grid
    return jc.race(OBJECTIVE, optimizers, grid, init, DATA, **options)


def made(losses: dict[str, Any], tuned: Any = None, target: float | None = None, curves: Any = None) -> jc.RaceResult:
    """A race with these losses on fresh seeds."""

    def result(per_label: dict[str, Any]) -> jc.SweepResult:
        methods = {}
        for label, values in per_label.items():
            loss = np.asarray(values, float)[None]
            curve = loss[..., None] * np.ones(4) if curves is None else np.asarray(curves[label], float)[None]
            zeros = np.zeros(loss.shape, int)
            methods[label] = MethodResult(Points(rate=[0.1]), loss, zeros, zeros + 4, curve, None, 0, None)
        count = len(next(iter(per_label.values())))
        return jc.SweepResult(methods, 4, 1, np.zeros(0, int), np.ones(count), "none")

    pairs = len(losses) * (len(losses) - 1) // 2
    return jc.RaceResult(result(tuned or losses), result(losses), target, pairs)


# --- statistics ----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_ratio_of_means_covers_it() -> None:
    rng = np.random.default_rng(0)
    for mean, level in ((5.0, 0.95), (1.0, 0.9)):
        held = 0
        for _ in range(2000):
            b = mean + rng.standard_normal(8)
            a = 2 * b + rng.standard_normal(8)
            low, high = mean_ratio_interval(a, b, level)
            held += low <= 2 <= high
        assert held / 2000 == pytest.approx(level, abs=0.02)
    assert mean_ratio_interval(np.ones(1), np.ones(1)) == (-np.inf, np.inf)
    low, high = mean_ratio_interval(5 + rng.standard_normal(8), rng.standard_normal(8) / 10)
    assert low > 1
    assert high == np.inf


def test_the_interval_is_students() -> None:
    """The numbers of Student's sleep data, his paper's example: mean 1.58, t(9) = 4.06."""
    gain = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    low, high = paired_interval(gain)
    assert (low, high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert seeds_needed(gain / 10) == seeds_needed(gain)
    scipy = pytest.importorskip("scipy.stats")
    expected = scipy.t.interval(1 - 0.05 / 7, 9, gain.mean(), scipy.sem(gain))
    assert paired_interval(gain, comparisons=7) == pytest.approx(expected, rel=1e-9)


NOISES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "student 3": lambda rng, shape: rng.standard_t(3, shape),
    "lognormal pairs": lambda rng, shape: rng.lognormal(0, 0.7, shape) - rng.lognormal(0, 0.7, shape),
    "uniform pairs": lambda rng, shape: rng.uniform(0, 1, shape) - rng.uniform(0, 1, shape),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("seeds", "pairs"), [(5, 1), (10, 1), (10, 21), (30, 3)])
def test_intervals_cover_at_their_nominal_rate(noise: str, seeds: int, pairs: int) -> None:
    """Of 4,000 samples with a known mean. One that is wider than it promises is allowed, for tails as heavy as t(3)."""
    rng, nominal = np.random.default_rng(1), 1 - 0.05 / pairs
    samples = 0.3 + NOISES[noise](rng, (4000, seeds))
    covered = np.mean([low <= 0.3 <= high for low, high in (paired_interval(s, pairs) for s in samples)])
    margin = 3.5 * math.sqrt(nominal * (1 - nominal) / 4000)
    assert covered >= nominal - margin
    if noise == "normal":
        assert covered <= nominal + margin


def test_seeds_needed_show_the_difference_in_four_of_five_races() -> None:
    rng = np.random.default_rng(2)
    for mean, pairs in ((0.5, 1), (0.3, 3), (1.2, 1)):
        sample = rng.standard_normal(200_000)
        sample = (sample - sample.mean()) / sample.std(ddof=1) + mean  # mean and deviation known
        needed = seeds_needed(sample, pairs)
        assert needed is not None
        trials = mean + rng.standard_normal((2000, needed))
        shown = np.mean([paired_interval(trial, pairs)[0] > 0 for trial in trials])
        assert 0.75 < shown < 0.9
    assert seeds_needed(np.zeros(5)) is None
    assert seeds_needed(np.array([1.0])) is None
    assert seeds_needed(np.array([1.0, -1.0 + 1e-9])) is None


def test_the_bootstrap_probability() -> None:
    assert probability_below_zero(-np.ones(5)) == 1.0
    assert probability_below_zero(np.ones(5)) == 0.0
    assert probability_below_zero(np.zeros(5)) == 0.5
    rng, shares = np.random.default_rng(3), []
    for _ in range(300):
        shares.append(probability_below_zero(rng.standard_normal(20)))
    assert 0.4 < np.mean(shares) < 0.6
    assert 0.2 < np.mean(np.array(shares) < 0.3) < 0.4  # nearly uniform where there is no difference
    assert probability_below_zero(np.array([np.inf, -1.0])) == pytest.approx(0.25, abs=0.02)


def test_the_sign_test_is_the_binomial_one() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for below, above in ((10, 0), (7, 3), (5, 5), (1, 0), (0, 9)):
        signs = np.r_[-np.ones(below), np.ones(above), np.zeros(3)]
        assert sign_test(signs) == pytest.approx(scipy.binomtest(below, below + above).pvalue)
    assert sign_test(np.zeros(4)) == 1.0


def test_steps_to_a_target_count_the_last_crossing() -> None:
    curve = np.array([5.0, 3.0, 1.0, 3.0, 1.0, 1.0])
    assert steps_to(1.0, curve, 1) == 5  # not 3: it climbs again
    assert steps_to(2.0, curve, 2) == 3  # means 4, 2, 2, 2, 1
    assert steps_to(9.0, curve, 1) == 1
    assert steps_to(0.5, curve, 1) == np.inf
    assert steps_to(1.0, np.array([np.inf, 1.0, np.nan]), 1) == np.inf
    ratio, (low, high) = ratio_interval(np.array([2.0, 2.0, 2.0]))
    assert (ratio, low, high) == pytest.approx((2, 2, 2))
    assert math.isnan(ratio_interval(np.array([2.0, np.inf]))[0])


# --- comparisons ---------------------------------------------------------------------------------------------------


def test_a_clear_winner_and_a_tie() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal((3, 10))
    common = np.linspace(0, 1, 10)  # seeds differ by far more than methods: pairs take that out
    race = made({"a": common + noise[0], "b": common + 0.1 + noise[1], "c": common + noise[2]})
    assert race.compare("a", "b").better == race.compare("b", "a").better == "a"
    assert race.compare("a", "b").difference == pytest.approx(-race.compare("b", "a").difference)
    assert race.compare("a", "b").probability == 1.0
    tie = race.compare("a", "c")
    assert tie.better is None
    assert tie.seeds_needed is not None
    assert tie.seeds_needed > 10
    assert [set(group) for group in race.ranking] == [{"a", "c"}, {"b"}]
    assert "is not shown to be better than" in race.verdict
    assert "may be chance" in race.verdict
    with pytest.raises(KeyError, match="no method 'd'"):
        race.compare("a", "d")


def test_differences_within_rounding_are_no_differences() -> None:
    losses = np.full(10, 0.5)
    race = made({"a": losses, "b": losses + 4 * np.finfo(float).eps})
    assert race.compare("a", "b").better is None
    assert made({"a": losses, "b": losses + 1e-6}).compare("a", "b").better == "a"


def test_a_rule_and_its_twin_are_called_different_in_at_most_five_percent_of_races() -> None:
    """Twins differ by chance alone; five methods, so that ten pairs have a chance to go wrong."""
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(200):
        common = rng.lognormal(0, 1, 10)
        race = made({str(i): common * np.exp(0.05 * rng.standard_t(4, 10)) for i in range(5)})
        wrong += any(race.compare(a, b).better for a in race.labels for b in race.labels if a < b)
    assert wrong <= 0.05 * 200


def test_runs_that_diverge_count_by_seeds() -> None:
    fine, wild = np.linspace(1, 2, 12), np.r_[np.full(11, np.inf), 0.5]
    race = made({"fine": fine, "wild": wild})
    comparison = race.compare("fine", "wild")
    assert comparison.better == "fine"
    assert comparison.interval == (-math.inf, math.inf)
    assert race.ranking == [("fine",), ("wild",)]
    assert "wild diverged on 11 of the 12 fresh seeds" in race.verdict
    assert "diverged 11x" in str(race)
    few = made({"fine": fine[:4], "wild": np.r_[np.inf, fine[1:4]]})
    assert few.compare("fine", "wild").better is None  # one of four seeds shows nothing
    both = made({"a": np.full(5, np.inf), "b": np.full(5, np.inf)})
    assert both.compare("a", "b").better is None
    assert "Every method diverged" in both.verdict


def test_steps_to_a_target_as_a_ratio() -> None:
    falling = np.linspace(4, 1, 4) + 0.01 * np.arange(6)[:, None]
    fast, slow = falling - 2 * (np.arange(4) > 0), falling
    losses = {"fast": fast[:, -1], "slow": slow[:, -1]}
    ratio = made(losses, target=2.5, curves={"fast": fast, "slow": slow}).compare("fast", "slow").steps_ratio
    assert ratio.ratio == pytest.approx(2 / 3)
    assert ratio.target == 2.5
    assert math.isnan(made(losses, target=-9.0, curves={"fast": fast, "slow": slow}).compare("fast", "slow")[-1].ratio)
    default = made(losses, curves={"fast": fast, "slow": slow}).compare("slow", "fast").steps_ratio
    assert default.target == pytest.approx(slow[:, -1].max())
    assert default.ratio > 1


# --- whole races ---------------------------------------------------------------------------------------------------


def test_a_race_tunes_on_some_seeds_and_reports_others() -> None:
    race = raced({"SGD": jc.sgd, "Adam": jc.adam}, num_fresh_seeds=4)
    k_tune, k_fresh = jax.random.split(jax.random.key(0))
    options: Any = {"batch_size": 12, "num_epochs": 4}
    grid = {"learning_rate": [0.03, 0.1, 0.3]}
    tuned = jc.sweep(OBJECTIVE, {"SGD": jc.sgd}, grid, init, DATA, key=k_tune, num_seeds=2, **options)
    np.testing.assert_allclose(race.sweep.loss("SGD"), tuned.loss("SGD"), rtol=1e-9)
    best = race.best["SGD"].hyperparameters
    k_init, k_data = jax.random.split(jax.random.split(k_fresh, 4)[2])
    run = jc.train(OBJECTIVE, jc.sgd(**best), init(k_init), DATA, key=k_data, **options)
    assert race.loss["SGD"][2] == pytest.approx(float(OBJECTIVE(run.params, DATA)), rel=1e-9)
    assert race.loss["SGD"].shape == (4,)
    assert "fresh seeds" in race.verdict


def test_a_rule_beside_its_optax_twin_is_a_tie() -> None:
    twin = functools.partial(optax.adam, eps=1e-7)
    with jax.numpy_dtype_promotion("standard"):
        race = raced({"ours": jc.adam, "optax": twin, "slow": lambda learning_rate: jc.sgd(1e-3 * learning_rate)})
    assert {*race.ranking[0]} == {"ours", "optax"}
    assert race.ranking[1] == ("slow",)
    assert abs(race.compare("ours", "optax").difference) < 1e-8
    assert "is better than slow" in race.verdict or "It is better than slow" in race.verdict


def test_a_race_is_saved_and_goes_on(tmp_path: Path) -> None:
    methods = {"SGD": jc.sgd, "Adam": jc.adam}
    race = raced(methods, num_fresh_seeds=3, checkpoint_dir=tmp_path / "saves", eval_fn=lambda p: p["b"][0])
    again = raced(methods, num_fresh_seeds=3, checkpoint_dir=tmp_path / "saves", eval_fn=lambda p: p["b"][0])
    race.save(tmp_path / "race.npz")
    for other in (again, jc.RaceResult.load(tmp_path / "race.npz")):
        assert str(other) == str(race)
        np.testing.assert_array_equal(other.loss["SGD"], race.loss["SGD"])
        assert other.sweep.rows() == race.sweep.rows()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"optimizers": jc.sgd}, ValueError, "at least two methods"),
        ({"num_fresh_seeds": 1}, ValueError, "num_fresh_seeds must be at least 2"),
        (
            {"grid": {"SGD": {"learning_rate": [0.1]}, "Adam": {"learning_rate": [0.1, 0.2]}}},
            ValueError,
            "same number of points, got {'SGD': 1, 'Adam': 2}",
        ),
        ({"grid": {"rate": [0.1]}}, TypeError, "race: SGD has no hyperparameter rate"),
        ({"key": 3}, TypeError, "race: key must be a random key"),
        ({"nesterov": True}, TypeError, "nesterov"),
    ],
)
def test_an_unfair_or_impossible_race_is_refused(
    arguments: dict[str, Any], kind: type[Exception], message: str, own_errors: None
) -> None:
    with pytest.raises(kind, match=message):
        raced(**{"optimizers": {"SGD": jc.sgd, "Adam": jc.adam}, **arguments})
