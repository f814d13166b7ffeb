"""Checkpoints: tensors in safetensors, everything else in JSON, written beside and renamed. No pickle anywhere.

    RUN/checkpoints/step_000002000/  checkpoint.json   format, step, config, spec, statistics, fingerprint, versions
                                     weights.safetensors   the model, all that evaluation and export need
                                     training_0.safetensors, training_1.safetensors, ...   shares of what --resume
                                                  needs, too: target network, optimizer, generators
                                     SHA256SUMS   of all, as `sha256sum --check` reads them; compared when read

The last two are kept; where the newest is damaged, the one before is read. It must not know what a model is: it stores
named tensors and JSON.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qtransformer.config import RunError
from qtransformer.console import say
from qtransformer.files import SUMS, fsync, sha256
from qtransformer.provenance import git_revision, versions

FORMAT_VERSION = 8
_KEPT = 2
WEIGHTS = "weights.safetensors"


class CheckpointError(RunError):
    """A checkpoint cannot be written or read; the message says which, why and what to do."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read: `info` is checkpoint.json, the tensors are by name."""

    path: Path
    info: dict[str, Any]
    weights: dict[str, Tensor]

    def training_tensors(self) -> dict[str, Tensor]:
        """Reads what only a resumed training needs, all shares of it.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        shares = [_load_tensors(self.path / share_name(number)) for number in range(self.info["num_shares"])]
        return {name: tensor for share in shares for name, tensor in share.items()}


def share_name(number: int) -> str:
    """Returns the name of the file that holds share `number` of the training tensors."""
    return f"training_{number}.safetensors"


def share_of(training: Mapping[str, Tensor], number: int, num_shares: int, taken: int) -> dict[str, Tensor]:
    """Returns the tensors of one share: the largest go first, each to who has the fewest bytes, of equals by name.

    Who asks for share 0 writes the weights, too, and has `taken` bytes before it begins.
    """
    loads, own = [taken] + [0] * (num_shares - 1), {}
    for name in sorted(training, key=lambda name: (-training[name].nbytes, name)):
        least = loads.index(min(loads))
        loads[least] += training[name].nbytes
        if least == number:
            own[name] = training[name]
    return own


def save_checkpoint(
    run: Path, info: Mapping[str, Any], weights: dict[str, Tensor], training: dict[str, Tensor] | None = None
) -> Path:
    """Writes checkpoint `info["step"]` of `run` from one process; without `training`, nothing resumes from it.

    Returns its folder.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    files = {WEIGHTS: weights} | ({} if training is None else {share_name(0): training})
    try:
        return finish_checkpoint(run, info, write_files(run, info["step"], files))
    except CheckpointError:
        discard(run, info["step"])
        raise


def write_files(run: Path, step: int, files: Mapping[str, dict[str, Tensor]]) -> list[str]:
    """Writes files of tensors beside the place of checkpoint `step`, onto the disk; returns their lines of SHA256SUMS.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    beside, lines = _beside(run, step), []
    with _explained(run, step):
        beside.mkdir(parents=True, exist_ok=True)
        for name, tensors in files.items():
            save_file(tensors, beside / name)
            lines.append(_synced(beside / name))
    return lines


def finish_checkpoint(run: Path, info: Mapping[str, Any], lines: Sequence[str]) -> Path:
    """Makes a checkpoint of what `write_files` wrote, here and elsewhere: describes it, renames it, removes old ones.

    Returns its folder, which is one of the last two.

    Args:
        run: the folder of the run.
        info: what goes into checkpoint.json.
        lines: of SHA256SUMS, those of all files.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    final, beside, num_shares = _final(run, info["step"]), _beside(run, info["step"]), len(lines) - 1
    head = {"format_version": FORMAT_VERSION, "num_shares": num_shares}
    document = {**head, **info, "versions": versions(), "git_revision": git_revision()}
    with _explained(run, info["step"]):
        (beside / "checkpoint.json").write_text(json.dumps(document, indent=1))
        sums = sorted([*lines, _synced(beside / "checkpoint.json")])
        (beside / SUMS).write_text("".join(f"{line}\n" for line in sums))
        fsync(beside / SUMS)
        for path in {*beside.iterdir()} - {beside / name for name in (SUMS, *_names(num_shares))}:
            path.unlink()  # a run of more ranks was killed here
        fsync(beside)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        fsync(final.parent)
        for old in checkpoint_folders(run)[:-_KEPT]:
            shutil.rmtree(old)
    return final


def discard(run: Path, step: int) -> None:
    """Removes what was written of checkpoint `step`, which cannot be finished."""
    shutil.rmtree(_beside(run, step), ignore_errors=True)


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


def _final(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:09d}"


def _beside(run: Path, step: int) -> Path:
    final = _final(run, step)
    return final.with_name(final.name + ".writing")


def _names(num_shares: int) -> Iterator[str]:
    """Yields the names of all files that SHA256SUMS speaks of."""
    yield from (WEIGHTS, "checkpoint.json")
    yield from map(share_name, range(num_shares))


def _synced(path: Path) -> str:
    """Returns the line of SHA256SUMS of a file that is on the disk then."""
    fsync(path)
    return f"{sha256(path)}  {path.name}"


@contextmanager
def _explained(run: Path, step: int) -> Iterator[None]:
    """Turns a failure to write into one line.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        raise CheckpointError(
            f"{_final(run, step)}: cannot be written ({error}); free space or choose another --out, then --resume"
        ) from error


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
    if not isinstance(info.get("num_shares"), int):
        raise DamagedError(f"{path / 'checkpoint.json'}: is damaged (num_shares must be a whole number)")
    _compare_sums(path, _names(info["num_shares"]))
    return Checkpoint(path, info, _load_tensors(path / WEIGHTS))


def _compare_sums(folder: Path, names: Iterable[str]) -> None:
    """Makes sure that every file is what was written.

    Raises:
        DamagedError: one is missing, or is another.
    """
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder / SUMS}: is missing or damaged ({error})") from error
    for name in names:
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise DamagedError(f"{folder / name}: is missing or damaged ({error})") from error
        if f"{found}  {name}" not in lines:
            raise DamagedError(f"{folder / name}: is damaged (its sha256 is not that of {SUMS})")


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path}: is missing or damaged ({error})") from error
