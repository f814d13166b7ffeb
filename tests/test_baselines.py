"""Baselines: what each one imitates, on problems small enough to work out; and that each trains, resumes and acts."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_fixtures import ONE_STATE, greedy_tokens, make_baseline, one_step, paid_modes, two_modes
from learner_fixtures import (
    UNIT,
    assert_same_bits,
    concatenate,
    copied,
    loss_of,
    make_batch,
    make_config,
    make_policy,
    noise_of,
    set_values,
    to_torch,
    write_log,
)

from qtransformer.baselines import LEARNERS, BehaviourCloning, DecisionTransformer, ImplicitQLearning
from qtransformer.checkpoint import checkpoint_folders, load_checkpoint
from qtransformer.config import ACT_BY_DENSITY, LearningConfig
from qtransformer.deploy.export import export_bundle
from qtransformer.loading import load_run, open_policy
from qtransformer.normalization import ReturnScale
from qtransformer.presets import PRESETS
from qtransformer.q_learning import QTransformerLearner
from qtransformer.training import build, load_dataset, train

BASELINES = ["behaviour_cloning", "implicit_q_learning", "decision_transformer"]

# --- every algorithm --------------------------------------------------------------------------------------------------


def test_algorithms_by_name():
    classes = (BehaviourCloning, ImplicitQLearning, DecisionTransformer)
    assert {"q_transformer": QTransformerLearner, **dict(zip(BASELINES, classes, strict=True))} == LEARNERS
    assert set(BASELINES) == ACT_BY_DENSITY


@pytest.mark.parametrize("algorithm", BASELINES)
def test_padding_is_ignored(algorithm):
    is_valid = np.array([[True], [True], [False], [True]])
    batch = make_batch(4, num_steps=1, num_dimensions=2, is_valid=is_valid)
    changed = replace(
        batch,
        actions=np.where(is_valid[..., None], batch.actions, 0.99).astype(np.float32),
        rewards=np.where(is_valid, batch.rewards, 0.7).astype(np.float32),
        monte_carlo_returns=np.where(is_valid, batch.monte_carlo_returns, 0.7).astype(np.float32),
        observations={"state": np.where(is_valid[..., None], batch.observations["state"], 3.0).astype(np.float32)},
    )
    before, after = [loss_of(make_baseline(algorithm), to_torch(each)) for each in (batch, changed)]
    assert torch.equal(before[0], after[0])
    assert before[0] > 0
    del before[1]["monte_carlo" if "monte_carlo" in before[1] else "accuracy"]
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])


@pytest.mark.parametrize("algorithm", BASELINES)
def test_the_loss_does_not_depend_on_the_size_of_the_batch(algorithm):
    is_valid = np.array([[True, True], [True, False], [True, True], [True, False]])
    learner, batch = make_baseline(algorithm, window=2), make_batch(4, num_steps=2, num_dimensions=2, is_valid=is_valid)
    once, _ = loss_of(learner, to_torch(batch))
    thrice, _ = loss_of(learner, to_torch(concatenate(batch, batch, batch)))
    torch.testing.assert_close(once, thrice)


@pytest.mark.parametrize("algorithm", ["behaviour_cloning", "decision_transformer"])
def test_steps_beyond_the_window_are_no_input(algorithm):
    """Segments are longer than the window where targets look further ahead, which these have not."""
    learner, batch = make_baseline(algorithm, window=2), make_batch(4, num_steps=4, num_dimensions=2)
    short = replace(
        batch.map(lambda array: array[:, :2] if array.ndim > 1 else array),
        observations={"state": batch.observations["state"][:, :3]},
    )
    assert_same_bits(*({"loss": loss_of(learner, to_torch(each))[0]} for each in (batch, short)))


@pytest.mark.parametrize("algorithm", BASELINES)
def test_what_each_algorithm_trains(algorithm):
    learner = make_baseline(algorithm, window=3, num_dimensions=3)
    loss_of(learner, to_torch(make_batch(16)))[0].backward()
    silent = {name for name, each in learner.policy.named_parameters() if each.grad is None or not each.grad.any()}
    assert silent == (set() if algorithm == "implicit_q_learning" else {"model.q_head.weight", "model.q_head.bias"})


@pytest.mark.parametrize("algorithm", BASELINES)
def test_a_state_round_trips(algorithm):
    learner, restored = make_baseline(algorithm), make_baseline(algorithm)
    learner.update(two_modes())
    restored.load_state(*map(copied, learner.state()))
    figures = [each.update(two_modes()) for each in (learner, restored)]
    assert_same_bits(*figures)
    for before, after in zip(learner.state(), restored.state(), strict=True):
        assert_same_bits(before, after)


@pytest.mark.parametrize("algorithm", BASELINES)
def test_a_run_trains_resumes_and_acts(algorithm, tmp_path):
    config = make_config(
        dataset=write_log(tmp_path / "log"), out=tmp_path / "run", algorithm=algorithm, steps=4, checkpoint_every=2
    )
    run = train(config)
    whole, lines = load_checkpoint(run), (run / "metrics.jsonl").read_text().splitlines()
    whole_training = whole.training_tensors()
    shutil.rmtree(checkpoint_folders(run)[-1])
    resumed = load_checkpoint(train(replace(config, resume=True)))
    assert_same_bits(whole.weights, resumed.weights)
    assert_same_bits(whole_training, resumed.training_tensors())
    assert len(lines) == 1
    policy = open_policy(run).policy
    policy.reset(0)
    action = policy.act([0], [{"state": np.zeros(2)}])
    loaded = load_run(run).policy
    assert np.isin(action, loaded.tokenizer.centres.numpy()).all()
    assert (loaded.support_threshold, loaded.support_temperature) == (0.0, math.inf)


@pytest.mark.export
@pytest.mark.parametrize("algorithm", BASELINES)
def test_a_bundle_agrees_with_the_network(algorithm, tmp_path):
    config = make_config(
        dataset=write_log(tmp_path / "log"), out=tmp_path / "run", algorithm=algorithm, steps=3, checkpoint_every=3
    )
    loaded = load_run(train(config))
    report = export_bundle(
        loaded.policy, spec=loaded.spec, samples=loaded.samples(), card=loaded.card(), out=tmp_path / "bundle"
    )
    assert report["passed"]


# --- cloning ----------------------------------------------------------------------------------------------------------


def test_cloning_picks_the_joint_mode():
    learner, batch = make_baseline("behaviour_cloning", learning_rate=0.03), two_modes()
    figures = [learner.update(batch) for _ in range(60)][-1]
    assert greedy_tokens(learner) == [[3, 0]]
    with torch.no_grad():
        density = learner.policy.model.first_token_outputs(ONE_STATE).density_logits.softmax(dim=-1)
    torch.testing.assert_close(density[0, 0], torch.tensor([0.375, 0, 0, 0.625]), rtol=0, atol=0.05)
    # the first token is right 5 times in 8; given it, the second always
    assert abs(figures["accuracy"].item() - (0.625 + 1) / 2) < 1e-3


def test_cloning_does_not_use_rewards():
    learners, batch = [make_baseline("behaviour_cloning"), make_baseline("behaviour_cloning")], two_modes()
    other = replace(
        batch,
        rewards=batch.rewards + 5,
        monte_carlo_returns=batch.monte_carlo_returns + 5,
        terminations=~batch.terminations,
        has_successor=~batch.has_successor,
        is_success=~batch.is_success,
    )
    figures = [learner.update(each) for learner, each in zip(learners, (batch, other), strict=True)]
    assert_same_bits(figures[0], figures[1])
    assert_same_bits(*(learner.policy.state_dict() for learner in learners))


# --- Decision Transformer ---------------------------------------------------------------------------------------------


def test_the_return_asked_for_decides_between_good_and_bad_actions():
    """The rare action was paid best: cloning takes the frequent one, and so does a policy that asks for little."""
    learner, cloning = (
        make_baseline(algorithm, learning_rate=0.03) for algorithm in ("decision_transformer", "behaviour_cloning")
    )
    batch = paid_modes(0.9, 0.2)
    figures = [(learner.update(batch), cloning.update(batch)) for _ in range(60)][-1][0]
    assert (greedy_tokens(cloning), greedy_tokens(learner)) == ([[3, 0]], [[0, 3]])
    assert figures["return_asked_for"].item() == pytest.approx(0.9)
    assert figures["accuracy"].item() == 1.0  # the return tells which of the two it was
    learner.policy.model.encoder.best_return.fill_(0.2)
    assert greedy_tokens(learner) == [[3, 0]]


def test_the_return_asked_for_is_the_best_of_all_real_steps():
    learner = make_baseline("decision_transformer", scale=ReturnScale(-2.0, 0.0))
    returns = np.array([[-1.5], [-1.0], [0.0]], np.float32)
    batch = make_batch(
        3, num_steps=1, num_dimensions=2, monte_carlo_returns=returns, is_valid=np.array([[True], [True], [False]])
    )
    assert learner.update(batch)["return_asked_for"].item() == -1.0
    assert learner.update(replace(batch, monte_carlo_returns=returns - 0.5))["return_asked_for"].item() == -1.0
    assert learner.update(replace(batch, monte_carlo_returns=returns + 0.5))["return_asked_for"].item() == -0.5


def test_only_the_return_to_go_tells_of_rewards():
    batch = two_modes()
    other = replace(batch, rewards=batch.rewards + 5, terminations=~batch.terminations, is_success=~batch.is_success)
    returned = replace(batch, monte_carlo_returns=batch.monte_carlo_returns / 2)
    loss, same, different = [
        loss_of(make_baseline("decision_transformer"), to_torch(each))[0] for each in (batch, other, returned)
    ]
    assert torch.equal(loss, same)
    assert not torch.equal(loss, different)


def test_returns_to_go_are_not_discounted(tmp_path):
    log = write_log(tmp_path / "log")
    for algorithm, first in (("decision_transformer", 1.0), ("behaviour_cloning", 0.5**4)):
        config = make_config(LearningConfig(discount=0.5), dataset=log, algorithm=algorithm)
        learner, sampler, _ = build(config, load_dataset(config)[0])
        returns = sampler.segments(np.array([0])).monte_carlo_returns
        assert returns[0, 0] == first  # five steps, the last of which is the success
        assert (learner.scale.low, learner.scale.high) == (0.0, 1.0)


# --- CQL: a preset ----------------------------------------------------------------------------------------------------


def test_the_gradient_of_cql_by_hand():
    """Q is its target already: the regulariser alone pulls, alpha (softmax(Q) - logged), through the sigmoid."""
    learning = replace(PRESETS["cql"]["learning"], label_width=0.0, discount=0.5)
    config = make_config(learning, window=1)
    policy = make_policy(config, num_dimensions=2)
    learner = QTransformerLearner(policy, config, UNIT, noise_of(policy))
    table = torch.tensor([[0.2, 0.4, 0.5, 0.3], [0.3, 0.5, 0.2, 0.1]])  # max of the second: target of the first
    for policy in (learner.policy, learner.target):
        set_values(policy.model, table.tolist())
    loss, figures = loss_of(learner, one_step(reward=0.25))  # 0.25 + 0.5 * 0.5 is Q of (bin 2, bin 1)
    loss.backward()
    logged = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0]])
    expected = learning.conservative_weight * (table.softmax(dim=-1) - logged) / 2 * table * (1 - table)
    assert figures["squared_error"].item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(learner.policy.model.q_head.bias.grad, expected)


def test_cql_acts_by_its_values():
    config = make_config(PRESETS["cql"]["learning"], window=1)
    policy = make_policy(config, num_dimensions=2)
    assert (policy.support_threshold, policy.support_temperature) == (0.0, 0.0)  # the maximum of Q
