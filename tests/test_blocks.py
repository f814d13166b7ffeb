"""Masks and heads by hand; a cached block equals the block over the whole sequence."""

from __future__ import annotations

import torch

from qtransformer.blocks import Block, TokenHead, causal_mask, prefix_mask


def test_causal_mask_by_hand():
    # three steps of one token
    assert causal_mask(3, 1).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    # two steps of two tokens, which see each other
    assert causal_mask(2, 2).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_prefix_mask_by_hand():
    # one observation token, then two action tokens
    assert prefix_mask(1, 2).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    # two observation tokens see each other
    assert prefix_mask(2, 1).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]


@torch.no_grad()
def test_a_block_goes_on_from_its_cache():
    torch.manual_seed(0)
    block, x = Block(width=8, num_heads=2).eval(), torch.randn(3, 4, 8)
    whole, _ = block(x, prefix_mask(2, 2))
    start, past = block(x[:, :2], None)
    torch.testing.assert_close(start, whole[:, :2])
    for position in (2, 3):
        one, past = block(x[:, position : position + 1], None, past)
        torch.testing.assert_close(one, whole[:, position : position + 1])


def test_each_slot_has_its_own_head():
    head = TokenHead(num_slots=2, width=1, num_outputs=2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]]]))
        head.bias.copy_(torch.tensor([[0.5, 0.0], [0.0, 5.0]]))
    x = torch.tensor([[[[1.0], [1.0]], [[2.0], [3.0]]]])
    assert head(x).tolist() == [[[[1.5, 2.0], [10.0, 25.0]], [[2.5, 4.0], [30.0, 65.0]]]]
    assert head.slot(torch.tensor([3.0]), 1).tolist() == [30.0, 65.0]
