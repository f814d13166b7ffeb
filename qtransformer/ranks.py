"""Processes that train together: each takes its share of every batch, and all take the same step.

torchrun starts them, on one machine or on several, and tells each by its environment who it is:

    torchrun --nproc-per-node 2 train.py --dataset logs/pick --out runs/pick

A process that was started alone is rank 0 of 1, for which everything here leaves what it is given as it is. Nothing is
pickled: ranks exchange tensors and short texts. It must not know learners, logs or run folders.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from threading import Event

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from qtransformer.config import RunError

_LONGEST_WAIT = timedelta(hours=12)  # for rank 0, which evaluates alone; torchrun itself ends the ranks of a dead one
_STORE_WAIT = timedelta(minutes=5)  # until all have come
_LOOK_EVERY_S = 0.02  # for a note


class RankLostError(RunError):
    """Another rank has ended."""


def rank() -> int:
    """Returns the number of this process among those that train together."""
    return dist.get_rank() if _are_several() else 0


def world_size() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if _are_several() else 1


def local_rank() -> int:
    """Returns the number of this process among those of its machine: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if _are_several() else 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Joins the processes that torchrun started with this one, to compute on `device`; alone, does nothing.

    Rank 0 alone prints. Where one fails, all end, and the first one that fails says why: the others end without a word.

    Raises:
        RunError: they do not find each other.
        SystemExit: another rank has said why all end.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    store = _join(device)
    try:
        with ExitStack() as stack:
            if rank():
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
    except Exception as error:
        if not _has_the_word(store):
            raise SystemExit(getattr(error, "exit_status", 2)) from error
        raise
    finally:
        dist.destroy_process_group()


def add(tensors: Sequence[Tensor]) -> None:
    """Replaces each of these float32 tensors of one device by its sum over the ranks, the same bits on all.

    All go in one message, always cut alike: the order of a sum, and so its rounding, is that of any other update.
    """
    if not _are_several() or not tensors:
        return
    message = torch.cat([each.reshape(-1) for each in tensors])
    with _together():
        dist.all_reduce(message)
    sums = message.split([each.numel() for each in tensors])
    for each, part in zip(tensors, sums, strict=True):
        each.copy_(part.view_as(each))


def gathered(rows: Float[Tensor, "own columns"]) -> Float[Tensor, "all columns"]:
    """Returns the rows of all ranks, in their order; each gives as many."""
    if not _are_several():
        return rows
    everybody = [torch.empty_like(rows) for _ in range(world_size())]
    with _together():
        dist.all_gather(everybody, rows.contiguous())
    return torch.cat(everybody)


def largest(number: int | float) -> float:
    """Returns the largest number that a rank gave: that of all agree on, where each gives 0 or 1, whether one is 1."""
    if not _are_several():
        return float(number)
    agreed = torch.tensor(number, dtype=torch.float64)
    with _together():
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return agreed.item()


def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Gives each tensor the content that it has at rank 0."""
    if _are_several():
        with _together():
            for each in tensors:
                dist.broadcast(each, 0)


def require_same(name: str, value: str) -> None:
    """Makes sure that all ranks have the same.

    Raises:
        RunError: they do not.
    """
    number = int.from_bytes(hashlib.sha256(value.encode()).digest()[:6])  # 48 bits are a float64 without loss
    if largest(number) != -largest(-number):
        raise RunError(f"{name} must be the same for all {world_size()} ranks, got {value} at rank {rank()} and others")


def wait() -> None:
    """Waits until all ranks are here."""
    largest(0)


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Lets the first rank of each machine go before the others, who find what it wrote on the disk."""
    if local_rank():
        wait()
    yield
    if not local_rank():
        wait()


class Notes:
    """Short texts that ranks leave each other: for threads, which must not get between the exchanges of the loop."""

    def __init__(self, name: str) -> None:
        """Begins with none under this name; alone, nothing is kept."""
        self._store = PrefixStore(name, _get_default_store()) if _are_several() else None
        self._is_over = Event()

    def leave(self, key: str, text: str) -> None:
        """Leaves a note, once for each key.

        Raises:
            RankLostError: the ranks have ended.
        """
        if self._store is not None:
            with _together():
                self._store.set(key, text)

    def read(self, key: str) -> str:
        """Returns the note of this key, when it is there.

        Raises:
            RankLostError: it will never be.
        """
        assert self._store is not None
        with _together():
            while not self._store.check([key]):
                if self._is_over.wait(_LOOK_EVERY_S):
                    raise RuntimeError("nobody waits any more")
            return self._store.get(key).decode()

    def stop_waiting(self) -> None:
        """Lets whoever waits for a note give up."""
        self._is_over.set()


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized()


def _join(device: str) -> Store:
    """Returns what the ranks keep notes in; it outlives them where torchrun holds it."""
    has_gpu = device != "cpu" and torch.cuda.is_available()
    try:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=_STORE_WAIT)))
        store = PrefixStore("qtransformer", store)
        if has_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        dist.init_process_group(backend, timeout=_LONGEST_WAIT, store=store, rank=rank, world_size=world_size)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"WORLD_SIZE ({os.environ['WORLD_SIZE']}) processes must find each other, which failed ({reason}); start "
            "them with torchrun, or unset WORLD_SIZE to train in one"
        ) from error
    return store


@contextmanager
def _together() -> Iterator[None]:
    """Turns the failure of an exchange into one line.

    Raises:
        RankLostError: a rank is not there any more.
    """
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            f"one of the {world_size()} ranks has ended without a word (out of memory, perhaps: see the system's log), "
            "so all end; what was saved before is kept: go on with --resume"
        ) from error


def _has_the_word(store: Store) -> bool:
    """Returns whether this rank is the first one that fails; who cannot ask anybody says what it knows."""
    try:
        return store.add("failures", 1) == 1
    except RuntimeError:
        return True
