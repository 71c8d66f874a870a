"""The pathologies from the command line, made small: what the folder holds, and that theory is what was measured."""

import csv
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments import arguments, pathologies
from experiments.__main__ import main
from jaxopt_course.landscape import Settings, predict
from jaxopt_course.landscape.quadratic_theory import optimal
from tests.commands import printed

SMALL = (
    "import sys, numpy as np, experiments.pathologies as p\n"
    "from experiments.__main__ import main\n"
    "p.CONDITIONS, p.RATES, p.NOISES, p.MOST = np.array([1.0, 10.0]), p.RATES[6:12:2], p.NOISES[4:6], 500\n"
    "del p.MULTIMODAL['rastrigin']\n"
    "p.NO_THEORY, p.MAP_STEPS, p.LOOP_STEPS = [None] * 2, 200, 2\n"
    "p.MAP_RATES, p.MAP_RHOS = p.MAP_RATES[::30], p.MAP_RHOS[::20]\n"
    "p.FLOOR_STEPS, p.IMAGE_STEPS, p.IMAGE_BATCHES = 800, 800, (64,)\n"
    "p.FLOOR_RATES, p.IMAGE_RATES = p.FLOOR_RATES[3:], p.IMAGE_RATES[2:]\n"
    "p.PLANTED_SEEDS = 1\n"
    "sys.exit(main(['pathologies', *sys.argv[1:]]))\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pathologies"
    rules = ("--optimizers", "sgd", "momentum", "optax.adam")
    shown = printed(SMALL, *rules, "--starts", "3000", "--runs", "300", "--out", str(out))
    for words in ("Ravines", "Saddles", "Local minima", "softmax regression on digits", "Newton", "report.html"):
        assert words in shown
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "manifest.json").read_text())["results"]


def test_what_it_leaves(folder: Path, rows: list[dict[str, Any]]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["arguments"]["starts"] == 3000
    assert manifest["data"]["name"] == "digits"
    names = {"ravines", "learning_rates", "saddles", "basins", "noise", "ensemble"}
    assert {path.stem for path in (folder / "figures").iterdir()} == names
    for path in (folder / "figures").iterdir():
        assert imread(path)[..., :3].std() > 0.02
    page = (folder / "report.html").read_text()
    assert page.count("<table>") == 7
    assert page.count("<img ") == len(names)
    assert "http" not in page.replace("http-equiv", "")
    with (folder / "metrics.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [(r["optimizer"], float(r["at"])) for r in written] == [(r["optimizer"], r["at"]) for r in rows]
    assert {r["pathology"] for r in rows} == {"ravines", "saddles", "minima", "speed", "noise", "diagnosis"}


@pytest.mark.parametrize(
    ("pathology", "case", "count", "tolerance"),
    [
        ("ravines", "bowl", 4, 0.01),
        ("saddles", "saddle", 4, 0.05),
        ("minima", "styblinski_tang", 1, 0.1),
        ("noise", "bowl", 9, 0.2),
        ("noise", "digits", 6, 0.35),
        ("diagnosis", "RATE_TOO_HIGH", 1, 0.1),
        ("diagnosis", "NOISE_LIMITED", 1, 0.1),
        ("diagnosis", "SADDLE", 1, 0.01),
    ],
)
def test_theory_is_what_was_measured(
    rows: list[dict[str, Any]], pathology: str, case: str, count: int, tolerance: float
) -> None:
    compared = [r for r in rows if (r["pathology"], r["case"]) == (pathology, case) and r["theory"] is not None]
    assert len(compared) == count
    for r in compared:
        assert r["measured"] == pytest.approx(r["theory"], rel=tolerance), r


@pytest.mark.parametrize("method", ["sgd", "momentum", "nesterov"])
def test_steps_are_counted_to_the_one(method: str) -> None:
    """Against the closed form of the same path: the step from which on it is a millionth of the distance away."""
    (rate, rho, nesterov), _ = optimal(1.0, 30.0, method)
    make = {"sgd": lambda s: pathologies.jc.sgd(s[0]), "momentum": pathologies.with_rho}.get(
        method, pathologies.with_rho_ahead
    )
    counted = pathologies.steps_to(make, jnp.array([[rate, rho]]), jnp.array([30.0]), 1000)
    settings, times = Settings(rate, rho, nesterov), np.arange(1000)
    away = np.linalg.norm(predict(settings, np.diag([1.0, 30.0]), [1.0, 1.0], times).mean, axis=1)
    last = int(np.flatnonzero(away > 1e-6 * away[0])[-1])
    assert int(counted[0]) == last + 1 == pathologies.closed_form(settings, 30.0) > 40
    first = int(np.argmax(away <= 1e-6 * away[0]))
    assert first <= last + 1


def test_shares_of_the_flow_by_the_roots_in_the_papers() -> None:
    assert pathologies.flow_share("styblinski_tang") == pytest.approx(((5 + 0.1567312568) / 10) ** 2)
    assert pathologies.flow_share("rastrigin") == pytest.approx((2 * 0.5025460365 / 10.24) ** 2)


def test_cells() -> None:
    assert pathologies.both(12345.4, None, "0") == "12,345"
    assert pathologies.both(None, 20.0, "0") == "- / 20"
    assert pathologies.both(0.257, 0.266, "%") == "25.7% / 26.6%"


def test_the_parts_are_those_of_the_help() -> None:
    assert tuple(pathologies.PARTS) == arguments.PATHOLOGIES


@pytest.mark.parametrize("wrong", [("--parts", "nope"), ("--starts", "1"), ("--runs", "0")])
def test_wrong_usage(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pathologies", *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err
