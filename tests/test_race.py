"""The race from its command line: exit codes, help at once, and every file of the folder read back."""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxopt_course as jc
from experiments import arguments
from experiments.__main__ import COMMANDS, main
from experiments.contestants import CONTESTANTS
from experiments.problems import BROUGHT

ROOT = Path(__file__).parent.parent


def experiments(*argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "experiments", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **options)


def program(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "race"
    rules = ("sgd", "adam", "optax.lion")
    options = ("--epochs", "2", "--seeds", "3", "--fresh-seeds", "4")
    done = experiments("race", "--optimizers", *rules, *options, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("SGD", "Adam", "optax.lion", "same rule", "Race on digits", "on 4 fresh seeds", "report.html"):
        assert words in done.stdout
    return out


def test_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["arguments"]["epochs"] == 2
    assert manifest["arguments"]["seed"] == 0
    assert manifest["dtype"] == "float32"
    assert re.fullmatch("[0-9a-f]{64}", manifest["data"]["sha256"])
    assert manifest["data"]["train"] == 1437
    assert manifest["versions"]["jax"]
    assert manifest["device"]["count"] >= 1
    rates = np.log10(manifest["grid"]["learning_rate"])
    assert len(rates) >= 16
    assert np.allclose(np.diff(rates), np.diff(rates)[0])
    assert [place for group in manifest["ranking"] for place in group] == [r["optimizer"] for r in manifest["results"]]
    assert {r["optimizer"] for r in manifest["results"]} == {"SGD", "Adam", "optax.lion"}
    assert manifest["results"][0]["place"] == 1
    assert "fresh seeds" in manifest["verdict"]
    for result in manifest["results"]:
        if result["optimizer"] == "optax.lion":  # it has no twin
            assert result["same_as_optax"] is result["steps_per_second_optax"] is result["largest_difference"] is None
        else:
            assert result["same_as_optax"]
            assert result["relative_difference"] < 1e-10
        assert result["steps_per_second"] > 0
        low, high = result["fresh_loss_interval"]
        assert low < result["fresh_loss_mean"] < high
        assert 0.7 < result["test_accuracy_mean"] <= 1


def test_metrics(folder: Path) -> None:
    with (folder / "metrics.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == 3 * 4 * 22  # optimizers, fresh seeds, 2 epochs of 11 batches
    first = [float(row["loss"]) for row in steps if row["step"] == "1"]
    assert all(1.5 < loss < 3.5 for loss in first)  # an untrained classifier of ten classes has a loss near log 10
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    runs, fresh, results = ([row for row in rows if row["kind"] == kind] for kind in ("run", "fresh run", "result"))
    rates = {row["learning_rate"] for row in runs}
    assert len(runs) == 3 * 3 * len(rates)
    assert len(fresh) == 3 * 4
    for result in results:  # the best rate is the one with the lowest mean loss of the tuning
        own = [row for row in runs if row["label"] == result["optimizer"]]
        means = {
            rate: np.mean([row["loss"] or np.inf for row in own if row["learning_rate"] == rate]) for rate in rates
        }
        assert min(means, key=lambda rate: means[rate]) == result["hyperparameters"]["learning_rate"]
        for name, mean in (("loss", "fresh_loss_mean"), ("eval/test_accuracy", "test_accuracy_mean")):
            values = [row[name] for row in fresh if row["label"] == result["optimizer"]]
            assert result[mean] == pytest.approx(np.mean(values))


def test_the_race_can_be_loaded(folder: Path) -> None:
    result, manifest = jc.RaceResult.load(folder / "race.npz"), json.loads((folder / "manifest.json").read_text())
    assert result.verdict == manifest["verdict"]
    for label in ("SGD", "Adam", "optax.lion"):
        shapes = {name: leaf.shape for name, leaf in result.fresh.best(label).params.items()}
        assert shapes == {"W": (4, 10, 64), "b": (4, 10)}


def test_figures_are_pictures(folder: Path) -> None:
    from matplotlib.image import imread

    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"learning_curves.png", "learning_rates.png", "templates.png", "confusion_matrix.png"}
    for name in names:
        assert imread(folder / "figures" / name)[..., :3].std() > 0.02


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_report_loads_nothing(folder: Path) -> None:
    page, text = Page(), (folder / "report.html").read_text()
    page.feed(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    assert "http://" not in text
    assert "https://" not in text
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")
    assert "same rule" in text


def test_a_folder_with_a_run_in_it_is_not_written_over(folder: Path) -> None:
    before = (folder / "manifest.json").read_text()
    done = experiments("race", "--out", folder)
    assert done.returncode == 1
    assert "already holds a run" in done.stderr
    assert (folder / "manifest.json").read_text() == before


def test_hinge_of_a_hidden_layer_in_float64_quietly(tmp_path: Path) -> None:
    options = ("--loss", "hinge", "--x64", "--batch-size", "500", "--model", "mlp")
    rules = ("--optimizers", "adagrad", "sgd", "--activation", "tanh")
    done = experiments("race", *options, *rules, "--epochs", "1", "--seeds", "3", "--quiet", "--out", tmp_path / "run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["dtype"] == "float64"
    assert {result["optimizer"] for result in manifest["results"]} == {"AdaGrad", "SGD"}
    params = jc.RaceResult.load(tmp_path / "run" / "race.npz").best["AdaGrad"].params
    assert params["hidden"]["W"].shape == (3, 128, 64)
    assert params["output"]["W"].dtype == np.float64
    assert not (tmp_path / "run" / "figures" / "templates.png").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ("race", "--data", "nope"),
        ("race", "--optimizers", "adamw"),
        ("race", "--seeds", "2"),
        ("race", "--batch-size", "0"),
        ("race", "--l2", "-1"),
        ("race", "--l2", "nan"),
        ("nothing",),
    ],
)
def test_wrong_usage_exits_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_batch_larger_than_the_data_exits_2(tmp_path: Path) -> None:
    done = experiments("race", "--batch-size", "5000", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "more than the 1437 training images" in done.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


def test_an_interrupt_exits_130_and_says_so_in_the_manifest(tmp_path: Path) -> None:
    code = (
        "import sys, experiments.race as race\n"
        "from experiments.__main__ import main\n"
        "def interrupt(*_): raise KeyboardInterrupt\n"
        "race.raced = interrupt\n"
        f"sys.exit(main(['race', '--out', {str(tmp_path / 'run')!r}]))\n"
    )
    done = program(code)
    assert done.returncode == 130
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"


SMALL = ("race", "--optimizers", "adam", "sgd", "--epochs", "2", "--seeds", "3", "--fresh-seeds", "2", "--json")


def test_a_race_that_is_stopped_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Stopped by SIGTERM after a compiled call; and eight devices that share the runs come to the same end."""
    saves = ("--checkpoint-dir", str(tmp_path / "saves"))
    code = (
        "import os, signal, sys\n"
        "from jaxopt_course.training.interrupts import Signals\n"
        "from experiments.__main__ import main\n"
        "poll = Signals.poll\n"
        "def killed(self): os.kill(os.getpid(), signal.SIGTERM); return poll(self)\n"
        "Signals.poll = killed\n"
        f"sys.exit(main({[*SMALL, *saves, '--out', str(tmp_path / 'stopped')]!r}))\n"
    )
    done = program(code)
    assert done.returncode == 143
    assert "SIGTERM during Adam after 22 of 22 steps" in done.stderr
    assert json.loads((tmp_path / "stopped" / "manifest.json").read_text())["status"] == "interrupted"
    done = experiments(*SMALL, *saves, "--seed", "1", "--out", tmp_path / "other")
    assert done.returncode == 1
    assert "another run" in done.stderr
    done = experiments(*SMALL, *saves, "--out", tmp_path / "resumed")
    assert done.returncode == 0, done.stderr
    done = experiments(*SMALL, "--devices", "8", "--out", tmp_path / "shared")
    assert done.returncode == 0, done.stderr
    done = experiments(*SMALL, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    resumed, shared, whole = ((tmp_path / run / "metrics.csv").read_text() for run in ("resumed", "shared", "whole"))
    assert resumed == whole
    a, b = ([float(row["loss"]) for row in csv.DictReader(text.splitlines())] for text in (shared, whole))
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_rule_that_is_not_its_twin_exits_1(tmp_path: Path) -> None:
    code = (
        "import sys, optax, experiments.contestants as known\n"
        "from experiments.__main__ import main\n"
        "known.CONTESTANTS['adam'] = known.CONTESTANTS['adam']._replace(twin=optax.adam)  # epsilon 1e-8, ours 1e-7\n"
        "small = ['--optimizers', 'adam', 'sgd', '--epochs', '1', '--seeds', '3', '--fresh-seeds', '2', '--json']\n"
        f"sys.exit(main(['race', *small, '--out', {str(tmp_path / 'run')!r}]))\n"
    )
    done = program(code)
    assert done.returncode == 1, done.stderr
    results = {result["optimizer"]: result for result in json.loads(done.stdout)["results"]}
    assert results["Adam"]["same_as_optax"] is False
    assert results["Adam"]["largest_difference"] > 1e-7
    assert results["SGD"]["same_as_optax"] is True


def test_help_needs_no_compiler() -> None:
    """Lists what there is without loading jax, numpy or matplotlib."""
    code = (
        "import sys\n"
        "from experiments.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'matplotlib', 'rich'} & set(sys.modules), sorted(sys.modules)\n"
    )
    for argv in ([], ["--help"], *([name, "--help"] for name in COMMANDS)):
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout
        assert all(name in done.stdout for name in (COMMANDS if not argv else []))


def test_arguments_name_what_there_is() -> None:
    parser = argparse.ArgumentParser()
    arguments.race(parser)
    parsed = parser.parse_args([])
    assert tuple(CONTESTANTS) == arguments.OPTIMIZERS
    assert {name: getattr(parsed, name) for name in BROUGHT} == BROUGHT
    assert tuple(jc.data.DATASETS) == arguments.DATASETS
    for name in arguments.BENCHMARKS:
        assert (ROOT / "experiments" / "benchmarks" / f"{name}.py").exists()


def test_outside_a_checkout_the_manifest_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import runs

    monkeypatch.setenv("PATH", os.devnull)
    assert runs.git_state() is None
