"""EfficientNet: shapes by hand, words, norms, and Hugging Face's implementation with the same weights."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from qtransformer.config import Vision
from qtransformer.encoders.efficientnet import SCALES, EfficientNet, FixedBatchNorm, block_shapes, scaled


def count(network):
    return sum(each.numel() for each in network.parameters())


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(32, 1.0, 32), (32, 1.1, 32), (32, 1.2, 40), (16, 1.1, 16), (1280, 1.2, 1536)]
)
def test_channels_are_whole_eights(channels, width, expected):
    assert scaled(channels, width) == expected


def test_the_blocks_of_b0_are_those_of_table_1():
    shapes = list(block_shapes("efficientnet_b0"))
    assert [each.stage for each in shapes] == [0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5, 6]
    assert [each[2:] for each in shapes[:3]] == [(1, 3, 1, 32, 16), (6, 3, 2, 16, 24), (6, 3, 1, 24, 24)]
    assert shapes[-1][2:] == (6, 3, 1, 192, 320)
    assert {each for each in get_args(Vision) if each != "film_cnn"} == set(SCALES)


@pytest.mark.parametrize(
    ("vision", "parameters"),
    [  # torchvision's and timm's published counts, less the classifier's 1000 * (channels + 1)
        ("efficientnet_b0", 5_288_548 - 1000 * 1281),
        ("efficientnet_b1", 7_794_184 - 1000 * 1281),
        ("efficientnet_b2", 9_109_994 - 1000 * 1409),
        ("efficientnet_b3", 12_233_232 - 1000 * 1537),
    ],
)
def test_the_number_of_parameters(vision, parameters):
    assert count(EfficientNet(vision, 0, has_statistics=True)) == parameters
    assert count(EfficientNet(vision, 0, has_statistics=False)) == parameters


@pytest.mark.parametrize("has_statistics", [True, False])
def test_pictures_do_not_mix_and_training_changes_no_statistics(has_statistics):
    torch.manual_seed(0)
    network, x = EfficientNet("efficientnet_b0", 0, has_statistics).train(), torch.randn(3, 3, 40, 72)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    words = torch.zeros(3, 0)
    together = network(x, words)
    assert together.shape == (3, network.num_channels, 2, 3)
    torch.testing.assert_close(together[1:2], network(x[1:2], words[1:2]), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert any(isinstance(each, FixedBatchNorm) for each in network.modules()) == has_statistics
    together.square().mean().backward()
    assert all(each.grad is not None and bool(each.grad.isfinite().all()) for each in network.parameters())


def test_words_direct_every_block_once_they_have_learned():
    torch.manual_seed(0)
    network, x = EfficientNet("efficientnet_b0", 4, has_statistics=False), torch.randn(1, 3, 32, 32)
    assert len(network.films) == 16
    before = network(x, torch.zeros(1, 4))
    torch.testing.assert_close(network(x, torch.ones(1, 4)), before, rtol=0, atol=0)
    for name, each in network.named_parameters():
        if name.startswith("films.") and name.endswith("weight"):
            torch.nn.init.normal_(each, std=0.5)
            assert not torch.equal(network(x, torch.ones(1, 4)), before)
            torch.nn.init.zeros_(each)


def theirs(transformers: Any, vision: str) -> Any:
    """Hugging Face's network with PyTorch's paddings and epsilon."""
    width, depth = SCALES[vision]  # pyright: ignore[reportArgumentType]
    blocks = len(list(block_shapes(vision)))  # pyright: ignore[reportArgumentType]
    config = transformers.EfficientNetConfig(
        width_coefficient=width,
        depth_coefficient=depth,
        hidden_dim=scaled(1280, width),
        batch_norm_eps=1e-5,
        depthwise_padding=list(range(blocks)),
    )
    network = transformers.EfficientNetModel(config).eval()
    network.embeddings.padding = torch.nn.ZeroPad2d(1)
    return network


def shake(network):
    """Random scales, shifts and statistics, so that every one of them tells."""
    with torch.no_grad():
        for norm in (each for each in network.modules() if isinstance(each, FixedBatchNorm)):
            for value, low, high in (("weight", 0.5, 2.0), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5)):
                getattr(norm, value).uniform_(low, high)
            assert norm.running_var is not None
            norm.running_var.uniform_(0.5, 1.5)


def their_names(vision):
    ours, names = ["stem.convolve", "stem.norm"], ["embeddings.convolution", "embeddings.batchnorm"]
    for index, shape in enumerate(block_shapes(vision)):
        parts = {
            "expand.convolve": "expansion.expand_conv",
            "expand.norm": "expansion.expand_bn",
            "depthwise.convolve": "depthwise_conv.depthwise_conv",
            "depthwise.norm": "depthwise_conv.depthwise_norm",
            "squeeze.reduce": "squeeze_excite.reduce",
            "squeeze.restore": "squeeze_excite.expand",
            "project.convolve": "projection.project_conv",
            "project.norm": "projection.project_bn",
        }
        if shape.expansion == 1:
            del parts["expand.convolve"], parts["expand.norm"]
        ours += [f"blocks.{index}.{each}" for each in parts]
        names += [f"encoder.blocks.{index}.{each}" for each in parts.values()]
    return [*ours, "head.convolve", "head.norm"], [*names, "encoder.top_conv", "encoder.top_bn"]


@pytest.mark.parametrize("vision", ["efficientnet_b0", "efficientnet_b3"])
def test_hugging_face_says_the_same(vision):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference, network = theirs(transformers, vision), EfficientNet(vision, 0, has_statistics=True)
    assert count(network) == count(reference)
    shake(network)
    for ours, name in zip(*their_names(vision), strict=True):
        reference.get_submodule(name).load_state_dict(network.get_submodule(ours).state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, found = reference(x).last_hidden_state, network(x, torch.zeros(2, 0))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
