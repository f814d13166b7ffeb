"""What a run writes down and says while it trains: settings, samples, metrics, evaluations, checkpoints, alarms.

One process of a run keeps it, rank 0. Nothing here changes a weight or a random generator of the training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from qtransformer import ranks
from qtransformer.console import progress
from qtransformer.files import write_durably
from qtransformer.following import BEST, Clock, Interrupted, PeriodicEvaluation, boards
from qtransformer.learner import Figures
from qtransformer.provenance import add_session
from qtransformer.run_folder import Metrics, keeping
from qtransformer.signals import StopWish
from qtransformer.token_report import print_token_report, token_report
from qtransformer.training_state import TrainingState
from qtransformer_datasets.prefetch import Prefetcher
from qtransformer_datasets.schema import EpisodeDataset

_BOUND_AFTER = 200  # updates until it is said what training waits for
_NUM_SAMPLES = 512  # logged windows kept for export: what its parity check and golden file are made of


class Diary:
    """The diary of a run in memory."""

    def __init__(self, state: TrainingState, wish: StopWish) -> None:
        """Keeps the diary of `state`; `wish` ends an evaluation early."""
        self._state, self._config, self._wish = state, state.config, wish
        self._metrics = Metrics(self._config.out)
        following = self._config.following
        self._evaluation = (
            PeriodicEvaluation(following, self._config.out, state.info) if following.evaluate_every else None
        )

    def begin(self, dataset: EpisodeDataset) -> None:
        """Writes what stays the same during the run, the settings first, and says what the tokens make of the log.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        out, sampler = self._config.out, self._state.sampler.undivided()
        settings = json.dumps(self._state.info["config"], indent=1)
        chosen = np.linspace(0, sampler.num_steps - 1, min(_NUM_SAMPLES, sampler.num_steps)).astype(int)
        batch = sampler.segments(chosen)
        window = self._config.model.window
        arrays = {f"observations/{key}": value[:, :window] for key, value in batch.observations.items()}
        arrays["num_frames"] = batch.is_valid[:, :window].sum(axis=1)

        def write_samples(path: Path) -> None:
            with path.open("wb") as file:  # given a name, numpy would append .npz to it
                np.savez_compressed(file, **arrays)

        with keeping(out):
            write_durably(out / "config.json", lambda path: path.write_text(settings))
            write_durably(out / "samples.npz", write_samples)
        self._metrics.clear()
        actions = np.concatenate([episode.actions for episode in dataset.episodes])
        print_token_report(token_report(self._state.learner.policy.tokenizer, dataset.spec.actions, actions))

    def go_on(self, step: int) -> None:
        """Drops what was written after update `step`."""
        self._metrics.keep(step)

    @contextmanager
    def opened(self, step: int, feed: Prefetcher) -> Iterator[None]:
        """Keeps the diary from update `step` on; `feed` gives the batches."""
        config = self._config
        with keeping(config.out):
            device = str(self._state.learner.policy.tokenizer.low.device)
            add_session(config.out, step, config.steps, device, ranks.world_size())
        self._first_step, self._clock, self._feed = step, Clock(step, config.steps), feed
        board = boards(config, step)
        with progress(config.algorithm, config.steps, step) as self._advance, self._metrics, board as self._draw:
            self._evaluate(step)  # a run may have been stopped in the midst of it
            yield
        self._state.watch.repeat()

    def updated(self, step: int, figures: Figures) -> None:
        """Writes down update `step`, and plays where it is time to."""
        config, state, shown = self._config, self._state, {}
        state.recent.add(figures)
        if step - self._first_step == _BOUND_AFTER:
            _say_what_bounds(self._clock.figures(step, self._feed.waited_s)["data_share"])
        if step % config.log_every == 0 or step == config.steps:
            shown = state.recent.take_means() | state.watch.figures() | state.guard.counts(step)
            shown |= self._clock.figures(step, self._feed.waited_s)
            self._metrics.write({"step": step, **shown})
            self._draw(self._metrics.lines[-1])
            shown["minutes_left"] = self._clock.minutes_left(step)
        if result := self._evaluate(step):
            self._draw({"step": step, **result})
        self._advance(**shown)

    def save(self, step: int) -> None:
        """Begins to write a checkpoint after update `step`, and says what goes wrong."""
        self._metrics.sync()
        self._state.save(step)
        self._state.watch.look([line for line in self._metrics.lines if "loss" in line])

    def _evaluate(self, step: int) -> dict[str, float]:
        """Plays where it is time to and was not done yet; keeps the policy if it is the best; returns the result."""
        every = self._config.following.evaluate_every
        is_done = any(line["step"] == step and "success_rate" in line for line in self._metrics.lines)
        if self._evaluation is None or not step or step % every or is_done:
            return {}
        try:
            result = self._evaluation.play(self._state.learner.policy, self._wish)
        except Interrupted:
            return {}
        if self._evaluation.is_best(result):
            self._state.save_policy(self._config.out / BEST, step, result)
        self._metrics.write({"step": step, **result})
        return result


def _say_what_bounds(waited: float) -> None:
    """Prints whether training waits for data, by the share of the time that went into waiting."""
    if waited > 0.5:
        advice = "data-bound: a larger model would train at the same price"
    else:
        advice = "compute-bound: a faster disk would not help"
    Console(stderr=True).print(f"{waited:.1%} of the time waits for data; {advice}", highlight=False)
