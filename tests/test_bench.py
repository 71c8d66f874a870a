"""Two recorded runs of the benchmarks are compared row by row."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.benchmarks import all as every
from experiments.benchmarks import timing, waiting

ROUNDS = 9


def row(name: str, level: float, spread: float = 0.02, relation: str = "<=", rounds: int = ROUNDS) -> dict[str, Any]:
    """A ratio whose rounds lie about a level."""
    rng = np.random.default_rng([*map(ord, name), round(1000 * level)])
    over = timing.Timing("g", "over", tuple((level * (1 + spread * rng.standard_normal(rounds))).tolist()))
    ratio = timing.ratio(name, over, timing.Timing("g", "under", (1.0,) * rounds), relation, 1.0)
    return timing.document("training", {}, [], [ratio])["ratios"][0]


def test_slower_is_what_is_beyond_noise_whatever_the_direction() -> None:
    def verdict(before: float, now: float, **options: Any) -> str:
        return every.changed("training", "a", row("a", before, **options), row("a", now, **options)).verdict

    assert verdict(1.0, 1.2) == "slower"
    assert verdict(1.2, 1.0) == "faster"
    assert verdict(1.2, 1.0, relation=">=") == "slower"
    assert verdict(1.0, 1.2, relation=">=") == "faster"
    assert verdict(1.0, 1.04, spread=0.001) == ""  # certain, and small
    assert verdict(1.0, 1.1, spread=0.5) == ""  # large, and noise
    assert verdict(1.0, 2.0, rounds=3).startswith("not tested")
    once = row("a", 1.0) | {"rounds": []}, row("a", 1.2) | {"rounds": []}
    assert every.changed("training", "a", *once).verdict == "slower"


def test_equal_runs_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(2000):
        before, now = ({"value": float(np.median(r)), "relation": "<=", "rounds": list(r)} for r in
                       np.exp(0.2 * rng.standard_normal((2, ROUNDS))))  # fmt: skip
        told += every.changed("training", "a", before, now).verdict == "slower"
    assert told <= 8  # 2 expected


def test_rows_of_one_run_only_are_said() -> None:
    recorded = {"training": {"ratios": [row("a", 1.0), row("gone", 1.0)]}}
    documents = {"training": {"ratios": [row("a", 1.0), row("new", 1.0)]}}
    verdicts = {change.name: change.verdict for change in every.compared(recorded, documents)}
    assert verdicts == {"a": "", "gone": "only in one run", "new": "only in one run"}
    lost = row("a", 1.0) | {"value": None}
    assert every.changed("training", "a", row("a", 1.0), lost).verdict == "only in one run"


def test_the_command_compares_with_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = {"a": 1.0, "b": 1.0}

    def measured(name: str, rounds: int) -> dict[str, Any]:
        return {"name": name, "ratios": [row(name, level, rounds=rounds) for name, level in levels.items()]}

    monkeypatch.setattr(every, "measured", measured)
    before, now = tmp_path / "before.json", tmp_path / "now.json"
    assert main(["bench", "all", "--only", "training", "--out", str(before)]) == 0
    levels["b"] = 1.5
    capsys.readouterr()
    assert main(["bench", "all", "--only", "training", "--against", str(before), "--out", str(now)]) == 1
    assert "1 of 2 rows slower beyond noise" in capsys.readouterr().out
    changes = json.loads(now.read_text())["changes"]
    assert [(change["name"], change["verdict"]) for change in changes] == [("a", ""), ("b", "slower")]


@pytest.mark.parametrize("text", ["", "[]", '{"name": "all"}', '{"name": "training", "ratios": [{"name": "a"}]}'])
def test_another_file_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert main(["bench", "all", "--against", str(path)]) == 1
    assert "no file that `bench NAME --out FILE`" in capsys.readouterr().err


def test_a_benchmark_that_fails_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(every, "measured", lambda name, rounds: None)
    assert main(["bench", "all", "--only", "neighbors", "--out", str(tmp_path / "x.json")]) == 1
    assert "failed: neighbors" in capsys.readouterr().err
    assert json.loads((tmp_path / "x.json").read_text())["failed"] == ["neighbors"]


def test_what_a_person_waits_for_is_a_row_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(*command: str, folder: Path = waiting.ROOT) -> None:
        ran.append((*command[1:], folder == waiting.ROOT))
        if command == ("make", "docs"):
            raise subprocess.CalledProcessError(2, command)

    monkeypatch.setattr(waiting, "run", run)
    out = tmp_path / "out.json"
    assert main(["bench", "waiting", "--rounds", "2", "--commands", "contract", "test", "docs", "--out", str(out)]) == 0
    rows = {row["name"]: row["value"] for row in json.loads(out.read_text())["ratios"]}
    assert [*rows] == [
        "beyond JAX and optax / 0.1 s",
        "--help / 0.3 s",
        "contract / 180 s",
        "make test / 480 s",
        "make docs / 360 s",
    ]
    assert rows["make docs / 360 s"] is None
    assert rows["make test / 480 s"] < 1
    assert ("-m", "experiments", "contract", True) in ran  # in the checkout
    assert ("test", False) in ran  # in a clone
    assert ("-m", "experiments", "race", "--help", True) in ran
    assert "did not run" in capsys.readouterr().out
