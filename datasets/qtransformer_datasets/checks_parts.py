"""Checks that compare parts of a log with each other: shards, units of single episodes, copies of episodes.

Special about this file: an episode counts as one sample, since its steps resemble each other, and differences are
measured against the spread between episodes. It must not know how the problems are shown.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from .finding import Finding, finding, places_of
from .schema import Episode, EpisodeDataset, fingerprint
from .steps import Steps, listed

DRIFT_EPISODES = 5  # in a shard, and outside it: fewer do not tell a shift from chance
DRIFT_SIGMAS = 8.0  # of the difference of two means: few degrees of freedom, and hundreds of elements looked at
DRIFT_SPREADS = 1.0  # standard deviations of the element: a smaller shift, however certain, harms nothing
UNIT_RATIOS = (180 / np.pi, 100.0, 1000.0)  # degrees for radians, centimetres or millimetres for metres
UNIT_TOLERANCE = 1.5  # factor by which the groups' ratio may miss a ratio of units, as their motions differ
UNIT_WIDTH = 3.0  # most that the largest of a group may exceed its smallest: else sizes vary anyway
UNIT_EPISODES = 3  # in each group: fewer may be a spike or a robot at rest


def check_shard_drift(steps: Steps) -> Iterator[Finding]:
    """Finds shards of a merged dataset whose means differ from the others' by more than chance explains."""
    shards, owners = np.unique([episode.source.rpartition("/")[0] for episode in steps.episodes], return_inverse=True)
    counts = np.bincount(owners)
    enough = np.flatnonzero(np.minimum(counts, len(owners) - counts) >= DRIFT_EPISODES).tolist()
    for key, rows, starts in _arrays(steps) if enough else ():
        means = np.add.reduceat(rows.astype(np.float64), starts, axis=0)
        means /= np.diff(np.append(starts, len(rows)))[:, None]
        spread = np.std(rows, axis=0, dtype=np.float64)
        for index in enough:
            found = _shifted(means, owners == index, spread)
            if len(found):
                names, first = steps.names[key], int(found[0])
                here, there = (means[part, first].mean() for part in (owners == index, owners != index))
                yield finding(
                    "shard-drift",
                    f"{shards[index]}: {key} has another mean than in the other shards in {listed(names, found)} "
                    f"({names[first]}: {here:.4g} against {there:.4g})",
                    "a wrong calibration, unit or order of elements looks like another state of the world",
                    "compare how the shards were recorded; harmless if they hold other tasks",
                    steps.at_episodes(owners == index),
                )


def check_units(steps: Steps) -> Iterator[Finding]:
    """Finds elements whose size falls into two groups of episodes as far apart as two units of the same quantity."""
    for key, rows, starts in _arrays(steps):
        sizes = np.maximum.reduceat(np.abs(rows), starts, axis=0)  # (episodes, elements)
        cuts = [_unit_cut(column) for column in sizes.T]
        found = np.array([index for index, cut in enumerate(cuts) if cut is not None], np.int64)
        if len(found):
            first = int(found[0])
            is_large = sizes[:, first] > cuts[first]
            small, large = (float(np.median(sizes[part, first])) for part in (~is_large, is_large))
            places = steps.at_episodes(is_large)
            yield finding(
                "unit-change",
                f"{places} has {key} of up to {large:.4g} in {listed(steps.names[key], found)} where other episodes "
                f"reach {small:.4g}",
                f"the ratio of {large / small:.0f} looks like two units of one quantity, degrees and radians say",
                "convert these episodes to the unit of the others; harmless if the motions differ so much",
                places,
            )


def check_duplicates(steps: Steps) -> Iterator[Finding]:
    """Finds episodes that equal an earlier one, number by number and pixel by pixel."""
    seen: dict[str, Episode] = {}
    names = []
    digests = [_digest(episode) for episode in steps.episodes]
    counts = Counter(digests)
    for episode, digest in zip(steps.episodes, digests, strict=True):
        if counts[digest] == 1:
            continue
        content = fingerprint(steps.spec, (episode,))
        if content in seen:
            names.append(f"{episode.source} equals {seen[content].source}")
        else:
            seen[content] = episode
    if names:
        places = places_of(names)
        yield finding(
            "duplicate-episode",
            str(places),
            "copies weigh double in training and spoil a held-out set",
            "remove the copies; look for a file that was merged twice",
            places,
        )


def check_overlap(train: EpisodeDataset, held_out: EpisodeDataset) -> Iterator[Finding]:
    """Finds held-out episodes that are trained on, too."""
    digests = {_digest(episode) for episode in held_out.episodes}
    alike = [episode for episode in train.episodes if _digest(episode) in digests]
    seen = {fingerprint(train.spec, (episode,)): episode for episode in alike}
    digests = {_digest(episode) for episode in alike}
    names = [
        f"{episode.source} equals {seen[content].source}"
        for episode in held_out.episodes
        if _digest(episode) in digests and (content := fingerprint(train.spec, (episode,))) in seen
    ]
    if names:
        places = places_of(names)
        yield finding(
            "split-overlap",
            f"held-out {places}, which is trained on",
            f"{len(names)} of {held_out.num_episodes} held-out episodes tell nothing about new ones",
            "remove the copies before splitting",
            places,
        )


def _digest(episode: Episode) -> bytes:
    """Returns a digest of actions and rewards: only episodes that share it are compared as a whole, images included."""
    digest = hashlib.sha256(np.ascontiguousarray(episode.actions).tobytes())
    digest.update(np.ascontiguousarray(episode.rewards).tobytes())
    return digest.digest()


def _arrays(steps: Steps) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields key, rows (n, elements) and the first row of each episode, for each state and the actions."""
    for key, rows in steps.states.items():
        yield key, rows, steps.row_starts
    yield "actions", steps.actions, steps.starts


def _shifted(means: np.ndarray, inside: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Returns the elements whose episode means (episodes, elements) differ between inside and outside; t statistic."""
    parts = means[inside], means[~inside]
    gap = np.abs(parts[0].mean(axis=0) - parts[1].mean(axis=0))
    squares = sum(((part - part.mean(axis=0)) ** 2).sum(axis=0) for part in parts)
    chance = np.sqrt(squares / (len(means) - 2) * sum(1 / len(part) for part in parts))
    return np.flatnonzero((gap > DRIFT_SIGMAS * chance) & (gap > DRIFT_SPREADS * spread))


def _unit_cut(sizes: np.ndarray) -> float | None:
    """Returns a size between the two groups that `sizes` (episodes,) falls into; None where it does not."""
    ordered = np.sort(sizes[np.isfinite(sizes) & (sizes > 0)].astype(np.float64))
    if len(ordered) < 2 * UNIT_EPISODES:
        return None
    cut = int(np.argmax(ordered[1:] / ordered[:-1])) + 1
    groups = ordered[:cut], ordered[cut:]
    ratio = float(np.median(groups[1]) / np.median(groups[0]))
    is_ratio = any(1 / UNIT_TOLERANCE < ratio / unit < UNIT_TOLERANCE for unit in UNIT_RATIOS)
    are_tight = all(len(each) >= UNIT_EPISODES and each[-1] <= UNIT_WIDTH * each[0] for each in groups)
    return float(np.sqrt(groups[0][-1] * groups[1][0])) if is_ratio and are_tight else None
