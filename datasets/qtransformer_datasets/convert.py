"""Any opened dataset, written into our own layout (Minari's), episode by episode.

Special about this file: what is not lossy keeps the dataset's fingerprint. To write a part of a dataset, choose it
with `selection` first. It must not know the dialects: it sees episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress

from .formats import open_dataset
from .formats.minari_metadata import SPEC_KEY, is_jpeg_shape
from .frames import Frames
from .minari_writer import COMPRESSED, ImageStorage
from .recorder import Recorder
from .schema import DatasetError, Episode, EpisodeDataset

ORIGIN_KEY = "converted_from"
_STALE = (SPEC_KEY, "dataset_id", "dataset_size", "minari_version")  # they describe the file that was read


def convert_dataset(
    dataset: EpisodeDataset, out: str | Path, *, images: ImageStorage | Literal["keep"] = "keep"
) -> EpisodeDataset:
    """Writes the episodes of a dataset into the new directory `out` and returns them as read back from it.

    Nothing is taken over but the episodes, the spec and Minari's metadata; how the marks of the file were read is
    kept in metadata.json. An interrupt leaves the episodes that were written, and a note that says so on opening.

    Args:
        dataset: as opened, or what `selection` made of it.
        out: a directory that does not exist yet, or is empty.
        images: "keep" copies JPEG and PNG byte for byte and writes all others raw; "raw" decodes everything; "jpeg"
            encodes what is not compressed, which loses a little.

    Raises:
        DatasetError: `out` holds something, the layout cannot hold the spec or an episode, or a part of the images is
            compressed and `images` is "keep".
    """
    storage = _kept_storage(dataset) if images == "keep" else images
    recorder = Recorder(out, dataset.spec, images=storage, attributes=_attributes(dataset))
    for episode in _show_progress(dataset):
        recorder.record(episode)
    recorder.close()
    return open_dataset(out)


def _kept_storage(dataset: EpisodeDataset) -> ImageStorage:
    """Returns how the images are stored already.

    Minari has one flag for all images, so a dataset that mixes JPEG with raw ones cannot be kept.
    """
    raw, compressed = None, None
    for episode in dataset.episodes:
        for key, rows in episode.observations.items():
            if isinstance(rows, Frames) and rows.encoding in COMPRESSED:
                compressed = compressed or f"{episode.source}/{key}"
            elif rows.dtype == "uint8" and len(rows.shape) == 4 and is_jpeg_shape(rows.shape[1:]):
                raw = raw or f"{episode.source}/{key}"
    if raw and compressed:
        raise DatasetError(
            f"{dataset.path}: images must be all compressed or all raw to be kept, got compressed ones in {compressed} "
            f"and others in {raw}; write all of them raw, or all as jpeg"
        )
    return "jpeg" if compressed else "raw"


def _attributes(dataset: EpisodeDataset) -> dict[str, Any]:
    origin = {"dialect": dataset.dialect, "path": dataset.path.name, "rules": dict(dataset.rules)}
    kept = dataset.metadata if dataset.dialect == "minari" else {}
    attributes = {ORIGIN_KEY: origin} | {key: value for key, value in kept.items() if key not in _STALE}
    return json.loads(json.dumps(attributes, default=str))


def _show_progress(dataset: EpisodeDataset) -> Iterator[Episode]:
    """Passes episodes on, with a progress bar on a terminal."""
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(dataset.episodes, description="converting")
