"""What an episode and a dataset are once they are in memory, whatever file they came from.

Special about this file: every reader produces these types and every consumer takes them, so a new file format
never reaches the learner. Arrays are numpy, in the environment's units. It must not know HDF5 or any file layout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.batch import DatasetSpec

from .frames import Frames, Rows, blocks, is_image


class DatasetError(Exception):
    """The user's data cannot be used; the message names file, episode, key and step, and says what to do."""


@dataclass(frozen=True)
class Episode:
    """One episode of T steps.

        step                  k = 0     1     2   ...  T-1
        observations          o0     o1    o2   ...  oT-1   oT    (oT only where `has_final_observation`)
        actions, rewards      a0 r0  a1 r1 a2 r2 ... aT-1 rT-1

    `terminations` stop the bootstrap, `truncations` do not, and no step carries both. An observation is an array of
    numbers, an array of strings (kind `text`), or images, in memory or still in their file (`Frames`). `source` names
    the place in the file, as in "main_data.hdf5:episode_12".
    """

    observations: dict[str, Rows]  # each (T + 1, *shape), or (T, *shape) without a final observation
    actions: np.ndarray  # (T, A) float32
    rewards: np.ndarray  # (T,) float64
    terminations: np.ndarray  # (T,) bool
    truncations: np.ndarray  # (T,) bool
    success: bool | None = None
    seed: int | None = None
    source: str = ""
    task: str | None = None
    """The instruction, where the text that held it was left out of the observations."""
    goal: str | None = None
    """What the instruction means, the same for all words that mean it; None where nobody said."""
    behaviour: str | None = None
    """What acted, in a word, as in "noisy_replay"; None where nobody said."""
    has_final_observation: bool = True

    @property
    def num_steps(self) -> int:
        """T, the number of actions."""
        return len(self.actions)

    @property
    def instruction(self) -> str | None:
        """What the robot was told at the episode's first step; None where no observation is text."""
        for rows in self.observations.values():
            if isinstance(rows, np.ndarray) and rows.dtype.kind == "U" and len(rows):
                return str(rows[0])
        return self.task

    def length_problems(self) -> list[str]:
        """Returns one sentence for every array whose length contradicts the number of actions; empty when sound."""
        T = self.num_steps
        expected = {f"observations/{key}": T + self.has_final_observation for key in self.observations}
        expected |= dict.fromkeys(("rewards", "terminations", "truncations"), T)
        lengths = {f"observations/{key}": len(value) for key, value in self.observations.items()}
        lengths |= {name: len(getattr(self, name)) for name in ("rewards", "terminations", "truncations")}
        return [
            f"{name} must have {expected[name]} rows for {T} actions, got {length}"
            for name, length in lengths.items()
            if length != expected[name]
        ]


@dataclass(frozen=True)
class EpisodeDataset:
    """Episodes that share one spec.

    `rules` says in words how the file's marks were read: "terminated", "truncated", "success", "final observation", and
    whatever else was inferred. `notes` are sentences for the user about this very file.
    """

    path: Path
    spec: DatasetSpec
    episodes: tuple[Episode, ...]
    dialect: str
    rules: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @property
    def num_steps(self) -> int:
        """Number of steps of all episodes together."""
        return sum(episode.num_steps for episode in self.episodes)

    @property
    def success_rate(self) -> float | None:
        """Share of successful episodes among those whose success is known; None where none is."""
        known = [episode.success for episode in self.episodes if episode.success is not None]
        return sum(known) / len(known) if known else None

    @cached_property
    def fingerprint(self) -> str:
        """A name for the content alone, whatever file held it; asked for the first time, all of it is read.

        Raises:
            DatasetError: an image cannot be read from its file.
        """
        return fingerprint(self.spec, self.episodes)

    def with_episodes(self, episodes: Iterable[Episode]) -> EpisodeDataset:
        """Returns the dataset of these episodes."""
        return replace(self, episodes=tuple(episodes))


def fingerprint(spec: DatasetSpec, episodes: Iterable[Episode]) -> str:
    """Returns the sha256 (hex) of the spec, of every array and of the goals, in episode order.

    Images that are compressed count by their compressed bytes, so that nothing is decoded.
    """
    digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
    for episode in episodes:
        for name, rows in _arrays(episode).items():
            digest.update(_header(name, rows).encode())
            for data in _bytes_of(rows):
                digest.update(data)
        digest.update(f"{episode.success}:{episode.has_final_observation}".encode())
        if episode.goal is not None:  # what a batch holds may depend on it
            digest.update(f":{episode.goal}".encode())
    return digest.hexdigest()


def _header(name: str, rows: Rows) -> str:
    dtype = "str" if rows.dtype.kind == "U" else str(rows.dtype)  # the width of a string array says nothing
    return f"{name}:{dtype}:{rows.shape}"


def _bytes_of(rows: Rows) -> Iterator[bytes]:
    if is_image(rows):
        stored = rows.stored_rows() if isinstance(rows, Frames) else (frame.tobytes() for frame in rows)
        for data in stored:  # images in memory count as raw ones in a file do
            yield f"{len(data)}:".encode() + data
    elif rows.dtype.kind == "U":
        yield json.dumps(np.asarray(rows).tolist()).encode()
    else:
        yield from (np.ascontiguousarray(block).tobytes() for block in blocks(rows))


def _arrays(episode: Episode) -> Mapping[str, Rows]:
    arrays = {f"observations/{key}": episode.observations[key] for key in sorted(episode.observations)}
    return arrays | {name: getattr(episode, name) for name in ("actions", "rewards", "terminations", "truncations")}
