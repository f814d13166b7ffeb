"""A log with all kinds of observations, that several tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from dataset_fixtures import make_episode, make_spec

from qtransformer.batch import DatasetSpec, ObservationSpec
from qtransformer_datasets.recorder import Recorder


def write_tasks(folder: Path) -> Path:
    """Two states, a camera and an instruction; the tasks take turns, every third episode fails."""
    states = make_spec(("arm", "cup")).observations
    others = (ObservationSpec("camera", (32, 32, 3), "uint8", "image"), ObservationSpec("told", (), "str", "text"))
    spec = DatasetSpec((*states, *others), make_spec().actions, 10.0)
    with Recorder(folder, spec) as recorder:
        for seed in range(6):
            episode = make_episode(4, keys=("arm", "cup"), seed=seed, success=seed % 3 != 0)
            camera = np.full((5, 32, 32, 3), 40 * seed, np.uint8)
            told = np.array([("pick", "push")[seed % 2]] * 5)
            recorder.record(replace(episode, observations={**episode.observations, "camera": camera, "told": told}))
    return folder
