"""Each alarm ringing, silent and not asked, with its figure worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qtransformer.alarms import Alarm, Evidence, over_estimation_alarms
from qtransformer.normalization import ReturnScale
from qtransformer.predictions import Predictions

E = 24  # episodes of two steps, the first half successful
SCALE = ReturnScale(-10.0, 10.0)  # figures are shares of 20
STARTS, SUCCESSES, FAILURES, BACKUPS, CHAIN, CEILING = range(6)


def steps(first, last):
    """A column with these values at the two steps of every episode."""
    return np.tile(np.array([first, last], np.float64), E)


def make_evidence(**changes):
    """Honest predictions: successes return 8 and then 10, failures -10; every value is the return."""
    success = np.repeat(np.arange(E) < E // 2, 2)
    returns = np.where(success, steps(8, 10), -10.0)
    columns = dict.fromkeys(("values", "q_logged", "q_greedy", "backups", "returns"), returns)
    columns |= {"terminations": steps(0, 1).astype(bool)}
    marks = {
        "episodes": np.repeat(np.arange(E), 2),
        "is_first": steps(1, 0).astype(bool),
        "is_last": steps(0, 1).astype(bool),
        "is_success": success,
        "is_failure": ~success,
    }
    columns |= {name: value for name, value in changes.items() if name in columns}
    marks |= {name: value for name, value in changes.items() if name in marks}
    return Evidence(Predictions(**columns), **marks)


def ask(which, evidence, scale=SCALE) -> Alarm:
    return over_estimation_alarms(evidence, scale)[which]


def subset(evidence, keep):
    """The evidence of the chosen steps alone."""
    marks = {name: getattr(evidence, name)[keep] for name in Evidence.__dataclass_fields__ if name != "predictions"}
    columns = {name: getattr(evidence.predictions, name)[keep] for name in Predictions.__dataclass_fields__}
    return Evidence(Predictions(**columns), **marks)


RETURNS = make_evidence().predictions.returns


def test_honest_values_ring_no_alarm():
    alarms = over_estimation_alarms(make_evidence(), SCALE)
    assert [alarm.state for alarm in alarms] == ["silent"] * 6
    assert len({alarm.name for alarm in alarms}) == 6


@pytest.mark.parametrize(
    ("which", "changes", "figure"),
    [
        (STARTS, {"values": steps(9.2, 0)}, (9.2 - 8) / 20),
        (SUCCESSES, {"q_logged": RETURNS + 2.4}, 2.4 / 20),
        (FAILURES, {"values": np.where(RETURNS > 0, 10.0, 6.0)}, 16 / 20),
        (BACKUPS, {"backups": RETURNS + 2.4}, 2.4 / 20),
        (CHAIN, {"values": RETURNS + 1.2}, 1.2 / 20),
        (
            CEILING,
            {"values": np.where(RETURNS > -10, 9.9, RETURNS)},
            0.25,
        ),  # above 9.8: half of the steps, not a quarter
    ],
)
def test_over_estimation_rings(which, changes, figure):
    alarm = ask(which, make_evidence(**changes))
    assert alarm.state == "ringing"
    assert alarm.word == "rings"
    assert alarm.figure == pytest.approx(figure)
    assert alarm.figure is not None
    assert alarm.threshold is not None
    assert alarm.figure > alarm.threshold
    assert alarm.measure == f"{figure:.1%}, rings above {alarm.threshold:.0%}"


@pytest.mark.parametrize(
    ("which", "changes", "figure"),
    [
        (STARTS, {"values": steps(8.8, 0)}, 0.8 / 20),
        (
            STARTS,
            {"values": np.where(RETURNS > 0, 10.0, 4.0)},
            -1 / 20,
        ),  # 7 on average: some starts are better than others
        (SUCCESSES, {"q_logged": RETURNS + 1.8}, 1.8 / 20),
        (SUCCESSES, {"q_logged": np.where(RETURNS > 0, RETURNS, 10.0)}, 0.0),  # of failures it says nothing
        (FAILURES, {"values": np.where(RETURNS > 0, 10.0, 4.0)}, 14 / 20),
        (BACKUPS, {"backups": RETURNS - 5.0}, -5 / 20),  # under-estimation is not what it looks for
        (CHAIN, {"values": RETURNS - 5.0}, -5 / 20),
        (CEILING, {"values": RETURNS * 0.97}, -0.25),
    ],
)
def test_less_is_silent(which, changes, figure):
    alarm = ask(which, make_evidence(**changes))
    assert alarm.state == "silent"
    assert alarm.figure == pytest.approx(figure)


@pytest.mark.parametrize(("which", "name"), [(SUCCESSES, "q_logged"), (BACKUPS, "backups"), (CHAIN, "values")])
def test_an_excess_that_episodes_disagree_on_is_silent(which, name):
    """Half of the episodes far above, half far below: the mean is above the threshold, its interval is not."""
    disagreeing = np.repeat(np.arange(E) % 2, 2) * 26.0 - 10.0  # +16 and -10: 3 of 20 on average
    alarm = ask(which, make_evidence(**{name: RETURNS + disagreeing}))
    assert alarm.figure == pytest.approx(0.15)
    assert alarm.state == "silent"


def test_a_best_return_below_the_top_of_the_scale_is_the_ceiling():
    """Dense rewards leave room above the log: values in that room are above the best return, 0.99 * 15 - 10 = 4.85."""
    returns = RETURNS * 0.5
    scale = ReturnScale(-10.0, 10.0)
    assert ask(CEILING, make_evidence(returns=returns, values=np.full(2 * E, 6.0)), scale).figure == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("which", "changes", "reason"),
    [
        (STARTS, {"returns": np.full(2 * E, -10.0)}, "all episodes returned the same"),
        (SUCCESSES, {"is_success": np.zeros(2 * E, bool)}, "fewer than 10 episodes ended in success"),
        (FAILURES, {"is_failure": np.zeros(2 * E, bool)}, "it takes failed and successful episodes"),
        (FAILURES, {"is_success": np.zeros(2 * E, bool)}, "it takes failed and successful episodes"),
        (BACKUPS, {"backups": np.full(2 * E, np.nan)}, "fewer than 10 episodes logged what followed"),
        (CHAIN, {"q_greedy": np.full(2 * E, np.nan)}, "this algorithm does not read V from the tokens"),
        (CEILING, {"returns": np.full(2 * E, -10.0)}, "no step returned more than the least"),
    ],
)
def test_what_the_log_cannot_answer_is_not_asked(which, changes, reason):
    evidence = make_evidence(is_success=np.ones(2 * E, bool)) if which == SUCCESSES else make_evidence()
    predictions = replace(
        evidence.predictions, **{k: v for k, v in changes.items() if hasattr(evidence.predictions, k)}
    )
    marks = {k: v for k, v in changes.items() if not hasattr(evidence.predictions, k)}
    alarm = ask(which, replace(evidence, predictions=predictions, **marks))
    assert (alarm.state, alarm.word, alarm.figure, alarm.measure) == ("not asked", "not asked", None, "")
    assert alarm.sentence.startswith("Not asked: ")
    assert reason in alarm.sentence


def test_few_episodes_answer_little():
    states = [alarm.state for alarm in over_estimation_alarms(subset(make_evidence(), slice(16, 32)), SCALE)]
    assert states == ["not asked", "not asked", "silent", "not asked", "not asked", "silent"]


def test_successes_that_were_cut_off_are_left_out():
    """A success that did not end the episode has a return that is not known."""
    evidence = make_evidence(is_success=np.ones(2 * E, bool), q_logged=RETURNS + 9)
    assert ask(SUCCESSES, evidence).state == "ringing"
    cut = replace(evidence, predictions=replace(evidence.predictions, terminations=np.zeros(2 * E, bool)))
    assert ask(SUCCESSES, cut).state == "not asked"


def test_the_sentences_name_their_numbers():
    evidence = make_evidence(values=steps(9.2, 0), q_logged=RETURNS - 1.5, is_success=np.ones(2 * E, bool))
    alarms = over_estimation_alarms(evidence, SCALE)
    assert "expects 9.2 on average; the best of 24 episodes returned 8," in alarms[STARTS].sentence
    assert "24 episodes that ended in success the logged actions are valued 1.5 below" in alarms[SUCCESSES].sentence
    assert "lies 1.5 above Q of the logged action" in alarms[BACKUPS].sentence
