"""Episodes as groups of Minari's layout, and which specs that layout can hold.

Special about this file: what it accepts reads back equal, so whatever would read back as something else is refused
before the first byte. Images are contiguous raw rows, which are read fastest, or one JPEG file a row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from qtransformer.batch import FLAT_KEY, DatasetSpec, ObservationSpec
from qtransformer.files import write_durably

from .formats.hdf5 import MAX_DEPTH
from .formats.hdf5_frames import MIN_SIDE
from .formats.images import compression
from .formats.minari_metadata import is_jpeg_shape
from .frames import Frames, Rows, blocks, is_image
from .schema import DatasetError, Episode

ImageStorage = Literal["raw", "jpeg"]
COMPRESSED = ("jpeg", "png")  # what Minari's JPEG files may hold: it decodes them with Pillow, which knows both
_CHANNELS = (1, 3, 4)
_JPEG_QUALITY = 95  # beyond it files grow much and frames hardly change


def check_spec(spec: DatasetSpec, images: ImageStorage) -> None:
    """Makes sure that the layout can hold a spec.

    Raises:
        DatasetError: a name or a shape would not read back as it was written.
    """
    if images not in ("raw", "jpeg"):
        raise DatasetError(f"images ({images}) must be raw or jpeg; change this setting")
    _check_names([each.name for each in spec.observations])
    for each in spec.observations:
        if problem := _problem(each, images):
            raise DatasetError(f"observation {each.name} {problem}")
    if not spec.actions.num_dimensions:
        raise DatasetError("actions must have at least one dimension, got none; correct the spec")
    try:
        json.dumps(spec.to_json())
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"environment_kwargs must be plain numbers, strings, lists and dicts ({error}); leave out what is not"
        ) from error


def mismatches(spec: DatasetSpec, episode: Episode) -> list[str]:
    """Returns a sentence for each way in which an episode does not match a spec, or cannot be written."""
    problems = episode.length_problems()
    if episode.num_steps == 0:
        problems.append("actions must have at least one step, got none")
    expected = {each.name: each.shape for each in spec.observations}
    found = {key: tuple(rows.shape[1:]) for key, rows in episode.observations.items()}
    if expected != found:
        problems.append(f"observations must be {expected}, got {found}")
    dtypes = {key: "str" if rows.dtype.kind == "U" else str(rows.dtype) for key, rows in episode.observations.items()}
    for each in spec.observations:
        if dtypes.get(each.name, each.dtype) != each.dtype:
            problems.append(f"observation {each.name} must be {each.dtype}, got {dtypes[each.name]}")
    if episode.actions.shape[1:] != (spec.actions.num_dimensions,):
        problems.append(f"actions must have shape (T, {spec.actions.num_dimensions}), got {episode.actions.shape}")
    if episode.seed is not None and not -(2**63) <= episode.seed < 2**63:
        problems.append(f"seed must fit into 64 bits, got {episode.seed}")
    return problems


def write_episode(group: h5py.Group, episode: Episode, index: int, images: ImageStorage) -> None:
    """Writes an episode into its empty group; images by blocks, so that they never are in memory together.

    Images that are JPEG or PNG in their own file are copied byte for byte where `images` is "jpeg".

    Raises:
        DatasetError: rows would not read back as they are, or the source of images is damaged.
    """
    group.attrs.update({"id": index, "total_steps": episode.num_steps})
    if episode.seed is not None:
        group.attrs["seed"] = episode.seed
    group.attrs.update({name: text for name in ("goal", "behaviour") if (text := getattr(episode, name)) is not None})
    is_flat = set(episode.observations) == {FLAT_KEY}
    for key, rows in episode.observations.items():
        _write_rows(group, "observations" if is_flat else f"observations/{key}", rows, images)
    group["actions"] = episode.actions.astype(np.float32)
    group["rewards"] = episode.rewards.astype(np.float64)
    group["terminations"] = episode.terminations.astype(bool)
    group["truncations"] = episode.truncations.astype(bool)
    if episode.success is not None:
        flags = np.zeros(episode.num_steps + 1, bool)  # as Minari's infos: the first row belongs to the reset
        flags[-1] = episode.success
        group["infos/success"] = flags


def can_hold_text(text: str) -> bool:
    """Returns whether text reads back as it is: HDF5 ends a string at a zero, and UTF-8 has no half characters."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make a file, which appears as `path` only when it is complete and on the disk.

    Raises:
        DatasetError: the disk is full, or not writable.
    """
    try:
        write_durably(path, write)
    except (OSError, RuntimeError) as error:  # h5py raises either on a full disk
        raise DatasetError(f"{path} cannot be written ({error}); make room or choose another disk") from error


def _check_names(names: list[str]) -> None:
    if not names:
        raise DatasetError("the spec must have at least one observation, got none; add what the robot sees")
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts) or len(parts) > MAX_DEPTH:
            raise DatasetError(
                f"observation {name!r} must be named by 1 to {MAX_DEPTH} names joined with '/'; rename it in the spec"
            )
        others = [other for other in names if other.startswith(f"{name}/")]
        if others or names.count(name) > 1:
            raise DatasetError(
                f"observation {name!r} must not share its name with {others or 'another'}; rename one in the spec"
            )


def _problem(spec: ObservationSpec, images: ImageStorage) -> str | None:
    """Returns why the layout cannot hold such rows, None where it can."""
    shape, found = spec.shape, f"got {spec.dtype} of shape {spec.shape}"
    if spec.kind == "text":
        return None if (shape, spec.dtype) == ((), "str") else f"is text and must be str of shape (), {found}"
    if spec.kind == "image":
        if spec.dtype != "uint8" or len(shape) != 3 or shape[2] not in _CHANNELS or 0 in shape:
            return f"is an image and must be uint8 (height, width, 1, 3 or 4 channels), {found}; convert what sends it"
        if images == "jpeg" and is_jpeg_shape(shape) and shape[2] == 4:
            return f"has four channels, which JPEG cannot hold, {found}; store images raw"
        return None
    try:
        kind = np.dtype(spec.dtype).kind
    except TypeError:
        kind = "?"
    if not shape or kind not in "biuf":
        return f"must be numbers of one axis or more, {found}; make single numbers a vector of shape (1,)"
    if spec.dtype == "uint8" and (len(shape) == 3 or (len(shape) == 2 and min(shape) >= MIN_SIDE)):
        return f"would read back as an image, {found}; call it one, with a channels axis, or use another dtype"
    return None


def _write_rows(group: h5py.Group, name: str, rows: Rows, images: ImageStorage) -> None:
    if is_image(rows):
        _write_images(group, name, rows, images)
        return
    assert isinstance(rows, np.ndarray)
    if rows.dtype.kind == "U":
        wrong = next((text for text in rows.tolist() if not can_hold_text(text)), None)
        if wrong is not None:
            raise DatasetError(
                f"{name} must be text that UTF-8 can hold, without zero characters, got {wrong!r}; clean it"
            )
        group.create_dataset(name, data=rows.astype(object), dtype=h5py.string_dtype())
    elif rows.dtype == np.uint8 and rows.ndim == 2 and compression(rows[0].tobytes()):
        raise DatasetError(f"{name} begins like a JPEG or PNG file and would read back as one; use another dtype")
    else:
        group[name] = rows


def _write_images(group: h5py.Group, name: str, rows: Rows, images: ImageStorage) -> None:
    compressed = _compressed(rows) if images == "jpeg" else None
    if compressed is not None:
        dataset = group.create_dataset(name, (len(rows),), h5py.vlen_dtype(np.uint8))
        for row, data in enumerate(compressed):
            dataset[row] = np.frombuffer(data, np.uint8)
        return
    dataset, start = group.create_dataset(name, rows.shape, np.uint8), 0
    for block in blocks(rows):
        dataset[start : start + len(block)] = block
        start += len(block)


def _compressed(rows: Rows) -> Iterator[bytes] | None:
    """Returns one image file a row, None where they stay raw because they are small."""
    if isinstance(rows, Frames) and rows.encoding in COMPRESSED:
        return rows.stored_rows()
    if not is_jpeg_shape(rows.shape[1:]):
        return None
    return (_encode(frame) for block in blocks(rows) for frame in block)


def _encode(frame: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
