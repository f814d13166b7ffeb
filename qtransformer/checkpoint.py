"""Checkpoints: tensors in safetensors, everything else in JSON, written beside and renamed. No pickle anywhere.

    RUN/checkpoints/step_000002000/  checkpoint.json   format, step, config, spec, statistics, fingerprint, versions
                                     weights.safetensors   the model, all that evaluation and export need
                                     training.safetensors  target network, optimizer, generators: what --resume needs
                                     SHA256SUMS   of the three, as `sha256sum --check` reads them; compared when read

The last two are kept; where the newest is damaged, the one before is read. It must not know what a model is: it stores
named tensors and JSON.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qtransformer.config import RunError
from qtransformer.console import say
from qtransformer.files import SUMS, fsync, sha256, write_sums
from qtransformer.provenance import git_revision, versions

FORMAT_VERSION = 5
_KEPT = 2


class CheckpointError(RunError):
    """A checkpoint cannot be written or read; the message says which, why and what to do."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was written."""


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
        write_sums(beside)
        for path in (*beside.iterdir(), beside):
            fsync(path)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        fsync(final.parent)
        for old in checkpoint_folders(run)[:-_KEPT]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written ({error}); free space or choose another --out, then --resume"
        ) from error
    return final


def checkpoint_folders(run: Path) -> list[Path]:
    """Returns the finished checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if path.name.removeprefix("step_").isdigit())


def load_checkpoint(run: Path) -> Checkpoint:
    """Reads the newest sound checkpoint of a run folder, or the checkpoint folder itself; says which it passed over.

    Raises:
        CheckpointError: there is none, all are damaged, or the newest was written by another format version.
    """
    folders = [run] if (run / "checkpoint.json").exists() else checkpoint_folders(run)
    if not folders:
        raise CheckpointError(f"{run}: holds no checkpoint; give the --out folder of a training run")
    for path in reversed(folders):
        try:
            return _read(path)
        except DamagedError as error:
            if path == folders[0]:
                raise CheckpointError(f"{error}, and no other is there; take a copy of it, or train again") from error
            say(f"skipped: {error}; the one before is used")
    raise AssertionError("the loop returns or raises")


def set_aside_newer(run: Path, step: int) -> None:
    """Renames the checkpoints after `step`, which were damaged, so that they do not count as the newest any more.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    for path in checkpoint_folders(run):
        if int(path.name.removeprefix("step_")) > step:
            aside = path.with_name(path.name + ".damaged")
            try:
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
            except OSError as error:
                raise CheckpointError(f"{path}: is damaged, and cannot be renamed ({error}); remove it") from error


def _read(path: Path) -> Checkpoint:
    """Returns one checkpoint.

    Raises:
        DamagedError: it is not what was written.
        CheckpointError: it was written by another format version.
    """
    try:
        info = json.loads((path / "checkpoint.json").read_text())
        found = info["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / 'checkpoint.json'}: is damaged ({error!r})") from error
    if found != FORMAT_VERSION:
        written_by = dict(info.get("versions") or {}).get("qtransformer", "of that time")
        raise CheckpointError(
            f"{path}: checkpoint format ({found}) must be {FORMAT_VERSION}; open it with qtransformer {written_by} or "
            "train again"
        )
    _compare_sums(path)
    return Checkpoint(path, info, _load_tensors(path / "weights.safetensors"))


def _compare_sums(folder: Path) -> None:
    """Makes sure that every file is what was written.

    Raises:
        DamagedError: one is missing, or is another.
    """
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder / SUMS}: is missing or damaged ({error})") from error
    for name in ("weights.safetensors", "training.safetensors", "checkpoint.json"):
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise DamagedError(f"{folder / name}: is missing or damaged ({error})") from error
        if f"{found}  {name}" not in lines:
            raise DamagedError(f"{folder / name}: is damaged (its sha256 is not that of {SUMS})")


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path}: is missing or damaged ({error})") from error
