"""Writing episodes so that a crash, a full disk or a pulled plug loses none that was finished.

Special about this file: an episode is on disk, fsynced, when `record` or `end_episode` returns; `close` merges all
into Minari's layout, which the `minari` package opens. Every file appears under its name only when it is complete, so
at every moment each finished episode can be read, and once: what the main file holds counts, else `unmerged`.

    PATH/data/metadata.json                     from the start, final counts from the merge on
    PATH/data/unmerged/episode_<i>.hdf5         while recording
    PATH/data/main_data.hdf5                    after close
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py

from qtransformer.batch import DatasetSpec
from qtransformer.files import fsync, leftovers

from .episode_buffer import EpisodeBuffer
from .formats.hdf5 import handle, open_hdf5
from .formats.minari import MAIN_NAME, UNMERGED_NAME, locate
from .formats.minari_metadata import METADATA_NAME, SPEC_KEY, read_metadata, spaces
from .minari_writer import ImageStorage, check_spec, mismatches, write_episode, write_file
from .schema import DatasetError, Episode

MINARI_VERSION = "0.5.3"
_COMPUTED = ("total_episodes", "total_steps", "data_format", "jpeg_encoding", "observation_space", "action_space")


class Recorder:
    """Records episodes of one spec into a directory; a context manager whose exit calls `close`.

    Whole episodes go to `record`. A robot calls `start_episode`, then `step` after each action, then `end_episode`;
    the steps are held in RAM until the episode ends (images raw, about twice their size while they are written).
    """

    num_episodes: int
    """Finished episodes on disk, those of earlier recordings included."""
    num_steps: int
    """Their steps."""
    attributes: dict[str, Any]
    """Further keys of metadata.json."""
    notes: tuple[str, ...] = ()
    """What was found and repaired in a recording that was killed; sentences for the user."""

    def __init__(
        self,
        path: str | Path,
        spec: DatasetSpec,
        *,
        images: ImageStorage = "raw",
        append: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Creates the directory and writes metadata.json, or opens a recording to go on with.

        Args:
            path: a directory that does not exist yet, or is empty; with `append` also a recording of this class.
            spec: what every episode must look like.
            images: "raw" (read fastest), or "jpeg" (small, lossy) for images of 32 pixels or more a side; smaller ones
                stay raw, and images that are JPEG or PNG in the file they come from are copied byte for byte.
            append: go on with what is at `path`, killed or closed; its episodes and attributes stay.
            attributes: further keys of metadata.json (`env_spec`, `algorithm_name`, `author`, `description`, ...).

        Raises:
            DatasetError: the layout cannot hold the spec, something else is at `path`, the spec, the storage of images
                or an attribute is not that of the recording there, or the directory cannot be made.
        """
        check_spec(spec, images)
        self.path, self.spec = Path(path), spec
        self.num_episodes, self.num_steps, self.attributes = 0, 0, dict(attributes or {})
        self._is_jpeg = images == "jpeg" and any(each.kind == "image" for each in spec.observations)
        self._images: ImageStorage = images
        self._folder = self.path / "data"
        self._unmerged = self._folder / UNMERGED_NAME
        self._buffer: EpisodeBuffer | None = None
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            self._resume(append)
        try:
            self._unmerged.mkdir(parents=True, exist_ok=True)
            for folder in (self._folder, self.path, self.path.resolve().parent):
                fsync(folder)
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be made ({error.strerror}); choose another path") from error
        self._is_open = True
        if not self.num_episodes:
            self._write_metadata()

    @property
    def num_pending_steps(self) -> int | None:
        """Steps of the episode that goes on, None between episodes."""
        return None if self._buffer is None else self._buffer.num_steps

    def record(self, episode: Episode) -> None:
        """Writes one finished episode; it survives a crash from here on.

        Raises:
            DatasetError: the episode is empty, its arrays differ in length, it does not match the spec, or the disk
                refuses it.
        """
        self._check_open()
        self._validate(episode)
        name = f"episode_{self.num_episodes}"
        path = self._unmerged / f"{name}.hdf5"
        if path.exists():
            raise DatasetError(f"{path} is there already: another recorder writes into {self.path}; give each its own")

        def write(temporary: Path) -> None:
            with h5py.File(temporary, "w") as file:
                write_episode(file.create_group(name), episode, self.num_episodes, self._images)

        write_file(path, write)
        self.num_episodes += 1
        self.num_steps += episode.num_steps

    def start_episode(self, observation: Any, *, seed: int | None = None, goal: str | None = None) -> None:
        """Starts an episode with the observation before its first action: nested dicts and tuples, or a bare array.

        `seed` is what the environment was reset with, `goal` what is to be done, the same words for the same.

        Raises:
            DatasetError: the episode before is not ended, or the observation does not match the spec.
        """
        self._check_open()
        if self._buffer is not None:
            raise DatasetError(f"{self._place()} is not ended; call end_episode or discard_episode first")
        self._buffer = EpisodeBuffer(self.spec, observation, seed=seed, goal=goal, source=self._place())

    def step(self, action: Any, observation: Any, reward: float, terminated: bool, truncated: bool) -> None:
        """Takes the action as executed, and the observation and reward that followed it; flags as Gymnasium's.

        Raises:
            DatasetError: no episode goes on, or something does not match the spec; the step is not taken then.
        """
        self._current("step").step(action, observation, reward, terminated, truncated)

    def end_episode(self, *, success: bool | None = None) -> None:
        """Writes the episode; one that was not terminated counts as truncated. It survives a crash from here on.

        Raises:
            DatasetError: no episode goes on, it has no step, or the disk refuses it (then it can be ended again).
        """
        self.record(self._current("end_episode").episode(success))
        self._buffer = None

    def discard_episode(self) -> None:
        """Forgets the episode that goes on.

        Raises:
            DatasetError: none goes on.
        """
        self._current("discard_episode")
        self._buffer = None

    def close(self) -> None:
        """Merges all episodes into the main file; without any, removes what was created. A second call does nothing.

        An episode that goes on is kept as truncated, its success unknown; without a step it is forgotten.

        Raises:
            DatasetError: the disk refuses it; the finished episodes stay readable.
        """
        if not self._is_open:
            return
        if self._buffer is not None:
            self.end_episode() if self.num_pending_steps else self.discard_episode()
        if self._pending():
            self._write_metadata()
            write_file(self._folder / MAIN_NAME, self._merge)
        self._is_open = False
        for file in self._unmerged.iterdir():
            file.unlink()
        self._unmerged.rmdir()
        if not self.num_episodes:
            (self._folder / METADATA_NAME).unlink()
            self._folder.rmdir()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _resume(self, append: bool) -> None:
        """Takes stock of what is at the path, and removes what a kill left behind there."""
        if not append:
            raise DatasetError(
                f"{self.path} must be new or empty, but holds something; choose another path or move it, or append to "
                "it if it is a recording"
            )
        if not self._folder.is_dir():
            raise DatasetError(f"{self.path} must be a recording to append to, but has no folder data; choose another")
        metadata, files = read_metadata(self._folder), locate(self.path)
        if metadata or files:
            self._compare(metadata)
        lengths = {name: length for file in files for name, length in _lengths(file).items()}
        if set(lengths) != {f"episode_{index}" for index in range(len(lengths))}:
            raise DatasetError(f"{self.path} lacks some of its episodes, found {sorted(lengths)}; convert it instead")
        self.num_episodes, self.num_steps = len(lengths), sum(lengths.values())
        self.attributes |= {key: value for key, value in metadata.items() if key not in (*_COMPUTED, SPEC_KEY)}
        self._clean(files)

    def _compare(self, metadata: Mapping[str, Any]) -> None:
        mine, theirs = json.loads(json.dumps(self.spec.to_json())), metadata.get(SPEC_KEY)
        if not isinstance(theirs, dict):
            raise DatasetError(f"{self.path} was not written by this recorder; convert it first, then append to that")
        for key in sorted(mine | theirs):
            if mine.get(key) != theirs.get(key):
                raise DatasetError(
                    f"{self.path} has another spec: {key} must be {theirs.get(key)}, got {mine.get(key)}; choose "
                    "another path, or the spec that is there"
                )
        for key, value in json.loads(json.dumps(self.attributes)).items():
            if metadata.get(key, value) != value:
                raise DatasetError(
                    f"{self.path} was recorded with another {key}, {metadata[key]}, got {value}; choose another path, "
                    "or the same settings"
                )
        if bool(metadata.get("jpeg_encoding")) != self._is_jpeg:
            other = "jpeg" if metadata.get("jpeg_encoding") else "raw"
            raise DatasetError(f"{self.path} stores images as {other}, got images ({self._images}); choose the same")

    def _clean(self, files: list[Path]) -> None:
        pending = [file for file in files if file.parent == self._unmerged]
        torn = [file for folder in (self._unmerged, self._folder) for file in leftovers(folder)]
        if pending or torn:
            self.notes += (f"the recording was interrupted: its {self.num_episodes} finished episodes are kept",)
        self.notes += tuple(f"{file.name} was being written and is torn: removed" for file in torn)
        merged = [file for file in self._pending() if file not in pending]
        for file in (*torn, *merged):
            file.unlink()

    def _pending(self) -> list[Path]:
        return list(self._unmerged.glob("*.hdf5"))

    def _check_open(self) -> None:
        if not self._is_open:
            raise DatasetError(f"{self.path} is closed; make a new Recorder for more episodes, with append=True")

    def _place(self) -> str:
        return f"{self.path}: episode {self.num_episodes}"

    def _current(self, call: str) -> EpisodeBuffer:
        self._check_open()
        if self._buffer is None:
            raise DatasetError(f"{self._place()} is not started; call start_episode before {call}")
        return self._buffer

    def _validate(self, episode: Episode) -> None:
        problems = mismatches(self.spec, episode)
        if problems:
            raise DatasetError(
                f"episode {self.num_episodes} of {self.path}: {'; '.join(problems)}; nothing was written of it"
            )

    def _merge(self, temporary: Path) -> None:
        with h5py.File(temporary, "w") as target:
            for path in locate(self.path):
                with handle(path) as source:  # an error here may be the target's: a full disk
                    for name in source:
                        source.copy(name, target)

    def _write_metadata(self) -> None:
        metadata = {
            "dataset_id": re.sub(r"[^\w-]+", "-", self.path.resolve().name) + "-v0",
            "minari_version": MINARI_VERSION,
            **self.attributes,
            "total_episodes": self.num_episodes,
            "total_steps": self.num_steps,
            "data_format": "hdf5",
            "jpeg_encoding": self._is_jpeg,
            **spaces(self.spec, self._is_jpeg),
            SPEC_KEY: self.spec.to_json(),
        }
        text = json.dumps(metadata, indent=2)
        write_file(self._folder / METADATA_NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _lengths(path: Path) -> dict[str, int]:
    with open_hdf5(path) as file:
        return {name: len(group["rewards"]) for name, group in file.items()}
