"""One episode of an exported bundle, as pictures. A process of its own, since MuJoCo chooses its renderer at import.

MUJOCO_GL=egl python -m qtransformer.pictures BUNDLE FRAMES.npz SEED
"""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import numpy as np

_BACKENDS = {"EGL": "egl", "OSMesa": "osmesa"}  # library -> MUJOCO_GL


def record_frames(bundle: Path, seed: int, frames: Path) -> np.ndarray | None:
    """Returns uint8 frames (T, height, width, 3) of one episode, kept in `frames`; None where nothing can be drawn."""
    backend = os.environ.get("MUJOCO_GL") or next((gl for name, gl in _BACKENDS.items() if find_library(name)), "")
    command = [sys.executable, "-m", "qtransformer.pictures", str(bundle), str(frames), str(seed)]
    environment = {**os.environ, "MUJOCO_GL": backend, "LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0:
        return None
    with np.load(frames, allow_pickle=False) as arrays:
        return arrays["frames"]


def play(bundle: Path, frames: Path, seed: int) -> None:
    """Plays the episode and writes its frames."""
    from qtransformer.evaluation import make_environment
    from qtransformer.loading import open_policy

    opened = open_policy(bundle)
    kwargs = {**opened.environment_kwargs, "render_mode": "rgb_array"}
    environment = make_environment(opened.environment_id or "", kwargs, ("qtransformer_envs",))
    observation, _ = environment.reset(seed=seed)
    opened.policy.reset(0)
    pictures, is_over = [np.asarray(environment.render())], False
    while not is_over:
        observation, _, terminated, truncated, _ = environment.step(opened.policy.act([0], [observation])[0])
        pictures.append(np.asarray(environment.render()))
        is_over = terminated or truncated
    np.savez_compressed(frames, frames=np.stack(pictures))


if __name__ == "__main__":
    play(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
