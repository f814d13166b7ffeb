"""Checkpoints that are written while training goes on: updates wait for a copy of the tensors, and for nothing else.

    update ─▶ copy ─▶ update ─▶ update ─▶ ...                         each rank, its share of the tensors
                │
                └──▶ files, sums, on the disk ─▶ a note to rank 0 ─▶ described, renamed       in a thread

No rank exchanges tensors in its thread, which would get between those of the loop. It must not know what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qtransformer import ranks
from qtransformer.checkpoint import (
    WEIGHTS,
    CheckpointError,
    discard,
    finish_checkpoint,
    share_name,
    share_of,
    write_files,
)
from qtransformer.config import RunError


class CheckpointWriter:
    """Writes one checkpoint at a time; a context manager whose exit waits for the one under way.

    All ranks call `save` and `wait` at the same updates.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._notes = ranks.Notes("checkpoints")
        self._copies: dict[str, Tensor] = {}
        self._jobs: list[Future[Any]] = []

    def save(
        self,
        run: Path,
        info: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        training: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
    ) -> None:
        """Copies this rank's share and begins to write checkpoint `info["step"]` of `run`, when the last one is there.

        Args:
            run: the folder of the run, the same for all ranks.
            info: what goes into checkpoint.json.
            weights: written by rank 0.
            training: what else a resumed training needs, the same at all ranks; each writes a share.
            own: the same, but those that rank 0 alone has.

        Raises:
            CheckpointError: the last one could not be written.
        """
        self.wait()
        rank, num_shares, step = ranks.rank(), ranks.world_size(), info["step"]
        share = share_of(training, rank, num_shares, taken=sum(each.nbytes for each in weights.values()))
        files = {share_name(rank): share} if rank else {WEIGHTS: weights, share_name(0): {**share, **own}}
        copies = {
            file: {name: self._copied(f"{file}: {name}", each) for name, each in named.items()}
            for file, named in files.items()
        }
        written = self._thread.submit(self._write, run, step, copies)
        finished = written if rank else self._thread.submit(self._finish, run, info, written)
        self._jobs = [written, finished]

    def check(self) -> None:
        """Makes sure that nothing has failed so far; never waits.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        for job in self._jobs:
            if job.done():
                job.result()

    def wait(self) -> None:
        """Waits until the checkpoint under way is on the disk.

        Raises:
            CheckpointError: as `check`.
            RankLostError: another rank has ended.
        """
        for job in self._jobs:  # the files of each rank, then the whole: who waits finds out that another has ended
            job.result()
            ranks.wait()
        self._jobs = []

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ranks.RankLostError | KeyboardInterrupt):
            self._notes.stop_waiting()
        self._thread.shutdown()

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        """Returns a copy in memory that is kept for the next one: to ask for new memory costs as much as to fill it."""
        kept = self._copies.get(name)
        if kept is None or kept.shape != tensor.shape:
            kept = self._copies[name] = torch.empty_like(tensor, device="cpu")
        return kept.copy_(tensor)

    def _write(self, run: Path, step: int, files: Mapping[str, dict[str, Tensor]]) -> list[str]:
        """Writes this rank's files and leaves a note: their lines of SHA256SUMS, or why there are none."""
        note = f"{step}/{ranks.rank()}"
        try:
            lines = write_files(run, step, files)
        except CheckpointError as error:
            self._notes.leave(note, str(error))
            raise
        self._notes.leave(note, "\n".join(lines))
        return lines

    def _finish(self, run: Path, info: Mapping[str, Any], written: Future[list[str]]) -> None:
        """Puts the files of all ranks together, or removes them where one is missing."""
        step = info["step"]
        try:
            notes = {share_name(rank): self._notes.read(f"{step}/{rank}") for rank in range(1, ranks.world_size())}
            for name, note in notes.items():
                if not note.endswith(name):
                    raise CheckpointError(note)
            finish_checkpoint(run, info, [*written.result(), *notes.values()])
        except RunError:
            discard(run, step)
            raise
