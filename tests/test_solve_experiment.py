"""Full-batch solves from the command line, made small; optima and endings are computed again by other means."""

import argparse
import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import jaxopt_course as jc
from experiments import arguments, solve, solve_l1
from experiments.__main__ import main
from tests.commands import printed

SMALL = (
    "import sys, experiments.solve as s\n"
    "from experiments.__main__ import main\n"
    "s.RATES, s.TIMED_ROUNDS = s.RATES[8:10], 1\n"
    "sys.exit(main(['solve', *sys.argv[1:]]))\n"
)
METHODS = ("sgd", "lbfgs", "newton_cg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run as a user starts one, in float32 by default, but with little to do."""
    out = tmp_path_factory.mktemp("runs") / "solve"
    shown = printed(SMALL, "--max-steps", "30", "--out", str(out), "--methods", *METHODS)
    for words in ("Softmax regression on digits", "Multiclass SVM on digits", "L-BFGS", "GRADIENT_NORM", "report.html"):
        assert words in shown
    return out


def digits() -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = jc.data.load("digits").train
    return inputs.astype(float), labels


def value(loss: str, W: np.ndarray, l2: float = 1e-3) -> float:
    """The objective in NumPy."""
    inputs, labels = digits()
    scores = inputs @ W.T
    gaps = scores - scores[np.arange(len(labels)), labels][:, None]
    losses = np.maximum(gaps + 1, 0).sum(axis=1) - 1 if loss == "hinge" else np.log(np.exp(gaps).sum(axis=1))
    return float(losses.mean() + l2 * (W**2).sum())


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_it_leaves(folder: Path) -> None:
    manifest, rows = read(folder)
    assert (manifest["status"], manifest["dtype"]) == ("done", "float64")
    assert manifest["arguments"]["methods"] == list(METHODS)
    assert {path.name for path in (folder / "figures").iterdir()} == {"softmax.png", "hinge.png"}
    for path in (folder / "figures").iterdir():
        assert imread(path)[..., :3].std() > 0.02
    page = (folder / "report.html").read_text()
    assert page.count("<table>") == 2
    assert page.count("<img src='data:image/png;base64,") == 2
    assert all(column in page for column in solve.COLUMNS)
    assert len([row for row in rows if row["kind"] == "rate"]) == 2 * 2  # of gradient descent, on either problem
    assert [row for row in rows if row["kind"] == "result"] == [{"kind": "result", **r} for r in manifest["results"]]
    assert [(r["problem"], r["method"]) for r in manifest["results"]] == [
        (loss, method) for loss in ("softmax", "hinge") for method in METHODS
    ]


def test_the_optimum_of_softmax_is_scikit_learns(folder: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    C = 1 / (2 * 1e-3 * len(digits()[1]))
    with threadpool_limits(1):
        model = LogisticRegression(C=C, fit_intercept=False, solver="lbfgs", tol=1e-8, max_iter=1000).fit(*digits())
    optimum = value("softmax", model.coef_)
    manifest, _ = read(folder)
    assert manifest["references"]["softmax"]["value"] == pytest.approx(optimum, abs=1e-10)
    assert manifest["references"]["softmax"]["bound"] < 1e-12
    for result in manifest["results"]:
        if result["problem"] == "softmax" and result["claim"]:
            assert result["value"] == pytest.approx(optimum, abs=1e-8)


def test_results_are_true_of_the_parameters(folder: Path) -> None:
    inputs, labels = jc.data.load("digits").test
    manifest, rows = read(folder)
    with np.load(folder / "params.npz") as params:
        for result in manifest["results"]:
            loss, W = result["problem"], params[f"{result['problem']}/{result['method']}"]
            assert result["value"] == pytest.approx(value(loss, W), rel=1e-13)
            optimum = manifest["references"][loss]
            assert result["above_optimum"] == pytest.approx(result["value"] - optimum["value"], abs=1e-16)
            assert result["above_optimum"] > -optimum["bound"] - 1e-15
            assert result["test_accuracy"] == pytest.approx(np.mean(np.argmax(inputs @ W.T, axis=1) == labels))
        for loss, optimum in manifest["references"].items():
            assert optimum["value"] == pytest.approx(value(loss, params[f"{loss}/reference"]), rel=1e-13)
    tried = [row for row in rows if row["kind"] == "rate" and row["problem"] == "hinge"]
    best = min(tried, key=lambda row: row["value"])
    shown = next(r for r in manifest["results"] if (r["problem"], r["method"]) == ("hinge", "sgd"))
    assert (shown["learning_rate"], shown["value"]) == (best["learning_rate"], pytest.approx(best["value"]))


def test_metrics_hold_every_step(folder: Path) -> None:
    manifest, _ = read(folder)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for result in manifest["results"]:
        own = [row for row in rows if (row["problem"], row["method"]) == (result["problem"], result["method"])]
        assert [int(row["step"]) for row in own] == list(range(result["num_steps"] + 1))
        assert int(own[-1]["num_evals"]) == result["num_evals"]
        assert float(own[-1]["seconds"]) == pytest.approx(result["seconds"])
        assert min(float(row["value"]) for row in own) == pytest.approx(result["value"], rel=1e-12)
        assert len({row["value"] for row in own if row["step"] == "0"}) == 1


@pytest.mark.parametrize(("l2", "optimum"), [(0.1, 0.05), (2.0, 0.75)])  # at the kink, and on the slope before it
def test_the_optimum_of_the_svm_where_it_is_known(l2: float, optimum: float) -> None:
    """x = 1 in class 0, x = -1 in class 1: max(0, 1 - m) + l2 m^2 / 2 with m the difference of the two weights."""
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.multiclass_hinge, jc.losses.l2_penalty, l2)
    data = jnp.array([[1.0], [-1.0]]), jnp.array([0, 1])
    found = solve.svm_reference(objective, data, 2, l2)
    assert found.value == pytest.approx(optimum, abs=1e-9)
    assert -1e-15 < found.bound <= 1e-9
    assert found.params == pytest.approx(min(1, 1 / l2) * np.array([[0.5], [-0.5]]), abs=1e-4)


def test_the_optimum_of_the_svm_is_certified(folder: Path) -> None:
    """Strongly convex: everywhere the value is above the optimum by l2 |W - W*|^2, and nobody is below."""
    manifest, _ = read(folder)
    optimum = manifest["references"]["hinge"]
    assert 0 <= optimum["bound"] < 1e-8
    with np.load(folder / "params.npz") as params:
        best = params["hinge/reference"]
        others = [params[name] for name in params if not name.endswith("reference")]
        others += [best + size * np.random.default_rng(0).standard_normal(best.shape) for size in (1e-2, 1e-4, 1e-6)]
    for W in others:
        apart = max(0, np.linalg.norm(W - best) - np.sqrt(optimum["bound"] / 1e-3))
        assert value("hinge", W) >= optimum["value"] - optimum["bound"] + 1e-3 * apart**2


def planted(status: jc.Status) -> Any:
    """In place of `solve`: nothing moves, and the end is called by this name."""

    def stay(method: solve.Method, problem: solve.Problem, args: argparse.Namespace) -> solve.Solve:
        row = jnp.ones(1)
        trace = jc.training.SolveTrace(row, row, row, row)
        ended = jnp.array(int(status)), jnp.array(0), jnp.array(1)
        return solve.Solve(jc.Result(problem.start, row[0], row[0], *ended, trace=trace), 0.1, 1.0, 1.0, [])

    return stay


@pytest.mark.parametrize("status", [jc.Status.GRADIENT_NORM, jc.Status.SMALL_DECREASE, jc.Status.LINE_SEARCH_FAILED])
def test_a_false_success_exits_1_and_stands_out(
    status: jc.Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(solve, "solve", planted(status))
    monkeypatch.setattr(solve, "LOSSES", {"softmax": jc.losses.softmax_cross_entropy})
    monkeypatch.setattr(solve, "FEW", 10)  # so that Newton is left out
    code = main(["solve", "--methods", "sgd", "newton", "--json", "--out", str(tmp_path / "run")])
    (result,) = json.loads(capsys.readouterr().out)["results"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert code == (status > 0)
    assert result["claim"] is (False if status > 0 else None)
    assert ("<strong>FALSE</strong>" in page) == (status > 0)
    assert "Newton is left out" in page
    assert result["grad_norm"] > 0.01  # of the start, whatever was said


def test_a_claim_is_held_to_the_tolerance_of_its_dtype() -> None:
    args = argparse.Namespace(data="synthetic", root=None, float32=True, l2=1e-3, seed=0)
    problem = solve.load_problem(args, jc.data.load("synthetic"), "softmax")
    assert problem.start.dtype == problem.train[0].dtype == jnp.float32
    assert problem.exact[0].dtype == jnp.float64
    near = jnp.asarray(problem.reference.params + 1e-3, jnp.float32)
    solved = planted(jc.Status.GRADIENT_NORM)(solve.METHODS["sgd"], problem._replace(start=near), args)
    norm = solve.judge("sgd", solved, problem, None)["grad_norm"]
    assert 1e-7 < norm < 3e-4  # the square root of the precision is 3.5e-4
    assert solve.judge("sgd", solved, problem, None)["claim"] is True
    exact = problem._replace(start=problem.start.astype(jnp.float64))
    assert solve.judge("sgd", solved, exact, None)["claim"] is False
    assert solve.judge("sgd", solved, exact, 1e-3)["claim"] is True


def test_the_best_rate_reaches_the_tolerance_soonest_or_gets_lowest() -> None:
    def row(value: float, status: int, num_evals: int) -> dict[str, Any]:
        return {"value": value, "status": status, "num_evals": num_evals}

    lost, slow, quick = row(np.nan, -4, 3), row(1.0, 1, 90), row(1.0 + 1e-13, 1, 40)
    assert min([lost, slow, quick, row(0.9, -1, 1001)], key=solve.how_good) is quick
    assert min([lost, row(0.9, -1, 1001), row(0.8, -1, 1001)], key=solve.how_good)["value"] == 0.8


def test_arguments_name_what_there_is() -> None:
    assert tuple(solve.METHODS) == arguments.SOLVED_BY


@pytest.mark.parametrize(
    "argv",
    [("--methods", "adamw"), ("--l2", "0"), ("--l2", "inf"), ("--gtol", "-1"), ("--max-steps", "0"), ("--data", "no")],
)
def test_wrong_usage_exits_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["solve", *argv])
    assert left.value.code == 2
    assert "usage" in capsys.readouterr().err


# The figure

STEPS = np.arange(1.0, 51.0)
EXCESS = {f"method {i}": 10.0 ** -(i * STEPS / 20) for i in range(1, 8)} | {
    "twin": 10.0 ** -(STEPS / 20),
    "lost": np.where(STEPS > 9, np.nan, 2.0),
}
COSTS = {"evaluations": dict.fromkeys(EXCESS, STEPS), "seconds": dict.fromkeys(EXCESS, 1e-3 * STEPS)}


def curves(floor: float = 1e-12) -> Figure:
    return jc.plots.convergence_curves(EXCESS, COSTS, title="T", ylabel="excess", floor=floor)


def test_curves_are_labelled_and_not_blank() -> None:
    figure, file = curves(), io.BytesIO()
    figure.savefig(file, dpi=60)
    file.seek(0)
    assert imread(file)[..., :3].std() > 0.02
    assert figure.get_suptitle() == "T"
    assert [axes.get_xlabel() for axes in figure.axes] == list(COSTS)
    assert figure.axes[0].get_ylabel() == "excess"
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert set(EXCESS) <= {text.get_text() for text in axes.texts}


def test_curves_are_true_to_the_arrays_down_to_the_floor() -> None:
    for axes, spent in zip(curves().axes, COSTS.values(), strict=True):
        lines: list[Any] = list(axes.lines)
        for line, (name, excess) in zip(lines, EXCESS.items(), strict=False):
            np.testing.assert_allclose(line.get_xdata(), spent[name])
            shown: Any = np.ma.filled(np.ma.asarray(line.get_ydata(), float), np.nan)
            np.testing.assert_allclose(shown, np.maximum(excess, 1e-12))
        floor = lines[len(EXCESS)]
        np.testing.assert_allclose(floor.get_ydata(), 1e-12)
        ends = {(line.get_xdata()[0], line.get_ydata()[0]) for line in lines[len(EXCESS) + 1 :]}
        assert (pytest.approx(spent["lost"][8]), 2.0) in [(pytest.approx(x), y) for x, y in ends]
        assert len(lines) == 2 * len(EXCESS) + 1
    assert "no better can be told" not in {text.get_text() for text in curves(floor=1e-30).axes[0].texts}


def test_curves_differ_without_colour_and_names_do_not_touch() -> None:
    figure = curves()
    figure.draw_without_rendering()
    for axes in figure.axes:
        lines: list[Any] = list(axes.lines[: len(EXCESS)])
        assert len({str(line._dash_pattern) for line in lines}) == len({line.get_color() for line in lines}) == 9
        names: list[Any] = [text for text in axes.texts if text.get_text() in EXCESS]
        boxes = [name.get_window_extent() for name in names]
        assert not [(i, j) for i in range(9) for j in range(i) if boxes[i].overlaps(boxes[j])]
        assert all(axes.bbox.containsx(x) for box in boxes for x in (box.x0, box.x1))


def test_curves_of_nothing_are_still_a_figure() -> None:
    nothing = {"lost": np.full(3, np.nan)}
    costs = {"evaluations": {"lost": np.arange(1.0, 4.0)}}
    (axes,) = jc.plots.convergence_curves(nothing, costs, title="T", ylabel="excess", floor=1e-12).axes
    assert not axes.texts


def test_the_path_of_l1_is_a_table_and_two_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve_l1, "STRENGTHS", 4)
    out, shown = tmp_path / "l1", io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(["solve", "--l1", "--out", str(out)]) == 0
    assert "Softmax regression with L1 on digits" in shown.getvalue()
    rows = list(csv.DictReader(io.StringIO((out / "metrics.csv").read_text())))
    counts = [int(row["nonzero"]) for row in rows]
    assert len(rows) == 4
    assert counts[0] <= 2
    assert counts == sorted(counts)
    assert all(float(row["residual"]) <= 1e-8 for row in rows)
    with np.load(out / "params.npz") as arrays:
        weights = arrays["weights"]
    assert [int(np.sum(W != 0)) for W in weights] == counts
    for name in ("l1_path.png", "l1_templates.png"):
        assert imread(out / "figures" / name).std() > 0.01


def test_coefficient_paths_run_from_the_strongest_to_the_weakest() -> None:
    strengths, coefficients = np.array([0.1, 1.0, 0.01]), np.array([[0.5, 0.0], [0.0, 0.0], [1.0, -2.0]])
    upper, lower = jc.plots.coefficient_paths(strengths, coefficients, title="T").axes
    lines = [line.get_ydata() for line in upper.get_lines()]
    np.testing.assert_array_equal(lines[:2], [[0.0, 0.5, 1.0], [0.0, 0.0, -2.0]])
    np.testing.assert_array_equal(lower.get_lines()[0].get_ydata(), [0, 1, 2])
    assert lower.get_xlim()[0] > lower.get_xlim()[1]
