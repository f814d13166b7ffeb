"""Which objects an episode has, and the table of combinations that training never sees.

Special about this file: `HELD_OUT` is fixed for good, so that results on it can be compared. For every skill that names
an object it holds one colour of each kind, another one for each skill; every kind, every colour and every skill is
seen in training. It must not know MuJoCo.
"""

from __future__ import annotations

import numpy as np

from qtransformer_envs.tabletop.objects import COLOURS, KINDS

__all__ = ["HELD_OUT", "MAX_DISTRACTORS", "SPLITS", "draw_objects", "held_out_targets", "targets"]

SPLITS = ("train", "held_out", "all")
MAX_DISTRACTORS = 4

# skill -> the colour in which each kind is held out
HELD_OUT: dict[str, dict[str, str]] = {
    "pick": {
        "cube": "red", "can": "green", "bottle": "blue", "bowl": "yellow", "ball": "orange", "block": "purple",
    },
    "move_near": {
        "cube": "green", "can": "blue", "bottle": "yellow", "bowl": "orange", "ball": "purple", "block": "red",
    },
    "place_upright": {"can": "orange", "bottle": "purple", "block": "green"},
    "knock_over": {"can": "yellow", "bottle": "orange", "block": "blue"},
    "put_into_drawer": {
        "cube": "orange", "can": "purple", "bottle": "red", "bowl": "green", "ball": "blue", "block": "yellow",
    },
    "take_out_of_drawer": {
        "cube": "purple", "can": "red", "bottle": "green", "bowl": "blue", "ball": "yellow", "block": "orange",
    },
}  # fmt: skip


def held_out_targets(skill: str, kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """Returns (kind, colour) of the targets of this skill that training never sees."""
    return [(kind, colour) for kind, colour in HELD_OUT.get(skill, {}).items() if kind in kinds]


def targets(skill: str, kinds: tuple[str, ...], split: str) -> list[tuple[str, str]]:
    """Returns (kind, colour) of all targets of this skill, one of `kinds`, in this split."""
    held_out = held_out_targets(skill, kinds)
    if split == "held_out":
        return held_out
    every = [(kind, colour) for kind in kinds for colour in COLOURS]
    return every if split == "all" else [each for each in every if each not in held_out]


def draw_objects(candidates: list[tuple[str, str]], num_named: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Returns (kind, colour) of all objects: the target, others that the words name, then 1 to 4 distractors.

    No two are of the same kind and colour, so that words tell them apart.
    """
    objects = [candidates[rng.integers(len(candidates))]]
    every = [(kind, colour) for kind in KINDS for colour in COLOURS]
    num_others = max(num_named - 1, 0) + int(rng.integers(1, MAX_DISTRACTORS + 1))
    for _ in range(min(num_others, MAX_DISTRACTORS)):
        left = [each for each in every if each not in objects]
        objects.append(left[rng.integers(len(left))])
    return objects
