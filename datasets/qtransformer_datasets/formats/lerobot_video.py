"""Episodes in mp4 files: which frames are theirs, and decoding them when they are asked for.

Special about this file: a file is walked through once without decoding, which gives the time of every frame, the
keyframes to seek to, and a digest for each frame: sha256 over the decoder's settings and all packets from the last
keyframe on. The same packets decode to the same picture, so equal digests mean equal frames; the opposite does not
hold, and a camera that froze is not seen by them. A decoder belongs to one thread of one process.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..frames import Frames
from ..schema import DatasetError
from .parquet import why_unreadable

_MAX_OPEN = 32
_MAX_PIXELS = 2**26  # of a frame


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """What is in a video file, frame by frame in the order of display."""

    path: Path
    size: tuple[int, int]  # height, width
    pts: np.ndarray  # (n,) int64, increasing, in the stream's own unit
    seconds: np.ndarray  # (n,) float64
    keyframes: np.ndarray  # (k,) int64, the frames where decoding can begin
    digests: tuple[bytes, ...]  # n


def index_video(path: Path) -> VideoIndex:
    """Returns the index of an mp4 file; reads all of it and decodes nothing.

    Raises:
        DatasetError: PyAV is not installed, or the file is missing, damaged or has no video.
    """
    container, stream = _open(path)
    with container:
        try:
            packets = list(_packets(container, stream))
        except _errors() as error:
            raise DatasetError(f"{path} {why_unreadable(path, error)}") from error
        height, width, unit = stream.codec_context.height, stream.codec_context.width, stream.time_base
    packets.sort(key=lambda packet: packet[0])
    pts = np.array([packet[0] for packet in packets], np.int64)
    keyframes = np.flatnonzero([packet[1] for packet in packets])
    if not len(keyframes) or not 0 < height * width <= _MAX_PIXELS or (np.diff(pts) <= 0).any():
        raise DatasetError(
            f"{path} must hold frames of increasing time and sensible size, some of them keyframes, got {len(pts)} "
            f"frames of {height}x{width} pixels, {len(keyframes)} keyframes; record it again"
        )
    digests = tuple(digest for _, _, digest in packets)
    return VideoIndex(path, (height, width), pts, pts * float(unit), keyframes, digests)


def cut_clip(
    index: VideoIndex, times: np.ndarray, bounds: tuple[float, float | None], fps: float, where: str
) -> VideoFrames:
    """Returns the frames of an episode, one a row, found by their time.

    Args:
        index: of the file.
        times: (T,) seconds from the episode's start, those of its rows.
        bounds: seconds in the file where the episode starts and ends; None for the file's end.
        fps: frames a second; a frame must show within half a frame of its row.
        where: file, episode and camera, for messages.

    Raises:
        DatasetError: there are more or fewer frames than rows, or one is off its time.
    """
    half, (start, end) = 0.5 / fps, bounds
    first = int(np.searchsorted(index.seconds, start - half))
    stop = len(index.seconds) if end is None else int(np.searchsorted(index.seconds, end - half))
    if stop - first != len(times):
        raise DatasetError(
            f"{where} must have a frame for each of {len(times)} rows, but {index.path} has {max(0, stop - first)} "
            f"from {start:.3f} s to {'its end' if end is None else f'{end:.3f} s'}; fetch or record it again"
        )
    late = np.abs(index.seconds[first:stop] - start - times) > half
    if late.any():
        step = int(np.argmax(late))
        raise DatasetError(
            f"{where} step {step} is of {start + times[step]:.3f} s, but its frame in {index.path} shows at "
            f"{index.seconds[first + step]:.3f} s, more than half a frame off; record it again"
        )
    return VideoFrames(index, first, len(times))


class VideoFrames(Frames):
    """Consecutive frames of a video file, as red, green, blue."""

    def __init__(self, index: VideoIndex, first: int, count: int) -> None:
        self._index, self._first = index, first
        self.shape = (count, *index.size, 3)

    @property
    def encoding(self) -> str:
        """The container's name; the codec is the decoder's matter."""
        return "mp4"

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows
        decoder = _decoder(os.getpid(), threading.get_ident(), self._index)
        frames = [decoder.read(self._first + int(row)) for row in numbers]
        return np.stack(frames) if frames else np.zeros((0, *self.shape[1:]), np.uint8)

    def stored_rows(self) -> Iterator[bytes]:
        """Yields a digest for each frame of all that it is decoded from."""
        yield from self._index.digests[self._first : self._first + len(self)]


class _Decoder:
    """Reads frames by number; goes on from the last one where that is shorter than seeking to a keyframe."""

    def __init__(self, index: VideoIndex) -> None:
        self._index = index
        self._container, self._stream = _open(index.path)
        self._stream.codec_context.thread_count = 1  # the callers' threads are enough
        self._frames: Iterator[Any] = iter(())
        self._next = -1

    def read(self, number: int) -> np.ndarray:
        """Returns (height, width, 3) uint8.

        Raises:
            DatasetError: the file is damaged there.
        """
        path, seconds = self._index.path, self._index.seconds[number]
        try:
            pixels = self._find(number)
        except _errors() as error:
            self._next = -1
            raise DatasetError(f"{path} at {seconds:.3f} s {why_unreadable(path, error)}") from error
        if pixels is None or pixels.shape[:2] != self._index.size:
            self._next = -1
            raise DatasetError(f"{path} has no sound frame at {seconds:.3f} s; copy, download or record it again")
        return pixels

    def _find(self, number: int) -> np.ndarray | None:
        pts, keyframes = self._index.pts, self._index.keyframes
        key = int(keyframes[max(0, np.searchsorted(keyframes, number, side="right") - 1)])
        if not key <= self._next <= number:
            self._container.seek(int(pts[key]), stream=self._stream)
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            if frame.pts is not None and frame.pts >= pts[number]:
                self._next = number + 1
                return None if frame.pts != pts[number] or frame.is_corrupt else frame.to_ndarray(format="rgb24")
        return None


@lru_cache(maxsize=_MAX_OPEN)
def _decoder(process: int, thread: int, index: VideoIndex) -> _Decoder:
    return _Decoder(index)


def _open(path: Path) -> tuple[Any, Any]:
    """Returns the container and its video; as mp4 and nothing else, since a playlist could name other files.

    The path is absolute: FFmpeg takes a relative one such as "concat:a|/b" for a protocol, and reads elsewhere.
    """
    try:
        import av
    except ImportError as error:
        raise DatasetError(f"{path} needs av to be read; pip install 'qtransformer[lerobot]'") from error
    try:
        container = av.open(str(path.absolute()), format="mp4")
    except _errors() as error:
        raise DatasetError(f"{path} {why_unreadable(path, error)}") from error
    stream = next((each for each in container.streams.video if each.codec_context is not None), None)
    if stream is None:
        container.close()
        raise DatasetError(f"{path} holds no video that av can decode; fetch it again, or encode it as H.264 or AV1")
    return container, stream


def _packets(container: Any, stream: Any) -> Iterator[tuple[int, bool, bytes]]:
    """Yields the time, whether it is a keyframe, and the digest of each frame in the order of decoding."""
    settings = bytes(stream.codec_context.extradata or b"")
    digest = hashlib.sha256(settings)
    for packet in container.demux(stream):
        if not packet.size:
            continue  # the end
        if packet.is_corrupt or packet.pts is None:
            raise ValueError(f"frame at byte {packet.pos} is cut off or has no time")
        if packet.is_keyframe:
            digest = hashlib.sha256(settings)
        digest.update(packet.size.to_bytes(8, "little") + bytes(packet))
        if not packet.is_discard:
            yield packet.pts, packet.is_keyframe, digest.digest()


def _errors() -> tuple[type[Exception], ...]:
    from av.error import FFmpegError

    return (FFmpegError, OSError, ValueError, MemoryError)
