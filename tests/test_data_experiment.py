"""The commands `data` and `doctor`: what they say is true, a download is fetched as asked, errors are one line."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxopt_course as jc
from experiments import arguments, doctor
from experiments.__main__ import COMMANDS, main
from jaxopt_course.data import cifar
from tests.cifar_files import archive, binary_files, random_batches

ROOT = Path(__file__).parent.parent
RECORDS = 20
PACKED = archive(cifar.BINARY.folder, binary_files(random_batches(RECORDS)))


def experiments(*argv: str | Path, code: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", f"{code}\nimport sys; from experiments.__main__ import main; sys.exit(main())"] if code else []
    command = [sys.executable, "-W", "error", *(start or ["-m", "experiments"]), *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A server on this machine with a small archive, which stands for the official one."""
    served = tmp_path / "served"
    served.mkdir()
    (served / cifar.BINARY.archive.name).write_bytes(PACKED)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        digest = hashlib.sha256(PACKED).hexdigest()
        file = cifar.File(cifar.BINARY.archive.name, len(PACKED), digest)
        monkeypatch.setattr(cifar, "BINARY", cifar.BINARY._replace(archive=file))
        monkeypatch.setattr(cifar, "HOST", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        plain = cifar.read
        monkeypatch.setattr(cifar, "read", lambda *args, **options: plain(*args, records=RECORDS, **options))
        yield cifar.HOST
        server.shutdown()


# data


def test_data_says_what_is_in_a_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "digits.png"
    assert main(["data", "digits", "--json", "--picture", str(picture)]) == 0
    facts = json.loads(capsys.readouterr().out)
    dataset = jc.data.load("digits", raw=True)
    for part, (pixels, labels) in (("train", dataset.train), ("test", dataset.test)):
        assert facts[part]["images"] == len(pixels)
        assert list(facts[part]["of_each_class"].values()) == np.bincount(labels).tolist()
        assert (facts[part]["lowest_pixel"], facts[part]["highest_pixel"]) == (0, 16)
        assert facts[part]["mean_pixel"] == pytest.approx(pixels.mean(), abs=0.01)
        assert facts[part]["bytes"] == pixels.nbytes
    assert facts["image_shape"] == [8, 8]
    assert facts["source"] == dataset.source
    assert len(facts["sha256"]) == 64
    assert facts["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["data", "digits"]) == 0
    shown = capsys.readouterr().out
    for words in ("digits: 8 x 8 pixels, 10 classes", "1,437", "139 to 146", "0 to 16", facts["sha256"], "UCI"):
        assert words in shown


def test_the_picture_of_patches_says_what_they_are() -> None:
    pytest.importorskip("skimage")
    from experiments import data

    dataset = jc.data.load("patch10", num_train=40, num_test=10, raw=True)
    axes = data.picture(dataset).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(dataset.class_names)
    assert "patch10" in axes.get_title()


def test_a_download_is_fetched_checked_and_read(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pooch")
    argv = ["data", "cifar10", "--download", "--root", str(tmp_path / "new"), "--json"]
    assert main(argv) == 0
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert facts["train"]["images"] == 5 * RECORDS
    assert facts["source"].endswith("cifar-10-binary.tar.gz, the official file")
    assert shown.err == f"{tmp_path / 'new' / 'cifar-10-binary.tar.gz'} is there\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_download_that_is_another_file_is_refused(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pooch")
    (tmp_path / "served" / "cifar-10-binary.tar.gz").write_bytes(PACKED[:-1] + b"x")
    assert main(["data", "cifar10", "--download", "--root", str(tmp_path / "new")]) == 1
    assert_one_line(capsys, f"{host}/cifar-10-binary.tar.gz could not be fetched into .*new: .*hash")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "served" / "cifar-10-binary.tar.gz").unlink()
    assert main(["data", "cifar10", "--download", "--root", str(tmp_path / "new")]) == 1
    assert_one_line(capsys, "could not be fetched into .*new: 404")


def test_a_download_without_a_network_or_pooch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setattr(cifar, "HOST", "https://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert main(["data", "cifar10", "--download", "--root", str(tmp_path)]) == 1
    assert_one_line(capsys, "https://127.0.0.1:9/cifar-10-binary.tar.gz could not be fetched into ")
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert main(["data", "cifar10", "--download", "--root", str(tmp_path)]) == 1
    assert_one_line(capsys, "a download needs the package pooch: pip install pooch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["data", "cifar10"], ["race", "--data", "cifar10"], ["solve", "--data", "cifar10"]]
)
def test_files_that_are_missing_or_wrong_exit_1_with_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if command[0] == "data" else ["--out", str(tmp_path / "run")]
    assert main([*command, "--root", str(tmp_path), *out]) == 1
    assert_one_line(capsys, f"{command[0]}: failed: load: no CIFAR-10 in {tmp_path}: looked for .* --download --root")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"hello")
    out = out and [out[0], f"{out[1]}2"]
    assert main([*command, "--root", str(tmp_path), *out]) == 1
    assert_one_line(capsys, "cifar-10-binary.tar.gz is not the official file: it has 5 bytes, .* official=False")


def test_unofficial_files_are_read_on_request(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = archive(cifar.BINARY.folder, binary_files(random_batches(RECORDS, seed=1)))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(other)
    assert main(["data", "cifar10", "--root", str(tmp_path)]) == 1
    assert_one_line(capsys, "is not the official file")
    assert main(["data", "cifar10", "--root", str(tmp_path), "--unofficial"]) == 0
    assert "not checked to be the official file" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--download", "--unofficial"])
def test_flags_of_files_have_no_meaning_for_other_sets(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "digits", flag]) == 2
    assert_one_line(capsys, f"{flag} is for cifar10; digits needs no file")


def assert_one_line(capsys: pytest.CaptureFixture[str], said: str) -> None:
    import re

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert re.search(said, shown.err), shown.err


# doctor


def test_doctor_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--root", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["numpy"] == np.__version__
    assert {device["platform"] for device in found["devices"]} == {"cpu"}
    assert found["processors"] >= 1
    assert found["memory_bytes"]["total"] > 2**28
    assert 0 < found["memory_bytes"]["available"] <= found["memory_bytes"]["total"]
    assert found["x64"] is True  # as the tests run
    assert tuple(found["data"]) == arguments.DATASETS
    assert found["data"]["digits"] == {"found": True, "where": "in scikit-learn"}
    assert not found["data"]["cifar10"]["found"]
    assert "--download" in found["data"]["cifar10"]["where"]
    assert found["commands"].keys() == COMMANDS.keys() - {"doctor"}
    assert all(command["missing"] == [] for command in found["commands"].values())
    (tmp_path / cifar.PYTHON.folder).mkdir()
    assert doctor.image_set("cifar10", tmp_path) == {"found": True, "where": str(tmp_path / cifar.PYTHON.folder)}
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("Machine", "x64", "Packages", np.__version__, "Image sets", "in scikit-learn", "Commands", "ready"):
        assert words in shown


@pytest.mark.parametrize("package", ["rich", "matplotlib", "sklearn"])
def test_doctor_runs_where_others_cannot_and_says_why(package: str) -> None:
    """Also without rich, which draws the tables."""
    hide = (
        f"import importlib.util, sys; sys.modules[{package!r}] = None; find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name == {package!r} else find(name)"
    )
    done = experiments("doctor", code=hide)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "CANNOT RUN" in done.stdout
    assert {"sklearn": "scikit-learn"}.get(package, package) in done.stdout.split("Commands")[1]


def test_doctor_without_the_accelerator_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    def no_devices() -> None:
        raise RuntimeError("Unable to initialize\nbackend 'cuda'")

    monkeypatch.setattr(jax, "devices", no_devices)
    assert doctor.devices() == [
        {"platform": "none", "kind": "Unable to initialize backend 'cuda'", "memory_bytes": None}
    ]
    found = [section for section in doctor.sections(doctor.examine(None)) if section.title == "Machine"]
    assert "Unable to initialize" in found[0].rows[0][1]


def test_what_the_doctor_knows_of_is_there() -> None:
    assert doctor.LEAVES_OUT.keys() <= COMMANDS.keys()
    assert doctor.SETS.keys() | {"cifar10", "synthetic"} == set(arguments.DATASETS)
