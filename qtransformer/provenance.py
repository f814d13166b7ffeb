"""What a result came from: versions, the revision of the code and its changes since, the command.

    RUN/run.json            what each process was that trained there: one, and one more each time the run was resumed
    RUN/changes-HASH.diff   what `git diff` said of the code then, where it was changed

It must not know what the result is.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qtransformer.files import write_durably

SESSIONS = "run.json"
_HERE = Path(__file__).resolve()
_MOST_BYTES = 2**20  # of a diff
_MOST_NAMES = 50  # of files that git does not know


@cache  # reading them takes longer than writing a small checkpoint
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    packages = ("qtransformer", "torch", "numpy", "gymnasium", "mujoco", "h5py")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@cache  # of the code that runs, whatever is changed on the disk since
def git_revision() -> str | None:
    """Returns the revision of the checkout that this package is run from, with `+` if it was changed; else None."""
    found = _git("describe", "--always", "--abbrev=40", "--dirty=+")
    return found.strip() if found is not None else None


def _git(*arguments: str) -> str | None:
    """Returns what git says at this file; None without git, or where git does not know the file.

    A package that was installed inside somebody's own repository is not of that repository's revision.
    """
    try:
        for command in (("ls-files", "--error-unmatch", _HERE.name), arguments):
            done = subprocess.run(
                ["git", "-C", str(_HERE.parent), *command], capture_output=True, check=True, timeout=10
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def git_changes() -> str | None:
    """Returns what was changed since that revision, as a diff; None where the revision is all, or is unknown."""
    return _git("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color") or None


def untracked_sources() -> list[str]:
    """Returns the Python files beside this package's that git does not know, and that a diff therefore lacks."""
    return (_git("ls-files", "--others", "--exclude-standard", "--", ":/*.py") or "").splitlines()


def add_session(run: Path, first_step: int, steps: int, device: str, num_processes: int) -> None:
    """Adds what a process that trains in `run` is to RUN/run.json, and its changes of the code beside it.

    Args:
        run: the folder.
        first_step: update that the process goes on from.
        steps: where it is to end.
        device: where it computes.
        num_processes: that train together.

    Raises:
        OSError: the folder cannot be written.
    """
    changes, untracked = git_changes(), untracked_sources()
    session = {
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "first_step": first_step,
        "steps": steps,
        "device": device,
        "num_processes": num_processes,
        "processor": platform.processor() or platform.machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "changes": None,
        "untracked": untracked[:_MOST_NAMES],
    }
    if changes is not None:
        text = changes.encode()
        name = f"changes-{hashlib.sha256(text).hexdigest()[:12]}.diff"
        kept = text if len(text) <= _MOST_BYTES else text[:_MOST_BYTES] + b"\n(cut: too large to keep)\n"
        write_durably(run / name, lambda path: path.write_bytes(kept))
        session["changes"] = name
    document = json.dumps({"sessions": [*sessions(run), session]}, indent=1)
    write_durably(run / SESSIONS, lambda path: path.write_text(document))


def sessions(run: Path) -> list[dict[str, Any]]:
    """Returns what `add_session` wrote, oldest first; empty where nothing was written, or it is damaged."""
    try:
        found = json.loads((run / SESSIONS).read_text())["sessions"]
        return [dict(each) for each in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []
