"""Alarms while a run trains: what goes wrong is said in words, once, when it has rung twice in a row.

The rules are those of `alarms`; this file gathers what they are asked of, from a few whole episodes of the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from qtransformer.alarms import SETTLED, Alarm, over_estimation_alarms, training_alarms
from qtransformer.batch import DatasetSpec
from qtransformer.config import WITHOUT_VALUES, TrainConfig
from qtransformer.console import say
from qtransformer.explain import evidence_of
from qtransformer.explain_log import RunLog
from qtransformer.learner import Learner
from qtransformer.loading import LoadedRun
from qtransformer_datasets.schema import EpisodeDataset

_EPISODES = 20  # evenly chosen; the fewest that alarms ask for is 10
_STEPS = 25  # of each, the first and the last among them


class Watch:
    """Looks at a learner now and then."""

    def __init__(self, learner: Learner, dataset: EpisodeDataset, info: Mapping[str, Any]) -> None:
        """Chooses the episodes to look at, and copies them."""
        config = TrainConfig.from_json(info["config"])
        run = LoadedRun(config.out, learner.policy, DatasetSpec.from_json(info["spec"]), info)
        self._learner, self._has_values = learner, config.algorithm not in WITHOUT_VALUES
        places = np.unique(np.linspace(0, dataset.num_episodes - 1, _EPISODES).round().astype(int))
        self._log = log = RunLog(run, dataset.with_episodes([dataset.episodes[place] for place in places]))
        ends = zip(log.first, log.last, strict=True)
        rows = [np.unique(np.linspace(first, last, _STEPS).round().astype(int)) for first, last in ends]
        self._rows = np.concatenate(rows)
        self._target_sums = torch.zeros(0, dtype=torch.float64)
        self._ringing: set[str] = set()
        self._said: dict[str, Alarm] = {}

    def figures(self) -> dict[str, float]:
        """Returns bits a token of the bins that the policy chooses and of the logged ones, and how the target moves."""
        batch, positions = self._log.steps(self._rows)
        here = torch.arange(len(self._rows), device=positions.device), positions
        with torch.inference_mode():
            tokens = self._learner.policy.tokenizer.encode(batch.actions)
            observations = {key: value[:, :-1] for key, value in batch.observations.items()}
            greedy = self._learner.policy.choose(self._learner.policy.model(observations, tokens))
        bits = [entropy(each[here]) for each in (greedy, tokens)]
        return {"greedy_entropy": bits[0], "logged_entropy": bits[1], **self._target_still()}

    def look(self, history: Sequence[Mapping[str, int | float]]) -> None:
        """Asks all questions, and says those alarms that ring for the second time in a row, once each."""
        scale = self._learner.scale
        alarms = list(training_alarms(history, scale))
        if self._has_values and history and history[-1]["step"] >= SETTLED:
            predictions = self._log.predict(self._rows)
            alarms += over_estimation_alarms(evidence_of(self._log, self._rows, predictions), scale)
        ringing = {each.name: each for each in alarms if each.state == "ringing"}
        for name in ringing.keys() & self._ringing - self._said.keys():
            self._said[name] = ringing[name]
            _say(ringing[name])
        self._ringing = set(ringing)

    def repeat(self) -> None:
        """Says all of them again, for the end of a run."""
        for alarm in self._said.values():
            _say(alarm)

    def state(self) -> dict[str, Tensor]:
        """Returns what the next look is compared with."""
        return {"target_sums": self._target_sums}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues where `state` was taken."""
        self._target_sums = state["target_sums"]

    def _target_still(self) -> dict[str, float]:
        """Returns the share of the target network's tensors whose sum is what it was at the last look; {} at first."""
        sums = [each.double().sum().cpu() for each in self._learner.target_parameters()]
        before, self._target_sums = self._target_sums, torch.stack(sums) if sums else self._target_sums
        if not len(before):
            return {}
        return {"target_still": (before == self._target_sums).double().mean().item()}


def entropy(tokens: Int[Tensor, "steps tokens"]) -> float:
    """Returns the bits that the bins of each token hold, averaged over the tokens."""
    bits = []
    for column in tokens.T:
        shares = torch.bincount(column).double() / len(column)
        bits.append(-(shares * shares.clamp_min(1e-12).log2()).sum().item())
    return float(np.mean(bits))


def _say(alarm: Alarm) -> None:
    say(f"alarm: {alarm.name} ({alarm.measure}). {alarm.sentence}")
