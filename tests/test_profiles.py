"""Performance profiles: counts against counts of our own, every verdict on planted cases, the figure, and the files."""

import csv
import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import jaxopt_course as jc
from experiments import arguments, judging, peers
from experiments.judging import costs, judge, summarise, where_ours_lose
from experiments.peers import SOLVERS, Limits, Outcome, Task, make_task
from experiments.profiles import finite, mgh, tables

ROOT = Path(__file__).parent.parent
LIMITS = Limits(gtol=1e-8, max_evals=500)
OURS = ("lbfgs", "newton", "newton_cg")
SCIPY = ("scipy_lbfgsb", "scipy_bfgs", "scipy_trust_exact")


def problem(name: str) -> Task:
    return next(task for task in mgh() if task.name == name)


def bowl(recorded: tuple[float, ...] = ()) -> Task:
    """(x^2 - 1)^2 + x / 10 + y^2: minima near (-1, 0), lower, and (1, 0), a saddle between."""
    return make_task("planted", "bowl", lambda x: (x[0] ** 2 - 1) ** 2 + x[0] / 10 + x[1] ** 2, [0.5, 1.0], recorded)


# Counts


@pytest.mark.parametrize("name", OURS)
def test_evaluations_of_ours_are_the_points_at_which_it_looks(name: str) -> None:
    task, points = problem("beale"), []

    def watched(x: Any) -> Any:
        jax.debug.callback(lambda x: points.append(np.array(x)), x)
        return task.fn(x)

    outcome = SOLVERS[name].solve(task._replace(fn=watched), LIMITS)
    jax.effects_barrier()
    # A Hessian is taken where it is, up to rounding: the compiler may add a step in one operation or in two.
    visited = 1 + sum(not np.allclose(a, b, rtol=1e-14, atol=0) for a, b in pairwise(points))
    assert outcome.success
    assert outcome.evaluations == visited == outcome.history[-1, 1]
    assert np.all(np.diff(outcome.history[:, 1]) > 0)
    assert outcome.history[0, 1] == 1
    assert outcome.history[0, 0] == pytest.approx(float(task.fn(task.start)))


def test_products_of_ours() -> None:
    task = problem("wood")
    looked = SOLVERS["newton"].solve(task, LIMITS)
    np.testing.assert_array_equal(looked.history[:, 2], 4 * np.arange(len(looked.history)))  # a Hessian a step
    assert looked.products == looked.history[-1, 2] + 4  # and one at the end
    result = jc.minimize(task.fn, jc.newton_cg(), task.start, gtol=LIMITS.gtol, max_steps=500, max_evals=500)
    counted = SOLVERS["newton_cg"].solve(task, LIMITS)
    assert counted.products == counted.history[-1, 2] == int(result.state.num_products)
    assert np.all(np.diff(counted.history[:, 2]) > 0)
    assert SOLVERS["lbfgs"].solve(task, LIMITS).products == 0


@pytest.mark.parametrize("name", SCIPY)
def test_evaluations_of_scipy_are_the_calls_it_makes(name: str) -> None:
    task, calls = problem("beale"), {"value_and_grad": 0, "hessian": 0}

    def counting(what: str) -> Any:
        def call(x: Any) -> Any:
            calls[what] += 1
            return getattr(task, what)(x)

        return call

    outcome = SOLVERS[name].solve(task._replace(**{what: counting(what) for what in calls}), LIMITS)
    assert outcome.success
    assert outcome.evaluations == len(outcome.history) == calls["value_and_grad"]
    assert outcome.products == len(task.start) * calls["hessian"]
    assert (outcome.products > 0) == (name == "scipy_trust_exact")


@pytest.mark.parametrize("name", [*OURS, *SCIPY])
def test_the_budget_binds_and_is_no_success(name: str) -> None:
    outcome = SOLVERS[name].solve(problem("wood"), Limits(gtol=1e-8, max_evals=10))
    assert not outcome.success
    assert 10 <= outcome.evaluations <= 10 + 20  # scipy ends its line search first
    assert outcome.evaluations == 10 or name in SCIPY


# Verdicts


def claim(task: Task, params: Any, success: bool, history: Any = ((9.0, 1, 0),)) -> Outcome:
    return Outcome(np.array(params), success, "planted", np.array(history, float), len(history), 0)


def verdicts(task: Task, outcomes: Any) -> dict[str, Any]:
    return {row["solver"]: row for row in judge(task, outcomes)}


LOW, HIGH, TOP = -1.012272, 0.98737, 0.025032  # where the slope of (x^2 - 1)^2 + x / 10 vanishes


def stationary(near: float) -> float:
    x = near
    for _ in range(20):
        x -= (4 * x**3 - 4 * x + 0.1) / (12 * x**2 - 4)
    return x


@pytest.mark.parametrize("record", [False, True])
def test_a_liar_is_caught_and_what_is_true_is_believed(record: bool) -> None:
    low, high, top = map(stationary, (LOW, HIGH, TOP))
    fn = bowl().fn
    task = bowl((float(fn(jnp.array([low, 0.0]))), float(fn(jnp.array([high, 0.0])))) if record else ())
    row = verdicts(
        task,
        {
            "honest": claim(task, [low, 0.0], True),
            "near": claim(task, [low, 1e-3], True),
            "other": claim(task, [high, 0.0], True),
            "liar": claim(task, [0.5, 0.5], True),
            "saddle": claim(task, [top, 0.0], True),
            "modest": claim(task, [low, 0.0], False),
            "lost": claim(task, [0.5, 0.5], False),
            "nowhere": claim(task, [np.nan, 0.0], True),
            "broken": ValueError("no\nway"),
        },
    )
    said = {
        name: {flag for flag in ("solved_1e-05", "solved_1e-08", *judging.FLAGS) if of[flag]}
        for name, of in row.items()
    }
    both = {"solved_1e-05", "solved_1e-08"}
    assert said == {
        "honest": both,
        "near": {"solved_1e-05", "steep_success"},  # 1e-6 above the minimum, |g| = 2e-3
        "other": {*both, "other_minimum"},
        "liar": {"false_success", "steep_success"},
        "saddle": {"elsewhere"},
        "modest": {*both, "false_failure"},
        "lost": set(),
        "nowhere": {"false_success", "steep_success"},
        "broken": {"crashed"},
    }
    assert row["broken"]["status"] == "ValueError: no"
    assert row["saddle"]["lowest_curvature"] == pytest.approx(-1)
    assert row["liar"]["evaluations_1e-05"] == np.inf


def test_where_there_is_a_record_other_minima_do_not_count() -> None:
    low, high = stationary(LOW), stationary(HIGH)
    task = bowl((float(bowl().fn(jnp.array([low, 0.0]))),))
    row = verdicts(task, {"other": claim(task, [high, 0.0], True)})["other"]  # alone, but not the best on record
    assert not row["solved_1e-05"]
    assert row["elsewhere"]
    assert row["best_value"] == task.recorded[0]


def test_near_a_minimum_is_not_at_it() -> None:
    task = make_task("planted", "flat", lambda x: 1e-8 * x[0] ** 2, [100.0])
    (row,) = judge(task, {"near": claim(task, [10.0], True)})  # alone, so that it is the best
    assert row["solved_1e-08"]
    assert row["newton_gain"] == pytest.approx(1e-6)
    near, _ = judge(task, {"near": claim(task, [10.0], True), "there": claim(task, [0.0], True)})
    assert near["grad_norm"] < 1e-6
    assert (near["solved_1e-05"], near["solved_1e-08"]) == (True, False)


def test_a_plateau_is_no_minimum() -> None:
    task = make_task("planted", "well", lambda x: 1 - jnp.exp(-(x[0] ** 2)), [1.0])
    row = verdicts(task, {"there": claim(task, [0.0], True), "away": claim(task, [40.0], True)})
    assert row["there"]["solved_1e-08"]
    assert row["away"]["grad_norm"] == 0
    assert row["away"]["elsewhere"]
    assert not row["away"]["solved_1e-05"]


def test_what_has_no_minimum_is_solved_by_nobody() -> None:
    task = make_task("planted", "slope", lambda x: -jnp.exp(x[0]), [0.0])
    rows = judge(task, {"far": claim(task, [100.0], False), "flat": claim(task, [-50.0], True)})
    assert all(row["bottomless"] and not row["solved_1e-05"] for row in rows)
    assert costs(rows, {}, "evaluations_1e-05") == {}


def test_costs_are_up_to_where_the_value_was_first_reached() -> None:
    task = make_task("planted", "square", lambda x: x[0] ** 2, [1.0])
    history = [(1.0, 1, 0), (1e-4, 3, 5), (9e-6, 4, 9), (2e-5, 6, 10), (1e-9, 9, 12), (0.0, 11, 15)]
    (row,) = judge(task, {"solver": claim(task, [0.0], True, history)})
    assert (row["evaluations_1e-05"], row["work_1e-05"]) == (4, 4 + 9)
    assert (row["evaluations_1e-08"], row["work_1e-08"]) == (9, 9 + 12)
    assert row["evaluations"] == len(history)


def test_losses_and_medians_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: package)  # as if all were installed

    def rows_of(problem: str, **spent: float) -> list[dict[str, Any]]:
        flags = dict.fromkeys((*judging.FLAGS, "bottomless"), False)
        numbers = {"value": 0.0, "n": 2, "status": "planted"}
        return [
            {"problem": problem, "solver": name, **flags, **numbers}
            | {f"{cost}_{tau}": value for cost in judging.COSTS for tau in ("1e-05", "1e-08")}
            | {f"solved_{tau}": np.isfinite(value) for tau in ("1e-05", "1e-08")}
            for name, value in spent.items()
        ]

    names = ("lbfgs", "scipy_lbfgsb", "optax_lbfgs", "jaxopt_lbfgs")
    rows = [
        *rows_of("even", lbfgs=10, scipy_lbfgsb=10, optax_lbfgs=20, jaxopt_lbfgs=40),
        *rows_of("slow", lbfgs=31, scipy_lbfgsb=20, optax_lbfgs=np.inf, jaxopt_lbfgs=30),
        *rows_of("lost", lbfgs=np.inf, scipy_lbfgsb=np.inf, optax_lbfgs=7, jaxopt_lbfgs=np.inf),
        *rows_of("high", lbfgs=31, scipy_lbfgsb=5, optax_lbfgs=30, jaxopt_lbfgs=30),
        *rows_of("hard", lbfgs=np.inf, scipy_lbfgsb=np.inf, optax_lbfgs=np.inf, jaxopt_lbfgs=np.inf),
    ]
    rows[-7]["other_minimum"] = True  # soon at a minimum that is not as low
    lost = [(row["problem"], row["peer"], row["peer_cost"]) for row in where_ours_lose(rows) if row["tau"] == 1e-5]
    assert lost == [("slow", "scipy_lbfgsb", 20), ("lost", "optax_lbfgs", 7)]
    summary = {row["solver"]: row for row in summarise(rows, {name: SOLVERS[name] for name in names})}
    assert [summary[name]["solved_1e-08"] for name in names] == [3, 3, 3, 3]
    assert summary["lbfgs"]["median_ratio_evaluations"] == pytest.approx(1.55)  # of 1, 1.55 and 6.2
    assert summary["optax_lbfgs"]["median_ratio_evaluations"] == pytest.approx(2)  # of 2, 1 and 6
    assert summary["jaxopt_lbfgs"]["median_on_common"] == (40 + 30) / 2
    assert summary["lbfgs"]["common_problems"] == 2


def test_who_is_not_installed_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: None if package == "scipy" else package)
    absent, present = summary = summarise([], {name: SOLVERS[name] for name in ("scipy_bfgs", "lbfgs")})
    assert (absent["label"], absent["installed"], absent["solved_1e-08"]) == ("scipy BFGS", False, None)
    assert (present["installed"], present["solved_1e-08"]) == (True, 0)
    assert absent.keys() == present.keys()  # they are lines of one file
    (table,) = tables("None", [], summary, [], LIMITS)
    assert table.rows[0][:2] == ["scipy BFGS", "not installed"]
    assert {len(cells) for cells in table.rows} == {len(table.columns)}


def test_json_has_no_infinity() -> None:
    assert finite({"a": [1.0, np.inf, float("nan")], "b": "inf"}) == {"a": [1.0, None, None], "b": "inf"}


# The figure

COSTS = {  # of problems a, b, c, d; nobody solves d
    "fast": np.array([10.0, 10.0, np.inf, np.inf]),
    "sure": np.array([10.0, 40.0, 30.0, np.nan]),
}


def test_profiles_by_hand() -> None:
    (axes,) = jc.plots.performance_profiles(COSTS, title="T", cost="evaluations").axes
    fast, sure = ([np.asarray(data) for data in line.get_data()] for line in axes.lines)
    np.testing.assert_allclose(fast[0], [1, 4.2])
    np.testing.assert_allclose(fast[1], [0.5, 0.5])  # the best on a and b
    np.testing.assert_allclose(sure[0], [1, 4, 4.2])
    np.testing.assert_allclose(sure[1], [0.5, 0.75, 0.75])  # the best on a and c, 4 times the best on b
    assert {line.get_drawstyle() for line in axes.lines} == {"steps-post"}
    assert axes.get_xscale() == "log"


def test_profiles_are_labelled_and_differ_without_colour() -> None:
    many = {f"solver {i}": np.array([10.0, 10.0 + i, np.inf]) for i in range(10)}
    figure, file = jc.plots.performance_profiles(many, title="T", cost="evaluations"), io.BytesIO()
    figure.savefig(file, dpi=60)
    file.seek(0)
    assert imread(file)[..., :3].std() > 0.02
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == set(many)
    assert axes.get_title() == "T"
    assert "evaluations" in axes.get_xlabel()
    looks: list[Any] = [(line.get_color(), str(line._dash_pattern)) for line in axes.lines]  # type: ignore[attr-defined]
    assert len(set(looks)) == len(many)
    assert len({dashes for _, dashes in looks[:7]}) == 7


def test_profiles_of_those_that_solve_nothing() -> None:
    nothing = {"a": np.full(2, np.inf), "b": np.full(2, np.nan)}
    (axes,) = jc.plots.performance_profiles(nothing, title="T", cost="evaluations").axes
    assert all(np.all(np.asarray(line.get_ydata()) == 0) for line in axes.lines)


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "profiles"
    options = ("--problems", "rosenbrock", "beale", "--solvers", "lbfgs", "newton", "scipy_bfgs", "--max-evals", "300")
    command = [sys.executable, "-W", "error", "-m", "experiments", "profiles", *options, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("Moré-Garbow-Hillstrom: 2 problems", "L-BFGS", "Newton", "scipy BFGS", "report.html"):
        assert words in done.stdout
    return out


def test_files(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["ok"], manifest["dtype"]) == ("done", True, "float64")
    assert manifest["data"]["problems"] == ["rosenbrock", "beale"]
    assert set(manifest["given"]) == {"lbfgs", "newton", "scipy_bfgs"}
    with (folder / "problems.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["problem"], row["solver"]) for row in rows] == [(line["problem"], line["solver"]) for line in lines]
    assert len(rows) == 2 * 3
    for row in rows:
        assert row["solved_1e-05"] == row["solved_1e-08"] == row["success"] == "True"
        assert float(row["value"]) < 1e-12
        assert 1 < float(row["evaluations_1e-05"]) <= float(row["evaluations_1e-08"]) <= int(row["evaluations"]) < 80
    with (folder / "summary.csv").open() as file:
        summary = {row["solver"]: row for row in csv.DictReader(file)}
    assert {row["solved_1e-08"] for row in summary.values()} == {"2"}
    assert float(summary["newton"]["median_ratio_evaluations"]) >= 1
    assert float(summary["newton"]["median_ratio_work"]) > 1
    page = (folder / "report.html").read_text()
    assert page.count("<img src='data:image/png;base64,") == 2
    assert "False success" in page
    assert {path.name for path in (folder / "figures").iterdir()} == {"mgh_evaluations.png", "mgh_work.png"}


def test_a_problem_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.__main__ import main

    assert main(["profiles", "--problems", "nonsense", "--out", str(tmp_path / "run")]) == 2
    assert "no problem of mgh is called nonsense" in capsys.readouterr().err


def test_arguments_name_what_there_is() -> None:
    assert tuple(SOLVERS) == arguments.PROFILED
    assert set(judging.RIVALS) <= SOLVERS.keys()
    assert {name for _, names in judging.RIVALS.values() for name in names} <= SOLVERS.keys()


# Within bounds


def slope() -> Task:
    """(x - 2)^2 + (y - x)^2 for x <= 1: the minimum is at (1, 1), held by the bound."""
    bounds = np.array([-np.inf, -np.inf]), np.array([1.0, np.inf])
    return make_task("planted", "slope", lambda w: (w[0] - 2) ** 2 + (w[1] - w[0]) ** 2, [3.0, 0.0], (1.0,), bounds)


@pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained")
@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if solver.bounded])
def test_every_solver_for_bounds_ends_at_the_bound(name: str) -> None:
    if not SOLVERS[name].installed:
        pytest.skip(f"{SOLVERS[name].package} is not installed")
    task = slope()
    assert np.array_equal(task.start, [1.0, 0.0])
    outcome = SOLVERS[name].solve(task, LIMITS)
    (row,) = judge(task, {name: outcome})
    assert np.max(np.abs(outcome.params - 1)) <= 1e-3
    if name != "scipy_trust_constr":  # an interior point method, which stays inside
        assert row["solved_1e-05"]
        assert not row["false_success"]


@pytest.mark.parametrize(
    ("params", "solved", "false"),
    [((1.0, 1.0), True, False), ((1.0, 0.5), False, True), ((0.5, 0.5), False, True), ((1.5, 1.5), False, True)],
)
def test_claims_within_bounds_are_judged_by_what_the_bounds_leave(
    params: tuple[float, float], solved: bool, false: bool
) -> None:
    end = Outcome(np.array(params), True, "planted", np.array([[1.0, 1.0, 0.0]]), 1, 0)
    (row,) = judge(slope(), {"planted": end})
    assert row["solved_1e-08"] is solved
    assert row["false_success"] is false


def test_a_solver_without_bounds_is_refused_for_the_bounded_collection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.__main__ import main

    command = [
        "profiles",
        "--collection",
        "bounded",
        "--solvers",
        "lbfgs",
        "scipy_bfgs",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(command) == 2
    assert "scipy_bfgs cannot solve --collection bounded" in capsys.readouterr().err
