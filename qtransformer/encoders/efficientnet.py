"""EfficientNet B0 to B3 (Tan & Le, arXiv 1905.11946), which words direct: FiLM after every block, as in RT-1.

Special about this file: its norms depend on no batch. With weights of another training they are that training's batch
norm, statistics fixed; without, there are no statistics, and it is a group norm over the same parameters. Shapes, names
and paddings are torchvision's and timm's (PyTorch's own, not those of the TensorFlow ports).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qtransformer.config import Vision
from qtransformer.encoders.film_cnn import Film

SCALES: Mapping[Vision, tuple[float, float]] = {  # width, depth (table 8 of the reference implementation)
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
}
_STAGES = (  # of B0 (table 1): expansion, kernel, stride, channels, blocks
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)),
    *((6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)
_STEM, _HEAD = 32, 1280
_SQUEEZE = 4  # of a block's inputs that share a channel of the squeeze
_MOST_GROUPS = 8


class BlockShape(NamedTuple):
    """One MBConv block, and where it stands: block `place` of stage `stage`, both from 0."""

    stage: int
    place: int
    expansion: int
    kernel: int
    stride: int
    inputs: int
    outputs: int


def block_shapes(vision: Vision) -> Iterator[BlockShape]:
    """Yields the blocks of a network of that name, in order."""
    width, depth = SCALES[vision]
    inputs = scaled(_STEM, width)
    for stage, (expansion, kernel, stride, channels, num_blocks) in enumerate(_STAGES):
        for place in range(math.ceil(depth * num_blocks)):
            outputs = scaled(channels, width)
            yield BlockShape(stage, place, expansion, kernel, 1 if place else stride, inputs, outputs)
            inputs = outputs


def scaled(channels: int, width: float) -> int:
    """Returns the channels times width, in whole eights, at most a tenth less."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class EfficientNet(nn.Module):
    """Pictures of three colours to a grid of features, one place for every 32 pixels."""

    stride = 32

    def __init__(self, vision: Vision, num_context: int, has_statistics: bool) -> None:
        """For `num_context` numbers that ask; with `has_statistics` its norms are batch norms of fixed statistics."""
        super().__init__()
        shapes, width = list(block_shapes(vision)), SCALES[vision][0]
        self.num_channels = scaled(_HEAD, width)
        self.stem = Convolution((3, shapes[0].inputs), 3, 2, has_statistics)
        self.blocks = nn.ModuleList(MBConv(shape, has_statistics) for shape in shapes)
        self.films = nn.ModuleList(Film(num_context, shape.outputs) for shape in shapes)
        self.head = Convolution((shapes[-1].outputs, self.num_channels), 1, 1, has_statistics)

    def forward(
        self, x: Float[Tensor, "batch 3 height width"], context: Float[Tensor, "batch context"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Returns the grid of features."""
        x = F.silu(self.stem(x))
        for block, film in zip(self.blocks, self.films, strict=True):
            x = film(block(x), context)
        return F.silu(self.head(x))


class MBConv(nn.Module):
    """Expansion, a convolution of each channel by itself, squeeze and excitation, projection; a residual where it fits.

    Without the dropped paths of the paper: a network that Q is learned from should say the same twice.
    """

    def __init__(self, shape: BlockShape, has_statistics: bool) -> None:
        super().__init__()
        hidden = shape.inputs * shape.expansion
        self.is_residual = shape.stride == 1 and shape.inputs == shape.outputs
        self.expand = Convolution((shape.inputs, hidden), 1, 1, has_statistics) if shape.expansion > 1 else None
        self.depthwise = Convolution((hidden, hidden), shape.kernel, shape.stride, has_statistics, groups=hidden)
        self.squeeze = SqueezeExcitation(hidden, max(1, shape.inputs // _SQUEEZE))
        self.project = Convolution((hidden, shape.outputs), 1, 1, has_statistics)

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs out_height out_width"]:
        """Returns the features of the next block."""
        y = x if self.expand is None else F.silu(self.expand(x))
        y = self.project(self.squeeze(F.silu(self.depthwise(y))))
        return x + y if self.is_residual else y


class SqueezeExcitation(nn.Module):
    """Weighs channels by what is in the whole picture."""

    def __init__(self, num_channels: int, num_squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(num_channels, num_squeezed, 1)
        self.restore = nn.Conv2d(num_squeezed, num_channels, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Returns x, weighed."""
        return x * self.restore(F.silu(self.reduce(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()


class Convolution(nn.Module):
    """A convolution and its norm."""

    def __init__(
        self, channels: tuple[int, int], kernel: int, stride: int, has_statistics: bool, groups: int = 1
    ) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(*channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.convolve.weight, mode="fan_out")
        self.norm = FixedBatchNorm(channels[1]) if has_statistics else nn.GroupNorm(_groups(channels[1]), channels[1])

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs out_height out_width"]:
        """Returns the normalised convolution."""
        return self.norm(self.convolve(x))


class FixedBatchNorm(nn.BatchNorm2d):
    """A batch norm whose statistics stay, in training, too; scale and shift are learned."""

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the normalised input."""
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _groups(num_channels: int) -> int:
    return math.gcd(num_channels, _MOST_GROUPS)
