"""A log as a trained run sees it: which episodes it was trained on, and what its policy says of every step.

What an episode proves depends on whether training saw it, so episodes are looked up in the training log by content. It
ties the dataset package to the learner, so nothing else may import it but `explain` and the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int

from qtransformer.config import RunError, TrainConfig
from qtransformer.language import run_encoder
from qtransformer.loading import LoadedRun
from qtransformer.normalization import ReturnScale
from qtransformer.predictions import Predictions, Steps, concatenate, predict
from qtransformer.training_log import open_training_log, read_log
from qtransformer_datasets.check import check_dataset, raise_on_errors
from qtransformer_datasets.schema import DatasetError, EpisodeDataset, fingerprint
from qtransformer_datasets.windows import LoadingOptions, SegmentSampler

Origin = Literal["held out", "trained on", "of unknown origin"]
ORIGINS: dict[Origin, str] = {
    "held out": "Training did not see these episodes.",
    "trained on": (
        "Training saw these very episodes, so this shows how well the run fits them and nothing about others; for a "
        "check that counts, give --dataset another log of the same task."
    ),
    "of unknown origin": (
        "The training log is not where it was, or is not what it was, so whether training saw these episodes cannot "
        "be told."
    ),
}
_CHUNK = 512  # steps in one pass of the network


class RunLog:
    """The steps of a dataset, each with the history that the policy has of it."""

    def __init__(self, run: LoadedRun, dataset: EpisodeDataset) -> None:
        """Copies the steps into memory.

        Raises:
            RunError: the log's observations or actions are not like those that the run was trained on.
        """
        _raise_on_misfit(run, dataset)
        self.policy, self.episodes = run.policy, dataset.episodes
        self.config = TrainConfig.from_json(run.info["config"])
        self.scale = ReturnScale(**run.info["return_scale"])
        window, discount = self.policy.model.window, self.config.return_discount
        options = LoadingOptions(encode_text=run_encoder(run.info))
        self._sampler = SegmentSampler(
            dataset, segment_length=window, batch_size=1, discount=discount, seed=0, options=options
        )
        lengths = np.array([episode.num_steps for episode in dataset.episodes])
        self.first = np.cumsum(lengths) - lengths
        self.last = self.first + lengths - 1
        self.episode_of_step = np.repeat(np.arange(len(lengths)), lengths)

    def rows(self, episodes: Sequence[int]) -> Int[np.ndarray, " steps"]:
        """Returns the steps of some episodes, counted through the whole dataset."""
        return np.concatenate([np.arange(self.first[each], self.last[each] + 1) for each in episodes])

    def steps(self, rows: Int[np.ndarray, " steps"]) -> Steps:
        """Returns the steps with their history."""
        starts = np.maximum(rows - self.policy.model.window + 1, self.first[self.episode_of_step[rows]])
        device = self.policy.tokenizer.low.device
        batch = self._sampler.segments(starts).map(lambda array: torch.from_numpy(np.asarray(array)).to(device))
        return Steps(batch, torch.from_numpy(rows - starts).to(device))

    def predict(self, rows: Int[np.ndarray, " steps"], advance: Callable[[], None] = lambda: None) -> Predictions:
        """Returns what the policy says of the steps; calls `advance` after each chunk of them."""
        parts = []
        for chunk in np.array_split(rows, self.num_chunks(rows)):
            parts.append(predict(self.policy, self.steps(chunk), self.scale, self.config.learning.discount))
            advance()
        return concatenate(parts)

    @staticmethod
    def num_chunks(rows: Int[np.ndarray, " steps"]) -> int:
        """Returns how often `predict` calls `advance`."""
        return -(-len(rows) // _CHUNK)


def open_log(run: LoadedRun, path: Path | None) -> EpisodeDataset:
    """Opens the log at `path`, or the one that the run was trained on; checks that its numbers are sound.

    Raises:
        RunError, DatasetError: there is none, or its numbers cannot be used.
    """
    if path is None:
        path = Path(run.info["dataset"]["path"])
        if not path.exists():
            raise RunError(f"{run.folder}: its training log ({path}) must exist, got no such path; give --dataset")
    dataset = read_log(path, _config(run).data)
    raise_on_errors(check_dataset(dataset), allow=("no-reward",))  # failures alone tell, too
    return dataset


def origins_of(run: LoadedRun, dataset: EpisodeDataset) -> list[Origin]:
    """Returns of each episode whether the run was trained on it, by the content of both logs.

    The origin is unknown where the training log is gone, or is not what it was.
    """
    trained = run.info["dataset"]
    if dataset.fingerprint == trained["fingerprint"]:
        return ["trained on"] * dataset.num_episodes
    try:
        log = open_training_log(_config(run))
    except DatasetError:
        return ["of unknown origin"] * dataset.num_episodes
    if log.fingerprint != trained["fingerprint"]:
        return ["of unknown origin"] * dataset.num_episodes
    seen = {fingerprint(run.spec, (each,)) for each in log.episodes}
    return ["trained on" if fingerprint(run.spec, (each,)) in seen else "held out" for each in dataset.episodes]


def _config(run: LoadedRun) -> TrainConfig:
    return TrainConfig.from_json(run.info["config"])


def _raise_on_misfit(run: LoadedRun, dataset: EpisodeDataset) -> None:
    shapes = [{each.name: each.shape for each in spec.observations} for spec in (run.spec, dataset.spec)]
    if shapes[0] != shapes[1]:
        raise RunError(
            f"{dataset.path}: observation keys and shapes must be {shapes[0]} as in the run's log, got {shapes[1]}; "
            "give a log of the same robot"
        )
    dimensions = [spec.actions.num_dimensions for spec in (run.spec, dataset.spec)]
    if dimensions[0] != dimensions[1]:
        raise RunError(
            f"{dataset.path}: actions must have {dimensions[0]} dimensions as in the run's log, got {dimensions[1]}; "
            "give a log of the same robot"
        )
