"""A fork server with every import done, so that a test can run the real command in hundreds of processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

import pytest

# a process has one server: it serves all tests
PRELOADED = ["damage_warm_up", "kill_fixtures", "training_children", "rank_children"]


def start_fork_server() -> ForkServerContext:
    """Returns the context whose processes are forks of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server itself does not inherit sys.path
        forkserver.ensure_running()
    return context
