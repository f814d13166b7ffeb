"""The real command, ended early: killed at random moments, told to stop, out of disk. Nothing earlier is ever lost.

The command runs in children of a fork server, which has the imports done.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fork_server import start_fork_server
from learner_fixtures import assert_same_bits, write_log
from training_children import STEPS, train
from training_fixtures import (
    LONGEST_DELAY,
    NUM_KILLS,
    assert_same_run,
    count_reports,
    kill_after,
    state,
    wait_for_step,
    write_seen_log,
)

from qtransformer.checkpoint import checkpoint_folders, load_checkpoint

SEEN = ("--image-tokens", 2, "--image-shift", 0.2)  # of the 16 pixels, three
MAPPED = ("--memory-limit", "10kB")  # less than the images take: they go to a memory map

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork server and SIGKILL")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts the command in a child."""
    context, own = start_fork_server(), write_log(tmp_path_factory.mktemp("ends") / "log")

    def start_child(out, *changes, log=own, most_bytes=None, reports=None):
        child = context.Process(target=train, args=(log, out, said(out), changes, most_bytes, reports))
        child.start()
        return child

    return start_child


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("ends") / "whole"
    assert finish(start(out)) == 0
    return out


def finish(child):
    child.join()
    return child.exitcode


def said(out):
    """Returns the file of what the command says: never on the disk of the run, which may be full."""
    return Path(tempfile.gettempdir()) / f"said_{os.getpid()}_{str(out).replace('/', '_')}"


def words(out):
    return said(out).read_text()


@pytest.fixture(scope="module", autouse=True)
def _forget_what_was_said():
    yield
    for path in Path(tempfile.gettempdir()).glob(f"said_{os.getpid()}_*"):
        path.unlink()


def start_reporting(start, out, *changes, **options):
    """Starts the command, and returns the child and where it reports to."""
    receiver, sender = start_fork_server().Pipe(duplex=False)
    with sender:
        return start(out, *changes, reports=sender, **options), receiver


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("write", "settings", "now_and_then"),
    [(write_log, (), ()), (write_seen_log, SEEN, MAPPED)],
    ids=["numbers", "images"],
)
def test_no_kill_changes_what_a_resumed_run_ends_with(start, tmp_path, write, settings, now_and_then):
    log, whole = write(tmp_path / "log"), tmp_path / "whole"
    child, reports = start_reporting(start, whole, *settings, log=log)
    num_reports = count_reports(reports)
    assert finish(child) == 0, words(whole)
    generator, states = np.random.default_rng(0), Counter()
    for index in range(NUM_KILLS):
        out, changes = tmp_path / f"killed_{index}", (*settings, *(now_and_then if index % 2 else ()), "--resume")
        for _ in range(2 if index % 5 == 0 else 1):  # one in five is killed again as it resumes
            child, reports = start_reporting(start, out, *changes, log=log)
            delay = generator.uniform(0, LONGEST_DELAY) if index % 4 < 2 else 0.0  # without, most are at a file
            kill_after(reports, generator.integers(num_reports), delay, child)
            states[state(out)] += 1
        assert finish(start(out, *changes, log=log)) == 0, words(out)
        assert_same_run(whole, out)
        assert not list(out.glob(".*"))
    assert min(states["saving"], states["training"]) >= 2, f"the kills missed one of the two: {states}"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_stopped_run_saves_says_how_to_go_on_and_ends_like_another(start, whole, tmp_path, number, name):
    out = tmp_path / "run"
    child = start(out, "--checkpoint-every", 1000, "--steps", 10**6)
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        time.sleep(0.01)
    os.kill(child.pid, number)
    assert finish(child) == 128 + number
    (folder,) = checkpoint_folders(out)
    step = int(folder.name.removeprefix("step_"))
    assert words(out).splitlines()[-1] == (
        f"qtransformer train: {name}: update {step} of 1000000 is saved in {out}; go on with the same command and "
        "--resume"
    )
    assert not list(out.glob(".*"))


def test_a_run_stopped_between_checkpoints_ends_like_another(start, whole, tmp_path):
    out = tmp_path / "run"
    child = start(out)
    wait_for_step(out, 4)
    os.kill(child.pid, signal.SIGTERM)
    assert finish(child) in (0, 143)  # 0 where it was at its end
    assert finish(start(out, "--resume")) == 0
    assert_same_run(whole, out)


def test_two_runs_in_one_folder(start, tmp_path):
    out = tmp_path / "run"
    first = start(out, "--steps", 10**6)
    wait_for_step(out, 2)
    assert finish(start(out, "--steps", 10**6, "--resume")) == 2
    lines = [line for line in words(out).splitlines() if "error:" in line]
    assert lines[0].startswith(f"qtransformer train: error: --out {out}: process {first.pid} on ")
    assert lines[0].endswith(" is training there; wait for it, or choose another folder")
    before = checkpoint_folders(out)[-1].name
    wait_for_step(out, int(before.removeprefix("step_")) + 2)  # the first one was not disturbed
    first.kill()
    first.join()


def test_a_file_size_limit_leaves_no_run_and_one_line(start, tmp_path):
    out = tmp_path / "run"
    assert finish(start(out, most_bytes=600)) == 2
    assert (
        words(out).splitlines()[-1].startswith(f"qtransformer train: error: {out}: cannot be written (File too large)")
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder):
    """Leaves no room on the disk."""
    with (folder / "filling").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_a_full_disk_ends_training_and_keeps_what_was_saved(start, whole, small_disk, tmp_path):
    out = small_disk / "run"
    child = start(out, "--log-every", 1)
    wait_for_step(out, 4)
    fill(small_disk)
    assert finish(child) == 2
    assert "cannot be written (" in (last := words(out).splitlines()[-1])
    assert "No space left on device" in last
    assert "then --resume" in last
    assert checkpoint_folders(out)
    load_checkpoint(out)
    (small_disk / "filling").unlink()
    assert finish(start(out, "--log-every", 1, "--resume")) == 0
    assert load_checkpoint(out).info["step"] == STEPS
    assert_same_bits(load_checkpoint(whole).weights, load_checkpoint(out).weights)


def test_a_read_only_folder_is_refused_and_keeps_what_was_saved(start, whole, small_disk):
    out = small_disk / "run"
    assert finish(start(out, "--steps", STEPS // 2)) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert finish(start(out, "--resume")) == 2
    assert words(out).splitlines()[-1] == (
        f"qtransformer train: error: --out {out}: cannot be made or locked (Read-only file system); choose another "
        "folder"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
