"""One episode while it is played: what the environment said, what the policy did, and what came of it.

Special about this file: it decides what a crash is. It must not know policies or environments, only their answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qtransformer.outcomes import CrashedEpisode, EpisodeOutcome
from qtransformer.vectorization import Crash, Step

Observation = Mapping[str, np.ndarray]


class Rollout:
    """One episode as it is played."""

    seed: int
    task: str | None = None
    steps: list[Step]
    """What the environment said, the reset first; the newest alone where nobody listens."""
    actions: list[np.ndarray]
    """Action k answers step k; empty where nobody listens."""
    q_values: list[float]
    """Of the actions, in (0, 1); empty where nobody listens, or where the policy tells none."""
    is_drawn: bool
    """Whether the steps come with pictures."""
    render_fps: float
    """Pictures a second of real time."""

    def __init__(
        self,
        seed: int,
        ignored_observations: tuple[str, ...] = (),
        is_kept: bool = True,
        is_drawn: bool = False,
        render_fps: float = 10.0,
    ) -> None:
        self.seed, self._ignored, self._is_kept = seed, ignored_observations, is_kept
        self.is_drawn, self.render_fps = is_drawn, render_fps
        self.steps, self.actions, self.q_values = [], [], []
        self._length, self._return, self._success_once = -1, 0.0, False
        self._error: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether the episode ended, or crashed."""
        return self._error is not None or self.steps[-1].terminated or self.steps[-1].truncated

    @property
    def success(self) -> bool | None:
        """The environment's word at the last step, None where it has none."""
        return self.steps[-1].success

    def observation(self) -> Observation:
        """Returns the newest observation as the policy knows it."""
        return {key: value for key, value in self.steps[-1].observation.items() if key not in self._ignored}

    def take(self, reply: Step | Crash) -> None:
        """Goes on by what the environment said; numbers that are not finite are a crash of its simulation."""
        if isinstance(reply, Crash):
            self._error = reply.error
            return
        self._error = self._not_finite(reply)
        if self._error is not None:
            return
        if self._length < 0:
            self.task = reply.task
        if not self._is_kept:
            self.steps.clear()
        self.steps.append(reply)
        self._length += 1
        self._return += reply.reward
        self._success_once |= bool(reply.success)

    def outcome(self) -> EpisodeOutcome | CrashedEpisode:
        """Returns what came of the episode."""
        if self._error is not None:
            return CrashedEpisode(self.seed, max(self._length, 0), self._error, self.task)
        success = self._return > 0 if self.success is None else self.success
        once = self._success_once or success
        return EpisodeOutcome(self.seed, success, self._return, self._length, once, self.task)

    def _not_finite(self, step: Step) -> str | None:
        kept = {key: np.asarray(value) for key, value in step.observation.items() if key not in self._ignored}
        arrays = {**kept, "the reward": np.asarray(step.reward)}
        bad = [key for key, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
        return f"the simulation diverged: {', '.join(bad)} is NaN or infinite" if bad else None
