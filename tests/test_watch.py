"""Alarms while training: what they are asked of, when they ring, and that they are said once."""

from __future__ import annotations

import pytest
import torch
from dataset_fixtures import make_dataset, make_episode
from learner_fixtures import make_config

from qtransformer.alarms import training_alarms
from qtransformer.config import LearningConfig
from qtransformer.normalization import ReturnScale
from qtransformer.training import build
from qtransformer.watch import Watch, entropy

SCALE = ReturnScale(-1.0, 1.0)
LINE = {"step": 500, "loss": 1.0, "q_greedy": 0.0, "monte_carlo": 0.0, "greedy_entropy": 3.0, "logged_entropy": 4.0}


def ringing(*lines):
    return {each.name: each for each in training_alarms([{**LINE, **line} for line in lines], SCALE)
            if each.state == "ringing"}  # fmt: skip


def states(*lines):
    return {each.name: each.state for each in training_alarms(lines, SCALE)}


def test_a_sound_run_rings_nothing():
    assert ringing(*[{"loss": 1.0 / step, "target_still": 0.0} for step in range(1, 20)]) == {}


def test_a_loss_that_grows():
    falling = [{"loss": loss} for loss in (5.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert ringing(*falling) == {}
    alarm = ringing(*falling, *[{"loss": loss} for loss in (2.0, 2.5, 2.5, 2.5, 2.5)])["a loss that grows"]
    assert alarm.figure == pytest.approx(1.4)  # (2 + 4 * 2.5) / 5 = 2.4, and the least mean of five lines is 1
    assert "is 2.4 on average, and was 1: training diverges" in alarm.sentence
    assert states(*[{**LINE, "loss": 9.0}] * 9)["a loss that grows"] == "not asked"


def test_values_at_the_floor():
    alarm = ringing({"q_greedy": -0.95, "monte_carlo": 0.0})["values at the floor"]
    assert alarm.figure == pytest.approx(0.95)  # 2.5 % of the range, against 50 %
    assert ringing({"q_greedy": -0.8, "monte_carlo": 0.0}) == {}
    for line in ({"step": 299, "q_greedy": -1.0}, {"q_greedy": -1.0, "monte_carlo": -0.95}):
        assert states({**LINE, **line})["values at the floor"] == "not asked"
    assert states({"step": 500, "loss": 1.0})["values at the floor"] == "not asked"


def test_one_bin_for_everything():
    alarm = ringing({"greedy_entropy": 0.2})["one bin for everything"]
    assert alarm.figure == pytest.approx(0.95)
    assert ringing({"greedy_entropy": 0.5}) == {}
    for line in ({"step": 299}, {"logged_entropy": 0.4}):
        assert states({**LINE, "greedy_entropy": 0.0, **line})["one bin for everything"] == "not asked"


def test_a_target_that_stands_still():
    assert ringing({"target_still": 1.0})["a target network that stands still"].figure == 1.0
    assert ringing({"target_still": 0.4}) == {}
    assert states(LINE)["a target network that stands still"] == "not asked"
    assert set(states().values()) == {"not asked"}


def test_entropy():
    tokens = torch.tensor([[0, 3], [1, 3], [2, 3], [3, 3]])
    assert entropy(tokens[:, :1]) == pytest.approx(2.0)
    assert entropy(tokens) == pytest.approx(1.0)
    assert entropy(tokens[:, 1:]) == pytest.approx(0.0)


@pytest.fixture
def open_watch(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(30 + seed, seed=seed, success=seed % 2 == 0) for seed in range(40)])

    def open_(**changes):
        learner, sampler, info = build(make_config(dataset=tmp_path, out=tmp_path / "run", **changes), dataset)
        return Watch(learner, dataset, info), learner, sampler

    return open_


def test_it_looks_at_whole_lengths_of_evenly_chosen_episodes(open_watch):
    watch, *_ = open_watch()
    assert len(watch._log.episodes) == 20
    assert len(watch._rows) == 20 * 25
    assert set(watch._log.first) | set(watch._log.last) <= set(watch._rows)


@pytest.mark.parametrize(("polyak", "still"), [(0.5, 0.0), (1.0, 1.0)])
def test_a_dead_target_update_is_seen(open_watch, polyak, still):
    watch, learner, sampler = open_watch(learning=LearningConfig(polyak=polyak))
    assert "target_still" not in watch.figures()
    other, *_ = open_watch(learning=LearningConfig(polyak=polyak))
    other.load_state(watch.state())
    assert len(watch.state()["target_sums"])
    learner.update(sampler.sample())
    assert watch.figures()["target_still"] == pytest.approx(still, abs=0.3)


@pytest.mark.parametrize("algorithm", ["behaviour_cloning", "decision_transformer", "implicit_q_learning"])
def test_every_algorithm_can_be_watched(open_watch, algorithm, capsys):
    watch, learner, sampler = open_watch(algorithm=algorithm)
    learner.update(sampler.sample())
    figures = watch.figures()
    assert 0 <= figures["greedy_entropy"] <= 2
    assert 0 < figures["logged_entropy"] <= 2  # four bins
    watch.look([{"step": 1, "loss": 1.0, **figures}])


def test_an_alarm_is_said_once_when_it_rings_twice_in_a_row_and_again_at_the_end(open_watch, capsys):
    watch, learner, _ = open_watch()
    with torch.no_grad():
        learner.policy.model.q_head.bias.fill_(9.0)  # every action is promised the best return
    watch.look([{**LINE, "step": 299}])  # a network that is still as it was made promises anything
    said = []
    for _ in range(3):
        watch.look([LINE])
        said.append(capsys.readouterr().err)
    assert said[0] == said[2] == ""
    assert "alarm: better than the best episode (" in said[1] or "alarm: more than successes returned (" in said[1]
    assert said[1].count("alarm: ") == len(watch._said)
    watch.repeat()
    assert capsys.readouterr().err == said[1]
