"""Archives read without extracting: the members asked for come out, and what could do harm is refused early."""

import gzip
import io
import random
import tarfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jaxopt_course.data import DataFileError
from jaxopt_course.data.archives import SPARE, check_digest, files_in_folder, members_of_archive
from tests.cifar_files import archive, member, packed, tar, write_folder

A, B = random.Random(0).randbytes(1000), random.Random(1).randbytes(512)
LARGEST = {"a": 1000, "b": 600}
TWO = [member("folder/a", A), member("folder/b", B)]


def read(data: bytes, largest: dict[str, int] = LARGEST) -> dict[str, bytes]:
    file = io.BytesIO(data)
    return dict(members_of_archive(file, "folder", largest, "file.tar.gz"))


@contextmanager
def in_memory(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most


# What is there


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_as_tarfile_packs_them(format: int) -> None:
    """The pax format has a header more for each member, for its time."""
    assert read(archive("folder", {"a": A, "b": B, "readme.html": b"hello"}, format)) == {"a": A, "b": B}


@pytest.mark.parametrize(
    "members",
    [
        TWO,
        TWO[::-1],
        [member("a", A), member("b", B)],
        [member("folder/", type=tarfile.DIRTYPE), *TWO],
        [member("folder", type=tarfile.DIRTYPE), *TWO],
        [member("folder/", type=tarfile.AREGTYPE), *TWO],
        [member("folder/a", A, type=tarfile.AREGTYPE), TWO[1]],
        [member("folder/readme", A * 100), *TWO],
        [member("other/a", B), *TWO],
        [member("note", b"18 mtime=12345.60\n", type=tarfile.XHDTYPE), *TWO],
        [member("note", b"18 comment=a path\n", type=tarfile.XGLTYPE), *TWO],
    ],
)
def test_plain_members_come_out_and_the_rest_is_passed_over(members: list[bytes]) -> None:
    assert read(packed(tar(members))) == {"a": A, "b": B}


def test_an_empty_member_and_one_that_is_missing() -> None:
    assert read(packed(tar([member("folder/a")]))) == {"a": b""}


def test_gzip_members_in_a_row_are_one_file() -> None:
    whole = tar(TWO)
    assert read(packed(whole[:700]) + packed(whole[700:])) == {"a": A, "b": B}


# What is refused


def with_checksum(header: bytes, **at: Any) -> bytes:
    """A header with bytes replaced at places `at_124=b"..."`, and a checksum that is right again."""
    changed = bytearray(header)
    for place, new in at.items():
        start = int(place.removeprefix("at_"))
        changed[start : start + len(new)] = new
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def refused_members() -> dict[str, tuple[list[bytes], str]]:
    return {
        "parent": ([member("../a", A)], "'../a': the name leads out"),
        "parent within": ([member("folder/../../a", A)], "the name leads out"),
        "parent of Windows": ([member("folder\\..\\a", A)], "the name leads out"),
        "parent of another": ([member("other/..", A), *TWO], "the name leads out"),
        "absolute": ([member("/etc/passwd", A), *TWO], "'/etc/passwd': the name leads out"),
        "absolute, wanted": ([member("/folder/a", A)], "the name leads out"),
        "drive": ([member("C:\\a", A)], "the name leads out"),
        "folder outside": ([member("../", type=tarfile.DIRTYPE)], "the name leads out"),
        "prefix outside": ([with_checksum(member("a", A), at_257=b"ustar\0", at_345=b"..")], "the name leads out"),
        **{
            kind: ([member("folder/a", type=flag, linkname="/etc/passwd")], f"of tar's type {flag!r}")
            for kind, flag in {
                "symbolic link": tarfile.SYMTYPE,
                "hard link": tarfile.LNKTYPE,
                "character device": tarfile.CHRTYPE,
                "block device": tarfile.BLKTYPE,
                "pipe": tarfile.FIFOTYPE,
                "contiguous": tarfile.CONTTYPE,
                "sparse": tarfile.GNUTYPE_SPARSE,
                "long name": tarfile.GNUTYPE_LONGNAME,
                "long link": tarfile.GNUTYPE_LONGLINK,
                "unknown": b"Z",
            }.items()
        },
        "link beside": ([member("link", type=tarfile.SYMTYPE, linkname="/etc"), *TWO], "of tar's type b'2'"),
        "link to a folder": ([member("folder/", type=tarfile.SYMTYPE, linkname="/etc"), *TWO], "of tar's type b'2'"),
        "twice": ([*TWO, member("folder/a", A)], "'folder/a': it is there twice"),
        "twice by two names": ([*TWO, member("a", A)], "'a': it is there twice"),
        "readme twice": ([member("r", A), member("r", A)], "'r': it is there twice"),
        "too large": ([member("folder/a", A + b"x")], "it claims 1,001 bytes, more than the 1,000"),
        "10 GB": ([member("folder/a", A, size=10 * 10**9)], "it claims 10,000,000,000 bytes"),
        "10 GB passed over": ([member("folder/r", A, size=10 * 10**9)], "ends too early"),
        "8 EB": ([with_checksum(member("a", A), at_124=b"\x80" + b"\xff" * 11)], "it claims 309,485,009,821"),
        "less than nothing": ([with_checksum(member("a", A), at_124=b"\xff" * 12)], "holds .* for a number"),
        "size with a sign": ([with_checksum(member("a", A), at_124=b"-0000001750\0")], "holds .* for a number"),
        "size with a gap": ([with_checksum(member("a", A), at_124=b"1_7_50\0\0\0\0\0\0")], "holds .* for a number"),
        "folder with contents": ([member("folder/", A, type=tarfile.DIRTYPE)], "a folder with 1,000 bytes of its own"),
        "renamed": ([member("n", b"12 path=../a\n", type=tarfile.XHDTYPE), *TWO], "another name or size"),
        "resized": ([member("n", b"20 size=9999999999\n", type=tarfile.XHDTYPE), *TWO], "another name or size"),
        "sparse by pax": ([member("n", b"22 GNU.sparse.major=1\n", type=tarfile.XHDTYPE), *TWO], "another name"),
        "long note": ([member("n", bytes(70_000), type=tarfile.XHDTYPE), *TWO], "pax header of 70,000 bytes"),
        "10 GB note": ([member("n", size=10 * 10**9, type=tarfile.XGLTYPE), *TWO], "pax header of 10,000,000,000"),
        "many": ([member(f"m{number}") for number in range(70)], "more than 64 members"),
        "bad checksum": ([TWO[0][:148] + b"0000000\0" + TWO[0][156:]], "checksum of a header is wrong"),
        "one bit": ([b"g" + TWO[0][1:]], "checksum of a header is wrong"),
        "no tar": ([b"hello" * 1000], "no tar archive"),
    }


@pytest.mark.parametrize("name", refused_members())
def test_what_could_do_harm_is_refused_in_little_memory(name: str) -> None:
    members, said = refused_members()[name]
    data = packed(tar(members))
    with in_memory(1_000_000), pytest.raises(DataFileError, match=f"^file.tar.gz.*{said}"):
        read(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends too early|no gzip file"),
        (b"hello", "no gzip file"),
        (packed(tar(TWO))[:20], "damaged, or no gzip file"),
        (packed(tar(TWO))[:-1], "damaged, or no gzip file"),
        (packed(tar(TWO))[:-8], "damaged, or no gzip file"),
        (packed(tar(TWO))[:-8] + bytes(8), "damaged, or no gzip file: .*CRC"),
        (packed(tar(TWO)) + b"garbage", "damaged, or no gzip file"),
        (packed(TWO[0][:1000]), "ends too early"),
        (packed(TWO[0][:1512]), "ends too early"),
        (packed(b"".join(TWO)), "ends too early"),
        (packed(b""), "ends too early"),
        (tar(TWO), "no gzip file"),
    ],
)
def test_what_is_damaged_is_said(data: bytes, said: str) -> None:
    with pytest.raises(DataFileError, match=f"^file.tar.gz .*({said})"):
        read(data)


def test_bombs_are_not_unpacked() -> None:
    """100 MB of nothing in 100 kB: where a file should be, where one is passed over, and behind the end."""
    nothing = bytes(100 * 2**20)
    bombs = [
        [member("folder/a", size=10**8), nothing],
        [member("folder/readme", size=len(nothing)), nothing],
        [*TWO, bytes(1024), nothing],
    ]
    for bomb in bombs:
        data = gzip.compress(b"".join(bomb), 9)
        assert len(data) < 200_000
        with in_memory(2 * SPARE), pytest.raises(DataFileError, match=r"unpacks? to more|it claims 100,000,000 bytes"):
            read(data)


def test_one_member_at_a_time_is_in_memory() -> None:
    names = {f"m{number}": 2**20 for number in range(20)}
    data = packed(tar([member(f"folder/{name}", bytes(2**20)) for name in names]))
    with in_memory(5 * 2**20):
        assert (
            sum(len(contents) for _, contents in members_of_archive(io.BytesIO(data), "folder", names, ""))
            == 20 * 2**20
        )


# Folders and sums


def test_files_in_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", {"a": A, "b": B, "other": A})
    assert dict(files_in_folder(folder, LARGEST)) == {"a": A, "b": B}
    assert dict(files_in_folder(folder, {"a": 1000, "c": 1})) == {"a": A}
    with pytest.raises(DataFileError, match=r"folder/a is larger than the 999 bytes"):
        dict(files_in_folder(folder, {"a": 999}))


SUMS_OF_ABC = {
    "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "md5": "900150983cd24fb0d6963f7d28e17f72",
}


@pytest.mark.parametrize("algorithm", SUMS_OF_ABC)
def test_a_file_is_known_by_its_size_and_sum(algorithm: str) -> None:
    digest = SUMS_OF_ABC[algorithm]
    file = io.BytesIO(b"abc")
    check_digest(file, 3, algorithm, digest, "file", "Do this.")
    assert file.read() == b"abc"
    with pytest.raises(DataFileError, match=r"^file is not .* it has 3 bytes, the official one 1,000. Do"):
        check_digest(file, 1000, algorithm, digest, "file", "Do this.")
    with pytest.raises(DataFileError, match=f"its {algorithm} is [0-9a-f]+, the official one's {digest}. Do"):
        check_digest(io.BytesIO(b"abd"), 3, algorithm, digest, "file", "Do this.")
