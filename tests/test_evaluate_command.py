"""The real `evaluate` with a trained policy: the same bits for any number of environments, here and in processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from qtransformer.cli import main
from qtransformer_datasets.formats import open_dataset

COLLECT = ["--env-id", "test/Point-v0", "--import", "dataset_fixtures", "--num-workers", "1", "--noise-std", "0.3"]
TINY = ["--steps", "30", "--batch-size", "8", "--log-every", "30", "--num-bins", "5", "--width", "16"]
EPISODES = ("--episodes", 7, "--seed", 3, "--import", "evaluation_fixtures")
PASSING = (*EPISODES, "--env-id", "test/Passing-v0")


def say(*arguments):
    return [str(each) for each in arguments]


def told(capsys, *arguments):
    """Runs a command that must succeed; returns its JSON."""
    capsys.readouterr()
    assert main(say(*arguments, "--json")) == 0
    return json.loads(capsys.readouterr().out)


def fail(capsys, *arguments):
    """Runs a command that must fail; returns its one line."""
    capsys.readouterr()
    assert main(say(*arguments)) == 2
    captured = capsys.readouterr()
    (line,) = (line for line in captured.err.splitlines() if line and not line.startswith("evaluate: "))
    assert captured.out == ""
    return line.removeprefix("qtransformer evaluate: error: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    assert main(say("collect", "--out", folder / "log", "--episodes", 8, *COLLECT)) == 0
    assert main(say("train", "--dataset", folder / "log", "--out", folder / "run", *TINY)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def alone(run):
    """What one environment says in a program of its own."""
    command = [sys.executable, "-m", "qtransformer.cli", *say("evaluate", run, *PASSING, "--num-envs", 1, "--json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("num_envs", [1, 2, 5])
def test_outcomes_have_the_same_bits(run, alone, capsys, num_envs, vectorization):
    found = told(capsys, "evaluate", run, *PASSING, "--num-envs", num_envs, "--vectorization", vectorization)
    del found["latency_ms"]
    assert found == {key: value for key, value in alone.items() if key != "latency_ms"}


def test_the_episodes_differ(alone):
    """Else the comparison above would compare nothing."""
    assert [each["seed"] for each in alone["outcomes"]] == [3, 4, 5, 6, 7, 8, 9]
    assert len({each["episode_return"] for each in alone["outcomes"]}) == 7
    assert list(alone["tasks"]) == ["even", "odd"]


def test_crashes_do_not_change_the_other_episodes(run, alone, capsys):
    arguments = (*EPISODES, "--env-id", "test/Raising-v0", "--num-envs", 3)
    found = told(capsys, "evaluate", run, *arguments)
    assert found["outcomes"] == [each for each in alone["outcomes"] if each["seed"] not in (4, 7, 9)]
    assert (found["episodes"], found["crashed"], [each["seed"] for each in found["crashes"]]) == (4, 3, [4, 7, 9])
    assert main(say("evaluate", run, *arguments)) == 0
    captured = capsys.readouterr()
    assert "3 episodes, counted in no rate" in captured.out
    assert "of 4 episodes" in captured.out
    assert "evaluate: 7/7" in captured.err


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_crashes_alone_end_in_one_line(run, capsys, vectorization):
    arguments = (*EPISODES, "--env-id", "test/Hopeless-v0", "--num-envs", 1, "--vectorization", vectorization)
    message = fail(capsys, "evaluate", run, *arguments)
    assert message.startswith("every episode crashed (7 of 7), the first, of seed 3, after 0 steps: RuntimeError: ")


# --- what is kept of the episodes ---------------------------------------------------------------------------------


def test_a_recording_is_a_log_of_what_was_played(run, alone, tmp_path, capsys):
    logs = []
    for num_envs in (1, 3):
        out = tmp_path / f"log{num_envs}"
        arguments = (*EPISODES, "--env-id", "test/Raising-v0", "--num-envs", num_envs, "--record", out)
        found = told(capsys, "evaluate", run, *arguments)
        logs.append(open_dataset(out))
    assert [each.seed for each in logs[0].episodes] == [3, 5, 6, 8]
    for episode, outcome in zip(logs[0].episodes, found["outcomes"], strict=True):
        assert (episode.num_steps, episode.success) == (outcome["length"], outcome["success"])
        assert episode.goal == f"be {('even', 'odd')[episode.seed % 2]}"
        assert float(np.sum(episode.rewards)) == pytest.approx(outcome["episode_return"])
        positions = episode.observations["state"][:, 0]
        np.testing.assert_allclose(np.diff(positions), 0.5 * episode.actions[:, 0], atol=1e-6)
    for one, other in zip(*(log.episodes for log in logs), strict=True):
        for name in ("actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert logs[0].spec.environment_id == "test/Raising-v0"
    metadata = json.loads((tmp_path / "log1" / "data" / "metadata.json").read_text())
    weights = run / "checkpoints" / "step_000000030" / "weights.safetensors"
    fingerprint = json.loads(weights.with_name("checkpoint.json").read_text())["dataset"]["fingerprint"]
    assert metadata["algorithm_name"] == "q_transformer"
    assert metadata["evaluate"] == {
        "crashed_seeds": [4, 7, 9],
        "policy": {
            "path": str(run),
            "algorithm": "q_transformer",
            "step": 30,
            "dataset_fingerprint": fingerprint,
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
    }


def test_a_recording_overwrites_nothing_and_leaves_nothing_of_crashes_alone(run, tmp_path, capsys):
    (tmp_path / "mine").write_text("notes")
    assert "must be new or empty" in fail(capsys, "evaluate", run, *PASSING, "--record", tmp_path)
    out = tmp_path / "log"
    fail(capsys, "evaluate", run, *EPISODES, "--env-id", "test/Hopeless-v0", "--record", out)
    assert not list(out.iterdir())


def test_videos_and_contact_sheet(run, tmp_path, capsys):
    pictures = ("--video", tmp_path / "videos", "--contact-sheet", tmp_path / "sheet.png", "--video-episodes", 2)
    found = told(capsys, "evaluate", run, *PASSING, *pictures)
    names = {each["seed"]: "success" if each["success"] else "failure" for each in found["outcomes"][:2]}
    files = sorted((tmp_path / "videos").iterdir())
    assert [file.name for file in files] == [f"seed_{seed:06d}_{word}.mp4" for seed, word in names.items()]
    with av.open(str(files[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    assert len(frames) == found["outcomes"][0]["length"] + 1
    assert [int(frame[100, 100, 0]) for frame in frames] == pytest.approx([10 * step for step in range(13)], abs=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 2 * 120 + 2


def test_pictures_do_not_change_the_outcomes(run, alone, tmp_path, capsys):
    arguments = (*PASSING, "--contact-sheet", tmp_path / "sheet.png", "--vectorization", "async", "--num-envs", 2)
    assert told(capsys, "evaluate", run, *arguments)["outcomes"] == alone["outcomes"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 7 * 122 - 2


def test_hopeless_evaluations_stop(run, capsys):
    arguments = ("evaluate", run, *EPISODES, "--env-id", "test/Unreachable-v0", "--stop-when-hopeless", 0.5)
    found = told(capsys, *arguments)
    assert [each["seed"] for each in found["outcomes"]] == [3, 4, 5, 6]  # then at best 3 of 7
    assert (found["episodes"], found["successes"]) == (4, 0)
    assert main(say(*arguments)) == 0
    assert "hopeless after 4 of 7 episodes" in " ".join(capsys.readouterr().out.split())


def test_an_id_of_any_package(run, tmp_path, monkeypatch, capsys):
    """A package of a stranger, which its own process must import, too."""
    (tmp_path / "strange_robots.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(tmp_path)
    for vectorization in ("sync", "async"):
        arguments = ("--import", "strange_robots", "--env-id", "strange/Robot-v3", "--vectorization", vectorization)
        found = told(capsys, "evaluate", run, "--episodes", 2, "--num-envs", 1, *arguments)
        assert (found["environment_id"], found["mean_length"]) == ("strange/Robot-v3", 4.0)


STRANGE = """
import gymnasium
import numpy as np


class Robot(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-9, 9, (2,), np.float32)})
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"state": self.np_random.uniform(-1, 1, 2).astype(np.float32)}, {}

    def step(self, action):
        return {"state": np.asarray(action, np.float32)}, 1.0, False, False, {}


gymnasium.register("strange/Robot-v3", Robot, max_episode_steps=4)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--video-episodes", 2), "--video-episodes needs --video or --contact-sheet; add one, or leave it out"),
        (("--contact-sheet", "sheet.png", "--video-episodes", 0), "video_episodes (0) must be at least 1"),
        (("--contact-sheet", "sheet.jpg"), "--contact-sheet sheet.jpg: must end in .png; change the name"),
        (("--stop-when-hopeless", 0), "stop_when_hopeless (0.0) must be in (0, 1]; change it"),
        (("--env-id", "test/Unseen-v0", "--contact-sheet", "sheet.png"), "rendering is unavailable (no display)"),
        (("--env-id", "test/Unmakeable-v0"), "the environment cannot be made: FileNotFoundError: arm.xml is missing"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fail(capsys, "evaluate", run, *PASSING, *arguments)
    assert not list(tmp_path.iterdir())


def test_an_environment_that_cannot_draw(run, tmp_path, capsys):
    message = fail(capsys, "evaluate", run, *EPISODES, "--env-id", "test/Point-v0", "--video", tmp_path / "videos")
    assert message.startswith("the environment cannot be made: TypeError: ")
    assert "render_mode" in message


def test_videos_go_to_a_folder_of_their_own(run, tmp_path, capsys):
    (tmp_path / "mine").write_text("notes")
    assert "must be new or an empty folder" in fail(capsys, "evaluate", run, *PASSING, "--video", tmp_path)
