"""The wheel: what is in it, and the README's examples in an environment that has nothing else."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OFFLINE = re.compile(r"NewConnectionError|name resolution|Network is unreachable")


def pip(*arguments: object, python: object = sys.executable) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip("pip finds no network")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxopt_course").rglob("*") if path.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == {n for n in package if "__pycache__" not in n}
    assert {"jaxopt_course/py.typed"} <= names
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "\nAuthor: The jaxopt_course maintainers\n" in text
    assert "\nRequires-Python: >=3.11\n" in text


def test_the_readme_runs_where_only_the_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip("install", "--no-compile", f"{wheel}[experiments]", "flax", python=python)
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    assert blocks, "the README shows no code"
    code = "\n".join(block.split("```")[0] for block in blocks)
    (tmp_path / "readme.py").write_text(f"{code}\nprint(jc.__file__)\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([python, "readme.py"], capture_output=True, text=True, cwd=tmp_path, env=clean, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(environment)
    assert "is not shown" in done.stdout or "is better than" in done.stdout
    commands = [str(python), "-m", "experiments"]  # they are in the checkout only, as the README says
    assert subprocess.run(commands, cwd=tmp_path, env=clean, capture_output=True, check=False).returncode == 1
