"""The command that asks a policy what it expects of several instructions in one situation.

The value of an instruction is what a planner needs to know of it: whether this robot can do that here (SayCan,
arXiv 2204.01691; section 5.3 of arXiv 2309.10150). Modules are imported inside the functions: a bundle needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from qtransformer.config import RunError, TrainConfig
from qtransformer.console import print_json, print_scores

if TYPE_CHECKING:
    from qtransformer.loading import OpenedPolicy


class Situation(NamedTuple):
    """What the robot has observed, and where that comes from."""

    history: Sequence[Mapping[str, Any]]
    """Observations without words, the newest last."""
    origin: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """Tell what a run or a bundle expects of several instructions in one situation; a bundle needs no torch."""

    path: tyro.conf.Positional[Path]
    """The --out folder of `train`, or that of `export`."""
    instructions: tuple[str, ...]
    """What the robot might be told, in quotation marks each."""
    dataset: Path | None = None
    """Log to take the situation from. Without it, a reset of the environment."""
    episode: int = 0
    """Number of the logged episode."""
    step: int = 0
    """Step of that episode; its observation and those before it, as many as the policy sees, are the situation."""
    env_id: str | None = None
    """Another environment than the one that the log came from."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ("qtransformer_envs",)
    """Modules that register the environment's id."""
    seed: int = 0
    """Of the environment's reset."""
    json: bool = False
    """Print JSON for programs."""

    def run(self) -> None:
        """Prints the value of the policy's own action under each instruction, the highest first."""
        from qtransformer.loading import open_policy

        opened = open_policy(self.path)
        situation = self._logged(opened, self.dataset) if self.dataset else self._reset(opened)
        scores = sorted(scored(opened, situation.history, self.instructions).items(), key=lambda each: -each[1])
        scale = opened.origin["return_scale"]
        if self.json:
            listed = [{"instruction": text, "value": value} for text, value in scores]
            print_json({"situation": situation.origin, "range": scale, "scores": listed})
        else:
            where = ", ".join(f"{name} {value}" for name, value in situation.origin.items())
            print_scores(f"Values in {where}", dict(scores), scale["low"], scale["high"])

    def _logged(self, opened: OpenedPolicy, path: Path) -> Situation:
        from qtransformer.training_log import read_log

        config = TrainConfig.from_json(opened.origin["config"])
        episodes = read_log(path, config.data).episodes
        _require_below("episode", self.episode, len(episodes), path)
        episode = episodes[self.episode]
        _require_below("step", self.step, episode.num_steps, path)
        first = max(0, self.step + 1 - config.model.window)
        rows = {key: each[first : self.step + 1] for key, each in episode.observations.items()}
        history = [
            {key: each[frame] for key, each in rows.items() if key not in opened.text_keys}
            for frame in range(self.step + 1 - first)
        ]
        return Situation(history, {"log": str(path), "episode": self.episode, "step": self.step})

    def _reset(self, opened: OpenedPolicy) -> Situation:
        from qtransformer.batch import flatten_observation
        from qtransformer.evaluation import make_environment
        from qtransformer.vectorization import made

        id_, kwargs = opened.environment(self.env_id)
        environment = made(lambda: make_environment(id_, kwargs, self.imports))
        found = flatten_observation(environment.reset(seed=self.seed)[0])
        environment.close()
        left_out = {*opened.ignored_observations, *opened.text_keys}
        observation = {key: value for key, value in found.items() if key not in left_out}
        return Situation([observation], {"environment": id_, "seed": self.seed})


def scored(opened: OpenedPolicy, history: Sequence[Mapping[str, Any]], instructions: Sequence[str]) -> dict[str, float]:
    """Returns the value, in the log's unit, of the policy's own action in a situation under each instruction.

    Args:
        opened: a run or a bundle.
        history: its observations without words, the newest last; those that the policy sees at once are enough.
        instructions: what it might be told.

    Raises:
        RunError, ControllerError: the policy learns no values, takes no words or does not know these, or the
            observations are not like those of its log.
    """
    from qtransformer.evaluation import ValuingPolicy

    value_of, policy, slots = opened.value_of(), opened.policy, range(len(instructions))
    if value_of is None or not isinstance(policy, ValuingPolicy):
        raise RunError(f"{opened.path}: its algorithm learns no values; train one that does, as q_transformer")
    if not (opened.text_keys and instructions):
        raise RunError(f"{opened.path}: must take instructions, and be given some; train it on a log that has them")
    for slot in slots:
        policy.reset(slot)
    for observation in history:
        policy.act(slots, [{**observation, **dict.fromkeys(opened.text_keys, text)} for text in instructions])
    return {text: value_of(policy.q_value(slot)) for slot, text in zip(slots, instructions, strict=True)}


def _require_below(name: str, value: int, number: int, path: Path) -> None:
    if not 0 <= value < number:
        raise RunError(f"{name} ({value}) must be in 0 .. {number - 1}: {path} has no other; change --{name}")
