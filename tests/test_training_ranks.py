"""The real command in two ranks: the curve of one, killed and resumed bit by bit, ended with one message."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rank_children
import torch
from fork_server import start_fork_server
from learner_fixtures import write_log
from rank_fixtures import start_ranks
from training_children import STEPS
from training_fixtures import (
    LONGEST_DELAY,
    NUM_KILLS,
    assert_same_run,
    count_reports,
    kill_after,
    metrics,
    state,
    wait_for_step,
)

from qtransformer.checkpoint import checkpoint_folders, load_checkpoint
from qtransformer.cli import main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork server and SIGKILL")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("ranks") / "log")


def start(log, out, *changes, world_size=2, function=rank_children.train, reports=None):
    """Starts the command; what all ranks say goes to one file beside the run."""
    return start_ranks(function, log, out, said(out), changes, reports, world_size=world_size)


def start_reporting(log, out, *changes):
    """Starts the command, and returns its ranks and where rank 0 reports to."""
    receiver, sender = start_fork_server().Pipe(duplex=False)
    with sender:
        return start(log, out, *changes, reports=sender), receiver


def said(out):
    return out.with_name(out.name + ".said")


def finish(started):
    return [each.wait() for each in started]


@pytest.fixture(scope="module")
def whole(log, tmp_path_factory):
    """A run of two ranks that nothing disturbed."""
    out = tmp_path_factory.mktemp("ranks") / "whole"
    assert finish(start(log, out)) == [0, 0]
    return out


def test_two_ranks_give_the_curve_of_one(log, tmp_path):
    runs = [tmp_path / name for name in ("one", "two")]
    for number, out in enumerate(runs, start=1):
        started = start(log, out, "--steps", 50, "--log-every", 1, "--checkpoint-every", 50, world_size=number)
        assert finish(started) == [0] * number
    one, two = (metrics(out) for out in runs)
    assert [each["step"] for each in one] == list(range(1, 51))
    for expected, found in zip(one, two, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert found == pytest.approx(expected, abs=1e-4)
    assert said(runs[1]).read_text().count("trained:") == 1  # rank 0 alone speaks


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_kill_of_a_rank_changes_what_a_resumed_run_ends_with(log, tmp_path):
    whole = tmp_path / "whole"
    ranks, reports = start_reporting(log, whole)
    num_reports = count_reports(reports)
    assert finish(ranks) == [0, 0]
    generator, states = np.random.default_rng(0), Counter()
    for index in range(NUM_KILLS):
        out = tmp_path / f"killed_{index}"
        ranks, reports = start_reporting(log, out)
        killed, other = ranks[index % 2], ranks[1 - index % 2]
        delay = generator.uniform(0, LONGEST_DELAY) if index % 4 < 2 else 0.0  # without, most are at a file
        kill_after(reports, generator.integers(num_reports), delay, killed.process)
        other.end_as_by_torchrun()
        states[state(out)] += 1
        assert finish(start(log, out, "--resume")) == [0, 0], said(out).read_text()
        assert_same_run(whole, out)
    assert min(states["saving"], states["training"]) >= 2, f"the kills missed one of the two: {states}"


def test_what_two_ranks_began_one_ends(log, whole, tmp_path):
    out = tmp_path / "run"
    started = start(log, out)
    wait_for_step(out, 8)
    started[1].process.kill()
    finish(started)
    first = load_checkpoint(out).info["step"]
    assert finish(start(log, out, "--resume", "--gradient-accumulation-steps", 2, world_size=1)) == [0]
    assert first < load_checkpoint(out).info["step"] == STEPS
    ended, expected = (load_checkpoint(run).weights for run in (out, whole))
    torch.testing.assert_close(ended, expected, rtol=0, atol=1e-4)
    assert [each["loss"] for each in metrics(out)] == pytest.approx([each["loss"] for each in metrics(whole)], abs=1e-5)


def test_a_batch_that_is_not_finite_at_one_rank_stops_both(log, tmp_path, capsys):
    out = tmp_path / "run"
    assert finish(start(log, out, function=rank_children.train_spoilt)) == [2, 2]
    (line,) = [each for each in said(out).read_text().splitlines() if "error:" in each]
    number = int(re.findall(r"batch (\d+), for update", line)[0])
    assert (
        f"episode_1 rewards step 2 is nan; it changed no weight; look at it with: qtransformer replay-batch {out}"
        in line
    )
    (path,) = (out / "bad_batches").iterdir()
    assert path.name == f"batch_{number:09d}.npz"
    assert main(["replay-batch", str(path)]) == 0
    assert "reproduced" in capsys.readouterr().out.splitlines()


def test_both_ranks_leave_out_the_same_batches(log, tmp_path):
    out = tmp_path / "run"
    assert finish(start(log, out, "--on-bad-batch", "skip", function=rank_children.train_spoilt)) == [0, 0]
    text = said(out).read_text()
    assert metrics(out)[-1]["skipped_batches"] == text.count("left out: batch") > 0
    assert load_checkpoint(out).info["step"] == STEPS


def test_a_batch_that_ranks_cannot_share(log, tmp_path):
    out = tmp_path / "run"
    assert finish(start(log, out, "--batch-size", 6, "--gradient-accumulation-steps", 2)) == [2, 2]
    (line,) = [each for each in said(out).read_text().splitlines() if "error:" in each]
    assert line == (
        "qtransformer train: error: --batch-size (6) must be a multiple of 4, the ranks (2) times "
        "--gradient-accumulation-steps (2); choose another"
    )
    assert not checkpoint_folders(out)


@pytest.mark.slow
def test_torchrun_passes_on_ctrl_c_and_all_is_saved_once(log, tmp_path):
    out, script = tmp_path / "run", Path(sysconfig.get_path("scripts")) / "torchrun"
    if not script.exists():
        pytest.skip("torch was installed without torchrun")
    settings = ["--steps", "1000000", "--batch-size", "4", "--log-every", "1", "--width", "16", "--num-bins", "4"]
    command = [sys.executable, script, "--nproc-per-node", "2", "-m", "qtransformer.cli", "train", "--dataset", log]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with said(out).open("w") as file:
        running = subprocess.Popen([*command, "--out", out, *settings], stdout=file, stderr=file, env=environment)
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert running.poll() is None, said(out).read_text()
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        running.wait()
    (folder,) = checkpoint_folders(out)
    step = int(folder.name.removeprefix("step_"))
    (line,) = [each for each in said(out).read_text().splitlines() if "is saved in" in each]
    assert line == (
        f"qtransformer train: Ctrl-C: update {step} of 1000000 is saved in {out}; go on with the same command and "
        "--resume"
    )
