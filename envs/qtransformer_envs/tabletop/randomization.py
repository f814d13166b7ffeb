"""What differs between episodes besides where things are: masses, friction, lights, cameras.

Special about this file: a level holds all that the levels below it hold. Places, kinds, colours and words are drawn on
every level, since an episode without them would be always the same. It must not know any task.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

from __future__ import annotations

import mujoco
import numpy as np

from qtransformer_envs.rotations import matrix_from_vector
from qtransformer_envs.tabletop.scene import Scene

__all__ = ["LEVELS", "randomize"]

LEVELS = {0: "places, objects and words", 1: "... and masses and friction", 2: "... and lights and cameras"}
MASS_FACTORS = (0.7, 1.4)
FRICTION = (0.6, 1.0)  # sliding, between an object and the table
DRAWER_FRICTION = (0.8, 2.5)  # N
LIGHT_FACTORS = (0.6, 1.3)
LIGHT_TURN = 0.25  # rad
CAMERA_SHIFT = 0.02  # m
CAMERA_TURN = 0.03  # rad


def randomize(scene: Scene, rng: np.random.Generator, level: int) -> None:
    """Changes the model of `scene` as `level`, a key of `LEVELS`, says; resets its state."""
    if level >= 1:
        _randomize_bodies(scene, rng)
    if level >= 2:
        _randomize_lights(scene.model, rng)
        _randomize_cameras(scene.model, rng)
    mujoco.mj_setConst(scene.model, scene.data)  # what follows from masses
    mujoco.mj_resetData(scene.model, scene.data)


def _randomize_bodies(scene: Scene, rng: np.random.Generator) -> None:
    model = scene.model
    for item in scene.items:
        factor = rng.uniform(*MASS_FACTORS)
        model.body_mass[item.body] *= factor
        model.body_inertia[item.body] *= factor
        model.geom_friction[item.geoms, 0] = rng.uniform(*FRICTION)
    model.dof_frictionloss[model.joint("furniture/drawer").dofadr[0]] = rng.uniform(*DRAWER_FRICTION)


def _randomize_lights(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    for light in range(model.nlight):
        model.light_diffuse[light] *= rng.uniform(*LIGHT_FACTORS)
        model.light_dir[light] = _small_turn(rng, LIGHT_TURN) @ model.light_dir[light]
    model.vis.headlight.ambient[:] *= rng.uniform(*LIGHT_FACTORS)


def _randomize_cameras(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    for camera in range(model.ncam):
        model.cam_pos[camera] += rng.uniform(-CAMERA_SHIFT, CAMERA_SHIFT, 3)
        matrix, quaternion = np.zeros(9), np.zeros(4)
        mujoco.mju_quat2Mat(matrix, model.cam_quat[camera])
        mujoco.mju_mat2Quat(quaternion, (_small_turn(rng, CAMERA_TURN) @ matrix.reshape(3, 3)).ravel())
        model.cam_quat[camera] = quaternion


def _small_turn(rng: np.random.Generator, limit: float) -> np.ndarray:
    return matrix_from_vector(rng.uniform(-limit, limit, 3))
