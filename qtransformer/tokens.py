"""Actions as tokens: continuous action vectors to bin indices and back.

Each dimension's range is cut into `num_bins ** num_levels` cells: of equal width, or around the quantiles of the log. A
cell's centre is the action that it decodes to. With one level a dimension is one token; with several it is written
coarse to fine, `num_levels` tokens of `num_bins` each (CQN, arXiv 2407.07787), in one of two orders:

    level_major        coarse of x   coarse of y   fine of x     fine of y
    dimension_major    coarse of x   fine of x     coarse of y   fine of y

It must not know observations, values or networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qtransformer.batch import ActionSpec
from qtransformer.config import RunError, TokenConfig


class ActionTokenizer(nn.Module):
    """Maps actions in the environment's units to `num_action_tokens` tokens and back to the centre of their cell."""

    edges: Tensor
    """(dims, cells + 1): cell k holds edges[k] <= action < edges[k + 1]; the outermost are the limits."""
    centres: Tensor
    """(dims, cells)."""
    places: Tensor
    """(levels,): how many cells one bin of each level spans."""

    def __init__(self, spec: ActionSpec, config: TokenConfig, centres: Sequence[Sequence[float]] | None = None) -> None:
        """Lays the cells.

        Args:
            spec: number of dimensions and their limits.
            config: number of cells, their kind, the order of the tokens.
            centres: of the cells of each dimension, increasing, for quantile bins alone (`statistics.action_centres`);
                the border between two cells lies midway.

        Raises:
            RunError: `centres` are missing, superfluous or unsound, or cells are too narrow to tell apart.
        """
        super().__init__()
        self.num_bins, self.num_levels, self.order = config.num_bins, config.num_levels, config.order
        self.num_dimensions, self.num_cells = spec.num_dimensions, config.num_cells
        self.num_action_tokens = self.num_dimensions * self.num_levels
        limits = torch.tensor([spec.low, spec.high], dtype=torch.float64).T
        laid = _centres(limits, config, centres)
        edges = torch.cat([limits[:, :1], (laid[:, 1:] + laid[:, :-1]) / 2, limits[:, 1:]], dim=1)
        self.register_buffer("edges", edges.float())
        self.register_buffer("centres", laid.float())
        places = self.num_bins ** torch.arange(self.num_levels - 1, -1, -1)
        self.register_buffer("places", places, persistent=False)
        _raise_on_narrow(self.edges, self.centres)

    @property
    def low(self) -> Float[Tensor, " dims"]:
        """The lower limits."""
        return self.edges[:, 0]

    @property
    def high(self) -> Float[Tensor, " dims"]:
        """The upper limits."""
        return self.edges[:, -1]

    def encode(self, actions: Float[Tensor, "*batch dims"]) -> Int[Tensor, "*batch tokens"]:
        """Returns the tokens of `actions`; an action on or beyond a limit falls into the outermost cell."""
        columns = actions.to(self.edges.dtype).reshape(-1, self.num_dimensions).T.contiguous()
        cells = torch.searchsorted(self.edges[:, 1:-1].contiguous(), columns, right=True)
        cells = cells.T.reshape(actions.shape).unsqueeze(-1)
        return self._to_tokens(cells // self.places % self.num_bins)

    def decode(self, tokens: Int[Tensor, "*batch tokens"]) -> Float[Tensor, "*batch dims"]:
        """Returns the action at the centre of the cell that `tokens` name."""
        cells = (self._to_digits(tokens) * self.places).sum(dim=-1)
        first = torch.arange(self.num_dimensions, device=tokens.device) * self.num_cells
        return self.centres.flatten()[cells + first]

    def label_rows(self, tokens: Int[Tensor, "*batch tokens"]) -> Int[Tensor, "*batch tokens"]:
        """Returns the row of `losses.label_table` that holds the label of each token.

        A level's block has one row for each cell inside a bin of the level above, so that a coarse token's label knows
        where in its bin the logged action lies:

            level      0               1                     2
            rows       K^3             K^2                   K
            row        a K^2 + b K + c   K^3 + (b K + c)     K^3 + K^2 + c       for the digits a, b, c of a cell
        """
        digits = self._to_digits(tokens)
        within = (digits * self.places).flip(-1).cumsum(dim=-1).flip(-1)
        sizes = self.places * self.num_bins
        return self._to_tokens(within + sizes.cumsum(dim=0) - sizes)

    @property
    def token_dimensions(self) -> Int[Tensor, " tokens"]:
        """The action dimension of each token."""
        dimensions = torch.arange(self.num_dimensions, device=self.edges.device)
        return self._to_tokens(dimensions.unsqueeze(-1).expand(-1, self.num_levels))

    def _to_tokens(self, digits: Int[Tensor, "*batch dims levels"]) -> Int[Tensor, "*batch tokens"]:
        ordered = digits if self.order == "dimension_major" else digits.transpose(-1, -2)
        return ordered.flatten(-2)

    def _to_digits(self, tokens: Int[Tensor, "*batch tokens"]) -> Int[Tensor, "*batch dims levels"]:
        if self.order == "dimension_major":
            return tokens.unflatten(-1, (self.num_dimensions, self.num_levels))
        return tokens.unflatten(-1, (self.num_levels, self.num_dimensions)).transpose(-1, -2)


def _centres(
    limits: Float[Tensor, "dims 2"], config: TokenConfig, centres: Sequence[Sequence[float]] | None
) -> Float[Tensor, "dims cells"]:
    if (centres is None) == (config.binning == "quantile"):
        raise RunError(
            f"centres ({'none' if centres is None else 'given'}) must be given for quantile bins and for them alone, "
            f"got {config.binning} bins; take those that were computed from the log"
        )
    low, high = limits[:, :1], limits[:, 1:]
    if centres is None:
        return low + (high - low) * (torch.arange(config.num_cells) + 0.5) / config.num_cells
    laid, expected = torch.tensor(centres, dtype=torch.float64), (len(limits), config.num_cells)
    if laid.shape != expected or not ((low <= laid) & (laid <= high)).all():
        raise RunError(
            f"centres {tuple(laid.shape)} must be {expected} numbers inside the action limits; "
            "compute them again from the log, for this number of bins"
        )
    return laid


def _raise_on_narrow(edges: Float[Tensor, "dims edges"], centres: Float[Tensor, "dims cells"]) -> None:
    """Checks that every centre lies in its own cell after rounding; where the limits coincide all decode to them.

    Raises:
        RunError: some do not.
    """
    borders = edges[:, 1:-1]
    is_sound = ((centres[:, :-1] < borders) & (borders <= centres[:, 1:])).all(dim=1) | (edges[:, 0] == edges[:, -1])
    if not is_sound.all():
        dimension = int(is_sound.int().argmin())
        low, high = edges[dimension, 0].item(), edges[dimension, -1].item()
        raise RunError(
            f"action dimension {dimension}: {centres.shape[1]} cells between {low} and {high} must have centres that "
            "increase by more than 32-bit floats round; use fewer bins or levels, or uniform bins"
        )
