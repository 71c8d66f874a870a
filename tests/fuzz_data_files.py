"""Mutated archives and pickles, as many as asked for: `python -m tests.fuzz_data_files 100000 [seed]`.

Each is read; it must give images or `DataFileError`, and nothing else may happen: no other exception, no file opened
for writing, no import, no command (an audit hook listens), no memory beyond a limit that the operating system keeps.
Prints how it went as JSON.
"""

import json
import os
import pickle
import pickletools
import random
import resource
import sys
import tarfile
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxopt_course.data import DataFileError, cifar
from jaxopt_course.data.pickles import read_pickle
from tests.cifar_files import (
    archive,
    binary_files,
    member,
    modern_batch,
    packed,
    python2_batch,
    python2_class_names,
    python_files,
    random_batches,
    tar,
)

SHARE_OF_ARCHIVES = 0.4
SPARE_MEMORY = 2**28
BATCHES = random_batches(1)
BATCH = BATCHES["test_batch"]
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "kind": (156, 1),
    "link": (157, 100),
}
FIELDS |= {"magic": (257, 8), "owner": (265, 64), "device": (329, 16), "prefix": (345, 155)}
NAMES = [
    b"../x",
    b"/etc/passwd",
    b"cifar-10-batches-bin/test_batch.bin",
    b"test_batch",
    b"x",
    b"",
    b"\xff\xfe",
    b"a/" * 49,
]
SIZES = [
    b"00000006001\0",
    b"77777777777\0",
    b"777777777777",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"\0" * 12,
    b"-1",
    b"9",
]


class Acts:
    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


# Pickles


def pickles() -> list[bytes]:
    act = Acts(os.system, "touch fuzzed")
    small = {
        "data": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "labels": [1, 300, -1, 2**40],
        "é": None,
        "t": (True, {}),
    }
    hostile = [act, {"labels": [act]}, np.array([[act]], object), Acts(eval, "1"), {"a": Acts(bytearray, 2**31)}]
    seeds = [pickle.dumps(thing, protocol=p) for p in range(6) for thing in [small, small, small, *hostile]]
    seeds += [modern_batch(BATCH, protocol) for protocol in range(6)]
    claim = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\x00\x00\x00\x7f\x85U\x01b\x87R."
    return [*seeds, python2_batch(BATCH, "one"), python2_class_names(), claim]


def operations(data: bytes) -> list[bytes]:
    """The opcodes with their arguments; the end as one piece where it is no pickle."""
    places: list[int] = []
    with suppress(ValueError, IndexError, OverflowError):
        places.extend(place for _, _, place in pickletools.genops(data) if place is not None)
    return [data[a:b] for a, b in zip([*places], [*places[1:], len(data)], strict=True)] or [data]


def mutated_pickle(rng: random.Random, seeds: Sequence[bytes], pieces: Sequence[list[bytes]]) -> bytes:
    number = rng.randrange(len(seeds))
    if rng.random() < 0.3:
        return mutated_bytes(rng, seeds[number], rng.choice(seeds))
    ops = list(pieces[number])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.randrange(len(ops))
        other = rng.choice(pieces)
        match rng.randrange(7):
            case 0:
                del ops[place]
            case 1:
                ops.insert(place, rng.choice(other))
            case 2:
                ops[place] = rng.choice(other)
            case 3:
                ops[place] = bytes([rng.choice(OPCODES)]) + ops[place][1:]
            case 4:
                ops[place] = ops[place][:1] + mutated_bytes(rng, ops[place][1:] or b"\0", b"\xff" * 8)
            case 5:
                start = rng.randrange(len(other))
                ops[place:place] = other[start : start + rng.randrange(12)]
            case _:
                swap = rng.randrange(len(ops))
                ops[place], ops[swap] = ops[swap], ops[place]
        if not ops:
            break
    return b"".join(ops)


OPCODES = [ord(opcode.code) for opcode in pickletools.opcodes]


# Archives


def archives() -> list[list[bytes]]:
    """Tars as blocks of 512 bytes."""
    binary, python = binary_files(BATCHES), python_files(BATCHES)
    link = member("cifar-10-batches-bin/data_batch_1.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    note = member("n", b"12 path=../a\n", type=tarfile.XHDTYPE)
    packings = [archive(cifar.BINARY.folder, binary, f) for f in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    packings += [archive(cifar.PYTHON.folder, python), archive(cifar.PYTHON.folder, python, tarfile.USTAR_FORMAT)]
    whole = [zlib.decompress(packing, 31) for packing in packings] + [tar([link, note, member("../x", b"x" * 600)])]
    return [[data[at : at + 512] for at in range(0, len(data), 512)] for data in whole]


def mutated_archive(rng: random.Random, seeds: Sequence[list[bytes]]) -> bytes:
    blocks = list(rng.choice(seeds))
    headers = [place for place, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.choice(headers) if headers and rng.random() < 0.7 else rng.randrange(len(blocks))
        place = min(place, len(blocks) - 1)
        match rng.randrange(8):
            case 0 | 1 | 2 if headers:
                blocks[place] = with_field(rng, blocks[place])
            case 3:
                blocks[place] = mutated_bytes(rng, blocks[place], rng.choice(rng.choice(seeds)))[:512].ljust(512, b"\0")
            case 4 if len(blocks) > 1:
                del blocks[place]
            case 5:
                blocks.insert(place, rng.choice(rng.choice(seeds)))
            case 6:
                other = rng.choice(seeds)
                start = rng.randrange(len(other))
                blocks[place:place] = other[start : start + 9]
            case _:
                blocks[place:] = blocks[place : place + rng.randrange(1, 30)]
    data = packed(b"".join(blocks)) if rng.random() < 0.1 else stored(b"".join(blocks))
    return mutated_bytes(rng, data, rng.randbytes(20)) if rng.random() < 0.2 else data


def with_field(rng: random.Random, block: bytes) -> bytes:
    """A header with another value somewhere, and the checksum right again."""
    header = bytearray(block)
    name, (start, length) = rng.choice(list(FIELDS.items()))
    values = {"name": NAMES, "link": NAMES, "prefix": NAMES, "size": SIZES, "kind": [bytes([rng.randrange(256)])]}
    new = rng.choice([*values.get(name, []), rng.randbytes(length), rng.choice(b"01234567LKxgS25").to_bytes(1)])
    header[start : start + length] = new[:length].ljust(length, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def stored(data: bytes) -> bytes:
    compressor = zlib.compressobj(0, zlib.DEFLATED, 31)
    return compressor.compress(data) + compressor.flush()


def mutated_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    place = rng.randrange(len(changed)) if changed else 0
    match rng.randrange(5):
        case 0 if changed:
            changed[place] ^= 1 << rng.randrange(8)
        case 1:
            del changed[place:]
        case 2:
            start = rng.randrange(len(other)) if other else 0
            changed[place:place] = other[start : start + rng.randrange(40)]
        case 3:
            del changed[place : place + rng.randrange(1, 20)]
        case _:
            changed[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
    return bytes(changed)


# The watch


class Watch:
    """Listens to what Python reports to auditors, while armed."""

    armed, heard = False, Counter[str]()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed or (event == "open" and args[1] in ("r", "rb")):
            return
        self.heard[event] += 1

    def check(self, read: Callable[[], object]) -> str:
        """'read', 'refused', or what happened that may not."""
        self.armed = True
        try:
            read()
        except DataFileError:
            return "refused"
        except BaseException:
            self.armed = False
            return traceback.format_exc()
        finally:
            self.armed = False
        return "read"


def main(count: int, seed: int = 0, reader: Callable[[bytes, str], object] = read_pickle) -> dict[str, Any]:
    rng, watch, outcomes = random.Random(seed), Watch(), Counter[str]()
    pickled, tars = pickles(), archives()
    pieces = [operations(data) for data in pickled]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        paths = [Path(folder) / version.archive.name for version in (cifar.BINARY, cifar.PYTHON)]

        def archive_case(data: bytes, path: Path) -> Callable[[], object]:
            path.write_bytes(data)
            return lambda: cifar.read(path, official=False, records=1)

        def pickle_case(data: bytes) -> Callable[[], object]:
            return lambda: (reader(data, "file"), cifar._pickled(data, 1, "file"))

        sys.addaudithook(watch)
        for blocks, path in zip(tars[:4], [*paths[:1] * 2, *paths[1:] * 2], strict=True):  # loads what loads on use
            assert watch.check(archive_case(packed(b"".join(blocks)), path)) == "read"
        for data in pickled:
            watch.check(pickle_case(data))
        watch.heard.clear()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_MEMORY, resource.RLIM_INFINITY))
        for _ in range(count):
            if rng.random() < SHARE_OF_ARCHIVES:
                kind, data = "archive", mutated_archive(rng, tars)
                outcome = watch.check(archive_case(data, paths[b"batches-py" in data]))
            else:
                kind, data = "pickle", mutated_pickle(rng, pickled, pieces)
                outcome = watch.check(pickle_case(data))
            if outcome not in ("read", "refused"):
                return {"wrong": outcome, "kind": kind, "data": data.hex()}
            outcomes[f"{kind} {outcome}"] += 1
        written = sorted({*Path(folder).iterdir()} - {*paths})
    return {"cases": count, **outcomes, "heard": dict(watch.heard), "written": [str(path) for path in written]}


if __name__ == "__main__":
    cases, seed = (*map(int, sys.argv[1:]), 0)[:2]
    print(json.dumps(main(cases, seed)))
