"""What a policy did in an evaluation, as a log in our own layout: to look at, to check, or to train on.

Special about this file: episodes come in the order of their seeds, so the log does not depend on `--num-envs`. An
episode whose environment crashed is not in it; metadata.json names its seed, beside the policy that played.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtransformer.outcomes import CrashedEpisode
from qtransformer.rollout import Rollout
from qtransformer.vectorization import Make, made
from qtransformer_datasets.environment import describe_environment, environment_attributes
from qtransformer_datasets.recorder import Recorder


@contextmanager
def open_recording(path: Path, make: Make, policy: Mapping[str, Any]) -> Iterator[Callable[[Rollout], None]]:
    """Yields what takes each rollout; it is on the disk when the call returns, and the log is complete at the end.

    Args:
        path: a new or empty folder.
        make: returns an environment like those that play; it is described, not played.
        policy: what the log says of who acted: see `policy_identity`.

    Raises:
        DatasetError: `path` holds something, or the environment's spaces cannot be recorded.
        RunError: the environment cannot be made.
    """
    played: dict[str, Any] = {"policy": dict(policy), "crashed_seeds": []}
    environment = made(make)
    environment.close()
    attributes = {**environment_attributes(environment), "algorithm_name": policy["algorithm"], "evaluate": played}
    with Recorder(path, describe_environment(environment), attributes=attributes) as recorder:

        def take(rollout: Rollout) -> None:
            if isinstance(rollout.outcome(), CrashedEpisode):
                played["crashed_seeds"].append(rollout.seed)  # metadata.json is written again at the end
            else:
                _record(recorder, rollout)

        yield take


def policy_identity(path: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Returns which policy a run folder or a bundle holds: how and on what it was trained, and its weights' sha256.

    Args:
        path: of the run or the bundle.
        origin: what its checkpoint or its card says of training.
    """
    weights = path / "policy.onnx"
    if not weights.exists():
        from qtransformer.checkpoint import load_checkpoint

        weights = load_checkpoint(path).path / "weights.safetensors"
    return {
        "path": str(path.resolve()),
        "algorithm": origin["config"]["algorithm"],
        "step": origin["step"],
        "dataset_fingerprint": origin["dataset"]["fingerprint"],
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def _record(recorder: Recorder, rollout: Rollout) -> None:
    first, *rest = rollout.steps
    recorder.start_episode(first.observation, seed=rollout.seed, goal=first.goal)
    for action, step in zip(rollout.actions, rest, strict=True):
        recorder.step(action, step.observation, step.reward, step.terminated, step.truncated)
    recorder.end_episode(success=rollout.success)
