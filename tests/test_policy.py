"""Decisions: independent of how many episodes run side by side, of padding, and honest about numbers that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learner_fixtures import enlarge, make_config, make_policy, make_spec

from qtransformer.config import LearningConfig, RunError
from qtransformer.model import TokenOutputs
from qtransformer.policy import CheckpointPolicy, build_policy

WINDOW = 3


def random_policy(learning=None, **changes):
    return enlarge(make_policy(make_config(learning, window=WINDOW, num_bins=16, **changes)))


def observe(slot, step):
    return {"state": np.random.default_rng([slot, step]).normal(size=2).astype(np.float32)}


def play(policy, slots, num_steps=5):
    """Actions (slots, steps, dims) of episodes whose observations depend on slot and step alone."""
    for slot in slots:
        policy.reset(slot)
    return np.stack([policy.act(slots, [observe(slot, step) for slot in slots]) for step in range(num_steps)], axis=1)


@pytest.mark.parametrize("num_slots", [1, 2, 5, 11])
def test_actions_do_not_depend_on_how_many_slots_act_together(num_slots):
    policy = random_policy()
    together = play(CheckpointPolicy(policy), range(num_slots))
    alone = np.concatenate([play(CheckpointPolicy(policy), [slot]) for slot in range(num_slots)])
    assert together.tobytes() == alone.tobytes()
    assert num_slots == 1 or len(np.unique(together.reshape(num_slots, -1), axis=0)) > 1


def test_the_network_always_sees_the_same_number_of_rows():
    """Rounding may depend on the number of rows, and on some machine a tie would turn on it."""
    policy, seen = random_policy(), []
    policy.model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]["state"].shape[:2]))
    policy.model.trunk[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:2]))
    for num_slots in (1, 3, 8, 11):
        play(CheckpointPolicy(policy), range(num_slots), num_steps=1)
    assert seen == 5 * [(8, 1), (8, WINDOW)]  # of the frames, the newest alone is encoded


@pytest.mark.parametrize("slots", [[4], [2, 0, 1], list(range(11))])
def test_the_value_of_an_action_is_that_of_its_last_token(slots):
    """Whoever else acts, and in whichever of the blocks."""
    policy = random_policy()
    acting = CheckpointPolicy(policy)
    play(acting, slots, num_steps=1)
    for slot in slots:
        frames = torch.from_numpy(observe(slot, 0)["state"]).expand(8, WINDOW, 2)
        with torch.no_grad():
            q_max = policy({"state": frames}, torch.ones(8, dtype=torch.long)).q_max
        assert acting.q_value(slot) == q_max[0, -1].item()
    assert len({acting.q_value(slot) for slot in slots}) == len(slots)


def test_the_order_of_the_slots_does_not_matter():
    policy = random_policy()
    forwards, backwards = play(CheckpointPolicy(policy), [0, 1, 2]), play(CheckpointPolicy(policy), [2, 1, 0])
    assert forwards.tobytes() == backwards[::-1].tobytes()


def test_values_are_bit_equal_in_every_row():
    policy = random_policy()
    frames = torch.randn(1, WINDOW, 2, generator=torch.Generator().manual_seed(0)).expand(8, -1, -1)
    with torch.no_grad():
        outputs = policy({"state": frames}, torch.full((8,), WINDOW))
    for name in ("actions", "tokens", "q_max", "q_gap"):
        rows = getattr(outputs, name)
        assert torch.equal(rows, rows[:1].expand_as(rows)), name


def test_reset_forgets_the_history():
    policy = CheckpointPolicy(random_policy(LearningConfig(support_temperature=0.03)))
    first, second = play(policy, [0]), play(policy, [0])
    assert first.tobytes() == second.tobytes()
    policy.reset(0)
    fresh = policy.act([0], [observe(0, 4)])
    assert not np.array_equal(fresh, first[:, 4])  # without its history the same observation gives another action


def test_the_history_holds_window_frames():
    policy = random_policy()
    acting = CheckpointPolicy(policy)
    acted = play(acting, [0])[0, -1]
    frames = torch.from_numpy(np.stack([observe(0, step)["state"] for step in (2, 3, 4)])).unsqueeze(0)
    with torch.no_grad():
        expected = policy({"state": frames.expand(8, -1, -1)}, torch.full((8,), WINDOW)).actions[0].numpy()
    np.testing.assert_array_equal(acted, expected)


def test_slots_keep_their_histories_apart():
    acting = CheckpointPolicy(random_policy())
    expected = play(acting, [0])
    for slot in (0, 1):
        acting.reset(slot)
    actions = []
    for step in range(5):
        actions.append(acting.act([0], [observe(0, step)])[0])
        acting.act([1], [observe(1, step)])
    np.testing.assert_array_equal(np.stack(actions), expected[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_not_ok_in_its_row_alone(value):
    policy = random_policy()
    frames = torch.zeros(3, WINDOW, 2)
    frames[1, 0, 1] = value
    with torch.no_grad():
        assert policy({"state": frames}, torch.full((3,), WINDOW)).ok.tolist() == [True, False, True]


def test_acting_on_nan_is_an_error():
    acting = CheckpointPolicy(random_policy())
    acting.reset(0)
    with pytest.raises(RunError, match="not finite; look for a diverged simulation"):
        acting.act([0], [{"state": np.array([np.nan, 0.0], np.float32)}])


@pytest.mark.parametrize(
    "observation", [{"state": np.zeros(3)}, {"pose": np.zeros(2)}, {"state": np.zeros(2), "x": 0}, {}]
)
def test_observations_unlike_those_of_the_log(observation):
    acting = CheckpointPolicy(random_policy())
    acting.reset(0)
    with pytest.raises(
        RunError, match=r"must have the keys and shapes \{'state': \(2,\)\} of the log, got .*; play in"
    ):
        acting.act([0], [observation])


def test_an_environment_may_reuse_its_arrays():
    policy = random_policy()
    acting, expected = CheckpointPolicy(policy), play(CheckpointPolicy(policy), [0])[0]
    acting.reset(0)
    reused, actions = np.zeros(2, np.float32), []
    for step in range(5):
        reused[:] = observe(0, step)["state"]
        actions.append(acting.act([0], [{"state": reused}])[0])
    np.testing.assert_array_equal(np.stack(actions), expected)


def test_damaged_weights_are_not_ok():
    policy = random_policy()
    with torch.no_grad():
        policy.model.q_head.weight[1, 0, 0] = torch.nan
        assert not policy({"state": torch.zeros(2, WINDOW, 2)}, torch.ones(2, dtype=torch.long)).ok.any()


def test_outputs_of_a_decision():
    policy = random_policy()
    observations, num_frames = {"state": torch.randn(4, WINDOW, 2)}, torch.tensor([1, 2, 3, 3])
    with torch.no_grad():
        outputs = policy(observations, num_frames)
        q_values = policy.model.greedy(observations, num_frames, policy.choose).outputs.q_values
    chosen = q_values.gather(-1, outputs.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(outputs.q_max, chosen)
    torch.testing.assert_close(outputs.q_gap, chosen - q_values.mean(dim=-1))
    torch.testing.assert_close(outputs.actions, policy.tokenizer.decode(outputs.tokens))
    assert outputs.actions.abs().max() < 1


def test_the_temperature_counts_in_the_spread_of_q():
    """Half the spread and twice the temperature are the same; below a hundredth the spread counts as that."""
    policy = random_policy(LearningConfig(support_temperature=0.2))
    q_values, logits = some_outputs().q_values, some_outputs().density_logits
    for spread, temperature in ((1.0, 0.2), (0.5, 0.1), (0.01, 0.002), (0.0001, 0.002)):
        policy.q_spread.fill_(spread)
        expected = (logits + q_values / temperature).softmax(dim=-1)
        torch.testing.assert_close(policy.probabilities(some_outputs()), expected)


def some_outputs():
    q_values = torch.tensor([[0.9, 0.5, 0.1, 0.4]])
    return TokenOutputs(torch.logit(q_values), torch.tensor([[0.05, 0.25, 0.4, 0.3]]).log())


@pytest.mark.parametrize(
    ("settings", "bin_", "value"),
    [
        ({"support_temperature": 0.0}, 0, 0.9),
        ({"support_temperature": 0.0, "support_threshold": 0.5}, 1, 0.5),
        # infinitely cautious: the density's median, and the mean of Q under the density
        ({"support_temperature": 1e6}, 2, 0.05 * 0.9 + 0.25 * 0.5 + 0.4 * 0.1 + 0.3 * 0.4),
    ],
)
def test_the_support_settings_reach_the_choice(settings, bin_, value):
    policy = random_policy(LearningConfig(**settings))
    assert policy.choose(some_outputs()).tolist() == [bin_]
    assert policy.values(some_outputs()).item() == pytest.approx(value, rel=1e-5)


def test_a_cloned_policy_takes_the_median_of_the_density():
    policy = random_policy(LearningConfig(support_temperature=0.0), algorithm="behaviour_cloning")
    assert policy.choose(some_outputs()).tolist() == [2]


def test_a_policy_standardises_with_the_statistics_it_was_built_with():
    config = make_config(window=WINDOW)
    policies = []
    for mean, std in ((0.0, 1.0), (5.0, 2.0)):
        torch.manual_seed(0)
        policies.append(enlarge(build_policy(config, make_spec(), {"state": {"mean": [mean] * 2, "std": [std] * 2}})))
    frames, num_frames = torch.randn(4, WINDOW, 2), torch.full((4,), WINDOW)
    with torch.no_grad():
        plain, shifted = policies[0]({"state": frames}, num_frames), policies[1]({"state": 2 * frames + 5}, num_frames)
    torch.testing.assert_close(plain.q_max, shifted.q_max)
