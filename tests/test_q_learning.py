"""One update: what moves, what must not, and that the same seed gives the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_fixtures import (
    PLAIN,
    UNIT,
    assert_same_bits,
    concatenate,
    copied,
    enlarge,
    loss_of,
    make_batch,
    make_config,
    make_learner,
    make_policy,
    set_values,
    to_torch,
)
from vision_fixtures import CAMERA, make_image_batch, make_image_learner

from qtransformer.config import LearningConfig
from qtransformer.learner import masked_mean
from qtransformer.normalization import ReturnScale
from qtransformer.q_learning import QTransformerLearner
from qtransformer_datasets.windows import looked_at

FIGURES = {"loss", "squared_error", "conservative", "cross_entropy", "q_logged", "q_greedy", "q_spread", "target"}
FIGURES |= {"monte_carlo", "gradient_norm"}


def everything(learner):
    weights, training = learner.state()
    return {**weights, **{f"training.{name}": value for name, value in training.items()}}


def padded_batch():
    """Segment 0 terminates after one step, segment 1 is truncated after two, segment 2 lacks its final observation."""
    is_valid = np.array([[True, False, False], [True, True, False], [True, True, False], [True] * 3])
    terminations, has_successor = np.zeros((4, 3), bool), is_valid.copy()
    terminations[0, 0], has_successor[2, 1] = True, False
    return make_batch(4, is_valid=is_valid, terminations=terminations, has_successor=has_successor)


def test_figures_are_all_there_and_finite():
    figures = make_learner(make_config()).update(padded_batch())
    assert set(figures) == FIGURES
    assert all(value.ndim == 0 and value.isfinite() and not value.requires_grad for value in figures.values())


def test_the_loss_is_the_weighted_sum_of_its_parts():
    learning = LearningConfig(conservative_weight=0.3, density_weight=0.7)
    loss, figures = loss_of(make_learner(make_config(learning)), to_torch(padded_batch()))
    expected = figures["squared_error"] + 0.3 * figures["conservative"] + 0.7 * figures["cross_entropy"]
    torch.testing.assert_close(loss.detach(), expected)
    assert all(figures[name] > 0 for name in ("squared_error", "conservative", "cross_entropy"))


def test_the_loss_by_hand():
    """Two tokens of two bins; Q is 0.8 and 0.2 for both; one terminal step, R = 1, bins 0 and 1 logged."""
    learner = make_learner(make_config(replace(PLAIN, conservative_weight=1.0), window=1, num_bins=2), num_dimensions=2)
    for policy in (learner.policy, learner.target):
        set_values(policy.model, [[0.8, 0.2], [0.8, 0.2]])
    ends = np.ones((1, 1), bool)
    actions, rewards = np.array([[[-0.5, 0.5]]], np.float32), np.ones((1, 1), np.float32)
    batch = make_batch(1, num_steps=1, num_dimensions=2, actions=actions, rewards=rewards, terminations=ends)
    _, figures = loss_of(learner, to_torch(batch))
    # targets are 0.8 (the best bin of the second token) and 1; logged values 0.8 and 0.2; the others 0.2 and 0.8
    assert figures["squared_error"].item() == pytest.approx(0.5 * (0.0**2 + 0.8**2) / 2)
    assert figures["conservative"].item() == pytest.approx(0.5 * (0.2**2 + 0.8**2) / 2)
    assert figures["q_logged"].item() == pytest.approx(0.5)
    assert figures["q_greedy"].item() == pytest.approx(0.8)
    assert figures["target"].item() == pytest.approx(0.9)


def test_better_actions_are_imitated_more():
    """One token of two bins with density 3/4 and 1/4; V is 0.5; bin 0 brought 1, bin 1 brought 0."""
    learning = replace(PLAIN, density_weight=1.0, advantage_sharpness=1.0)
    learner = make_learner(make_config(learning, window=1, num_bins=2), num_dimensions=1)
    for policy in (learner.policy, learner.target):
        set_values(policy.model, [[0.5, 0.5]])
    with torch.no_grad():
        learner.policy.model.density_head.bias.copy_(torch.tensor([[0.75, 0.25]]).log())
    actions, rewards = np.array([[[-0.5]], [[0.5]]], np.float32), np.array([[1.0], [0.0]], np.float32)
    ends = np.ones((2, 1), bool)
    batch = make_batch(2, num_steps=1, num_dimensions=1, actions=actions, rewards=rewards, terminations=ends)
    _, figures = loss_of(learner, to_torch(batch))
    better = 2 / (1 + np.exp(-np.sqrt(2)))  # advantages 0.5 and -0.5 are 1/sqrt 2 standard deviations off their mean
    expected = (better * -np.log(0.75) + (2 - better) * -np.log(0.25)) / 2
    assert figures["cross_entropy"].item() == pytest.approx(expected, rel=1e-5)


def test_values_are_shown_in_the_unit_of_the_log():
    scale = ReturnScale(-10.0, 10.0)
    learner = make_learner(make_config(replace(PLAIN, discount=0.5)), scale)
    for policy in (learner.policy, learner.target):
        set_values(policy.model, [[0.75, 0.25, 0.25, 0.25]] * 3)
    _, figures = loss_of(learner, to_torch(make_batch(rewards=np.full((4, 3), -1.0, np.float32))))
    assert figures["q_greedy"].item() == pytest.approx(5.0, abs=1e-4)
    assert figures["target"].item() == pytest.approx((5.0 + 5.0 + (-1 + 0.5 * 5.0)) / 3, abs=1e-4)


@pytest.mark.parametrize("backup", ["one_step", "n_step"])
def test_what_is_in_the_padding_changes_nothing(backup):
    batch, garbage = padded_batch(), make_batch(4, seed=7)
    mask = batch.is_valid
    frames = batch.observations["state"].copy()
    frames[0, 2:], frames[1, 3:], frames[2, 2:] = 7.0, -7.0, 7.0  # all that no real step has as its successor
    dirty = replace(
        batch,
        observations={"state": frames},
        actions=np.where(mask[..., None], batch.actions, garbage.actions),
        rewards=np.where(mask, batch.rewards, 100.0).astype(np.float32),
        monte_carlo_returns=np.where(mask, batch.monte_carlo_returns, 100.0).astype(np.float32),
    )
    learners = [make_learner(make_config(LearningConfig(backup=backup))) for _ in range(2)]
    figures = [learner.update(each) for learner, each in zip(learners, (batch, dirty), strict=True)]
    assert_same_bits(figures[0], figures[1])
    assert_same_bits(everything(learners[0]), everything(learners[1]))


@pytest.mark.parametrize("backup", ["one_step", "n_step"])
def test_a_last_token_without_target_adds_no_error(backup):
    has_successor = np.array([[True, True, False]] * 4)
    batch = make_batch(4, has_successor=has_successor)
    rewarded = replace(batch, rewards=(batch.rewards + 0.5 * ~has_successor).astype(np.float32))
    learner = make_learner(make_config(LearningConfig(backup=backup)))
    assert_same_bits(loss_of(learner, to_torch(batch))[1], loss_of(learner, to_torch(rewarded))[1])


def test_the_loss_does_not_depend_on_the_size_of_the_batch():
    # advantages are standardised over the batch, so their weights are left out here
    learner, batch = make_learner(make_config(LearningConfig(advantage_sharpness=0.0))), padded_batch()
    once, _ = loss_of(learner, to_torch(batch))
    thrice, _ = loss_of(learner, to_torch(concatenate(batch, batch, batch)))
    torch.testing.assert_close(once, thrice)


def test_every_parameter_learns_and_the_target_does_not():
    learner = make_learner(make_config())
    before = copied(learner.target.state_dict())
    loss, _ = loss_of(learner, to_torch(make_batch(16)))
    loss.backward()
    silent = [name for name, each in learner.policy.named_parameters() if each.grad is None or not each.grad.any()]
    assert silent == []
    assert all(each.grad is None and not each.requires_grad for each in learner.target.parameters())
    assert_same_bits(before, learner.target.state_dict())


def test_no_gradient_flows_through_the_targets():
    learner = make_learner(make_config())
    assert not any(each.requires_grad for each in learner.targets(to_torch(make_batch())))


@pytest.mark.parametrize("polyak", [0.0, 0.75, 1.0])
def test_the_target_network_keeps_its_share(polyak):
    learner = make_learner(make_config(replace(LearningConfig(), polyak=polyak, learning_rate=0.5)))
    before = copied(dict(learner.target.named_parameters()))
    learner.update(make_batch())
    after, policy = dict(learner.target.named_parameters()), dict(learner.policy.named_parameters())
    for name in before:
        torch.testing.assert_close(after[name], polyak * before[name] + (1 - polyak) * policy[name], rtol=0, atol=1e-7)
    assert any(not torch.equal(before[name], policy[name]) for name in before)


def test_the_target_network_is_a_copy_of_its_own():
    learner = make_learner(make_config())
    assert_same_bits(learner.policy.state_dict(), learner.target.state_dict())
    shared = {each.data_ptr() for each in learner.policy.parameters()}
    assert not shared & {each.data_ptr() for each in learner.target.parameters()}


def test_the_targets_come_from_the_target_network():
    learner, batch = make_learner(make_config()), to_torch(make_batch())
    before = learner.targets(batch).values
    set_values(learner.policy.model, [[0.9] * 4] * 3)
    assert torch.equal(before, learner.targets(batch).values)
    set_values(learner.target.model, [[0.9] * 4] * 3)
    assert not torch.equal(before, learner.targets(batch).values)


def test_the_same_seed_gives_the_same_bits():
    learners = [make_learner(make_config(), seed=seed) for seed in (0, 0, 1)]
    for learner in learners:
        for seed in range(3):
            learner.update(make_batch(seed=seed))
    assert_same_bits(everything(learners[0]), everything(learners[1]))
    assert not torch.equal(learners[0].policy.model.q_head.weight, learners[2].policy.model.q_head.weight)


def test_a_restored_learner_goes_on_bit_by_bit():
    learner, restored = make_learner(make_config()), make_learner(make_config(), seed=1)
    learner.update(make_batch(seed=0))
    weights, training = learner.state()
    restored.load_state(copied(weights), copied(training))
    for each in (learner, restored):
        each.update(make_batch(seed=1))
    assert restored.num_updates == 2
    assert_same_bits(everything(learner), everything(restored))


@pytest.mark.parametrize(
    ("num_updates", "share"),
    [(0, 0.01), (49, 0.5 * (1 - 0.95 * 49 / 1000)), (500, 0.525), (999, 1 - 0.95 * 0.999), (5000, 0.05)],
)
def test_the_learning_rate_warms_up_and_falls_to_a_twentieth(num_updates, share):
    learner = make_learner(make_config(LearningConfig(learning_rate=0.2), steps=1000))
    learner.num_updates = num_updates
    learner.update(make_batch())
    assert [group["lr"] for group in learner.optimizer.param_groups] == [pytest.approx(0.2 * share)] * 2


def test_gradients_are_scaled_down_to_the_largest_norm():
    learner = make_learner(make_config(LearningConfig(max_gradient_norm=1e-3)))
    figures = learner.update(make_batch())
    norm = torch.stack([each.grad.norm() for each in learner.policy.parameters() if each.grad is not None]).norm()
    assert figures["gradient_norm"] > 1e-3
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_masked_mean_by_hand():
    values, mask = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True])
    assert masked_mean(values, mask, torch.tensor(2)).item() == 3.5
    assert masked_mean(values, mask, torch.tensor(7)).item() == 1.0  # five more are in other parts
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool), torch.tensor(0)).item() == 0.0


def test_the_return_goes_over_several_environment_steps():
    """Window 1, segments of 3 steps, value 0.5 everywhere: R0 + g R1 + g^2 R2 + g^3 V, cut short by an end."""
    learning = replace(PLAIN, discount=0.5, environment_steps=3)
    learner = make_learner(make_config(learning, window=1))
    set_values(learner.target.model, [[0.5, 0.1, 0.1, 0.1]] * 3)
    rewards = np.array([[0.1, 0.2, 0.3]] * 3, np.float32)
    ends = np.array([[False, False, False], [False, True, False], [False, False, False]])
    is_valid = np.array([[True, True, True], [True, True, False], [True, True, False]])
    batch = make_batch(3, rewards=rewards, terminations=ends, is_valid=is_valid)
    targets = learner.targets(to_torch(batch))
    assert targets.values.shape == (3, 1, 3)
    whole, ended, cut = 0.1 + 0.1 + 0.075 + 0.0625, 0.1 + 0.1, 0.1 + 0.1 + 0.25 * 0.5
    assert targets.values[:, 0, -1].tolist() == pytest.approx([whole, ended, cut])
    assert targets.values[:, 0, 0].tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(("temperature", "value"), [(0.0, 0.9), (1e6, 0.5)])
def test_targets_have_a_temperature_of_their_own(temperature, value):
    """Two tokens of two bins, density 1/2 each, Q 0.9 and 0.1: the best of the second token, or its mean."""
    learning = replace(PLAIN, density_weight=1.0, support_temperature=0.03, target_temperature=temperature)
    learner = make_learner(make_config(learning, window=1, num_bins=2), num_dimensions=2)
    set_values(learner.target.model, [[0.9, 0.1]] * 2)
    targets = learner.targets(to_torch(make_batch(1, num_steps=1, num_dimensions=2)))
    assert targets.values[0, 0, 0].item() == pytest.approx(value, abs=1e-3)
    assert learner.policy.support_temperature == 0.03


def test_how_far_actions_differ_is_a_running_mean_of_the_policy_that_acts():
    """Two tokens of two bins, density 1/2 each, Q 0.9 and 0.1: standard deviation sqrt(2 * 0.4^2), in a range of 10."""
    learner = make_learner(make_config(window=1, num_bins=2), ReturnScale(-5.0, 5.0), num_dimensions=2)
    set_values(learner.policy.model, [[0.9, 0.1]] * 2)
    assert learner.policy.q_spread.item() == 1.0
    figures = learner.update(make_batch(1, num_steps=5, num_dimensions=2))
    assert figures["q_spread"].item() == pytest.approx(10 * 0.32**0.5, rel=1e-3)
    assert learner.policy.q_spread.item() == pytest.approx(0.32**0.5, rel=1e-3)
    learner.num_updates = 500
    set_values(learner.policy.model, [[0.5, 0.5]] * 2)
    learner.update(make_batch(1, num_steps=5, num_dimensions=2))
    assert learner.policy.q_spread.item() == pytest.approx(0.99 * 0.32**0.5, rel=1e-3)
    assert learner.target.q_spread.item() == 1.0


def test_returns_end_in_one_window_a_segment():
    """Window 3, two steps ahead: that from observation 2 on, from 1 on where only three steps have a known end."""
    is_valid = np.array([[True] * 4, [True, True, True, False], [True] * 4])
    has_successor = np.array([[True] * 4, [True] * 4, [True, True, True, False]])
    batch = to_torch(make_batch(3, num_steps=4, is_valid=is_valid, has_successor=has_successor))
    learner = make_learner(make_config(replace(PLAIN, environment_steps=2), window=3))
    enlarge(learner.target)
    encoded = learner.target.model.encoder(batch.observations)
    ahead = learner._next_values(batch, batch.is_valid & batch.has_successor, encoded)
    for segment, first in ((0, 2), (1, 1), (2, 1)):
        values = torch.zeros(4)
        values[first - 1 : first + 2] = learner._state_values(encoded[segment : segment + 1, first : first + 3])
        torch.testing.assert_close(ahead[segment], values)


def test_the_softmax_regularizer_takes_the_place_of_the_floor():
    learning = replace(PLAIN, conservative_weight=1.0)
    batch = to_torch(make_batch())
    floor, softmax = (
        loss_of(make_learner(make_config(replace(learning, regularizer=each))), batch)[1]
        for each in ("floor", "softmax")
    )
    # Q is near 0.05 in all 4 bins: the mean of Q^2 / 2, and log 4
    assert floor["conservative"].item() == pytest.approx(0.5 * 0.05**2, abs=1e-3)
    assert softmax["conservative"].item() == pytest.approx(np.log(4), abs=0.02)
    assert_same_bits({"error": floor["squared_error"]}, {"error": softmax["squared_error"]})


@pytest.mark.slow
def test_a_value_as_a_distribution_finds_the_target():
    learning = replace(PLAIN, learning_rate=1e-2)
    learner = make_learner(make_config(learning, window=1, num_atoms=21, num_bins=4, steps=300), num_dimensions=1)
    rewards = np.array([[0.0], [0.3], [0.8], [1.0]], np.float32)
    centres = np.array([-0.75, -0.25, 0.25, 0.75], np.float32)[:, None, None]
    same = {"state": np.zeros((4, 2, 2), np.float32)}
    batch = make_batch(4, num_steps=1, num_dimensions=1, observations=same, actions=centres, rewards=rewards)
    batch = replace(batch, terminations=np.ones((4, 1), bool))
    for _ in range(300):
        learner.update(batch)
    with torch.no_grad():
        outputs = learner.policy.model.first_token_outputs({"state": torch.zeros(1, 1, 2)})
    assert outputs.q_logits.shape == (1, 1, 4, 21)
    assert outputs.q_values[0, 0].tolist() == pytest.approx([0.0, 0.3, 0.8, 1.0], abs=0.02)


def test_soft_labels_follow_the_noise_of_each_dimension():
    config = make_config(LearningConfig(label_width=1.0), num_bins=8, num_levels=1)
    policy = make_policy(config, num_dimensions=2)
    learner = QTransformerLearner(policy, config, UNIT, [0.0, 0.25])
    labels = learner.labels(torch.tensor([[[4, 4]]]))[0, 0]
    assert labels.sum(dim=-1).tolist() == pytest.approx([1.0, 1.0])
    assert labels[0, 4] > 0.65  # no noise: half a cell
    assert labels[1, 4] == pytest.approx(0.1974 / (0.9773 - 0.0122), abs=2e-2)  # +-0.25 deviations of a quarter
    with pytest.raises(ValueError, match="action_noise must have a number for each of 2 dimensions, got 0"):
        QTransformerLearner(policy, config, UNIT)


@pytest.mark.parametrize("order", ["level_major", "dimension_major"])
def test_labels_of_several_levels_are_those_of_their_dimension(order):
    config = make_config(LearningConfig(label_width=1.0), num_bins=4, num_levels=2, order=order)
    policy = make_policy(config, num_dimensions=2)
    learner = QTransformerLearner(policy, config, UNIT, [0.01, 0.5])
    labels = learner.labels(policy.tokenizer.encode(torch.tensor([[[0.1, 0.1]]])))[0, 0]
    sharpness = labels.amax(dim=-1)
    first = policy.tokenizer.token_dimensions == 0
    assert sharpness[first].min() > sharpness[~first].max()


@pytest.mark.parametrize("backup", ["one_step", "n_step"])
@pytest.mark.parametrize("num_atoms", [1, 11])
def test_bfloat16_is_of_the_matrix_products_alone(backup, num_atoms):
    losses_found = []
    for precision in ("float32", "bfloat16"):
        learning = LearningConfig(backup=backup, precision=precision)
        learner = make_learner(make_config(learning, num_atoms=num_atoms))
        tokens = learner.policy.tokenizer.encode(torch.zeros(4, 3, 3))
        outputs = learner.policy.model({"state": torch.randn(4, 3, 2)}, tokens)
        assert outputs.q_logits.dtype == outputs.density_logits.dtype == torch.float32
        assert {each.dtype for each in learner.policy.parameters()} == {torch.float32}
        figures = learner.update(make_batch())
        losses_found.append(figures["loss"].item())
        assert learner.target.model.is_bfloat16 == (precision == "bfloat16")
    assert losses_found[0] != losses_found[1]
    assert losses_found[0] == pytest.approx(losses_found[1], rel=0.02)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.timeout(900)
def test_a_compiled_learner_takes_the_same_steps():
    figures = []
    for is_compiled in (False, True):
        learner = make_learner(make_config(LearningConfig(compile=is_compiled)))
        figures.append([learner.update(make_batch(seed=seed)) for seed in range(3)])
    for plain, compiled in zip(*figures, strict=True):
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5, msg=name)


def thin(batch, window):
    """The batch as a sampler gives it that loads what is looked at."""
    is_known = batch.is_valid & (batch.terminations | batch.has_successor)
    frames = looked_at(is_known, window, True)
    pictures = batch.observations[CAMERA][np.arange(len(frames))[:, None], frames]
    return replace(batch, observations={**batch.observations, CAMERA: pictures}, frames=frames)


@pytest.mark.parametrize(("window", "environment_steps"), [(2, 5), (3, 2), (3, 3), (2, 1), (1, 4)])
def test_images_that_are_left_out_change_no_target(window, environment_steps):
    num_steps = window + environment_steps - 1
    lengths = np.random.default_rng(0).integers(1, num_steps + 1, size=(8, 1))
    is_valid = np.arange(num_steps) < lengths
    batch = make_image_batch(8, num_steps=num_steps, is_valid=is_valid)
    batch = replace(batch, has_successor=is_valid & (np.arange(num_steps) < lengths - (np.arange(8) % 2)[:, None]))
    learning = LearningConfig(environment_steps=environment_steps)
    learner = make_image_learner(learning, window=window)
    enlarge(learner.target)
    for left, right in zip(*(learner.targets(to_torch(each)) for each in (batch, thin(batch, window))), strict=True):
        torch.testing.assert_close(left, right)


def test_each_image_is_encoded_once_by_each_network():
    """Window 2, five environment steps: the policy judges 2 images a segment, the target network these and 2 more."""
    learner, counts = make_image_learner(window=2), {"policy": 0, "target": 0}
    for name, network in (("policy", learner.policy), ("target", learner.target)):

        def count(module, arguments, name=name):
            counts[name] += arguments[0].shape[:2].numel()

        network.model.encoder.cameras[0].register_forward_pre_hook(count)
    learner.update(thin(make_image_batch(5, num_steps=6), window=2))
    assert counts == {"policy": 10, "target": 20}


def test_images_are_changed_while_training_and_a_resumed_run_changes_them_alike():
    batches, plain = (
        [make_image_batch(seed=seed) for seed in range(4)],
        LearningConfig(image_shift=0.0, colour_jitter=0.0),
    )
    straight, stopped, resumed = make_image_learner(), make_image_learner(), make_image_learner(seed=1)
    for batch in batches:
        straight.update(batch)
    for batch in batches[:2]:
        stopped.update(batch)
    resumed.load_state(*(copied(each) for each in stopped.state()))
    torch.manual_seed(5)
    for batch in batches[2:]:
        resumed.update(batch)
    assert_same_bits(everything(straight), everything(resumed))
    assert make_image_learner(plain).update(batches[0])["loss"] != make_image_learner().update(batches[0])["loss"]


@pytest.mark.parametrize("regularizer", ["floor", "softmax"])
def test_relabelled_segments_teach_what_fails_and_not_what_to_do(regularizer):
    """The rest, and how much each step is imitated, is as if they were not there."""
    learner = make_learner(make_config(LearningConfig(regularizer=regularizer), relabel=0.5))
    told, other = make_batch(2), make_batch(2, seed=1)
    relabelled = replace(other, is_relabelled=np.ones(2, bool))
    alone, others, both = (loss_of(learner, to_torch(each))[1] for each in (told, other, concatenate(told, relabelled)))
    shared = {"squared_error", "target", *(["conservative"] if regularizer == "floor" else [])}
    for name in FIGURES - {"loss", "gradient_norm"}:
        torch.testing.assert_close(both[name], (alone[name] + others[name]) / 2 if name in shared else alone[name])
    loss, _ = loss_of(learner, to_torch(relabelled))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in learner.policy.model.named_parameters()}
    density, value = gradients["density_head.weight"], gradients["q_head.weight"]
    assert density is not None
    assert not density.any()
    assert value is not None
    assert value.any()
