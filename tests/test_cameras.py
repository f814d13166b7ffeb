"""A camera: bytes are standardised colour by colour, words direct, any number of axes before a picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qtransformer.config import ModelConfig, RunError
from qtransformer.encoders.cameras import CameraEncoder
from qtransformer.encoders.efficientnet import EfficientNet

MOMENTS = {"mean": [100.0, 50.0, 0.0], "std": [50.0, 25.0, 0.0]}
CONFIG = ModelConfig(width=8, num_heads=2, image_tokens=3)


@pytest.fixture
def camera():
    torch.manual_seed(0)
    return CameraEncoder((16, 24, 3), MOMENTS, 4, CONFIG)


def pictures(*shape):
    return torch.randint(256, (*shape, 16, 24, 3), generator=torch.Generator().manual_seed(1)).byte()


def test_colours_are_standardised_and_come_first(camera):
    seen = []
    camera.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    picture = torch.zeros(1, 16, 24, 3, dtype=torch.uint8)
    picture[0, 2, 5] = torch.tensor([200, 25, 3])
    camera(picture, torch.zeros(1, 4))
    assert seen[0].shape == (1, 3, 16, 24)
    assert seen[0][0, :, 2, 5].tolist() == [2.0, -1.0, 3.0]  # a colour that never varied counts in single steps
    assert seen[0][0, :, 0, 0].tolist() == [-2.0, -2.0, 0.0]


def test_bytes_and_floats_of_the_same_range_are_the_same(camera):
    images, words = pictures(2, 3), torch.randn(2, 3, 4)
    tokens = camera(images, words)
    assert tokens.shape == (2, 3, 3, 8)
    assert torch.equal(camera(images.float(), words), tokens)


def test_each_picture_is_read_alone_with_its_own_words(camera):
    torch.nn.init.normal_(camera.get_parameter("network.films.1.to_scale_and_shift.weight"))
    images, words = pictures(2, 3), torch.randn(2, 3, 4)
    together = camera(images, words)
    torch.testing.assert_close(together[1, 2], camera(images[1, 2:], words[1, 2:])[0])
    assert not torch.allclose(together[1, 2], camera(images[1, 2:], words[0, :1])[0])


def test_another_network_by_name():
    config = ModelConfig(width=8, num_heads=2, image_tokens=3, vision="efficientnet_b0")
    camera = CameraEncoder((40, 64, 3), MOMENTS, 4, config)
    assert isinstance(camera.network, EfficientNet)
    assert camera(torch.zeros(1, 2, 40, 64, 3, dtype=torch.uint8), torch.zeros(1, 2, 4)).shape == (1, 2, 3, 8)
    assert camera.mean.tolist() == MOMENTS["mean"]
    with_weights = CameraEncoder((40, 64, 3), MOMENTS, 4, replace(config, vision_weights="b0.pth"))
    assert with_weights.mean.tolist() == pytest.approx([123.675, 116.28, 103.53])  # ImageNet's
    with pytest.raises(RunError, match=r"efficientnet_b0: takes images of 3 colours, got 1; use --vision film_cnn"):
        CameraEncoder((40, 64, 1), MOMENTS, 4, config)
