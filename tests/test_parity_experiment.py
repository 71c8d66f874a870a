"""Parity and the contract from the command line, and the notation that optimizers are written in."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import jaxopt_course as jc
from experiments import contract
from experiments.__main__ import main
from experiments.arguments import UsageError
from experiments.notation import optimizer
from jaxopt_course.comparison import Parity
from jaxopt_course.contract import Row

START = np.array([1.0, -2.0])


def bowl(w: Any) -> Any:
    return jnp.sum(jnp.array([1.0, 1e-3], w.dtype) * w * w)


SAME = {
    "optax.adam(1e-3 * 10)": "lecture.adam(1e-2, eps=1e-8)",
    "optax.sgd(0.1, momentum=0.9, nesterov=True)": "keras.optimizers.SGD(0.1, 0.9, nesterov=True)",
    "optax.sgd(2 ** -3)": "jc.sgd(learning_rate=0.125)",
    "optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1))": "torch.optim.SGD(lr=0.1, weight_decay=1e-2)",
    "optax.adamw(1e-2, weight_decay=1e-2)": "torch.optim.AdamW(lr=1e-2, betas=(0.9, 0.999))",
    "optax.rmsprop(1e-2, eps=1e-7)": "keras.optimizers.RMSprop(1e-2)",
    "optax.adagrad(1e-2)": "keras.optimizers.Adagrad(learning_rate=1e-2)",
    "keras.optimizers.Adam(amsgrad=True)": "keras.optimizers.Adam(1e-3, beta_1=0.9, amsgrad=True)",
    "optax.sgd(optax.exponential_decay(0.1, 10, 0.5))": "lecture.sgd(optax.exponential_decay(0.1, 10, 0.5))",
    "keras.optimizers.AdamW(weight_decay=0.0)": "keras.optimizers.Adam()",
    "jc.momentum(0.1, -(-0.9), nesterov=True)": "lecture.nesterov(0.1, 0.9)",
}


@pytest.mark.parametrize("text", SAME)
def test_what_is_written_two_ways_is_one_rule(text: str) -> None:
    if "torch" in SAME[text]:
        pytest.importorskip("torch")
    found = jc.parity(optimizer(text), optimizer(SAME[text]), bowl, START, num_steps=12)
    assert found.verdict is Parity.EQUAL, str(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__import__('os').system('true')", "only names of"),
        ("optax.sgd(__import__('os'))", "there is no __import__ to call"),
        ("optax.sgd.__globals__", "is no call"),
        ("optax.__loader__.exec_module('x')", "there is no optax.__loader__.exec_module"),
        ("optax._src.alias.sgd(1)", "there is no optax._src.alias.sgd"),
        ("(lambda: 1)()", "only names of"),
        ("optax.sgd([x for x in (1, 2)])", "is not understood"),
        ("optax.sgd(**{'learning_rate': 1})", "** is not understood"),
        ("optax.sgd(9 ** 9 ** 9 ** 9)", "out of range"),
        ("optax.sgd(1 / 0)", "division by zero"),
        ("optax.sgd('fast' * 9)", "is no number"),
        ("optax.sgd(1e-3", "is no expression"),
        ("optax.sgd(rate=1e-3)", "rate"),
        ("optax.constant_schedule(1.0)", "is no optimizer"),
        ("lecture.lion(1e-3)", "there is no lecture.lion"),
        ("lecture.adam(1e-3, beta=0.9)", "lecture's adam has no beta"),
        ("lecture.adam(1e-3, learning_rate=1e-3)", "given twice"),
        ("lecture.sgd(1, 2, 3)", "3 were given"),
        ("keras.optimizers.Lion(1e-3)", "there is no keras.optimizers.Lion"),
        ("1e-3", "is no call"),
        ("(" * 500, "is no expression"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("*", r"\*").replace("(", r"\(")):
        optimizer(text)


def test_torch_is_asked_at_once() -> None:
    pytest.importorskip("torch")
    for text, said in {
        "torch.optim.Adam(alpha=1)": "alpha",
        "torch.optim.Optimizer": "no call",
        "torch.optim.Moon()": "Moon",
    }.items():
        with pytest.raises(UsageError, match=said):
            optimizer(text)


def test_parity_leaves_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        code = main(["parity", "lecture.adagrad(1e-2)", "optax.adagrad(1e-2)", "--steps", "6", "--out", str(out)])
    said = capsys.readouterr().out
    assert code == 0
    assert "cause: initial accumulator: 0 in lecture.adagrad(1e-2), 0.1 in optax.adagrad(1e-2); epsilon" in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["dtype"] == "float64"
    assert manifest["results"]["certain"] is True
    assert manifest["results"]["causes"][0]["groups"] == ["initial accumulator", "epsilon"]
    with (out / "differences.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][:3] == ["step", "each on its own path", "on the same gradients"]
    assert len(rows) == 7
    removed = [float(row[3]) for row in rows[1:]]
    assert max(removed) < 1e-12 < min(float(row[2]) for row in rows[1:])
    assert imread(out / "figures" / "differences.png").std() > 0.02
    page = (out / "report.html").read_text()
    assert "initial accumulator" in page
    assert "data:image/png" in page


def test_parity_of_one_rule_in_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["parity", "optax.sgd(0.1)", "lecture.sgd(0.1)", "--steps", "3", "--float32", "--json"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["causes"], found["first_difference"]) == ("EQUAL", [], None)


def test_parity_without_an_explanation_fails(tmp_path: Path) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert (
            main(
                [
                    "parity",
                    "optax.lion(1e-2)",
                    "optax.sgd(1e-2)",
                    "--steps",
                    "3",
                    "--quiet",
                    "--out",
                    str(tmp_path / "run"),
                ]
            )
            == 1
        )
        assert main(["parity", "optax.lionn", "optax.sgd(1e-2)", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_every_alias_of_optax_is_asked() -> None:
    found = contract.aliases()
    assert len(found) >= 25
    assert {"optax.adam", "optax.lbfgs", "optax.sgd", "optax.yogi"} <= found.keys()


def test_contract_leaves_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is checked is tested elsewhere; here two reports are shown."""
    outcome = jc.contract.Outcome
    kept = [Row(name, outcome.PASSED, "fine") for name in ("equivariance", "response to scaling", "purity")]
    broken = [*kept[:2], Row("purity", outcome.FAILED, "it remembers", "one number")]
    reports = {"sgd": kept, "optax.sgd": broken}
    given = iter(reports.values())
    monkeypatch.setattr(jc, "check_optimizer", lambda _: jc.contract.ContractReport(tuple(next(given))))
    out = tmp_path / "run"
    assert main(["contract", "--optimizers", *reports, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "it remembers" in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["results"] == {"sgd": [], "optax.sgd": ["purity"]}
    with (out / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[-1] == {
        "optimizer": "optax.sgd",
        "clause": "purity",
        "outcome": "failed",
        "detail": "it remembers",
        "case": "one number",
    }
    assert imread(out / "figures" / "contract.png").std() > 0.02
    given = iter([broken])
    assert main(["contract", "--optimizers", "sgd", "--quiet", "--out", str(tmp_path / "ours")]) == 1
    assert main(["contract", "--optimizers", "adamm", "--out", str(tmp_path / "none")]) == 2
