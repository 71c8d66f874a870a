"""The gradient experiment from its command line, made small; its numbers are computed again from the images."""

import argparse
import csv
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from experiments import arguments, gradcheck, planted
from experiments.__main__ import main
from experiments.benchmarks.timing import installed
from experiments.runs import start_run
from tests.commands import printed

SMALL = (
    "import sys, experiments.gradcheck as g, experiments.planted as p\n"
    "from experiments.__main__ import main\n"
    "g.WIDTHS, g.CALLS, g.VARIED, p.PIXELS = (2, 8), 2, 20, 16\n"
    "sys.exit(main(['gradcheck', *sys.argv[1:]]))\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run as a user starts one, in float32 by default, but with little to do."""
    out = tmp_path_factory.mktemp("runs") / "gradcheck"
    shown = printed(SMALL, "--batch-size", "16", "--rounds", "1", "--out", str(out))
    for words in ("W + h", "central", "gradcheck: PASS", "h* in theory", "ratio of times", "wrong sign", "report.html"):
        assert words in shown
    return out


def read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def problem(batch_size: int = 16, l2: float = 1e-4) -> gradcheck.Problem:
    parser = argparse.ArgumentParser()
    arguments.gradcheck(parser)
    return gradcheck.load_problem(parser.parse_args(["--batch-size", str(batch_size), "--l2", str(l2)]))


def test_what_it_leaves(folder: Path) -> None:
    from matplotlib.image import imread

    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["ok"], manifest["dtype"]) == ("done", True, "float64")
    assert manifest["arguments"]["batch_size"] == 16
    assert "torch" in manifest["versions"]
    assert {path.stem for path in folder.glob("*.csv")} == {"walk", "checks", "steps", "valleys", "costs", "bugs"}
    assert {path.name for path in (folder / "figures").iterdir()} == {"step_sizes.png", "costs.png"}
    for path in (folder / "figures").iterdir():
        assert imread(path)[..., :3].std() > 0.02
    page = (folder / "report.html").read_text()
    assert page.count("<table>") == 5
    assert page.count("<img src='data:image/png;base64,") == 2
    assert page.count("<pre>gradcheck: PASS") == 2
    assert "<strong>passes (wrong)</strong>" in page or not installed("torch")


def test_the_walk_is_the_lectures(folder: Path) -> None:
    p, rows = problem(), read(folder, "walk")
    params = jax.tree.map(np.asarray, p.params)

    def loss(name: str, W: np.ndarray) -> float:
        scores = p.images @ W.T + params["b"]
        gaps = scores - scores[np.arange(16), p.labels][:, None]
        losses = {"hinge": np.maximum(gaps + 1, 0).sum(axis=1) - 1, "softmax": np.log(np.exp(gaps).sum(axis=1))}
        return float(losses[name].mean() + 1e-4 * ((W**2).sum() + (params["b"] ** 2).sum()))

    assert [row["loss"] for row in rows] == ["hinge"] * 8 + ["softmax"] * 8
    for row in rows:
        i, j = map(int, row["entry"][2:-1].split(","))
        moved = params["W"].copy()
        moved[i, j] += 1e-4
        here, ahead = loss(row["loss"], params["W"]), loss(row["loss"], moved)
        assert float(row["value"]) == pytest.approx(here, rel=1e-13)
        assert float(row["value_at_W_plus_h"]) == pytest.approx(ahead, rel=1e-13)
        assert float(row["forward"]) == pytest.approx((ahead - here) / 1e-4, abs=1e-10)
        assert float(row["analytic"]) == pytest.approx(float(row["central"]), abs=1e-8)
    blank = [row for row in rows if abs(float(row["analytic"])) < 1e-4]
    assert len(blank) == 2  # one for each loss: a pixel that is never inked
    for row in blank:
        assert float(row["analytic"]) == pytest.approx(2 * 1e-4 * float(row["W"]))
    assert all(check["ok"] == "True" for check in read(folder, "checks"))


def test_slopes_and_the_best_step_are_as_in_theory(folder: Path) -> None:
    steps = read(folder, "steps")
    assert len(steps) == 3 * 2 * len(gradcheck.STEPS)
    for row in read(folder, "valleys"):
        own = [s for s in steps if (s["dtype"], s["method"]) == (row["dtype"], row["method"])]
        errors = {float(s["h"]): float(s["relative_error"]) for s in own}
        assert min(errors.values()) == float(row["least_error"])
        assert errors[float(row["best_h"])] == float(row["least_error"])
        assert 1 / 6 < float(row["best_h"]) / float(row["best_h_predicted"]) < 6
        assert 1 / 20 < float(row["least_error"]) / float(row["least_error_predicted"]) < 2
        if row["dtype"] != "float16":
            assert float(row["slope_left"]) == pytest.approx(-1, abs=0.2)
            assert float(row["slope_right"]) == pytest.approx(float(row["slope_right_expected"]), abs=0.2)
        if row["dtype"] == "float64":
            between = [h for h in errors if 1e-4 < h < 1e-2]
            fit = np.polyfit(np.log(between), np.log([errors[h] for h in between]), 1)[0]
            assert fit == pytest.approx({"forward": 1, "central": 2}[row["method"]], abs=0.02)


def test_predictions_follow_from_the_derivatives() -> None:
    def f(w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(w))

    at = jnp.array([0.5, 1.0])
    first, second, third = gradcheck.derivatives(f, at)
    np.testing.assert_allclose([first, second, third], [np.cos(at), -np.sin(at), -np.cos(at)])
    for theory in gradcheck.THEORY.values():  # the best step is where the error is least
        best = theory.best(1e-16, 2.0, 3.0)
        error = theory.error(best * np.array([0.99, 1.0, 1.01]), 1e-16, 2.0, 3.0)
        assert np.argmin(error) == 1


def test_costs(folder: Path) -> None:
    rows = read(folder, "costs")
    assert [int(row["parameters"]) for row in rows] == [20, 80]
    for row in rows:
        assert int(row["numerical_evaluations"]) == 2 * int(row["parameters"])
        assert float(row["ratio"]) == pytest.approx(float(row["numerical_seconds"]) / float(row["analytic_seconds"]))


def test_every_bug_is_found_and_nothing_else(folder: Path) -> None:
    rows = {row["bug"]: row for row in read(folder, "bugs")}
    assert {name for name, row in rows.items() if row["right"] == "True"} == {
        "none, softmax",
        "none, hinge",
        "none, relu at its kink",
    }
    assert len(rows) == 16
    for row in rows.values():
        assert row["verdict"] == "FAIL" if row["right"] == "False" else row["verdict"] in ("PASS", "KINK")
    assert rows["last class left out"]["place"].startswith("params[9, ")
    assert rows["1 of 400 entries zero, sin"]["place"] == "params[123]"
    assert rows["wrong sign"]["place"] == "whole leaf"
    assert float(rows["factor 1.001"]["relative_error"]) == pytest.approx(1e-3, rel=0.01)
    assert rows["JVP zero, sin, float32"]["jax"] == "passes (wrong)"
    assert rows["none, softmax"]["jax"] == "passes"
    assert rows["wrong sign"]["jax"] == "fails"
    if installed("torch"):
        assert rows["zero, of 1e-6 sum w^2"]["torch"] == "passes (wrong)"
        assert rows["1 of 400 entries zero, sin"]["torch"] == "fails"
        assert rows["1 of 400 entries zero, sin"]["torch_fast"] == "passes (wrong)"
        assert rows["none, softmax"]["torch"] == "passes"
    else:
        assert {row["torch"] for row in rows.values()} == {"not installed"}


def test_what_bugs_are_planted_in_is_the_librarys_objective() -> None:
    p = problem()
    cases = {case.name: case for case in gradcheck.planted_bugs(p)}
    for name, loss in (("softmax", jc.losses.softmax_cross_entropy), ("hinge", jc.losses.multiclass_hinge)):
        case = cases[f"none, {name}"]
        objective = jc.empirical_risk(jc.scores.linear, loss, jc.losses.l2_penalty, p.l2)
        batch = jnp.asarray(p.images), jnp.asarray(p.labels)
        value, gradient = jax.jit(jax.value_and_grad(objective))(jnp.asarray(case.at), batch)
        by_hand, gradient_by_hand = jax.jit(jax.value_and_grad(case.in_jax()))(jnp.asarray(case.at))
        np.testing.assert_allclose(by_hand, value, rtol=1e-14)
        np.testing.assert_allclose(gradient_by_hand, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.skipif(not installed("torch"), reason="torch is not installed")
def test_torch_gets_the_same_gradients() -> None:
    import torch

    for case in gradcheck.planted_bugs(problem(batch_size=4)):
        w = torch.tensor(case.at, requires_grad=True)
        out = case.in_torch()(w)
        (theirs,) = torch.autograd.grad(out, w, torch.ones_like(out))
        ours = jax.jit(partial(case.pullback, jnp))(case.at, np.ones(out.shape, case.at.dtype))
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-10, atol=1e-14)


def test_whether_a_gradient_is_right_is_computed() -> None:
    """Without a penalty it cannot be forgotten; of one example the last is all."""
    cases = {case.name: case for case in gradcheck.planted_bugs(problem(batch_size=1, l2=0.0))}
    assert all(cases[name].is_right() for name in ("last example only", "1/N missing", "penalty forgotten"))
    assert not any(cases[name].is_right() for name in ("factor 1.001", "last class left out"))


def test_a_peer_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted.timing, "installed", lambda package: False)
    (case, *_) = gradcheck.planted_bugs(problem())
    judgement = planted.ask_torch(case, fast=False)
    assert judgement.cell(right=True) == judgement.cell(right=False) == "not installed"


def test_a_check_that_is_wrong_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that is taken for right; only that is tried, and ours alone."""
    cases = gradcheck.planted_bugs
    monkeypatch.setattr(gradcheck, "planted_bugs", lambda problem: cases(problem)[1:2])
    monkeypatch.setattr(gradcheck.Planted, "is_right", lambda self: True)
    for part in ("walk", "valleys", "costs"):
        monkeypatch.setattr(gradcheck, part, lambda *_: gradcheck.Part({}, []))
    for peer in gradcheck.PEERS:
        monkeypatch.setitem(gradcheck.PEERS, peer, lambda case: planted.Judgement(None, "not asked"))
    assert main(["gradcheck", "--batch-size", "8", "--json", "--out", str(tmp_path / "run")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert [(bug["bug"], bug["verdict"], bug["right"]) for bug in found["bugs"]] == [("wrong sign", "FAIL", True)]
    assert "<strong>FAIL (wrong)</strong>" in (tmp_path / "run" / "report.html").read_text()


def test_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("walk", "valleys", "costs", "bugs"):
        monkeypatch.setattr(gradcheck, part, lambda *_: gradcheck.Part({}, ["text"]))
    assert main(["gradcheck", "--quiet", "--out", str(tmp_path / "quiet")]) == 0
    assert capsys.readouterr().out == ""
    assert main(["gradcheck", "--out", str(tmp_path / "loud")]) == 0
    assert capsys.readouterr().out.count("text\n") == 4
    assert json.loads((tmp_path / "quiet" / "manifest.json").read_text())["status"] == "done"


@pytest.mark.parametrize("argv", [("--data", "nope"), ("--batch-size", "0"), ("--rounds", "0"), ("--l2", "-1")])
def test_wrong_usage_exits_2(argv: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["gradcheck", *argv])
    assert left.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_batch_larger_than_the_data_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradcheck", "--batch-size", "5000", "--out", str(tmp_path / "run")]) == 2
    assert "more than the 1437 training images" in capsys.readouterr().err


def test_entries_to_walk() -> None:
    images = np.array([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 1.0]])
    entries = gradcheck.entries_to_walk(images, (3, 4))
    assert entries == [(0, 0), (0, 1), (0, 3), (1, 1), (1, 3), (2, 1), (2, 3)]  # one blank pixel, the first
    assert gradcheck.entries_to_walk(np.ones((2, 4)), (3, 4)) == [(k // 4, k % 4) for k in range(8)]


def test_parts_run_where_nothing_is_promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradcheck, "WIDTHS", (2, 3))
    monkeypatch.setattr(gradcheck, "STEPS", np.logspace(-12, 0, 13))
    monkeypatch.setattr(gradcheck, "VARIED", 3)
    monkeypatch.delitem(gradcheck.DTYPES, "float32")
    p = problem(batch_size=4)._replace(rounds=1)
    with start_run("gradcheck", {}, tmp_path / "run") as folder:
        assert gradcheck.valleys(p, folder).ok
        assert gradcheck.costs(p, folder).ok
