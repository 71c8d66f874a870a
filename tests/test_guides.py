"""Every line of code in the guides runs, in order, in one namespace of its own; what it asserts holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = sorted((Path(__file__).parent.parent / "docs" / "guides").glob("*.md"))
NEEDED = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_runs(guide: Path, tmp_path: Path) -> None:
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL))
    for package in NEEDED.findall(code):
        pytest.importorskip(package)
    file = tmp_path / "guide.py"
    file.write_text(code)
    run = subprocess.run([sys.executable, file], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
