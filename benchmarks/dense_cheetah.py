"""Gymnasium's HalfCheetah with its own dense reward, cut off after 200 steps, and a scripted gait for it.

Importing it registers `dense/HalfCheetah-v5`, so that `qtransformer collect` and `evaluate` take it with `--import
dense_cheetah`. A step pays the speed forwards in m/s less 0.1 times the sum of squared actions, which may be
negative, and no episode ever terminates. The expert lets the six joints track sines, whose parameters `search` found:

    python benchmarks/dense_cheetah.py      searches again, which takes about 45 CPU s, and prints what it found
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

ENVIRONMENT = "dense/HalfCheetah-v5"
STEPS = 200
LOW = np.array([-0.52, -0.785, -0.4, -1.0, -1.2, -0.5])  # rad, where the joints end
HIGH = np.array([1.05, 0.785, 0.785, 0.7, 0.87, 0.5])
_STIFFNESS = 2.0  # of the tracking, in actions per rad
_DAMPING = 0.1  # in actions per rad/s
_NOISE = 0.2  # on the actions while a gait is searched, so that it is one that keeps its balance


@dataclass(frozen=True)
class Gait:
    """Sines that the joints track: back thigh, shin and foot, then the front's, as in the action."""

    frequency: float
    """Strides a second."""
    centres: tuple[float, ...]
    """What the joints swing around, as shares of half their range from its middle."""
    amplitudes: tuple[float, ...]
    """How far they swing, as shares of half their range; beyond 1 they are pushed against the end."""
    phases: tuple[float, ...]
    """Where in the stride they begin, in half strides."""

    def angles(self, time: float) -> np.ndarray:
        """Returns the angles of the joints in rad, `time` s after the beginning."""
        swing = np.sin(np.pi * (2 * self.frequency * time + np.array(self.phases)))
        shares = np.array(self.centres) + np.array(self.amplitudes) * swing
        return (HIGH + LOW) / 2 + (HIGH - LOW) / 2 * shares


GAIT = Gait(
    2.74,
    centres=(0.17, 0.37, 2.04, -0.34, -1.34, -0.33),
    amplitudes=(1.08, 1.72, 2.05, 1.85, 0.26, 1.0),
    phases=(-0.22, 0.53, 0.29, 0.49, -0.71, -1.25),
)
"""What `search()` returned."""


class DenseHalfCheetah(HalfCheetahEnv):
    """HalfCheetah as Gymnasium has it, with an expert."""

    def make_expert(self, seed: int, gait: Gait = GAIT) -> Tracker:
        """Returns the expert; it draws no random numbers, so `seed` changes nothing."""
        return Tracker(self, gait)


class Tracker:
    """Pulls the joints to the angles of a gait: a spring and a damper, cut off at the limits of the action."""

    def __init__(self, environment: DenseHalfCheetah, gait: Gait) -> None:
        """Looks into the simulator of `environment`."""
        self._data, self._gait = environment.data, gait

    def reset(self) -> None:
        """Does nothing: the simulator's clock, by which the gait goes, begins with the episode."""

    def act(self) -> np.ndarray:
        """Returns the action for the present state."""
        wanted = self._gait.angles(self._data.time)
        action = _STIFFNESS * (wanted - self._data.qpos[3:]) - _DAMPING * self._data.qvel[3:]
        return np.clip(action, -1.0, 1.0).astype(np.float32)


gymnasium.register(ENVIRONMENT, "dense_cheetah:DenseHalfCheetah", max_episode_steps=STEPS)


def search(seed: int = 1, rounds: int = 40, num_gaits: int = 32, num_kept: int = 8) -> Gait:
    """Returns a gait that runs forwards, by the cross-entropy method; always the same for a `seed`.

    Each round draws gaits from a normal distribution, plays two episodes with each, and moves the distribution towards
    the best ones.
    """
    environment, generator = DenseHalfCheetah(), np.random.default_rng(seed)
    mean = np.concatenate([[3.0], np.zeros(6), np.full(6, 0.7), np.zeros(6)])
    std = np.concatenate([[1.0], np.full(6, 0.4), np.full(6, 0.3), np.full(6, 0.6)])
    for _ in range(rounds):
        drawn = mean + std * generator.standard_normal((num_gaits, len(mean)))
        scores = [np.mean([play(environment, gait_of(each), seed) for seed in (0, 1)]) for each in drawn]
        best = drawn[np.argsort(scores)[-num_kept:]]
        mean = 0.3 * mean + 0.7 * best.mean(axis=0)
        std = 0.3 * std + 0.7 * best.std(axis=0) + 0.01
    return gait_of(mean)


def gait_of(parameters: np.ndarray) -> Gait:
    """Returns the gait of 19 numbers, rounded to two digits."""
    frequency, *others = (float(each) for each in parameters.round(2))
    return Gait(frequency, tuple(others[:6]), tuple(others[6:12]), tuple(others[12:]))


def play(environment: DenseHalfCheetah, gait: Gait, seed: int, noise: float = _NOISE) -> float:
    """Returns the return of one episode of the expert with Gaussian noise on its actions, both drawn from `seed`."""
    generator, total = np.random.default_rng(seed), 0.0
    environment.reset(seed=seed)
    expert = environment.make_expert(seed, gait)
    for _ in range(STEPS):
        action = expert.act() + noise * generator.standard_normal(6, dtype=np.float32)
        total += float(environment.step(np.clip(action, -1.0, 1.0, dtype=np.float32))[1])
    return total


if __name__ == "__main__":
    found = search()
    print(found, [round(play(DenseHalfCheetah(), found, seed, noise=0.0)) for seed in range(100, 110)])
