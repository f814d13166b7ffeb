"""Frozen cameras: runs of equal frames while the actions move, seen without decoding an image."""

import numpy as np
import pytest
from check_fixtures import CAMERA, StoredFrames, edited, find, log_of, with_rows
from dataset_fixtures import make_episode

PLACE = "main_data.hdf5:episode_7 observations/camera"


def frames(numbers, kind):
    """Frames that are equal where their numbers are."""
    if kind == "stored":
        return StoredFrames([bytes([number]) * (1 + number) for number in numbers])
    return np.broadcast_to(np.array(numbers, np.uint8)[:, None, None, None], (len(numbers), 8, 8, 3)).copy()


def filmed(episode, *numbers, kind="stored"):
    return with_rows(episode, camera=frames(numbers, kind))


def camera_log(*episodes):
    return log_of(*episodes, extra=(CAMERA,))


@pytest.mark.parametrize("kind", ["stored", "array"])
@pytest.mark.parametrize("final", [True, False])
def test_a_run_of_equal_frames_is_found_where_it_begins(kind, final):
    other = filmed(make_episode(4, seed=1), *range(5), kind=kind)
    numbers = [0, 1, 2, 3, *[4] * 11, *range(5, 10 + final)]
    episode = filmed(make_episode(20, seed=7, final=final), *numbers, kind=kind)
    finding = find(camera_log(other, episode))["frozen-images"]
    assert (finding.severity, finding.places, finding.count) == ("warning", (f"{PLACE} step 4",), 1)


@pytest.mark.parametrize("kind", ["stored", "array"])
def test_a_shorter_run_is_none(kind):
    numbers = [0, 1, 2, 3, *[4] * 10, *range(5, 12)]  # ten equal frames are nine steps
    assert find(camera_log(filmed(make_episode(20, seed=7), *numbers, kind=kind))) == {}


def test_every_run_counts_and_the_last_frame_belongs_to_it():
    episode = filmed(make_episode(30, seed=7), *[0] * 12, *range(1, 8), *[9] * 12)
    finding = find(camera_log(episode))["frozen-images"]
    assert finding.places == (f"{PLACE} step 0", f"{PLACE} step 19")


def test_a_robot_at_rest_sees_the_same():
    episode = filmed(make_episode(20, seed=7), *[0] * 21)
    assert "frozen-images" in find(camera_log(episode))
    assert "frozen-images" not in find(camera_log(edited(episode, "actions", slice(None), 0.0)))
    assert "frozen-images" not in find(camera_log(edited(episode, "actions", slice(8, None), 0.4)))  # nine commands


def test_a_run_does_not_go_on_into_the_next_episode():
    episodes = [filmed(make_episode(9, seed=seed), *[0] * 10) for seed in (7, 8)]
    assert find(camera_log(*episodes)) == {}


def test_all_cameras_are_looked_at():
    wrist = type(CAMERA)("wrist", (8, 8, 3), "uint8", "image")
    episode = filmed(make_episode(20, seed=7), *range(21))
    log = log_of(with_rows(episode, wrist=frames([0] * 21, "stored")), extra=(CAMERA, wrist))
    assert find(log)["frozen-images"].places == ("main_data.hdf5:episode_7 observations/wrist step 0",)
