"""The classify command: what it writes is read back, and what it chose is what it measured to be best."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import classify
from experiments.__main__ import main
from tests.test_race import Page, experiments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "classify"
    done = experiments("classify", "--epochs", "2", "--k", "1", "3", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("Nearest neighbour, L1", "SVM", "Classifiers on digits", "KiB", "report.html"):
        assert words in done.stdout
    return out


def test_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert (manifest["data"]["train"], manifest["data"]["test"]) == (1437, 360)
    l2, l1, softmax, svm = manifest["results"]
    for result in (l2, l1):
        assert result["test_accuracy"] > 0.97
        assert result["model_bytes"] == 1437 * (64 + 4 + 4) + 4 * (64 + 10)
    for result in (softmax, svm):
        assert result["test_accuracy"] > 0.8
        assert result["model_bytes"] == 4 * (64 + 1) * 10
        assert result["prediction_seconds_per_image"] < l2["prediction_seconds_per_image"]  # by a factor of 20
    assert all(result["training_seconds"] > 0 for result in (l2, l1, softmax, svm))


def test_the_best_on_the_part_held_out_was_chosen(folder: Path) -> None:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 + 2 * len(classify.RATES)
    for result in json.loads((folder / "manifest.json").read_text())["results"]:
        tried = {
            float(r["value"]): float(r["validation_accuracy"]) for r in rows if r["classifier"] == result["classifier"]
        }
        assert max(tried.values()) == result["validation_accuracy"]
        chosen = float(result["chosen"].split()[-1])
        assert tried[min(tried, key=lambda value: abs(value - chosen))] == result["validation_accuracy"]


def test_parameters(folder: Path) -> None:
    with np.load(folder / "params.npz", allow_pickle=False) as params:
        shapes = {name: array.shape for name, array in params.items()}
    assert shapes == {"softmax/W": (10, 64), "softmax/b": (10,), "hinge/W": (10, 64), "hinge/b": (10,)}


def test_report_shows_the_figures_and_names_the_data(folder: Path) -> None:
    page, text = Page(), (folder / "report.html").read_text()
    page.feed(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert {path.name for path in (folder / "figures").iterdir()} == {"neighbors.png", "templates.png", "mistakes.png"}
    assert len(images) == 3
    assert all("digits" in str(image["alt"]) for image in images)
    assert "load_digits" in text


@pytest.mark.parametrize("argv", [("--k", "0"), ("--k",), ("--data", "nope"), ("--epochs", "0")])
def test_wrong_usage_exits_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["classify", *argv])
    assert left.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_more_neighbours_than_images_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--k", "5000", "--out", str(tmp_path / "run")]) == 2
    assert "--k 5000 is more than the 1150 images" in capsys.readouterr().err
