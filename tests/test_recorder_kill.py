"""The real command, killed at 200 random moments: what was finished is there, once and unchanged, and nothing else.

Half of the moments are drawn over the whole recording, half over its end: the merge and the cleaning after it. The
command runs in children of a fork server, which has the imports done.
"""

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import POINT_ID
from fork_server import start_fork_server
from kill_fixtures import CLOSED, EPISODES, STARTED, run_command

from qtransformer.files import leftovers
from qtransformer_datasets.collect import CollectConfig, collect
from qtransformer_datasets.formats import minari, open_dataset

NUM_KILLS = 200

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork server and SIGKILL")


@pytest.fixture(scope="module")
def start():
    """A function that starts a child, which runs the command, and returns it and the end of its pipe."""
    context = start_fork_server()

    def start_child(out):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=run_command, args=(out, sender))
        child.start()
        sender.close()
        assert receiver.recv() == STARTED
        return child, receiver

    return start_child


def drain(receiver):
    """Returns all that the child had reported before it died."""
    reports = []
    try:
        while True:
            reports.append(receiver.recv())
    except EOFError:
        return reports


def wait_for(receiver, report):
    while receiver.recv() != report:
        pass


def seconds_of_an_undisturbed_run(start, out):
    """Returns how long the episodes take, and how long the closing."""
    child, receiver = start(out)
    began = time.perf_counter()
    wait_for(receiver, EPISODES)
    finished = time.perf_counter()
    wait_for(receiver, CLOSED)
    closed = time.perf_counter()
    child.join()
    assert child.exitcode == 0
    return finished - began, closed - finished


def kill(start, out, delay, *, is_closing):
    """Runs the command and kills it, `delay` seconds from its start or from its last episode; returns its reports."""
    child, receiver = start(out)
    if is_closing:
        wait_for(receiver, EPISODES)
    time.sleep(delay)
    child.kill()
    reports = [EPISODES] * is_closing + drain(receiver)
    child.join()
    return reports


def state(out: Path):
    """In which of the states that a kill can leave behind a recording is, in a word."""
    data = out / "data"
    if not data.exists():
        return "nothing"
    if (data / minari.MAIN_NAME).exists():
        return "cleaning" if (data / minari.UNMERGED_NAME).exists() else "closed"
    return "merging" if leftovers(data, minari.MAIN_NAME) else "recording"


def assert_same(read, expected):
    assert (read.success, read.seed) == (expected.success, expected.seed)
    np.testing.assert_array_equal(read.observations["state"], expected.observations["state"])
    for name in ("actions", "rewards", "terminations", "truncations"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))


@pytest.mark.slow
@pytest.mark.timeout(900)  # 175 s with three times as much work as cores
def test_no_kill_loses_or_invents_an_episode(tmp_path, start):
    seconds_of_an_undisturbed_run(start, tmp_path / "warm")
    seconds = seconds_of_an_undisturbed_run(start, tmp_path / "whole")
    whole = open_dataset(tmp_path / "whole")
    settings = CollectConfig(POINT_ID, episodes=EPISODES, imports=("dataset_fixtures",), num_workers=1, append=True)
    generator, states, unmerged = np.random.default_rng(0), Counter(), tmp_path / "unmerged"
    for index in range(NUM_KILLS):
        out, is_closing = tmp_path / f"killed_{index}", bool(index % 2)
        delay = generator.uniform(0, 1.2 * (seconds[1] if is_closing else sum(seconds)))
        reports = kill(start, out, delay, is_closing=is_closing)
        num_reported = max((report for report in reports if report > 0), default=0)
        states[found := state(out)] += 1
        if found == "merging":
            shutil.copytree(out / "data" / minari.UNMERGED_NAME, unmerged, dirs_exist_ok=True)
        episodes = open_dataset(out).episodes if minari.matches(out) else ()
        assert num_reported <= len(episodes) <= min(EPISODES, num_reported + 1)  # the last one was not reported yet
        for read, expected in zip(episodes, whole.episodes[: len(episodes)], strict=True):
            assert_same(read, expected)
        finished = collect(settings, out)
        assert (finished.fingerprint, finished.notes) == (whole.fingerprint, ())
        assert sorted(file.name for file in (out / "data").iterdir()) == ["main_data.hdf5", "metadata.json"]
    assert {"recording", "merging"} <= set(states), f"the kills missed a state: {states}"
    # The cleaning after the merge is too short to be met for sure: made from the files of before and after.
    out = tmp_path / "whole"
    shutil.copytree(unmerged, out / "data" / minari.UNMERGED_NAME)
    assert state(out) == "cleaning"
    assert open_dataset(out).fingerprint == whole.fingerprint
    assert collect(settings, out).fingerprint == whole.fingerprint
    assert sorted(file.name for file in (out / "data").iterdir()) == ["main_data.hdf5", "metadata.json"]
