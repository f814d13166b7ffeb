"""Doing a run again: the same bits from the same settings and data, and clear words where that cannot be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from dataset_fixtures import make_episode
from learner_fixtures import assert_same_bits, make_config, write_log

from qtransformer.checkpoint import Checkpoint, load_checkpoint
from qtransformer.cli import main
from qtransformer.config import RunError
from qtransformer.provenance import sessions
from qtransformer.rerun import compare, rerun
from qtransformer.training import train


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("rerun") / "log")


@pytest.fixture(scope="module")
def run(log):
    return train(make_config(dataset=log, out=log.parent / "run", steps=6, log_every=3, checkpoint_every=4))


def test_the_same_bits_again(run, tmp_path, capsys):
    assert main(["rerun", str(run), "--out", str(tmp_path / "again")]) == 0
    sentence = "bit-equal: every tensor of update 6, those of the optimizer included"
    assert capsys.readouterr().out == f"{tmp_path / 'again'}: {sentence}\n"
    assert_same_bits(load_checkpoint(run).weights, load_checkpoint(tmp_path / "again").weights)


def test_a_result_that_differs_is_said_and_ends_with_status_one(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("qtransformer.training.torch.manual_seed", lambda seed: torch.default_generator.manual_seed(9))
    with pytest.raises(SystemExit) as ended:
        main(["rerun", str(run), "--out", str(tmp_path / "again")])
    assert ended.value.code == 1
    assert "not bit-equal: " in capsys.readouterr().out


def test_its_folder_is_beside_the_run_unless_named(log, tmp_path):
    run = train(make_config(dataset=log, out=tmp_path / "run", steps=1))
    assert main(["rerun", str(run)]) == 0
    assert load_checkpoint(tmp_path / "run_again").info["step"] == 1


def test_other_data_is_refused_before_anything_is_trained(run, tmp_path):
    other = write_log(tmp_path / "other", [make_episode(6)])
    with pytest.raises(RunError, match=r"other: fingerprint \(\w{12}\) must be that of the run's log, \w{12}; give"):
        rerun(run, tmp_path / "again", other)
    assert not (tmp_path / "again").exists()


def test_a_log_that_moved_is_found_with_a_flag(run, log, tmp_path):
    moved = shutil.copytree(log, tmp_path / "moved")
    assert main(["rerun", str(run), "--out", str(tmp_path / "again"), "--dataset", str(moved)]) == 0


def test_a_run_that_is_not_finished_is_refused(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "step_000000006")
    with pytest.raises(RunError, match=r"must be finished, got 4 of 6 updates; --resume it first"):
        rerun(copy, tmp_path / "again")


def test_a_run_of_two_lengths_is_refused(log, tmp_path):
    config = make_config(dataset=log, out=tmp_path / "run", steps=2)
    train(config)
    train(replace(config, steps=4, resume=True))
    assert [each["first_step"] for each in sessions(tmp_path / "run")] == [0, 2]
    with pytest.raises(RunError, match=r"was trained with --steps 2 and then 4, and the learning rate follows"):
        rerun(tmp_path / "run", tmp_path / "again")


def test_what_changed_since_is_said(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (session,) = sessions(copy)
    session["versions"]["torch"], session["num_processes"] = "1.0", 2
    document = {"sessions": [{**session, "git_revision": "0" * 40, "changes": "changes-0.diff"}]}
    (copy / "run.json").write_text(json.dumps(document))
    rerun(copy, tmp_path / "again")
    said = capsys.readouterr().err
    assert f"not as it was: torch 1.0, now {torch.__version__}" in said
    assert f"not as it was: git revision {'0' * 40}, now " in said
    assert "not as it was: number of processes 2, now 1" in said
    assert f"not as it was: the code had the changes in {copy / 'changes-0.diff'}" in said


def test_differences_are_counted_by_bits(tmp_path, monkeypatch):
    left = {"same": torch.tensor([1.0, torch.nan]), "sign": torch.tensor(0.0), "far": torch.tensor([1, 2]),
            "shape": torch.zeros(2), "left": torch.zeros(1)}  # fmt: skip
    right = {"same": torch.tensor([1.0, torch.nan]), "sign": torch.tensor(-0.0), "far": torch.tensor([1, 5]),
             "shape": torch.zeros(3), "right": torch.zeros(1)}  # fmt: skip
    monkeypatch.setattr(Checkpoint, "training_tensors", lambda self: {})
    found = compare(Checkpoint(tmp_path, {}, left), Checkpoint(tmp_path, {}, right))
    assert found == {"far": 3.0, "left": torch.inf, "right": torch.inf, "shape": torch.inf, "sign": 0.0}
