"""Clips of episodes: which are shown, how small they are, and what happens where nothing can be drawn."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from learner_fixtures import make_config, write_log
from PIL import Image
from report_fixtures import make_sources

from qtransformer.clips import encode, play_for_clips, still
from qtransformer.config import RunError
from qtransformer.loading import open_policy
from qtransformer.training import train

PLAY = make_sources(5).play


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return open_policy(train(make_config(dataset=write_log(folder / "log"), out=folder / "run", steps=1)))


def noise(num_frames=20, height=48, width=64):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (height, width, 3), np.uint8) for _ in range(num_frames)]


def picture(data) -> Any:
    return Image.open(io.BytesIO(data))


def test_a_clip_plays_in_real_time_and_is_as_large_as_it_may_be():
    frames = noise()
    free, small = encode(frames, 10, 10**9), encode(frames, 10, 15_000)
    with picture(free) as image:
        image.load()
        assert (image.format, image.size, image.n_frames, image.info["duration"]) == ("WEBP", (64, 48), 20, 100)
    assert len(small) < len(free)
    assert len(encode(frames, 10, 1)) <= len(small)  # the smallest there is


def test_long_clips_skip_frames_and_last_as_long():
    with picture(encode(noise(200, 8, 8), 20, 10**9)) as image:
        assert image.n_frames == 67
        image.load()
        assert image.info["duration"] == 150


def test_a_success_and_a_failure_are_shown_of_all_that_were_played(opened, monkeypatch):
    monkeypatch.setattr("qtransformer.clips.verdict", lambda rollout: ("failure", "success")[rollout.seed == 3])
    played = play_for_clips(opened, PLAY, 10**6)
    assert len(played.document["outcomes"]) == 5
    assert [each.caption.partition(" after")[0] for each in played.clips] == ["seed 3: a success", "seed 0: a failure"]
    assert played.reason is None
    with picture(played.clips[0].data) as image:
        assert image.format == "WEBP"


def test_what_cannot_be_drawn_is_played_all_the_same(opened):
    played = play_for_clips(opened, replace(PLAY, environment_id="test/Unseen-v0"), 10**6)
    assert (played.clips, len(played.document["outcomes"])) == ((), 5)
    assert played.reason is not None
    assert "no display" in played.reason


def test_what_cannot_be_played_is_an_error(opened):
    with pytest.raises(RunError, match="every episode crashed"):
        play_for_clips(opened, replace(PLAY, environment_id="test/Hopeless-v0"), 10**6)


def test_a_still_shows_the_start(opened):
    clip = still(opened, PLAY)
    assert clip.caption == "test/Passing-v0, the start of seed 0"
    with picture(clip.data) as image:
        assert image.size == (64, 48)


@pytest.mark.parametrize(
    ("name", "match"),
    [("Unseen", "no display"), ("Hopeless", "test/Hopeless-v0: .*nothing works"), ("Unmakeable", "arm.xml is missing")],
)
def test_a_still_that_cannot_be_drawn(opened, name, match):
    with pytest.raises(RunError, match=match):
        still(opened, replace(PLAY, environment_id=f"test/{name}-v0"))
