"""Reading a table: the row that is asked for, in whatever place."""

from __future__ import annotations

import pytest
import torch

from qtransformer.encoders.tables import TableReader


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


class _Constant(torch.nn.Module):
    def __init__(self, size, value):
        super().__init__()
        self.values = torch.full((size,), value)

    def forward(self, x):
        return self.values
