"""Every setting of a run, as frozen dataclasses; the string under a field is its `--help` text.

Config stops at constructors: the equations of `backup` and `losses` take plain numbers. It must not know torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Algorithm = Literal["q_transformer", "behaviour_cloning"]
Preset = Literal["default", "paper"]


class RunError(Exception):
    """A setting, a run folder or a bundle cannot be used; the message says which, why and what to do."""


def _require(name: str, value: Any, is_sound: bool, rule: str) -> None:
    if not is_sound:
        raise RunError(f"{name} ({value}) must {rule}; change --{name.replace('_', '-')}")


@dataclass(frozen=True)
class TokenConfig:
    """How an action becomes tokens."""

    num_bins: int = 32
    """Bins a token chooses from."""
    num_levels: int = 1
    """Tokens a dimension, coarse to fine: num_bins ** num_levels values a dimension."""

    def __post_init__(self) -> None:
        _require("num_bins", self.num_bins, self.num_bins >= 2, "be at least 2")
        _require("num_levels", self.num_levels, self.num_levels >= 1, "be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """The Transformer."""

    window: int = 2
    """Observations that the policy sees, the newest included. Also the steps of a training segment."""
    width: int = 64
    """Features of a token."""
    num_layers: int = 2
    """Self-attention blocks over the observations of the window."""
    num_action_layers: int = 1
    """Self-attention blocks over the action tokens of a step and its observation's features."""
    num_heads: int = 4
    """Attention heads; must divide width."""

    def __post_init__(self) -> None:
        for name in ("window", "width", "num_layers", "num_action_layers", "num_heads"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "be at least 1")
        _require("num_heads", self.num_heads, self.width % self.num_heads == 0, f"divide width ({self.width})")


@dataclass(frozen=True)
class LearningConfig:
    """Targets, losses and the optimizer."""

    discount: float = 0.98
    """Gamma, per environment step."""
    backup: Literal["one_step", "n_step"] = "one_step"
    """Over action dimensions: each backs up the next (eq. 1), or all share R + gamma Q of the next action's last."""
    monte_carlo_bound: bool = True
    """Targets are at least the return that was seen (section 4.3)."""
    conservative_weight: float = 0.1
    """Alpha of eq. 2: how strongly bins that were not logged are pulled to the least return."""
    polyak: float = 0.99
    """Share of the target network that stays at each update."""
    support_threshold: float = 0.0
    """Bins with less than this share of the likeliest bin's density are never chosen; 0 admits all, 1 one alone."""
    support_temperature: float = 0.1
    """Bins are chosen by Q + temperature * log density, Q in [0, 1]; 0 is the maximum of Q."""
    density_weight: float = 1.0
    """Weight of the density's cross-entropy beside the squared error of Q."""
    advantage_sharpness: float = 1.0
    """The density imitates an action exp(sharpness * its advantage in standard deviations) as much; 0: all alike."""
    label_width: float = 0.1
    """How far a logged action speaks for its neighbours: standard deviation as a share of the range; 0 is one-hot."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW: 100 updates of warm-up, then linear to a twentieth."""
    weight_decay: float = 0.01
    """Of every parameter with two axes or more: matrices, embeddings, the heads' biases."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        for name in ("discount", "polyak", "support_threshold", "label_width"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "be in [0, 1]")
        for name in (
            "conservative_weight",
            "support_temperature",
            "density_weight",
            "advantage_sharpness",
            "weight_decay",
        ):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "be at least 0")
        for name in ("learning_rate", "max_gradient_norm"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "be above 0")
        needs_density = self.support_threshold > 0 or self.support_temperature > 0
        rule = "be above 0, or support_threshold and support_temperature be 0: the density says what is supported"
        _require("density_weight", self.density_weight, self.density_weight > 0 or not needs_density, rule)


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    dataset: Path
    """Log to train on: a folder that `qtransformer collect` wrote, or another Minari dataset."""
    out: Path
    """Run folder to make."""
    preset: Preset = "default"
    """Where the settings start from: ours, or the paper's recipe (arXiv 2309.10150). Flags override it."""
    algorithm: Algorithm = "q_transformer"
    """q_transformer, or its baseline: cloning with the same tokens, trunk and labels."""
    only_successful: bool = False
    """Train on the successful episodes alone."""
    steps: int = 3000
    """Updates."""
    batch_size: int = 96
    """Segments in an update."""
    seed: int = 0
    """Of the weights and of the order of the data."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""
    num_threads: int = 1
    """CPU threads of torch. One is best for small models; more than there are free cores is far slower."""
    log_every: int = 100
    """Updates between two lines of metrics.jsonl."""
    checkpoint_every: int = 500
    """Updates between two checkpoints."""
    resume: bool = False
    """Go on with the run in --out from its newest checkpoint."""
    tokens: TokenConfig = TokenConfig()
    model: ModelConfig = ModelConfig()
    learning: LearningConfig = LearningConfig()

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_threads", "log_every", "checkpoint_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "be at least 1")
        _require("seed", self.seed, self.seed >= 0, "be at least 0")

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts, strings and numbers."""
        return {**asdict(self), "dataset": str(self.dataset), "out": str(self.out)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Inverse of `to_json`."""
        nested = {"tokens": TokenConfig, "model": ModelConfig, "learning": LearningConfig}
        built = {key: each(**data[key]) for key, each in nested.items()}
        return cls(**{**data, **built, "dataset": Path(data["dataset"]), "out": Path(data["out"])})


# What a preset changes. The paper gives no learning rate, batch size or small model: those stay ours.
PRESETS: dict[Preset, dict[str, Any]] = {
    "default": {},
    "paper": {
        "tokens": TokenConfig(num_bins=256),
        "model": ModelConfig(window=6),
        "learning": LearningConfig(
            conservative_weight=1.0,
            support_temperature=0.0,
            density_weight=0.0,
            advantage_sharpness=0.0,
            label_width=0.0,
        ),
    },
}
