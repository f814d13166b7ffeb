"""The folder of a run: claimed by one process at a time, begun once, gone on with after any end.

    RUN/config.json    every setting, resolved; the first file of a run
    RUN/metrics.jsonl  one line every --log-every updates
    RUN/.lock          the process that trains here; the system lets go of it when that process dies, however it does

Whatever must not be found half-written is renamed into place, so that a killed run can always be gone on with. It must
not know learners or data.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qtransformer.checkpoint import checkpoint_folders
from qtransformer.config import RunError, TrainConfig
from qtransformer.console import say
from qtransformer.files import fsync, leftovers, write_durably

_LOCK = ".lock"
_MAY_DIFFER = (
    "resume",
    "steps",
    "out",
    "on_bad_batch",
    "following",
    "gradient_accumulation_steps",
    "activation_checkpointing",
)  # between the commands that begin a run and that go on with it


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Makes the folder where there is none, and keeps every other process from training in it.

    Raises:
        RunError: a living process trains there, or the folder cannot be made or locked.
    """
    if run.exists() and not run.is_dir():
        raise RunError(f"--out {run}: already holds something; choose another folder, or --resume a run")
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = _lock(run)
    except OSError as error:
        raise RunError(f"--out {run}: cannot be made or locked ({error.strerror}); choose another folder") from error
    try:
        yield
    finally:
        with suppress(OSError):  # what stopped the run may stop this; the lock is free all the same
            (run / _LOCK).unlink()
        os.close(lock)


def can_resume(config: TrainConfig) -> bool:
    """Returns whether the folder, which this process must have claimed, holds a checkpoint to go on from.

    Without, the run begins. What a killed process left half-written is removed.

    Raises:
        RunError: the folder holds a run and --resume was not given, a run of other settings, or something else.
    """
    torn = leftovers(config.out)
    is_begun = config.resume and (config.out / "config.json").exists()
    if is_begun:
        before, now = read_settings(config.out).to_json(), config.to_json()
        changed = sorted(key for key in now if before[key] != now[key] and key not in _MAY_DIFFER)
        if changed:
            raise RunError(
                f"--resume {config.out}: settings differ from the run's ({', '.join(changed)}); use the same"
            )
    elif not set(config.out.iterdir()) <= {config.out / _LOCK, *torn}:  # of a run that was killed before its first file
        raise RunError(f"--out {config.out}: already holds something; choose another folder, or --resume a run")
    with keeping(config.out):
        for path in torn:
            path.unlink()
    return is_begun and bool(checkpoint_folders(config.out))


def read_settings(run: Path) -> TrainConfig:
    """Returns the settings that the run began with.

    Raises:
        RunError: config.json is missing or damaged.
    """
    path = run / "config.json"
    try:
        return TrainConfig.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RunError) as error:
        raise RunError(f"{path}: is damaged ({error!r}); begin a new run in another --out") from error


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """Turns a failure to write a file of the run into one line.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is kept: free space or "
            "make the folder writable, then --resume"
        ) from error


class Metrics:
    """The figures of a run, one JSON object a line; a context manager that holds the file open."""

    def __init__(self, run: Path) -> None:
        self._path = run / "metrics.jsonl"
        self.lines: list[dict[str, Any]] = []
        """All lines of the run so far."""

    def clear(self) -> None:
        """Begins anew: a run that was killed before its first checkpoint left lines."""
        with keeping(self._path):
            write_durably(self._path, lambda path: path.write_text(""))

    def keep(self, step: int) -> None:
        """Drops the lines after `step`, which are to be written again; says how many others cannot be read."""
        if not self._path.exists():
            say(f"{self._path}: is missing; it begins anew after update {step}")
        lines, num_damaged = read_metrics(self._path.parent)
        if num_damaged:
            total = len(lines) + num_damaged
            say(f"{self._path}: is damaged; {num_damaged} of {total} lines cannot be read and were left out")
        self.lines = [line for line in lines if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        with keeping(self._path):
            write_durably(self._path, lambda path: path.write_text(text))

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
            RunError: the disk is full.
        """
        with keeping(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self.lines.append(dict(record))

    def sync(self) -> None:
        """Waits until all lines are on the disk: a checkpoint that comes after them finds them there.

        Raises:
            RunError: the disk is full.
        """
        with keeping(self._path):
            fsync(self._path)

    def __enter__(self) -> Metrics:
        with keeping(self._path):
            self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        with keeping(self._path):
            self._file.close()


def read_metrics(run: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the lines of metrics.jsonl, none where it is missing, and how many others cannot be read.

    The last one does not count among those: a kill cuts it short, and nothing is lost by that.
    """
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = [_record(line) for line in lines]
    return [each for each in records if each is not None], records[:-1].count(None)


def _lock(run: Path) -> int:
    """Returns the open lock file, in which this process stands.

    Raises:
        RunError: a living process holds it.
        OSError: the file system refuses.
    """
    path = run / _LOCK
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        holder = os.read(lock, 200).decode(errors="replace")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"--out {run}: {holder or 'another process'} is training there; wait for it, or choose another folder"
            ) from error
        if not path.exists() or not os.path.samestat(os.fstat(lock), path.stat()):
            raise RunError(f"--out {run}: another process has just left the folder; try again")
        if holder:
            say(f"--out {run}: {holder} ended without a word while it trained here; its lock is taken over")
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _record(line: bytes) -> dict[str, Any] | None:
    """Returns a line of metrics.jsonl; None where it is no such line."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int | float) else None
    except (ValueError, TypeError, KeyError):
        return None
