"""What is written on pictures, and the files that come of them."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from qtransformer.config import RunError
from qtransformer.rollout import Rollout
from qtransformer.vectorization import Crash, Step
from qtransformer.video import captioned_frames, open_contact_sheet, open_videos, verdict

GREEN, RED, YELLOW = (90, 210, 120), (240, 110, 90), (240, 200, 80)


def make_rollout(num_steps=3, *, success=True, seed=7, task="lift", size=(48, 64), q_values=(0.1, 0.2, 0.3)):
    """Pictures of brightness 50, 60, ...; the last step says whether it was a success."""
    rollout = Rollout(seed, is_drawn=True, render_fps=20.0)
    for step in range(num_steps + 1):
        frame = np.full((*size, 3), 50 + 10 * step, np.uint8)
        is_last = step == num_steps
        rollout.take(Step({}, success=success and is_last, terminated=is_last, task=task, frame=frame))
    rollout.q_values = list(q_values)
    return rollout


def crashed(num_steps=0):
    rollout = Rollout(8, is_drawn=True)
    for _ in range(num_steps):
        rollout.take(Step({}, frame=np.full((48, 64, 3), 50, np.uint8)))
    rollout.take(Crash("ValueError: the solver gave up, and it said so in very many words"))
    return rollout


def colours(frame):
    return {tuple(int(value) for value in colour) for colour in np.unique(frame.reshape(-1, 3), axis=0)}


def test_verdicts():
    assert [verdict(each) for each in (make_rollout(), make_rollout(success=False), crashed())] == [
        "success",
        "failure",
        "crashed",
    ]


def test_the_picture_is_whole_and_the_words_stand_below_it():
    frames = captioned_frames(make_rollout(), None)
    assert [frame.shape for frame in frames] == [(240 + 40, 320, 3)] * 4  # five times 48 x 64, and the strip
    for step, frame in enumerate(frames):
        assert colours(frame[:240]) == {(50 + 10 * step,) * 3}
        assert GREEN in colours(frame[240:])
    assert RED in colours(captioned_frames(make_rollout(success=False), None)[0][240:])
    assert YELLOW in colours(captioned_frames(crashed(2), None)[0][240:])


def test_odd_sizes_become_even_and_large_pictures_keep_theirs():
    (frame, *_) = captioned_frames(make_rollout(size=(241, 333)), None)
    assert frame.shape == (282, 334, 3)


def strip(rollout, step, value_of=None):
    return captioned_frames(rollout, value_of)[step][240:]


def test_the_value_of_each_action_is_shown_as_returns_of_the_log():
    """Q 0.1 shown as 10 q is what Q 1 is as it is; the last step, without an action, shows none."""
    ten_times = strip(make_rollout(), 0, lambda q: 10 * q)
    np.testing.assert_array_equal(ten_times, strip(make_rollout(q_values=(1.0, 0, 0)), 0, lambda q: q))
    assert (ten_times != strip(make_rollout(), 0, lambda q: q)).any()
    assert (ten_times != strip(make_rollout(), 0)).any()
    np.testing.assert_array_equal(strip(make_rollout(), 3, lambda q: q), strip(make_rollout(), 3))


@pytest.mark.parametrize("change", [{"seed": 9}, {"task": "push"}, {"task": None}, {"num_steps": 4}])
def test_seed_task_and_step_are_shown(change):
    assert (strip(make_rollout(), 0) != strip(make_rollout(**change), 0)).any()
    assert (strip(make_rollout(), 0) != strip(make_rollout(), 1)).any()


def test_a_video_plays_in_real_time(tmp_path):
    with open_videos(tmp_path / "videos", lambda q: q) as take:
        take(make_rollout())
        take(crashed(2))
        take(crashed())  # nothing to show
    names = sorted(file.name for file in (tmp_path / "videos").iterdir())
    assert names == ["seed_000007_success.mp4", "seed_000008_crashed.mp4"]
    with av.open(str(tmp_path / "videos" / names[0])) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert (stream.average_rate, stream.codec_context.name) == (20, "h264")
    assert [int(frame[100, 100, 0]) for frame in frames] == pytest.approx([50, 60, 70, 80], abs=3)


def test_a_sheet_has_a_row_an_episode_with_three_pictures(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    with open_contact_sheet(path) as take:
        take(make_rollout(4))
        take(Rollout(1))  # not drawn
        take(crashed())
        take(make_rollout(4, success=False))
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (120 + 2 + 80 + 2 + 120, 210 + 3 * 160, 3)
    assert [int(sheet[60, 210 + 160 * index + 80, 0]) for index in range(3)] == [50, 70, 90]
    assert [colour in colours(sheet[:120, :210]) for colour in (GREEN, YELLOW, RED)] == [True, False, False]
    assert [colour in colours(sheet[122:202, :210]) for colour in (GREEN, YELLOW, RED)] == [False, True, False]
    assert [colour in colours(sheet[204:, :210]) for colour in (GREEN, YELLOW, RED)] == [False, False, True]


def test_no_drawn_episode_leaves_no_sheet(tmp_path):
    with open_contact_sheet(tmp_path / "sheet.png"):
        pass
    assert not list(tmp_path.iterdir())


def test_without_the_package_or_its_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr("av.codecs_available", {"h264"})
    with pytest.raises(RunError, match="need an av with the encoder libx264"), open_videos(tmp_path / "new", None):
        pass
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    message = r"videos need the package av \(.*\); pip install 'qtransformer\[video\]'"
    with pytest.raises(RunError, match=message), open_videos(tmp_path / "new", None):
        pass
    assert not (tmp_path / "new").exists()


def test_places_that_hold_something(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(RunError, match="must be new or an empty folder"), open_videos(path, None):
            pass
    with pytest.raises(RunError, match=r"must end in .png; change the name"), open_contact_sheet(tmp_path / "x.jpg"):
        pass


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(RunError, match=r"--video .*videos: cannot be written \(.*\); choose another path"),
        open_videos(tmp_path / "file" / "videos", None),
    ):
        pass
    with (
        pytest.raises(RunError, match=r"--contact-sheet .*x.png: cannot be written \(.*\); choose another path"),
        open_contact_sheet(tmp_path / "file" / "x.png") as take,
    ):
        take(make_rollout())
