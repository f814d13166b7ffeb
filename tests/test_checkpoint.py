"""Checkpoints: what is written comes back, a crash at any point leaves the older ones, damage is named."""

from __future__ import annotations

import hashlib
import json
import re
import resource
from pathlib import Path

import pytest
import torch
from learner_fixtures import assert_same_bits

import qtransformer
import qtransformer_datasets
import qtransformer_envs
from qtransformer import checkpoint as module
from qtransformer.checkpoint import (
    CheckpointError,
    checkpoint_folders,
    discard,
    finish_checkpoint,
    load_checkpoint,
    save_checkpoint,
    set_aside_newer,
    share_name,
    share_of,
    write_files,
)

WEIGHTS = {"a.weight": torch.randn(3, 2), "a.bias": torch.tensor(1.5), "ids": torch.arange(3)}
TRAINING = {"optimizer.0.exp_avg": torch.randn(3, 2), "num_updates": torch.tensor(7)}


def save(run, step=10, **info):
    return save_checkpoint(run, {"step": step, "config": {"x": [1, None, "é"]}, **info}, WEIGHTS, TRAINING)


def test_round_trip(tmp_path):
    folder = save(tmp_path)
    assert folder == tmp_path / "checkpoints" / "step_000000010"
    for path in (tmp_path, folder):  # the run, or one checkpoint of it
        read = load_checkpoint(path)
        assert read.path == folder
        assert_same_bits(dict(sorted(WEIGHTS.items())), dict(sorted(read.weights.items())))
        assert_same_bits(dict(sorted(TRAINING.items())), dict(sorted(read.training_tensors().items())))
        assert (read.info["step"], read.info["config"]) == (10, {"x": [1, None, "é"]})
        assert {"python", "torch", "numpy", "qtransformer"} <= set(read.info["versions"])
        assert read.info["format_version"] == module.FORMAT_VERSION


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 90, 100, 1000):
        save(tmp_path, step)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step_000000100", "step_000001000"]
    assert load_checkpoint(tmp_path).info["step"] == 1000


def test_a_step_can_be_written_again(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 10, config="second")
    assert load_checkpoint(tmp_path).info["config"] == "second"


def test_a_half_written_checkpoint_is_ignored_and_replaced(tmp_path):
    save(tmp_path, 10)
    leftover = tmp_path / "checkpoints" / "step_000000020.writing"
    leftover.mkdir()
    (leftover / "weights.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path).info["step"] == 10
    save(tmp_path, 20)
    assert load_checkpoint(tmp_path).info["step"] == 20
    assert not leftover.exists()


def test_a_crash_while_writing_leaves_the_older_one(tmp_path, monkeypatch):
    save(tmp_path, 10)

    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fsync", crash)  # everything is written, nothing renamed
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 20)
    assert load_checkpoint(tmp_path).info["step"] == 10


def test_everything_is_on_the_disk_before_the_rename_and_the_new_name_after_it(tmp_path, monkeypatch):
    synced, folder = [], tmp_path / "checkpoints"
    monkeypatch.setattr(module, "fsync", lambda path: synced.append((path, (folder / "step_000000010").exists())))
    final = save(tmp_path)
    beside = folder / "step_000000010.writing"
    names = ("weights.safetensors", "training_0.safetensors", "checkpoint.json", "SHA256SUMS")
    assert synced[:-2] == [(beside / name, False) for name in names]
    assert synced[-2:] == [(beside, False), (final.parent, True)]


def test_a_full_disk_is_explained_and_leaves_the_older_one(tmp_path):
    save(tmp_path, 10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"step_000000020: cannot be written .*; free space or choose another"
        ):
            save_checkpoint(tmp_path, {"step": 20}, {"large": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(tmp_path).info["step"] == 10
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000000010"]  # the rest was removed


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path)


def test_no_checkpoint(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=r"holds no checkpoint; give the --out folder"):
            load_checkpoint(path)


def test_another_format_version(tmp_path):
    path = save(tmp_path) / "checkpoint.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format_version": 99, "versions": {"qtransformer": "7.1"}}))
    with pytest.raises(
        CheckpointError, match=rf"checkpoint format \(99\) must be {module.FORMAT_VERSION}; open it with q\w+ 7\.1"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", '{"format_ver', "{}", "[]", "null", "\x00" * 40])
def test_a_damaged_description(tmp_path, content):
    (save(tmp_path) / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: is damaged .*, and no other is there; take a copy"):
        load_checkpoint(tmp_path)


FILES = ["weights.safetensors", "training_0.safetensors", "checkpoint.json", "SHA256SUMS"]


def damage(path, how):
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"missing": b"", "cut": content[:-3], "empty": b"", "noise": b"\xff" * 100, "bit": flipped}[how])
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "cut", "empty", "noise", "bit"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, capsys, name, how):
    save(tmp_path, 10)
    damage(save(tmp_path, 20) / name, how)
    assert load_checkpoint(tmp_path).info["step"] == 10
    said = capsys.readouterr().err
    assert re.fullmatch(r"skipped: .*step_000000020/\S+: is .*damaged .*\); the one before is used\n", said)
    damage(tmp_path / "checkpoints" / "step_000000010" / name, how)
    with pytest.raises(CheckpointError, match=r"step_000000010/.* is .*damaged .*, and no other is there; take a copy"):
        load_checkpoint(tmp_path)


def test_the_sums_are_those_of_sha256sum(tmp_path):
    lines = (save(tmp_path) / "SHA256SUMS").read_text().splitlines()
    folder = tmp_path / "checkpoints" / "step_000000010"
    expected = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in sorted(FILES[:3])]
    assert sorted(lines) == sorted(expected)


@pytest.mark.parametrize("number", [None, "2", 1.0])
def test_a_number_of_shares_that_is_none(tmp_path, number):
    path = save(tmp_path) / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_shares": number}))
    with pytest.raises(CheckpointError, match=r"is damaged \(num_shares must be a whole number\)"):
        load_checkpoint(tmp_path)


def test_shares_by_hand():
    sizes = {"a": 1, "b": 5, "c": 3, "d": 3, "e": 2}
    tensors = {name: torch.zeros(size) for name, size in sizes.items()}
    assert [list(share_of(tensors, number, 2, taken=0)) for number in range(2)] == [["b", "e"], ["c", "d", "a"]]
    assert [list(share_of(tensors, number, 2, taken=4 * 6)) for number in range(2)] == [["d", "a"], ["b", "c", "e"]]
    assert share_of(dict(reversed(tensors.items())), 0, 2, taken=0).keys() == {"b", "e"}  # whatever the order
    assert share_of(tensors, 0, 1, taken=7).keys() == sizes.keys()
    assert share_of(tensors, 9, 10, taken=10**6) == {}


def write_shares(run, num_shares, step=10):
    """Writes what so many ranks would, the last one first; returns the lines of all."""
    shares = [share_of(TRAINING, number, num_shares, taken=0) for number in range(num_shares)]
    files = [{share_name(number): share} for number, share in enumerate(shares)]
    return [line for each in [*files[::-1], {"weights.safetensors": WEIGHTS}] for line in write_files(run, step, each)]


def test_shares_of_several_ranks_are_read_together(tmp_path):
    folder = finish_checkpoint(tmp_path, {"step": 10}, write_shares(tmp_path, 3))
    assert len(list(folder.iterdir())) == 6
    assert load_checkpoint(tmp_path).training_tensors().keys() == TRAINING.keys()
    finish_checkpoint(tmp_path, {"step": 20}, write_shares(tmp_path, 3, 20))
    for how in ("missing", "bit"):
        damage(tmp_path / "checkpoints" / "step_000000020" / "training_1.safetensors", how)
        assert load_checkpoint(tmp_path).info["step"] == 10
        finish_checkpoint(tmp_path, {"step": 20}, write_shares(tmp_path, 3, 20))


def test_what_a_killed_run_of_more_ranks_left_is_not_taken(tmp_path):
    write_shares(tmp_path, 3)
    folder = finish_checkpoint(tmp_path, {"step": 10}, write_shares(tmp_path, 2))
    assert not (folder / "training_2.safetensors").exists()
    assert load_checkpoint(tmp_path).training_tensors().keys() == TRAINING.keys()


def test_what_cannot_be_finished_is_removed(tmp_path):
    save(tmp_path)
    write_shares(tmp_path, 2, 20)
    discard(tmp_path, 20)
    discard(tmp_path, 30)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000000010"]


def test_a_policy_alone(tmp_path):
    folder = save_checkpoint(tmp_path, {"step": 10}, WEIGHTS)
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "checkpoint.json", "weights.safetensors"]
    assert load_checkpoint(tmp_path).training_tensors() == {}


def test_newer_ones_are_set_aside(tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
    set_aside_newer(tmp_path, 20)
    set_aside_newer(tmp_path, 10)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step_000000010"]
    assert (tmp_path / "checkpoints" / "step_000000020.damaged").is_dir()
    save(tmp_path, 20)
    set_aside_newer(tmp_path, 10)  # a second time
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step_000000010"]


def test_one_that_cannot_be_set_aside(tmp_path, monkeypatch):
    save(tmp_path)

    def refuse(self, target):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match=r"is damaged, and cannot be renamed \(.*Read-only.*\); remove it"):
        set_aside_newer(tmp_path, 5)


def test_no_pickle_in_our_packages():
    files = [
        file
        for package in (qtransformer, qtransformer_envs, qtransformer_datasets)
        for file in Path(str(package.__file__)).parent.rglob("*.py")
    ]
    loads = r"torch\.load\((?!.*weights_only=True)"  # that reads tensors alone and runs nothing
    found = re.compile(rf"import pickle|import (dill|joblib)|{loads}|torch\.save\(|allow_pickle=True")
    assert [str(file) for file in files if found.search(file.read_text())] == []
    assert len(files) > 20
