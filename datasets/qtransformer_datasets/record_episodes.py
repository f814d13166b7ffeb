"""Recording any Gymnasium environment while somebody else plays in it: a wrapper around a `Recorder`.

Special about this file: an episode is on disk when the `step` that ended it returns. What a policy sees and does is
passed on untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium

from qtransformer.batch import episode_goal

from .environment import describe_environment, environment_attributes
from .minari_writer import ImageStorage
from .recorder import Recorder


class RecordEpisodes(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Records every episode of an environment; closing the environment closes the recording.

    An episode that is cut short by `reset` or `close` is kept as truncated, as Minari's own collector does; one
    without a step is forgotten. `discard_episode` drops the episode that goes on. An episode succeeded if
    `info["success"]` was true at any step; where no step reported it, its success is unknown.
    """

    recorder: Recorder
    """What writes; `recorder.notes` says what was repaired in an earlier recording."""

    def __init__(
        self,
        env: gymnasium.Env,
        path: str | Path,
        *,
        images: ImageStorage = "raw",
        append: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Creates the recording; see `Recorder` for `path`, `images`, `append` and `attributes`.

        Raises:
            DatasetError: the environment's spaces cannot be recorded, or `path` holds something.
        """
        gymnasium.utils.RecordConstructorArgs.__init__(
            self, path=str(path), images=images, append=append, attributes=attributes
        )
        gymnasium.Wrapper.__init__(self, env)
        known = environment_attributes(env) | dict(attributes or {})
        self.recorder = Recorder(path, describe_environment(env), images=images, append=append, attributes=known)
        self._success: bool | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts the next episode; one that goes on is kept as truncated.

        Raises:
            DatasetError: the observation does not match its space.
        """
        self._cut()
        observation, info = self.env.reset(seed=seed, options=options)
        self.recorder.start_episode(observation, seed=seed, goal=episode_goal(info))
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step; the one that ends the episode writes it.

        Raises:
            DatasetError: there was no `reset`, something does not match the spaces, or the disk refuses the episode.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.recorder.step(action, observation, float(reward), bool(terminated), bool(truncated))
        if "success" in info:
            self._success = bool(self._success) or bool(info["success"])
        if terminated or truncated:
            self._end()
        return observation, reward, terminated, truncated, info

    def discard_episode(self) -> None:
        """Forgets the episode that goes on; `reset` starts the next one.

        Raises:
            DatasetError: none goes on.
        """
        self.recorder.discard_episode()
        self._success = None

    def close(self) -> None:
        """Keeps the episode that goes on as truncated, then closes the recording and the environment."""
        try:
            self._cut()
            self.recorder.close()
        finally:
            self.env.close()

    def _cut(self) -> None:
        if self.recorder.num_pending_steps:
            self._end()
        elif self.recorder.num_pending_steps == 0:
            self.discard_episode()

    def _end(self) -> None:
        self.recorder.end_episode(success=self._success)
        self._success = None
