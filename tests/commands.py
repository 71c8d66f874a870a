"""Commands as a user starts them, in a process of their own, where a warning is an error."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def printed(program: str, *argv: str) -> str:
    """What a program that must end well and silently on stderr prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # most of the time would go into compiling
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout
