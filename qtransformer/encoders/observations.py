"""All that a robot senses and is told at one step to the observation tokens of that step.

    image/front   image/wrist   state, objects, instruction
    t1 ... t8     t1 ... t8     one token, the last: action tokens start from it

Words ask every camera's network what to look for. It must not know time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qtransformer.batch import ObservationSpec
from qtransformer.config import ModelConfig, Vision
from qtransformer.encoders.cameras import CameraEncoder
from qtransformer.encoders.efficientnet import EfficientNet
from qtransformer.encoders.state import StateEncoder, Statistics
from qtransformer.encoders.vision_weights import load_vision_weights


class ObservationEncoder(nn.Module):
    """Tokens of the images, key by key, then one of everything else."""

    def __init__(self, specs: tuple[ObservationSpec, ...], statistics: Statistics, config: ModelConfig) -> None:
        super().__init__()
        images = [spec for spec in specs if spec.kind == "image"]
        others = tuple(spec for spec in specs if spec.kind != "image")
        self.keys = tuple(spec.name for spec in specs)
        self.image_keys = tuple(spec.name for spec in images)
        self.state = StateEncoder(others, statistics, config.width) if others else None
        self.text_keys = self.state.text_keys if self.state else ()
        shapes = {spec.name: spec.shape for spec in images} | (self.state.shapes if self.state else {})
        self.shapes = {key: shapes[key] for key in self.keys}
        num_words = sum(self.shapes[key][0] for key in self.text_keys)
        self.cameras = nn.ModuleList(
            CameraEncoder(spec.shape, dict(statistics[spec.name]), num_words, config) for spec in images
        )
        self.is_bfloat16 = False  # of the cameras' products: set by who trains, never where the policy acts
        self.num_tokens = len(images) * config.image_tokens + bool(others)

    def forward(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch time slots width"]:
        """Returns the observation tokens of each step."""
        cameras, device = zip(self.image_keys, self.cameras, strict=True), next(iter(observations.values())).device
        with torch.autocast(device.type, torch.bfloat16) if self.is_bfloat16 else nullcontext():
            seen = [encode(observations[key], self._words(observations)).float() for key, encode in cameras]
        return torch.cat([*seen, *([self.state(observations)] if self.state else [])], dim=2)

    def grounding_loss(self, observations: Mapping[str, Tensor]) -> Float[Tensor, ""] | None:
        """Returns how badly instructions and tables of the first steps find each other; None where one is missing."""
        return self.state.grounding_loss(observations) if self.state and self.state.named else None

    def load_vision_weights(self, vision: Vision, path: Path) -> None:
        """Begins every camera's network with the weights in a file.

        Raises:
            RunError: it cannot be read, or is of another network.
        """
        for network in (each.network for each in self.cameras if isinstance(each, CameraEncoder)):
            assert isinstance(network, EfficientNet)  # by ModelConfig
            load_vision_weights(network, vision, path)

    def _words(self, observations: Mapping[str, Tensor]) -> Float[Tensor, "batch time words"]:
        """Returns what the cameras' networks are asked: the instruction, standardised; nothing where there is none."""
        if not self.state or not self.text_keys:
            pictures = observations[self.image_keys[0]]
            return torch.zeros(*pictures.shape[:2], 0, device=pictures.device)
        return torch.cat([*self.state.standardized(observations, self.text_keys).values()], dim=-1)
