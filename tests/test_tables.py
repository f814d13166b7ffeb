"""Reading a table: the row that is asked for, in whatever place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from qtransformer.encoders.tables import TableReader, WordReader


@pytest.fixture
def reader():
    torch.manual_seed(0)
    return TableReader((3, 4), num_context=2, width=8)


def test_one_vector_for_each_step(reader):
    found = reader(torch.randn(5, 2, 3, 4), torch.randn(5, 2, 2))
    assert found.shape == (5, 2, reader.num_features)
    alone = reader(torch.ones(3, 4), torch.ones(2))
    assert alone.shape == (reader.num_features,)


def test_where_a_row_stands_is_told_by_its_place_alone(reader):
    table, context = torch.randn(3, 4), torch.randn(2)
    turned = table[[2, 0, 1]]
    assert not torch.allclose(reader(table, context), reader(turned, context))
    reader.places.data.zero_()
    torch.testing.assert_close(reader(table, context), reader(turned, context))


def test_the_question_chooses_the_row(reader):
    """Keys and values made by hand: a head's key is the row's first column, its value the last one."""
    reader.places = torch.nn.Parameter(torch.zeros(3, 4))
    reader.rows = torch.nn.Identity()
    reader.keys_values = torch.nn.Linear(4, 2 * reader.num_features)
    with torch.no_grad():
        reader.keys_values.bias.zero_()
        reader.keys_values.weight.zero_()
        reader.keys_values.weight[: reader.num_features, 0] = 1.0
        reader.keys_values.weight[reader.num_features :, 3] = 1.0
    table = torch.tensor([[-1.0, 0, 0, 5.0], [0.0, 0, 0, 6.0], [1.0, 0, 0, 7.0]])
    for sign, expected in ((100.0, 7.0), (-100.0, 5.0), (0.0, 6.0)):
        reader.queries = torch.nn.Sequential(_Constant(reader.num_features, sign))
        torch.testing.assert_close(reader(table, torch.zeros(2)), torch.full((reader.num_features,), expected))


@pytest.fixture
def named():
    """Both heads: a row's key is its first two columns, its value the last two; words ask for the key they equal."""
    reader = WordReader(num_columns=4, num_words=2, width=4)
    by_hand: Any = reader
    by_hand.rows, by_hand.queries = torch.nn.Identity(), torch.nn.Linear(2, 4, bias=False)
    columns, words = torch.eye(4), torch.eye(2)
    with torch.no_grad():
        reader.keys_values.bias.zero_()
        reader.keys_values.weight.copy_(columns[[0, 1, 0, 1, 2, 3, 2, 3]])
        by_hand.queries.weight.copy_(words[[0, 1, 0, 1]] * 2**0.5)  # the width of a head is 2
    return reader


RED, BLUE = [1.0, 0.0], [0.0, 1.0]


def test_words_read_the_row_that_they_name(named):
    table = torch.tensor([[*RED, 0.5, 6.0], [*BLUE, 0.25, 8.0]])
    sharp, r = 100.0, 0.5**0.5
    waves = {  # sin, then cos, of pi, 2 pi and 4 pi times each number of the row
        0.5: ([0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], [-1, 1, 0, 1, 1, 1, -1, 1, 1, 1, 1, 1]),
        0.25: ([0, 0, r, 0, 0, 0, 1, 0, 0, 0, 0, 0], [1, -1, r, 1, 1, 1, 0, 1, 1, 1, -1, 1]),
    }
    for words, (value, other) in ((RED, (0.5, 6.0)), (BLUE, (0.25, 8.0))):
        found = named(table, sharp * torch.tensor(words))
        sines, cosines = waves[value]
        expected = [value, other, *words, value, other, *sines, *cosines]  # the value, then the row itself
        torch.testing.assert_close(found, torch.tensor(expected * 2), atol=1e-5, rtol=0)


def test_the_grounding_loss_by_hand(named):
    """Two heads match alike: a word at its own table scores 2 log(e^s + 1), at the other one 2 log 2."""
    empty = [0.0, 0.0, 0.0, 0.0]
    tables = torch.tensor([[[*RED, 0.0, 0.0], empty], [[*BLUE, 0.0, 0.0], empty]])
    for strength in (0.0, 1.0, 4.0):
        words = strength * torch.tensor([RED, BLUE])
        own, other = 2 * math.log(math.exp(strength) + 1), 2 * math.log(2)
        expected = math.log(1 + math.exp(other - own))
        assert named.grounding_loss(tables, words).item() == pytest.approx(expected, rel=1e-5)
        assert named.grounding_loss(tables, words.flip(0)).item() == pytest.approx(
            math.log(1 + math.exp(own - other)), rel=1e-5
        )


def test_words_are_learned_without_a_label():
    """Tables of three of six kinds in any order, words that name one of them: afterwards they find it."""
    torch.manual_seed(0)
    num_kinds, codes = 6, torch.randn(6, 8)
    reader = WordReader(num_columns=num_kinds, num_words=8, width=16)
    optimizer = torch.optim.Adam(reader.parameters(), 3e-3)

    def draw(size):
        kinds = torch.rand(size, num_kinds).argsort(dim=1)[:, :3]
        named = torch.randint(3, (size,))
        return torch.eye(num_kinds)[kinds], codes[kinds[torch.arange(size), named]], named

    for _ in range(200):
        tables, words, _ = draw(32)
        optimizer.zero_grad()
        reader.grounding_loss(tables, words).backward()
        optimizer.step()
    tables, words, named = draw(200)
    queries, keys, _ = reader._asked(tables, words)
    found = torch.einsum("ihd,irhd->irh", queries, keys).argmax(dim=1)
    assert (found == named.unsqueeze(-1)).float().mean() > 0.95


class _Constant(torch.nn.Module):
    def __init__(self, size, value):
        super().__init__()
        self.values = torch.full((size,), value)

    def forward(self, x):
        return self.values
