"""The loading benchmark: what its contestants read, and what it makes of their figures; no peer's package is needed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import minari
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import loading  # noqa: E402  # pyright: ignore[reportMissingImports]
import loading_worker  # noqa: E402  # pyright: ignore[reportMissingImports]

from qtransformer_datasets.formats import open_dataset  # noqa: E402

NUMBERS = {"episodes": 3, "steps": 9, "states": 4, "actions": 2}
IMAGES = {"episodes": 2, "steps": 7, "side": 8, "channels": 3, "states": 4, "actions": 2}


def options(log):
    return argparse.Namespace(log=log, batch=5, segment=6)


def test_minari_and_we_read_the_same_log(tmp_path):
    log = loading.write_numbers(tmp_path / "log", NUMBERS)
    theirs, ours = minari.MinariDataset(log / "data"), open_dataset(log)
    assert (theirs.total_steps, ours.num_steps) == (27, 27)
    for index in range(3):
        np.testing.assert_array_equal(theirs[index].observations, ours.episodes[index].observations["state"])
        np.testing.assert_array_equal(theirs[index].actions, ours.episodes[index].actions)


def test_contestants_draw_batches_of_one_size(tmp_path):
    log = loading.write_numbers(tmp_path / "log", NUMBERS)
    theirs, ours = loading_worker.minari_episodes(options(log))(), loading_worker.ours(options(log))()
    assert theirs["actions"].shape == ours.actions.shape == (5, 6, 2)
    assert theirs["observations"].shape == ours.observations["state"].shape == (5, 7, 4)


def test_a_window_of_an_episode_is_one(tmp_path):
    log = loading.write_numbers(tmp_path / "log", NUMBERS)
    episode, generator = minari.MinariDataset(log / "data")[0], np.random.default_rng(0)
    starts = set()
    for _ in range(50):
        window = loading_worker.cut_episode(episode, 6, generator)
        start = int(np.flatnonzero((episode.actions == window["actions"][0]).all(axis=1))[0])
        np.testing.assert_array_equal(window["observations"], episode.observations[start : start + 7])
        np.testing.assert_array_equal(window["actions"], episode.actions[start : start + 6])
        starts.add(start)
    assert starts == {0, 1, 2, 3}


def test_the_robomimic_style_reader_reads_what_we_read(tmp_path, capsys):
    log = loading.write_images(tmp_path / "log.hdf5", IMAGES)
    ours, theirs = loading_worker.ours(options(log))(), loading_worker.robomimic_style(options(log))()
    assert "memory map" in capsys.readouterr().err
    assert ours.observations["camera"].shape == (5, 7, 8, 8, 3)
    assert theirs["obs/camera"].shape == (5, 6, 8, 8, 3)
    known = {
        frame.tobytes() for each in open_dataset(log).episodes for frame in np.asarray(each.observations["camera"][:])
    }
    for batch in (ours.observations["camera"], theirs["obs/camera"]):
        assert {frame.tobytes() for frame in batch.reshape(-1, 8, 8, 3)} <= known
    for camera, actions in zip(theirs["obs/camera"], theirs["actions"], strict=True):  # padded together
        same = [(camera[k] == camera[k + 1]).all() for k in range(5)]
        assert same == [(actions[k] == actions[k + 1]).all() for k in range(5)]


def test_memory_as_the_system_tells_it(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t 4096 kB\nRssAnon:\t 1024 kB\nRssFile:\t 512 kB\n")
    assert loading_worker.memory_megabytes(status) == {"own": 1.0, "mapped_files": 0.5, "peak": 4.0}
    assert loading_worker.memory_megabytes()["own"] > 1


class FakeWorker:
    """Takes a known time for each batch, and a megabyte more each time it is asked."""

    def __init__(self, seconds):
        self.seconds, self.megabytes, self.asked = seconds, 10.0, []

    def call(self, handler, **arguments):
        self.asked.append((handler, arguments))
        if handler == "seconds":
            return self.seconds
        self.megabytes += 1
        return {"own": self.megabytes, "mapped_files": 0.0, "peak": self.megabytes}


def test_a_race_counts_segments_and_ratios():
    workers = {"ours": FakeWorker(0.001), "theirs": FakeWorker(0.128)}
    result = loading.race(workers, 3)
    assert result["segments_per_second"] == {"ours": 256_000, "theirs": 2000}
    assert result["ratio_to"] == {"theirs": {"median": 128, "min": 128, "max": 128}}
    assert loading.growth(result["megabytes"]["theirs"]) == 1
    turns = [arguments["repeats"] for handler, arguments in workers["ours"].asked if handler == "seconds"]
    assert turns == [2, 500, 500, 500]


def part(rate, grown=0.0, **others):
    memory = {"ours": {"before": {"own": 5.0}, "after": {"own": 5.0 + grown}}}
    ratio = {name.replace("_", " "): {"median": value} for name, value in others.items()}
    return {"segments_per_second": {"ours": rate}, "ratio_to": ratio, "megabytes": memory}


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"rate": 99_999}, ["numbers: at least 100000 segments/s"]),
        ({"minari": 19.9}, ["numbers: at least 20x minari"]),
        ({"d3rlpy_segments": 19.9}, ["numbers: at least 20x d3rlpy segments"]),
        ({"robomimic_style": 4.9}, ["images: at least 5x robomimic style"]),
        ({"grown": 20.0}, ["numbers: own memory grows less than 20 MB"]),
    ],
)
def test_verdicts(changes, broken):
    settings = {"rate": 100_000, "minari": 20, "d3rlpy_segments": 20, "grown": 0.0, "robomimic_style": 5} | changes
    images = part(1, robomimic_style=settings.pop("robomimic_style"))
    kept = loading.verdicts(part(**settings), images)
    assert [name for name, is_kept in kept.items() if not is_kept] == broken
    assert len(kept) == 6
