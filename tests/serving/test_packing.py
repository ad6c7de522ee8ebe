"""Messages as openpi packs them, and broken ones."""

from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import RequestError
from treadle.serving.observations import read_observation
from treadle.serving.packing import pack, unpack


def test_an_array_is_packed_as_openpi_has_it():
    """Written out by hand from the layout: a table with keys in bytes."""
    value = np.array([[1, 2, 3]], np.uint8)
    plain = msgpack.unpackb(pack({"x": value}), raw=False, strict_map_key=False)
    assert plain == {"x": {b"__ndarray__": True, b"data": b"\1\2\3", b"dtype": "|u1", b"shape": [1, 3]}}
    number = msgpack.unpackb(pack({"x": np.float32(0.5)}), raw=False, strict_map_key=False)
    assert number == {"x": {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}}


@pytest.mark.parametrize("dtype", ["|u1", "<f4", "<f8", "<i8", "|b1", "<f2", ">i4"])
def test_what_is_packed_is_unpacked(dtype: str):
    value = np.arange(12).reshape(2, 3, 2).astype(dtype)
    found = unpack(pack({"a": {"b": value}, "text": "lift", "list": [1, 2.5], "none": None}))
    assert found["a"]["b"].dtype == value.dtype
    assert np.array_equal(found["a"]["b"], value)
    assert (found["text"], found["list"], found["none"]) == ("lift", [1, 2.5], None)
    assert unpack(pack({"x": value[0, 0, 1]}))["x"] == value[0, 0, 1]


def raw(**changes: object) -> bytes:
    entry = {b"__ndarray__": True, b"data": b"\0" * 6, b"dtype": "|u1", b"shape": [2, 3]}
    entry |= {key.encode(): value for key, value in changes.items()}
    return msgpack.packb({"x": entry})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not msgpack"),
        (b"hello", "not msgpack"),
        (pack({"a": 1})[:-1], "not msgpack"),
        (pack({"a": 1}) + b"\0", "not msgpack"),
        (msgpack.packb([1, 2]), r"found \[1, 2\]; allowed: a table of keys"),
        (msgpack.packb({1: 2}), "not msgpack"),
        (msgpack.packb({"a": msgpack.ExtType(3, b"x")}) + b"", None),
        (b"\x91" * 2000, "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (raw(shape=[2, 4]), r"shape \[2, 4\] of uint8 with data of 6 bytes; they must fit"),
        (raw(shape=[-2, -3]), "they must fit"),
        (raw(shape=[2**40, 2**40]), "they must fit"),
        (raw(shape="ab"), "they must fit"),
        (raw(data="text"), "they must fit"),
        (raw(dtype="|O"), r"dtype .*O.*; allowed: types of numbers"),
        (raw(dtype="<c8"), "allowed: types of numbers"),
        (raw(dtype="|V6"), "allowed: types of numbers"),
        (raw(dtype="2,u1"), "allowed: types of numbers"),
        (raw(dtype=None), "allowed: types of numbers"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "found 300; allowed: a number"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": "a", b"dtype": "|u1"}}), "found str; allowed"),
    ],
)
def test_what_is_no_message_is_refused(content: bytes, said: str | None):
    if said is None:
        assert unpack(content)["a"] is not None
        return
    with pytest.raises(RequestError, match=said):
        unpack(content)


PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
NAMES = st.text(max_size=4) | st.sampled_from([b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"])
MESSAGES = st.recursive(PLAIN, lambda x: st.lists(x, max_size=4) | st.dictionaries(NAMES, x, max_size=5))


@given(st.binary(max_size=300) | MESSAGES.map(msgpack.packb))
def test_any_bytes_are_a_message_or_a_named_error(content: bytes):
    with suppress(RequestError):
        read_observation(unpack(content), [])


def test_tables_inside_each_other_have_an_end():
    message: dict = {}
    for _ in range(40):
        message = {"a": message}
    with pytest.raises(RequestError, match="more than 16 tables inside each other"):
        unpack(msgpack.packb(message))
