"""Does the value promise too much, does training go wrong? Questions, each with a figure, a threshold and a sentence.

Those of values are asked of logged steps, by `explain` and while training; those of training, of the figures of its
updates. The policy may well be better than the behaviour that made the log, so a value above the realised return proves
nothing: each alarm asks where over-estimation would show even so. Figures are shares of the range of returns or of the
steps, and their thresholds are the same for every log. It must not know networks, files or pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from qtransformer.calibration import Mean, mean_of
from qtransformer.normalization import ReturnScale
from qtransformer.predictions import Predictions

State = Literal["ringing", "silent", "not asked"]

_FEWEST_EPISODES = 10  # from which a best one, or a spread between episodes, means something
_LINES = 5  # of metrics.jsonl, averaged before their course is judged
SETTLED = 300  # updates, before which a network still forgets how it was made
_LEAST_RETURN = 0.05  # of the range: what must have been returned before values can lack it
_LEAST_ENTROPY = 0.5  # bits a token
_CEILING = 0.99  # of the way from the least return to the best one that was seen


@dataclass(frozen=True)
class Evidence:
    """Logged steps: what was predicted of them, and how their episodes went."""

    predictions: Predictions
    episodes: Int[np.ndarray, " steps"]
    is_first: Bool[np.ndarray, " steps"]
    is_last: Bool[np.ndarray, " steps"]
    is_success: Bool[np.ndarray, " steps"]
    """The step's episode succeeded; False also where that is not known."""
    is_failure: Bool[np.ndarray, " steps"]
    """The step's episode failed; False also where that is not known."""


@dataclass(frozen=True)
class Alarm:
    """One question and its answer; `figure` and `threshold` are shares, None where it could not be asked."""

    name: str
    state: State
    figure: float | None
    threshold: float | None
    sentence: str

    @property
    def word(self) -> str:
        """What is said of it: rings, silent or not asked."""
        return "rings" if self.state == "ringing" else self.state

    @property
    def measure(self) -> str:
        """Figure and threshold; empty where it was not asked."""
        if self.figure is None or self.threshold is None:
            return ""
        return f"{self.figure:.1%}, rings above {self.threshold:.0%}".replace("-", "−")


def over_estimation_alarms(evidence: Evidence, scale: ReturnScale) -> tuple[Alarm, ...]:
    """Returns every alarm, whatever its state."""
    return tuple(ask(evidence, scale) for ask in _QUESTIONS)


def _starts(evidence: Evidence, scale: ReturnScale) -> Alarm:
    name, threshold = "better than the best episode", 0.05
    columns = evidence.predictions.values, evidence.predictions.returns
    values, returns = (each[evidence.is_first] for each in columns)
    if len(values) < _FEWEST_EPISODES:
        return _not_asked(name, f"fewer than {_FEWEST_EPISODES} episodes do not show what the best one can be")
    if returns.max() == returns.min():
        return _not_asked(name, "all episodes returned the same, so none is the best")
    mean, best = float(values.mean()), float(returns.max())
    sentence = (
        f"At the first step of an episode the policy expects {mean:.3g} on average; the best of {len(values)} episodes "
        f"returned {best:.3g}, and an average start should not promise more than the best episode kept."
    )
    return _answer(name, (mean - best) / _width(scale), threshold, sentence)


def _successes(evidence: Evidence, scale: ReturnScale) -> Alarm:
    name, threshold = "more than successes returned", 0.1
    terminated = np.unique(evidence.episodes[evidence.predictions.terminations])
    chosen = evidence.is_success & np.isin(evidence.episodes, terminated)
    if len(np.unique(evidence.episodes[chosen])) < _FEWEST_EPISODES:
        return _not_asked(name, f"fewer than {_FEWEST_EPISODES} episodes ended in success")
    excess = (evidence.predictions.q_logged - evidence.predictions.returns)[chosen] / _width(scale)
    mean = mean_of(excess, evidence.episodes[chosen])
    sentence = (
        f"In the {mean.num_episodes} episodes that ended in success the logged actions are valued "
        f"{_signed(mean.mean * _width(scale))} what they returned; a success leaves little to improve on."
    )
    return _answer(name, mean, threshold, sentence)


def _failures(evidence: Evidence, scale: ReturnScale) -> Alarm:
    name, threshold = "failures that look like successes", 0.75
    kinds = evidence.is_failure, evidence.is_success
    failed, succeeded = (evidence.predictions.values[evidence.is_last & kind] for kind in kinds)
    if not len(failed) or not len(succeeded):
        return _not_asked(name, "it takes failed and successful episodes")
    means = float(failed.mean()), float(succeeded.mean())
    shares = [(each - scale.low) / _width(scale) for each in means]
    sentence = (
        f"At the last step of {len(failed)} failed episodes the policy expects {means[0]:.3g}, at that of "
        f"{len(succeeded)} successful ones {means[1]:.3g}; where episodes failed it should expect clearly less."
    )
    return _answer(name, shares[0] / max(shares[1], 1e-6), threshold, sentence)


def _backups(evidence: Evidence, scale: ReturnScale) -> Alarm:
    name, threshold = "next states that promise more", 0.1
    known = np.isfinite(evidence.predictions.backups)
    if len(np.unique(evidence.episodes[known])) < _FEWEST_EPISODES:
        return _not_asked(name, f"fewer than {_FEWEST_EPISODES} episodes logged what followed their steps")
    excess = (evidence.predictions.backups - evidence.predictions.q_logged)[known] / _width(scale)
    mean = mean_of(excess, evidence.episodes[known])
    sentence = (
        f"R + gamma V of the next state lies {_signed(mean.mean * _width(scale))} Q of the logged action that led "
        "there; by the Bellman equation the two are equal, and a larger V feeds over-estimation."
    )
    return _answer(name, mean, threshold, sentence)


def _chain(evidence: Evidence, scale: ReturnScale) -> Alarm:
    name, threshold = "a first token that promises more than the last", 0.05
    if len(np.unique(evidence.episodes)) < _FEWEST_EPISODES:
        return _not_asked(name, f"fewer than {_FEWEST_EPISODES} episodes say too little")
    excess = (evidence.predictions.values - evidence.predictions.q_greedy) / _width(scale)
    if not np.isfinite(excess).all():
        return _not_asked(name, "this algorithm does not read V from the tokens")
    mean = mean_of(excess, evidence.episodes)
    sentence = (
        f"V, read at the first token, lies {_signed(mean.mean * _width(scale))} the value of the policy's own action, "
        "read at the last; by eq. 1 the two agree, and each choice among noisy values adds to the first."
    )
    return _answer(name, mean, threshold, sentence)


def _ceiling(evidence: Evidence, scale: ReturnScale) -> Alarm:
    name, threshold = "values at the ceiling", 0.02
    best = float(evidence.predictions.returns.max())
    if best <= scale.low:
        return _not_asked(name, "no step returned more than the least")
    level = scale.low + _CEILING * (best - scale.low)
    columns = evidence.predictions.values, evidence.predictions.returns
    valued, returned = (float(np.mean(each > level)) for each in columns)
    sentence = (
        f"{valued:.1%} of the steps are valued above {level:.3g}, about the best return that any step had, and "
        f"{returned:.1%} of them returned as much."
    )
    return _answer(name, valued - returned, threshold, sentence)


def training_alarms(history: Sequence[Mapping[str, int | float]], scale: ReturnScale) -> tuple[Alarm, ...]:
    """Returns every alarm on the course of a training, whatever its state.

    Args:
        history: lines of metrics.jsonl, oldest first; a figure that a line lacks is not asked about.
        scale: range of the log's returns.
    """
    return tuple(ask(history, scale) for ask in (_divergence, _floor, _entropy, _target))


def _divergence(history: Sequence[Mapping[str, int | float]], scale: ReturnScale) -> Alarm:
    name, threshold = "a loss that grows", 1.0
    losses = [each["loss"] for each in history if "loss" in each]
    if len(losses) < 2 * _LINES:
        return _not_asked(name, f"fewer than {2 * _LINES} lines of metrics do not show a course")
    means = np.convolve(losses, np.full(_LINES, 1 / _LINES), mode="valid")
    now, least = float(means[-1]), float(means.min())
    sentence = (
        f"The loss of the last {_LINES} lines is {now:.3g} on average, and was {least:.3g}: training diverges. Lower "
        "--learning-rate; if gradient_spikes grow, too, look for outliers in the log."
    )
    return _answer(name, (now - least) / max(abs(least), 1e-6), threshold, sentence)


def _floor(history: Sequence[Mapping[str, int | float]], scale: ReturnScale) -> Alarm:
    name, threshold = "values at the floor", 0.9
    if not history or not {"q_greedy", "monte_carlo"} <= history[-1].keys():
        return _not_asked(name, "this algorithm learns no values")
    if history[-1]["step"] < SETTLED:
        return _not_asked(name, f"before {SETTLED} updates values are still to come")
    valued, returned = ((history[-1][each] - scale.low) / _width(scale) for each in ("q_greedy", "monte_carlo"))
    if returned < _LEAST_RETURN:
        return _not_asked(name, "the log itself returns next to nothing above the least")
    sentence = (
        f"The policy's own actions are valued at {valued:.1%} of the range, the log returned {returned:.1%}; "
        "Q has collapsed to the least return for all data. Lower --conservative-weight, or keep --monte-carlo-bound."
    )
    return _answer(name, 1 - valued / returned, threshold, sentence)


def _entropy(history: Sequence[Mapping[str, int | float]], scale: ReturnScale) -> Alarm:
    name, threshold = "one bin for everything", 0.9
    if not history or not {"greedy_entropy", "logged_entropy"} <= history[-1].keys():
        return _not_asked(name, "the bins that the policy chooses were not counted")
    greedy, logged = history[-1]["greedy_entropy"], history[-1]["logged_entropy"]
    if history[-1]["step"] < SETTLED or logged < _LEAST_ENTROPY:
        return _not_asked(name, "the policy is still untrained, or the log itself knows but one action")
    sentence = (
        f"Over logged states the policy's bins hold {greedy:.2g} bits a token, the logged ones {logged:.2g}: it takes "
        "nearly the same action everywhere. Look whether observations carry what the action depends on."
    )
    return _answer(name, 1 - greedy / logged, threshold, sentence)


def _target(history: Sequence[Mapping[str, int | float]], scale: ReturnScale) -> Alarm:
    name, threshold = "a target network that stands still", 0.5
    if not history or "target_still" not in history[-1]:
        return _not_asked(name, "there is no target network, or it was looked at but once")
    share = history[-1]["target_still"]
    sentence = (
        f"{share:.0%} of the target network's tensors have not changed since they were last looked at, though the "
        "policy's have: its values are backed up from what it was at the beginning. Lower --polyak."
    )
    return _answer(name, share, threshold, sentence)


_QUESTIONS: tuple[Callable[[Evidence, ReturnScale], Alarm], ...] = (
    _starts,
    _successes,
    _failures,
    _backups,
    _chain,
    _ceiling,
)


def _answer(name: str, found: float | Mean, threshold: float, sentence: str) -> Alarm:
    """Returns an alarm that rings where what was found is above the threshold: of a mean, its whole interval."""
    figure, least = (found.mean, found.low) if isinstance(found, Mean) else (found, found)
    state: State = "ringing" if least > threshold else "silent"  # an interval that is not known is above nothing
    return Alarm(name, state, figure, threshold, sentence)


def _not_asked(name: str, reason: str) -> Alarm:
    return Alarm(name, "not asked", None, None, f"Not asked: {reason}.")


def _width(scale: ReturnScale) -> float:
    return scale.high - scale.low


def _signed(difference: float) -> str:
    return f"{abs(difference):.3g} {'above' if difference >= 0 else 'below'}"
