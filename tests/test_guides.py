"""Every line of code in the guides runs, in order, in one namespace of its own; what it asserts holds.

A guide that needs a missing package is run up to the block that imports it.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = sorted((Path(__file__).parent.parent / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
NEEDED = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_runs(guide: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(guide.read_text())
    missing = [[name for name in NEEDED.findall(block) if importlib.util.find_spec(name) is None] for block in blocks]
    there = next((index for index, names in enumerate(missing) if names), len(blocks))
    file = tmp_path / "guide.py"
    file.write_text("\n\n".join(blocks[:there]))
    run = subprocess.run([sys.executable, file], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    if there < len(blocks):
        pytest.skip(f"{', '.join(missing[there])} is missing: {there} of {len(blocks)} blocks were run")
