"""A log of mixed quality: a few demonstrations, many noisy replays of them, and the mistakes that people make.

Special about this file: `SHARES` is the simulated setting of the paper (Chebotar et al. 2023: 8 % demonstrations, 92 %
noisy replays), with part of the replays given to other mistakes. The kind of an episode is the first draw of its own
generator. All kinds but demonstrations have the noise of the episode's drawn skill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import gymnasium
import numpy as np

from .behaviours import Behave, WrongObject, aims_at_objects, expert, rehearse, replay, wrong_tasks
from .disturbances import Disturb, Drop, EarlyStop, Pauses
from .environment import describe_environment
from .schema import DatasetError

SHARES = {
    "demonstrations": 0.08,  # the expert, undisturbed
    "noisy_replay": 0.50,  # what the undisturbed expert does in this very episode, repeated open-loop with noise
    "noisy_expert": 0.14,  # the expert, which sees what noise does and goes on from there
    "wrong_object": 0.07,  # the expert aims at an object that the instruction does not name
    "dropped_object": 0.07,  # the gripper opens for a moment after it has closed
    "early_stop": 0.07,  # the episode ends, truncated, before the undisturbed expert would be done
    "pauses": 0.07,  # nothing is done for a while, now and then
}
REHEARSED = ("noisy_replay", "early_stop")
GRIPPER = "gripper"


def read_shares(words: Sequence[str]) -> dict[str, float]:
    """Returns the share of each kind, in the order of `SHARES`, zeros left out; without words, `SHARES`.

    Args:
        words: each holds one `kind=share` or several, joined by commas.

    Raises:
        DatasetError: a kind is unknown or named twice, a share is no number in [0, 1], or they do not sum to 1.
    """
    parts = [part for word in words for part in word.split(",") if part]
    if not parts:
        return dict(SHARES)
    shares: dict[str, float] = {}
    for part in parts:
        kind, _, text = part.partition("=")
        if kind not in SHARES or kind in shares:
            raise DatasetError(
                f"mix ({part}) must be kind=share, each of {', '.join(SHARES)} at most once; correct the kind"
            )
        shares[kind] = _read_share(part, text)
    total = sum(shares.values())
    if abs(total - 1) > 1e-6:
        raise DatasetError(f"mix ({', '.join(parts)}) must sum to 1, got {total:g}; change the shares")
    return {kind: shares[kind] for kind in SHARES if shares.get(kind)}


def _read_share(part: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = np.nan
    if not 0 <= share <= 1:
        raise DatasetError(f"mix ({part}) must have a share in [0, 1], got {text or 'none'}; write kind=share")
    return share


def fit_shares(words: Sequence[str], environment: gymnasium.Env, seed: int) -> tuple[dict[str, float], tuple[str, ...]]:
    """Returns the shares that can be recorded in this environment, and sentences on what `SHARES` had to lose.

    Args:
        words: as `read_shares` takes them; kinds that are named there must be possible.
        environment: what is recorded; it is reset.
        seed: to reset it with.

    Raises:
        DatasetError: the environment cannot do what the words name.
    """
    shares, missing = read_shares(words), _missing(environment, seed)
    lost = [kind for kind in shares if kind in missing]
    reasons = "; ".join(f"{kind} needs {missing[kind]}" for kind in lost)
    if lost and words:
        raise DatasetError(f"mix: {reasons}, which this environment lacks; leave out {', '.join(lost)}")
    if not lost:
        return shares, ()
    share = sum(shares.pop(kind) for kind in lost)
    shares["noisy_replay"] += share
    return shares, (f"mix: {reasons}, which this environment lacks: {share:.0%} more noisy_replay instead",)


def _missing(environment: gymnasium.Env, seed: int) -> dict[str, str]:
    """Returns what the environment lacks, for each kind that is not possible in it."""
    environment.reset(seed=seed)
    missing = {} if _gripper(environment) is not None else {"dropped_object": f"an action element called {GRIPPER!r}"}
    if not aims_at_objects(environment):
        missing["wrong_object"] = "an instruction, and a scene of named objects that its task can be aimed at"
    return missing


def _gripper(environment: gymnasium.Env) -> int | None:
    names = describe_environment(environment).actions.elements
    return names.index(GRIPPER) if GRIPPER in names else None


def draw_kind(shares: Mapping[str, float], generator: np.random.Generator) -> str:
    """Returns the kind of an episode."""
    weights = np.array(list(shares.values()))
    return list(shares)[generator.choice(len(shares), p=weights / weights.sum())]


class Play:
    """One episode of a kind: made before the environment is reset to it, started after that."""

    kind: str
    """What the episode is: a wrong object is `noisy_expert` where the words name none, or none is to be moved."""

    def __init__(self, kind: str, environment: gymnasium.Env, seed: int) -> None:
        """Lets the undisturbed expert play the episode first where the kind must know what it does."""
        self.kind, self._environment, self._seed = kind, environment, seed
        self._rehearsed = rehearse(environment, seed) if kind in REHEARSED else []

    def start(self, noise: Disturb, generator: np.random.Generator) -> Behave:
        """Returns what acts in the episode: what is intended, then noise, then mistakes."""
        intend = self._intention(generator)
        disturbances = [] if self.kind == "demonstrations" else [noise, *self._mistakes(generator)]

        def act() -> np.ndarray | None:
            action = intend()
            for disturb in disturbances:
                action = None if action is None else disturb(action)
            return action

        return act

    def _intention(self, generator: np.random.Generator) -> Behave:
        if self.kind == "noisy_replay":
            return replay(self._rehearsed)
        if self.kind == "wrong_object":
            if tasks := wrong_tasks(self._environment):
                return WrongObject(self._environment, self._seed, tasks[generator.integers(len(tasks))])
            self.kind = "noisy_expert"
        return expert(self._environment, self._seed)

    def _mistakes(self, generator: np.random.Generator) -> list[Disturb]:
        limits, gripper = self._environment.action_space, _gripper(self._environment)
        assert isinstance(limits, gymnasium.spaces.Box)
        if self.kind == "dropped_object":
            assert gripper is not None
            return [Drop(limits, generator, gripper)]
        if self.kind == "pauses":
            return [Pauses(limits, generator, gripper)]
        return [EarlyStop(generator, len(self._rehearsed))] if self.kind == "early_stop" else []
