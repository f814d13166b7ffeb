"""Instructions from log to policy: what is said decides, not the place in the table; unknown words are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bare_fixtures import passes_self_test
from told_fixtures import COLOURS

from qtransformer.cli import main
from qtransformer.deploy.card import schema, schema_violations
from qtransformer.deploy.controller import Controller, ControllerError
from qtransformer.loading import load_run, open_policy
from qtransformer_datasets.formats import open_dataset

COLLECT = ["--env-id", "test/Told-v0", "--import", "told_fixtures", "--num-workers", "1", "--episodes", "400"]
NOISE = ["--noise-std", "0.3", "--random-action-probability", "0.3"]
TRAIN = ["--steps", "400", "--batch-size", "64", "--num-bins", "9", "--width", "32", "--log-every", "200"]
PLAY = ["--episodes", "60", "--seed", "7000", "--import", "told_fixtures", "--json"]
STATE = {"objects": np.zeros((3, 4), np.float32), "state": np.zeros(1, np.float32)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    assert main(["collect", "--out", str(folder / "log"), *COLLECT, *NOISE]) == 0
    assert main(["train", "--dataset", str(folder / "log"), "--out", str(folder / "run"), *TRAIN]) == 0
    return folder / "run"


def success_rate(capsys, path, *flags):
    capsys.readouterr()
    assert main(["evaluate", str(path), *PLAY, *flags]) == 0
    return json.loads(capsys.readouterr().out)["success_rate"]


def test_the_object_that_is_named_is_touched(run, capsys):
    assert success_rate(capsys, run) >= 0.9
    assert success_rate(capsys, run, "--env-id", "test/Lying-v0") <= 0.1


def test_the_encoder_knows_the_words_of_the_log(run):
    policy = open_policy(run).policy
    policy.reset(0)
    assert policy.act([0], [{**STATE, "instruction": "Touch the RED object!"}]).shape == (1, 1)
    with pytest.raises(ControllerError, match=r"'touch the mug' has words that the log never had: \['mug'\]; the n"):
        policy.act([0], [{**STATE, "instruction": "touch the mug"}])
    with pytest.raises(ControllerError, match="an instruction must be text, got ndarray; give a str"):
        policy.act([0], [{**STATE, "instruction": np.array(3)}])


def test_a_checkpoint_names_the_instructions_and_the_samples_hold_their_vectors(run):
    loaded = load_run(run)
    assert len(loaded.info["instructions"]) == 6
    samples = loaded.samples().observations
    assert samples["instruction"].shape[2:] == (128,)
    assert set(np.unique(samples["objects"])) <= {-0.75, 0.0, 0.75, 1.0}


def test_the_log_says_what_the_words_of_an_episode_mean(run):
    episodes = open_dataset(run.parent / "log").episodes
    assert {episode.goal for episode in episodes} == set(COLOURS)
    assert all(str(episode.goal) in str(episode.instruction).split() for episode in episodes)


def test_the_order_of_the_rows_says_little(run):
    """Objects come in any order in the log."""
    policy = load_run(run).policy.model.encoder
    samples = load_run(run).samples().observations
    observations = {key: torch.from_numpy(value) for key, value in samples.items()}
    turned = {**observations, "objects": observations["objects"][:, :, [2, 0, 1]]}
    with torch.no_grad():
        token, other = policy(observations), policy(turned)
    assert (token - other).std() < 0.2 * token.std()


def test_explaining_a_run_reads_instructions(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    arguments = ["explain", str(run), "--dataset", str(run.parent / "log"), "--episode", "0", "--out", str(page)]
    assert main(arguments) == 0
    assert page.exists()


@pytest.mark.export
def test_a_bundle_is_told_in_words_and_needs_numpy_and_onnxruntime_alone(run, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    assert main(["export", str(run), "--out", str(bundle)]) == 0
    assert success_rate(capsys, bundle) == success_rate(capsys, run)
    card = json.loads((bundle / "policy.json").read_text())
    (told,) = (each for each in card["observations"] if each["name"] == "instruction")
    assert (told["kind"], told["dtype"], told["shape"]) == ("text", "str", [])
    assert {each["name"]: each["shape"] for each in card["inputs"]}["instruction"] == [1, 128]
    assert "touch the red one" in card["instructions"]
    assert passes_self_test(bundle, tmp_path / "bare")
    controller = Controller(bundle)
    controller.reset("touch the red one")
    action = controller.step(STATE)
    controller.reset()
    told = controller.step({**STATE, "instruction": "touch the red one"})
    assert action is not None
    assert told is not None
    assert action.tolist() == told.tolist()
    assert list(schema_violations(card, schema())) == []
