"""The log that a run trains on: opened, checked and cut to what the settings ask for.

Special about this file: training, explaining and the warning that a log has changed since all see the same episodes,
because they come from this one place. It must not load torch: a bundle asks it, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qtransformer.config import DataConfig, RunError, TrainConfig
from qtransformer.console import say
from qtransformer.language import LanguageModel, encoded
from qtransformer_datasets import selection
from qtransformer_datasets.cache import FOLDER as CACHE_FOLDER
from qtransformer_datasets.cache import cache_file, read_record, write_record
from qtransformer_datasets.check import Finding
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.schema import DatasetError, EpisodeDataset


def read_log(path: Path | str, data: DataConfig) -> EpisodeDataset:
    """Returns all episodes of the log at `path`, with the observation keys that `data` asks for.

    Raises:
        DatasetError: it cannot be read, or lacks a key.
    """
    return _select_keys(open_dataset(path, data), data)


def select(dataset: EpisodeDataset, data: DataConfig) -> EpisodeDataset:
    """Returns the episodes and the observation keys that `data` asks for.

    Raises:
        DatasetError: there are no such episodes, or a key is missing.
    """
    if data.task is not None:
        dataset = selection.with_task(dataset, data.task)
    if data.min_return is not None:
        dataset = selection.with_min_return(dataset, data.min_return)
    if data.only_successful:
        dataset = selection.only_successful(dataset)
    return _select_keys(dataset, data)


def open_training_log(config: TrainConfig) -> EpisodeDataset:
    """Returns the episodes that a run with these settings trains on, not checked.

    Raises:
        DatasetError: the log cannot be read, or holds none.
    """
    return select(open_dataset(config.dataset, config.data), config.data)


def warn_if_log_changed(origin: Mapping[str, Any]) -> None:
    """Prints a warning where the log of a run is still there, but no longer what the run was trained on.

    Args:
        origin: a run's checkpoint.json; one that names no log is passed over, and so is a bundle's policy.json: bundles
            travel, and whatever has the log's path on this machine is none of theirs.
    """
    if "config" not in origin or "dataset" not in origin or "schema_version" in origin:
        return
    then = origin["dataset"]
    path, fingerprint = Path(then["path"]), then["fingerprint"]
    if not path.exists() or file_identity(path) == then["files"]:
        return
    try:
        found = open_training_log(TrainConfig.from_json(origin["config"])).fingerprint
    except DatasetError as error:
        say(f"the log that this policy was trained on cannot be read any more: {error}")
        return
    if found != fingerprint:
        say(
            f"{path} has changed since this policy was trained on it (fingerprint {found[:12]}, then "
            f"{fingerprint[:12]}); figures of the log no longer speak of this policy"
        )


def file_identity(path: Path) -> str:
    """Returns the sha256 (hex) of names, sizes and times of the files at `path`: while it stays, nobody wrote there.

    It spares reading a large log only to find that it is what it was.
    """
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    kept = [each for each in files if CACHE_FOLDER not in each.parts]
    status = [(str(each.relative_to(path)), each.stat().st_size, each.stat().st_mtime_ns) for each in kept]
    return hashlib.sha256(json.dumps(status).encode()).hexdigest()


def told(dataset: EpisodeDataset, data: DataConfig) -> dict[str, Any]:
    """Returns the `instructions` of the log, and `language`: their vectors, where a language model makes them.

    The vectors are kept beside the log: they are made once for a model and its texts.

    Raises:
        RunError: the model or its package is not there, or cannot be used; or the log has no instructions.
    """
    known = sorted({text for each in selection.texts(dataset).values() for text in each})
    if data.language is None:
        return {"instructions": known, "language": None}
    if not known:
        raise RunError(f"--language {data.language}: {dataset.path} has no instructions to encode; leave it out")
    model = LanguageModel(Path(data.language))
    identity = {"language": model.fingerprint, "instructions": known}
    path = cache_file(dataset, f"language-{model.fingerprint[:16]}", ".json")
    record = read_record(path, identity)
    if record is None:
        record = {**identity, "vectors": [encoded(model.encode(text)) for text in known]}
        write_record(path, record)
    return {"instructions": known, "language": {"fingerprint": model.fingerprint, "vectors": record["vectors"]}}


def raise_on_misfit(dataset: EpisodeDataset) -> None:
    """Makes sure that the network can take every observation.

    Raises:
        RunError: one is neither numbers, image nor text, or all are text.
    """
    kinds = {each.name: each.kind for each in dataset.spec.observations}
    others = {name: kind for name, kind in kinds.items() if kind not in ("state", "image", "text")}
    if others or not {"state", "image"} & set(kinds.values()):
        known = " ".join(name for name in kinds if name not in others)
        raise RunError(
            f"{dataset.path}: observations must be numbers or images, and text beside them, got {others or kinds}; "
            f"choose others with --observations {known or 'KEY ...'}"
        )


def print_findings(findings: Iterable[Finding]) -> None:
    """Prints one line a finding on standard error."""
    for finding in findings:
        say(f"{finding.severity} {finding.code}: {finding.sentence}")


def _select_keys(dataset: EpisodeDataset, data: DataConfig) -> EpisodeDataset:
    return selection.select_observations(dataset, data.observations) if data.observations else dataset
