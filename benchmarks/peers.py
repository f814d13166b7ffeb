"""Virtual environments for the packages that the benchmarks compare with, made once, on demand.

`requirements-NAME.txt` is installed by pip with dependencies, then `requirements-NAME-no-deps.txt`, where there is one,
without: there stand the packages whose own pins contradict each other. A changed file makes the environment anew.

python benchmarks/peers.py NAME SCRIPT [ARGUMENTS]   runs a script inside; without SCRIPT, only makes the environment
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ENVIRONMENTS = FOLDER / ".venvs"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class PeerError(Exception):
    """An environment cannot be made; the message says what to do."""


def ensure(name: str) -> Path:
    """Returns the Python of the environment `name`, made first where it is missing or its requirements have changed.

    Raises:
        PeerError: there is no requirements file of that name, or pip failed.
    """
    files = requirements(name)
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    _call(sys.executable, "-m", "venv", "--clear", str(folder))
    for file in files:
        extra = ("--no-deps",) if file.stem.endswith("-no-deps") else ()
        _call(str(python), "-m", "pip", "install", "--quiet", *extra, "--requirement", str(file))
    stamp.write_text(digest)
    return python


def requirements(name: str) -> tuple[Path, ...]:
    """Returns the requirements files of the environment `name`, in the order in which they are installed.

    Raises:
        PeerError: there is none.
    """
    first = FOLDER / f"requirements-{name}.txt"
    if not first.exists():
        known = sorted(each.stem.removeprefix("requirements-") for each in FOLDER.glob("requirements-*.txt"))
        names = ", ".join(each for each in known if not each.endswith("-no-deps"))
        raise PeerError(f"environment name ({name!r}) must have a requirements file; choose one of {names}")
    return tuple(file for file in (first, FOLDER / f"requirements-{name}-no-deps.txt") if file.exists())


def run(name: str, script: str | Path, arguments: Sequence[str] = (), **options: object) -> subprocess.CompletedProcess:
    """Runs a Python script in the environment `name` on one thread; `options` go to `subprocess.run`."""
    command = [str(ensure(name)), str(script), *arguments]
    return subprocess.run(command, env={**os.environ, **ONE_THREAD}, **options)  # pyright: ignore


def _call(*command: str) -> None:
    """Runs one step of the installation, from the root of the repository, and prints it."""
    print("peers:", " ".join(command), file=sys.stderr, flush=True)
    if subprocess.run(command, cwd=FOLDER.parent, check=False).returncode != 0:
        raise PeerError(f"{' '.join(command)}: failed; correct the requirements file or the network, then try again")


if __name__ == "__main__":
    try:
        if len(sys.argv) < 2:
            raise PeerError("give the name of an environment, then a script")
        if len(sys.argv) == 2:
            print(ensure(sys.argv[1]))
        else:
            sys.exit(run(sys.argv[1], sys.argv[2], sys.argv[3:], check=False).returncode)
    except PeerError as error:
        sys.exit(f"peers: error: {error}")
