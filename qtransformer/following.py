"""Following a run: how fast it is, what it waits for, when it ends, how well its policy does, boards.

Nothing here changes a weight or a random generator of the training.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from qtransformer.batch import DatasetSpec
from qtransformer.checkpoint import checkpoint_folders, load_checkpoint
from qtransformer.config import FollowConfig, RunError, TrainConfig
from qtransformer.evaluation import Plan, evaluate, make_environment
from qtransformer.language import run_encoder
from qtransformer.outcomes import CrashedEpisode, EpisodeOutcome
from qtransformer.policy import CheckpointPolicy, GreedyPolicy
from qtransformer.signals import StopWish

BEST = "best"  # a folder like a run's, with the checkpoints of the best policies
_SEED = 1_000_000  # of development: neither those of a log nor those of a final evaluation begin here
_NUM_ENVS = 4


class Clock:
    """Measures the updates of this process, by a clock that nobody sets."""

    def __init__(self, first_step: int, steps: int) -> None:
        self._first, self._steps, self._started = first_step, steps, time.perf_counter()

    def figures(self, step: int, waited_s: float) -> dict[str, float]:
        """Returns updates a second, all else included, and the share of the time that went into waiting for data."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {"updates_per_second": (step - self._first) / seconds, "data_share": waited_s / seconds}

    def minutes_left(self, step: int) -> float:
        """Returns how long the rest takes at that rate."""
        return (time.perf_counter() - self._started) / (step - self._first) * (self._steps - step) / 60


class Interrupted(Exception):
    """Somebody wishes to stop in the midst of an evaluation."""


class PeriodicEvaluation:
    """Plays the same episodes each time, and remembers the best result."""

    def __init__(self, config: FollowConfig, run: Path, info: Mapping[str, Any]) -> None:
        """Makes the environment once, so that one that cannot be made is said before training.

        Raises:
            RunError: there is no environment, or it cannot be made.
        """
        spec = DatasetSpec.from_json(info["spec"])
        if spec.environment_id is None:
            raise RunError("--evaluate-every needs a log that names its environment; leave it out, and use `evaluate`")
        self._make = partial(make_environment, spec.environment_id, spec.environment_kwargs, config.imports)
        self._make().close()
        self._plan = Plan(config.evaluate_episodes, _NUM_ENVS, _SEED, spec.ignored_observations)
        self._encode = run_encoder(info)
        best = load_checkpoint(run / BEST).info["evaluation"] if checkpoint_folders(run / BEST) else None
        self._best = _score(best) if best else None

    def play(self, policy: GreedyPolicy, wish: StopWish) -> dict[str, float]:
        """Returns success rate, mean return and number of episodes of the policy as it is; each task's rate beside it.

        Raises:
            Interrupted: there is a wish to stop.
        """

        def look(outcome: EpisodeOutcome | CrashedEpisode) -> None:
            if wish.is_there:
                raise Interrupted

        with torch.random.fork_rng():
            acting = CheckpointPolicy(copy.deepcopy(policy), self._encode)
            summary = evaluate(acting, self._make, self._plan, on_episode=look).summary()
        rates = {"success_rate": summary["success_rate"], "mean_return": summary["mean_return"]}
        known = {task: each["success_rate"] for task, each in summary["tasks"].items() if each["episodes"]}
        tasks = {f"success_rate/{task}": rate for task, rate in known.items()} if len(summary["tasks"]) > 1 else {}
        return {**rates, "evaluated_episodes": summary["episodes"], **tasks}

    def is_best(self, result: Mapping[str, float]) -> bool:
        """Returns whether no earlier result was as good, and remembers it then."""
        if self._best is not None and _score(result) <= self._best:
            return False
        self._best = _score(result)
        return True


def _score(result: Mapping[str, float]) -> tuple[float, float]:
    return result["success_rate"], result["mean_return"]


class Writer(Protocol):
    """What is done with each line of metrics."""

    def __call__(self, record: Mapping[str, int | float]) -> None:
        """Takes one line."""


@contextmanager
def boards(config: TrainConfig, first_step: int) -> Iterator[Writer]:
    """Yields what writes lines of metrics wherever else they were asked for.

    Raises:
        RunError: a package is not there, or does not begin.
    """
    with ExitStack() as stack:
        writers: list[Writer] = []
        if config.following.tensorboard:
            writers.append(stack.enter_context(_tensorboard(config.out, first_step)))
        if config.following.wandb:
            writers.append(stack.enter_context(_wandb(config)))

        def write(record: Mapping[str, int | float]) -> None:
            for writer in writers:
                writer(record)

        yield write


@contextmanager
def _tensorboard(run: Path, first_step: int) -> Iterator[Writer]:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise RunError("--tensorboard needs a package; pip install 'qtransformer[tensorboard]'") from error
    with SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1) as writer:

        def write(record: Mapping[str, int | float]) -> None:
            for name, value in record.items():
                if name != "step":
                    writer.add_scalar(name, value, int(record["step"]))

        yield write


@contextmanager
def _wandb(config: TrainConfig) -> Iterator[Writer]:
    """Yields what writes for Weights & Biases: into the run's folder, unless WANDB_MODE asks for more.

    A process is a wandb run of its own, and those of one run folder a group: a run that is gone on with begins there
    at the update where it was.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RunError("--wandb needs a package; pip install 'qtransformer[wandb]'") from error
    try:
        session = wandb.init(
            project="qtransformer",
            group=config.out.resolve().name,
            dir=str(config.out),
            config=config.to_json(),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        raise RunError(
            f"--wandb: {str(error).rstrip('.')}; log in with `wandb login`, or leave WANDB_MODE at offline"
        ) from error
    with session:
        yield lambda record: session.log(
            {name: value for name, value in record.items() if name != "step"}, step=int(record["step"])
        )
