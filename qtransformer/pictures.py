"""Drawing without a screen: MuJoCo chooses its renderer when it is imported, so it must be told before.

`record_frames` draws in a process of its own, for a caller that may have imported MuJoCo already:

python -m qtransformer.pictures BUNDLE FRAMES.npz SEED
"""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from functools import partial
from pathlib import Path

import numpy as np

from qtransformer.rollout import Rollout

_BACKENDS = {"EGL": "egl", "OSMesa": "osmesa"}  # library -> MUJOCO_GL


def choose_renderer() -> None:
    """Sets MUJOCO_GL to a renderer that is installed and needs no screen, unless it is set; call it before MuJoCo."""
    backend = next((gl for library, gl in _BACKENDS.items() if find_library(library)), None)
    if backend is not None:
        os.environ.setdefault("MUJOCO_GL", backend)
    os.environ.setdefault("LP_NUM_THREADS", "1")  # a software renderer's threads would take the policy's core


def record_frames(bundle: Path, seed: int, frames: Path) -> np.ndarray | None:
    """Returns uint8 frames (T, height, width, 3) of one episode, kept in `frames`; None where nothing can be drawn."""
    command = [sys.executable, "-m", "qtransformer.pictures", str(bundle), str(frames), str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0:
        return None
    with np.load(frames, allow_pickle=False) as arrays:
        return arrays["frames"]


def play(bundle: Path, frames: Path, seed: int) -> None:
    """Plays the episode and writes its frames."""
    from qtransformer.evaluation import Plan, evaluate, make_environment
    from qtransformer.loading import open_policy

    choose_renderer()
    opened, rollouts = open_policy(bundle), list[Rollout]()
    environment_id, kwargs = opened.environment()
    make = partial(make_environment, environment_id, {**kwargs, "render_mode": "rgb_array"}, ("qtransformer_envs",))
    plan = Plan(1, 1, seed, opened.ignored_observations, num_drawn=1)
    evaluate(opened.policy, make, plan, listeners=[rollouts.append])
    pictures = [step.frame for step in rollouts[0].steps if step.frame is not None]
    np.savez_compressed(frames, frames=np.stack(pictures))


if __name__ == "__main__":
    play(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
