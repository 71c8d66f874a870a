"""Mutated archives and pickles: images or our own error, and nothing else happens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SHARE = 6000
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is set as Linux does")


def fuzz(code: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", "-c", f"import json; from tests import fuzz_data_files as fuzz; {code}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert ran.returncode == 0, ran.stderr  # also where the interpreter crashed
    return json.loads(ran.stdout)


@on_linux
def test_mutated_files_give_images_or_our_error() -> None:
    """A share of the 100,000 cases; `FUZZ_CASES=100000 python -m pytest tests/test_data_fuzz.py` takes a minute."""
    cases = int(os.environ.get("FUZZ_CASES", SHARE))
    result = fuzz(f"print(json.dumps(fuzz.main({cases}, seed=0)))")
    assert "wrong" not in result, f"{result['wrong']}\n{result['kind']}: {result['data']}"
    assert result["heard"] == {}
    assert result["written"] == []
    assert result["archive refused"] > 0.25 * cases
    assert result["pickle refused"] > 0.4 * cases
    assert min(result["archive read"], result["pickle read"]) > 0.005 * cases  # some mutations do no harm


@on_linux
@pytest.mark.parametrize(
    ("reader", "seen"),
    [
        ("lambda data, where: {}[where]", "KeyError"),
        ("lambda data, where: open('proof', 'w').close() or {}", "open"),
        ("lambda data, where: fuzz.np.empty(2**29, 'u1')", "MemoryError"),
    ],
)
def test_the_watch_sees_what_may_not_happen(reader: str, seen: str) -> None:
    result = fuzz(f"print(json.dumps(fuzz.main(40, reader={reader})))")
    assert seen in result.get("wrong", "") or seen in result.get("heard", {})
