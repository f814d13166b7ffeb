"""The pictures of one camera to observation tokens: bytes as they are stored in, colours standardised, words asking.

It must not know time, or what other sensors there are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from qtransformer.config import ModelConfig, RunError
from qtransformer.encoders.efficientnet import EfficientNet
from qtransformer.encoders.film_cnn import FilmCNN
from qtransformer.encoders.token_learner import TokenLearner

_IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}  # what such weights were trained with
_COLOURS = 3


class CameraEncoder(nn.Module):
    """Some tokens a picture, (height, width, colours), as unsigned bytes or as floats of the same range."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(
        self, shape: tuple[int, ...], statistics: dict[str, list[float]], num_context: int, config: ModelConfig
    ) -> None:
        """For pictures of `shape` whose colours have these `mean` and `std`; `num_context` numbers ask.

        Raises:
            RunError: the network takes no pictures of so many colours.
        """
        super().__init__()
        height, width, num_colours = shape
        self.network = _network(num_colours, num_context, config)
        statistics = statistics if config.vision_weights is None else _IMAGENET
        self.register_buffer("mean", torch.tensor(statistics["mean"], dtype=torch.float32))
        std = torch.tensor(statistics["std"], dtype=torch.float32)
        self.register_buffer("inverse_std", 1 / std.clamp_min(1.0))  # one step of a byte: less is no picture
        grid = -(-height // self.network.stride), -(-width // self.network.stride)
        self.learn_tokens = TokenLearner(grid, self.network.num_channels, config.image_tokens, config.width)

    def forward(
        self,
        pictures: UInt8[Tensor, "*batch height columns colours"] | Float[Tensor, "*batch height columns colours"],
        context: Float[Tensor, "*batch context"],
    ) -> Float[Tensor, "*batch tokens width"]:
        """Returns the tokens of each picture."""
        batch = pictures.shape[:-3]
        x = (pictures.flatten(0, -4).float() - self.mean) * self.inverse_std
        grid = self.network(x.permute(0, 3, 1, 2), context.flatten(0, -2))  # channels last already: no copy
        return self.learn_tokens(grid).unflatten(0, batch)


def _network(num_colours: int, num_context: int, config: ModelConfig) -> FilmCNN | EfficientNet:
    if config.vision == "film_cnn":
        return FilmCNN(num_colours, num_context, config.width)
    if num_colours != _COLOURS:
        raise RunError(
            f"--vision {config.vision}: takes images of {_COLOURS} colours, got {num_colours}; use --vision "
            "film_cnn, or choose others with --observations"
        )
    return EfficientNet(config.vision, num_context, has_statistics=config.vision_weights is not None)
