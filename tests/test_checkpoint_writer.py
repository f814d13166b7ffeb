"""Checkpoints in the background: the content is that of the call, one goes after the other, failures come to light."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event

import pytest
import torch
import writer_children
from learner_fixtures import assert_same_bits
from rank_fixtures import start_ranks
from writer_children import TRAINING, WEIGHTS

from qtransformer import checkpoint_writer as module
from qtransformer.checkpoint import CheckpointError, checkpoint_folders, load_checkpoint, write_files
from qtransformer.checkpoint_writer import CheckpointWriter


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def save(writer, run, step, weights=WEIGHTS):
    writer.save(run, {"step": step}, weights, TRAINING, {"figures": torch.tensor([float(step)])})


@pytest.fixture
def gate(monkeypatch):
    """Holds every writing thread until it is set."""
    held = Event()

    def write(*arguments):
        assert held.wait(10)
        return write_files(*arguments)

    monkeypatch.setattr(module, "write_files", write)
    yield held
    held.set()


def test_what_is_written_is_what_was_there_at_the_call(tmp_path, gate):
    weights = {name: each.clone() for name, each in WEIGHTS.items()}
    with CheckpointWriter() as writer:
        save(writer, tmp_path, 1, weights)
        weights["weight"].zero_()  # as the next update does
        writer.check()  # nothing is ready, nothing waits
        assert not checkpoint_folders(tmp_path)
        gate.set()
        writer.wait()
        read = load_checkpoint(tmp_path)
        assert_same_bits(read.weights, WEIGHTS)
        training = {**TRAINING, "figures": torch.tensor([1.0])}
        assert_same_bits(dict(sorted(read.training_tensors().items())), dict(sorted(training.items())))
        save(writer, tmp_path, 2, weights)
        writer.wait()
    assert_same_bits(load_checkpoint(tmp_path).weights, weights)


def test_one_waits_for_the_one_before_and_the_end_for_the_last(tmp_path, monkeypatch):
    finish, order = module.finish_checkpoint, []
    monkeypatch.setattr(
        module, "finish_checkpoint", lambda *each: (time.sleep(0.05), order.append("written"), finish(*each))
    )
    with CheckpointWriter() as writer:
        for step in (1, 2):
            save(writer, tmp_path, step)
            order.append("saved")
    assert order == ["saved", "written", "saved", "written"]
    assert names(tmp_path) == ["step_000000001", "step_000000002"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_ends_training_lets_the_checkpoint_be_written(tmp_path, gate, error):
    def train():
        with CheckpointWriter() as writer:
            save(writer, tmp_path, 1)
            gate.set()
            raise error

    with pytest.raises(error):
        train()
    assert names(tmp_path) == ["step_000000001"]


@pytest.mark.parametrize("ask", ["check", "wait", "save"])
def test_a_failure_comes_to_light_and_leaves_the_older_one(tmp_path, monkeypatch, ask):
    with CheckpointWriter() as writer:
        save(writer, tmp_path, 1)
        writer.wait()
        monkeypatch.setattr(Path, "rename", refuse)
        save(writer, tmp_path, 2)
        with pytest.raises(CheckpointError, match=r"step_000000002: cannot be written \(.*No space.*\); free space or"):
            again_and_again(lambda: save(writer, tmp_path, 3) if ask == "save" else getattr(writer, ask)())
    assert names(tmp_path) == ["step_000000001"]


def again_and_again(ask):
    for _ in range(1000):
        ask()
        time.sleep(0.005)


def refuse(self, target):
    raise OSError(28, "No space left on device")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork server")
@pytest.mark.parametrize(
    ("how", "statuses", "said"),
    [
        ("well", [0, 0], ["", ""]),
        ("full", [0, 0], ["step_000000002: cannot be written (", "step_000000002: cannot be written ("]),
        ("killed", [0, -9], ["one of the 2 ranks has ended without a word", ""]),
    ],
)
def test_two_ranks_write_one_checkpoint_or_none(tmp_path, how, statuses, said):
    started = start_ranks(writer_children.write, tmp_path, how)
    assert [each.wait() for each in started] == statuses
    step = 2 if how == "well" else 1
    expected = [f"step_{each:09d}" for each in range(1, step + 1)]
    assert [each.name for each in checkpoint_folders(tmp_path)] == expected
    read = load_checkpoint(tmp_path)
    assert read.info["num_shares"] == 2
    assert_same_bits(read.weights, {name: each + step for name, each in WEIGHTS.items()})
    training = {**{name: each + step for name, each in TRAINING.items()}, "figures": torch.tensor([0.0])}
    assert_same_bits(dict(sorted(read.training_tensors().items())), dict(sorted(training.items())))
    words = [(path.read_text() if path.exists() else "") for path in (tmp_path / f"{rank}.said" for rank in range(2))]
    assert any(words) == any(said)
    if how == "full":
        assert names(tmp_path) == expected  # nothing half-written
        assert any("CheckpointError" in each and said[0] in each for each in words)
    elif how == "killed":
        assert said[0] in words[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork server")
def test_notes_between_ranks(tmp_path):
    assert [each.wait() for each in start_ranks(writer_children.leave_notes, tmp_path)] == [0, 0]
    assert (tmp_path / "gave up").exists()
