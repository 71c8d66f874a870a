"""Small files in the formats of CIFAR-10: the binary batch, the batch as Python 2 pickled it in 2009, the archives."""

import gzip
import io
import pickle
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxopt_course.data.cifar import CLASS_NAMES

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


class Batch(NamedTuple):
    """`images[N, 32, 32, 3]`, `labels[N]`, as they should come out, and the planes `[N, 3072]` that files hold."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def planes(self) -> np.ndarray:
        red, green, blue = (self.images[..., channel].reshape(len(self.images), -1) for channel in range(3))
        return np.concatenate([red, green, blue], axis=1)


def random_batches(records: int, seed: int = 0) -> dict[str, Batch]:
    rng = np.random.default_rng(seed)
    return {
        name: Batch(
            rng.integers(0, 256, (records, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, records, dtype=np.int32)
        )
        for name in BATCHES
    }


def binary_files(batches: Mapping[str, Batch]) -> dict[str, bytes]:
    files = {
        f"{name}.bin": b"".join(
            bytes([label]) + planes.tobytes() for label, planes in zip(batch.labels, batch.planes, strict=True)
        )
        for name, batch in batches.items()
    }
    return {**files, "batches.meta.txt": ("\n".join(CLASS_NAMES) + "\n\n").encode(), "readme.html": b"<html></html>"}


def python_files(batches: Mapping[str, Batch]) -> dict[str, bytes]:
    files = {name: python2_batch(batch, name) for name, batch in batches.items()}
    return {**files, "batches.meta": python2_class_names(), "readme.html": b"<html></html>"}


def modern_batch(batch: Batch, protocol: int, order: str = "C") -> bytes:
    planes = np.asarray(batch.planes, order=order)  # type: ignore[call-overload]
    return pickle.dumps({"labels": batch.labels.tolist(), "data": planes, "batch_label": "one"}, protocol=protocol)


def python2_batch(batch: Batch, name: str) -> bytes:
    """Protocol 2 of cPickle with NumPy 1.3: text as byte strings, a memo of one byte and then of four."""
    write = Python2Pickle()
    write.start_dict()
    write.text("batch_label")
    write.text(f"training batch {name}")
    write.text("labels")
    write.start_list()
    write.out += b"".join(b"K" + bytes([label]) for label in batch.labels) + b"e"
    write.text("data")
    write.name("numpy.core.multiarray", "_reconstruct")
    write.name("numpy", "ndarray")
    write.out += b"K\x00\x85"
    write.put()
    write.text("b")
    write.out += b"\x87"
    write.put()
    write.out += b"R"
    write.put()
    write.out += b"(K\x01M" + len(batch.labels).to_bytes(2, "little") + b"M\x00\x0c\x86"
    write.put()
    write.name("numpy", "dtype")
    write.text("u1")
    write.out += b"K\x00K\x01\x87"
    write.put()
    write.out += b"R"
    write.put()
    write.out += b"(K\x03"
    write.text("|")
    write.out += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    write.put()
    write.out += b"b\x89T" + batch.planes.size.to_bytes(4, "little") + batch.planes.tobytes()
    write.put()
    write.out += b"t"
    write.put()
    write.out += b"b"
    write.text("filenames")
    write.start_list()
    for number in range(len(batch.labels)):
        write.text(f"domestic_cat_s_{number:06}.png")
    return write.out + b"eu."


def python2_class_names() -> bytes:
    """`batches.meta` to the bit, see the test of its MD5."""
    write = Python2Pickle()
    write.start_dict()
    write.text("num_cases_per_batch")
    write.out += b"M" + (10_000).to_bytes(2, "little")
    write.text("label_names")
    write.start_list()
    for name in CLASS_NAMES:
        write.text(name)
    write.out += b"e"
    write.text("num_vis")
    return write.out + b"M" + (3072).to_bytes(2, "little") + b"u."


class Python2Pickle:
    def __init__(self) -> None:
        self.out, self.memo = b"\x80\x02", 0

    def put(self) -> None:
        self.memo += 1
        self.out += b"q" + bytes([self.memo]) if self.memo < 256 else b"r" + self.memo.to_bytes(4, "little")

    def text(self, text: str) -> None:
        self.out += b"U" + bytes([len(text)]) + text.encode()
        self.put()

    def name(self, module: str, name: str) -> None:
        self.out += f"c{module}\n{name}\n".encode()
        self.put()

    def start_dict(self) -> None:
        self.out += b"}"
        self.put()
        self.out += b"("

    def start_list(self) -> None:
        self.out += b"]"
        self.put()
        self.out += b"("


def member(name: str, contents: bytes = b"", **fields: Any) -> bytes:
    """A member of a tar: header, contents, padding. Fields of `tarfile.TarInfo` replace the honest ones."""
    info = tarfile.TarInfo(name)
    info.size = len(contents)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + contents + bytes(-len(contents) % 512)


def tar(members: Iterable[bytes]) -> bytes:
    out = b"".join(members) + bytes(1024)
    return out + bytes(-len(out) % 10240)


def packed(unpacked: bytes) -> bytes:
    return gzip.compress(unpacked, 1, mtime=0)


def archive(folder: str, files: Mapping[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """By Python's own tarfile, in the order of the official archive's kind: not sorted, the folder first."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=format, compresslevel=1) as written:
        info = tarfile.TarInfo(folder)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        written.addfile(info)
        for name in sorted(files, key=lambda name: name[::-1]):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mtime = len(files[name]), 1244132531.5  # type: ignore[assignment]
            written.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder
