"""Actions to tokens and back: identities over all grids, the size of the error, the order of the tokens."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from qtransformer.batch import ActionSpec
from qtransformer.config import TokenConfig
from qtransformer.tokens import ActionTokenizer

GRIDS = st.sampled_from([(2, 1), (3, 1), (32, 1), (256, 1), (2, 3), (5, 2), (16, 2), (16, 3)])
LIMITS = st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 20)), min_size=1, max_size=4)


def make_tokenizer(limits, num_bins, num_levels=1):
    spec = ActionSpec(tuple(low for low, _ in limits), tuple(low + width for low, width in limits))
    return ActionTokenizer(spec, TokenConfig(num_bins, num_levels))


@given(LIMITS, GRIDS, st.integers(0, 999))
def test_encode_undoes_decode(limits, grid, seed):
    tokenizer = make_tokenizer(limits, *grid)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(tokenizer.num_bins, (20, tokenizer.num_action_tokens), generator=generator)
    centres = tokenizer.decode(tokens)
    assert torch.equal(tokenizer.encode(centres), tokens)
    assert torch.equal(tokenizer.decode(tokenizer.encode(centres)), centres)


@given(LIMITS, GRIDS, st.integers(0, 999))
def test_the_error_is_at_most_half_a_cell(limits, grid, seed):
    tokenizer = make_tokenizer(limits, *grid)
    span = tokenizer.high - tokenizer.low
    actions = tokenizer.low + span * torch.rand((50, len(limits)), generator=torch.Generator().manual_seed(seed))
    errors = (tokenizer.decode(tokenizer.encode(actions)) - actions).abs()
    rounding = 1e-6 * (tokenizer.low.abs() + span)
    assert (errors <= 0.5 * span / grid[0] ** grid[1] + rounding).all()


@given(LIMITS, GRIDS)
def test_limits_and_beyond_fall_into_the_outermost_cells(limits, grid):
    tokenizer = make_tokenizer(limits, *grid)
    low, high = tokenizer.low, tokenizer.high
    assert (tokenizer.encode(torch.stack([low, low - 1, low - 1e6])) == 0).all()
    assert (tokenizer.encode(torch.stack([high, high + 1, high + 1e6])) == grid[0] - 1).all()


def test_cells_by_hand():
    tokenizer = make_tokenizer([(-1.0, 2.0)], num_bins=4)  # edges -1, -0.5, 0, 0.5, 1
    actions = torch.tensor([[-1.0], [-0.51], [-0.5], [0.0], [0.49], [0.99], [1.0]])
    assert tokenizer.encode(actions).squeeze(-1).tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert tokenizer.decode(torch.arange(4).unsqueeze(-1)).squeeze(-1).tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_coarse_tokens_of_all_dimensions_come_first():
    tokenizer = make_tokenizer([(0.0, 16.0), (0.0, 32.0)], num_bins=4, num_levels=2)
    # cells of width 1 and 2: 5.5 is cell 5 = 1 * 4 + 1, and 29.0 is cell 14 = 3 * 4 + 2
    tokens = tokenizer.encode(torch.tensor([5.5, 29.0]))
    assert tokens.tolist() == [1, 3, 1, 2]
    assert tokenizer.decode(tokens).tolist() == [5.5, 29.0]
    assert (tokenizer.num_action_tokens, tokenizer.num_cells) == (4, 16)
