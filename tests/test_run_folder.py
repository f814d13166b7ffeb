"""The folder of a run: one process at a time, the same settings, metrics that no kill and no damage spoils."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest
from learner_fixtures import make_config

from qtransformer.config import RunError
from qtransformer.run_folder import Metrics, can_resume, claimed, keeping, read_settings


def hold(run, pipe):
    """Trains, as far as the lock knows, until it is told to end, or is killed."""
    with claimed(run):
        pipe.send(os.getpid())
        pipe.recv()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `run`."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run", there))
    process.start()
    here.recv()
    yield process, here
    process.kill()
    process.join()


def test_a_folder_has_one_process_at_a_time(tmp_path, holder):
    process, pipe = holder
    with (
        pytest.raises(RunError, match=rf"run: process {process.pid} on .* is training there; wait for it, or choose"),
        claimed(tmp_path / "run"),
    ):
        pass
    pipe.send("end")
    process.join()
    with claimed(tmp_path / "run"):
        assert [each.name for each in (tmp_path / "run").iterdir()] == [".lock"]
    assert not list((tmp_path / "run").iterdir())


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder, capfd):
    process, _ = holder
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with claimed(tmp_path / "run"):
        said = capfd.readouterr().err
    assert f"process {process.pid} on" in said
    assert "ended without a word while it trained here; its lock is taken over" in said
    with claimed(tmp_path / "run"):
        assert capfd.readouterr().err == ""


def test_a_folder_that_was_just_left(tmp_path, monkeypatch):
    """The lock file was opened, then removed by its holder, then locked: it is not the one that others will find."""
    monkeypatch.setattr("os.path.samestat", lambda left, right: False)
    with pytest.raises(RunError, match="another process has just left the folder; try again"), claimed(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_or_locked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"file: already holds something"), claimed(tmp_path / "file"):
        pass
    with pytest.raises(RunError, match=r"cannot be made or locked \(Not a directory\)"), claimed(tmp_path / "file/x"):
        pass

    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.open", refuse)
    with (
        pytest.raises(RunError, match=r"cannot be made or locked \(Read-only file system\)"),
        claimed(tmp_path / "run"),
    ):
        pass


def test_what_a_killed_start_left_is_no_obstacle(tmp_path):
    config = make_config(out=tmp_path, resume=True)
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / ".config.json.1.tmp").write_text("{")
    assert can_resume(config) is False
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    (tmp_path / ".config.json.1.tmp").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="already holds something; choose another folder, or --resume a run"):
        can_resume(config)
    assert len(list(tmp_path.iterdir())) == 3  # in a folder that is not ours, nothing is touched
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    (tmp_path / ".samples.npz.1.tmp").write_text("PK")
    assert can_resume(config) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json", "notes.txt"]


def test_settings_come_back_and_new_ones_have_their_default(tmp_path):
    config = make_config(out=tmp_path)
    document = config.to_json()
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert read_settings(tmp_path) == config
    del document["batch_size"]  # as a setting that a later version has, and the run had not
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert read_settings(tmp_path).batch_size == 96


@pytest.mark.parametrize("content", ["", "[]", "3", '{"steps": ', "{}", '{"data": 3}', "\x00"])
def test_damaged_settings(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=r"config\.json: is damaged \(.*\); begin a new run in another --out"):
        read_settings(tmp_path)


def test_a_file_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(
            RunError, match=r"x: cannot be written \(No space left on device\); what was saved before is kept"
        ),
        keeping(tmp_path / "x"),
    ):
        raise OSError(28, "No space left on device")


def lines_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_metrics(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.clear()
    with metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step, "loss": 0.5})
        metrics.sync()
    assert lines_of(tmp_path) == [1, 2, 3]
    metrics.keep(2)
    assert lines_of(tmp_path) == [1, 2]
    metrics.clear()
    assert lines_of(tmp_path) == []


def test_a_line_cut_short_is_dropped_silently(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    Metrics(tmp_path).keep(9)
    assert lines_of(tmp_path) == [1]
    assert capsys.readouterr().err == ""


def test_damaged_metrics_lose_what_is_damaged_and_say_so(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\x00\n3\n{"loss": 1}\n{"step": 4}\n{"step": 5}\n')
    Metrics(tmp_path).keep(4)
    assert lines_of(tmp_path) == [1, 4]
    assert "metrics.jsonl: is damaged; 3 of 6 lines cannot be read and were left out" in capsys.readouterr().err


def test_missing_metrics_begin_anew_and_say_so(tmp_path, capsys):
    Metrics(tmp_path).keep(7)
    assert lines_of(tmp_path) == []
    assert "metrics.jsonl: is missing; it begins anew after update 7" in capsys.readouterr().err
