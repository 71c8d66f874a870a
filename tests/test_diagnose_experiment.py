"""Runs that are spoiled on purpose, from the command line."""

import argparse
import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from experiments import arguments, diagnose, spoiled
from experiments.__main__ import main


def test_a_slow_run_is_found_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    asked = ["--data", "digits", "--model", "linear", "--spoil", "slow", "--steps", "60", "--fresh-seeds", "3"]
    assert main(["diagnose", *asked, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for words in ("digits, linear model: learning rate / 30", "RATE_TOO_LOW", "noise scale, examples", "(lower)"):
        assert words in shown
    (row,) = csv.DictReader((out / "findings.csv").read_text().splitlines())
    assert (row["found"], row["right"], row["helps"]) == ("RATE_TOO_LOW", "True", "True")
    assert json.loads((out / "manifest.json").read_text())["status"] == "done"
    assert (out / "report.html").read_text().count("<img ") == 1


def test_what_cannot_be_spoiled_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--model", "linear", "--spoil", "saddle", "--out", str(tmp_path / "run")]) == 2
    assert "a linear model has none" in capsys.readouterr().err
    assert tuple(spoiled.SPOILS) == arguments.SPOILS
    assert tuple(spoiled.MODELS) == arguments.MODELS


@pytest.mark.parametrize(
    ("flags", "count"),
    [("", 1), ("--all", 2 * (6 + 7 + 7)), ("--all --data digits", 20), ("--all --model linear --spoil saddle", 0),
     ("--all --spoil saddle", 4), ("--all --model linear", 12)],
)  # fmt: skip
def test_the_runs_are_those_that_were_named(flags: str, count: int) -> None:
    parser = argparse.ArgumentParser()
    arguments.diagnose(parser)
    args = parser.parse_args(flags.split())
    if not count:
        with pytest.raises(arguments.UsageError):
            diagnose.runs_wanted(args)
    else:
        assert len(set(diagnose.runs_wanted(args))) == count


@pytest.mark.parametrize("model", arguments.MODELS)
def test_a_scaled_layer_is_the_same_function(model: str) -> None:
    dataset = jc.data.load("synthetic", image_shape=(8, 8), num_train=64, num_test=10)
    run = spoiled.setup(dataset, model)._replace(rate=0.1)
    scaled, key = spoiled.rescaled(run), jax.random.key(0)
    same = scaled.objective(scaled.init(key), run.data), run.objective(run.init(key), run.data)
    np.testing.assert_allclose(*same, rtol=1e-5)
    assert scaled.rate < 0.1 / 100
    steepest = scaled.rate * spoiled.steepest(scaled), run.rate * spoiled.steepest(run)
    np.testing.assert_allclose(*steepest, rtol=1e-3)
    before = spoiled.frozen(run).make(0.1)
    params = run.init(key)
    updates, _ = before.update(jax.tree.map(jnp.ones_like, params), before.init(params), params)
    assert not np.any(updates[run.first])
    assert all(np.any(leaf) for name, leaf in updates.items() if name != run.first)
