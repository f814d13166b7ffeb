"""What the tests that end a training early share: whether two runs are the same, and when to kill one.

A child reports whatever it is about to do to a file of its run (`training_children`). A kill comes a moment after one
of these reports, so that the kills are spread over the whole run, however fast it is: some meet a checkpoint that is
half written, others the updates between two.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace

import numpy as np
from dataset_fixtures import make_episode, make_spec
from learner_fixtures import assert_same_bits, write_log
from training_children import STEPS

from qtransformer.batch import ObservationSpec
from qtransformer.checkpoint import checkpoint_folders, load_checkpoint

NUM_KILLS = 20
TIMED = ("updates_per_second", "data_share")
CAMERA = ObservationSpec("image/front", (16, 16, 3), "uint8", "image")
LONGEST_DELAY = 0.03


def write_seen_log(path):
    """Records episodes with a small camera; returns the folder."""
    spec, generator, episodes = make_spec(), np.random.default_rng(0), []
    for seed, length in enumerate((5, 7, 3, 9)):
        episode = make_episode(length, seed=seed, success=seed % 2 == 0)
        pictures = generator.integers(256, size=(length + 1, *CAMERA.shape), dtype=np.uint8)
        episodes.append(replace(episode, observations={CAMERA.name: pictures, **episode.observations}))
    return write_log(path, episodes, replace(spec, observations=(CAMERA, *spec.observations)))


def metrics(run):
    """Returns the lines of metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in each.items() if key not in TIMED} for each in lines]


def assert_same_run(left, right):
    """Fails unless weights, target network, optimizer, generators and metrics are the same, bit by bit."""
    for step in (STEPS - 2, STEPS):
        folders = [run / "checkpoints" / f"step_{step:09d}" for run in (left, right)]
        first, second = (load_checkpoint(folder) for folder in folders)
        assert_same_bits(first.weights, second.weights)
        assert_same_bits(first.training_tensors(), second.training_tensors())
        assert first.info["sampler"] == second.info["sampler"]
    assert metrics(left) == metrics(right)


def wait_for_step(out, step):
    """Waits until a checkpoint of this update or a later one is there."""
    while not any(int(each.name.removeprefix("step_")) >= step for each in checkpoint_folders(out)):
        time.sleep(0.002)


def count_reports(receiver):
    """Returns how many reports come until the child ends."""
    count = 0
    with contextlib.suppress(EOFError):
        while True:
            receiver.recv_bytes()
            count += 1
    return count


def kill_after(receiver, num_reports, delay, process):
    """Kills a process `delay` seconds after so many reports, unless all is over by then."""
    with contextlib.suppress(EOFError):
        for _ in range(num_reports):
            receiver.recv_bytes()
        time.sleep(delay)
    process.kill()
    process.join()


def state(out):
    """Returns how far a killed run had come."""
    folders = checkpoint_folders(out)
    if any(out.glob("checkpoints/*.writing")):
        return "saving"
    if not folders:
        return "begun" if (out / "config.json").exists() else "not begun"
    return "saved" if folders[-1].name == f"step_{STEPS:09d}" else "training"
