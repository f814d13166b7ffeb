"""Actions to tokens and back: identities over all grids, the size of the error, both kinds of cells, both orders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qtransformer import losses
from qtransformer.batch import ActionSpec
from qtransformer.config import RunError, TokenConfig
from qtransformer.tokens import ActionTokenizer

GRIDS = st.sampled_from([(2, 1), (3, 1), (32, 1), (256, 1), (2, 3), (5, 2), (16, 2), (16, 3)])
LIMITS = st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 20)), min_size=1, max_size=4)


def make_tokenizer(limits, num_bins, num_levels=1, **changes):
    spec = ActionSpec(tuple(low for low, _ in limits), tuple(low + width for low, width in limits))
    return ActionTokenizer(spec, TokenConfig(num_bins, num_levels, **changes))


def make_quantile_tokenizer(centres, low, high, num_levels=1):
    spec = ActionSpec((low,) * len(centres), (high,) * len(centres))
    num_bins = round(len(centres[0]) ** (1 / num_levels))
    return ActionTokenizer(spec, TokenConfig(num_bins, num_levels, binning="quantile"), centres)


@settings(deadline=None)
@given(LIMITS, GRIDS, st.integers(0, 999))
def test_encode_undoes_decode(limits, grid, seed):
    tokenizer = make_tokenizer(limits, *grid)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(tokenizer.num_bins, (20, tokenizer.num_action_tokens), generator=generator)
    centres = tokenizer.decode(tokens)
    assert torch.equal(tokenizer.encode(centres), tokens)
    assert torch.equal(tokenizer.decode(tokenizer.encode(centres)), centres)


@settings(deadline=None)
@given(LIMITS, GRIDS, st.integers(0, 999))
def test_the_error_is_at_most_half_a_cell(limits, grid, seed):
    tokenizer = make_tokenizer(limits, *grid)
    span = tokenizer.high - tokenizer.low
    actions = tokenizer.low + span * torch.rand((50, len(limits)), generator=torch.Generator().manual_seed(seed))
    errors = (tokenizer.decode(tokenizer.encode(actions)) - actions).abs()
    rounding = 1e-6 * (tokenizer.low.abs() + span)
    assert (errors <= 0.5 * span / grid[0] ** grid[1] + rounding).all()


@settings(deadline=None)
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


# Two dimensions of cells of width 1 and 2: 5.5 is cell 5 = 1 * 4 + 1, and 29.0 is cell 14 = 3 * 4 + 2
@pytest.mark.parametrize(("order", "tokens"), [("level_major", [1, 3, 1, 2]), ("dimension_major", [1, 1, 3, 2])])
def test_the_order_of_coarse_to_fine_tokens(order, tokens):
    tokenizer = make_tokenizer([(0.0, 16.0), (0.0, 32.0)], num_bins=4, num_levels=2, order=order)
    assert tokenizer.encode(torch.tensor([5.5, 29.0])).tolist() == tokens
    assert tokenizer.decode(torch.tensor(tokens)).tolist() == [5.5, 29.0]
    assert (tokenizer.num_action_tokens, tokenizer.num_cells) == (4, 16)


@settings(deadline=None)
@given(LIMITS, GRIDS, st.integers(0, 999))
def test_both_orders_hold_the_same_tokens(limits, grid, seed):
    by_level, by_dimension = (make_tokenizer(limits, *grid, order=each) for each in ("level_major", "dimension_major"))
    actions = 20 * torch.rand((30, len(limits)), generator=torch.Generator().manual_seed(seed)) - 10
    first, second = by_level.encode(actions), by_dimension.encode(actions)
    assert torch.equal(first.view(30, grid[1], -1), second.view(30, -1, grid[1]).transpose(1, 2))
    assert torch.equal(by_level.decode(first), by_dimension.decode(second))


RANGES = [(-1.0, 2.0), (-0.0028, 3.7028), (-2.8973, 5.7946), (0.0, 0.08), (-100.0, 99.0)]


@pytest.mark.parametrize("grid", [(256, 1), (16, 2), (32, 1), (3, 4)])
def test_uniform_cells_are_the_floor_of_the_share_of_the_range(grid):
    tokenizer = make_tokenizer(RANGES, *grid, order="dimension_major")
    low, span = tokenizer.low, tokenizer.high - tokenizer.low
    unit = torch.rand((4000, len(RANGES)), generator=torch.Generator().manual_seed(0))
    share = ((low + span * unit) - low) / span * tokenizer.num_cells
    is_inside = (share - share.round()).abs() > 1e-4 * tokenizer.num_cells / 256  # float32 decides at the borders
    cells = (tokenizer.encode(low + span * unit).view(4000, -1, grid[1]) * tokenizer.places).sum(dim=-1)
    assert is_inside.float().mean() > 0.99
    assert torch.equal(cells[is_inside], share.floor().long()[is_inside])


@pytest.mark.parametrize("order", ["level_major", "dimension_major"])
@pytest.mark.parametrize("grid", [(256, 1), (16, 2), (64, 2), (2, 12)])
def test_every_cell_of_every_range_comes_back(grid, order):
    tokenizer = make_tokenizer(RANGES, *grid, order=order)
    actions = tokenizer.centres.T
    assert torch.equal(tokenizer.decode(tokenizer.encode(actions)), actions)
    tokens, by_level, D = tokenizer.encode(actions), order == "level_major", len(RANGES)
    digits = tokens.view(-1, grid[1], D).transpose(1, 2) if by_level else tokens.view(-1, D, grid[1])
    cells = digits @ tokenizer.places
    assert torch.equal(cells, torch.arange(grid[0] ** grid[1]).unsqueeze(1).expand_as(cells))
    expected = np.linspace([each[0] for each in RANGES], [sum(each) for each in RANGES], 2 * len(actions) + 1)[1::2]
    np.testing.assert_allclose(actions, expected, rtol=1e-6, atol=1e-8)


def test_quantile_cells_by_hand():
    tokenizer = make_quantile_tokenizer([[-0.5, 0.0, 0.25, 1.0]], -1.0, 1.0)
    assert tokenizer.edges.tolist() == [[-1.0, -0.25, 0.125, 0.625, 1.0]]
    actions = torch.tensor([[-1.0], [-0.26], [-0.25], [0.124], [0.125], [0.624], [0.625], [1.0], [7.0]])
    assert tokenizer.encode(actions).squeeze(-1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert tokenizer.decode(torch.arange(4).unsqueeze(-1)).squeeze(-1).tolist() == [-0.5, 0.0, 0.25, 1.0]


@settings(deadline=None)
@given(st.sampled_from([(2, 1), (32, 1), (16, 2)]), st.integers(0, 999))
def test_quantile_centres_come_back_and_every_action_goes_to_the_nearest(grid, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = (torch.rand((3, grid[0] ** grid[1]), generator=generator).double() + 0.05).cumsum(dim=1)
    centres = 7 * (centres - centres[:, :1]) / centres[:, -1:] - 3  # the first one is the lower limit
    tokenizer = make_quantile_tokenizer(centres.tolist(), -3.0, 4.5, grid[1])
    assert torch.equal(tokenizer.decode(tokenizer.encode(tokenizer.centres.T)), tokenizer.centres.T)
    actions = 7.5 * torch.rand((50, 3), generator=generator) - 3
    errors = (tokenizer.decode(tokenizer.encode(actions)) - actions).abs()
    nearest = (centres.T - actions.unsqueeze(1).double()).abs().amin(dim=1)
    torch.testing.assert_close(errors.double(), nearest, rtol=0, atol=1e-5)


def test_limits_that_coincide_leave_one_action():
    tokenizer = make_tokenizer([(0.3, 0.0), (-1.0, 2.0)], num_bins=4)
    assert tokenizer.decode(tokenizer.encode(torch.tensor([0.3, 0.1]))).tolist() == pytest.approx([0.3, 0.25])
    assert tokenizer.decode(torch.tensor([2, 2]))[0].item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("binning", "centres", "message"),
    [
        ("quantile", None, r"centres \(none\) must be given for quantile bins .* got quantile bins; take those"),
        ("uniform", [[0.0, 0.5]], r"centres \(given\) must be given for quantile bins and for them alone, got uniform"),
        ("quantile", [[0.0, 0.1, 0.2]], r"centres \(1, 3\) must be \(1, 2\) numbers inside the action limits; compute"),
        ("quantile", [[0.0, 1.1]], r"centres \(1, 2\) must be \(1, 2\) numbers inside the action limits"),
        ("quantile", [[-1.1, 0.0]], "inside the action limits"),
        ("quantile", [[0.0, float("nan")]], "inside the action limits"),
        ("quantile", [[0.5, 0.4]], r"action dimension 0: 2 cells between -1.0 and 1.0 must have centres that increase"),
        ("quantile", [[0.5, 0.5 + 1e-9]], "increase by more than 32-bit floats round; use fewer bins"),
    ],
)
def test_unsound_centres(binning, centres, message):
    with pytest.raises(RunError, match=message):
        ActionTokenizer(ActionSpec((-1.0,), (1.0,)), TokenConfig(2, binning=binning), centres)


def test_cells_that_floats_cannot_tell_apart():
    with pytest.raises(RunError, match=r"action dimension 1: 4096 cells between 100000.0 and 100001.0 must"):
        make_tokenizer([(0.0, 1.0), (100000.0, 1.0)], 64, 2)


def test_more_cells_than_floats_tell_apart_are_refused():
    assert TokenConfig(2, 12).num_cells == TokenConfig(64, 2).num_cells == TokenConfig(2**12).num_cells == 2**12
    for num_bins, num_levels in ((65, 2), (2, 13), (2**12 + 1, 1), (2, 10**9)):
        message = rf"num_bins \({num_bins}\) must leave num_bins \*\* num_levels \({num_levels}\) at most 4096"
        with pytest.raises(RunError, match=message):
            TokenConfig(num_bins, num_levels)


def test_the_cells_travel_with_the_weights():
    trained = make_quantile_tokenizer([[-0.5, 0.0, 0.25, 1.0]], -1.0, 1.0)
    fresh = make_tokenizer([(-1.0, 2.0)], num_bins=4)
    fresh.load_state_dict(trained.state_dict())
    assert set(trained.state_dict()) == {"edges", "centres"}
    assert fresh.encode(torch.tensor([0.3])).item() == 2
    assert fresh.decode(torch.tensor([2])).item() == 0.25


# --- labels -----------------------------------------------------------------------------------------------------------


# 4 bins, 3 levels: blocks of 64, 16 and 4 rows. Cells 27 = 1 2 3 and 57 = 3 2 1 lie at 11 and 9 of 16, at 3 and 1 of 4.
@pytest.mark.parametrize(
    ("order", "rows"),
    [("level_major", [27, 57, 75, 73, 83, 81]), ("dimension_major", [27, 75, 83, 57, 73, 81])],
)
def test_label_rows_by_hand(order, rows):
    tokenizer = make_tokenizer([(0.0, 64.0), (0.0, 64.0)], 4, 3, order=order)
    assert tokenizer.label_rows(tokenizer.encode(torch.tensor([27.5, 57.5]))).tolist() == rows
    assert len(losses.label_table(4, 3, 0.1)) == 84


@settings(deadline=None)
@given(st.sampled_from([(32, 1), (8, 2), (4, 3), (2, 5)]), st.sampled_from([0.0, 0.01, 0.1, 0.5]), st.integers(0, 999))
def test_the_levels_together_are_the_label_over_all_cells(grid, width, seed):
    num_bins, num_levels = grid
    tokenizer = make_tokenizer([(-1.0, 2.0), (0.0, 9.0)], *grid)
    num_cells = num_bins**num_levels
    logged = torch.randint(num_cells, (2,), generator=torch.Generator().manual_seed(seed))
    tokens = tokenizer.encode(torch.stack([tokenizer.centres[0, logged[0]], tokenizer.centres[1, logged[1]]]))
    labels = losses.label_table(num_bins, num_levels, width)[tokenizer.label_rows(tokens)]
    labels = labels.view(num_levels, 2, num_bins)
    whole = losses.soft_labels(logged, num_cells, width * num_cells)
    # along the logged path: p(coarse) p(fine | coarse) ... is what the logged cell has of the whole
    along_path = labels.gather(-1, tokens.view(num_levels, 2, 1)).squeeze(-1).prod(dim=0)
    torch.testing.assert_close(along_path, whole.gather(-1, logged.unsqueeze(-1)).squeeze(-1))
    # and so for every cell that shares the logged coarser bins with it
    in_last_bin = whole.view(2, -1, num_bins)[torch.arange(2), logged // num_bins]
    torch.testing.assert_close(labels[-1], in_last_bin / in_last_bin.sum(dim=-1, keepdim=True), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(labels[0], whole.view(2, num_bins, -1).sum(dim=-1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("order", ["level_major", "dimension_major"])
def test_labels_peak_at_the_logged_tokens(order):
    tokenizer = make_tokenizer([(-1.0, 2.0), (0.0, 9.0)], 16, 2, order=order)
    tokens = tokenizer.encode(torch.rand((50, 2), generator=torch.Generator().manual_seed(0)))
    for width in (0.0, 0.02):
        labels = losses.label_table(16, 2, width)[tokenizer.label_rows(tokens)]
        assert torch.equal(labels.argmax(dim=-1), tokens)


# --- export -----------------------------------------------------------------------------------------------------------


class Decoder(torch.nn.Module):
    """What of the tokenizer is in an exported graph."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, tokens):
        return self.tokenizer.decode(tokens)


@pytest.mark.export
@pytest.mark.parametrize(("num_levels", "order"), [(1, "level_major"), (2, "dimension_major")])
def test_the_exported_decoder_equals_this_one(tmp_path, num_levels, order):
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    config = TokenConfig(5, num_levels, binning="quantile", order=order)
    centres = torch.rand((3, config.num_cells), generator=generator).sort(dim=1).values.tolist()
    tokenizer = ActionTokenizer(ActionSpec((0.0,) * 3, (1.0,) * 3), config, centres).eval()
    tokens = torch.randint(5, (20, tokenizer.num_action_tokens), generator=generator)
    torch.onnx.export(Decoder(tokenizer).eval(), (tokens[:1],), tmp_path / "decoder.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    (name,) = [each.name for each in session.get_inputs()]
    for row in tokens.split(1):
        np.testing.assert_array_equal(session.run(None, {name: row.numpy()})[0], tokenizer.decode(row))
