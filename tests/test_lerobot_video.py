"""Frames in mp4 files: the right ones, in order, across episodes; and refusing what is cut off or damaged."""

import threading
from dataclasses import replace

import lerobot_fixtures as fixtures
import numpy as np
import pytest
from lerobot_fixtures import VERSIONS, VIDEO, bright_column, four, frames_of, make_episode, pictures_of, write

from qtransformer_datasets.formats import lerobot_video, open_dataset
from qtransformer_datasets.schema import DatasetError


@pytest.mark.parametrize("gop", [1, 2, 250])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_frames_are_those_of_their_step_across_episodes_of_one_video(tmp_path, codec, gop):
    written = four(camera=True)
    write(tmp_path, "v3.0", written, codec=codec, gop=gop)
    for episode, expected in zip(open_dataset(tmp_path).episodes, written, strict=True):
        frames, pictures = frames_of(episode), pictures_of(expected)
        assert (frames.shape, frames.dtype, frames.encoding) == (pictures.shape, np.uint8, "mp4")
        assert np.abs(frames[:].astype(int) - pictures).mean() < 4
        assert [bright_column(frame) for frame in frames[:]] == list(range(len(frames)))
        for step in (3, 0, 4, 1):
            np.testing.assert_array_equal(frames[step : step + 1], frames[:][step : step + 1])
        np.testing.assert_array_equal(frames[np.array([0, 2, 4])], frames[:][[0, 2, 4]])
        assert frames[2:2].shape == (0, *frames.shape[1:])


def test_an_episode_may_begin_between_keyframes(tmp_path):
    written = four(camera=True)
    write(tmp_path, "v3.0", written, gop=250)
    both = np.concatenate([pictures_of(each) for each in written[:2]])
    fixtures.encode(tmp_path / VIDEO["v3.0"], both, "libx264", 250)
    frames = frames_of(open_dataset(tmp_path).episodes[1])
    assert [bright_column(frame) for frame in frames[:]] == list(range(6))
    assert bright_column(frames[4:5][0]) == 4


def test_av1_is_read(tmp_path):
    write(tmp_path, "v2.1", four(camera=True), codec="libsvtav1", gop=2)
    frames = frames_of(open_dataset(tmp_path).episodes[2])
    assert [bright_column(frame) for frame in frames[:]] == list(range(7))


@pytest.mark.parametrize("gop", [1, 250])
def test_stored_rows_stand_for_the_frames_without_decoding(tmp_path, monkeypatch, gop):
    """Equal in another file; different where only an earlier frame of the same group is different."""
    episode = make_episode(6, camera=True)
    pictures = pictures_of(episode).copy()
    pictures[2] = 0
    other = replace(episode, observations={**episode.observations, "images/front": pictures})
    write(tmp_path, "v2.1", [episode, other, episode], gop=gop)
    dataset = open_dataset(tmp_path)
    monkeypatch.setattr("qtransformer_datasets.formats.lerobot_video._decoder", None)
    first, changed, again = (list(frames_of(each).stored_rows()) for each in dataset.episodes)
    assert len(set(first)) == 6
    assert first == again
    differs = [one != two for one, two in zip(first, changed, strict=True)]
    assert differs[:3] == [False, False, True]
    assert all(differs[3:]) or gop == 1


def test_decoders_are_not_shared_between_threads(tmp_path, monkeypatch):
    class Watched(lerobot_video._Decoder):
        def __init__(self, index):
            super().__init__(index)
            self.thread = threading.get_ident()

        def read(self, number):
            seen.append(self.thread == threading.get_ident())
            return super().read(number)

    seen, equal = [], []
    write(tmp_path, "v3.0", four(camera=True), codec="libx264", gop=250)
    frames = frames_of(open_dataset(tmp_path).episodes[1])
    monkeypatch.setattr(lerobot_video, "_Decoder", Watched)
    expected = frames[:]
    threads = [
        threading.Thread(
            target=lambda: equal.extend(np.array_equal(frames[k : k + 1][0], expected[k]) for k in range(6))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 24
    assert equal == [True] * 18


def test_a_playlist_is_not_followed(tmp_path):
    write(tmp_path, "v2.1", four(camera=True))
    path = tmp_path / VIDEO["v2.1"].format(0)
    path.rename(path.with_name("elsewhere.mp4"))
    path.write_text("ffconcat version 1.0\nfile elsewhere.mp4\n")
    with pytest.raises(DatasetError, match=r"episode_000000.mp4 is damaged"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_more_or_fewer_frames_than_rows_are_refused(tmp_path, version):
    written = four(camera=True)
    write(tmp_path, version, written)
    path = tmp_path / VIDEO[version].format(0)
    fixtures.encode(path, written[0].observations["images/front"][:4])
    with pytest.raises(
        DatasetError, match=r"episode_0 observation.images.front must have a frame for each of 5 rows, but .* has 4"
    ):
        open_dataset(tmp_path)
    path.unlink()
    with pytest.raises(DatasetError, match=r"mp4 is missing; fetch the whole dataset"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.9])
def test_a_truncated_video_is_refused(tmp_path, kept):
    write(tmp_path, "v2.1", four(camera=True))
    path = tmp_path / VIDEO["v2.1"].format(2)
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept in (0, 40) else int(kept * len(content))])
    with pytest.raises(DatasetError, match=r"episode_000002.mp4"):
        open_dataset(tmp_path)


def test_a_video_that_breaks_off_after_its_header_is_refused(tmp_path):
    written = four(camera=True)
    write(tmp_path, "v2.1", written)
    path = tmp_path / VIDEO["v2.1"].format(2)
    fixtures.encode(path, pictures_of(written[2]), options={"movflags": "faststart"})
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    for lost in (10, 400):
        path.write_bytes(content[:-lost])
        with pytest.raises(DatasetError, match=r"episode_000002.mp4 is damaged, or was never finished \(frame at byte"):
            open_dataset(tmp_path)


def test_a_video_without_keyframes_is_refused(tmp_path):
    write(tmp_path, "v2.1", four(camera=True), gop=250)
    path = tmp_path / VIDEO["v2.1"].format(0)
    content = path.read_bytes()
    table = content.index(b"stss") + 11  # version and flags, then the number of keyframes
    assert content[table] == 1
    path.write_bytes(content[: table + 4] + b"\x63" + content[table + 5 :])  # the keyframe is frame 99
    with pytest.raises(
        DatasetError, match=r"episode_000000.mp4 must hold frames .* got 5 frames of 64x64 pixels, 0 key"
    ):
        open_dataset(tmp_path)


def test_a_codec_that_is_not_known_is_refused(tmp_path):
    write(tmp_path, "v2.1", four(camera=True))
    path = tmp_path / VIDEO["v2.1"].format(0)
    path.write_bytes(path.read_bytes().replace(b"mp4v", b"zzzz").replace(b"esds", b"free"))
    with pytest.raises(DatasetError, match=r"episode_000000.mp4 holds no video that av can decode"):
        open_dataset(tmp_path)


def test_a_video_without_pictures_is_refused(tmp_path):
    import av

    write(tmp_path, "v2.1", four(camera=True))
    with av.open(str(tmp_path / VIDEO["v2.1"].format(0)), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DatasetError, match=r"episode_000000.mp4 holds no video"):
        open_dataset(tmp_path)


def test_damage_inside_a_video_shows_when_it_is_decoded(tmp_path):
    write(tmp_path, "v2.1", four(camera=True), gop=250)
    path = tmp_path / VIDEO["v2.1"].format(0)
    frames = frames_of(open_dataset(tmp_path).episodes[0])
    content = path.read_bytes()
    start = content.index(b"mdat") + 400
    path.write_bytes(content[:start] + bytes(20) + content[start + 20 :])
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"episode_000000.mp4 (at|has no sound frame at) 0.\d+ s"):
            frames[:]
    assert bright_column(frames[:1][0]) == 0
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"episode_000000.mp4 is damaged"):
        open_dataset(tmp_path)
