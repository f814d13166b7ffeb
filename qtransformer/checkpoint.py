"""Checkpoints: tensors in safetensors, everything else in JSON, written beside and renamed. No pickle anywhere.

    RUN/checkpoints/step_000002000/  checkpoint.json   format, step, config, spec, statistics, fingerprint, versions
                                     weights.safetensors   the model, all that evaluation and export need
                                     training.safetensors  target network, optimizer, generators: what --resume needs

It must not know what a model is: it stores named tensors and JSON.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qtransformer.config import RunError
from qtransformer.files import fsync

FORMAT_VERSION = 4
_KEPT = 2


class CheckpointError(RunError):
    """A checkpoint cannot be written or read; the message says which, why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read: `info` is checkpoint.json, the tensors are by name."""

    path: Path
    info: dict[str, Any]
    weights: dict[str, torch.Tensor]

    def training_tensors(self) -> dict[str, torch.Tensor]:
        """Reads what only a resumed training needs.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return _load_tensors(self.path / "training.safetensors")


def save_checkpoint(
    run: Path, info: Mapping[str, Any], weights: dict[str, torch.Tensor], training: dict[str, torch.Tensor]
) -> Path:
    """Writes checkpoint `info["step"]` of `run` and removes all but the last two; returns its folder.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    final = run / "checkpoints" / f"step_{info['step']:09d}"
    beside = final.with_name(final.name + ".writing")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(weights, beside / "weights.safetensors")
        save_file(training, beside / "training.safetensors")
        document = {"format_version": FORMAT_VERSION, **info, "versions": versions(), "git_revision": git_revision()}
        (beside / "checkpoint.json").write_text(json.dumps(document, indent=1))
        for path in (*beside.iterdir(), beside):
            fsync(path)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        fsync(final.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        raise CheckpointError(
            f"{final}: cannot be written ({error}); free space or choose another --out, then --resume"
        ) from error
    for old in checkpoint_folders(run)[:-_KEPT]:
        shutil.rmtree(old)
    return final


def checkpoint_folders(run: Path) -> list[Path]:
    """Returns the finished checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if path.name.removeprefix("step_").isdigit())


def load_checkpoint(run: Path) -> Checkpoint:
    """Reads the newest checkpoint of a run folder, or the checkpoint folder itself.

    Raises:
        CheckpointError: there is none, it is damaged, or it was written by another format version.
    """
    folders = [run] if (run / "checkpoint.json").exists() else checkpoint_folders(run)
    if not folders:
        raise CheckpointError(f"{run}: holds no checkpoint; give the --out folder of a training run")
    path = folders[-1]
    try:
        info = json.loads((path / "checkpoint.json").read_text())
        found = info["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / 'checkpoint.json'}: is damaged ({error!r}); use an earlier checkpoint"
        ) from error
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format ({found}) must be {FORMAT_VERSION}; "
            f"open it with qtransformer {info.get('versions', {}).get('qtransformer', 'of that time')} or train again"
        )
    return Checkpoint(path, info, _load_tensors(path / "weights.safetensors"))


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is missing or damaged ({error}); use an earlier checkpoint") from error


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    packages = ("qtransformer", "torch", "numpy", "gymnasium", "mujoco", "h5py")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def git_revision() -> str | None:
    """Returns the revision of the checkout that this package is run from, with `+` if it was changed; else None."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
