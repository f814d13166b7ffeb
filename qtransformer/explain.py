"""The numbers of one run on one log: an episode step by step, calibration, alarms. Drawn by `explain_page`.

Functions of a loaded run and a dataset, whose results hold numbers alone. It must not know HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qtransformer.alarms import Alarm, Evidence, over_estimation_alarms
from qtransformer.calibration import Calibration, calibrate
from qtransformer.config import ACT_BY_DENSITY, WITHOUT_VALUES, RunError, TrainConfig
from qtransformer.console import progress
from qtransformer.explain_log import ORIGINS, Origin, RunLog, origins_of
from qtransformer.loading import LoadedRun
from qtransformer.predictions import Predictions
from qtransformer.token_report import token_slots
from qtransformer.tokens import ActionTokenizer
from qtransformer_datasets.schema import EpisodeDataset

MAX_STEPS = 20_000  # of each origin that calibration looks at, in whole episodes
NO_VALUES = (
    "This run has no values: its algorithm imitates the log and never learns what an action is worth. Only the density "
    "of its tokens can be shown."
)
_MAX_MOMENTS = 24
_MAX_BARS = 60_000  # of all moments together, which keeps the page below a few megabytes


@dataclass(frozen=True)
class Bins:
    """One action token at one step, the logged tokens before it given."""

    actions: Float[np.ndarray, " bins"]
    """What each bin says of the token's dimension, in the environment's units."""
    q_values: Float[np.ndarray, " bins"] | None
    """In the log's unit; None where the algorithm learns none for this token."""
    density: Float[np.ndarray, " bins"] | None
    """Share of each bin; None where no density was trained."""
    logged: int
    greedy: int


@dataclass(frozen=True)
class Moment:
    """One step of the episode, token by token."""

    step: int
    tokens: tuple[Bins, ...]


@dataclass(frozen=True)
class EpisodeView:
    """One logged episode along its steps; values in the log's unit, None where the algorithm learns none."""

    number: int
    source: str
    success: bool | None
    origin: Origin
    returns: Float[np.ndarray, " steps"]
    predictions: Predictions | None
    moments: tuple[Moment, ...]


@dataclass(frozen=True)
class Check:
    """Q of logged actions against what they returned, on episodes of one origin."""

    origin: Origin
    num_episodes: int
    """Episodes looked at."""
    num_there: int
    """Episodes of this origin in the log."""
    num_cut: int
    """Of those looked at, how many did not terminate: their returns are the least that can have followed."""
    calibration: Calibration
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True)
class Explanation:
    """All that the page shows."""

    title: str
    token_names: tuple[str, ...]
    episode: EpisodeView
    checks: tuple[Check, ...]
    """By origin, what training did not see first; empty for an algorithm without values."""
    facts: Mapping[str, str]

    def verdicts(self) -> list[tuple[str, str, str]]:
        """Returns what the page finds, for a terminal: a word, a name and a sentence each."""
        if not self.checks:
            return [("note", "no values", NO_VALUES)]
        found = []
        for check in self.checks:
            bias, correlation = check.calibration.bias, check.calibration.rank_correlation
            sentence = (
                f"Q of logged actions exceeds their return by {bias.mean:.3g} on average (95 % interval {bias.low:.3g} "
                f"to {bias.high:.3g}); rank correlation {correlation:.2f}. {ORIGINS[check.origin]}"
            )
            found.append(("note", f"episodes {check.origin}: {check.num_there}", sentence))
            found += [(each.word, f"{each.name}  {each.measure}".rstrip(), each.sentence) for each in check.alarms]
        return found


def explain(run: LoadedRun, dataset: EpisodeDataset, episode: int, max_steps: int = MAX_STEPS) -> Explanation:
    """Returns the numbers of `run` on `dataset`, with episode number `episode` in detail.

    Raises:
        RunError: the log does not fit the run, the episode is not there, or the network's values are not finite.
    """
    if not 0 <= episode < dataset.num_episodes:
        raise RunError(
            f"episode ({episode}) must be in 0 .. {dataset.num_episodes - 1}: {dataset.path} holds "
            f"{dataset.num_episodes} episodes; choose another --episode"
        )
    if max_steps < 1:
        raise RunError(f"max_steps ({max_steps}) must be at least 1; change --max-steps")
    log, origins = RunLog(run, dataset), origins_of(run, dataset)
    has_values = log.config.algorithm not in WITHOUT_VALUES
    return Explanation(
        title=f"Run {run.folder.resolve().name} on log {dataset.path.resolve().name}",
        token_names=_token_names(run),
        episode=_view(log, episode, origins[episode]),
        checks=_checks(log, origins, max_steps) if has_values else (),
        facts=_facts(run, dataset, log),
    )


def _facts(run: LoadedRun, dataset: EpisodeDataset, log: RunLog) -> dict[str, str]:
    """Returns where the numbers come from."""
    info, trained = run.info, run.info["dataset"]
    return {
        "run": f"{run.folder}, {info['step']:,} updates of {log.config.algorithm}",
        "log": f"{dataset.path}, {dataset.num_episodes} episodes, fingerprint {dataset.fingerprint[:16]}",
        "trained on": f"{trained['path']}, {trained['episodes']} episodes, fingerprint {trained['fingerprint'][:16]}",
        "returns": f"{log.scale.low:.4g} to {log.scale.high:.4g}, discount {log.config.return_discount:g} a step",
        "history": f"{log.policy.model.window} observations",
        "versions": ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        "git revision": str(info["git_revision"]),
    }


def _checks(log: RunLog, origins: Sequence[Origin], max_steps: int) -> tuple[Check, ...]:
    checks = []
    for origin in get_args(Origin):
        there = [index for index, each in enumerate(origins) if each == origin]
        if not there:
            continue
        chosen = _some(there, log, max_steps)
        rows = log.rows(chosen)
        with progress(f"explain, episodes {origin}", log.num_chunks(rows)) as advance:
            predictions = log.predict(rows, advance)
        evidence = evidence_of(log, rows, predictions)
        checks.append(
            Check(
                origin=origin,
                num_episodes=len(chosen),
                num_there=len(there),
                num_cut=sum(not log.episodes[each].terminations[-1] for each in chosen),
                calibration=calibrate(predictions.q_logged, predictions.returns, evidence.episodes),
                alarms=over_estimation_alarms(evidence, log.scale),
            )
        )
    return tuple(checks)


def _some(episodes: Sequence[int], log: RunLog, max_steps: int) -> list[int]:
    """Returns all episodes, or evenly chosen ones that hold about `max_steps` steps."""
    num_steps = len(log.rows(episodes))
    if num_steps <= max_steps:
        return list(episodes)
    num = max(1, len(episodes) * max_steps // num_steps)
    return [episodes[place] for place in np.linspace(0, len(episodes) - 1, num).round().astype(int)]


def evidence_of(log: RunLog, rows: Int[np.ndarray, " steps"], predictions: Predictions) -> Evidence:
    """Returns what alarms are asked of: what was predicted of some steps, and how their episodes went."""
    episodes = log.episode_of_step[rows]
    successes = np.array([episode.success is True for episode in log.episodes])
    failures = np.array([episode.success is False for episode in log.episodes])
    return Evidence(
        predictions=predictions,
        episodes=episodes,
        is_first=rows == log.first[episodes],
        is_last=rows == log.last[episodes],
        is_success=successes[episodes],
        is_failure=failures[episodes],
    )


def _view(log: RunLog, number: int, origin: Origin) -> EpisodeView:
    episode, rows = log.episodes[number], log.rows([number])
    has_values = log.config.algorithm not in WITHOUT_VALUES
    tokenizer = log.policy.tokenizer
    num = _MAX_BARS // (tokenizer.num_action_tokens * tokenizer.num_bins)
    num = min(len(rows), max(3, min(num, _MAX_MOMENTS)))
    chosen = np.unique(np.linspace(0, len(rows) - 1, num).round().astype(int))
    steps = log.steps(rows)
    returns = steps.batch.monte_carlo_returns[torch.arange(len(rows)), steps.positions]
    return EpisodeView(
        number=number,
        source=episode.source,
        success=episode.success,
        origin=origin,
        returns=returns.cpu().numpy(),
        predictions=log.predict(rows) if has_values else None,
        moments=_moments(log, rows[chosen], chosen),
    )


def _moments(log: RunLog, rows: Int[np.ndarray, " steps"], numbers: Int[np.ndarray, " steps"]) -> tuple[Moment, ...]:
    """Returns every bin of every token at some steps; `numbers` are those of the steps inside their episode."""
    policy, (batch, positions) = log.policy, log.steps(rows)
    observations = {key: value[:, :-1] for key, value in batch.observations.items()}
    with torch.inference_mode():
        tokens = policy.tokenizer.encode(batch.actions)
        outputs = policy.model(observations, tokens)
        here = torch.arange(len(rows)), positions
        columns = (log.scale.from_unit(outputs.q_values), outputs.density_logits.softmax(dim=-1), tokens)
        q_values, density, logged, greedy = (each[here].cpu().numpy() for each in (*columns, policy.choose(outputs)))
        actions = bin_actions(policy.tokenizer, tokens[here]).cpu().numpy()
    learnt = _learnt_tokens(log.config, logged.shape[1])
    has_density = log.config.algorithm in ACT_BY_DENSITY or log.config.learning.density_weight > 0
    return tuple(
        Moment(
            int(number),
            tuple(
                Bins(
                    actions=actions[row, token],
                    q_values=q_values[row, token] if token in learnt else None,
                    density=density[row, token] if has_density else None,
                    logged=int(logged[row, token]),
                    greedy=int(greedy[row, token]),
                )
                for token in range(logged.shape[1])
            ),
        )
        for row, number in enumerate(numbers)
    )


def bin_actions(tokenizer: ActionTokenizer, tokens: Int[Tensor, "steps tokens"]) -> Float[Tensor, "steps tokens bins"]:
    """Returns, for every bin of every token, what the dimension would be with that bin in place of the logged one."""
    K = tokenizer.num_bins
    columns = []
    for place, slot in enumerate(token_slots(tokenizer)):
        replaced = tokens.unsqueeze(1).repeat(1, K, 1)
        replaced[:, :, place] = torch.arange(K, device=tokens.device)
        columns.append(tokenizer.decode(replaced)[..., slot.dimension])
    return torch.stack(columns, dim=1)


def _learnt_tokens(config: TrainConfig, num_tokens: int) -> range:
    """Returns the tokens that the algorithm learns values of."""
    if config.algorithm in WITHOUT_VALUES:
        return range(0)
    return range(num_tokens - 1, num_tokens) if config.algorithm in ACT_BY_DENSITY else range(num_tokens)


def _token_names(run: LoadedRun) -> tuple[str, ...]:
    """Returns the name, unit and level of each token."""
    spec, tokenizer = run.spec.actions, run.policy.tokenizer
    names = spec.elements or tuple(f"[{index}]" for index in range(spec.num_dimensions))
    units = [f" ({unit})" if unit else "" for unit in spec.units] or [""] * len(names)
    levels = [f", level {slot.level + 1}" if tokenizer.num_levels > 1 else "" for slot in token_slots(tokenizer)]
    slots = zip(token_slots(tokenizer), levels, strict=True)
    return tuple(names[slot.dimension] + units[slot.dimension] + level for slot, level in slots)
