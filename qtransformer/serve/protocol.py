"""The frames of openpi's policy-server protocol: msgpack maps, in which arrays are maps with bytes keys.

Special about this file: it reads what strangers send. Lengths that a frame declares are held against limits before
memory is taken for them, an array must have exactly the bytes that its shape asks for, and nothing is ever unpickled.
It must not know sockets or policies.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

RESET = "reset"
"""The key of a request that empties the history. openpi has none: its policies remember nothing."""

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_REFUSED_KINDS = "VOc"  # records, objects and complex numbers: openpi refuses to send them
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # what may come: booleans and numbers of fixed size
_MAX_DIMENSIONS = 32  # numpy's own, up to version 1
_MAX_ERROR_LENGTH = 500  # characters of a message that goes over the wire


class ProtocolError(Exception):
    """A frame is not what the protocol asks for; the message says what came and what was expected, in one line."""


class FrameLimits(NamedTuple):
    """What a frame may hold. Lists and maps cost more memory than their bytes, so it is they that are counted."""

    max_depth: int
    """Maps and lists inside one another."""
    max_containers: int
    """Maps and lists altogether."""
    max_length: int
    """Elements of one of them."""
    max_text: int
    """Bytes of one text."""


REQUEST_LIMITS = FrameLimits(max_depth=8, max_containers=1024, max_length=1024, max_text=1024)
REPLY_LIMITS = FrameLimits(max_depth=32, max_containers=2**20, max_length=2**20, max_text=2**20)


def pack(message: Mapping[str, Any]) -> bytes:
    """Returns the frame of a map of text to numbers, text, lists, maps and numpy arrays.

    Raises:
        ProtocolError: something in it has no place in the protocol.
    """
    try:
        frame = msgpack.packb(message, default=_encoded)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"message cannot be sent ({error}); give numbers, text, lists, maps, arrays") from error
    assert frame is not None  # only packers that keep their buffer return none
    return frame


def unpack(frame: bytes, limits: FrameLimits = REQUEST_LIMITS) -> dict[str, Any]:
    """Returns the map in a frame; arrays are new and may be written to.

    Raises:
        ProtocolError: it is no msgpack map with text as keys, exceeds the limits, or has an array that is none.
    """
    number = itertools.count(1)

    def counted(container: Any) -> Any:
        if next(number) > limits.max_containers:
            raise ProtocolError(f"frame must have at most {limits.max_containers} maps and lists; send arrays")
        return container

    try:
        message = msgpack.unpackb(
            frame,
            strict_map_key=False,  # the keys of arrays are bytes
            object_hook=counted,
            list_hook=counted,
            max_array_len=limits.max_length,
            max_map_len=limits.max_length,
            max_str_len=limits.max_text,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(f"frame must be one msgpack map within the limits, got none ({error})") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"frame must be a msgpack map, got {type(message).__name__}")
    decoded = _decoded(message, limits.max_depth)
    if not isinstance(decoded, dict):
        raise ProtocolError("frame must be a map of names to values, got a lone array")
    return decoded


def one_line(error: object) -> str:
    """Returns the message of an error as one line that is fit for a frame."""
    line = " ".join(str(error).split())
    return line if len(line) <= _MAX_ERROR_LENGTH else line[: _MAX_ERROR_LENGTH - 4] + " ..."


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _REFUSED_KINDS:
        raise TypeError(f"dtype {value.dtype} is not allowed")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} is not allowed")


def _decoded(value: Any, depth: int) -> Any:
    if isinstance(value, dict) and _ARRAY in value:
        return _array(value)
    if isinstance(value, dict) and _SCALAR in value:
        return _scalar(value)
    if isinstance(value, dict | list):
        if depth == 0:
            raise ProtocolError("frame has too many maps and lists inside one another; send a flatter one")
        if isinstance(value, list):
            return [_decoded(part, depth - 1) for part in value]
        strange = [type(key).__name__ for key in value if not isinstance(key, str)]
        if strange:
            raise ProtocolError(f"keys of a map must be text, got {strange[0]}")
        return {key: _decoded(part, depth - 1) for key, part in value.items()}
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ProtocolError(f"frame has a msgpack {type(value).__name__}; send numbers, text, lists, maps, arrays")


def _array(value: Mapping[Any, Any]) -> np.ndarray:
    data, shape, dtype = value.get(b"data"), value.get(b"shape"), _dtype(value.get(b"dtype"))
    if not isinstance(data, bytes):
        raise ProtocolError(f"data of an array must be bytes, got {type(data).__name__}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(_is_size(each) for each in shape):
        raise ProtocolError(f"shape of an array must be a list of at most {_MAX_DIMENSIONS} sizes, got another")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ProtocolError(f"array of shape {shape} and dtype {dtype.str} must have as many bytes, got {len(data)}")
    try:
        return np.ndarray(shape, dtype, data).copy()
    except (ValueError, OverflowError) as error:  # no elements, but a size that numpy cannot count
        raise ProtocolError(f"array of shape {shape} cannot be made ({error})") from error


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0  # true is no size


def _scalar(value: Mapping[Any, Any]) -> np.generic:
    data, dtype = value.get(b"data"), _dtype(value.get(b"dtype"))
    if not isinstance(data, bool | int | float):
        raise ProtocolError(f"data of a scalar must be a number, got {type(data).__name__}")
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite
            return dtype.type(data)
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"scalar {data} must fit into dtype {dtype.str} ({error})") from error


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ProtocolError(f"dtype of an array must be like '<f4', |u1 or |b1, got {str(name)[:20]!r}")
    return np.dtype(name)
