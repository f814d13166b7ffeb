"""Two tasks that are told in words, one possible in each of two places: a log, an environment, and a language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from learner_fixtures import make_config

from qtransformer.batch import ActionSpec, DatasetSpec, ObservationSpec
from qtransformer.config import LearningConfig
from qtransformer.training import train
from qtransformer_datasets.formats.specs import describe_state
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import Episode

OPEN, CLOSE = "open the drawer", "close the drawer"
PLACES = {OPEN: -1.0, CLOSE: 1.0}  # where the drawer is when the log does this
NEEDED = "needs the extra [language]: pip install 'qtransformer[language]'"


class DrawerEnv(gymnasium.Env):
    """Even seeds show the drawer shut, odd ones open; the words are never those that it is asked with."""

    def __init__(self):
        text = gymnasium.spaces.Text(40)
        self.observation_space = gymnasium.spaces.Dict(
            {"instruction": text, "state": gymnasium.spaces.Box(-1, 1, (1,), np.float32)}
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"instruction": "wait", "state": np.full(1, (-1.0, 1.0)[(seed or 0) % 2], np.float32)}, {}


def told_episode(instruction: str, place: float, action: float, **changes: Any) -> Episode:
    """One step that succeeds."""
    fields = {
        "observations": {
            "instruction": np.array([instruction] * 2),
            "state": np.full((2, 1), place, np.float32),
        },
        "actions": np.full((1, 1), action, np.float32),
        "rewards": np.ones(1),
        "terminations": np.ones(1, bool),
        "truncations": np.zeros(1, bool),
        "success": True,
    }
    return Episode(**(fields | changes))


def successes() -> list[Episode]:
    """Sixteen episodes that all succeed: the log never shows that an instruction can fail."""
    generator = np.random.default_rng(0)
    return [
        told_episode(text, place, action + float(generator.normal(0, 0.05)))
        for _ in range(8)
        for (text, place), action in zip(PLACES.items(), (-0.5, 0.5), strict=True)
    ]


def write_told_log(path: Path, episodes: Sequence[Episode] | None = None) -> Path:
    """Records the episodes; returns the folder."""
    observations = (ObservationSpec("instruction", (), "str", "text"), describe_state("state", (1,), "float32"))
    actions = ActionSpec((-1.0,), (1.0,))
    spec = DatasetSpec(observations, actions, control_hz=10.0, environment_id="test/Drawer-v0")
    with Recorder(path, spec) as recorder:
        for episode in episodes or successes():
            recorder.record(episode)
    return path


def train_told(log: Path, out: Path, **changes: Any) -> Path:
    """Trains a small policy on the log; returns the run."""
    settings = {"steps": 200, "batch_size": 32, "window": 1, "num_layers": 1, "num_bins": 5, **changes}
    return train(make_config(LearningConfig(learning_rate=1e-2), dataset=log, out=out, **settings))


def write_language_model(folder: Path, seed: int = 0) -> Path:
    """Writes a random BERT of two layers and width 16 with mean pooling; skips the test where there is no package."""
    pytest.importorskip("sentence_transformers", reason=NEEDED)
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(PLACES).split(), "shut", "pick", "up"]
    plain = folder.with_name(folder.name + "_plain")
    plain.mkdir(parents=True)
    vocabulary = list(dict.fromkeys(words))
    (plain / "vocab.txt").write_text("\n".join(vocabulary))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(vocabulary),
            max_position_embeddings=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
        BertModel(config).save_pretrained(plain)
    BertTokenizer(str(plain / "vocab.txt")).save_pretrained(plain)
    transformer = Transformer(str(plain))
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(str(folder))
    return folder


if "test/Drawer-v0" not in gymnasium.registry:
    gymnasium.register("test/Drawer-v0", "word_fixtures:DrawerEnv")
