"""LeRobot datasets, versions 2 and 3: numbers in Parquet files, images there or in mp4 files, tasks in words.

Special about this file: the format has no final observation and no truncation, and says of no column what it means for
learning; what the labels were taken from is told in the rules. Images stay in their files until they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.batch import DatasetSpec, ObservationSpec, ReadOptions

from ..frames import Rows
from ..schema import DatasetError, Episode, EpisodeDataset
from .lerobot_labels import DONE, REWARD, SUCCESS, Labels, Marks, label
from .lerobot_meta import INFO_NAME, OLD_INFO_NAME, EpisodeEntry, Feature, Meta, read_meta
from .lerobot_video import VideoIndex, cut_clip, index_video
from .parquet import ParquetImages, read_numbers, read_table, read_texts
from .specs import check_agreement, derive_actions, derive_observation
from .text import INSTRUCTION_KEY

LAYOUT = "LeRobot v2 or v3: a folder with meta/info.json, data/**/*.parquet and, with cameras, videos/**/*.mp4"
_PREFIX, _ACTION, _TASK = "observation.", "action", "task_index"
_NEEDED = ("timestamp", "frame_index", "episode_index")
_LABELS = ((DONE, "bool"), (SUCCESS, "bool"), (REWARD, "float64"))
_DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)


@dataclass(frozen=True)
class _Read:
    """An episode's arrays before its labels are known."""

    marks: Marks
    observations: dict[str, Rows]
    actions: np.ndarray


def matches(path: Path) -> bool:
    """Returns whether a folder has LeRobot's description, of whatever version."""
    try:
        return any((path / name).is_file() for name in (INFO_NAME, OLD_INFO_NAME))
    except OSError:
        return False


def read(path: Path, options: ReadOptions) -> EpisodeDataset:
    """Returns the dataset in the folder `path`, episodes in the order of their index.

    Raises:
        DatasetError: pyarrow or av is not installed, the version is not known, or a file is missing or damaged.
    """
    meta = read_meta(path)
    observed = _observed(path, meta)
    found = list(_read_episodes(path, meta, observed))
    labels, rules, notes = label([each.marks for each in found], options.dones)
    episodes = tuple(_episode(each, marked) for each, marked in zip(found, labels, strict=True))
    check_agreement(episodes)
    actions, limits_rule = derive_actions(
        np.concatenate([each.actions for each in found]), meta.features[_ACTION].elements
    )
    observations = tuple(_spec(key, rows, observed) for key, rows in sorted(episodes[0].observations.items()))
    spec = DatasetSpec(observations, actions, meta.fps)
    return EpisodeDataset(
        path=path,
        spec=spec,
        episodes=episodes,
        dialect="lerobot",
        rules={**rules, "action limits": limits_rule},
        notes=(*notes, *_notes(meta, observed)),
        metadata=meta.info,
    )


def _observed(path: Path, meta: Meta) -> dict[str, Feature]:
    """Returns the features that become observations, by the name that they get."""
    where, action = path / INFO_NAME, meta.features.get(_ACTION)
    if action is None or len(action.shape) != 1 or not action.dtype.startswith("float"):
        found = f"{action.dtype} of shape {action.shape}" if action else f"only {sorted(meta.features)}"
        raise DatasetError(
            f"{where} must have the feature {_ACTION}, a vector of real numbers, found {found}; only continuous "
            "actions work"
        )
    features = [each for name, each in meta.features.items() if name.startswith(_PREFIX) and not each.is_depth]
    names = [each.name.removeprefix(_PREFIX).replace("images.", "images/", 1) for each in features]
    if not names:
        raise DatasetError(f"{where} must have features {_PREFIX}*, found only {sorted(meta.features)}; rename them")
    taken = [*names, INSTRUCTION_KEY] if meta.tasks else names
    twice = {name for name in taken if taken.count(name) > 1}
    if twice:
        raise DatasetError(
            f"{where} must give each observation a name of its own, got {sorted(twice)} twice; rename it"
        )
    return dict(zip(names, features, strict=True))


def _read_episodes(path: Path, meta: Meta, observed: Mapping[str, Feature]) -> Iterator[_Read]:
    """Yields the episodes in their order; each Parquet file is read once, each video walked through once."""
    labels = [name for name in (DONE, SUCCESS, REWARD) if name in meta.features]
    columns = [each.name for each in observed.values() if each.dtype not in ("image", "video")]
    columns += [_ACTION, *labels, *_NEEDED, *([_TASK] if meta.tasks else [])]
    videos: dict[Path, VideoIndex] = {}
    for file, entries in groupby(meta.episodes, key=lambda entry: entry.data):
        table = read_table(file, columns)
        numbers = read_numbers(table, "episode_index", (1,), "int64", str(file)).reshape(-1)
        for entry in entries:
            where = f"{file.relative_to(path)}:episode_{entry.index}"
            start = _find(numbers, entry, where)
            rows = _EpisodeRows(meta, entry, table.slice(start, entry.length), start, where)
            yield _Read(rows.marks(), rows.observations(observed, videos), rows.actions())


def _find(numbers: np.ndarray, entry: EpisodeEntry, where: str) -> int:
    """Returns the row where an episode begins."""
    places = np.flatnonzero(numbers == entry.index)
    if len(places) != entry.length or not entry.length or places[-1] - places[0] >= entry.length:
        raise DatasetError(
            f"{where} must have {entry.length} rows one after another, as the meta folder says, got {len(places)} in "
            f"{len(numbers)}; record or convert it again"
        )
    return int(places[0])


@dataclass(frozen=True)
class _EpisodeRows:
    """The rows of one episode, and where they came from."""

    meta: Meta
    entry: EpisodeEntry
    table: Any  # pyarrow.Table, the episode's rows alone
    start: int  # its first row in the file
    where: str

    def marks(self) -> Marks:
        """Returns the columns that say something of success and end."""
        order = self._numbers("frame_index", (1,), "int64").reshape(-1)
        if (order != np.arange(len(order))).any():
            step = int(np.argmax(order != np.arange(len(order))))
            raise DatasetError(
                f"{self.where} frame_index must count the steps from 0, got {order[step]} at step {step}; rows are "
                "missing or mixed up: convert it again"
            )
        done, success, reward = (self._optional(name, dtype) for name, dtype in _LABELS)
        return Marks(self.where, len(order), done, success, reward)

    def actions(self) -> np.ndarray:
        """Returns (T, A) float32."""
        return self._numbers(_ACTION, self.meta.features[_ACTION].shape, "float32")

    def observations(self, observed: Mapping[str, Feature], videos: dict[Path, VideoIndex]) -> dict[str, Rows]:
        """Returns every observation by its name, the task in words among them; `videos` is filled on the way."""
        rows = {key: self._observation(feature, videos) for key, feature in observed.items()}
        if not self.meta.tasks:
            return rows
        tasks = self._numbers(_TASK, (1,), "int64").reshape(-1).tolist()
        unknown = next((step for step, task in enumerate(tasks) if task not in self.meta.tasks), None)
        if unknown is not None:
            raise DatasetError(
                f"{self.where} {_TASK} must be one of the meta folder's tasks, got {tasks[unknown]} at step {unknown}; "
                "fetch the whole dataset, or add the task"
            )
        return rows | {INSTRUCTION_KEY: np.array([self.meta.tasks[task] for task in tasks], dtype=str)}

    def _observation(self, feature: Feature, videos: dict[Path, VideoIndex]) -> Rows:
        if feature.dtype == "video":
            return self._clip(feature.name, videos)
        if feature.dtype == "image":
            return ParquetImages(self.entry.data, feature.name, self.start, self.entry.length)
        if feature.dtype == "string":
            return read_texts(self.table, feature.name, self.where)
        if feature.dtype not in _DTYPES:
            raise DatasetError(
                f"{self.where} {feature.name} must be string, image, video or one of {_DTYPES}, got {feature.dtype}; "
                "convert or remove it"
            )
        return self._numbers(feature.name, feature.shape or (1,), feature.dtype)

    def _clip(self, name: str, videos: dict[Path, VideoIndex]) -> Rows:
        clip = self.entry.clips[name]
        if clip.path not in videos:
            videos[clip.path] = index_video(clip.path)
        times = self._numbers("timestamp", (1,), "float64").reshape(-1)
        return cut_clip(videos[clip.path], times, (clip.start, clip.end), self.meta.fps, f"{self.where} {name}")

    def _optional(self, name: str, dtype: str) -> np.ndarray | None:
        if name not in self.meta.features:
            return None
        values = self._numbers(name, (1,), "float64").reshape(-1)
        return values if dtype == "float64" else values > 0

    def _numbers(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return read_numbers(self.table, name, shape, dtype, self.where)


def _episode(read: _Read, labels: Labels) -> Episode:
    return Episode(
        observations=read.observations,
        actions=read.actions,
        rewards=labels.rewards,
        terminations=labels.terminations,
        truncations=labels.truncations,
        success=labels.success,
        source=read.marks.source,
        has_final_observation=False,
    )


def _spec(key: str, rows: Rows, observed: Mapping[str, Feature]) -> ObservationSpec:
    spec = derive_observation(key, rows)
    names = observed[key].elements if key in observed else ()
    return replace(spec, elements=names) if spec.kind == "state" and names else spec


def _notes(meta: Meta, observed: Mapping[str, Feature]) -> tuple[str, ...]:
    used = {
        _ACTION,
        *(each.name for each in observed.values()),
        *(name for name, _ in _LABELS),
        *_NEEDED,
        _TASK,
        "index",
    }
    left = [f"{name} (depth)" if each.is_depth else name for name, each in meta.features.items() if name not in used]
    notes = [f"columns that are no {_PREFIX}* and no label are left out: {', '.join(left)}"] if left else []
    total, listed = meta.info.get("total_episodes"), len(meta.episodes)
    if total != listed:
        notes.append(f"info.json speaks of {total} episodes, but the meta folder lists {listed}: these were read")
    return tuple(notes)
