"""All sensors of a step: the order of the tokens, several cameras, and what may be missing."""

from __future__ import annotations

import pytest
import torch

from qtransformer.batch import ObservationSpec
from qtransformer.config import ModelConfig
from qtransformer.encoders.observations import ObservationEncoder

STATE, TEXT = ObservationSpec("state", (2,), "float32"), ObservationSpec("told", (), "str", "text")
FRONT = ObservationSpec("image/front", (16, 16, 3), "uint8", "image")
WRIST = ObservationSpec("image/wrist", (8, 24, 1), "uint8", "image")
COLOURS = {"mean": [128.0], "std": [64.0]}
MOMENTS = {
    "state": {"mean": [0.0, 0.0], "std": [1.0, 1.0]},
    "told": {"mean": [1.0] * 4, "std": [2.0] * 4},
    "image/front": {name: 3 * values for name, values in COLOURS.items()},
    "image/wrist": COLOURS,
}
CONFIG = ModelConfig(width=8, num_heads=2, image_tokens=3)


def make_encoder(*specs):
    torch.manual_seed(0)
    return ObservationEncoder(specs, MOMENTS, CONFIG)


def observe(encoder, B=2, T=3):
    generator = torch.Generator().manual_seed(1)
    images = {
        key: torch.randint(256, (B, T, *encoder.shapes[key]), generator=generator).byte() for key in encoder.image_keys
    }
    others = [key for key in encoder.keys if key not in images]
    return images | {key: torch.randn(B, T, *encoder.shapes[key], generator=generator) for key in others}


def test_images_come_first_and_the_rest_is_the_last_token():
    encoder = make_encoder(FRONT, WRIST, STATE, TEXT)
    for name, each in encoder.named_parameters():
        if name.endswith("to_scale_and_shift.weight"):  # what words say tells only once it has learned
            torch.nn.init.normal_(each)
    observations = observe(encoder)
    tokens, words = encoder(observations), (observations["told"] - 1) / 2
    assert encoder.num_tokens == 7
    assert encoder.state is not None
    assert encoder.shapes == {"image/front": (16, 16, 3), "image/wrist": (8, 24, 1), "state": (2,), "told": (4,)}
    torch.testing.assert_close(tokens[:, :, :3], encoder.cameras[0](observations["image/front"], words))
    torch.testing.assert_close(tokens[:, :, 3:6], encoder.cameras[1](observations["image/wrist"], words))
    torch.testing.assert_close(tokens[:, :, 6:], encoder.state(observations))


@pytest.mark.parametrize(
    ("specs", "num_tokens"), [((STATE,), 1), ((FRONT,), 3), ((TEXT, FRONT), 4), ((STATE, WRIST), 4)]
)
def test_any_of_them_may_be_missing(specs, num_tokens):
    encoder = make_encoder(*specs)
    tokens = encoder(observe(encoder))
    assert tokens.shape == (2, 3, num_tokens, 8)
    assert encoder.num_tokens == num_tokens
    has_films = any("films" in name for name, _ in encoder.named_parameters())
    assert has_films == (TEXT in specs)


def test_a_frame_is_encoded_without_those_around_it():
    encoder = make_encoder(FRONT, STATE, TEXT)
    observations = observe(encoder)
    alone = encoder({key: value[1:, 2:] for key, value in observations.items()})
    torch.testing.assert_close(encoder(observations)[1, 2], alone[0, 0])


def test_cameras_alone_are_rounded_in_bfloat16():
    encoder = make_encoder(FRONT, STATE)
    observations = observe(encoder)
    exact = encoder(observations)
    encoder.is_bfloat16 = True
    rounded = encoder(observations)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded[:, :, -1], exact[:, :, -1])  # numbers keep their digits
    assert not torch.equal(rounded[:, :, :-1], exact[:, :, :-1])
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.05)
