"""What a preset changes: where the settings of a run start from before its flags."""

from __future__ import annotations

from typing import Any

from qtransformer.config import LearningConfig, ModelConfig, Preset, TokenConfig

# The paper gives no learning rate, batch size or small model: those stay ours.
PRESETS: dict[Preset, dict[str, Any]] = {
    "default": {},
    "paper": {
        "tokens": TokenConfig(num_bins=256),
        "model": ModelConfig(window=6),
        "learning": LearningConfig(
            environment_steps=1,
            conservative_weight=1.0,
            support_temperature=0.0,
            target_temperature=0.0,
            density_weight=0.0,
            grounding_weight=0.0,
            advantage_sharpness=0.0,
            label_width=0.0,
        ),
    },
    # Conservative Q-learning (arXiv 2006.04779) over tokens: a plain maximum of Q, no density, no bound.
    "cql": {
        "learning": LearningConfig(
            environment_steps=1,
            monte_carlo_bound=False,
            regularizer="softmax",
            support_temperature=0.0,
            target_temperature=0.0,
            density_weight=0.0,
            grounding_weight=0.0,
            advantage_sharpness=0.0,
        ),
    },
}
