"""Runs: what they leave behind, that an interrupted one ends bit by bit like another, and what they refuse."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_fixtures import make_episode
from learner_fixtures import assert_same_bits, make_config, write_log

from qtransformer import ranks
from qtransformer.baselines import LEARNERS, BehaviourCloning
from qtransformer.checkpoint import CheckpointError, checkpoint_folders, load_checkpoint
from qtransformer.config import LearningConfig, RunError
from qtransformer.signals import Stopped
from qtransformer.training import build, load_dataset, train
from qtransformer_datasets.schema import DatasetError
from qtransformer_datasets.windows import SegmentSampler


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("training") / "log")


TIMED = ("updates_per_second", "data_share")


def make_run(log, out, **changes):
    settings = {"dataset": log, "out": out, "steps": 20, "log_every": 5, "checkpoint_every": 10, **changes}
    return make_config(**settings)


def metrics(run, *, timed=False):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in each.items() if timed or key not in TIMED} for each in lines]


def all_tensors(run):
    checkpoint = load_checkpoint(run)
    return dict(sorted({**checkpoint.weights, **checkpoint.training_tensors()}.items()))


def interrupt(monkeypatch, after):
    """Presses Ctrl-C when batch `after` + 1 is drawn."""
    sample, drawn = SegmentSampler.sample, []

    def interrupted(self):
        drawn.append(1)
        if len(drawn) > after:
            raise KeyboardInterrupt
        return sample(self)

    monkeypatch.setattr(SegmentSampler, "sample", interrupted)


def train_interrupted(config, after):
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(monkeypatch, after)
        with pytest.raises(KeyboardInterrupt):
            train(config)


@pytest.fixture(scope="module")
def whole(log, tmp_path_factory):
    """An uninterrupted run of 20 updates."""
    return train(make_run(log, tmp_path_factory.mktemp("training") / "whole"))


def test_what_a_run_leaves_behind(whole, log):
    assert sorted(path.name for path in whole.iterdir() if path.suffix != ".diff") == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "run.json",
        "samples.npz",
    ]
    assert [path.name for path in checkpoint_folders(whole)] == ["step_000000010", "step_000000020"]
    assert json.loads((whole / "config.json").read_text()) == make_run(log, whole).to_json()
    lines = metrics(whole, timed=True)
    assert [each["step"] for each in lines] == [5, 10, 15, 20]
    assert all(np.isfinite(list(each.values())).all() for each in lines)
    assert set(lines[0]) >= {"loss", "squared_error", "q_logged", "q_greedy", "gradient_norm", "updates_per_second"}


def test_the_checkpoint_holds_what_evaluation_and_export_need(whole, log):
    info = load_checkpoint(whole).info
    assert info["spec"]["environment_id"] == "test/Point-v0"
    assert {"mean", "std", "min", "max"} < set(info["statistics"]["state"])
    assert info["dataset"]["path"] == str(log)
    assert info["dataset"]["episodes"] == 4
    assert len(info["dataset"]["fingerprint"]) == 64
    assert info["return_scale"] == {"low": 0.0, "high": 1.0}


def test_the_same_seed_gives_the_same_bits(whole, log, tmp_path):
    again = train(make_run(log, tmp_path / "again"))
    assert_same_bits(all_tensors(whole), all_tensors(again))
    assert metrics(whole) == metrics(again)
    other = train(make_run(log, tmp_path / "other", seed=1, steps=1))
    assert metrics(other)[0]["loss"] != metrics(whole)[0]["loss"]


def test_deterministic_runs_have_the_same_bits_and_change_nothing_outside(whole, log, tmp_path, monkeypatch):
    asked = []
    choose = torch.use_deterministic_algorithms
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: asked.append(on) or choose(on))
    runs = [train(make_run(log, tmp_path / name, deterministic=True)) for name in ("first", "second")]
    assert asked == [True, False] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_bits(all_tensors(runs[0]), all_tensors(runs[1]))
    assert_same_bits(all_tensors(runs[0]), all_tensors(whole))  # on a CPU


@pytest.mark.parametrize("after", [12, 17])
def test_a_resumed_run_ends_like_an_uninterrupted_one(whole, log, tmp_path, after):
    config = make_run(log, tmp_path / "run")
    train_interrupted(config, after)
    assert [path.name for path in checkpoint_folders(config.out)] == ["step_000000010"]
    train(replace(config, resume=True))
    assert_same_bits(all_tensors(whole), all_tensors(config.out))
    assert metrics(whole) == metrics(config.out)


def test_ctrl_c_while_ranks_agree_is_heard_at_the_next_update(log, tmp_path, monkeypatch):
    """A signal comes after this rank has said that there is none: it must not be forgotten."""
    asked = itertools.count()

    def largest(number):
        if type(number) is int and number == 0 and next(asked) == 5:  # of an update: nobody wishes to stop
            os.kill(os.getpid(), signal.SIGINT)
        return float(number)

    monkeypatch.setattr(ranks, "largest", largest)
    with pytest.raises(Stopped, match=r"^Ctrl-C: update \d+ of \d+ is saved in "):
        train(make_run(log, tmp_path / "run"))


def test_a_run_without_checkpoint_starts_again_on_resume(whole, log, tmp_path):
    config = make_run(log, tmp_path / "run")
    train_interrupted(config, 7)
    assert [each["step"] for each in metrics(config.out)] == [5]
    train(replace(config, resume=True))
    assert_same_bits(all_tensors(whole), all_tensors(config.out))
    assert metrics(whole) == metrics(config.out)


def test_resume_begins_a_run_where_there_is_none(whole, log, tmp_path):
    train(make_run(log, tmp_path / "run", resume=True))
    assert_same_bits(all_tensors(whole), all_tensors(tmp_path / "run"))


def test_resume_survives_a_line_and_a_checkpoint_cut_short(whole, log, tmp_path):
    config = make_run(log, tmp_path / "run")
    train_interrupted(config, 17)
    with (config.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "lo')
    (config.out / "checkpoints" / "step_000000020.writing").mkdir()
    train(replace(config, resume=True))
    assert_same_bits(all_tensors(whole), all_tensors(config.out))
    assert metrics(whole) == metrics(config.out)


def test_resuming_a_finished_run_changes_nothing(log, tmp_path):
    config = make_run(log, tmp_path / "run", steps=5)
    before = all_tensors(train(config)), metrics(config.out, timed=True)
    train(replace(config, resume=True))
    assert_same_bits(before[0], all_tensors(config.out))
    assert metrics(config.out, timed=True) == before[1]


def test_a_cloning_run_resumes_too(log, tmp_path):
    config = make_run(log, tmp_path / "run", algorithm="behaviour_cloning", only_successful=True)
    other = train(replace(config, out=tmp_path / "other"))
    train_interrupted(config, 12)
    train(replace(config, resume=True))
    assert_same_bits(all_tensors(other), all_tensors(config.out))


def test_only_successful_keeps_the_successes(log, tmp_path):
    run = train(make_run(log, tmp_path / "run", only_successful=True, steps=1))
    assert load_checkpoint(run).info["dataset"]["episodes"] == 2
    with np.load(run / "samples.npz") as arrays:
        assert len(arrays["num_frames"]) == 5 + 3


@pytest.mark.parametrize(
    ("rewards", "low", "high"),
    [
        ([0.0, 0.0, 1.0], 0.0, 1.0),  # returns 0.25, 0.5, 1
        ([-1.0, -1.0, -1.0], -1.75, 0.0),  # returns -1.75, -1.5, -1, and 0 after the end
        ([2.0, -3.0, 4.0], -1.0, 4.0),  # returns 1.5, -1, 4
    ],
)
def test_the_return_scale_is_the_range_of_returns_and_holds_zero(tmp_path, rewards, low, high):
    log = write_log(tmp_path / "log", [replace(make_episode(3), rewards=np.array(rewards))])
    run = train(make_run(log, tmp_path / "run", steps=1, learning=LearningConfig(discount=0.5)))
    assert load_checkpoint(run).info["return_scale"] == {"low": low, "high": high}


def test_findings_are_said_before_training(tmp_path, capsys):
    log = write_log(tmp_path / "log", [make_episode(3), make_episode(3)])
    train(make_run(log, tmp_path / "run", steps=1))
    assert "warning duplicate-episode" in " ".join(capsys.readouterr().err.split())


def test_data_that_cannot_be_used_leaves_no_run(tmp_path):
    episode = make_episode(4)
    episode.actions[2, 1] = np.nan
    log = write_log(tmp_path / "log", [episode])
    with pytest.raises(DatasetError, match=r"episode_0 actions step 2 is NaN or infinite"):
        train(make_run(log, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*"))
    log = write_log(tmp_path / "failures", [make_episode(4, success=False)])
    with pytest.raises(DatasetError, match="rewards are zero at every step"):
        train(make_run(log, tmp_path / "run"))


def test_a_folder_that_holds_something_is_refused(whole, log, tmp_path):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"--out .*whole: already holds something; choose another folder, or --resume"):
        train(make_run(log, whole))
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="already holds something"):
        train(make_run(log, tmp_path, resume=True))
    with pytest.raises(RunError, match="already holds something"):
        train(make_run(log, tmp_path / "notes.txt"))
    with pytest.raises(RunError, match=r"--out .*run: cannot be made or locked \(Not a directory\)"):
        train(make_run(log, tmp_path / "notes.txt" / "run"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resume_with_other_settings_is_refused(whole, log):
    with pytest.raises(RunError, match=r"settings differ from the run's \(batch_size, model\); use the same"):
        train(make_run(log, whole, batch_size=3, width=32, resume=True))


def test_resume_with_other_data_is_refused(log, tmp_path):
    train(make_run(write_log(tmp_path / "log"), tmp_path / "run", steps=2))
    (tmp_path / "log").rename(tmp_path / "old")
    write_log(tmp_path / "log", [make_episode(6)])
    with pytest.raises(RunError, match=r"--dataset holds other data than the run began with; give the same dataset"):
        train(make_run(tmp_path / "log", tmp_path / "run", steps=4, resume=True))


def test_resume_passes_over_a_damaged_checkpoint(whole, log, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "checkpoints" / "step_000000020" / "training_0.safetensors").write_bytes(b"noise")
    train(make_run(log, run, resume=True))
    assert "step_000000020/training_0.safetensors: is damaged" in capsys.readouterr().err
    assert_same_bits(all_tensors(whole), all_tensors(run))
    assert metrics(whole) == metrics(run)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step_000000010", "step_000000020", "step_000000020.damaged"]


def test_resume_of_a_damaged_run_is_explained(log, tmp_path):
    run = train(make_run(log, tmp_path / "run", steps=2))
    (run / "checkpoints" / "step_000000002" / "training_0.safetensors").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match=r"training_0\.safetensors: is damaged .*, and no other is there"):
        train(make_run(log, run, steps=4, resume=True))
    (run / "config.json").write_text('{"steps": ')
    with pytest.raises(RunError, match=r"config\.json: is damaged"):
        train(make_run(log, run, steps=4, resume=True))


def test_damaged_metrics_do_not_stop_a_resumed_run(whole, log, tmp_path, capsys):
    config = make_run(log, tmp_path / "run")
    train_interrupted(config, 17)
    path = config.out / "metrics.jsonl"
    path.write_bytes(b"\xff\x00noise\n" + path.read_bytes())
    train(replace(config, resume=True))
    assert "metrics.jsonl: is damaged; 1 of 4 lines cannot be read" in capsys.readouterr().err
    assert_same_bits(all_tensors(whole), all_tensors(config.out))
    assert metrics(whole) == metrics(config.out)


def test_checkpoints_between_two_lines_of_metrics_keep_the_lines(log, tmp_path):
    settings = {"log_every": 7, "checkpoint_every": 4}
    other = train(make_run(log, tmp_path / "other", **settings))
    config = make_run(log, tmp_path / "run", **settings)
    train_interrupted(config, 18)  # the line of update 21 would begin at 15, the checkpoint is that of 16
    train(replace(config, resume=True))
    assert metrics(other) == metrics(config.out)


class NoisyCloning(BehaviourCloning):
    """Draws random numbers in every update, as dropout would."""

    def loss(self, batch, goals):
        loss, figures = super().loss(batch, goals)
        return loss * torch.rand(()), figures


def test_random_generators_go_on_too(log, tmp_path, monkeypatch):
    monkeypatch.setitem(LEARNERS, "behaviour_cloning", NoisyCloning)
    config = make_run(log, tmp_path / "run", algorithm="behaviour_cloning")
    other = train(replace(config, out=tmp_path / "other"))
    train_interrupted(config, 12)
    train(replace(config, resume=True))
    assert_same_bits(all_tensors(other), all_tensors(config.out))


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_no_logic_depends_on_the_clock_of_the_day(whole, log, tmp_path, monkeypatch, jump):
    """The clock jumps at every look, years back or forth; every file is years newer or older than the one before."""
    days = itertools.count(1)
    monkeypatch.setattr("time.time", lambda: 2e9 + jump * next(days))
    monkeypatch.setattr("time.time_ns", lambda: int(2e18 + 1e9 * jump * next(days)))
    config = make_run(log, tmp_path / "run")
    train_interrupted(config, 12)
    for number, path in enumerate(sorted(config.out.rglob("*"))):
        os.utime(path, (2e9 + jump * number / 100,) * 2)
    train(replace(config, resume=True))
    assert_same_bits(all_tensors(whole), all_tensors(config.out))
    assert metrics(whole) == metrics(config.out)
    assert all(each["updates_per_second"] > 0 for each in metrics(config.out, timed=True))


def test_ranks_have_the_images_of_a_machine_in_common(log, tmp_path, monkeypatch):
    config = make_run(log, tmp_path / "run")
    dataset, _ = load_dataset(config)
    for num_ranks, storage in {1: "auto", 2: "mapped"}.items():
        monkeypatch.setattr(ranks, "world_size", lambda number=num_ranks: number)
        assert build(config, dataset)[1]._options.storage == storage


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there(log, tmp_path, device):
    with pytest.raises(RunError, match=rf"--device {device}: is not usable here \(.+\); use cpu or auto"):
        train(make_run(log, tmp_path / "run", device=device))


def test_the_number_of_threads_is_that_of_the_setting(log, tmp_path):
    train(make_run(log, tmp_path / "run", steps=1))
    assert torch.get_num_threads() == 1
