"""Losses by hand, their gradients, and their minimisers in closed form."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qtransformer import losses

Q_VALUES = torch.tensor([0.2, 0.5, 0.9, 0.4])
ONE_HOT = torch.tensor([0.0, 0.0, 1.0, 0.0])


def pull_to_floor(q_values, others, floor):
    return losses.squared_error(q_values, others, q_values.new_full(q_values.shape[:-1], floor))


def test_the_squared_error_of_a_logged_bin_is_half_the_squared_error():
    assert losses.squared_error(Q_VALUES, ONE_HOT, torch.tensor(0.3)).item() == pytest.approx(0.5 * 0.6**2)


def test_the_squared_error_is_weighted_by_soft_labels():
    labels = torch.tensor([0.0, 0.25, 0.5, 0.25])
    expected = 0.5 * (0.25 * 0.2**2 + 0.5 * 0.6**2 + 0.25 * 0.1**2)
    assert losses.squared_error(Q_VALUES, labels, torch.tensor(0.3)).item() == pytest.approx(expected)


def test_the_floor_term_is_the_mean_over_the_other_bins():
    others = losses.other_weights(ONE_HOT)
    assert others.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    expected = 0.5 * (0.2**2 + 0.5**2 + 0.4**2) / 3
    assert pull_to_floor(Q_VALUES, others, 0.0).item() == pytest.approx(expected)
    above_floor = 0.5 * (0.1**2 + 0.4**2 + 0.3**2) / 3
    assert pull_to_floor(Q_VALUES, others, 0.1).item() == pytest.approx(above_floor)


def test_neighbours_count_as_others_by_how_far_they_are_from_the_label():
    labels = torch.tensor([0.0, 0.2, 0.8, 0.0])  # 1, 3/4, 0, 1
    assert losses.other_weights(labels).tolist() == pytest.approx([1 / 3, 0.25, 0, 1 / 3])
    expected = 0.5 * (0.2**2 + 0.75 * 0.5**2 + 0.4**2) / 3
    assert pull_to_floor(Q_VALUES, losses.other_weights(labels), 0.0).item() == pytest.approx(expected)
    # where all bins are as likely as the logged one, none is another
    assert losses.other_weights(torch.full((2, 4), 0.25)).tolist() == [[0.0] * 4] * 2


def test_gradients_of_both_terms_are_exact():
    generator = torch.Generator().manual_seed(0)
    q_values = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    targets = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: losses.squared_error(q, labels, targets), q_values)
    assert torch.autograd.gradcheck(lambda q: pull_to_floor(q, labels, 0.1), q_values)
    upstream = torch.rand(2, 3, generator=generator, dtype=torch.float64)  # the mask and the mean of the learner
    (gradient,) = torch.autograd.grad(losses.squared_error(q_values, labels, targets), q_values, upstream)
    expected = upstream.unsqueeze(-1) * labels * (q_values - targets.unsqueeze(-1))
    torch.testing.assert_close(gradient, expected.detach())


def test_the_inputs_of_both_terms_are_left_alone():
    q_values, labels, targets = Q_VALUES.clone(), ONE_HOT.clone(), torch.tensor(0.3)
    losses.squared_error(q_values, labels, targets)
    pull_to_floor(q_values, labels, 0.0)
    assert (q_values.tolist(), labels.tolist(), targets.item()) == (
        Q_VALUES.tolist(),
        ONE_HOT.tolist(),
        pytest.approx(0.3),
    )


def test_the_softmax_regularizer_by_hand():
    exponentials = torch.tensor([0.2, 0.5, 0.9, 0.4]).exp().sum().log().item()
    assert losses.softmax_regularizer(Q_VALUES, ONE_HOT, 1.0).item() == pytest.approx(exponentials - 0.9)
    sharp = 0.1 * torch.tensor([2.0, 5.0, 9.0, 4.0]).exp().sum().log().item()
    assert losses.softmax_regularizer(Q_VALUES, ONE_HOT, 0.1).item() == pytest.approx(sharp - 0.9, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_the_gradient_of_the_softmax_regularizer_is_softmax_minus_label(temperature):
    q_values = Q_VALUES.clone().requires_grad_()
    labels = torch.tensor([0.0, 0.25, 0.5, 0.25])
    (gradient,) = torch.autograd.grad(losses.softmax_regularizer(q_values, labels, temperature), q_values)
    torch.testing.assert_close(gradient, (Q_VALUES / temperature).softmax(dim=-1) - labels)


def test_the_number_of_bins_and_of_rows_does_not_scale_the_loss():
    few, many = (pull_to_floor(torch.full((3, K), 0.6), losses.other_weights(torch.eye(K)[:3]), 0.0) for K in (4, 256))
    assert few.tolist() == many.tolist() == [pytest.approx(0.18)] * 3


def test_conservative_pulls_values_to_the_floor_not_logits_to_zero():
    logits = torch.tensor([-1.0, 0.0, 1.0, 2.0], requires_grad=True)
    for _ in range(300):
        pull = pull_to_floor(logits.sigmoid(), losses.other_weights(ONE_HOT), 0.0)
        (gradient,) = torch.autograd.grad(pull, logits)
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
        error = losses.squared_error(q_values.expand(N, N), labels, target)
        pull = pull_to_floor(q_values.expand(N, N), losses.other_weights(labels), 0.0)
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


def normal_mass(low, high, width):
    return NormalDist(0.0, width).cdf(high) - NormalDist(0.0, width).cdf(low)


def test_soft_labels_by_hand():
    labels = losses.soft_labels(torch.tensor([2]), 5, 1.0)[0]
    far, near, own = (normal_mass(each - 0.5, each + 0.5, 1.0) for each in (-2, -1, 0))
    assert labels.tolist() == pytest.approx([each / (own + 2 * near + 2 * far) for each in (far, near, own, near, far)])
    cut_off = losses.soft_labels(torch.tensor([0]), 3, 1.0)[0]
    assert cut_off.tolist() == pytest.approx([each / (own + near + far) for each in (own, near, far)])


def test_coarse_labels_by_hand():
    # 3 bins of 4 cells; the logged cell 5 is centred at 5.5, in the bin from 4 to 8
    labels = losses.soft_labels(torch.tensor([5]), 3, 2.0, cells_per_bin=4)[0]
    masses = [normal_mass(low - 5.5, low + 4 - 5.5, 2.0) for low in (0, 4, 8)]
    assert labels.tolist() == pytest.approx([each / sum(masses) for each in masses])


def test_the_label_table_by_hand():
    table = losses.label_table(2, 2, 0.25)  # 4 cells, one of them the width: rows for 4 cells, then for 2
    coarse, fine = table[:4], table[4:]
    near, far = normal_mass(-0.5, 1.5, 1.0), normal_mass(1.5, 3.5, 1.0)  # of cell 0: its own half, the other half
    assert coarse[0].tolist() == pytest.approx([near / (near + far), far / (near + far)])
    assert coarse[3].tolist() == pytest.approx(coarse[0].flip(0).tolist())
    assert coarse[1, 1] > 2 * coarse[0, 1]  # cell 1 lies at the border
    own, next_to_it = normal_mass(-0.5, 0.5, 1.0), normal_mass(0.5, 1.5, 1.0)
    assert fine[0].tolist() == pytest.approx([own / (own + next_to_it), next_to_it / (own + next_to_it)])
    torch.testing.assert_close(table.sum(dim=-1), torch.ones(6))


@pytest.mark.parametrize("width", [0.0, 0.1])
def test_the_label_table_of_one_level_is_the_soft_labels(width):
    assert torch.equal(losses.label_table(32, 1, width), losses.soft_labels(torch.arange(32), 32, 32 * width))


def test_the_label_table_of_width_zero_is_one_hot():
    table = losses.label_table(3, 2, 0.0)
    assert table.argmax(dim=-1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2]
    assert table.sum() == len(table) == 12


def test_width_zero_is_one_hot():
    assert losses.soft_labels(torch.tensor([[2, 0]]), 3, 0.0).tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_expectile_by_hand():
    values, targets = torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.1])
    assert losses.expectile(values, targets, 0.9).tolist() == pytest.approx([0.9 * 0.2**2, 0.1 * 0.4**2])
    half = losses.squared_error(values.unsqueeze(-1), torch.ones(2, 1), targets)
    torch.testing.assert_close(losses.expectile(values, targets, 0.5), half)


@pytest.mark.parametrize(("level", "expected"), [(0.5, 0.3), (0.75, 0.5), (1.0, 0.9)])
def test_the_minimiser_of_the_expectile_loss(level, expected):
    # targets 0.1 (three of four) and 0.9: level (0.9 - v) = 3 (1 - level) (v - 0.1)
    targets, value = torch.tensor([0.1, 0.1, 0.1, 0.9]), torch.tensor(0.0, requires_grad=True)
    for _ in range(500):
        (gradient,) = torch.autograd.grad(losses.expectile(value.expand(4), targets, level).sum(), value)
        value = (value - 0.1 * gradient).detach().requires_grad_()
    assert value.item() == pytest.approx(expected, abs=1e-4)


def test_temporal_cross_entropy_by_hand():
    # 2 bins x 3 atoms
    distributions = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    targets, labels = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([0.75, 0.25])
    logs = distributions.log().tolist()
    crosses = [-sum(share * log for share, log in zip([0.25, 0.5, 0.25], each, strict=True)) for each in logs]
    found = losses.temporal_cross_entropy(distributions.log() + 3, labels, targets)
    assert found.item() == pytest.approx(0.75 * crosses[0] + 0.25 * crosses[1])


def test_the_gradient_of_the_temporal_cross_entropy_is_softmax_minus_target_by_label():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 7, generator=generator, requires_grad=True)
    labels = torch.rand(2, 4, 3, generator=generator)
    targets = torch.rand(2, 4, 7, generator=generator).softmax(dim=-1)
    (gradient,) = torch.autograd.grad(losses.temporal_cross_entropy(logits, labels, targets).sum(), logits)
    expected = labels.unsqueeze(-1) * (logits.softmax(dim=-1) - targets.unsqueeze(-2))
    torch.testing.assert_close(gradient, expected.detach())


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
