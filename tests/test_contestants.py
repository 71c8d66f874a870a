"""Optimizers named on the command line: of ours, of optax, of files and modules; and what is wrong with a name."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from experiments import contract, solve
from experiments.__main__ import main
from experiments.arguments import UsageError
from experiments.contestants import CONTESTANTS, aliases, contestant, contestants
from experiments.notation import optimizer
from experiments.peers import Limits, make_task, solver_of

RULES = """
import dataclasses
import optax
from beside import DECAY

@dataclasses.dataclass
class Settings:
    decay: float = DECAY

def signed(learning_rate, decay=Settings().decay):
    return optax.chain(optax.trace(decay), optax.scale_by_sign(), optax.scale_by_learning_rate(learning_rate))

def unfinished(learning_rate):
    return {"learning_rate": learning_rate}

def strict(learning_rate):
    raise ValueError("no rate is good enough")

def two(learning_rate, other):
    return optax.sgd(learning_rate)

made = optax.sgd(0.1)
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("DECAY = 0.5\n")
    sys.modules.pop("beside", None)
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return path


def one_step(factory: Any) -> Any:
    rule, params = factory(0.1), jnp.array([1.0, -2.0])
    with jax.numpy_dtype_promotion("standard"):
        return rule.update(params, rule.init(params), params)[0]


def test_names_of_ours_and_of_optax() -> None:
    assert contestant("adam") is CONTESTANTS["adam"]
    lion = contestant("optax.lion")
    assert (lion.label, lion.make, lion.twin) == ("optax.lion", optax.lion, None)
    assert contestant("optax.contrib.muon").make is optax.contrib.muon
    assert [*contestants(["optax.sgd", "sgd", "optax.sgd"])] == ["optax.sgd", "sgd"]


def test_every_optimizer_that_optax_exports_is_made_from_a_rate() -> None:
    assert {contestant(name).label for name in aliases()} == {*aliases()}
    assert {"optax.adamw", "optax.noisy_sgd", "optax.lbfgs"} < {*aliases()}


def test_a_rule_of_a_file(rules: Path) -> None:
    """The file may import what lies beside it and hold dataclasses; it is run once."""
    signed = contestant(f"{rules}:signed")
    assert (signed.label, signed.twin) == ("rules.py:signed", None)
    np.testing.assert_allclose(one_step(signed.make), [-0.1, 0.1])
    assert contestant(f"{rules}:signed").make is signed.make
    assert optimizer(f"{rules}:signed(0.1, decay=0.9)").init(jnp.ones(2))
    np.testing.assert_allclose(one_step(lambda rate: optimizer(f"{rules}:signed", rate)), [-0.1, 0.1])


def test_a_rule_of_a_module() -> None:
    found = contestant("optax.contrib:muon")
    assert (found.label, found.make) == ("optax.contrib:muon", optax.contrib.muon)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adamm", "there is no optimizer adamm; there are sgd, momentum, .*optax.NAME"),
        ("optax.adamm", "there is no optax.adamm; optax's optimizers are .*optax.adamw"),
        ("optax.softmax_cross_entropy", r"optax.softmax_cross_entropy\(0.01\) raises TypeError"),
        ("nowhere/rules.py:signed", "there is no file nowhere/rules.py"),
        ("no_such_package.rules:signed", "no_such_package.rules: there is no such module"),
        ("optax:", "optax has no "),
        ("FOLDER/rules.py:sined", "rules.py has no sined; it has Settings, signed, unfinished, strict, two"),
        ("FOLDER/rules.py:unfinished", r"unfinished\(0.01\) is no optimizer but a dict; it must be a function"),
        ("FOLDER/rules.py:strict", r"strict\(0.01\) raises ValueError: no rate is good enough"),
        ("FOLDER/rules.py:two", r"two\(0.01\) raises TypeError: .*'other'"),
        ("FOLDER/rules.py:made", "made is an optimizer that is already made"),
        ("FOLDER/rules.py:Settings", r"Settings\(0.01\) is no optimizer but a Settings"),
        ("FOLDER/raises.py:rule", "raises.py, line 2: ZeroDivisionError: float division by zero, when it was loaded"),
        ("FOLDER/wrong.py:rule", "wrong.py, line 1: SyntaxError"),
        ("FOLDER/leaves.py:rule", "leaves.py, line 1: SystemExit: 3, when it was loaded"),
    ],
)
def test_what_is_wrong_with_a_name(rules: Path, name: str, said: str) -> None:
    (rules.parent / "raises.py").write_text("import math\nmath.sqrt(1) / 0\n")
    (rules.parent / "wrong.py").write_text("def rule(:\n")
    (rules.parent / "leaves.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UsageError, match=said):
        contestants([name.replace("FOLDER", str(rules.parent))])


def test_two_rules_of_one_label_are_refused(rules: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "rules.py"
    other.parent.mkdir()
    other.write_text(RULES)
    with pytest.raises(UsageError, match=r"would both be shown as rules\.py:signed"):
        contestants([f"{rules}:signed", f"{other}:signed"])


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("race", "--optimizers"),
        ("solve", "--optimizers"),
        ("solve", "--methods"),
        ("profiles", "--solvers"),
        ("pathologies", "--optimizers"),
        ("contract", "--optimizers"),
    ],
)
def test_a_wrong_name_exits_2_and_writes_nothing(
    command: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, flag, "sgd", f"{tmp_path}/none.py:rule", "--out", str(tmp_path / "run")]) == 2
    assert f"there is no file {tmp_path}/none.py" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_solve_takes_a_rule_of_a_file(rules: Path) -> None:
    method = solve.method_of(f"{rules}:signed")
    assert (method.label, method.needs_rate) == ("rules.py:signed", True)
    np.testing.assert_allclose(one_step(method.make), [-0.1, 0.1])
    assert solve.method_of("sgd") is solve.METHODS["sgd"]


def test_profiles_take_a_rule_at_its_best_rate() -> None:
    def bowl(x: Any) -> Any:
        return jnp.sum(jnp.array([1.0, 3.0]) * x**2)

    solver = solver_of("optax.sgd")
    outcome = solver.solve(make_task("planted", "bowl", bowl, [1.0, 1.0]), Limits(gtol=1e-8, max_evals=300))
    assert solver.label == "optax.sgd"
    assert outcome.success
    rate = 10**-0.75  # of the grid the nearest to the best, 1/4
    steps = np.ceil(np.log(1e-8 / 2) / np.log(1 - 2 * rate))  # of the slow coordinate
    assert outcome.evaluations == pytest.approx(steps, abs=2)


def test_the_contract_is_asked_of_any_rule(
    rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, asked = jc.contract.Outcome, []
    row = jc.contract.Row

    def checked(subject: Any) -> Any:
        asked.append(subject)
        said = [row("equivariance", outcome.PASSED), row("response to scaling", outcome.FAILED, "no", "one number")]
        return jc.contract.ContractReport(tuple(said))

    monkeypatch.setattr(jc, "check_optimizer", checked)
    names = [f"{rules}:signed", "optax.polyak_sgd"]
    assert main(["contract", "--optimizers", *names, "--json", "--out", str(tmp_path / "run")]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == {
        name: ["response to scaling"] for name in ("rules.py:signed", "optax.polyak_sgd")
    }
    np.testing.assert_allclose(one_step(asked[0]), [-0.1, 0.1])
    assert asked[1].update  # it takes no learning rate: asked as it is
    assert main(["contract", "--optimizers", "optax.sgd", "--quiet", "--out", str(tmp_path / "theirs")]) == 0
    assert contract.subject("lbfgs") is contract.OURS["lbfgs"]


def test_parity_takes_names(rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        pair = ("adam", "lecture.adam(0.05)")
        options = ("--learning-rate", "0.05", "--steps", "3", "--json", "--out", str(tmp_path / "run"))
        assert main(["parity", *pair, *options]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "EQUAL"
    for wrong in (f"{rules}:signed(0.1)(0.2)", f"{rules}:signed(rate=1)", f"{rules}:signed(**{{}})"):
        with pytest.raises(UsageError):
            optimizer(wrong)
