"""LeRobot datasets written from the layout alone, versions 2.1 and 3.0, from the same episodes.

Version 3 joins videos as LeRobot does: each episode is encoded by itself and its packets are copied behind the others.
"""

from __future__ import annotations

import io
import json
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from qtransformer_datasets.frames import Frames
from qtransformer_datasets.schema import Episode

FPS = 10
VERSIONS = ("v2.1", "v3.0")
INFO = "meta/info.json"
SIDE = 64  # the smallest frame that all encoders take
TEMPLATES = {
    "v2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3.0": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}
DATA = {"v2.1": "data/chunk-000/episode_{:06d}.parquet", "v3.0": "data/chunk-000/file-000.parquet"}
VIDEO = {
    "v2.1": "videos/chunk-000/observation.images.front/episode_{:06d}.mp4",
    "v3.0": "videos/observation.images.front/chunk-000/file-000.mp4",
}


def make_episode(num_steps=6, *, index=0, success=True, camera=False):
    """An episode whose numbers and colours say which episode and step they are of."""
    steps, ends = np.arange(num_steps), np.arange(num_steps) == num_steps - 1
    observations = {
        "state": np.stack([steps, np.full(num_steps, index)], axis=1).astype(np.float32),
        "speed": (steps[:, None] / 4).astype(np.float32),
        "instruction": np.array([f"task {index % 2}"] * num_steps),
    }
    if camera:
        observations["images/front"] = np.stack([picture(index, step) for step in steps])
    return Episode(
        observations=observations,
        actions=np.stack([steps / 10 - 0.5, np.full(num_steps, 0.25)], axis=1).astype(np.float32),
        rewards=ends * float(success),
        terminations=ends & success,
        truncations=ends & (not success),
        success=success,
        has_final_observation=False,
    )


def picture(index, step):
    """A frame with a bright column that moves with the step, on a ground that is the episode's."""
    pixels = np.full((SIDE, SIDE, 3), (60 * index % 240, 40, 120), np.uint8)
    pixels[:, 4 * (step % 16) : 4 * (step % 16) + 4] = 230
    return pixels


def bright_column(frame):
    """Which step a picture is of, modulo 16."""
    return int(frame[..., 1].mean(axis=0).reshape(16, 4).mean(axis=1).argmax())


def write(folder, version, episodes, *, labels=("reward", "done", "success"), cameras="video", codec="mpeg4", gop=3):
    """Writes a dataset of two episodes a file (version 3), with the columns next.* that `labels` names."""
    episodes = list(episodes)
    tasks = sorted({str(text) for episode in episodes for text in episode.observations["instruction"]})
    tables, start = [], 0
    for index, episode in enumerate(episodes):
        tables.append(_table(episode, index, start, tasks, labels, cameras))
        start += episode.num_steps
    videos = [key for key in _images(episodes[0]) if cameras == "video"]
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta/info.json").write_text(json.dumps(_info(version, episodes, labels, cameras), indent=1))
    (folder / "meta/stats.json").write_text("not read")
    writer = _write_v2 if version == "v2.1" else _write_v3
    writer(folder, episodes, tables, tasks, videos, codec, gop)
    return folder


def edit_table(path, change):
    """Rewrites a Parquet file: a function of each column that is named, None to remove it."""
    table = pq.read_table(path)
    for name, function in change.items():
        place = table.column_names.index(name)
        column = table.column(name)
        table = table.remove_column(place)
        if function is not None:
            values = function(column.to_pylist())
            table = table.add_column(place, name, pa.array(values) if isinstance(values, list) else values)
    pq.write_table(table, path)


def edit_json(path, change):
    """Changes values of a JSON object; None removes one."""
    record = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def four(camera=False, **changes):
    """Four episodes of 5 to 8 steps, the second of them no success."""
    return [make_episode(5 + i, index=i, success=i != 1, camera=camera, **changes) for i in range(4)]


def flags(*values):
    """A change for `edit_table`: these values, whatever was there."""
    return lambda _: list(values)


def frames_of(episode: Episode) -> Frames:
    frames = episode.observations["images/front"]
    assert isinstance(frames, Frames)
    return frames


def pictures_of(episode: Episode) -> np.ndarray:
    return np.asarray(episode.observations["images/front"][:])


def texts_of(episode: Episode, key="instruction"):
    return np.asarray(episode.observations[key]).tolist()


def edit_feature(folder, name, **change):
    """Changes the description of a feature, or adds one."""
    features = json.loads((folder / INFO).read_text())["features"]
    features[name] = {**features.get(name, {}), **change}
    edit_json(folder / INFO, {"features": features})


def encode(path, frames, codec="mpeg4", gop=3, options=None):
    """Writes an mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def join(path, parts):
    """Copies the packets of mp4 files one after another; returns the seconds where each begins, and the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as out:
        target, begins, count = None, [0.0], 0
        for part in parts:
            with av.open(str(part)) as container:
                source: Any = container.streams.video[0]
                target = target or out.add_stream_from_template(source)
                unit = source.time_base
                offset, here = int(Fraction(count, FPS) / unit), 0
                packet: Any
                for packet in container.demux(source):
                    if packet.size:
                        here += 1
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, target
                        out.mux(packet)
                count += here
                begins.append(count / FPS)
    return begins


def _write_v2(folder, episodes, tables, tasks, videos, codec, gop):
    (folder / "data/chunk-000").mkdir(parents=True)
    lines = [{"task_index": index, "task": task} for index, task in enumerate(tasks)]
    (folder / "meta/tasks.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    lines = [{"episode_index": i, "tasks": [], "length": each.num_steps} for i, each in enumerate(episodes)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    for index, (episode, table) in enumerate(zip(episodes, tables, strict=True)):
        pq.write_table(table, folder / DATA["v2.1"].format(index))
        for key in videos:
            path = folder / f"videos/chunk-000/observation.{_dotted(key)}/episode_{index:06d}.mp4"
            encode(path, episode.observations[key], codec, gop)


def _write_v3(folder, episodes, tables, tasks, videos, codec, gop):
    for name in ("data/chunk-000", "meta/episodes/chunk-000"):
        (folder / name).mkdir(parents=True)
    frame = pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": tasks})
    pq.write_table(frame, folder / "meta/tasks.parquet")
    records, start = [], 0
    for index, episode in enumerate(episodes):
        stop = start + episode.num_steps
        records.append({"episode_index": index, "length": episode.num_steps, "dataset_from_index": start})
        records[-1] |= {"dataset_to_index": stop, "data/chunk_index": 0, "data/file_index": index // 2}
        start = stop
    for first in range(0, len(episodes), 2):
        pq.write_table(
            pa.concat_tables(tables[first : first + 2]),
            folder / TEMPLATES["v3.0"][0].format(chunk_index=0, file_index=first // 2),
        )
        for key in videos:
            name = f"observation.{_dotted(key)}"
            parts = [folder / f"part_{each}.mp4" for each in range(first, min(first + 2, len(episodes)))]
            for part, episode in zip(parts, episodes[first:], strict=False):
                encode(part, episode.observations[key], codec, gop)
            begins = join(folder / f"videos/{name}/chunk-000/file-{first // 2:03d}.mp4", parts)
            for part, record, *bounds in zip(parts, records[first:], begins, begins[1:], strict=False):
                part.unlink()
                values = (0, first // 2, *bounds)
                fields = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
                record |= {f"videos/{name}/{field}": value for field, value in zip(fields, values, strict=True)}
    pq.write_table(pa.Table.from_pylist(records), folder / "meta/episodes/chunk-000/file-000.parquet")


def _table(episode, index, start, tasks, labels, cameras):
    T = episode.num_steps
    columns = {"action": _column(episode.actions)}
    for key, rows in episode.observations.items():
        if key == "instruction":
            continue
        if rows.dtype == np.uint8 and rows.ndim == 4:
            if cameras == "image":
                columns[f"observation.{_dotted(key)}"] = pa.array([{"bytes": png(row), "path": None} for row in rows])
        else:
            columns[f"observation.{key}"] = _column(rows)
    marks = {"reward": episode.rewards.astype(np.float32), "success": episode.terminations}
    marks["done"] = np.arange(T) == T - 1
    columns |= {f"next.{name}": pa.array(marks[name]) for name in labels}
    columns["timestamp"] = pa.array((np.arange(T) / FPS).astype(np.float32))
    columns |= {"frame_index": pa.array(range(T)), "episode_index": pa.array([index] * T)}
    columns |= {"index": pa.array(range(start, start + T))}
    columns["task_index"] = pa.array([tasks.index(str(text)) for text in episode.observations["instruction"]])
    return pa.table(columns)


def _column(rows):
    if rows.dtype.kind == "U":
        return pa.array(rows.tolist())
    if rows.shape[1:] == (1,):
        return pa.array(rows[:, 0])  # as LeRobot stores the shape (1,)
    return (
        pa.array(rows.tolist(), pa.list_(pa.from_numpy_dtype(rows.dtype)))
        if rows.ndim == 2
        else pa.array(rows.tolist())
    )


def png(pixels):
    """Returns a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _info(version, episodes, labels, cameras):
    features = {"action": {"dtype": "float32", "shape": [2], "names": {"motors": ["left", "right"]}}}
    for key, rows in episodes[0].observations.items():
        if key == "instruction":
            continue
        if rows.dtype == np.uint8 and rows.ndim == 4:
            names, dtype, shape = ["height", "width", "channels"], cameras, rows.shape[1:]
        else:
            dtype = "string" if rows.dtype.kind == "U" else str(rows.dtype)
            shape, names = rows.shape[1:] or (1,), ["x", "y"] if key == "state" else None
        features[f"observation.{_dotted(key)}"] = {"dtype": dtype, "shape": list(shape), "names": names}
    dtypes = {"reward": "float32", "done": "bool", "success": "bool"}
    features |= {f"next.{name}": {"dtype": dtypes[name], "shape": [1], "names": None} for name in labels}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    numbers = ("frame_index", "episode_index", "index", "task_index")
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in numbers}
    data, video = TEMPLATES[version]
    return {
        "codebase_version": version,
        "robot_type": "arm",
        "fps": FPS,
        "total_episodes": len(episodes),
        "chunks_size": 1000,
        "data_path": data,
        "video_path": video,
        "features": features,
    }


def _images(episode):
    return [key for key, rows in episode.observations.items() if rows.dtype == np.uint8 and rows.ndim == 4]


def _dotted(key):
    return key.replace("/", ".")
