"""Opening what was made: a run folder of `train`, or a bundle of `export`, as something that acts.

Modules are imported inside the functions, since a bundle must open in a process without torch.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qtransformer.batch import DatasetSpec
from qtransformer.config import WITHOUT_VALUES, RunError, TrainConfig
from qtransformer.evaluation import Policy

if TYPE_CHECKING:
    from qtransformer.deploy.export import Samples
    from qtransformer.policy import GreedyPolicy


@dataclass(frozen=True)
class LoadedRun:
    """The newest checkpoint of a run, ready to act."""

    folder: Path
    policy: GreedyPolicy
    spec: DatasetSpec
    info: Mapping[str, Any]
    """checkpoint.json: step, config, statistics, fingerprint, versions."""

    def samples(self) -> Samples:
        """Returns the logged observation windows that training kept for export.

        Raises:
            RunError: samples.npz is missing or damaged.
        """
        from qtransformer.deploy.export import Samples

        path = self.folder / "samples.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                prefix = "observations/"
                observations = {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
                return Samples(observations, arrays["num_frames"])
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise RunError(f"{path}: is missing or damaged ({error}); train again") from error

    def card(self) -> dict[str, Any]:
        """Returns what a bundle says of its origin."""
        from qtransformer.deploy.card import training_command

        kept = ("step", "config", "statistics", "return_scale", "instructions", "dataset", "versions", "git_revision")
        statistics = {each.name: self.info["statistics"][each.name] for each in self.spec.observations}
        ranges = {key: {"low": each["min"], "high": each["max"]} for key, each in statistics.items() if "min" in each}
        command = training_command(TrainConfig.from_json(self.info["config"]))
        origin = {**{key: self.info[key] for key in kept}, "language": self.info.get("language")}
        return {"observation_ranges": ranges, "training_command": command, **origin}


@dataclass(frozen=True)
class OpenedPolicy:
    """A policy and the environment that its log came from."""

    path: Path
    """Of the run or the bundle."""
    policy: Policy
    environment_id: str | None
    environment_kwargs: Mapping[str, Any]
    ignored_observations: tuple[str, ...]
    origin: Mapping[str, Any]
    """`config`, `step`, `return_scale` and `dataset` (with its fingerprint) of the training run."""

    def environment(self, other: str | None = None) -> tuple[str, dict[str, Any]]:
        """Returns what `named_environment` does for this policy."""
        return named_environment(self.path, self.environment_id, self.environment_kwargs, other)

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The observations that are words."""
        card = self.origin if "observations" in self.origin else self.origin["spec"]
        return tuple(each["name"] for each in card["observations"] if each["kind"] == "text")

    def value_of(self) -> Callable[[float], float] | None:
        """Returns the map from Q in (0, 1) to returns of the log; None where the algorithm learns no values."""
        if self.origin["config"]["algorithm"] in WITHOUT_VALUES:
            return None
        low, high = (self.origin["return_scale"][key] for key in ("low", "high"))
        return lambda q_value: low + (high - low) * q_value


def named_environment(
    path: Path, environment_id: str | None, kwargs: Mapping[str, Any], other: str | None
) -> tuple[str, dict[str, Any]]:
    """Returns the Gymnasium id to play in and its settings: those of the log behind `path`, or `other` without any.

    Raises:
        RunError: there is neither.
    """
    if other is not None:
        return other, {}
    if environment_id is None:
        raise RunError(f"{path}: its log names no environment; name one with --env-id")
    return environment_id, dict(kwargs)


def load_run(folder: Path) -> LoadedRun:
    """Returns the policy of a run's newest checkpoint.

    Raises:
        RunError: there is none, it is damaged, of another version, or describes no policy.
    """
    from qtransformer.checkpoint import load_checkpoint
    from qtransformer.policy import build_policy

    checkpoint = load_checkpoint(folder)
    info = checkpoint.info
    try:
        spec = DatasetSpec.from_json(info["spec"])
        config = TrainConfig.from_json(info["config"])
        policy = build_policy(config, spec, info["statistics"], info["action_centres"])
        policy.load_state_dict(checkpoint.weights)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise RunError(
            f"{checkpoint.path}: checkpoint.json and the weights must describe one policy, got something else "
            f"({' '.join(repr(error).split())[:200]}); train again"
        ) from error
    return LoadedRun(folder, policy.eval(), spec, info)


def open_policy(path: Path) -> OpenedPolicy:
    """Opens a run folder or a bundle.

    Raises:
        RunError, ControllerError: it is neither, or damaged.
    """
    if (path / "policy.json").exists():
        from qtransformer.deploy.bundle_policy import BundlePolicy

        bundle = BundlePolicy(path)
        environment = bundle.card["environment"]
        ignored = tuple(environment.get("ignored_observations", ()))
        return OpenedPolicy(path, bundle, environment["id"], environment["kwargs"], ignored, bundle.card)
    if not path.is_dir():
        raise RunError(f"{path}: must be the folder of a run or of a bundle, got no folder; check the path")
    import torch

    from qtransformer.language import run_encoder
    from qtransformer.policy import CheckpointPolicy

    torch.set_num_threads(1)  # a decision is too small to share, and waiting threads would take the simulator's core
    run = load_run(path)
    return OpenedPolicy(
        path,
        CheckpointPolicy(run.policy, run_encoder(run.info)),
        run.spec.environment_id,
        run.spec.environment_kwargs,
        run.spec.ignored_observations,
        run.info,
    )
