"""The state encoder: which keys, in which order, standardised; tables and text."""

from __future__ import annotations

import pytest
import torch

from qtransformer.batch import ObservationSpec
from qtransformer.encoders.state import StateEncoder
from qtransformer.encoders.tables import WordReader

SPECS = (ObservationSpec("joints", (2, 2, 1), "float64"), ObservationSpec("grip", (), "float32"))
STATISTICS = {
    "joints": {"mean": [0.0, 1.0, 2.0, 3.0], "std": [1.0, 1.0, 2.0, 0.0]},
    "grip": {"mean": [0.5], "std": [0.5]},
}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return StateEncoder(SPECS, STATISTICS, width=8)


def observe(joints, grip):
    return {"joints": torch.tensor(joints)[None, None, ..., None], "grip": torch.tensor(grip)[None, None]}


def test_all_keys_are_standardised_and_joined_in_the_order_of_the_spec(encoder):
    tokens = encoder(observe([[1.0, 1.0], [4.0, 99.0]], 1.0))
    assert tokens.shape == (1, 1, 1, 8)
    torch.testing.assert_close(tokens[0, 0, 0], encoder.embed(torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])))


def test_every_element_that_varied_tells(encoder):
    base = encoder(observe([[0.0, 0.0], [0.0, 0.0]], 0.0))
    for joints, grip in (([[1.0, 0.0], [0.0, 0.0]], 0.0), ([[0.0, 0.0], [1.0, 0.0]], 0.0), ([[0.0, 0.0]] * 2, 1.0)):
        assert not torch.equal(encoder(observe(joints, grip)), base)
    assert torch.equal(encoder(observe([[0.0, 0.0], [0.0, 1.0]], 0.0)), base)  # std 0 in the log


def test_float64_observations_are_taken(encoder):
    single = observe([[0.5, 0.0], [0.0, 0.0]], 0.25)
    double = {key: value.double() for key, value in single.items()}
    assert torch.equal(encoder(double), encoder(single))


def test_steps_do_not_mix(encoder):
    rows = torch.randn(2, 3, 2, 2, 1), torch.randn(2, 3)
    tokens = encoder({"joints": rows[0], "grip": rows[1]})
    alone = encoder({"joints": rows[0][1:, 2:], "grip": rows[1][1:, 2:]})
    torch.testing.assert_close(tokens[1, 2], alone[0, 0])


def test_a_missing_key_is_an_error(encoder):
    with pytest.raises(KeyError, match="grip"):
        encoder({"joints": torch.zeros(1, 1, 2, 2, 1)})


TABLE = ObservationSpec("objects", (2, 3), "float32")
TEXT = ObservationSpec("told", (), "str", "text")
MOMENTS = {
    **STATISTICS,
    "objects": {"mean": [0.0] * 6, "std": [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]},
    "told": {"mean": [0.0] * 4, "std": [1.0] * 4},
}


def test_a_table_is_read_standardised_by_all_else_and_by_the_words_alone():
    encoder = StateEncoder((*SPECS, TABLE, TEXT), MOMENTS, width=8)
    assert encoder.shapes == {"joints": (2, 2, 1), "grip": (), "objects": (2, 3), "told": (4,)}
    assert (encoder.tables, encoder.text_keys) == (("objects",), ("told",))
    table, told = torch.randn(1, 1, 2, 3), torch.randn(1, 1, 4)
    observations = {**observe([[0.0, 1.0], [2.0, 3.0]], 0.5), "objects": table, "told": told}
    context = torch.cat([torch.zeros(1, 1, 5), told], dim=-1)
    rows = table / torch.tensor([[1.0], [2.0]])
    found, named = encoder.readers[0](rows, context), encoder.named[0](rows, told)
    expected = encoder.embed(torch.cat([context, found, named], dim=-1))
    torch.testing.assert_close(encoder(observations), expected.unsqueeze(-2))


def test_the_grounding_loss_is_that_of_the_first_steps():
    encoder = StateEncoder((*SPECS, TABLE, TEXT), MOMENTS, width=8)
    table, told = torch.randn(3, 2, 2, 3), torch.randn(3, 2, 4)
    observations = {**observe([[0.0, 1.0], [2.0, 3.0]], 0.5), "objects": table, "told": told}
    observations = {key: value.expand(3, 2, *value.shape[2:]) for key, value in observations.items()}
    (reader,) = encoder.named
    assert isinstance(reader, WordReader)
    expected = reader.grounding_loss(table[:, 0] / torch.tensor([[1.0], [2.0]]), told[:, 0])
    torch.testing.assert_close(encoder.grounding_loss(observations), expected)


def test_a_table_may_stand_alone():
    encoder = StateEncoder((TABLE,), MOMENTS, width=8)
    assert not encoder.named
    table = torch.randn(2, 3, 2, 3)
    tokens = encoder({"objects": table})
    assert tokens.shape == (2, 3, 1, 8)
    assert not torch.equal(tokens, encoder({"objects": table + 1}))
