"""Settings: JSON and back, the paper's values, and every rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from learner_fixtures import make_config

from qtransformer.config import LearningConfig, ModelConfig, RunError, TokenConfig, TrainConfig
from qtransformer.presets import PRESETS


def test_json_and_back():
    config = make_config(LearningConfig(backup="n_step", polyak=0.5), num_levels=2, only_successful=True, width=32)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_paper_preset_is_the_paper():
    config = TrainConfig(Path("log"), Path("run"), **PRESETS["paper"])
    learning = config.learning
    assert (config.tokens, config.model.window) == (TokenConfig(num_bins=256, num_levels=1), 6)
    assert (learning.discount, learning.polyak, learning.conservative_weight) == (0.98, 0.99, 1.0)
    assert learning.monte_carlo_bound
    assert (learning.support_threshold, learning.support_temperature, learning.density_weight) == (0, 0, 0)
    assert learning.target_temperature == 0
    assert (learning.label_width, learning.environment_steps, learning.backup) == (0, 1, "one_step")


def test_the_default_preset_changes_nothing():
    assert PRESETS["default"] == {}


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (TokenConfig, {"num_bins": 1}, r"num_bins \(1\) must be at least 2; change --num-bins"),
        (TokenConfig, {"num_levels": 0}, r"num_levels \(0\) must be at least 1; change --num-levels"),
        (ModelConfig, {"window": 0}, r"window \(0\) must be at least 1; change --window"),
        (ModelConfig, {"width": 0}, r"width \(0\) must be at least 1"),
        (ModelConfig, {"num_layers": 0}, r"num_layers \(0\) must be at least 1"),
        (ModelConfig, {"num_heads": 0}, r"num_heads \(0\) must be at least 1"),
        (ModelConfig, {"num_heads": 3}, r"num_heads \(3\) must divide width \(64\); change --num-heads"),
        (ModelConfig, {"image_tokens": 0}, r"image_tokens \(0\) must be at least 1; change --image-tokens"),
        (
            ModelConfig,
            {"vision_weights": "b0.pth"},
            r"vision_weights \(b0.pth\) must be left out with --vision film_cnn; change --vision-weights",
        ),
        (LearningConfig, {"image_shift": -0.1}, r"image_shift \(-0.1\) must be in \[0, 1\]"),
        (LearningConfig, {"colour_jitter": 1.5}, r"colour_jitter \(1.5\) must be in \[0, 1\]"),
        (LearningConfig, {"discount": 1.1}, r"discount \(1.1\) must be in \[0, 1\]"),
        (LearningConfig, {"discount": float("nan")}, r"discount \(nan\) must be in \[0, 1\]"),
        (LearningConfig, {"polyak": -0.1}, r"polyak \(-0.1\) must be in \[0, 1\]"),
        (LearningConfig, {"support_threshold": 2.0}, r"support_threshold \(2.0\) must be in \[0, 1\]"),
        (LearningConfig, {"label_width": -0.1}, r"label_width \(-0.1\) must be at least 0"),
        (LearningConfig, {"conservative_weight": -1.0}, r"conservative_weight \(-1.0\) must be at least 0"),
        (LearningConfig, {"support_temperature": -1.0}, r"support_temperature \(-1.0\) must be at least 0"),
        (LearningConfig, {"target_temperature": -1.0}, r"target_temperature \(-1.0\) must be at least 0"),
        (LearningConfig, {"density_weight": -1.0}, r"density_weight \(-1.0\) must be at least 0"),
        (LearningConfig, {"expectile": 0.0}, r"expectile \(0.0\) must lie between 0 and 1; change --expectile"),
        (LearningConfig, {"expectile": 1.0}, r"expectile \(1.0\) must lie between 0 and 1"),
        (LearningConfig, {"inverse_temperature": -1.0}, r"inverse_temperature \(-1.0\) must be at least 0"),
        (LearningConfig, {"weight_decay": -1.0}, r"weight_decay \(-1.0\) must be at least 0"),
        (LearningConfig, {"learning_rate": 0.0}, r"learning_rate \(0.0\) must be above 0"),
        (LearningConfig, {"max_gradient_norm": 0.0}, r"max_gradient_norm \(0.0\) must be above 0"),
        (LearningConfig, {"density_weight": 0.0}, "the density says what is supported; change --density-weight"),
        (
            LearningConfig,
            {"density_weight": 0.0, "support_temperature": 0.0, "target_temperature": 0.0, "support_threshold": 0.1},
            r"density_weight \(0.0\) must be above 0, or support_threshold and both temperatures be 0",
        ),
        (make_config, {"steps": 0}, r"steps \(0\) must be at least 1"),
        (make_config, {"batch_size": 0}, r"batch_size \(0\) must be at least 1"),
        (make_config, {"num_threads": 0}, r"num_threads \(0\) must be at least 1"),
        (make_config, {"log_every": 0}, r"log_every \(0\) must be at least 1"),
        (make_config, {"checkpoint_every": 0}, r"checkpoint_every \(0\) must be at least 1"),
        (make_config, {"seed": -1}, r"seed \(-1\) must be at least 0"),
    ],
)
def test_every_rule(make, changes, message):
    with pytest.raises(RunError, match=message):
        make(**changes)
