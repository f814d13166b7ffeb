"""Starts two ranks as children of the fork server."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess

from fork_server import start_fork_server
from rank_children import as_rank

_GRACE_SECONDS = 5


@dataclass(frozen=True)
class Rank:
    """A started rank."""

    process: ForkServerProcess

    def wait(self):
        """Returns what it exits with, when it does."""
        self.process.join()
        return self.process.exitcode

    def end_as_by_torchrun(self):
        """Ends it, if it does not end by itself soon after another one: before all have met, it would wait for that."""
        self.process.join(_GRACE_SECONDS)
        self.process.kill()
        self.process.join()


def start_ranks(function, *arguments, world_size=2):
    """Starts `function(rank, *arguments)` in each rank of a group."""
    context = start_fork_server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world_size):
        process = context.Process(target=as_rank, args=(rank, world_size, port, function, *arguments))
        process.start()
        started.append(Rank(process))
    return started
