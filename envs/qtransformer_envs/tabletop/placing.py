"""Where objects start: at rest on the table, apart from each other.

Special about this file: places are drawn again until they fit; objects touch the table and have no speed, so that they
may sleep at once. It must not know any task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qtransformer_envs.tabletop.objects import Kind
from qtransformer_envs.tabletop.scene import AREA_HIGH, AREA_LOW, Item, Scene

__all__ = ["place_apart", "rest", "resting_rotation"]

DISTANCE = 0.12  # m between the middles of two objects: the open gripper fits between
NUM_TRIES = 200  # places drawn for one object before all are drawn again
HANDLE_DEPTH = 0.052  # m before the drawer's front
HAND_ROOM = 0.105  # m between an object and the handle: the hand fits any way round
HEIGHT_MARGIN = 0.0002  # m over the table


def resting_rotation(yaw: float, is_standing: bool) -> np.ndarray:
    """Returns the rotation matrix, shape (3, 3), of an object turned by `yaw`, rad, that stands on its base or lies."""
    c, s = math.cos(yaw), math.sin(yaw)
    if is_standing:
        return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    return np.array([[0.0, -s, c], [0.0, c, s], [-1.0, 0.0, 0.0]])  # local z points to (c, s, 0), local x down


def rest(kind: Kind, is_standing: bool) -> float:
    """Returns the height of an object's origin when it rests on the table, m."""
    return kind.half_size[2 if is_standing else 0] + HEIGHT_MARGIN


def place_apart(
    scene: Scene, items: Sequence[Item], rng: np.random.Generator, is_standing: bool | None = None, apart: float = 0.0
) -> None:
    """Puts `items` on the table.

    Args:
        scene: where.
        items: which; the first one stands or lies as `is_standing` says, the others as is usual for them.
        rng: draws places and yaws.
        is_standing: None: as is usual.
        apart: m, at least, between the first and the second.
    """
    handle = scene.cabinet_position()[1] - scene.drawer_opening() - HANDLE_DEPTH
    high = np.array([AREA_HIGH[0], min(AREA_HIGH[1], handle - HAND_ROOM)])
    places = _draw_places(len(items), high, apart, rng)
    for number, (item, place) in enumerate(zip(items, places, strict=True)):
        stands = item.kind.is_standing if number or is_standing is None else is_standing
        rotation = resting_rotation(rng.uniform(-np.pi, np.pi), stands)
        scene.place(item, np.array([*place, rest(item.kind, stands)]), rotation)


def _draw_places(number: int, high: np.ndarray, apart: float, rng: np.random.Generator) -> list[np.ndarray]:
    places: list[np.ndarray] = []
    while len(places) < number:
        places = []
        for _ in range(NUM_TRIES):
            place = rng.uniform(AREA_LOW, high)
            distances = [math.dist(place, each) for each in places]
            if all(each > DISTANCE for each in distances) and (len(places) != 1 or distances[0] > apart):
                places.append(place)
            if len(places) == number:
                break
    return places
