"""Logs with images, numbers and text, as small files, for the tests of what feeds the learner."""

from __future__ import annotations

import io

import h5py
import numpy as np
from PIL import Image

from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.schema import EpisodeDataset

SHAPE = (8, 10, 3)


def make_frames(length: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(length, *shape), dtype=np.uint8)


def write_images(folder, lengths=(5, 1, 7), *, final=True, encoding="raw", shape=SHAPE):
    """Writes a log of one camera and a state, episode e of frames `make_frames(..., seed=e)`; PNG loses nothing."""
    folder.mkdir(parents=True)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for index, length in enumerate(lengths):
            group, rows = file.create_group(f"episode_{index}"), length + final
            frames = make_frames(rows, index, shape)
            if encoding == "raw":
                group["observations/camera"] = frames
            else:
                kind = h5py.vlen_dtype(np.uint8)
                compressed = group.create_dataset("observations/camera", (rows,), dtype=kind)
                for row, frame in enumerate(frames):
                    compressed[row] = np.frombuffer(png(frame), np.uint8)
            group["observations/state"] = np.arange(2.0 * rows).reshape(rows, 2) + 100 * index
            group["actions"] = np.full((length, 2), 0.5, np.float32)
            group["rewards"] = (np.arange(length) == length - 1).astype(np.float64)
            group["terminations"] = np.arange(length) == length - 1
            group["truncations"] = np.zeros(length, bool)
    return folder


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def open_images(folder, **settings) -> EpisodeDataset:
    return open_dataset(write_images(folder, **settings))
