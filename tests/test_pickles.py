"""Pickles read without running them: what plain data says comes out, and whatever could act is refused."""

import hashlib
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxopt_course.data import DataFileError, pickles
from jaxopt_course.data.pickles import MAX_STEPS, read_pickle, text
from tests.cifar_files import modern_batch, python2_batch, python2_class_names, random_batches

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
BATCH = random_batches(3)["data_batch_1"]
NAMES_BY_OUR_NUMPY = pickle.dumps(np.zeros(1, np.uint8), protocol=2)

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


class Acts:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def refused(data: bytes, said: str = "is not a pickle of plain data") -> str:
    with pytest.raises(DataFileError, match=said) as caught:
        read_pickle(data, "file")
    return str(caught.value)


# What plain data says


@each_protocol
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_of_any_protocol_says_what_pickle_says(protocol: int, order: str) -> None:
    written = modern_batch(BATCH, protocol, order)
    found, expected = read_pickle(written, "file"), pickle.loads(written)
    assert found.keys() == expected.keys()
    assert found["labels"] == expected["labels"] == BATCH.labels.tolist()
    assert text(found["batch_label"]) == "one"
    np.testing.assert_array_equal(found["data"], expected["data"])
    assert found["data"].dtype == np.uint8


@each_protocol
def test_names_of_numpy_1_and_2(protocol: int) -> None:
    written = modern_batch(BATCH, protocol)
    ours = b"numpy._core." if b"numpy._core." in NAMES_BY_OUR_NUMPY else b"numpy.core."
    theirs = b"numpy.core." if ours == b"numpy._core." else b"numpy._core."
    assert ours in written
    place = written.index(ours)
    shift = len(theirs) - len(ours)
    before = written[:place]
    if protocol >= 4:  # the name stands behind its length
        before = before[:-1] + bytes([before[-1] + shift])
    other = before + theirs + written[place + len(ours) :]
    np.testing.assert_array_equal(read_pickle(other, "file")["data"], BATCH.planes)


def test_a_batch_as_python_2_wrote_it() -> None:
    batch = random_batches(300)["test_batch"]  # more than 255 in the memo
    written = python2_batch(batch, "test_batch")
    found, expected = read_pickle(written, "file"), pickle.loads(written, encoding="bytes")
    assert [key.encode() for key in found] == list(expected)
    np.testing.assert_array_equal(found["data"], expected[b"data"])
    np.testing.assert_array_equal(found["data"], batch.planes)
    assert found["labels"] == expected[b"labels"] == batch.labels.tolist()
    assert [bytes(name) for name in found["filenames"]] == expected[b"filenames"]


def test_the_class_names_are_the_genuine_file_to_the_bit() -> None:
    """So what the tests write is what Python 2 wrote in 2009: MD5 of `batches.meta` as torchvision checks it."""
    written = python2_class_names()
    assert hashlib.md5(written, usedforsecurity=False).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"
    found = read_pickle(written, "file")
    assert (found["num_cases_per_batch"], found["num_vis"]) == (10_000, 3072)
    assert text(found["label_names"][3]) == "cat"


@each_protocol
def test_numbers_text_and_nesting(protocol: int) -> None:
    plain = {"whole": [0, 1, 255, 256, 65535, 65536, -1, -(2**31), 2**40, -(2**40)], "words": ["é", "", "𝄞", "a" * 300]}
    plain |= {"rest": [None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": {"b": []}}]}
    assert read_pickle(pickle.dumps(plain, protocol=protocol), "file") == plain


def test_values_are_views_of_the_file() -> None:
    written = modern_batch(BATCH, 4)
    assert np.shares_memory(read_pickle(written, "file")["data"], np.frombuffer(written, np.uint8))


# What acts


@each_protocol
@pytest.mark.parametrize("place", ["alone", "label", "array", "object array", "key", "state"])
def test_a_command_is_never_run(tmp_path: Path, protocol: int, place: str) -> None:
    proof = tmp_path / "proof"
    act = Acts(os.system, f"touch {proof}")
    data: Any = {
        "alone": act,
        "label": {"labels": [1, act], "data": BATCH.planes},
        "array": {"labels": [1], "data": act},
        "object array": {"labels": [1], "data": np.array([[act]], object)},
        "key": {(act, 1): 1},
        "state": {"labels": [1], "data": Acts(np.ndarray.__reduce__(BATCH.planes)[0], np.ndarray, (0,), act)},  # type: ignore[index]
    }[place]
    written = pickle.dumps(data, protocol=protocol)
    message = refused(written)
    assert "system" in message or "dtype 'O8'" in message
    assert not proof.exists()
    if place == "alone" and protocol == 2:  # the proof would be there
        pickle.loads(written)
        assert proof.exists()


@each_protocol
@pytest.mark.parametrize(
    "act",
    [
        Acts(eval, "1"),
        Acts(getattr, 1, "real"),
        Acts(__import__, "os"),
        Acts(subprocess.Popen, "true"),
        Acts(np.load, "file"),
        Acts(np.zeros, 1),
        Acts(bytearray, 2**31),
        Acts(pickle.loads, b"."),
        np.float64(1),
        np.random.default_rng(0),
        Path("file"),
        1.5,
        {1},
        frozenset({1}),
        1j,
    ],
    ids=lambda act: getattr(act.call[0], "__name__", "") if isinstance(act, Acts) else type(act).__name__,
)
def test_what_is_no_plain_data_is_refused(protocol: int, act: Any) -> None:
    message = refused(pickle.dumps({"a": act}, protocol=protocol))
    assert "nothing was executed" in message or "has no place in plain data" in message


@each_protocol
@pytest.mark.parametrize("dtype", ["O", "i8", "f4", "S3", "U1", [("a", "u1")], "M8[s]", "?"])
def test_arrays_of_anything_but_bytes_are_refused(protocol: int, dtype: Any) -> None:
    array = np.zeros((2, 2), dtype)
    assert "has no place" in (message := refused(pickle.dumps({"a": array}, protocol=protocol))) or "dtype" in message


# What claims


def array(claim: bytes = b"K\x00\x85", shape: bytes = b"K\x02K\x03\x86", values: bytes = b"C\x06abcdef") -> bytes:
    """A dictionary of one array, of protocol 3, with places to lie in."""
    return (
        b"\x80\x03}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + claim + b"C\x01b\x87R"
        b"(K\x01"
        + shape
        + b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x89\x88\x87R(K\x03X\x01\x00\x00\x00|NNNK\x00K\x00K\x00tb"
        b"\x89" + values + b"tbs."
    )


def test_the_honest_array() -> None:
    np.testing.assert_array_equal(read_pickle(array(), "file")["a"], np.frombuffer(b"abcdef", np.uint8).reshape(2, 3))
    np.testing.assert_array_equal(pickle.loads(array())["a"], read_pickle(array(), "file")["a"])


TWO_GIB = b"J\x00\x00\x00\x7f\x85"
CLAIMS = {
    "2 GiB in 60 bytes": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + TWO_GIB + b"U\x01b\x87R.",
    "2 GiB in 60 bytes, NumPy 2": b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    + TWO_GIB
    + b"C\x01b\x87R.",
    "an array that claims at once": array(claim=TWO_GIB),
    "a shape without values": array(shape=b"J\x00\x00\x00\x7fK\x03\x86"),
    "a shape that overflows": array(shape=b"\x8a\x09" + b"\xff" * 8 + b"\x00K\x02\x86"),
    "a negative shape": array(shape=b"J\xfe\xff\xff\xffJ\xfd\xff\xff\xff\x86"),
    "an empty shape": array(shape=b")", values=b"C\x01a"),
    "a dimension of nothing": array(shape=b"K\x00K\x03\x86", values=b"C\x00"),
    "three dimensions": array(shape=b"K\x01K\x02K\x03\x87"),
    "a shape of truth": array(shape=b"\x88K\x06\x86"),
    "values that are text": array(values=b"X\x06\x00\x00\x00abcdef"),
    "values too few": array(values=b"C\x05abcde"),
    "bytes of 4 GiB": b"\x80\x03}U\x01aB\xff\xff\xff\xffabc",
    "bytes of 4 EiB": b"\x80\x04}U\x01a\x8e\x00\x00\x00\x00\x00\x00\x00\x40abc",
    "bytearray of 8 EiB": b"\x80\x05}U\x01a\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc",
    "text of 16 EiB": b"\x80\x04}U\x01a\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc",
    "text of 4 GiB": b"\x80\x03}U\x01aX\xff\xff\xff\xffabc",
    "a string of -1 bytes": b"\x80\x02}U\x01aT\xff\xff\xff\xffabc",
    "a memo of 64 GiB": b"\x80\x02}r\xff\xff\xff\xffU\x01aj\xff\xff\xff\xfe.",
    "a number of 2 GiB": b"\x80\x02}U\x01a\x8b\xff\xff\xff\x7fabc",
    "a number of many digits": b"}X\x01\x00\x00\x00aL" + b"9" * 10_000 + b"L\ns.",
    "a line without end": b"}V" + b"a" * 1000,
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_take_no_memory(name: str) -> None:
    tracemalloc.start()
    try:
        refused(CLAIMS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300_000


def test_the_memo_may_have_holes_as_pickle_allows() -> None:
    assert read_pickle(b"\x80\x02}r\xff\xff\xff\xffU\x01aK\x05sj\xff\xff\xff\xff.", "file") == {"a": 5}


def test_steps_are_bounded_and_so_is_what_they_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte a list: 30 MB of pickle would become 2 GB of empty lists."""
    assert MAX_STEPS * sys.getsizeof({}) < 20 * 10**6
    monkeypatch.setattr(pickles, "MAX_STEPS", 2000)
    assert "2,000 steps" in refused(b"\x80\x02}U\x01a(" + b"]" * 3000 + b"ls.")
    assert len(read_pickle(b"\x80\x02}U\x01a(" + b"]" * 1900 + b"ls.", "file")["a"]) == 1900


def test_what_holds_itself_many_times_over_takes_no_time() -> None:
    """Fifty tuples, each twice in the next: to compare, hash or show them would take 2^50 steps."""
    nested = b")" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(50))
    read_pickle(b"\x80\x02}U\x01a" + nested + b"s.", "file")
    for lie in (nested + b"K\x01s.", b"cnumpy\ndtype\n" + nested + b"R.", array(claim=nested), array(shape=nested)):
        refused(lie if lie.startswith(b"\x80") else b"\x80\x02}" + lie)


# What is broken

BROKEN = {
    "nothing": (b"", "it claims 1 bytes where 0 are left"),
    "no pickle": (b"hello", "memo 101, which is not there"),
    "html": (b"<!doctype html>", "has no place in plain data"),
    "no dictionary": (b"\x80\x02]q\x01.", "type dict is missing"),
    "no value": (b"\x80\x02.", "type dict is missing"),
    "protocol 6": (b"\x80\x06}.", "its protocol is not known"),
    "no mark": (b"\x80\x02}u.", "a mark is missing|type dict"),
    "below the mark": (b"\x80\x02}U\x01a(s.", "is missing where one is used"),
    "odd items": (b"\x80\x02}(U\x01au.", "has no value"),
    "a key that is no text": (b"\x80\x02}K\x01K\x02s.", "key of a dictionary is not text"),
    "append to a dictionary": (b"\x80\x02}K\x01a.", "type list is missing"),
    "memo not there": (b"\x80\x02h\x07.", "memo 7, which is not there"),
    "text not Unicode": (b"\x80\x02}X\x02\x00\x00\x00\xff\xffK\x01s.", "not valid Unicode"),
    "line not Unicode": (b"}V\\ud\nK\x01s.", "not valid Unicode"),
    "number in words": (b"}Va\nIten\ns.", "b'ten' stands where a whole number should"),
    "number with a gap": (b"}Va\nI1_0\ns.", "where a whole number should"),
    "array without values": (
        b"\x80\x03}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87Rs.",
        "the array 'a' has no values",
    ),
    "state for a list": (b"\x80\x02}]K\x01\x85b.", "not what NumPy writes"),
    "state too short": (array().replace(b"(K\x01", b"("), "not what NumPy writes"),
    "call of a number": (b"\x80\x02}K\x01)R.", "type Name is missing"),
    "wide bytes": (b"}Va\nc_codecs\nencode\n(V\\u0100\nVlatin1\ntRs.", "beyond 255"),
    "another codec": (b"}Va\nc_codecs\nencode\n(Vab\nVrot13\ntRs.", "encode is called in a way"),
    "ndarray called": (b"}Va\ncnumpy\nndarray\n(I9\ntRs.", "ndarray is called in a way"),
    "text of protocol 0 of Python 2": (b"(dp1\nS'a'\np2\nI1\ns.", "STRING has no place"),
    "out of band": (b"\x80\x05}U\x01a\x97s.", "NEXT_BUFFER has no place"),
    "persistent": (b"\x80\x02}Pfile\n.", "PERSID has no place"),
    "an instance": (b"(ios\nsystem\n.", "INST has no place"),
    "unknown": (b"\x80\x02}\xff.", "has no place"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_said(name: str) -> None:
    data, said = BROKEN[name]
    refused(data, f"file is not a pickle of plain data: at byte [0-9]+, .*({said})")


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "python 2"])
def test_every_beginning_of_a_batch_is_refused(protocol: int | str) -> None:
    batch = random_batches(1)["test_batch"]
    written = python2_batch(batch, "x") if protocol == "python 2" else modern_batch(batch, int(protocol))
    ends = [*range(300), *range(300, len(written), 97), *range(len(written) - 100, len(written))]
    for end in ends:
        refused(written[:end])
