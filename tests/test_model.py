"""One pass over a segment equals the naive computation, the cache equals the pass, and nothing leaks."""

from __future__ import annotations

import pytest
import torch
from learner_fixtures import enlarge, make_config, make_policy

from qtransformer.model import QTransformer

B, T, N, K = 5, 4, 3, 6


def make_model(num_dimensions: int = N, **changes) -> QTransformer:
    config = make_config(num_bins=K, window=T, **changes)
    return enlarge(make_policy(config, num_dimensions=num_dimensions)).model


@pytest.fixture(params=[{}, {"num_levels": 2, "num_dimensions": 2}, {"num_dimensions": 1}], ids=["3", "2x2", "1"])
def model(request):
    return make_model(**request.param)


def inputs(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(K, (B, T, model.num_action_tokens), generator=generator)
    return {"state": torch.randn(B, T, 2, generator=generator)}, tokens


def cut(observations, steps):
    return {key: value[:, steps] for key, value in observations.items()}


def choose_best(outputs):
    return outputs.q_logits.argmax(dim=-1)


def teacher_forced(model, observations, tokens, step):
    """Outputs at `step` for `tokens` there, other actions elsewhere."""
    others = torch.randint(K, (B, T, model.num_action_tokens), generator=torch.Generator().manual_seed(9))
    others[:, step] = tokens
    return [each[:, step] for each in model(observations, others)]


@torch.no_grad()
def test_a_segment_equals_every_step_computed_with_its_own_window(model):
    observations, tokens = inputs(model)
    at_once = model(observations, tokens)
    assert at_once.q_values.shape == (B, T, model.num_action_tokens, K)
    for step in range(T):
        strangers = torch.zeros_like(tokens[:, : step + 1])  # actions of earlier steps, which must not matter
        strangers[:, -1] = tokens[:, step]
        alone = model(cut(observations, slice(step + 1)), strangers)
        for together, naive in zip(at_once, alone, strict=True):
            torch.testing.assert_close(together[:, step], naive[:, -1], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("num_frames", range(1, T + 1))
def test_cached_decoding_equals_the_pass_over_the_chosen_tokens(model, num_frames):
    observations, _ = inputs(model)
    greedy = model.greedy(observations, torch.full((B,), num_frames), choose_best)
    expected = teacher_forced(model, observations, greedy.tokens, num_frames - 1)
    for cached, forced in zip(greedy.outputs, expected, strict=True):
        torch.testing.assert_close(cached, forced, rtol=0, atol=1e-5)
    assert torch.equal(greedy.outputs.q_logits.argmax(dim=-1), greedy.tokens)


@torch.no_grad()
def test_rows_with_different_numbers_of_frames_decode_side_by_side(model):
    observations, _ = inputs(model)
    num_frames = torch.tensor([1, 2, 3, 4, 2])
    together = model.greedy(observations, num_frames, choose_best)
    for row in range(B):
        alone = model.greedy(cut_row(observations, row), num_frames[row : row + 1], choose_best)
        assert torch.equal(together.tokens[row], alone.tokens[0])
        torch.testing.assert_close(together.outputs.q_logits[row], alone.outputs.q_logits[0], rtol=0, atol=1e-5)


def cut_row(observations, row):
    return {key: value[row : row + 1] for key, value in observations.items()}


@torch.no_grad()
def test_padding_frames_change_nothing_in_greedy(model):
    observations, _ = inputs(model)
    padded = {"state": torch.cat([observations["state"][:, :2], torch.full((B, T - 2, 2), 1e3)], dim=1)}
    num_frames = torch.full((B,), 2)
    for left, right in zip(
        model.greedy(observations, num_frames, choose_best).outputs,
        model.greedy(padded, num_frames, choose_best).outputs,
        strict=True,
    ):
        assert torch.equal(left, right)


@torch.no_grad()
def test_first_token_outputs_are_those_of_the_pass(model):
    observations, tokens = inputs(model)
    for alone, together in zip(model.first_token_outputs(observations), model(observations, tokens), strict=True):
        torch.testing.assert_close(alone, together[:, :, 0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("step", range(T))
def test_an_action_tells_on_the_later_tokens_of_its_own_step_alone(step):
    model = make_model()
    observations, tokens = inputs(model)
    before = model(observations, tokens).q_logits
    for token in range(N):
        changed = tokens.clone()
        changed[:, step, token] = (changed[:, step, token] + 1) % K
        has_changed = (model(observations, changed).q_logits != before).any(dim=-1)
        expected = torch.zeros(B, T, N, dtype=torch.bool)
        expected[:, step, token + 1 :] = True
        assert torch.equal(has_changed, expected)


@torch.no_grad()
@pytest.mark.parametrize("step", range(T))
def test_an_observation_tells_on_its_own_and_later_steps_alone(step):
    model = make_model()
    observations, tokens = inputs(model)
    before = model(observations, tokens).q_logits
    changed = {"state": observations["state"].clone()}
    changed["state"][:, step] += 1
    has_changed = (model(changed, tokens).q_logits != before).any(dim=-1)
    assert not has_changed[:, :step].any()
    assert has_changed[:, step:].all()


def test_values_start_near_the_floor():
    model = make_policy(make_config(num_bins=K, window=T)).model
    observations, tokens = inputs(model)
    assert model(observations, tokens).q_values.sub(0.05).abs().max() < 0.03


@torch.no_grad()
def test_state_values_of_a_segment_equal_those_of_every_window():
    model = make_model(algorithm="implicit_q_learning")
    observations, _ = inputs(model)
    values = model.state_values(observations)
    assert values.shape == (B, T)
    assert ((values > 0) & (values < 1)).all()
    for step in range(T):
        alone = model.state_values(cut(observations, slice(step + 1)))
        torch.testing.assert_close(values[:, step], alone[:, -1], rtol=0, atol=1e-5)
        assert values[:, step].std() > 1e-4  # the observation tells


def test_state_values_start_near_the_floor():
    model = make_policy(make_config(window=T, algorithm="implicit_q_learning")).model
    assert model.state_values({"state": torch.randn(B, T, 2)}).sub(0.05).abs().max() < 0.03


def test_only_implicit_q_learning_has_a_value_head():
    assert make_model().value_head is None
