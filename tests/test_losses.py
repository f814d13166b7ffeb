"""Losses by hand, and the minimiser of eq. 2 in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qtransformer import losses

Q_VALUES = torch.tensor([0.2, 0.5, 0.9, 0.4])
ONE_HOT = torch.tensor([0.0, 0.0, 1.0, 0.0])


def test_temporal_difference_of_a_logged_bin_is_half_the_squared_error():
    assert losses.temporal_difference(Q_VALUES, ONE_HOT, torch.tensor(0.3)).item() == pytest.approx(0.5 * 0.6**2)


def test_temporal_difference_is_weighted_by_soft_labels():
    labels = torch.tensor([0.0, 0.25, 0.5, 0.25])
    expected = 0.5 * (0.25 * 0.2**2 + 0.5 * 0.6**2 + 0.25 * 0.1**2)
    assert losses.temporal_difference(Q_VALUES, labels, torch.tensor(0.3)).item() == pytest.approx(expected)


def test_conservative_is_the_mean_over_the_other_bins():
    expected = 0.5 * (0.2**2 + 0.5**2 + 0.4**2) / 3
    assert losses.conservative(Q_VALUES, ONE_HOT, 0.0).item() == pytest.approx(expected)
    above_floor = 0.5 * (0.1**2 + 0.4**2 + 0.3**2) / 3
    assert losses.conservative(Q_VALUES, ONE_HOT, 0.1).item() == pytest.approx(above_floor)


def test_conservative_spares_neighbours_by_their_share_of_the_label():
    labels = torch.tensor([0.0, 0.2, 0.8, 0.0])  # weights of "other": 1, 3/4, 0, 1
    expected = 0.5 * (0.2**2 + 0.75 * 0.5**2 + 0.4**2) / 2.75
    assert losses.conservative(Q_VALUES, labels, 0.0).item() == pytest.approx(expected)


def test_the_number_of_bins_and_of_rows_does_not_scale_the_loss():
    few, many = (
        losses.conservative(torch.full((3, K), 0.6), F.one_hot(torch.tensor([0, 1, 2]), K).float(), 0.0)
        for K in (4, 256)
    )
    assert few.tolist() == many.tolist() == [pytest.approx(0.18)] * 3


def test_conservative_pulls_values_to_the_floor_not_logits_to_zero():
    logits = torch.tensor([-1.0, 0.0, 1.0, 2.0], requires_grad=True)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(losses.conservative(logits.sigmoid(), ONE_HOT, 0.0), logits)
        logits = (logits - 20 * gradient).detach().requires_grad_()
    values = logits.sigmoid()
    assert values[[0, 1, 3]].max() < 0.05  # logits at 0 would be values of 0.5
    assert logits[2] == 1.0  # the logged bin feels nothing


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_the_minimiser_of_the_whole_loss_is_the_closed_form(alpha):
    # one state; behaviour logs bin b with probability p_b, and its return is target_b
    p, target = torch.tensor([0.05, 0.15, 0.3, 0.5]), torch.tensor([0.9, 0.4, 0.7, 0.2])
    N = len(p)
    labels = torch.eye(N)
    q_values = torch.full((N,), 0.5, requires_grad=True)
    for _ in range(500):
        error = losses.temporal_difference(q_values.expand(N, N), labels, target)
        pull = losses.conservative(q_values.expand(N, N), labels, 0.0)
        (gradient,) = torch.autograd.grad((p * (error + alpha * pull)).sum(), q_values)
        q_values = (q_values - gradient).detach().requires_grad_()
    expected = target * p / (p + alpha * (1 - p) / (N - 1))
    torch.testing.assert_close(q_values, expected, rtol=0, atol=1e-4)


def test_density_is_the_cross_entropy():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert losses.density(logits, ONE_HOT).item() == pytest.approx(-torch.tensor(0.3).log().item())
    expected = F.cross_entropy(logits[None], torch.tensor([[0.1, 0.4, 0.4, 0.1]])).item()
    assert losses.density(logits, torch.tensor([0.1, 0.4, 0.4, 0.1])).item() == pytest.approx(expected)


@given(st.integers(2, 64), st.floats(0.05, 10), st.data())
def test_soft_labels_sum_to_one_and_peak_at_the_logged_bin(num_bins, width, data):
    token = data.draw(st.integers(0, num_bins - 1))
    labels = losses.soft_labels(torch.tensor([token]), num_bins, width)[0]
    assert labels.sum().item() == pytest.approx(1, abs=1e-5)
    assert labels.argmax() == token
    assert (labels[: token + 1].diff() >= 0).all()
    assert (labels[token:].diff() <= 0).all()


def test_soft_labels_by_hand():
    labels = losses.soft_labels(torch.tensor([2]), 5, 1.0)[0]
    near, far = torch.exp(torch.tensor(-0.5)).item(), torch.exp(torch.tensor(-2.0)).item()
    assert labels.tolist() == pytest.approx([each / (1 + 2 * near + 2 * far) for each in (far, near, 1, near, far)])
    assert torch.equal(labels, labels.flip(0))
    cut_off = losses.soft_labels(torch.tensor([0]), 3, 1.0)[0]
    assert cut_off.tolist() == pytest.approx([each / (1 + near + far) for each in (1, near, far)])


def test_width_zero_is_one_hot():
    assert losses.soft_labels(torch.tensor([[2, 0]]), 3, 0.0).tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_advantage_weights_by_hand():
    # mean 0 and standard deviation 1 over the three known steps
    advantages, is_known = torch.tensor([-1.0, 0.0, 1.0, 50.0]), torch.tensor([True, True, True, False])
    weights = losses.advantage_weights(advantages, is_known, 0.5)
    raw = [torch.tensor(each).exp().item() for each in (-0.5, 0.0, 0.5)]
    assert weights.tolist() == pytest.approx([*(each / (sum(raw) / 3) for each in raw), 1.0])


def test_advantage_weights_do_not_depend_on_the_scale_of_returns_and_are_one_on_average():
    advantages = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    is_known = torch.arange(20).view(4, 5) % 7 != 3
    weights = losses.advantage_weights(advantages, is_known, 1.0)
    torch.testing.assert_close(weights, losses.advantage_weights(100 * advantages + 7, is_known, 1.0))
    assert weights[is_known].mean().item() == pytest.approx(1.0)
    order = advantages[is_known].argsort()
    assert (weights[is_known][order].diff() >= 0).all()


def test_advantage_weights_are_bounded():
    advantages = torch.cat([torch.zeros(500), torch.tensor([1e3, -1e3])])
    weights = losses.advantage_weights(advantages, torch.ones(502, dtype=torch.bool), 1.0)
    assert weights[500].item() == pytest.approx(weights[0].item() * torch.tensor(2.0).exp().item())
    assert weights[501].item() == pytest.approx(weights[0].item() * torch.tensor(-3.0).exp().item())


def test_without_sharpness_known_steps_or_differences_all_weigh_alike():
    advantages, is_known = torch.tensor([0.0, 5.0, 1.0]), torch.tensor([True, True, False])
    assert losses.advantage_weights(advantages, is_known, 0.0).tolist() == [1, 1, 1]
    assert losses.advantage_weights(advantages, torch.tensor([True, False, False]), 1.0).tolist() == [1, 1, 1]
    assert losses.advantage_weights(torch.full((3,), 0.3), is_known, 1.0).tolist() == [1, 1, 1]
