"""Opening runs: what comes back acts as what was trained; what is no run is named."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_fixtures import assert_same_bits, make_config, write_log

from qtransformer.checkpoint import CheckpointError, load_checkpoint
from qtransformer.config import RunError
from qtransformer.loading import load_run, open_policy
from qtransformer.policy import CheckpointPolicy
from qtransformer.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    return train(make_config(dataset=write_log(folder / "log"), out=folder / "run", steps=3))


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_comes_back_as_it_was_trained(trained):
    loaded = load_run(trained)
    assert_same_bits(
        dict(sorted(loaded.policy.state_dict().items())), dict(sorted(load_checkpoint(trained).weights.items()))
    )
    assert not loaded.policy.training
    assert loaded.spec.environment_id == "test/Point-v0"
    assert loaded.spec.actions.elements == ("left", "right")
    assert loaded.info["step"] == 3


def test_the_standardisation_of_the_log_is_part_of_the_policy(trained):
    statistics = load_run(trained).info["statistics"]["state"]
    standardizer = load_run(trained).policy.state_dict()
    np.testing.assert_allclose(standardizer["model.encoder.state.standardizers.0.mean"], statistics["mean"], rtol=1e-6)


def test_the_samples_are_logged_windows(trained):
    samples = load_run(trained).samples()
    assert set(samples.observations) == {"state"}
    assert samples.observations["state"].shape == (24, 3, 2)  # every step of the log, window 3
    assert set(samples.num_frames.tolist()) == {1, 2, 3}


def test_the_card_says_where_a_policy_comes_from(trained):
    card = json.loads(json.dumps(load_run(trained).card()))
    assert card["step"] == 3
    assert card["config"]["algorithm"] == "q_transformer"
    assert set(card["observation_ranges"]["state"]) == {"low", "high"}
    assert {"statistics", "return_scale", "dataset", "versions", "git_revision"} <= set(card)


def test_a_run_folder_opens_as_a_policy(trained):
    opened = open_policy(trained)
    assert isinstance(opened.policy, CheckpointPolicy)
    assert (opened.environment_id, opened.environment_kwargs) == ("test/Point-v0", {})
    opened.policy.reset(0)
    assert opened.policy.act([0], [{"state": np.zeros(2, np.float32)}]).shape == (1, 2)


def test_where_a_policy_is_played(trained):
    opened = replace(open_policy(trained), environment_kwargs={"size": 3})
    assert opened.environment() == ("test/Point-v0", {"size": 3})
    assert opened.environment("other/Task-v1") == ("other/Task-v1", {})
    homeless = replace(opened, environment_id=None)
    assert homeless.environment("other/Task-v1") == ("other/Task-v1", {})
    with pytest.raises(RunError, match=f"{trained}: its log names no environment; name one with --env-id"):
        homeless.environment()


@pytest.mark.parametrize("algorithm", ["q_transformer", "implicit_q_learning", "behaviour_cloning"])
def test_values_are_shown_as_returns_of_the_log(trained, algorithm):
    opened = open_policy(trained)
    origin = {"config": {"algorithm": algorithm}, "return_scale": {"low": -3.0, "high": 5.0}}
    value_of = replace(opened, origin=origin).value_of()
    assert (value_of is None) == (algorithm == "behaviour_cloning")
    assert value_of is None or [value_of(q) for q in (0.0, 0.25, 1.0)] == [-3.0, -1.0, 5.0]
    assert opened.value_of() is not None


def test_a_checkpoint_folder_opens_too(trained):
    assert load_run(trained / "checkpoints" / "step_000000003").info["step"] == 3


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "noise", "other arrays"])
def test_damaged_samples(run, damage):
    path = run / "samples.npz"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "noise": b"noise" * 9}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    elif damage == "other arrays":
        np.savez(path, other=np.zeros(3))
    with pytest.raises(RunError, match=r"samples\.npz: is missing or damaged .*; train again"):
        load_run(run).samples()


def test_damaged_member_of_the_samples(run):
    path = run / "samples.npz"
    content = bytearray(path.read_bytes())
    content[100:200] = b"\x00" * 100
    path.write_bytes(content)
    with pytest.raises(RunError, match="is missing or damaged"):
        load_run(run).samples()


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    for name in ("missing", "file"):
        with pytest.raises(
            RunError, match=r"must be the folder of a run or of a bundle, got no folder; check the path"
        ):
            open_policy(tmp_path / name)


def test_a_folder_without_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_policy(tmp_path)


def test_cloning_runs_load_as_cloning(tmp_path):
    config = make_config(dataset=write_log(tmp_path / "log"), out=tmp_path / "run", steps=2)
    loaded = load_run(train(replace(config, algorithm="behaviour_cloning")))
    assert (loaded.policy.support_threshold, loaded.policy.support_temperature) == (0.0, math.inf)
    assert torch.get_num_threads() == 1
