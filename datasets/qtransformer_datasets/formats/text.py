"""Instructions in words, for logs that hold none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qtransformer.batch import ObservationSpec

from ..schema import DatasetError, Episode, EpisodeDataset

INSTRUCTION_KEY = "instruction"


def with_instruction(dataset: EpisodeDataset, instruction: str | None) -> EpisodeDataset:
    """Returns the dataset with the same instruction at every step; unchanged where `instruction` is None.

    Raises:
        DatasetError: the log has text of its own.
    """
    if instruction is None:
        return dataset
    texts = [each.name for each in dataset.spec.observations if each.kind == "text"]
    if texts:
        raise DatasetError(f"{dataset.path} has text of its own in {texts}; leave out --instruction")
    spec = replace(
        dataset.spec, observations=(*dataset.spec.observations, ObservationSpec(INSTRUCTION_KEY, (), "str", "text"))
    )
    episodes = tuple(_instructed(episode, instruction) for episode in dataset.episodes)
    return replace(dataset, spec=spec, episodes=episodes)


def _instructed(episode: Episode, instruction: str) -> Episode:
    texts = np.array([instruction] * (episode.num_steps + episode.has_final_observation), dtype=str)
    return replace(episode, observations={**episode.observations, INSTRUCTION_KEY: texts})
