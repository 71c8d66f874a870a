"""The lecture command opens the course, builds it first where it is not there, and says so where it cannot."""

import importlib.util
import subprocess
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from experiments import lecture
from experiments.__main__ import main


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Addresses that a browser was asked for; the site is to be built in an empty folder."""
    addresses: list[str] = []
    monkeypatch.setattr(lecture, "BUILT", tmp_path)
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    return addresses


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Commands that were run to build the site; each writes the first page of the course."""
    commands: list[list[str]] = []

    def build(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (tmp_path / "course").mkdir(exist_ok=True)
        (tmp_path / "course" / "index.html").write_text("<h1>Course</h1>")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(subprocess, "run", build)
    return commands


def test_the_course_is_built_once_and_opened(
    opened: list[str], builds: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "course" / "index.html"
    assert main(["lecture"]) == main(["lecture"]) == 0
    assert len(builds) == 1
    assert builds[0][-2:] == [str(Path(__file__).parent.parent / "docs"), str(tmp_path)]
    assert opened == [page.as_uri()] * 2
    assert capsys.readouterr().out.count(str(page)) == 2


def test_it_is_built_again_when_asked_for_and_opened_in_no_browser(
    opened: list[str], builds: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lecture", "--no-open", "--quiet"]) == main(["lecture", "--build", "--no-open", "--quiet"]) == 0
    assert len(builds) == 2
    assert opened == []
    assert capsys.readouterr().out == ""


def test_without_sphinx_the_command_that_helps_is_named(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["lecture"]) == 2
    assert "make docs" in capsys.readouterr().err
    assert opened == []


@pytest.mark.parametrize("argv", [("--data", "digits"), ("extra",)])
def test_wrong_usage_exits_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["lecture", *argv])
    assert left.value.code == 2
    assert "usage" in capsys.readouterr().err
