"""Safe reading of untrusted files: nothing is extracted or executed, and every stated size is checked before use."""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

BLOCK = 512  # bytes; a tar archive is a sequence of blocks
MAX_MEMBERS = 64
SPARE = 2**20  # bytes that an archive may unpack to besides the requested files: headers, a readme, padding
MAX_PAX_HEADER = 2**16
PIECE = 2**16


class DataFileError(ValueError):
    """A data file is invalid; the message names the file and says what is wrong and what to do."""


class Header(NamedTuple):
    """The header of a tar member: `kind` is its type flag."""

    name: str
    size: int
    kind: bytes


def check_digest(data: BufferedIOBase, size: int, algorithm: str, expected: str, where: str, otherwise: str) -> None:
    """Raise DataFileError unless a file has the expected size and digest. Call it before the file is parsed."""
    found_size = data.seek(0, 2)
    data.seek(0)
    if found_size != size:
        raise DataFileError(
            f"{where} is not the official file: it has {found_size:,} bytes, the official one {size:,}. {otherwise}"
        )
    found = hashlib.file_digest(data, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    data.seek(0)
    if found != expected:
        raise DataFileError(
            f"{where} is not the official file: its {algorithm} is {found}, the official one's {expected}. {otherwise}"
        )


def files_in_folder(folder: Path, largest: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield `(name, contents)` of the requested files that exist, each at most as large as `largest[name]`."""
    for name, most in largest.items():
        path = folder / name
        if not path.is_file():
            continue
        with path.open("rb") as file:
            contents = file.read(most + 1)
        if len(contents) > most:
            raise DataFileError(f"{path} is larger than the {most:,} bytes that such a file can have")
        yield name, contents


def members_of_archive(
    file: BufferedIOBase, folder: str, largest: Mapping[str, int], where: str
) -> Iterator[tuple[str, bytes]]:
    """Yield `(name, contents)` of the requested members of a gzipped tar, in archive order, one in memory at a time.

    Only regular files are returned, with or without the folder in front of their name, each once and at most as large
    as `largest[name]`. Other regular files are skipped. Links, devices, absolute names, names with `..` and everything
    else that matters only for extraction are refused, because no archive of images contains them. The total unpacked
    size is limited before unpacking. The archive is read to its end, so that gzip's own checksum is verified.

    Raises:
      DataFileError: the archive is damaged, or contains something that is not allowed.
    """
    seen: set[str] = set()
    with gzip.GzipFile(fileobj=file) as unpacked:
        stream = _Bounded(unpacked, sum(largest.values()) + SPARE, where)
        for _ in range(MAX_MEMBERS + 1):
            block = stream.exactly(BLOCK)
            if not any(block):
                break
            header = _header(block, where)
            contents = _member(stream, header, folder, largest, seen, where)
            if contents is not None:
                yield contents
        else:
            raise DataFileError(f"{where} has more than {MAX_MEMBERS} members")
        while stream.some(PIECE):
            pass


class _Bounded:
    """Reads the unpacked contents of a gzip file, up to a limit in bytes."""

    def __init__(self, unpacked: gzip.GzipFile, most: int, where: str):
        self.unpacked, self.left, self.where = unpacked, most, where

    def some(self, count: int) -> bytes:
        try:
            contents = self.unpacked.read(count)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataFileError(f"{self.where} is damaged, or no gzip file: {error}") from None
        self.left -= len(contents)
        if self.left < 0:
            raise DataFileError(f"{self.where} unpacks to more than its files can have")
        return contents

    def exactly(self, count: int) -> bytes:
        if count > self.left:
            raise DataFileError(f"{self.where} claims to unpack to more than its files can have")
        contents = self.some(count)
        if len(contents) < count:
            raise DataFileError(f"{self.where} ends too early, in the middle of the archive")
        return contents

    def skip(self, count: int) -> None:
        for first in range(0, count, PIECE):
            self.exactly(min(PIECE, count - first))


def _member(
    stream: _Bounded, header: Header, folder: str, largest: Mapping[str, int], seen: set[str], where: str
) -> tuple[str, bytes] | None:
    padding = -header.size % BLOCK
    if header.kind in (b"x", b"g"):  # pax headers, such as a time in nanoseconds
        if header.size > MAX_PAX_HEADER:
            raise DataFileError(f"{where} has a pax header of {header.size:,} bytes")
        if re.search(rb" (path|linkpath|size|GNU\.sparse[^=]*)=", stream.exactly(header.size + padding)):
            raise DataFileError(f"{where} has a pax header that gives a member another name or size")
        return None
    shown = f"{where}, member {header.name[:100]!r}"
    if re.match(r"[\\/]|[A-Za-z]:", header.name) or ".." in re.split(r"[\\/]", header.name):
        raise DataFileError(f"{shown}: the name leads out of the archive")
    is_folder = header.kind == b"5" or (header.kind == b"\0" and header.name.endswith("/"))
    if not is_folder and header.kind not in (b"0", b"\0"):
        raise DataFileError(f"{shown}: neither a regular file nor a folder, but of tar's type {header.kind!r}")
    if is_folder:
        if header.size:
            raise DataFileError(f"{shown}: a folder with {header.size:,} bytes of its own")
        return None
    name = header.name.removeprefix(f"{folder}/")
    if name in seen:
        raise DataFileError(f"{shown}: it is there twice")
    seen.add(name)
    if name not in largest:
        stream.skip(header.size + padding)
        return None
    if header.size > largest[name]:
        raise DataFileError(
            f"{shown}: it claims {header.size:,} bytes, more than the {largest[name]:,} such a file can have"
        )
    contents = stream.exactly(header.size)
    stream.skip(padding)
    return name, contents


def _header(block: bytes, where: str) -> Header:
    """Parse a header in the POSIX.1-1988 (ustar) format, with GNU's binary numbers for large sizes."""
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _number(block[148:156], where) != checksum:
        raise DataFileError(f"{where} is damaged, or no tar archive: the checksum of a header is wrong")
    name, prefix = (field.split(b"\0")[0] for field in (block[:100], block[345:500]))
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return Header(name.decode("utf-8", "backslashreplace"), _number(block[124:136], where), block[156:157])


def _number(field: bytes, where: str) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise DataFileError(f"{where} is damaged, or no tar archive: a header holds {field!r} for a number")
    return int(digits or b"0", 8)
