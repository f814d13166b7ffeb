"""The command that plays a policy in simulation: which episodes, how, and who listens to them.

Special about this file: modules are imported inside the functions, so that a bundle is evaluated without torch, and so
that MuJoCo is told how to draw before it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from qtransformer.config import RunError
from qtransformer.console import print_json, print_summary, progress

if TYPE_CHECKING:
    import gymnasium

    from qtransformer.loading import OpenedPolicy
    from qtransformer.rollout import Rollout


@dataclass(frozen=True)
class Evaluate:
    """Play episodes in simulation with a trained run or an exported bundle; a bundle needs no torch."""

    path: tyro.conf.Positional[Path]
    """The --out folder of `train`, or that of `export`."""
    episodes: int = 100
    """Episodes, with seeds seed, seed + 1, ..."""
    num_envs: int = 4
    """Environments side by side; the result does not depend on it."""
    vectorization: Literal["sync", "async"] = "sync"
    """How they step: one after the other, or each in a process of its own; the result does not depend on it. Only
    async outlives an environment that kills its process."""
    seed: int = 0
    """Seed of the first episode."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ("qtransformer_envs",)
    """Modules that register the environment's id."""
    env_id: str | None = None
    """Another environment than the one that the log came from."""
    stop_when_hopeless: Annotated[float | None, tyro.conf.arg(metavar="RATE")] = None
    """Stop as soon as the success rate must stay below RATE, even if all episodes to come succeed."""
    record: Path | None = None
    """Folder to make: the episodes as a log that `inspect`, `train` and `explain` read; crashed ones are left out."""
    video: Path | None = None
    """Folder to make: an mp4 an episode, with verdict, step and the value of each action."""
    contact_sheet: Path | None = None
    """PNG to write: a row an episode, with its first, middle and last picture."""
    video_episodes: int | None = None
    """Draw only so many episodes, from the first seed on. Without it, all."""
    json: bool = False
    """Print JSON for programs, every episode included."""

    def run(self) -> None:
        """Prints the success rate with its interval, crashes, tasks, return, length and latency."""
        from qtransformer.evaluation import Plan, evaluate, make_environment
        from qtransformer.loading import open_policy
        from qtransformer.training_log import warn_if_log_changed

        num_drawn = self._num_drawn()
        opened = open_policy(self.path)
        warn_if_log_changed(opened.origin)
        environment_id, kwargs = opened.environment(self.env_id)
        make = partial(make_environment, environment_id, kwargs, self.imports)
        drawn = partial(make_environment, environment_id, {**kwargs, "render_mode": "rgb_array"}, self.imports)
        plan = Plan(
            self.episodes,
            self.num_envs,
            self.seed,
            opened.ignored_observations,
            self.vectorization,
            num_drawn,
            self.stop_when_hopeless,
        )
        with ExitStack() as stack:
            listeners = [stack.enter_context(each) for each in self._listeners(opened, make)]
            advance = stack.enter_context(progress("evaluate", self.episodes))
            evaluation = evaluate(
                opened.policy,
                drawn if num_drawn else make,
                plan,
                on_episode=lambda _: advance(),
                listeners=listeners,
            )
        print_json(evaluation.to_json()) if self.json else print_summary(evaluation.summary())

    def _num_drawn(self) -> int:
        """Returns how many episodes are drawn."""
        if not (self.video or self.contact_sheet):
            if self.video_episodes is not None:
                raise RunError("--video-episodes needs --video or --contact-sheet; add one, or leave it out")
            return 0
        num_drawn = self.episodes if self.video_episodes is None else self.video_episodes
        if num_drawn < 1:
            raise RunError(f"video_episodes ({num_drawn}) must be at least 1; change it")
        return num_drawn

    def _listeners(
        self, opened: OpenedPolicy, make: Callable[[], gymnasium.Env]
    ) -> Iterator[AbstractContextManager[Callable[[Rollout], None]]]:
        from qtransformer.video import open_contact_sheet, open_videos

        if self.video:
            yield open_videos(self.video, opened.value_of())
        if self.contact_sheet:
            yield open_contact_sheet(self.contact_sheet)
        if self.record:
            from qtransformer.recording import open_recording, policy_identity

            yield open_recording(self.record, make, policy_identity(self.path, opened.origin))
