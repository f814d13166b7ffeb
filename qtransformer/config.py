"""Every setting of a run, as frozen dataclasses; the string under a field is its `--help` text.

Config stops at constructors: the equations of `backup` and `losses` take plain numbers. It must not know torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from qtransformer.batch import Balance, ReadOptions, tuples

Algorithm = Literal["q_transformer", "behaviour_cloning", "implicit_q_learning", "decision_transformer"]
Preset = Literal["default", "paper", "cql"]
Vision = Literal["film_cnn", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3"]
OnBadBatch = Literal["stop", "skip"]

# These act by the density alone. Their Q-values mean nothing, but for those of the last token that IQL learns.
ACT_BY_DENSITY: frozenset[Algorithm] = frozenset({"behaviour_cloning", "implicit_q_learning", "decision_transformer"})
WITHOUT_VALUES: frozenset[Algorithm] = frozenset({"behaviour_cloning", "decision_transformer"})

_LEAST_ATOMS = 11  # HL-Gauss spends four and a half on margins
_MAX_BITS = 12  # of an action dimension: 4,096 values; labels are kept as a table of all of them


class RunError(Exception):
    """A setting, a run folder or a bundle cannot be used; the message says which, why and what to do."""


@contextmanager
def writing(flag: str, path: Path) -> Iterator[None]:
    """Turns a failure to write what the user asked for with `flag` into one line.

    Raises:
        RunError: the file system refused.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{flag} {path}: cannot be written ({error.strerror or error}); choose another path") from error


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
    binning: Literal["uniform", "quantile"] = "uniform"
    """Cells of equal width, or around values that split the log's actions into equal shares."""
    order: Literal["level_major", "dimension_major"] = "level_major"
    """With several levels: the coarse tokens of all dimensions first, or all tokens of a dimension together."""

    def __post_init__(self) -> None:
        _require("num_bins", self.num_bins, self.num_bins >= 2, "be at least 2")
        _require("num_levels", self.num_levels, self.num_levels >= 1, "be at least 1")
        rule = f"leave num_bins ** num_levels ({self.num_levels}) at most {2**_MAX_BITS}, more than sensors tell apart"
        _require("num_bins", self.num_bins, self.num_levels * log2(self.num_bins) <= _MAX_BITS, rule)

    @property
    def num_cells(self) -> int:
        """Values a dimension."""
        return self.num_bins**self.num_levels


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
    num_atoms: int = 1
    """1: Q is a sigmoid, learned by squared error (eq. 2). More: the mean of so many atoms, by HL-Gauss; often 51."""
    vision: Vision = "film_cnn"
    """Network of each camera, which the instruction directs: a small one for images of 64 to 128 pixels, or an
    EfficientNet, for larger ones and with a GPU."""
    vision_weights: str | None = None
    """File with weights of an EfficientNet to begin with: a state dict of torchvision or timm, .safetensors or .pth."""
    image_tokens: int = 8
    """Observation tokens an image (TokenLearner)."""

    def __post_init__(self) -> None:
        for name in ("window", "width", "num_layers", "num_action_layers", "num_heads", "image_tokens"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "be at least 1")
        _require(
            "num_atoms",
            self.num_atoms,
            self.num_atoms == 1 or self.num_atoms >= _LEAST_ATOMS,
            f"be 1 or at least {_LEAST_ATOMS}",
        )
        is_sound = self.vision_weights is None or self.vision != "film_cnn"
        _require("vision_weights", self.vision_weights, is_sound, "be left out with --vision film_cnn")
        _require("num_heads", self.num_heads, self.width % self.num_heads == 0, f"divide width ({self.width})")


@dataclass(frozen=True)
class LearningConfig:
    """Targets, losses and the optimizer."""

    discount: float = 0.98
    """Gamma, per environment step."""
    backup: Literal["one_step", "n_step"] = "one_step"
    """Over action dimensions: each backs up the next (eq. 1), or all share R + gamma Q of the next action's last."""
    environment_steps: int = 5
    """Rewards of the log before the bootstrap: R_t + gamma R_{t+1} + ... + gamma^n V(s_{t+n}); 1 in eq. 1."""
    monte_carlo_bound: bool = True
    """Targets are at least the return that was seen (section 4.3)."""
    conservative_weight: float = 0.1
    """Alpha of eq. 2: how strongly bins that were not logged are pulled down; 0 leaves them alone."""
    regularizer: Literal["floor", "softmax"] = "floor"
    """Pulls them to the least return (eq. 2), or down against the logged one (CQL, the paper's ablation)."""
    polyak: float = 0.99
    """Share of the target network that stays at each update."""
    support_threshold: float = 0.0
    """Bins with less than this share of the likeliest bin's density are never chosen; 0 admits all, 1 one alone."""
    support_temperature: float = 0.5
    """Bins are chosen by Q + temperature * log density, Q in standard deviations of whole actions; 0: maximum of Q."""
    target_temperature: float = 0.1
    """The same for the policy whose value the targets hold, but in shares of the range of returns, as its errors are:
    the less it trusts Q, the less they grow."""
    density_weight: float = 1.0
    """Weight of the density's cross-entropy beside the squared error of Q."""
    grounding_weight: float = 0.1
    """Weight of the question which table of a batch an instruction speaks of: it teaches words, without a label."""
    advantage_sharpness: float = 1.0
    """The density imitates an action exp(sharpness * its advantage in standard deviations) as much; 0: all alike."""
    expectile: float = 0.9
    """Implicit Q-learning: V is this expectile of the logged actions' Q; 0.5 is their mean, near 1 the best of them."""
    inverse_temperature: float = 10.0
    """Implicit Q-learning: the density imitates an action exp(this * (Q - V)) as much, Q and V in [0, 1]."""
    label_width: float = 0.7
    """How far a logged action speaks for its neighbours, in standard deviations of the log's noise; 0 is one-hot."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW: 100 updates of warm-up, then linear to a twentieth."""
    weight_decay: float = 0.01
    """Of every parameter with two axes or more: matrices, embeddings, the heads' biases."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    image_shift: float = 0.05
    """Images are moved by up to this share of their height and width, a whole segment alike, while training."""
    colour_jitter: float = 0.1
    """Brightness, contrast and saturation of images are changed by up to this share, likewise; 0 leaves them alone."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's matrix products in training; weights and losses stay float32. bfloat16 pays from a width of
    some 256 on, on a GPU or a CPU that has it."""
    compile: bool = False
    """Train through torch.compile: minutes once, then faster updates. Needs a C++ compiler."""

    def __post_init__(self) -> None:
        for name in ("discount", "polyak", "support_threshold", "image_shift", "colour_jitter"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "be in [0, 1]")
        for name in (
            "conservative_weight",
            "support_temperature",
            "target_temperature",
            "density_weight",
            "grounding_weight",
            "advantage_sharpness",
            "inverse_temperature",
            "label_width",
            "weight_decay",
        ):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "be at least 0")
        for name in ("learning_rate", "max_gradient_norm"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "be above 0")
        _require("expectile", self.expectile, 0 < self.expectile < 1, "lie between 0 and 1")
        _require("environment_steps", self.environment_steps, self.environment_steps >= 1, "be at least 1")
        needs_density = max(self.support_threshold, self.support_temperature, self.target_temperature) > 0
        rule = "be above 0, or support_threshold and both temperatures be 0: the density says what is supported"
        _require("density_weight", self.density_weight, self.density_weight > 0 or not needs_density, rule)


@dataclass(frozen=True)
class DataConfig(ReadOptions):
    """Which part of the log to train on, and how it reaches the learner."""

    observations: tuple[str, ...] = ()
    """Observation keys to train on; all of the log without."""
    only_successful: bool = False
    """Train on the successful episodes alone."""
    task: str | None = None
    """Train on the episodes with this instruction alone."""
    min_return: float | None = None
    """Train on the episodes with this return or more, not discounted, in the log's unit."""
    allow: tuple[str, ...] = ()
    """Codes of errors of the check (`qtransformer inspect` shows them) to train in spite of."""
    balance: Balance = "steps"
    """What is drawn equally often: every step; every task; failures and successes; or, by rank, better returns more."""
    relabel: float = 0.0
    """Share of the segments that are told another task's instruction, as failures: Q learns what words rule out."""
    language: str | None = None
    """Folder of a sentence-transformers model that encodes the instructions; without, words are (no download)."""
    memory_limit: str | None = None
    """Most memory that the log may take, as in 4GB or 500MB; without, a share of what is free."""

    def __post_init__(self) -> None:
        _require("memory_limit", self.memory_limit, self._limit() != 0, "be a size like 4GB or 500MB")
        _require("relabel", self.relabel, 0 <= self.relabel < 1, "be in [0, 1)")

    @property
    def memory_limit_bytes(self) -> int | None:
        """The limit as a number; None where there is none."""
        return self._limit()

    def _limit(self) -> int | None:
        """Returns the limit in bytes, 0 where it is no size."""
        if self.memory_limit is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B", self.memory_limit)
        return int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " ")) if match else 0


@dataclass(frozen=True)
class FollowConfig:
    """How a run is followed while it trains; none of it changes a weight."""

    evaluate_every: int = 0
    """Updates between two evaluations in the log's environment; the best policy is kept in RUN/best. 0 for none."""
    evaluate_episodes: int = 20
    """Episodes of each, always those of the same seeds, from 1,000,000 on: other ones than `evaluate` begins with."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ("qtransformer_envs",)
    """Modules that register the environment's id."""
    tensorboard: bool = False
    """Write metrics for TensorBoard, too, into RUN/tensorboard."""
    wandb: bool = False
    """Write metrics for Weights & Biases, too, into RUN/wandb for `wandb sync`; WANDB_MODE=online sends them."""

    def __post_init__(self) -> None:
        _require("evaluate_every", self.evaluate_every, self.evaluate_every >= 0, "be at least 0")
        _require("evaluate_episodes", self.evaluate_episodes, self.evaluate_episodes >= 1, "be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    dataset: Path
    """Log to train on: a dataset of any known layout, a folder of several, or the id of a Minari dataset."""
    out: Path
    """Run folder to make."""
    preset: Preset = "default"
    """Where the settings start from: ours, the paper's recipe (arXiv 2309.10150), or CQL's. Flags override it."""
    algorithm: Algorithm = "q_transformer"
    """q_transformer, or a baseline on the same tokens, trunk and labels: cloning, IQL, a Decision Transformer."""
    steps: int = 3000
    """Updates."""
    batch_size: int = 96
    """Segments in an update, those of all ranks together."""
    gradient_accumulation_steps: int = 1
    """Parts that a batch, or a rank's share of it, is computed in, one after the other: the same update in a fraction
    of the memory."""
    activation_checkpointing: bool = False
    """Keep of each Transformer block but its input, and compute the rest again on the way back: the same gradients in
    less memory, for a third more time."""
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
    deterministic: bool = False
    """Let torch choose no algorithm whose bits differ from one run to the next: slower on a GPU, the same on a CPU."""
    on_bad_batch: OnBadBatch = "stop"
    """What a batch does whose numbers, loss or gradients are NaN or infinite: it stops training, or is left out and
    counted. It never changes a weight, and is saved in RUN/bad_batches for `qtransformer replay-batch`."""
    data: DataConfig = DataConfig()
    tokens: TokenConfig = TokenConfig()
    model: ModelConfig = ModelConfig()
    learning: LearningConfig = LearningConfig()
    following: FollowConfig = FollowConfig()

    def __post_init__(self) -> None:
        numbers = ("steps", "batch_size", "gradient_accumulation_steps", "num_threads", "log_every", "checkpoint_every")
        for name in numbers:
            _require(name, getattr(self, name), getattr(self, name) >= 1, "be at least 1")
        _require("seed", self.seed, self.seed >= 0, "be at least 0")
        is_sound = self.data.relabel == 0 or self.algorithm == "q_transformer"
        rule = f"be 0 with --algorithm {self.algorithm}, which learns from what was done alone, not from what failed"
        _require("relabel", self.data.relabel, is_sound, rule)

    @property
    def return_discount(self) -> float:
        """Discount of the log's returns: the return to go of a Decision Transformer is the plain sum of rewards."""
        return 1.0 if self.algorithm == "decision_transformer" else self.learning.discount

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts, lists, strings and numbers."""
        return json.loads(json.dumps({**asdict(self), "dataset": str(self.dataset), "out": str(self.out)}))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Inverse of `to_json`."""
        nested = {"data": DataConfig, "tokens": TokenConfig, "model": ModelConfig, "learning": LearningConfig}
        nested["following"] = FollowConfig
        built = {key: each(**tuples(data[key])) for key, each in nested.items()}
        return cls(**{**data, **built, "dataset": Path(data["dataset"]), "out": Path(data["out"])})
