"""The two graphs of a bundle, as modules around one greedy policy.

`StepGraph` is what a controller runs: one new frame in, and out again what the next step needs of it. The history are
the encoder's tokens, not yet placed in time, since a frame moves through the window while it ages:

    num_frames_in = 2      history_in  a b -       tokens  a b N N      history_out  a b N      num_frames_out = 3
    num_frames_in = 3      history_in  a b c       tokens  a b c N      history_out  b c N      num_frames_out = 3

`FlatGraph` is for readers of one input and one output: the window as one row of numbers. They must not know files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qtransformer.policy import GreedyPolicy, PolicyOutputs


class StepOutputs(NamedTuple):
    """One decision and what the next step needs; see `PolicyOutputs` for the first five."""

    actions: Tensor
    tokens: Tensor
    q_max: Tensor
    q_gap: Tensor
    ok: Tensor
    history_out: Tensor
    """(batch, window - 1, slots, width)."""
    num_frames_out: Tensor
    """(batch,) int64: how many frames of the history are real."""


class StepGraph(nn.Module):
    """One step of control: encodes the newest frame alone."""

    def __init__(self, policy: GreedyPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.history_length = policy.model.window - 1

    def forward(self, observation: Mapping[str, Tensor], history_in: Tensor, num_frames_in: Tensor) -> StepOutputs:
        """Decides on `observation`, each (batch, *shape), after the first `num_frames_in` frames of the history.

        A number of frames that the history cannot hold makes the step not `ok`.
        """
        new = self.policy.model.encoder({key: value.unsqueeze(1) for key, value in observation.items()})
        num_known = num_frames_in.clamp(0, self.history_length)
        slots = torch.arange(self.history_length + 1).view(1, -1, 1, 1)
        is_known = slots < num_known.view(-1, 1, 1, 1)
        tokens = torch.where(is_known, torch.cat([history_in, new], dim=1), new)  # behind the newest: never looked at
        decision = self.policy.decide(tokens, num_known + 1, history_in, *observation.values())
        is_full = (num_known == self.history_length).view(-1, 1, 1, 1)
        return StepOutputs(
            *decision._replace(ok=decision.ok & (num_known == num_frames_in)),
            history_out=torch.where(is_full, tokens[:, 1:], tokens[:, :-1]),
            num_frames_out=(num_known + 1).clamp_max(self.history_length),
        )

    def initial_history(self, batch: int = 1) -> Tensor:
        """Returns the history after a reset."""
        model = self.policy.model
        return torch.zeros(batch, self.history_length, model.num_observation_tokens, model.step_embedding.shape[-1])


class Part(NamedTuple):
    """Where one observation key stands in the row of a `FlatGraph`."""

    name: str
    offset: int
    """Of its first number."""
    size: int
    """Numbers of one frame, in C order; the window's frames follow each other, the newest last."""


class FlatGraph(nn.Module):
    """A window as one row of float32 numbers: all frames of each key, then how many of them are real.

    The newest frame is the last, so that a reader shifts and appends; one that cannot count fills the window with
    copies of the first frame and says `window`. What is not `ok` gives NaN, since there is no other output to tell it.
    """

    def __init__(self, policy: GreedyPolicy, dtypes: Mapping[str, torch.dtype]) -> None:
        """Takes the keys in the order of `dtypes`, the types that the encoder expects of them."""
        super().__init__()
        self.policy, self.dtypes = policy, dict(dtypes)
        self.parts = flat_layout({key: policy.model.encoder.shapes[key] for key in dtypes}, policy.model.window)
        self.size = sum(part.size for part in self.parts) * policy.model.window + 1

    def forward(self, row: Tensor) -> Tensor:
        """Returns actions (batch, dims) for rows (batch, size)."""
        window, shapes = self.policy.model.window, self.policy.model.encoder.shapes
        num_frames = row[:, -1].nan_to_num().clamp(1, window).long()
        frames = (torch.arange(window) + window - num_frames.unsqueeze(1)).clamp_max(window - 1)
        observations = {}
        for name, offset, size in self.parts:
            found = row[:, offset : offset + window * size].unflatten(1, (window, size))
            found = found.gather(1, frames.unsqueeze(-1).expand(-1, -1, size))
            observations[name] = found.unflatten(2, shapes[name]).to(self.dtypes[name])
        outputs: PolicyOutputs = self.policy(observations, num_frames)
        is_ok = outputs.ok & row.isfinite().all(dim=1) & (num_frames == row[:, -1])
        return torch.where(is_ok.unsqueeze(1), outputs.actions, math.nan)


def flat_layout(shapes: Mapping[str, Sequence[int]], window: int) -> tuple[Part, ...]:
    """Returns where each key stands in a row, in the order of `shapes`."""
    parts, offset = [], 0
    for name, shape in shapes.items():
        parts.append(Part(name, offset, math.prod(shape)))
        offset += window * parts[-1].size
    return tuple(parts)
