"""The two affine maps: what they do to constant elements, to outliers, and to returns."""

from __future__ import annotations

import pytest
import torch

from qtransformer.normalization import ReturnScale, Standardizer


def test_standardised_by_hand():
    standardize = Standardizer([1.0, -2.0], [2.0, 0.5])
    assert standardize(torch.tensor([[1.0, -2.0], [5.0, -1.0]])).tolist() == [[0.0, 0.0], [2.0, 2.0]]


@pytest.mark.parametrize("std", [0.0, 1e-7])
def test_an_element_that_never_varied_maps_to_zero(std):
    standardize = Standardizer([3.0, 0.0], [std, 1.0])
    assert standardize(torch.tensor([[3.0, 1.0], [7.0, 1.0]])).tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_outliers_are_clipped_at_ten_standard_deviations():
    standardize = Standardizer([0.0], [0.5])
    assert standardize(torch.tensor([[4.75], [5.25], [-1e9], [torch.inf]])).tolist() == [[9.5], [10], [-10], [10]]


def test_nan_stays_nan():
    assert Standardizer([0.0], [1.0])(torch.tensor([torch.nan])).isnan().all()


def test_float64_becomes_float32():
    values = Standardizer([1.0], [2.0])(torch.tensor([5.0], dtype=torch.float64))
    assert (values.dtype, values.tolist()) == (torch.float32, [2.0])


def test_statistics_travel_with_the_weights():
    assert {name: each.tolist() for name, each in Standardizer([1.0], [4.0]).state_dict().items()} == {
        "mean": [1.0],
        "inverse_std": [0.25],
    }


def test_return_scale_by_hand_and_back():
    scale = ReturnScale(-4.0, 1.0)
    returns = torch.tensor([-4.0, -1.5, 0.0, 1.0])
    assert scale.to_unit(returns).tolist() == pytest.approx([0.0, 0.5, 0.8, 1.0])
    assert scale.from_unit(scale.to_unit(returns)).tolist() == pytest.approx(returns.tolist())


def test_returns_outside_the_range_go_to_its_end():
    assert ReturnScale(-1.0, 3.0).to_unit(torch.tensor([-2.0, 4.0])).tolist() == [0.0, 1.0]
