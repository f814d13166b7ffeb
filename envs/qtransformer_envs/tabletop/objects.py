"""The kinds of objects and their colours: what is put together from primitives, and how it is held.

Special about this file: a kind is data. Every object's local z axis points up when it stands, and its origin is the
middle of its height. It must not know any task.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo 4 ships no stubs for the names of its compiled module)

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco

__all__ = ["COLOURS", "KINDS", "Kind", "Part", "add_object"]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.14),
    "green": (0.16, 0.62, 0.24),
    "blue": (0.14, 0.32, 0.84),
    "yellow": (0.95, 0.82, 0.14),
    "orange": (0.96, 0.50, 0.08),
    "purple": (0.54, 0.22, 0.70),
}


@dataclass(frozen=True)
class Part:
    """One primitive: MuJoCo's type, half sizes and place in the object's frame, m, and its turn about z, rad."""

    shape: str
    size: tuple[float, ...]
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw: float = 0.0


@dataclass(frozen=True)
class Kind:
    """What an object is made of and how a gripper takes it."""

    parts: tuple[Part, ...]
    half_size: tuple[float, float, float]
    """Half the bounding box, m."""
    grasp_height: float = 0.0
    """m above the origin along local z: where pads take it."""
    grasp_width: float = 0.04
    """m between the pads when they hold it there."""
    is_round: bool = True
    """Whether it looks the same when turned about local z, so that pads may come from any side."""
    is_standing: bool = True
    """Whether it stands on its base when nothing else is asked for, else it lies."""
    has_top: bool = False
    """Whether it stands on one end only."""
    is_tall: bool = False
    """Whether it can be placed upright."""
    density: float = 700.0
    """kg/m^3."""


def _bowl_walls(num_walls: int = 8, radius: float = 0.027, half_height: float = 0.014) -> tuple[Part, ...]:
    """Returns boxes around a circle: each as long as its side of the polygon."""
    half_length = (radius + 0.003) * math.tan(math.pi / num_walls)
    angles = [2 * math.pi * i / num_walls for i in range(num_walls)]
    return tuple(
        Part("box", (0.003, half_length, half_height), (radius * math.cos(a), radius * math.sin(a), 0.004), a)
        for a in angles
    )


KINDS: dict[str, Kind] = {
    "cube": Kind((Part("box", (0.020, 0.020, 0.020)),), (0.020, 0.020, 0.020), is_round=False, density=1500),
    "can": Kind(
        (Part("cylinder", (0.025, 0.040)),), (0.025, 0.025, 0.040), grasp_height=0.010, grasp_width=0.05, is_tall=True
    ),
    "bottle": Kind(
        (Part("cylinder", (0.023, 0.036), (0, 0, -0.020)), Part("cylinder", (0.013, 0.020), (0, 0, 0.036))),
        (0.023, 0.023, 0.056),
        grasp_height=0.034,
        grasp_width=0.026,
        has_top=True,
        is_tall=True,
    ),
    "bowl": Kind(
        (Part("cylinder", (0.024, 0.004), (0, 0, -0.014)), *_bowl_walls()),
        (0.031, 0.031, 0.018),
        grasp_width=0.06,
        density=1500,
    ),
    "ball": Kind((Part("sphere", (0.022,)),), (0.022, 0.022, 0.022), grasp_width=0.044),
    "block": Kind(
        (Part("box", (0.017, 0.020, 0.040)),),
        (0.017, 0.020, 0.040),
        grasp_height=0.008,
        grasp_width=0.040,
        is_round=False,
        is_standing=False,
        is_tall=True,
    ),
}


def add_object(spec: mujoco.MjSpec, name: str, kind: Kind) -> None:
    """Adds a free body with its parts to the world of `spec`; the geoms are called `name:0`, `name:1`, ..."""
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    for index, part in enumerate(kind.parts):
        geom = body.add_geom(
            name=f"{name}:{index}",
            type=getattr(mujoco.mjtGeom, f"mjGEOM_{part.shape.upper()}"),
            size=[*part.size, 0.0, 0.0][:3],
            pos=part.position,
            quat=[math.cos(part.yaw / 2), 0.0, 0.0, math.sin(part.yaw / 2)],
            density=kind.density,
            contype=2,
            conaffinity=7,
        )
        geom.condim = 6 if kind.is_round else 4  # round things need friction against rolling
        geom.friction = [0.8, 0.01, 0.001]
        geom.solref = [0.008, 1.0]  # s: two time steps, the least that is stable
        geom.solmix = 100.0  # this stiffness counts, not that of the softer hand
        geom.solimp = [0.95, 0.99, 0.001, 0.5, 2.0]
