"""A run is told as far as its files can be read; what is missing is said in words."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from learner_fixtures import make_batch, make_config, make_learner, write_log

from qtransformer.bad_batches import save_bad_batch
from qtransformer.config import RunError
from qtransformer.run_records import read_run
from qtransformer.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return train(make_config(dataset=write_log(folder / "log"), out=folder / "run", steps=6, log_every=2))


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def rewrite(run, *lines):
    (run / "metrics.jsonl").write_text(
        "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    )


def test_a_sound_run_lacks_nothing(run):
    record = read_run(run)
    assert record.missing == record.refused == record.rung() == ()
    assert [line["step"] for line in record.lines] == [2, 4, 6]
    assert (record.step, record.config.steps, len(record.sessions)) == (6, 6, 1)
    assert record.last("loss") == record.lines[-1]["loss"]
    assert record.last("no such metric") is None
    assert record.evaluations() == []
    assert record.loaded is not None


def test_lines_that_are_damaged_or_cut_are_left_out_and_counted(run):
    rewrite(
        run, {"step": 2, "loss": 1.0}, "{\n", "[3]\n", {"step": 4, "loss": "much", "q": float("nan"), "b": True}, '{"st'
    )
    record = read_run(run)
    assert record.lines == ({"step": 2, "loss": 1.0}, {"step": 4})
    assert record.missing == ("metrics.jsonl is damaged: 2 of its lines cannot be read and are left out.",)


def test_what_is_gone_is_said(run):
    (run / "metrics.jsonl").unlink()
    (run / "run.json").write_text("{")
    shutil.rmtree(run / "checkpoints")
    record = read_run(run)
    assert (record.lines, record.sessions, record.loaded, record.step) == ((), (), None, 0)
    metrics, policy, session = record.missing
    assert metrics == "metrics.jsonl is missing or empty, so there is no course of training to show."
    assert policy.startswith("No policy: ")
    assert "holds no checkpoint" in policy
    assert session == "run.json is missing or damaged, so what made this run is not known."
    assert record.rung() == ()


def test_a_damaged_checkpoint_is_said(run):
    for path in run.glob("checkpoints/*/weights.safetensors"):
        path.write_bytes(b"nothing")
    assert "weights.safetensors: is damaged" in read_run(run).missing[0]


def test_a_folder_that_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(
        RunError, match=r"must be the --out folder of `train`, got one without config\.json; check the path"
    ):
        read_run(tmp_path)
    (run / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json: is damaged"):
        read_run(run)


def test_alarms_are_asked_again_at_every_line(run):
    """Ten lines of loss 1, then five of 9: the mean of five lines is above twice the least from the line on at which
    2.6 > 2, which is the eleventh; back at 1 it is silent again."""
    rewrite(run, *({"step": step, "loss": 9.0 if 10 < step < 16 else 1.0} for step in range(1, 31)))
    (rung,) = read_run(run).rung()
    assert (rung.alarm.name, rung.first, rung.last, rung.is_over) == ("a loss that grows", 11, 19, True)
    rewrite(run, *({"step": step, "loss": 9.0 if step > 10 else 1.0} for step in range(1, 21)))
    (rung,) = read_run(run).rung()
    assert (rung.first, rung.last, rung.is_over) == (11, 20, False)


def test_refused_batches_say_why(run):
    batch = make_batch()
    for number in range(7):
        path = run / "bad_batches" / f"batch_{number:09d}.npz"
        save_bad_batch(path, batch, make_learner(make_config()), {"step": number + 1, "reason": f"reason {number}"})
    (run / "bad_batches" / "batch_000000001.npz").write_bytes(np.zeros(9).tobytes())
    refused = read_run(run).refused
    assert refused[0] == "batch_000000000.npz, for update 1: reason 0"
    assert refused[1].startswith("batch_000000001.npz cannot be read (")
    assert refused[4:] == ("batch_000000004.npz, for update 5: reason 4", "and 2 more")
