"""Batches that must not reach the weights: found, written down with the weights that they met, and read again.

    RUN/bad_batches/batch_000000123.npz   batch/...     every array of the batch
                                          weights/...   the model before it      training/...  the rest of the learner
                                          document      JSON: the run's description, the figures, where it came from

Special about this file: no pickle, neither written nor read. It must not know the log.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qtransformer.batch import Batch
from qtransformer.config import RunError
from qtransformer.files import write_durably
from qtransformer.learner import Figures, Learner, under

_OBSERVATIONS = "observations/"


class BadNumber(NamedTuple):
    """One number of a batch that is NaN or infinite."""

    key: str
    row: int
    frame: int
    """Step of the segment; of an observation, the frame."""
    element: tuple[int, ...]
    value: float


class StepWithheld(Exception):
    """An update was ended before it changed any weight; `figures` are what it had found."""

    def __init__(self, figures: Figures) -> None:
        super().__init__()
        self.figures = figures


@dataclass(frozen=True)
class BadBatch:
    """What a file holds."""

    batch: Batch
    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    document: dict[str, Any]
    """`info`: the run's description, `number`: of the batch, `step`: of the update, `figures`, `sources`: of each row
    the episode and the step it begins at, `reason`: in words."""


def bad_numbers(batch: Batch) -> Iterator[BadNumber]:
    """Yields the numbers of a batch of numpy arrays that are not finite, key by key; the causes come first.

    A sum tells of a whole array whether it holds one, except that a sum can also run over: then each is asked.
    """
    with np.errstate(all="ignore"):
        for key, array in arrays_of(batch).items():
            if array.dtype.kind == "f" and not np.isfinite(array.sum()):
                for row, frame, *element in np.argwhere(~np.isfinite(array)).tolist():
                    yield BadNumber(key, row, frame, tuple(element), float(array[row, frame, *element]))


def raise_on_not_finite(figures: Figures) -> None:
    """Lets an update end here, with all weights as they were, where a figure is not finite.

    Raises:
        StepWithheld: one is not; the norm of the gradients stands for all of them.
    """
    if not torch.stack(list(figures.values())).isfinite().all():
        raise StepWithheld(figures)


def probe(learner: Learner, batch: Batch) -> Figures:
    """Returns the figures of an update that is not taken."""

    def withhold(figures: Figures) -> None:
        raise StepWithheld(figures)

    before, learner.before_step = learner.before_step, withhold
    try:
        learner.update(batch)
    except StepWithheld as withheld:
        return withheld.figures
    finally:
        learner.before_step = before
    raise AssertionError("every update asks before it steps")


def arrays_of(batch: Batch) -> dict[str, np.ndarray]:
    """Returns all arrays by name."""
    observations = {_OBSERVATIONS + key: np.asarray(value) for key, value in batch.observations.items()}
    names = [name for name in Batch.__dataclass_fields__ if name != "observations"]
    return {**observations, **{name: np.asarray(getattr(batch, name)) for name in names}}


def save_bad_batch(path: Path, batch: Batch, learner: Learner, document: Mapping[str, Any]) -> None:
    """Writes the batch, the learner as it is, and `document`.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    weights, training = learner.state()
    tensors = {f"weights/{name}": value for name, value in weights.items()}
    tensors |= {f"training/{name}": value for name, value in training.items()}
    arrays = {f"batch/{name}": array for name, array in arrays_of(batch).items()}
    arrays |= {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)

    def write(target: Path) -> None:
        with target.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    path.parent.mkdir(exist_ok=True)
    write_durably(path, write)


def load_bad_batch(path: Path) -> BadBatch:
    """Reads what `save_bad_batch` wrote.

    Raises:
        RunError: it is missing, damaged, or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        document = dict(json.loads(arrays.pop("document").tobytes()))
        read = under("batch/", arrays)
        fields = {name: value for name, value in read.items() if not name.startswith(_OBSERVATIONS)}
        batch = Batch(observations=under(_OBSERVATIONS, read), **fields)
        weights, training = (
            {name: torch.from_numpy(value.copy()) for name, value in under(prefix, arrays).items()}
            for prefix in ("weights/", "training/")
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path}: must be a file of RUN/bad_batches, got something else ({error})") from error
    return BadBatch(batch, weights, training, document)
