"""CIFAR-10 from its official files: the binary or the Python version, as a downloaded archive or an unpacked folder."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxopt_course.data.archives import DataFileError, check_digest, files_in_folder, members_of_archive
from jaxopt_course.data.pickles import read_pickle, text
from jaxopt_course.extras import missing

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SHAPE = (32, 32, 3)
PIXELS = 32 * 32 * 3
RECORDS = 10_000  # images in each of the six files
FOLDER = Path("~/.cache/jaxopt_course")
HOST = "https://www.cs.toronto.edu/~kriz"
UNOFFICIAL = "Fetch it again, or, to read this file anyway, call load('cifar10', official=False)"


class File(NamedTuple):
    """A published file of the data set."""

    name: str
    size: int
    digest: str


class Version(NamedTuple):
    """One of the two published versions of the data set. `batches` are in order, with the test images last."""

    archive: File
    folder: str
    batches: tuple[File, ...]
    class_names: str
    algorithm: str  # of the batches' digests; the archives' are SHA-256


BINARY = Version(
    File(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar-10-batches-bin",
    (
        File("data_batch_1.bin", 30_730_000, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
        File("data_batch_2.bin", 30_730_000, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
        File("data_batch_3.bin", 30_730_000, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
        File("data_batch_4.bin", 30_730_000, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
        File("data_batch_5.bin", 30_730_000, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
        File("test_batch.bin", 30_730_000, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
    ),
    "batches.meta.txt",
    "sha256",
)
PYTHON = Version(
    File(
        "cifar-10-python.tar.gz",
        170_498_071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar-10-batches-py",
    (  # MD5, as in torchvision: known attacks make two files with one MD5, not another file for a given MD5
        File("data_batch_1", 31_035_704, "c99cafc152244af753f735de768cd75f"),
        File("data_batch_2", 31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
        File("data_batch_3", 31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
        File("data_batch_4", 31_035_696, "634d18415352ddfa80567beed471001a"),
        File("data_batch_5", 31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        File("test_batch", 31_035_526, "40351d587109b95175f43aff81a1287e"),
    ),
    "batches.meta",
    "md5",
)
Part = tuple[np.ndarray, np.ndarray]


def read(root: Path | None = None, *, official: bool = True, records: int = RECORDS) -> tuple[Part, Part, str]:
    """Read the 50,000 training images in the order of their batches, the 10,000 test images, and a source description.

    Each part is `(pixels[N, 3072] uint8, labels[N] int32)`. The files store an image as three planes: red, green, blue.
    Here a row reshapes to `(32, 32, 3)`. Memory holds the pixels and one batch at a time.

    Args:
      root: the folder that contains an archive or an unpacked folder, or one of these itself; by default `FOLDER`. The
        binary version is preferred to the Python version, and an archive to a folder.
      official: whether to accept only files that are identical to the published ones.
      records: images in a batch.

    Raises:
      FileNotFoundError: no file was found; the message says where they were searched and how to get them.
      DataFileError: a file is not the official one, is damaged, or contains something that is not allowed.
    """
    version, path = find(root)
    pixels = np.empty((len(version.batches) * records, PIXELS), np.uint8)
    labels = np.empty(len(pixels), np.int32)
    slots = {file.name: number for number, file in enumerate(version.batches)}
    for name, contents in _contents(version, path, official, records):
        where = f"{path}, {name}"
        if name == version.class_names:
            _check_class_names(version, contents, where)
            continue
        planes, batch_labels = (_binary if version is BINARY else _pickled)(contents, records, where)
        rows = slice(slots[name] * records, (slots.pop(name) + 1) * records)
        images = planes.reshape(records, 3, 32, 32).transpose(0, 2, 3, 1)
        pixels[rows].reshape(records, *IMAGE_SHAPE)[:] = images
        labels[rows] = _checked(batch_labels, where)
    if slots:
        raise DataFileError(f"{path} is not complete: {', '.join(slots)} missing")
    count = len(pixels) - records
    checked = "the official file" if official else "not checked to be the official file"
    source = f"CIFAR-10 (Krizhevsky 2009), {path.name}, {checked}"
    return (pixels[:count], labels[:count]), (pixels[count:], labels[count:]), source


def find(root: Path | None = None) -> tuple[Version, Path]:
    """Return the version and the path of the files that `read` would read."""
    folder = (FOLDER if root is None else Path(root)).expanduser()
    names = [(version, name) for version in (BINARY, PYTHON) for name in (version.archive.name, version.folder)]
    for version, name in names:
        path = folder if folder.name == name else folder / name
        if path.is_dir() if name == version.folder else path.is_file():
            return version, path
    raise FileNotFoundError(
        f"load: no CIFAR-10 in {folder}: looked for {', '.join(name for _, name in names)}. Pass the folder that "
        f"contains it as root=, or fetch 162 MiB with: python -m experiments data cifar10 --download --root {folder}"
    )


def download(root: Path | None = None) -> Path:
    """Download the binary version into a folder by https and check its hash; an existing file is not changed."""
    try:
        import pooch
    except ImportError as error:
        raise missing("a download", error) from error
    folder = (root or FOLDER).expanduser()
    file = folder / BINARY.archive.name
    if file.exists():
        return file
    pooch.get_logger().setLevel("WARNING")
    url = f"{HOST}/{file.name}"
    try:
        pooch.retrieve(url, f"sha256:{BINARY.archive.digest}", fname=file.name, path=folder)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{url} could not be fetched into {folder}: {reason}") from error
    return file


def _contents(version: Version, path: Path, official: bool, records: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and contents of the batches and of the class names; if `official`, the files are checked first."""
    most = records * (PIXELS + 1)
    if version is PYTHON:
        most = 3 * most + 2**20  # old protocols encode some bytes as several, and every image has a name
    largest = {**{file.name: most for file in version.batches}, version.class_names: 2**12}
    if path.is_dir():
        files = {file.name: file for file in version.batches}
        for name, contents in files_in_folder(path, largest):
            if official and name in files:
                _, size, digest = files[name]
                check_digest(io.BytesIO(contents), size, version.algorithm, digest, f"{path / name}", UNOFFICIAL)
            yield name, contents
        return
    with path.open("rb") as file:
        if official:
            check_digest(file, version.archive.size, "sha256", version.archive.digest, f"{path}", UNOFFICIAL)
        yield from members_of_archive(file, version.folder, largest, f"{path}")


def _binary(contents: bytes, records: int, where: str) -> Part:
    if len(contents) != records * (PIXELS + 1):
        raise DataFileError(
            f"{where}: {len(contents):,} bytes, not the {records * (PIXELS + 1):,} of {records:,} records of a label "
            f"and {PIXELS:,} pixels"
        )
    table = np.frombuffer(contents, np.uint8).reshape(records, PIXELS + 1)
    return table[:, 1:], table[:, 0]


def _pickled(contents: bytes, records: int, where: str) -> Part:
    batch = read_pickle(contents, where)
    planes, labels = batch.get("data"), batch.get("labels")
    if not isinstance(planes, np.ndarray) or planes.shape != (records, PIXELS):
        shape = getattr(planes, "shape", "missing")
        raise DataFileError(f"{where}: 'data' should be an array of shape {(records, PIXELS)}, it is {shape}")
    if not isinstance(labels, list) or len(labels) != records or any(type(label) is not int for label in labels):
        raise DataFileError(f"{where}: 'labels' should be a list of {records:,} integers")
    return planes, np.array(labels, object)


def _checked(labels: np.ndarray, where: str) -> np.ndarray:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASS_NAMES)))
    if wrong.size:
        raise DataFileError(
            f"{where}: image {wrong[0]:,} has label {labels[wrong[0]]}; labels are 0 to {len(CLASS_NAMES) - 1}"
        )
    return labels


def _check_class_names(version: Version, contents: bytes, where: str) -> None:
    if version is BINARY:
        names = [line.decode("ascii", "replace") for line in contents.splitlines() if line]
    else:
        listed = read_pickle(contents, where).get("label_names")
        names = [text(name) or "?" for name in listed] if isinstance(listed, list) else []
    if tuple(names) != CLASS_NAMES:
        raise DataFileError(f"{where}: the classes should be {', '.join(CLASS_NAMES)}; they are {str(names)[:200]}")
