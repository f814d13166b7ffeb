"""A Python that has numpy and onnxruntime and nothing else, as on a robot's controller."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("numpy", "numpy.libs", "onnxruntime")


def bare_python(folder: Path) -> Path:
    """Returns the interpreter of a new virtual environment in `folder`, whose packages are links to the tests' own."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name in _PACKAGES:
        spec = find_spec(name.removesuffix(".libs"))
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent.with_name(name)
        if package.exists():
            (site_packages / name).symlink_to(package)
    return folder / "bin" / "python"


def run_bare(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `python` with nothing of ours on its path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["OMP_NUM_THREADS"] = "1"
    command = [str(python), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=python.parent, capture_output=True, text=True, check=False, timeout=60
    )


def passes_self_test(bundle: Path, folder: Path) -> bool:
    """Returns whether the bundle's self-test passes in a new bare Python in `folder`, in which ours is not found."""
    python = bare_python(folder)
    for name in ("torch", "qtransformer", "gymnasium", "onnx"):
        found = run_bare(python, "-c", f"import {name}")
        assert f"No module named '{name}'" in found.stderr
    result = run_bare(python, bundle / "controller.py", "--self-test")
    assert (result.returncode, result.stderr) == (0, "")
    return bool(json.loads(result.stdout)["passed"])
