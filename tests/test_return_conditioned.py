"""The encoder of a Decision Transformer: the return to go tells, and without one the best return stands in."""

from __future__ import annotations

import pytest
import torch

from qtransformer.batch import ObservationSpec
from qtransformer.config import ModelConfig, RunError
from qtransformer.encoders.return_conditioned import ReturnConditionedEncoder

SPEC, STATISTICS = ObservationSpec("state", (2,), "float32"), {"mean": [0.0, 0.0], "std": [1.0, 1.0]}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ReturnConditionedEncoder((SPEC,), {"state": STATISTICS}, ModelConfig(width=8))


def test_the_return_is_added_to_the_token_of_its_step(encoder):
    states, returns = {"state": torch.randn(2, 3, 2)}, torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.25, 0.25]])
    none, some = encoder({**states, "return_to_go": torch.zeros(2, 3)}), encoder({**states, "return_to_go": returns})
    assert some.shape == (2, 3, 1, 8)
    torch.testing.assert_close(some - none, returns[..., None, None] * encoder.embed_return.weight[:, 0])


def test_without_a_return_the_best_one_stands_in(encoder):
    states = {"state": torch.randn(2, 3, 2)}
    encoder.see(torch.tensor([0.25, 0.75, 0.5]))
    encoder.see(torch.tensor([0.5]))
    told = encoder({**states, "return_to_go": torch.full((2, 3), 0.75)})
    torch.testing.assert_close(encoder(states), told)


def test_the_best_return_travels_with_the_weights(encoder):
    encoder.see(torch.tensor([0.75]))
    other = ReturnConditionedEncoder((SPEC,), {"state": STATISTICS}, ModelConfig(width=8))
    other.load_state_dict(encoder.state_dict())
    assert other.best_return.item() == 0.75


def test_an_observation_must_not_be_called_return_to_go():
    specs = (SPEC, ObservationSpec("return_to_go", (1,), "float32"))
    statistics = {"state": STATISTICS, "return_to_go": {"mean": [0.0], "std": [1.0]}}
    message = r"keys \['return_to_go', 'state'\] must not hold 'return_to_go', which the algorithm adds; rename it"
    with pytest.raises(RunError, match=message):
        ReturnConditionedEncoder(specs, statistics, ModelConfig(width=8))


def test_images_are_told_the_return_too():
    camera = ObservationSpec("camera", (16, 16, 3), "uint8", "image")
    moments = {"state": STATISTICS, "camera": {"mean": [128.0] * 3, "std": [64.0] * 3}}
    encoder = ReturnConditionedEncoder((SPEC, camera), moments, ModelConfig(width=8, image_tokens=2))
    seen = {"state": torch.randn(1, 2, 2), "camera": torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8)}
    none, some = (
        encoder({**seen, "return_to_go": torch.zeros(1, 2)}),
        encoder({**seen, "return_to_go": torch.ones(1, 2)}),
    )
    torch.testing.assert_close(some - none, encoder.embed_return.weight[:, 0].expand(1, 2, 3, 8))
