"""One policy for many skills as a bundle: rows of objects, instructions in words, and no need of torch."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from bare_fixtures import passes_self_test

import qtransformer_envs  # noqa: F401 - registers the environments
from qtransformer.cli import main
from qtransformer.deploy.controller import Controller
from qtransformer_datasets.record_episodes import RecordEpisodes

TRAIN = ["--steps", "2", "--batch-size", "4", "--width", "32", "--num-layers", "1", "--num-bins", "9", "--window", "2"]
TRAIN += ["--allow", "no-reward"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Of a policy that hardly learned, from a few random steps at each skill."""
    environment = RecordEpisodes(gymnasium.make("qtransformer/Tabletop-v0"), tmp_path / "log")
    environment.action_space.seed(0)
    for seed in range(12):
        environment.reset(seed=seed)
        for _ in range(4):
            environment.step(environment.action_space.sample())
    environment.close()
    assert main(["train", "--dataset", str(tmp_path / "log"), "--out", str(tmp_path / "run"), *TRAIN]) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == 0
    return tmp_path / "bundle"


@pytest.mark.export
def test_its_self_test_passes_where_numpy_and_onnxruntime_are_all_there_is(bundle: Path, tmp_path: Path):
    card = json.loads((bundle / "policy.json").read_text())
    kinds = {each["name"]: (each["kind"], len(each["shape"])) for each in card["observations"]}
    assert kinds == {"instruction": ("text", 0), "objects": ("state", 2), "state": ("state", 1)}
    assert len({text.split()[0] for text in card["instructions"]}) >= 4, "the first word tells most skills apart"
    assert passes_self_test(bundle, tmp_path / "bare")
    controller = Controller(bundle)
    frame = {
        each["name"]: np.array(each["training_low"], np.float32).reshape(each["shape"])
        for each in card["observations"]
        if each["kind"] == "state"
    }
    for text in card["instructions"][:2]:
        controller.reset(text)
        assert controller.step(frame) is not None
    assert [controller.counters[name] for name in ("steps", "accepted")] == [2, 2]
