"""A language model instead of the encoder of words: from folder to table, checkpoint and bundle, and what is refused.

The model is a random BERT of width 16: what its vectors mean is not asked, but that they reach the policy unchanged.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from word_fixtures import CLOSE, OPEN, train_told, write_language_model, write_told_log

from qtransformer.checkpoint import load_checkpoint
from qtransformer.cli import main
from qtransformer.config import DataConfig, RunError
from qtransformer.deploy.controller import Controller, ControllerError, InstructionTable, WordEncoder, text_encoder
from qtransformer.language import LanguageModel, encoded, run_encoder
from qtransformer.loading import open_policy
from qtransformer.training_log import open_training_log, told
from qtransformer_datasets.formats import open_dataset

STATE = {"state": np.array([-1.0], np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "model")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_told_log(tmp_path_factory.mktemp("told") / "log")


@pytest.fixture(scope="module")
def run(log: Path, model: Path) -> Path:
    return train_told(log, log.parent / "run", language=str(model), steps=3, checkpoint_every=2)


def act(path: Path, instruction: Any) -> np.ndarray:
    policy = open_policy(path).policy
    policy.reset(0)
    return policy.act([0], [{**STATE, "instruction": instruction}])


# --- the model --------------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_package_and_depend_on_the_text_alone(model: Path):
    from sentence_transformers import SentenceTransformer

    before = torch.random.get_rng_state()
    ours = LanguageModel(model)
    vectors = [ours.encode(text) for text in (OPEN, CLOSE, OPEN)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (vectors[0].dtype, vectors[0].shape) == (np.float32, (16,))
    assert vectors[0].tolist() == vectors[2].tolist() == LanguageModel(model).encode(OPEN).tolist()
    theirs = np.asarray(SentenceTransformer(str(model), device="cpu").encode([OPEN, CLOSE]))
    np.testing.assert_allclose(vectors[:2], theirs, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01


def test_the_fingerprint_is_of_what_the_vectors_depend_on(model: Path, tmp_path: Path):
    same = shutil.copytree(model, tmp_path / "same")
    (same / "README.md").write_text("other words")
    other = write_language_model(tmp_path / "other", seed=1)
    assert LanguageModel(model).fingerprint == LanguageModel(same).fingerprint
    assert LanguageModel(model).fingerprint != LanguageModel(other).fingerprint


def list_parts(folder: Path, **changes: str) -> None:
    path = folder / "modules.json"
    parts = json.loads(path.read_text())
    path.write_text(json.dumps([{**parts[0], **changes}, *parts[1:]]))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: shutil.rmtree(folder), r"must be the folder of a sentence-transformers model, with modules\.j"),
        (lambda folder: (folder / "modules.json").write_text("{}"), "modules.json must list parts inside the folder"),
        (lambda folder: (folder / "modules.json").write_text("[1]"), "with modules.json .*; fetch one, and save it"),
        (lambda folder: list_parts(folder, path="../plain"), "modules.json must list parts inside the folder"),
        (lambda folder: list_parts(folder, type="evil.Transformer"), "got evil.Transformer, which may be any code"),
        (lambda folder: list_parts(folder, type="sentence_transformers.x.Router"), "got .*Router, which may be any"),
        (lambda folder: (folder / "model.safetensors").unlink(), "must hold weights in safetensors, got none; pickled"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04."), "cannot be loaded "),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert2"}'), "cannot be loaded "),
    ],
)
def test_a_folder_that_is_no_such_model(model: Path, tmp_path: Path, damage, match: str):
    folder = shutil.copytree(model, tmp_path / "model")
    damage(folder)
    with pytest.raises(RunError, match=f"--language {folder}: .*{match}") as caught:
        LanguageModel(folder).encode(OPEN)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_opened(model: Path, tmp_path: Path):
    """A part with weights in both forms: the pickle beside the tensors would write a file."""
    folder, trap = shutil.copytree(model, tmp_path / "model"), tmp_path / "sprung"
    for place in (folder, *(each for each in folder.iterdir() if each.is_dir())):
        (place / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {trap}'\ntR.".encode())
    LanguageModel(folder).encode(OPEN)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match="pickled ones"):
        LanguageModel(folder)
    assert not trap.exists()


def test_without_the_package_it_is_said_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(RunError, match=r"--language needs a package .*pip install 'qtransformer\[language\]'"):
        LanguageModel(model).encode(OPEN)


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_table_knows_its_texts_and_no_others():
    vectors = np.array([[1.5, -2.25], [0.1, 3e-39]], np.float32)
    table = text_encoder({"instructions": [OPEN, CLOSE], "language": {"vectors": [encoded(each) for each in vectors]}})
    assert isinstance(table, InstructionTable)
    assert [table.encode(text).tolist() for text in (OPEN, CLOSE)] == vectors.tolist()
    with pytest.raises(ControllerError, match=r"'shut it' is none that the policy was trained on; the nearest that it"):
        table.encode("shut it")
    with pytest.raises(ControllerError, match="an instruction must be text, got bytes; give a str"):
        table.encode(OPEN.encode())
    assert isinstance(text_encoder({"instructions": [OPEN], "language": None}), WordEncoder)


def test_the_table_is_made_once_for_a_model_and_its_texts(log: Path, model: Path, tmp_path: Path, monkeypatch):
    asked, encode = [], LanguageModel.encode
    monkeypatch.setattr(LanguageModel, "encode", lambda self, text: asked.append(text) or encode(self, text))
    log = shutil.copytree(log, tmp_path / "log", ignore=shutil.ignore_patterns(".qtransformer_cache"))
    found = [told(open_dataset(log), DataConfig(language=str(model))) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["instructions"] == [CLOSE, OPEN]
    assert asked == [CLOSE, OPEN]
    np.testing.assert_array_equal(text_encoder(found[0]).encode(OPEN), encode(LanguageModel(model), OPEN))
    other = write_language_model(tmp_path / "other", seed=1)
    assert told(open_dataset(log), DataConfig(language=str(other))) != found[0]
    assert asked[2:] == [CLOSE, OPEN]


def test_a_log_without_words_needs_no_model(log: Path, model: Path):
    config = DataConfig(language=str(model), observations=("state",))
    with pytest.raises(RunError, match=r"--language .*: .*log has no instructions to encode; leave it out"):
        told(open_training_log(train_config(log, config)), config)


def train_config(log: Path, data: DataConfig):
    from learner_fixtures import make_config

    return make_config(dataset=log, observations=data.observations)


# --- runs and bundles -------------------------------------------------------------------------------------------------


def test_the_policy_sees_the_models_vectors(run: Path, model: Path):
    info = load_checkpoint(run).info
    vector = LanguageModel(model).encode(OPEN)
    np.testing.assert_array_equal(run_encoder(info)(OPEN), vector)
    samples = np.load(run / "samples.npz")["observations/instruction"]
    assert samples.shape[2:] == (16,)
    assert (samples == vector).all(axis=-1).any()
    mean = np.mean([LanguageModel(model).encode(text) for text in (OPEN, CLOSE)], axis=0)
    np.testing.assert_allclose(info["statistics"]["instruction"]["mean"], mean, rtol=1e-6)


def test_new_words_are_encoded_where_the_model_is_and_refused_where_it_is_not(run: Path, model: Path, tmp_path: Path):
    assert act(run, "shut the drawer").shape == (1, 1)
    with pytest.raises(ControllerError, match="an instruction must be text, got int; give a str"):
        act(run, 3)
    info = load_checkpoint(run).info
    moved = {**info, "config": {**info["config"], "data": {**info["config"]["data"], "language": str(tmp_path / "x")}}}
    encode = run_encoder(moved)
    np.testing.assert_array_equal(encode(OPEN), run_encoder(info)(OPEN))
    with pytest.raises(ControllerError, match=r"'shut it' is none .*nearest .*; nor can it be .*with modules\.json"):
        encode("shut it")
    other = write_language_model(tmp_path / "x", seed=1)
    with pytest.raises(ControllerError, match=f"nor can it be encoded here: --language {other}: holds another model"):
        run_encoder(moved)("shut it")


def test_a_run_is_resumed_with_its_own_model_alone(log: Path, model: Path, tmp_path: Path):
    folder = shutil.copytree(model, tmp_path / "model")
    out = train_told(log, tmp_path / "run", language=str(folder), steps=2)
    shutil.rmtree(folder)
    shutil.copytree(write_language_model(tmp_path / "other", seed=1), folder)
    with pytest.raises(RunError, match=r"--resume .*: --language holds another model than the run began with"):
        train_told(log, out, language=str(folder), steps=2, resume=True)


@pytest.mark.export
def test_a_bundle_holds_the_table(run: Path, model: Path, tmp_path: Path):
    bundle = tmp_path / "bundle"
    assert main(["export", str(run), "--out", str(bundle)]) == 0
    assert main(["verify", str(bundle)]) in (0, 2)  # 2: torch is loaded here
    controller = Controller(bundle)
    assert controller.card["language"]["fingerprint"] == LanguageModel(model).fingerprint
    controller.reset(OPEN)
    action = controller.step(STATE)
    assert action is not None
    np.testing.assert_allclose(action, act(run, OPEN)[0], atol=1e-6)
    assert controller.step({**STATE, "instruction": "shut the drawer"}) is None
    assert controller.counters["instruction"] == 1
    with pytest.raises(ControllerError, match="'shut it' is none that the policy was trained on; the nearest"):
        controller.reset("shut it")
