"""Tokens from a grid: a sharp map finds one place and says where it is; a flat one takes the mean."""

from __future__ import annotations

import torch

from qtransformer.encoders.token_learner import TokenLearner


def make_learner(grid=(2, 3), num_tokens=2):
    torch.manual_seed(0)
    learner = TokenLearner(grid, num_channels=2, num_tokens=num_tokens, width=4)
    with torch.no_grad():  # what comes out is what lies under the map: two features, y, x
        learner.project.weight.copy_(torch.eye(4))
        learner.project.bias.zero_()
    return learner


def test_places_are_rows_and_columns_from_minus_one_to_one():
    expected = [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert make_learner().places.tolist() == expected
    assert make_learner(grid=(1, 2)).places.tolist() == [[0, -1], [0, 1]]


def test_a_flat_map_is_the_mean_over_the_grid():
    learner = make_learner()
    torch.nn.init.zeros_(learner.get_parameter("maps.2.weight"))
    x = torch.randn(3, 2, 2, 3)
    tokens, mean = learner(x), learner.norm(x.flatten(2).transpose(1, 2)).mean(dim=1)
    assert tokens.shape == (3, 2, 4)
    torch.testing.assert_close(tokens[..., :2], mean.unsqueeze(1).expand(3, 2, 2))
    torch.testing.assert_close(tokens[..., 2:], torch.zeros(3, 2, 2))  # the grid's middle


def test_a_sharp_map_finds_a_place():
    """The first map looks for the first feature, the second for its absence."""
    learner = make_learner()
    with torch.no_grad():
        learner.get_parameter("maps.0.weight").copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]] * 2))
        learner.get_parameter("maps.0.bias").zero_()
        learner.get_parameter("maps.2.weight").copy_(1000 * torch.eye(4)[:2])
    x = torch.zeros(1, 2, 2, 3)
    x[:, 1] = 1.0  # the norm makes (-1, 1) of it everywhere ...
    x[0, :, 1, 2] = torch.tensor([1.0, 0.0])  # ... but here, the last row and column
    tokens = learner(x)
    torch.testing.assert_close(tokens[0, 0], torch.tensor([1.0, -1.0, 1.0, 1.0]), atol=1e-3, rtol=0)
    places = torch.tensor([[-1.0, -1], [-1, 0], [-1, 1], [1, -1], [1, 0]]).mean(dim=0)
    torch.testing.assert_close(tokens[0, 1, 2:], places, atol=1e-3, rtol=0)


def test_the_order_of_places_is_that_of_the_grid():
    torch.manual_seed(1)
    learner = TokenLearner((2, 3), 2, 2, 4)
    x = torch.randn(1, 2, 2, 3)
    assert not torch.allclose(learner(x), learner(x.flip(3)))
