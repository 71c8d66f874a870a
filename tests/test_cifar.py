"""CIFAR-10 read from files in the real formats: pixels where they belong, and nothing from files that are wrong."""

import hashlib
import importlib.util
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxopt_course import data
from jaxopt_course.data import DataFileError, cifar
from tests.cifar_files import (
    BATCHES,
    Batch,
    archive,
    binary_files,
    member,
    modern_batch,
    packed,
    python2_class_names,
    python_files,
    random_batches,
    tar,
    write_folder,
)

RECORDS = 4
ALL = random_batches(RECORDS)
FILES = {cifar.BINARY: binary_files(ALL), cifar.PYTHON: python_files(ALL)}
FORMS = ["binary archive", "binary folder", "python archive", "python folder"]

each_form = pytest.mark.parametrize("form", FORMS)


def write(root: Path, form: str, files: dict[str, bytes] | None = None) -> Path:
    version = cifar.BINARY if form.startswith("binary") else cifar.PYTHON
    files = FILES[version] if files is None else files
    if form.endswith("folder"):
        return write_folder(root / version.folder, files)
    path = root / version.archive.name
    path.write_bytes(archive(version.folder, files))
    return path


def make_official(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """As if these files were the ones with the published sums."""
    name = "BINARY" if path.name in (cifar.BINARY.archive.name, cifar.BINARY.folder) else "PYTHON"
    version: cifar.Version = getattr(cifar, name)
    if path.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        version = version._replace(archive=cifar.File(path.name, path.stat().st_size, digest))
    else:
        files = []
        for file in version.batches:
            contents = (path / file.name).read_bytes()
            digest = hashlib.new(version.algorithm, contents).hexdigest()
            files.append(cifar.File(file.name, len(contents), digest))
        version = version._replace(batches=tuple(files))
    monkeypatch.setattr(cifar, name, version)


def read(root: Path, **options: Any) -> tuple[cifar.Part, cifar.Part, str]:
    return cifar.read(root, records=RECORDS, **{"official": False, **options})


# Pixels where they belong


@each_form
def test_every_form_gives_the_images_in_order(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form)
    train, test, source = read(tmp_path)
    for (pixels, labels), names in ((train, BATCHES[:5]), (test, BATCHES[5:])):
        assert pixels.dtype == np.uint8
        assert labels.dtype == np.int32
        expected = np.concatenate([ALL[name].images for name in names])
        np.testing.assert_array_equal(pixels.reshape(-1, 32, 32, 3), expected)
        np.testing.assert_array_equal(labels, np.concatenate([ALL[name].labels for name in names]))
    assert source == f"CIFAR-10 (Krizhevsky 2009), {path.name}, not checked to be the official file"


@each_form
def test_the_official_files_are_read_and_one_bit_less_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    path = write(tmp_path, form)
    make_official(monkeypatch, path)
    train, _, source = read(tmp_path, official=True)
    np.testing.assert_array_equal(train[1][:RECORDS], ALL["data_batch_1"].labels)
    assert source.endswith("the official file")
    changed = path if path.is_file() else path / (f"{BATCHES[3]}.bin" if "binary" in form else BATCHES[3])
    contents = bytearray(changed.read_bytes())
    contents[len(contents) // 2] ^= 1
    changed.write_bytes(contents)
    algorithm = "md5" if form == "python folder" else "sha256"
    with pytest.raises(
        DataFileError, match=f"{changed.name} is not the official file: its {algorithm} is .*official=False"
    ):
        read(tmp_path, official=True)
    changed.write_bytes(contents[:-1])
    with pytest.raises(
        DataFileError, match=f"{changed.name} is not the official file: it has .* bytes, the official one"
    ):
        read(tmp_path, official=True)


@each_form
def test_nothing_is_parsed_before_it_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    path = write(tmp_path, form)

    def parsed(*_: Any) -> None:
        pytest.fail("it was parsed")

    for name in ("members_of_archive", "read_pickle", "_binary"):
        monkeypatch.setattr(cifar, name, parsed)
    with pytest.raises(DataFileError, match=r"is not the official file.*load\('cifar10', official=False\)"):
        cifar.read(tmp_path)
    assert path.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_batches_pickled_anew(tmp_path: Path, protocol: int) -> None:
    files = {name: modern_batch(batch, protocol, "CF"[protocol % 2]) for name, batch in ALL.items()}
    write(tmp_path, "python archive", files)
    train, _, _ = read(tmp_path)
    np.testing.assert_array_equal(train[0].reshape(-1, 32, 32, 3)[:RECORDS], ALL["data_batch_1"].images)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_packed_anew(tmp_path: Path, format: int) -> None:
    path = tmp_path / cifar.BINARY.archive.name
    path.write_bytes(archive(cifar.BINARY.folder, FILES[cifar.BINARY], format))
    np.testing.assert_array_equal(read(tmp_path)[1][1], ALL["test_batch"].labels)


def test_the_genuine_pictures_come_out_of_both_versions(tmp_path: Path) -> None:
    """foolbox has the first twenty test images of CIFAR-10 as PNG. The rows of numbers are how NumPy prints the genuine
    `test_batch` in public notebooks: they say that the files hold planes, and in which order."""
    foolbox = importlib.util.find_spec("foolbox")  # not imported: its pictures need none of what it needs
    if foolbox is None or not foolbox.submodule_search_locations:
        pytest.skip("foolbox is not installed")
    from PIL import Image

    paths = sorted(Path(foolbox.submodule_search_locations[0]).glob("data/cifar10_*.png"))
    assert len(paths) == 20
    pictures = [Image.open(path) for path in paths]
    assert [picture.size for picture in pictures] == [(32, 32)] * 20
    planes = [b"".join(band.tobytes() for band in picture.convert("RGB").split()) for picture in pictures]
    for row, (first, last) in enumerate([([158, 159, 165], [124, 129, 110]), ([235, 231, 232], [178, 191, 199])]):
        assert [*planes[row][:3]] == first
        assert [*planes[row][-3:]] == last
    labels = [int(path.stem.split("_")[2]) for path in paths]
    images = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    batch = Batch(images, np.array(labels, np.int32))
    assert [row.tobytes() for row in batch.planes] == planes  # what the tests write is what the files hold
    for form, files in (("binary archive", binary_files), ("python folder", python_files)):
        root = tmp_path / form
        root.mkdir()
        write(root, form, files(dict.fromkeys(BATCHES, batch)))
        _, (pixels, found), _ = cifar.read(root, official=False, records=20)
        np.testing.assert_array_equal(pixels.reshape(-1, 32, 32, 3), images)
        assert [cifar.CLASS_NAMES[label] for label in found[:4]] == ["cat", "ship", "ship", "airplane"]


# Where they are


def test_the_binary_version_goes_first_and_any_of_the_names_may_be_the_root(tmp_path: Path) -> None:
    for form in FORMS[::-1]:
        path = write(tmp_path, form)
        assert path.name in read(tmp_path)[2]
        assert path.name in read(path)[2]
    for version in (cifar.BINARY, cifar.PYTHON):
        for name in (version.archive.name, version.folder):
            assert name in read(tmp_path / name)[2]


def test_missing_files_are_said_with_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "no CIFAR-10 in {}: looked for cifar-10-binary.tar.gz, cifar-10-batches-bin, cifar-10-python.tar.gz, "
    said += "cifar-10-batches-py.*python -m experiments data cifar10 --download --root {}"
    with pytest.raises(FileNotFoundError, match=said.format(tmp_path, tmp_path)):
        data.load("cifar10", root=tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / ".cache" / "jaxopt_course"
    with pytest.raises(FileNotFoundError, match=said.format(home, home)):
        data.load("cifar10")
    write_folder(home / cifar.BINARY.folder, FILES[cifar.BINARY])
    assert len(cifar.read(official=False, records=RECORDS)[0][1]) == 5 * RECORDS


def test_load_standardises_or_gives_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "binary folder")
    plain = cifar.read

    def small(root: Path | None = None, *, official: bool = True) -> Any:
        return plain(root, official=official, records=RECORDS)

    monkeypatch.setattr(cifar, "read", small)
    raw = data.load("cifar10", root=str(tmp_path), official=False, raw=True)
    assert raw.image_shape == (32, 32, 3)
    assert raw.class_names == cifar.CLASS_NAMES
    assert raw.train[0].dtype == np.uint8
    features = data.load("cifar10", root=tmp_path, official=False)
    assert features.train[0].dtype == np.float32
    pixels = raw.train[0].astype(float)
    np.testing.assert_allclose(features.train[0], (pixels - pixels.mean(0)) / pixels.std(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"'cifar10' has no such option: .*seed"):
        data.load("cifar10", root=tmp_path, seed=1)


def test_a_download_goes_through_pooch_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")
    asked: list[Any] = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> None:
        asked.append((url, known_hash))
        (path / fname).write_bytes(b"")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert cifar.download(tmp_path) == tmp_path / "cifar-10-binary.tar.gz"
    assert cifar.download(tmp_path) == tmp_path / "cifar-10-binary.tar.gz"  # it is there
    assert asked == [
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        )
    ]


# What they should not be

Edit = Callable[[dict[str, bytes]], Any]


def put(name: str, contents: bytes) -> Edit:
    return lambda files: files.update({name: contents})


def label(value: int, at: int = 2) -> Edit:
    """In the third training batch of the binary version."""
    place = at * 3073
    return lambda files: files.update(
        {
            "data_batch_3.bin": files["data_batch_3.bin"][:place]
            + bytes([value])
            + files["data_batch_3.bin"][place + 1 :]
        }
    )


def classes(names: Any) -> Edit:
    return put("batches.meta", pickle.dumps({"label_names": names}))


def pickled(**entries: Any) -> bytes:
    return pickle.dumps({"data": ALL["test_batch"].planes, "labels": [0] * RECORDS, **entries})


WRONG: dict[str, tuple[str, Edit, str]] = {
    "label 10": ("binary", label(10), "data_batch_3.bin: image 2 has label 10; labels are 0 to 9"),
    "label 255": ("binary", label(255, 0), "data_batch_3.bin: image 0 has label 255"),
    "a byte short": ("binary", put("data_batch_1.bin", bytes(RECORDS * 3073 - 1)), "12,291 bytes, not the 12,292 of 4"),
    "a record short": ("binary", put("test_batch.bin", bytes(3 * 3073)), "9,219 bytes, not the 12,292"),
    "a byte long": ("binary", put("test_batch.bin", bytes(RECORDS * 3073 + 1)), "12,293 bytes|larger than the 12,292"),
    "empty": ("binary", put("data_batch_5.bin", b""), "data_batch_5.bin: 0 bytes, not the 12,292"),
    "missing": ("binary", lambda files: files.pop("test_batch.bin"), "not complete: test_batch.bin missing"),
    "all missing": ("binary", lambda files: files.clear(), "not complete: data_batch_1.bin, data_batch_2.bin, "),
    "other classes": (
        "binary",
        put("batches.meta.txt", b"cat\ndog\n"),
        r"the classes should be airplane.*\['cat', 'dog'\]",
    ),
    "classes not ASCII": ("binary", put("batches.meta.txt", b"\xff\xfe"), "the classes should be"),
    "pickled label 10": (
        "python",
        put("test_batch", pickled(labels=[1, 2, 10, 3])),
        "test_batch: image 2 has label 10",
    ),
    "pickled label -1": ("python", put("test_batch", pickled(labels=[-1, 2, 1, 3])), "image 0 has label -1"),
    "pickled label 2^70": ("python", put("test_batch", pickled(labels=[0, 2**70, 1, 3])), "image 1 has label 11805916"),
    "true label": (
        "python",
        put("test_batch", pickled(labels=[True, 2, 1, 3])),
        "'labels' should be a list of 4 integers",
    ),
    "few labels": ("python", put("test_batch", pickled(labels=[1, 2, 3])), "'labels' should be a list of 4 integers"),
    "label array": ("python", put("test_batch", pickled(labels=np.zeros(4, np.uint8))), "'labels' should be a list"),
    "no labels": ("python", put("test_batch", pickle.dumps({"data": ALL["test_batch"].planes})), "'labels' should be"),
    "no data": (
        "python",
        put("test_batch", pickle.dumps({"labels": [0] * 4})),
        "'data' should be an array.*it is missing",
    ),
    "flat data": ("python", put("test_batch", pickled(data=np.zeros(4 * 3072, np.uint8))), r"it is \(12288,\)"),
    "few images": ("python", put("test_batch", pickled(data=np.zeros((3, 3072), np.uint8))), r"it is \(3, 3072\)"),
    "data of another type": ("python", put("test_batch", pickled(data=np.zeros((4, 3072), "i2"))), "dtype 'i2'"),
    "text for data": ("python", put("test_batch", pickled(data="x")), "it is missing"),
    "a command": (
        "python",
        put("test_batch", b"cos\nsystem\n(S'true'\ntR."),
        "test_batch is not a pickle of plain data",
    ),
    "no pickle": ("python", put("data_batch_2", b"hello"), "data_batch_2 is not a pickle of plain data"),
    "classes pickled": ("python", classes(["cat"]), "the classes should be .*'cat'"),
    "classes no list": ("python", classes(5), "the classes should be"),
    "classes of numbers": (
        "python",
        classes([1, "b"]),
        r"the classes should be .*'\?'",
    ),
}


@pytest.mark.parametrize("packing", ["archive", "folder"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, packing: str) -> None:
    version, edit, said = WRONG[name]
    files = dict(FILES[cifar.BINARY if version == "binary" else cifar.PYTHON])
    edit(files)
    path = write(tmp_path, f"{version} {packing}", files)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataFileError, match=f"^{re.escape(str(path))}.*{said}" if packing == "archive" else said):
        read(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_class_names_may_be_left_out(tmp_path: Path) -> None:
    for form in FORMS:
        files = {
            name: contents
            for name, contents in FILES[cifar.BINARY if "bin" in form else cifar.PYTHON].items()
            if "meta" not in name
        }
        path = write(tmp_path, form, files)
        assert len(read(path)[1][1]) == RECORDS


@pytest.mark.parametrize(
    "hostile",
    [
        member("../../proof", b"x"),
        member("/tmp/proof", b"x"),
        member("cifar-10-batches-bin/data_batch_1.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("cifar-10-batches-bin/data_batch_1.bin", type=tarfile.LNKTYPE, linkname="test_batch.bin"),
        member("cifar-10-batches-bin/data_batch_1.bin", type=tarfile.CHRTYPE),
        member("cifar-10-batches-bin/data_batch_1.bin", size=10 * 10**9),
        member("cifar-10-batches-bin/data_batch_1.bin", bytes(12_292)),  # twice
    ],
)  # fmt: skip
def test_a_hostile_member_spoils_the_archive(tmp_path: Path, hostile: bytes) -> None:
    honest = [member(f"{cifar.BINARY.folder}/{name}", contents) for name, contents in FILES[cifar.BINARY].items()]
    for members in ([hostile, *honest], [*honest, hostile]):
        (tmp_path / cifar.BINARY.archive.name).write_bytes(packed(tar(members)))
        with pytest.raises(DataFileError, match=r"leads out|neither a regular file|it claims|there twice"):
            read(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [cifar.BINARY.archive.name]


def test_class_names_are_those_of_the_genuine_file(tmp_path: Path) -> None:
    files = {**FILES[cifar.PYTHON], "batches.meta": python2_class_names()}
    write(tmp_path, "python folder", files)
    assert len(read(tmp_path)[0][1]) == 5 * RECORDS
