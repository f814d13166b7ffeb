"""Small trained runs, and the report of them, that the tests of its parts share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataset_fixtures import make_episode
from learner_fixtures import make_config, write_log

from qtransformer.compare_sources import Play
from qtransformer.config import FollowConfig
from qtransformer.evaluation import Plan
from qtransformer.report import Sources
from qtransformer.training import train

PASSING = "test/Passing-v0"
FOLLOWED = FollowConfig(evaluate_every=6, evaluate_episodes=3, imports=("dataset_fixtures",))


def train_some(folder: Path) -> dict[str, Path]:
    """Trains ours twice, evaluated meanwhile, and a cloning, on one log of 12 episodes; returns the folders."""
    episodes = [make_episode(5 + seed % 3, seed=seed, success=seed % 2 == 0) for seed in range(12)]
    log = write_log(folder / "log", episodes)
    common: dict[str, Any] = {"steps": 12, "log_every": 3, "checkpoint_every": 6}
    for seed in (0, 1):
        train(make_config(dataset=log, out=folder / f"ours{seed}", seed=seed, following=FOLLOWED, **common))
    train(make_config(dataset=log, out=folder / "bc", algorithm="behaviour_cloning", **common))
    return {"log": log, **{name: folder / name for name in ("ours0", "ours1", "bc")}}


def make_sources(episodes: int = 0, **changes) -> Sources:
    """What is shown beside the runs; they are played in an environment that can be drawn."""
    play = Play(Plan(max(1, episodes), 2, 0), ("evaluation_fixtures",), PASSING)
    settings = {"evaluations": (), "play": play, "is_played": episodes > 0, "dataset": None, "max_steps": 1000}
    return Sources(**{**settings, **changes})


def write_outcomes(path: Path, successes, **changes) -> Path:
    """Writes what `evaluate --json` prints of these episodes."""
    outcomes = [{"seed": seed, "success": bool(success)} for seed, success in enumerate(successes)]
    document = {"environment_id": PASSING, "success_rule": "a rule", "outcomes": outcomes}
    path.write_text(json.dumps({**document, **changes}))
    return path
