"""What the `meta` folder of a LeRobot dataset says: features, tasks, and where each episode lies.

Special about this file: versions 2 and 3 give the same result. Paths and their templates come from strangers: a
template may fill in its own fields and nothing else, and a path that leads out of the dataset's folder is refused.
Their statistics are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from ..schema import DatasetError
from .parquet import column_names, read_table

INFO_NAME = "meta/info.json"
OLD_INFO_NAME = "meta_data/info.json"  # version 1
_TASK_COLUMNS = ("task", "__index_level_0__")  # pandas keeps the tasks as the index, with or without a name
_TEMPLATE_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
_VERSION = re.compile(r"v([23])(\.\d+)*")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Feature:
    """A column of the log, as info.json describes it."""

    name: str
    dtype: str  # numpy's, or "string", "image", "video"
    shape: tuple[int, ...]
    elements: tuple[str, ...]  # a name for each element; empty where info.json's names do not fit
    is_depth: bool


@dataclass(frozen=True)
class Clip:
    """A part of a video file; seconds, and no end where the file is the episode's alone."""

    path: Path
    start: float
    end: float | None


@dataclass(frozen=True)
class EpisodeEntry:
    """Where an episode's rows and frames are."""

    index: int
    length: int
    data: Path
    clips: Mapping[str, Clip]


@dataclass(frozen=True)
class Meta:
    """All that the `meta` folder says."""

    info: Mapping[str, Any]
    fps: float
    features: Mapping[str, Feature]
    tasks: Mapping[int, str]
    episodes: tuple[EpisodeEntry, ...]


def read_meta(root: Path) -> Meta:
    """Returns what the `meta` folder of a dataset says, episodes in the order of their index.

    Raises:
        DatasetError: the version is not known, a file is missing or damaged, or a path leads out of the folder.
    """
    if not (root / INFO_NAME).exists():
        raise DatasetError(f"{root / OLD_INFO_NAME} is of LeRobot version 1, {_UPDATE}")
    info = _read_json(inside(root, INFO_NAME))
    where = str(root / INFO_NAME)
    version = _VERSION.fullmatch(value_of(info, "codebase_version", str, where))
    if version is None:
        raise DatasetError(f"{where}: codebase_version must be v2.x or v3.x, got {info['codebase_version']}; {_UPDATE}")
    fps = float(value_of(info, "fps", int | float, where))
    if not 0 < fps < 1e6:
        raise DatasetError(f"{where}: fps must be positive, got {fps:g}; correct it")
    described = value_of(info, "features", dict, where)
    features = {name: _feature(name, each, where) for name, each in described.items()}
    reader = _Episodes2(root, info, features) if version[1] == "2" else _Episodes3(root, info, features)
    episodes = sorted(reader.entries(), key=lambda entry: entry.index)
    twice = next((a.index for a, b in pairwise(episodes) if a.index == b.index), None)
    if twice is not None or not episodes:
        found = "none" if twice is None else f"episode {twice} twice"
        raise DatasetError(f"{root / 'meta'} must list each episode once, got {found}; record or convert it again")
    return Meta(info, fps, features, reader.tasks(), tuple(episodes))


def inside(root: Path, relative: str) -> Path:
    """Returns the path of a file in a dataset's folder.

    Raises:
        DatasetError: it leads out of the folder, by itself or through a link.
    """
    try:
        target, folder = (root / relative).resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise DatasetError(f"{root}: {relative!r} is no path ({error}); correct info.json") from error
    if not target.is_relative_to(folder):
        raise DatasetError(
            f"{root}: {relative!r} leads out of the dataset's folder, to {target}, and is not read; if it is a link "
            "into a download cache, copy the dataset with its links resolved (cp -rL)"
        )
    return root / relative


def value_of(record: Mapping[str, Any], key: str, kind: type[Value] | Any, where: str) -> Any:
    """Returns a value of a record that came from a file.

    Raises:
        DatasetError: it is missing or of another kind.
    """
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = getattr(kind, "__name__", str(kind))
        raise DatasetError(f"{where}: {key} must be {expected}, got {value!r}; repair it or convert the dataset again")
    return value


_UPDATE = "which is not read; convert it to v2.1 or v3.0 with the scripts in LeRobot's own repository"


class _Episodes2:
    """Version 2: tasks.jsonl, episodes.jsonl, and files of their own for each episode."""

    def __init__(self, root: Path, info: Mapping[str, Any], features: Mapping[str, Feature]) -> None:
        self._root, self._info, self._features = root, info, features

    def tasks(self) -> dict[int, str]:
        return {
            value_of(record, "task_index", int, where): value_of(record, "task", str, where)
            for where, record in _read_lines(inside(self._root, "meta/tasks.jsonl"))
        }

    def entries(self) -> Iterator[EpisodeEntry]:
        where = f"{self._root / INFO_NAME}"
        size = value_of(self._info, "chunks_size", int, where)
        if size < 1:
            raise DatasetError(f"{where}: chunks_size must be at least 1, got {size}; a usual value is 1000")
        for place, record in _read_lines(inside(self._root, "meta/episodes.jsonl")):
            index, length = (_count(record, name, place) for name in ("episode_index", "length"))
            fields = {"episode_index": index, "episode_chunk": index // size}
            data = _fill(self._root, self._info, "data_path", fields)
            clips = {
                name: Clip(_fill(self._root, self._info, "video_path", {**fields, "video_key": name}), 0.0, None)
                for name in video_names(self._features)
            }
            yield EpisodeEntry(index, length, data, clips)


class _Episodes3:
    """Version 3: tables, and many episodes in one file."""

    def __init__(self, root: Path, info: Mapping[str, Any], features: Mapping[str, Feature]) -> None:
        self._root, self._info, self._features = root, info, features

    def tasks(self) -> dict[int, str]:
        path = inside(self._root, "meta/tasks.parquet")
        named = next((name for name in column_names(path) if name in _TASK_COLUMNS), _TASK_COLUMNS[0])
        return {
            value_of(record, "task_index", int, str(path)): value_of(record, named, str, str(path))
            for record in read_table(path, ["task_index", named]).to_pylist()
        }

    def entries(self) -> Iterator[EpisodeEntry]:
        videos = video_names(self._features)
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        columns += [f"videos/{name}/{part}" for name in videos for part in parts]
        for path in sorted((self._root / "meta" / "episodes").glob("*/*.parquet")):
            table = read_table(inside(self._root, str(path.relative_to(self._root))), columns)
            for row, record in enumerate(table.to_pylist()):
                yield self._entry(record, videos, f"{path} row {row}")

    def _entry(self, record: Mapping[str, Any], videos: list[str], where: str) -> EpisodeEntry:
        index, length = (_count(record, name, where) for name in ("episode_index", "length"))
        clips = {name: self._clip(record, name, where) for name in videos}
        fields = {name: _count(record, f"data/{name}", where) for name in ("chunk_index", "file_index")}
        return EpisodeEntry(index, length, _fill(self._root, self._info, "data_path", fields), clips)

    def _clip(self, record: Mapping[str, Any], name: str, where: str) -> Clip:
        fields = {part: _count(record, f"videos/{name}/{part}", where) for part in ("chunk_index", "file_index")}
        path = _fill(self._root, self._info, "video_path", {**fields, "video_key": name})
        start, end = (
            float(value_of(record, f"videos/{name}/{part}", int | float, where))
            for part in ("from_timestamp", "to_timestamp")
        )
        return Clip(path, start, end)


def video_names(features: Mapping[str, Feature]) -> list[str]:
    """Returns the features that lie in video files and are read."""
    return [each.name for each in features.values() if each.dtype == "video" and not each.is_depth]


def _feature(name: str, described: Any, where: str) -> Feature:
    where = f"{where} feature {name}"
    if not isinstance(described, dict):
        raise DatasetError(f"{where} must be an object with dtype and shape, got {described!r}; repair it")
    shape = value_of(described, "shape", list, where)
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise DatasetError(f"{where}: shape must hold positive integers, got {shape}; repair it")
    details = {**_dict(described.get("video_info")), **_dict(described.get("info"))}
    is_depth = any(details.get(key) is True for key in ("is_depth_map", "video.is_depth_map"))
    dtype = value_of(described, "dtype", str, where)
    return Feature(name, dtype, tuple(shape), _elements(described.get("names"), shape), is_depth)


def _elements(names: Any, shape: list[int]) -> tuple[str, ...]:
    """Returns a name for each element from a list, or from a dict of lists ({"motors": [...]}), where they fit."""
    lists = list(names.values()) if isinstance(names, dict) else [names]
    flat = [name for each in lists if isinstance(each, list) for name in each]
    fits = len(shape) == 1 and len(flat) == shape[0] == len({str(name) for name in flat})
    return tuple(str(name) for name in flat) if fits else ()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(record: Mapping[str, Any], key: str, where: str) -> int:
    count = value_of(record, key, int, where)
    if count < 0:
        raise DatasetError(f"{where}: {key} must not be negative, got {count}; repair it or convert the dataset again")
    return count


def _fill(root: Path, info: Mapping[str, Any], key: str, fields: Mapping[str, int | str]) -> Path:
    """Returns the path that a template of info.json gives, with its fields filled in."""
    where = f"{root / INFO_NAME}"
    template = value_of(info, key, str, where)
    known = [match[1] in fields for match in _TEMPLATE_FIELD.finditer(template)]
    if not all(known) or set("{}") & set(_TEMPLATE_FIELD.sub("", template)):
        raise DatasetError(f"{where}: {key} must use the fields {sorted(fields)} alone, got {template!r}; correct it")
    return inside(root, _TEMPLATE_FIELD.sub(lambda match: str(fields[match[1]]).zfill(int(match[2] or 0)), template))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON ({error}); repair it or fetch it again") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path} must hold a JSON object, got {type(value).__name__}; repair it or fetch it again")
    return value


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each line's place and record."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [(f"{path} line {number}", json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON, one object a line ({error}); fetch it again") from error
    wrong = next((where for where, record in records if not isinstance(record, dict)), None)
    if wrong is not None:
        raise DatasetError(f"{wrong} must be a JSON object; repair it or fetch it again")
    yield from records
