"""The race from its command line: exit codes, help at once, and every file of the folder read back."""

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

from experiments import arguments
from experiments.__main__ import COMMANDS, main
from experiments.contestants import CONTESTANTS

ROOT = Path(__file__).parent.parent


def experiments(*argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "experiments", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **options)


def program(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "race"
    done = experiments("race", "--optimizers", "sgd", "adam", "--epochs", "2", "--seeds", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("SGD", "Adam", "same rule", "Race on digits", "report.html"):
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
    assert len(manifest["learning_rates"]) >= 16
    assert np.allclose(np.diff(np.log10(manifest["learning_rates"])), np.diff(np.log10(manifest["learning_rates"]))[0])
    for result in manifest["results"]:
        assert result["same_as_optax"]
        assert result["relative_difference"] < 1e-10
        assert result["steps_per_second"] > 0
        assert 0.7 < result["test_accuracy_mean"] <= 1


def test_metrics(folder: Path) -> None:
    with (folder / "metrics.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == 2 * 3 * 22  # optimizers, seeds, 2 epochs of 11 batches
    first = [float(row["loss"]) for row in steps if row["step"] == "1"]
    assert all(1.5 < loss < 3.5 for loss in first)  # an untrained classifier of ten classes has a loss near log 10
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    runs = [row for row in rows if row["kind"] == "run"]
    results = [row for row in rows if row["kind"] == "result"]
    rates = {row["learning_rate"] for row in runs}
    assert len(runs) == 2 * 3 * len(rates)
    for result in results:  # the best rate is the one with the lowest mean loss
        name = next(name for name, contestant in CONTESTANTS.items() if contestant.label == result["optimizer"])
        means = {
            rate: np.mean(
                [
                    row["train_loss"] or np.inf
                    for row in runs
                    if (row["optimizer"], row["learning_rate"]) == (name, rate)
                ]
            )
            for rate in rates
        }
        assert min(means, key=lambda rate: means[rate]) == pytest.approx(result["learning_rate"])
        assert means[result["learning_rate"]] == pytest.approx(result["train_loss_mean"], rel=1e-5)


def test_parameters(folder: Path) -> None:
    with np.load(folder / "params.npz", allow_pickle=False) as params:
        assert {name: array.shape for name, array in params.items()} == {
            "sgd/W": (3, 10, 64),
            "sgd/b": (3, 10),
            "adam/W": (3, 10, 64),
            "adam/b": (3, 10),
        }
        assert all(np.isfinite(array).all() for array in params.values())


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


def test_hinge_in_float64_on_other_data_quietly(tmp_path: Path) -> None:
    options = ("--loss", "hinge", "--x64", "--data", "synthetic", "--batch-size", "500", "--optimizers", "adagrad")
    done = experiments("race", *options, "--epochs", "1", "--seeds", "3", "--quiet", "--out", tmp_path / "run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["dtype"] == "float64"
    assert manifest["results"][0]["optimizer"] == "AdaGrad"
    with np.load(tmp_path / "run" / "params.npz") as params:
        assert params["adagrad/W"].dtype == np.float64


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
        "race.swept = interrupt\n"
        f"sys.exit(main(['race', '--out', {str(tmp_path / 'run')!r}]))\n"
    )
    done = program(code)
    assert done.returncode == 130
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"


SMALL = ("race", "--optimizers", "adam", "--epochs", "2", "--seeds", "3", "--json")


def test_a_race_that_is_stopped_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Stopped by SIGTERM after an epoch; and eight devices that share the minibatches come to the same end."""
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
    assert "SIGTERM: Adam is saved after epoch 1" in done.stderr
    assert json.loads((tmp_path / "stopped" / "manifest.json").read_text())["status"] == "interrupted"
    done = experiments(*SMALL, *saves, "--out", tmp_path / "anew")
    assert done.returncode == 1
    assert "holds 1 checkpoints" in done.stderr
    done = experiments(*SMALL, *saves, "--resume", "--out", tmp_path / "resumed")
    assert done.returncode == 0, done.stderr
    done = experiments(*SMALL, "--devices", "8", "--out", tmp_path / "shared")
    assert done.returncode == 0, done.stderr
    done = experiments(*SMALL, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    resumed, shared, whole = ((tmp_path / run / "metrics.csv").read_text() for run in ("resumed", "shared", "whole"))
    assert resumed == whole
    a, b = ([float(row["loss"]) for row in csv.DictReader(text.splitlines())] for text in (shared, whole))
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_devices_that_cannot_share_a_minibatch_exit_2(tmp_path: Path) -> None:
    done = experiments("race", "--devices", "3", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "--batch-size 128 is not a multiple of --devices 3" in done.stderr
    done = experiments("race", "--resume", "--out", tmp_path / "run2")
    assert done.returncode == 2
    assert "--resume needs --checkpoint-dir" in done.stderr


def test_a_rule_that_is_not_its_twin_exits_1(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, optax, experiments.race as race\n"
        "from experiments.__main__ import main\n"
        "ones, params = np.ones((21, 3)), {'W': np.ones((21, 3, 10, 64)), 'b': np.ones((21, 3, 10))}\n"
        "race.swept = lambda *_: race.Sweep(ones, ones, np.ones((21, 3, 11)), np.ones((21, 3, 11)), ones, params)\n"
        "race.CONTESTANTS['adam'] = race.CONTESTANTS['adam']._replace(twin=optax.adam)  # epsilon 1e-8, ours 1e-7\n"
        "small = ['--optimizers', 'adam', '--epochs', '1', '--seeds', '3', '--json']\n"
        f"sys.exit(main(['race', *small, '--out', {str(tmp_path / 'run')!r}]))\n"
    )
    done = program(code)
    assert done.returncode == 1, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert not result["same_as_optax"]
    assert result["largest_difference"] > 1e-7


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
    import jaxopt_course as jc

    assert tuple(CONTESTANTS) == arguments.OPTIMIZERS
    assert tuple(jc.data.DATASETS) == arguments.DATASETS
    for name in arguments.BENCHMARKS:
        assert (ROOT / "experiments" / "benchmarks" / f"{name}.py").exists()


def test_outside_a_checkout_the_manifest_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import runs

    monkeypatch.setenv("PATH", os.devnull)
    assert runs.git_state() is None
