"""A typo in a public name is an error for mypy and for Pyright, and right code is none."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RIGHT = """\
import jax
import jax.numpy as jnp

import jaxopt_course as jc

params = jc.scores.init_linear(jax.random.key(0), 4, 3)
objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
result = jc.minimize(objective, jc.lbfgs(), params, data=(jnp.ones((2, 4)), jnp.array([0, 1])))
print(result.status is jc.Status.GRADIENT_NORM, jc.sweeps.log_uniform(1e-4, 1.0), jc.plots.curves)
"""
TYPOS = (
    ("jc.adamm(0.05)", "adamm"),
    ("jc.plots.learning_curves({}, titel=1)", "titel"),
    ("jc.plots.learning_curvs", "learning_curvs"),
    ("jc.losses.softmax_crossentropy", "softmax_crossentropy"),
    ("jc.Status.GRADIENT_NROM", "GRADIENT_NROM"),
    ("jc.trainig.train", "trainig"),
)
CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")],
    "pyright": [sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_typos_are_errors_and_right_code_is_none(checker: str, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    wrong.write_text("import jaxopt_course as jc\n\n" + "\n".join(line for line, _ in TYPOS) + "\n")
    command = [*CHECKERS[checker], str(right), str(wrong)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    errors = [line for line in said.splitlines() if re.search(r"\berror\b[: ]", line) and ".py:" in line]
    assert [line for line in errors if "right.py" in line] == [], said
    found = {int(re.search(r"wrong\.py:(\d+)", line)[1]): line for line in errors}  # type: ignore[index]
    assert sorted(found) == [3 + index for index in range(len(TYPOS))], said
    for index, (_, name) in enumerate(TYPOS):
        assert f'"{name}"' in found[3 + index]
