"""Describing a dataset: first as plain data for programs, then as tables for people.

Special about this file: `describe` computes and `inspect_print` only lays out, so what is printed, what `--json` gives
and what the page says can never differ. No image is decoded for it. Numbers that are not finite are left out of every
range (the check reports them), so that the JSON is valid whatever the log holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from .check import Finding
from .frames import Frames, Rows
from .inspect_print import print_description
from .schema import Episode, EpisodeDataset
from .steps import Steps, sound_steps

__all__ = ["describe", "print_description"]

MAX_ELEMENTS = 128  # of an observation that are listed one by one: more are a picture or a point cloud
MAX_TEXTS = 20  # most frequent instructions
_SAMPLED_EPISODES, _SAMPLED_FRAMES = 32, 8  # of each, evenly chosen, to estimate what a stored frame takes
_COLUMNS = ("min", "q01", "mean", "q99", "max")


def describe(dataset: EpisodeDataset, findings: Iterable[Finding]) -> dict[str, Any]:
    """Returns everything worth knowing of a dataset, fit for JSON: origin, rules, counts, ranges, findings.

    Ranges are of the episodes whose arrays fit together; None stands for what is not known.

    Raises:
        DatasetError: an image cannot be read from its file.
    """
    spec, steps = dataset.spec, sound_steps(dataset)
    return {
        "path": str(dataset.path),
        "dialect": dataset.dialect,
        "fingerprint": dataset.fingerprint,
        "environment": {
            "id": spec.environment_id,
            "kwargs": dict(spec.environment_kwargs),
            "control_hz": spec.control_hz,
        },
        "notes": list(dataset.notes),
        "rules": dict(dataset.rules),
        "episodes": dataset.num_episodes,
        "steps": dataset.num_steps,
        "success_rate": dataset.success_rate,
        "lengths": _summary([episode.num_steps for episode in dataset.episodes]),
        "returns": _summary([float(episode.rewards.sum()) for episode in dataset.episodes]),
        "observations": _observations(steps),
        "actions": _actions(steps),
        "images": _by_kind(dataset, "image", _image),
        "text": _by_kind(dataset, "text", _text),
        "behaviours": _behaviours(dataset.episodes),
        "findings": [asdict(finding) for finding in findings],
    }


def _summary(values: Sequence[float]) -> dict[str, float | None]:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {"min": None, "median": None, "max": None}
    return {"min": float(min(finite)), "median": float(np.median(finite)), "max": float(max(finite))}


def _observations(steps: Steps) -> dict[str, list[dict[str, Any]]]:
    units = {each.name: each.units for each in steps.spec.observations}
    return {key: _rows(rows, steps.names[key], units[key]) for key, rows in steps.states.items()}


def _actions(steps: Steps) -> list[dict[str, Any]]:
    spec = steps.spec.actions
    rows = _rows(steps.actions, steps.names["actions"], spec.units)
    if len(rows) != spec.num_dimensions:  # so many that they stand in one row
        return rows
    limits = zip(rows, spec.low, spec.high, strict=True)
    return [row | {"low": _finite(low), "high": _finite(high)} for row, low, high in limits]


def _rows(values: np.ndarray, names: tuple[str, ...], units: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns a row of figures for each element; a single one for all where they are too many to list."""
    if len(names) > MAX_ELEMENTS:
        return [{"name": f"all {len(names):,} elements", "unit": ""} | _figures(values.reshape(-1))]
    units = units if len(units) == len(names) else ("",) * len(names)
    return [
        {"name": name, "unit": unit} | _figures(column)
        for name, unit, column in zip(names, units, values.T, strict=True)
    ]


def _figures(column: np.ndarray) -> dict[str, float | None]:
    finite = column[np.isfinite(column)].astype(np.float64)
    if not len(finite):
        return dict.fromkeys(_COLUMNS)
    with np.errstate(all="ignore"):  # a mean of the largest numbers there are is none
        low, high = np.quantile(finite, (0.01, 0.99))
        figures = (finite.min(), low, finite.mean(), high, finite.max())
    return {name: _finite(float(figure)) for name, figure in zip(_COLUMNS, figures, strict=True)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _by_kind(dataset: EpisodeDataset, kind: str, describe_key: Callable) -> dict[str, dict[str, Any]]:
    keys = [each.name for each in dataset.spec.observations if each.kind == kind]
    return {key: describe_key(dataset.episodes, key) for key in keys}


def _image(episodes: Sequence[Episode], key: str) -> dict[str, Any]:
    """Returns shape, number, encoding and sizes of the images; the stored size is an estimate from a sample."""
    rows = [episode.observations[key] for episode in episodes]
    num_frames, shape = sum(len(each) for each in rows), list(rows[0].shape[1:])
    places = np.unique(np.linspace(0, len(rows) - 1, _SAMPLED_EPISODES).round().astype(int))
    sampled = [rows[place] for place in places.tolist() if len(rows[place])]
    encodings = sorted({each.encoding if isinstance(each, Frames) else "raw" for each in sampled})
    sizes = [size for each in sampled for size in _stored_sizes(each)]
    is_known = bool(sizes) and set(encodings) <= {"raw", "jpeg", "png"}  # a frame of a video has no size of its own
    return {
        "shape": shape,
        "frames": num_frames,
        "encoding": ", ".join(encodings),
        "stored_bytes": round(float(np.mean(sizes)) * num_frames) if is_known else None,
        "decoded_bytes": num_frames * math.prod(shape),
    }


def _stored_sizes(rows: Rows) -> list[int]:
    if isinstance(rows, Frames):
        return [len(data) for data in islice(rows.stored_rows(), _SAMPLED_FRAMES)]
    return [rows[0].nbytes]


def _text(episodes: Sequence[Episode], key: str) -> dict[str, Any]:
    """Returns the number of different texts at any step, and the most frequent ones by the episodes' first step."""
    different: set[str] = set()
    owners: dict[str, list[Episode]] = {}
    for episode in episodes:
        rows = episode.observations[key]
        assert isinstance(rows, np.ndarray)
        texts = rows.tolist()
        different.update(texts)
        for text in texts[:1]:
            owners.setdefault(text, []).append(episode)
    return {"different": len(different), "most_frequent": _most_frequent(owners)}


def _behaviours(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Returns the number and success rate of the episodes of each behaviour; empty where none is known."""
    owners: dict[str, list[Episode]] = {}
    for episode in episodes:
        owners.setdefault(episode.behaviour or "unknown", []).append(episode)
    return _most_frequent(owners) if any(episode.behaviour for episode in episodes) else []


def _most_frequent(owners: dict[str, list[Episode]]) -> list[dict[str, Any]]:
    frequent = sorted(owners.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_TEXTS]
    return [{"text": text, "episodes": len(group), "success_rate": _success_rate(group)} for text, group in frequent]


def _success_rate(episodes: Sequence[Episode]) -> float | None:
    known = [episode.success for episode in episodes if episode.success is not None]
    return sum(known) / len(known) if known else None
