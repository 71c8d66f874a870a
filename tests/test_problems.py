"""Races on a problem of one's own: the example with flax, what a file may leave out, and what is wrong with one."""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxopt_course as jc
from experiments import arguments
from experiments.__main__ import main
from experiments.arguments import UsageError
from experiments.problems import RATES, load_problem

SPIRALS = Path(__file__).parent.parent / "experiments" / "examples" / "spirals.py"
LEAST = """
import numpy as np
data = np.arange(12.0, dtype=np.float32)
init = {"w": np.ones(2, np.float32)}
def objective(params, batch):
    return ((params["w"].sum() - batch) ** 2).mean()
"""


@pytest.fixture(autouse=True)
def as_on_the_command_line() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loaded(path: Path, *options: str) -> Any:
    parser = argparse.ArgumentParser()
    arguments.race(parser)
    return load_problem(parser.parse_args(["--problem", str(path), *options]))


def written(folder: Path, text: str) -> Path:
    path = folder / "problem.py"
    path.write_text(text)
    return path


def test_spirals_by_a_network_of_flax_and_a_rule_of_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flax")
    rules = ("adam", f"{SPIRALS}:sign_momentum")
    options = ("--epochs", "2", "--seeds", "3", "--fresh-seeds", "3", "--json", "--out", str(tmp_path / "run"))
    assert main(["race", "--problem", str(SPIRALS), "--optimizers", *rules, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    results = {row["optimizer"]: row for row in found["results"]}
    assert {name: row["same_as_optax"] for name, row in results.items()} == {
        "Adam": True,
        "spirals.py:sign_momentum": None,
    }
    assert all(0.2 < row["held_out_accuracy_mean"] <= 1 for row in results.values())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["batch_size"] == 50
    assert manifest["data"]["train"] == 300
    assert manifest["grid"] == {"learning_rate": [1e-3, 1e-2, 1e-1]}
    names = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert names == {"learning_curves.png", "learning_rates.png"}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 3 * 12  # optimizers, fresh seeds, 2 epochs of 6 batches
    result = jc.RaceResult.load(tmp_path / "run" / "race.npz")
    assert result.verdict == found["verdict"]
    assert "held out accuracy" in (tmp_path / "run" / "report.html").read_text()


def test_what_a_file_may_leave_out(tmp_path: Path) -> None:
    path = written(tmp_path, LEAST)
    problem = loaded(path, "--batch-size", "4")
    assert (problem.batch_size, problem.eval_fn, problem.classifier) == (4, None, None)
    np.testing.assert_array_equal(problem.grid["learning_rate"], RATES)
    assert problem.about["name"] == "problem"
    with pytest.raises(UsageError, match=r"--batch-size 128 is more than the 12 examples of .*problem\.py"):
        loaded(path)


def test_the_batch_size_of_the_command_line_counts_more(tmp_path: Path) -> None:
    path = written(tmp_path, f"{LEAST}batch_size = 3\n")
    assert loaded(path).batch_size == 3
    assert loaded(path, "--batch-size", "6").batch_size == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data = 1", "does not define objective, init; a problem is objective"),
        (LEAST.replace("def objective", "def other"), "does not define objective;"),
        (f"{LEAST}objective = 3", "objective must be a function, it is a int"),
        (f"{LEAST}eval_fn = {{}}", "eval_fn must be a function, it is a dict"),
        (f"{LEAST}data = 3.0", "data must be a tree of arrays"),
        (f"{LEAST}data = {{}}", "data must be a tree of arrays"),
        (f"{LEAST}batch_size = 2.5", "batch_size must be a whole number >= 1, it is 2.5"),
        (f"{LEAST}batch_size = 0", "batch_size must be a whole number >= 1, it is 0"),
        (f"{LEAST}1 / 0", r"problem.py, line \d+: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        loaded(written(tmp_path, text))


def test_arguments_that_the_file_makes_void_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --loss, --model"):
        loaded(written(tmp_path, LEAST), "--loss", "hinge", "--model", "mlp")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{LEAST}grid = {{'rate': [0.1]}}", "race: SGD has no hyperparameter rate; it takes learning_rate"),
        (f"{LEAST}grid = {{'learning_rate': []}}", "race: grid: learning_rate has no values"),
        (LEAST.replace(" - batch", ' - batch["x"]'), "problem.py, line 6: "),
        (
            LEAST.replace("np.ones(2, np.float32)", "np.ones(2, int)"),
            "init must be a function key -> params",
        ),
    ],
)
def test_what_a_race_refuses_exits_2(tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, f"{text}\nbatch_size = 4\n")
    options = ("--optimizers", "sgd", "adam", "--quiet", "--out", str(tmp_path / "run"))
    assert main(["race", "--problem", str(path), *options]) == 2
    assert said in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


def test_a_race_of_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["race", "--optimizers", "adam", "--out", str(tmp_path / "run")]) == 2
    assert "a race needs at least two optimizers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
