"""The bytes of openpi's protocol by hand, both ways, and what is refused before it costs memory."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest

from qtransformer.serve.protocol import REPLY_LIMITS, FrameLimits, ProtocolError, one_line, pack, unpack

ARRAY = bytes.fromhex(
    "81"  # a map of one entry
    "a7 616374696f6e73"  # "actions"
    "84"
    "c40b 5f5f6e6461727261795f5f c3"  # b"__ndarray__": true
    "c404 64617461 c408 0000000000000000"  # b"data"
    "c405 6474797065 a3 3c6634"  # b"dtype": "<f4"
    "c405 7368617065 92 01 02"  # b"shape": [1, 2]
)
SCALAR = bytes.fromhex(
    "81 a1 78"  # {"x":
    "83"
    "c40d 5f5f6e7067656e657269635f5f c3"  # b"__npgeneric__": true
    "c404 64617461 07"  # b"data": 7
    "c405 6474797065 a3 7c7531"  # b"dtype": "|u1"
)


def array(**changes: Any) -> dict[bytes, Any]:
    fields = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2], **changes}
    return {key.encode(): value for key, value in fields.items()}


def scalar(data: Any, dtype: Any) -> dict[bytes, Any]:
    return {b"__npgeneric__": True, b"data": data, b"dtype": dtype}


def framed(message: Any) -> bytes:
    """Returns a message as our own `pack` would refuse to write it; bytes as they are."""
    frame = message if isinstance(message, bytes) else msgpack.packb(message)
    assert frame is not None
    return frame


def nested(depth: int, value: Any = 0) -> Any:
    for _ in range(depth):
        value = {"a": value}
    return value


def test_arrays_by_hand():
    assert pack({"actions": np.zeros((1, 2), np.float32)}) == ARRAY
    actions = unpack(ARRAY)["actions"]
    assert (actions.dtype, actions.tolist()) == (np.float32, [[0.0, 0.0]])
    actions[0, 1] = 1.0  # it may be written to
    changed = ARRAY.replace(bytes(8), struct.pack("<2f", 1.5, -2.0))
    assert unpack(changed)["actions"].tolist() == [[1.5, -2.0]]


def test_scalars_by_hand():
    assert pack({"x": np.uint8(7)}) == SCALAR
    value = unpack(SCALAR)["x"]
    assert (type(value), value) == (np.uint8, 7)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "|u1", "|i1", "<u2", "<i4", ">i8", "<u8", "|b1"])
def test_what_is_packed_is_unpacked(dtype: str):
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    message = {"a": values.T, "b": {"c": [1, 2.5, None, "text", b"bytes", True]}, "d": values[0, 1], "e": values[:0]}
    got = unpack(pack(message))
    assert got["a"].dtype == values.dtype
    np.testing.assert_array_equal(got["a"], values.T)  # in C order, though it was sent transposed
    assert got["b"] == message["b"]
    assert got["d"] == values[0, 1]
    assert got["e"].shape == (0, 3)


def test_an_array_without_dimensions():
    assert unpack(pack({"x": np.array(2.5)}))["x"] == 2.5


@pytest.mark.parametrize(
    "value", [np.array(["a", None], object), np.zeros(1, complex), np.zeros(1, "f4,f4"), np.complex64(1), object(), 1j]
)
def test_what_has_no_place_is_not_packed(value: Any):
    with pytest.raises(ProtocolError, match=r"cannot be sent \(.* is not allowed\); give numbers"):
        pack({"x": value})


def test_numbers_beyond_64_bits_are_not_packed():
    with pytest.raises(ProtocolError, match="cannot be sent"):
        pack({"x": 2**64})


MALFORMED: list[tuple[Any, str]] = [
    (b"", "one msgpack map within the limits, got none"),
    (b"\xc1", "one msgpack map"),
    (ARRAY[:-1], "one msgpack map"),
    (ARRAY + b"\x00", "one msgpack map"),
    (b"\x81\xa1\xff\x00", "one msgpack map"),  # no UTF-8
    (b"\x81\x90\x00", "one msgpack map"),  # a list as key
    (b"\x81\xa1a\xdd\xff\xff\xff\xff", r"exceeds max_array_len"),
    (b"\x81\xa1a\xdf\xff\xff\xff\xff", r"exceeds max_map_len"),
    (b"\x81\xa1a\xc6\xff\xff\xff\xff", r"one msgpack map"),  # bytes
    (b"\x81\xa1a\xdb\xff\xff\xff\xff", r"one msgpack map"),
    (b"\x81\xa1a\xc9\xff\xff\xff\xff\x05", r"exceeds max_ext_len"),
    (b"\x81\xa1a\xd4\x05\x00", r"exceeds max_ext_len"),
    (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", r"exceeds max_ext_len"),  # a time
    (b"\x81\xa1a" + b"\x91" * 100_000, "one msgpack map"),
    (7, "must be a msgpack map, got int"),
    ([1], "must be a msgpack map, got list"),
    (None, "must be a msgpack map, got NoneType"),
    (array(), "got a lone array"),
    ({1: 2}, "keys of a map must be text, got int"),
    ({"a": {b"b": 2}}, "keys of a map must be text, got bytes"),
    ({None: 1}, "keys of a map must be text, got NoneType"),
    (nested(9), "too many maps and lists inside one another"),
    ({"a": [[[[[[[[1]]]]]]]]}, "too many maps and lists inside one another"),
    ({"a": [[]] * 1023}, "at most 1024 maps and lists; send arrays"),
    ({"a": [0] * 1025}, "exceeds max_array_len"),
    ({str(number): 0 for number in range(1025)}, "exceeds max_map_len"),
    ({"a": "x" * 1025}, "exceeds max_str_len"),
    ({"a": array(data=bytes(7))}, r"shape \[2\] and dtype <f4 must have as many bytes, got 7"),
    ({"a": array(shape=[3])}, r"shape \[3\] and dtype <f4 must have as many bytes, got 8"),
    ({"a": array(shape=[1])}, r"shape \[1\] and dtype <f4 must have as many bytes, got 8"),
    ({"a": array(data="text")}, "data of an array must be bytes, got str"),
    ({"a": array(data=None)}, "data of an array must be bytes, got NoneType"),
    ({"a": array(data=[0, 0])}, "data of an array must be bytes, got list"),
    ({"a": array(shape=2)}, "list of at most 32 sizes, got another"),
    ({"a": array(shape=[-1, -2])}, "list of at most 32 sizes"),
    ({"a": array(shape=[2.0])}, "list of at most 32 sizes"),
    ({"a": array(shape=[True, 2])}, "list of at most 32 sizes"),
    ({"a": array(shape=[1] * 32 + [2])}, "list of at most 32 sizes"),
    ({"a": array(data=b"", shape=[0, 2**62])}, "cannot be made"),
    ({"a": array(data=b"", shape=[0, 2**64 - 1])}, "cannot be made"),
    *(
        ({"a": array(dtype=dtype)}, "dtype of an array must be like '<f4'")
        for dtype in ["|O", "O", "<c8", "|V8", "f4,f4", "2f4", "<f16", "<f3", "<U2", "|S8", "<M8[s]", "", "<", "<f4\n"]
    ),
    *(({"a": array(dtype=dtype)}, "dtype of an array must be like") for dtype in [None, 4, b"<f4", ["<f4"], "x" * 999]),
    ({"a": scalar("1.5", "<f4")}, "data of a scalar must be a number, got str"),
    ({"a": scalar([1, 2], "<f4")}, "data of a scalar must be a number, got list"),
    ({"a": scalar(300, "|u1")}, r"scalar 300 must fit into dtype \|u1"),
    ({"a": scalar(float("nan"), "<i4")}, "scalar nan must fit into dtype <i4"),
    ({"a": scalar(1, "|O")}, "dtype of an array must be like"),
]


@pytest.mark.parametrize(("message", "match"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_frames_are_refused_in_one_line(message: Any, match: str):
    with pytest.raises(ProtocolError, match=match) as caught:
        unpack(framed(message))
    line = one_line(caught.value)
    assert "\n" not in line
    assert len(line) <= 500


def test_the_limits_themselves_are_let_through():
    assert unpack(framed(nested(8))) == nested(8)
    assert unpack(framed({"a": [[]] * 1022}))["a"] == [[]] * 1022
    assert unpack(pack({"a": "x" * 1024, "b": [0] * 1024, "c": np.zeros([1] * 32)}))["c"].ndim == 32
    assert unpack(pack({"a": [0] * 5000, "b": "x" * 5000}), REPLY_LIMITS)["a"] == [0] * 5000
    with pytest.raises(ProtocolError, match="max_str_len"):
        unpack(pack({"a": "xx"}), FrameLimits(1, 1, 1, 1))


BOMBS = [
    b"\xdc\x04\x00" * 1000,  # lists of 1,024 places each, inside one another
    b"\x81\xa1a" + b"\xdc\x04\x00" * 1000,
    b"\x82" * 1_000_000,
    b"\x91" * 1_000_000,
    b"\x81\xa1a\xdc\x04\x00" + b"\x80" * 1_000_000,
    b"\x81\xa1a\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x80" * 1024) * 1024,
    b"\x81\xa1a\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\xa2ab" * 1024) * 50,
    framed({"a": array(data=b"", shape=[2**40, 2**40])}),
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_small_frames_do_not_become_large(bomb: bytes):
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        unpack(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6 + 20 * len(bomb)


def test_one_line_is_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line("x" * 500) == "x" * 500
    assert one_line("x" * 501) == "x" * 496 + " ..."
