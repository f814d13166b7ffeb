"""Tiny policies, learners and batches that the learner's tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import dataset_fixtures
import numpy as np
import torch
from dataset_fixtures import make_episode

from qtransformer.batch import ActionSpec, Batch, DatasetSpec
from qtransformer.config import DataConfig, LearningConfig, ModelConfig, TokenConfig, TrainConfig
from qtransformer.learner import Learner
from qtransformer.model import QTransformer
from qtransformer.normalization import ReturnScale
from qtransformer.policy import GreedyPolicy, build_policy
from qtransformer.q_learning import QTransformerLearner
from qtransformer_datasets.formats.specs import describe_state
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import Episode

UNIT = ReturnScale(0.0, 1.0)
PLAIN = LearningConfig(  # eq. 1 alone: no bound, no regulariser, no density, one-hot labels
    environment_steps=1,
    monte_carlo_bound=False,
    conservative_weight=0.0,
    support_temperature=0.0,
    target_temperature=0.0,
    density_weight=0.0,
    label_width=0.0,
    weight_decay=0.0,
)


def make_config(learning: LearningConfig | None = None, **changes: Any) -> TrainConfig:
    """A small run; the fields of the data, the tokens and the model stand beside those of the run."""
    data, tokens, model = (
        {each.name: changes.pop(each.name) for each in fields(group) if each.name in changes}
        for group in (DataConfig, TokenConfig, ModelConfig)
    )
    settings: dict[str, Any] = {"dataset": Path("log"), "out": Path("run"), "steps": 50, "batch_size": 4}
    return TrainConfig(
        data=DataConfig(**data),
        tokens=TokenConfig(**{"num_bins": 4, **tokens}),
        model=ModelConfig(**{"window": 3, "width": 16, "num_layers": 2, "num_heads": 2, **model}),
        learning=learning or LearningConfig(),
        **{**settings, **changes},
    )


def make_spec(num_dimensions: int = 3, size: int = 2) -> DatasetSpec:
    """Actions in [-1, 1], one state key."""
    actions = ActionSpec((-1.0,) * num_dimensions, (1.0,) * num_dimensions)
    return DatasetSpec((describe_state("state", (size,), "float32"),), actions)


def make_policy(config: TrainConfig, *, num_dimensions: int = 3, size: int = 2, seed: int = 0) -> GreedyPolicy:
    """A fresh policy on observations that are standardised already."""
    torch.manual_seed(seed)
    statistics = {"state": {"mean": [0.0] * size, "std": [1.0] * size}}
    return build_policy(config, make_spec(num_dimensions, size), statistics)


def enlarge(policy: GreedyPolicy) -> GreedyPolicy:
    """Makes the random weights so large that every input tells on the outputs."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "embedding" in name or name.endswith("head.weight"):
                parameter.mul_(25)
            if name.endswith("queries_keys_values.weight"):
                parameter.mul_(3)
    return policy.eval()


def make_learner(config: TrainConfig, scale: ReturnScale = UNIT, **sizes: int) -> QTransformerLearner:
    """A learner of a fresh policy."""
    policy = make_policy(config, **sizes)
    return QTransformerLearner(policy, config, scale, noise_of(policy))


def loss_of(learner: Learner, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and figures of a batch of tensors that is whole."""
    (goals,) = learner.goals([batch])
    return learner.loss(batch, goals)


def noise_of(policy: GreedyPolicy) -> list[float]:
    """A tenth of the range in every dimension."""
    return [0.1] * policy.tokenizer.num_dimensions


def set_values(model: QTransformer, table: Sequence[Sequence[float]]) -> None:
    """Lets the model say Q = table[token][bin] whatever it sees, and the same density for every bin."""
    with torch.no_grad():
        model.q_head.weight.zero_()
        model.q_head.bias.copy_(torch.logit(torch.tensor(table)))
        model.density_head.weight.zero_()
        model.density_head.bias.zero_()


def make_batch(num_segments: int = 4, *, num_steps: int = 3, num_dimensions: int = 3, seed: int = 0, **changes: Any):
    """Random segments without padding or terminations; `changes` replace fields."""
    generator = np.random.default_rng(seed)
    B, T, A = num_segments, num_steps, num_dimensions
    batch = Batch(
        observations={"state": generator.normal(size=(B, T + 1, 2)).astype(np.float32)},
        actions=generator.uniform(-1, 1, (B, T, A)).astype(np.float32),
        rewards=generator.uniform(0, 0.1, (B, T)).astype(np.float32),
        terminations=np.zeros((B, T), bool),
        has_successor=np.ones((B, T), bool),
        monte_carlo_returns=generator.uniform(0, 1, (B, T)).astype(np.float32),
        is_success=np.ones(B, bool),
        is_relabelled=np.zeros(B, bool),
        is_valid=np.ones((B, T), bool),
        frames=np.tile(np.arange(T + 1), (B, 1)),
    )
    return replace(batch, **changes)


def to_torch(batch: Batch) -> Batch:
    """The batch as the learner's equations take it."""
    return batch.map(lambda array: torch.from_numpy(np.asarray(array)))


def concatenate(*batches: Batch) -> Batch:
    """The segments of all batches in one."""
    fields = {name: np.concatenate([getattr(each, name) for each in batches]) for name in FIELDS}
    keys = batches[0].observations
    return Batch({key: np.concatenate([each.observations[key] for each in batches]) for key in keys}, **fields)


FIELDS = tuple(name for name in Batch.__dataclass_fields__ if name != "observations")


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as they are now."""
    return {name: value.clone() for name, value in tensors.items()}


def write_log(path: Path, episodes: Sequence[Episode] | None = None, spec: DatasetSpec | None = None) -> Path:
    """Records the episodes, or some of its own; returns the folder."""
    lengths = [(5, True), (7, False), (3, True), (9, False)]
    own = [make_episode(length, seed=seed, success=success) for seed, (length, success) in enumerate(lengths)]
    with Recorder(path, spec or dataset_fixtures.make_spec()) as recorder:
        for episode in episodes or own:
            recorder.record(episode)
    return path


def assert_same_bits(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    """Fails with the names of the tensors that differ."""
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
