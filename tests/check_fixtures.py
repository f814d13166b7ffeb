"""Sound logs that the tests of the check spoil in one place each, and images that may not be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from dataset_fixtures import make_episode, make_spec

from qtransformer.batch import ObservationSpec
from qtransformer_datasets.check import Finding, check_dataset
from qtransformer_datasets.frames import Frames, Rows
from qtransformer_datasets.schema import Episode, EpisodeDataset

CAMERA = ObservationSpec("camera", (8, 8, 3), "uint8", "image")
INSTRUCTION = ObservationSpec("instruction", (), "str", "text")


class StoredFrames(Frames):
    """Frames of which only the stored bytes may be asked for."""

    def __init__(self, stored: list[bytes]) -> None:
        self.stored, self.shape = stored, (len(stored), 8, 8, 3)
        self.num_reads = 0

    @property
    def encoding(self) -> str:
        return "jpeg"

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        raise AssertionError("a check decoded an image")

    def stored_rows(self) -> Iterator[bytes]:
        self.num_reads += 1
        yield from self.stored


def log_of(*episodes: Episode, extra: tuple[ObservationSpec, ...] = ()) -> EpisodeDataset:
    """Returns the dataset of the episodes; `extra` are the specs of observations besides `state`."""
    spec = make_spec()
    spec = replace(spec, observations=(*spec.observations, *extra))
    return EpisodeDataset(Path("log"), spec, episodes, "minari")


def with_rows(episode: Episode, **observations: Rows) -> Episode:
    """Returns the episode with observations added or replaced."""
    return replace(episode, observations=episode.observations | observations)


def edited(episode: Episode, name: str, index: Any, value: Any) -> Episode:
    """Returns the episode with a part of one array replaced; `name` is "state" or a field."""
    array = np.array(episode.observations[name] if name == "state" else getattr(episode, name))
    array[index] = value
    return with_rows(episode, state=array) if name == "state" else replace(episode, **{name: array})


def sound_log(num_episodes: int = 12, num_steps: int = 30) -> EpisodeDataset:
    """Returns a log with every second episode a success, of different lengths; the others are cut off at the same."""
    return log_of(
        *(make_episode(num_steps - index % 7, seed=index) for index in range(0, num_episodes, 2)),
        *(make_episode(num_steps, seed=index, success=False) for index in range(1, num_episodes, 2)),
    )


def find(dataset: EpisodeDataset) -> dict[str, Finding]:
    """Returns what the check finds, by code; each code once."""
    findings = check_dataset(dataset)
    assert len({each.code for each in findings}) == len(findings)
    return {each.code: each for each in findings}
