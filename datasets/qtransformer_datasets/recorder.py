"""Writing episodes so that a crash, a full disk or a pulled plug loses none that was finished.

Special about this file: an episode is on disk, fsynced, when `record` returns; `close` merges all into Minari's
layout, which the `minari` package opens. Every file appears under its name only when it is complete. No compression.

    PATH/data/metadata.json                     from the start, final counts after close
    PATH/data/unmerged/episode_<i>.hdf5         while recording
    PATH/data/main_data.hdf5                    after close
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from qtransformer.batch import DatasetSpec

from .formats.hdf5 import open_hdf5
from .formats.minari import MAIN_NAME, UNMERGED_NAME
from .formats.minari_metadata import METADATA_NAME, SPEC_KEY, spaces
from .formats.specs import FLAT_KEY
from .schema import DatasetError, Episode

MINARI_VERSION = "0.5.3"


class Recorder:
    """Records episodes of one spec into a new directory; a context manager whose exit calls `close`."""

    def __init__(self, path: str | Path, spec: DatasetSpec, *, attributes: Mapping[str, Any] | None = None) -> None:
        """Creates the directory and writes metadata.json.

        Args:
            path: a directory that does not exist yet, or is empty.
            spec: what every episode must look like.
            attributes: further keys of metadata.json (`env_spec`, `algorithm_name`, `author`, `description`, ...).

        Raises:
            DatasetError: something is at `path` already, or it cannot be made.
        """
        self.path = Path(path)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise DatasetError(f"{self.path} must be new or empty, but holds something; choose another path or move it")
        self.spec = spec
        self.num_episodes = 0
        self.num_steps = 0
        self._attributes = dict(attributes or {})
        self._folder = self.path / "data"
        self._unmerged = self._folder / UNMERGED_NAME
        try:
            self._unmerged.mkdir(parents=True)
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be made ({error.strerror}); choose another path") from error
        self._write_metadata()

    def record(self, episode: Episode) -> None:
        """Writes one finished episode; it survives a crash from here on.

        Raises:
            DatasetError: the episode is empty, its arrays differ in length, or it does not match the spec.
        """
        if not self._unmerged.exists():
            raise DatasetError(f"{self.path} is closed; make a new Recorder for more episodes")
        self._validate(episode)
        name = f"episode_{self.num_episodes}"

        def write(temporary: Path) -> None:
            with h5py.File(temporary, "w") as file:
                _write_episode(file.create_group(name), episode, self.num_episodes)

        _write_durably(self._unmerged / f"{name}.hdf5", write)
        self.num_episodes += 1
        self.num_steps += episode.num_steps

    def close(self) -> None:
        """Merges all episodes into the main file; without any, removes what was created. A second call does nothing."""
        if not self._unmerged.exists():
            return
        if self.num_episodes:
            _write_durably(self._folder / MAIN_NAME, self._merge)
            self._write_metadata()
        else:
            (self._folder / METADATA_NAME).unlink()
        for file in self._unmerged.iterdir():
            file.unlink()
        self._unmerged.rmdir()
        if not self.num_episodes:
            self._folder.rmdir()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _validate(self, episode: Episode) -> None:
        problems = episode.length_problems()
        if episode.num_steps == 0:
            problems.append("actions must have at least one step, got none")
        expected = {each.name: each.shape for each in self.spec.observations}
        found = {key: array.shape[1:] for key, array in episode.observations.items()}
        if expected != found:
            problems.append(f"observations must be {expected}, got {found}")
        if episode.actions.shape[1:] != (self.spec.actions.num_dimensions,):
            problems.append(
                f"actions must have shape (T, {self.spec.actions.num_dimensions}), got {episode.actions.shape}"
            )
        if problems:
            raise DatasetError(
                f"episode {self.num_episodes} of {self.path}: {'; '.join(problems)}; nothing was written of it"
            )

    def _merge(self, temporary: Path) -> None:
        with h5py.File(temporary, "w") as target:
            for index in range(self.num_episodes):
                name = f"episode_{index}"
                with open_hdf5(self._unmerged / f"{name}.hdf5") as source:
                    source.copy(name, target)

    def _write_metadata(self) -> None:
        metadata = {
            "total_episodes": self.num_episodes,
            "total_steps": self.num_steps,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            **spaces(self.spec),
            "dataset_id": re.sub(r"[^\w-]+", "-", self.path.resolve().name) + "-v0",
            "minari_version": MINARI_VERSION,
            **self._attributes,
            SPEC_KEY: self.spec.to_json(),
        }
        text = json.dumps(metadata, indent=2)
        _write_durably(self._folder / METADATA_NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_episode(group: h5py.Group, episode: Episode, index: int) -> None:
    group.attrs.update({"id": index, "total_steps": episode.num_steps})
    if episode.seed is not None:
        group.attrs["seed"] = episode.seed
    is_flat = set(episode.observations) == {FLAT_KEY}
    for key, array in episode.observations.items():
        group["observations" if is_flat else f"observations/{key}"] = array
    group["actions"] = episode.actions.astype(np.float32)
    group["rewards"] = episode.rewards.astype(np.float64)
    group["terminations"] = episode.terminations.astype(bool)
    group["truncations"] = episode.truncations.astype(bool)
    if episode.success is not None:
        flags = np.zeros(episode.num_steps + 1, bool)  # as Minari's infos: the first row belongs to the reset
        flags[-1] = episode.success
        group["infos/success"] = flags


def _write_durably(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    _fsync(temporary)
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a directory cannot be opened, and the rename alone must do
        _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
