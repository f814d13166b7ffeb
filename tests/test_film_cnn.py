"""The small network: FiLM by hand, an identity at the start; the size of the grid; pictures do not mix."""

from __future__ import annotations

import pytest
import torch

from qtransformer.encoders.film_cnn import Film, FilmCNN


def films(network):
    found = [each.to_scale_and_shift for each in network.modules() if isinstance(each, Film)]
    return [each for each in found if each is not None]


def test_film_scales_and_shifts_each_channel_by_hand():
    film = Film(num_context=1, num_channels=2)
    assert film.to_scale_and_shift is not None
    with torch.no_grad():
        film.to_scale_and_shift.weight.copy_(torch.tensor([[0.5], [-1.0], [10.0], [20.0]]))  # two gammas, two betas
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    expected = torch.stack([2 * x[0, 0] + 20, -1 * x[0, 1] + 40])[None]
    torch.testing.assert_close(film(x, torch.tensor([[2.0]])), expected)


def test_films_start_as_the_identity_and_learn():
    torch.manual_seed(0)
    network, x = FilmCNN(3, 5, 16), torch.randn(2, 3, 16, 16)
    left, right = network(x, torch.zeros(2, 5)), network(x, torch.randn(2, 5))
    assert torch.equal(left, right)
    right.square().mean().backward()
    gradients = [film.weight.grad for film in films(network)]
    assert [each is not None and bool(each.any()) for each in gradients] == [True] * 4


def test_each_film_directs_the_network_and_none_is_there_without_words():
    torch.manual_seed(0)
    network, x = FilmCNN(3, 5, 16), torch.randn(2, 3, 16, 16)
    before = network(x, torch.ones(2, 5))
    for film in films(network):
        torch.nn.init.normal_(film.weight, std=0.5)
        assert not torch.equal(network(x, torch.ones(2, 5)), before)
        torch.nn.init.zeros_(film.weight)
    wordless = FilmCNN(3, 0, 16)
    assert not [name for name, _ in wordless.named_parameters() if "film" in name]
    assert wordless(x, torch.zeros(2, 0)).shape == before.shape


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (8, 8)), ((96, 128), (12, 16)), ((9, 17), (2, 3))])
def test_the_grid_has_a_place_for_every_eight_pixels(size, grid):
    network = FilmCNN(1, 0, 20)
    assert network.stride == 8
    assert network(torch.zeros(1, 1, *size), torch.zeros(1, 0)).shape == (1, network.num_channels, *grid)
    assert network.num_channels == 24  # whole groups of eight


def test_pictures_do_not_mix():
    torch.manual_seed(0)
    network, x = FilmCNN(3, 2, 16), torch.randn(4, 3, 16, 16)
    context = torch.randn(4, 2)
    together = network(x, context)
    torch.testing.assert_close(together[2:3], network(x[2:3], context[2:3]))
