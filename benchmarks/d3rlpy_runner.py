"""d3rlpy's TD3+BC, IQL and CQL on our logs: trained for a number of CPU seconds, played by our evaluation.

It runs in the environment `robots` of peers.py. The clock starts when the packages are imported, and everything after
that is paid from the budget: reading the log, d3rlpy's sampling, the updates, on one thread.

    RUN/policy.d3   d3rlpy's own format (it unpickles: open only files that you made)     RUN/run.json   all else

python benchmarks/d3rlpy_runner.py train --log LOG --algorithm iql --seed 0 --cpu-seconds 60 --out RUN
python benchmarks/d3rlpy_runner.py evaluate RUN --episodes 50 --seed 500000 --import sparse_tasks [--json]
"""

# d3rlpy lives in the environment `robots` of peers.py.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qtransformer.config import RunError
from qtransformer.evaluation import Plan, evaluate, make_environment
from qtransformer.rollout import Observation
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.schema import DatasetError, Episode, EpisodeDataset


def td3_plus_bc(d3rlpy: Any, scalers: Mapping[str, Any]) -> Any:
    """Returns the settings of reproductions/offline/td3_plus_bc.py, which are d3rlpy's defaults and the paper's."""
    return d3rlpy.algos.TD3PlusBCConfig(alpha=2.5, **scalers)


def iql(d3rlpy: Any, scalers: Mapping[str, Any]) -> Any:
    """Returns the settings of reproductions/finetuning/iql_finetune.py: those for a sparse 0/1 reward (AntMaze).

    The script anneals the actor's learning rate by a cosine, see `train`.
    """
    shift = d3rlpy.preprocessing.ConstantShiftRewardScaler(shift=-1)
    return d3rlpy.algos.IQLConfig(expectile=0.9, weight_temp=10.0, reward_scaler=shift, **scalers)


def cql(d3rlpy: Any, scalers: Mapping[str, Any]) -> Any:
    """Returns the settings of reproductions/offline/cql.py: wider networks than the default, a fixed weight of 5."""
    encoder = d3rlpy.models.VectorEncoderFactory([256, 256, 256])
    return d3rlpy.algos.CQLConfig(
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        alpha_learning_rate=0.0,
        conservative_weight=5.0,
        **scalers,
    )


# All three: batch 256, discount 0.99, and standardised observations. Only TD3+BC's script standardises; the others are
# of tasks whose elements are of like size, while here metres, radians and their speeds stand side by side.
ALGORITHMS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {"td3_plus_bc": td3_plus_bc, "iql": iql, "cql": cql}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after a user's mistake."""
    options = read_arguments(arguments)
    try:
        train(options) if options.command == "train" else play(options)
    except (RunError, DatasetError) as error:
        print(f"d3rlpy_runner: error: {error}", file=sys.stderr)
        return 2
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--log", type=Path, required=True)
    training.add_argument("--algorithm", choices=ALGORITHMS, required=True)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--cpu-seconds", type=float, required=True, help="after the imports")
    training.add_argument("--out", type=Path, required=True, help="folder to make")
    playing = commands.add_parser("evaluate")
    playing.add_argument("run", type=Path)
    playing.add_argument("--episodes", type=int, default=100)
    playing.add_argument("--seed", type=int, default=0, help="of the first episode")
    playing.add_argument("--import", dest="imports", action="append", help="module that registers the environment")
    playing.add_argument("--json", action="store_true", help="every episode, for programs")
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> None:
    """Trains until the CPU seconds are spent, and writes the run folder.

    Raises:
        RunError, DatasetError: the budget, the folder or the log cannot be used.
    """
    if not options.cpu_seconds > 0:
        raise RunError(f"--cpu-seconds ({options.cpu_seconds}) must be above 0; give more")
    d3rlpy = import_d3rlpy()
    started = time.process_time()
    d3rlpy.seed(options.seed)
    dataset = open_dataset(options.log)
    make_folder(options.out)
    algorithm = ALGORITHMS[options.algorithm](d3rlpy, scalers(d3rlpy, dataset)).create(device="cpu")
    buffer = replay_buffer(d3rlpy, dataset)
    algorithm.build_with_dataset(buffer)

    def update(share: float) -> None:
        if options.algorithm == "iql":
            for group in algorithm.impl.modules.actor_optim.optim.param_groups:
                group["lr"] = algorithm.config.actor_learning_rate * cosine(share)
        algorithm.update(buffer.sample_transition_batch(algorithm.batch_size))

    updates = spend(options.cpu_seconds, started, update)
    save(options, algorithm, dataset, {"updates": updates, "cpu_seconds": round(time.process_time() - started, 2)})


def spend(
    seconds: float, started: float, update: Callable[[float], None], clock: Callable[[], float] = time.process_time
) -> int:
    """Calls `update(share)`, with the share of the budget that is spent, until all is; returns how often it did."""
    updates = 0
    while (share := (clock() - started) / seconds) < 1:
        update(share)
        updates += 1
    return updates


def cosine(share: float) -> float:
    """Returns what is left of a learning rate: 1 at the start of the budget, 0 at its end."""
    return (1 + math.cos(math.pi * share)) / 2


def import_d3rlpy() -> Any:
    """Returns d3rlpy, on one thread, with its own log on stderr.

    Raises:
        RunError: it is not installed.
    """
    import torch
    import torch._dynamo  # the first optimizer would, at the expense of the budget

    try:
        import d3rlpy
        import structlog
    except ImportError as error:
        raise RunError(f"d3rlpy cannot be imported ({error}); run by `peers.py robots d3rlpy_runner.py`") from error
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    torch.set_num_threads(1)
    return d3rlpy


def scalers(d3rlpy: Any, dataset: EpisodeDataset) -> dict[str, Any]:
    """Returns observations to mean 0 and deviation 1 over the log, and actions from their limits to [-1, 1]."""
    names, limits = observation_names(dataset), dataset.spec.actions
    observations = np.concatenate([flat_observations(episode.observations, names) for episode in dataset.episodes])
    mean, std = (getattr(observations, name)(axis=0, dtype=np.float64).astype(np.float32) for name in ("mean", "std"))
    low, high = (np.asarray(end, np.float32) for end in (limits.low, limits.high))
    return {
        "observation_scaler": d3rlpy.preprocessing.StandardObservationScaler(mean=mean, std=std),
        "action_scaler": d3rlpy.preprocessing.MinMaxActionScaler(minimum=low, maximum=high),
    }


def replay_buffer(d3rlpy: Any, dataset: EpisodeDataset) -> Any:
    """Returns the log as d3rlpy's buffer, with the same transitions that our own sampler has."""
    names = observation_names(dataset)
    episodes = [d3rlpy.dataset.Episode(**episode_arrays(episode, names)) for episode in dataset.episodes]
    return d3rlpy.dataset.ReplayBuffer(d3rlpy.dataset.InfiniteBuffer(), episodes=episodes)


def episode_arrays(episode: Episode, names: Sequence[str]) -> dict[str, Any]:
    """Returns what `d3rlpy.dataset.Episode` is made of.

    d3rlpy takes the successor of a step from the next step, and so has none for the last step of an episode that was
    cut off. Where the log has the final observation, it becomes a step of its own, with an action and a reward of zero
    that no transition holds.

        log      o0 a0 r0   o1 a1 r1   o2               truncated after two steps
        d3rlpy   o0 a0 r0   o1 a1 r1   o2 0 0           two transitions, o0 -> o1 and o1 -> o2, neither terminal
    """
    terminated = bool(episode.terminations[-1])
    final = 0 if terminated or not episode.has_final_observation else 1
    steps = episode.num_steps + final
    return {
        "observations": flat_observations(episode.observations, names)[:steps],
        "actions": np.pad(np.asarray(episode.actions, np.float32), ((0, final), (0, 0))),
        "rewards": np.pad(np.asarray(episode.rewards, np.float32), (0, final))[:, None],
        "terminated": terminated,
    }


def observation_names(dataset: EpisodeDataset) -> list[str]:
    """Returns the keys of an observation, in the order in which they are joined to one vector."""
    return [each.name for each in dataset.spec.observations]


def flat_observations(observations: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Returns (steps, features) float32 of arrays that are each (steps, *shape)."""
    return np.concatenate([observations[name].reshape(len(observations[name]), -1) for name in names], axis=1).astype(
        np.float32
    )


def make_folder(path: Path) -> None:
    """Makes the run folder.

    Raises:
        RunError: it is there, or cannot be made.
    """
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"--out {path}: cannot be made ({error.strerror}); choose another folder") from error


def save(options: argparse.Namespace, algorithm: Any, dataset: EpisodeDataset, spent: Mapping[str, Any]) -> None:
    """Writes the run folder."""
    algorithm.save(str(options.out / "policy.d3"))
    spec = dataset.spec
    run = {
        "algorithm": options.algorithm,
        "seed": options.seed,
        "budget_cpu_seconds": options.cpu_seconds,
        **spent,
        "observations": observation_names(dataset),
        "environment_id": spec.environment_id,
        "environment_kwargs": dict(spec.environment_kwargs),
    }
    (options.out / "run.json").write_text(json.dumps(run, indent=1))


class D3rlpyPolicy:
    """The deterministic policy of a trained d3rlpy algorithm (the `Policy` of `evaluation`); it keeps no history."""

    def __init__(self, algorithm: Any, names: Sequence[str]) -> None:
        self._algorithm, self._names = algorithm, names

    def reset(self, slot: int) -> None:
        """Has nothing to forget."""

    def act(self, slots: Sequence[int], observations: Sequence[Observation]) -> np.ndarray:
        """Returns one action a slot, (len(slots), action_dim).

        Raises:
            RunError: an observation has other keys than those of the log.
        """
        for each in observations:
            if set(each) != set(self._names):
                raise RunError(f"observation must have the keys {sorted(self._names)} of the log, got {sorted(each)}")
        stacked = {name: np.stack([np.asarray(each[name]) for each in observations]) for name in self._names}
        return self._algorithm.predict(flat_observations(stacked, self._names))


def play(options: argparse.Namespace) -> None:
    """Plays the episodes and prints what `qtransformer evaluate` prints.

    Raises:
        RunError: the run or the environment cannot be used.
    """
    try:
        run = json.loads((options.run / "run.json").read_text())
        algorithm = import_d3rlpy().load_learnable(str(options.run / "policy.d3"), device="cpu")
    except (OSError, ValueError) as error:
        raise RunError(f"{options.run}: must be the --out folder of `train` ({error}); check the path") from error
    evaluation = evaluate(
        D3rlpyPolicy(algorithm, run["observations"]),
        lambda: make_environment(run["environment_id"], run["environment_kwargs"], options.imports or ()),
        Plan(options.episodes, num_envs=4, seed=options.seed),
    )
    if options.json:
        print(json.dumps(evaluation.to_json()))
    else:
        from qtransformer.console import print_summary

        print_summary(evaluation.summary())


if __name__ == "__main__":
    sys.exit(main())
