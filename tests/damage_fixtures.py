"""Damaging files, and running `inspect` on them within limits: what the children of the fork server import."""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import resource
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from task_fixtures import write_tasks

from qtransformer.cli import main

SECONDS = 10


def warm_up() -> None:
    """Runs the command once, so that what it imports on its way is there before the fork."""
    for module in ("qtransformer.evaluation", "pyarrow.parquet", "av"):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        write_tasks(Path(folder) / "log")
        assert main(["inspect", f"{folder}/log", "--html", f"{folder}/page.html"]) == 0


def damage(data: bytes, chance: random.Random) -> bytes:
    """Returns the bytes with one kind of damage."""
    damaged = bytearray(data)
    kind = chance.choice(("flip", "noise", "cut", "zeros", "header"))
    if kind == "cut":
        return bytes(damaged[: chance.randrange(len(damaged))])
    if kind == "zeros":
        start = chance.randrange(len(damaged))
        hole = slice(start, start + chance.randrange(1, 600))
        damaged[hole] = bytes(len(damaged[hole]))
        return bytes(damaged)
    reach = min(len(damaged), 3000) if kind == "header" else len(damaged)
    for _ in range(chance.randint(1, 4) if kind == "flip" else chance.randint(1, 200)):
        place = chance.randrange(reach)
        damaged[place] = damaged[place] ^ (1 << chance.randrange(8)) if kind == "flip" else chance.randrange(256)
    return bytes(damaged)


def inspect(paths: Sequence[Path], results) -> None:
    """Runs the command on each; sends its exit code, its words and the megabytes that this process has grown by."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    for path in paths:
        signal.alarm(SECONDS)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(["inspect", str(path)])
            except Exception as error:
                code, out = 99, io.StringIO(repr(error))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        results.send((code, out.getvalue()[-300:], err.getvalue(), grown))
