"""What a result came from: versions, and the revision of the code.

It must not know what the result is.
"""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

_HERE = Path(__file__).resolve()


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
