"""Images as another camera might have seen them: moved by some pixels, lighter, paler. Only while training.

All images of a segment are changed alike, each camera in its own way, so that what moves in them moved in the scene.
What is drawn is a function of seed and update alone: a resumed run needs no generator, and a batch can be computed
again. It must not know networks or losses.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

_APART = 2**128  # of the counter: the draws that a batch begins with have the same key (`sampling`)


class Augmentation:
    """Random shifts (DrQ, arXiv 2004.13649, section 3.1) and colours."""

    def __init__(self, shift: float, colour_jitter: float, seed: int) -> None:
        """Moves by up to `shift` of height and width; changes colours by a factor of up to 1 +- `colour_jitter`."""
        self.shift, self.colour_jitter, self._seed = shift, colour_jitter, seed

    def __call__(
        self, images: dict[str, UInt8[Tensor, "batch frames height width colours"]], update: int, first: int = 0
    ) -> dict[str, Tensor]:
        """Returns the images of each camera as update number `update` shall see them, in the same range.

        Args:
            images: of some segments of a batch, by camera.
            update: counted from 0.
            first: place of the first segment in the batch, so that ranks that share one draw what a single one would.
        """
        return {key: self._changed(images[key], update, first, place) for place, key in enumerate(sorted(images))}

    def _changed(self, images: Tensor, update: int, first: int, place: int) -> Tensor:
        key, end = np.array([self._seed, update], np.uint64), first + len(images)
        generator = np.random.Generator(np.random.Philox(key=key, counter=_APART * (1 + place)))
        draws = torch.from_numpy(generator.random((end, 5), np.float32)[first:])
        most = torch.tensor([int(self.shift * size) for size in images.shape[2:4]])
        if most.any():
            images = shifted(images, (draws[:, :2] * (2 * most + 1)).long() - most)
        if self.colour_jitter:
            factors = 1 + self.colour_jitter * (2 * draws[:, 2:] - 1)
            images = coloured(images, factors.to(images.device))
        return images


def shifted(
    images: UInt8[Tensor, "batch frames height width colours"], offsets: Int[Tensor, "batch 2"]
) -> UInt8[Tensor, "batch frames height width colours"]:
    """Returns the images of each row moved up and to the left by its offsets; what enters repeats the edge."""
    result = torch.empty_like(images)
    for row, (down, right) in enumerate(offsets.tolist()):  # two copies of whole lines: the quickest way there is
        lines, places = (
            (torch.arange(size, device=images.device) + offset).clamp(0, size - 1)
            for size, offset in zip(images.shape[2:4], (down, right), strict=True)
        )
        result[row] = images[row].index_select(1, lines).index_select(2, places)
    return result


def coloured(
    images: UInt8[Tensor, "batch frames height width colours"], factors: Float[Tensor, "batch 3"]
) -> Float[Tensor, "batch frames height width colours"]:
    """Returns the images of each row with brightness, contrast and saturation times its factors, in [0, 255].

    Contrast is the distance from the middle grey, saturation that from the pixel's own grey.
    """
    C = images.shape[-1]
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1).unbind(1)
    own_grey = torch.full((C, C), 1 / C, device=images.device)
    mixing = brightness * contrast * (saturation * torch.eye(C, device=images.device) + (1 - saturation) * own_grey)
    middle = brightness * (1 - contrast) * 127.5
    return (images.flatten(1, 3).float() @ mixing + middle).clamp(0, 255).view(images.shape)
