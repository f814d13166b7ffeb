"""Weights of another training from a local file: torchvision's and timm's EfficientNets, by name.

Names differ, tensors do not:

    ours                            torchvision                        timm
    stem.convolve.weight            features.0.0.weight                conv_stem.weight
    blocks.3.expand.norm.bias       features.3.0.block.0.1.bias        blocks.2.0.bn1.bias
    blocks.3.squeeze.reduce.weight  features.3.0.block.2.fc1.weight    blocks.2.0.se.conv_reduce.weight
    head.norm.running_mean          features.8.1.running_mean          bn2.running_mean

It must not know what a camera is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qtransformer.config import RunError, Vision
from qtransformer.encoders.efficientnet import BlockShape, EfficientNet, block_shapes

_NUM_LISTED = 3  # names in a message
_NOT_READ = ("classifier.", "films.")  # theirs, and ours
_COUNTER = "num_batches_tracked"


def load_vision_weights(network: EfficientNet, vision: Vision, path: Path) -> None:
    """Puts the weights of the file into the network; its films stay as they are.

    Raises:
        RunError: the file cannot be read, or is of another network.
    """
    given = {name: value for name, value in _read(path).items() if not name.startswith(_NOT_READ)}
    wanted = {name: value for name, value in network.state_dict().items() if not name.startswith(_NOT_READ)}
    is_torchvision = any(name.startswith("features.") for name in given)
    theirs = dict(_names(vision, is_torchvision))
    found = {name: given.get(_renamed(name, theirs)) for name in wanted if not name.endswith(_COUNTER)}
    missing = [_renamed(name, theirs) for name, value in found.items() if value is None]
    known = {_renamed(name, theirs) for name in wanted}
    wrong = [
        f"{_renamed(name, theirs)} {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in found.items()
        if value is not None and value.shape != wanted[name].shape
    ]
    extra = sorted(set(given) - known)
    if missing or wrong or extra:
        parts = {"missing": missing, "of another shape": wrong, "not of it": extra}
        said = "; ".join(f"{what}: {_listed(names)}" for what, names in parts.items() if names)
        raise RunError(
            f"--vision-weights {path}: must hold torchvision's or timm's {vision} ({said}); "
            "give its state dict, or another --vision"
        )
    network.load_state_dict({name: value for name, value in found.items() if value is not None}, strict=False)


def _read(path: Path) -> Mapping[str, Tensor]:
    """Returns the tensors of a file of safetensors, or of torch.save; no code in it is run."""
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError("it is no dictionary of tensors")
    except Exception as error:  # a stranger's file: its readers raise every kind
        reason = (str(error) or repr(error)).splitlines()[0]
        raise RunError(
            f"--vision-weights {path}: cannot be read ({reason}); give a file of safetensors, or a state dict "
            "of torch.save"
        ) from error
    return found


def _renamed(name: str, theirs: Mapping[str, str]) -> str:
    """Returns their name of a tensor of ours; the last part (weight, bias, running_mean, ...) is the same."""
    module, _, last = name.rpartition(".")
    return f"{theirs[module]}.{last}"


def _names(vision: Vision, is_torchvision: bool) -> Iterator[tuple[str, str]]:
    """Yields our name of each module and theirs."""
    ends = ("features.0.0", "features.0.1", "features.8.0", "features.8.1")
    ends = ends if is_torchvision else ("conv_stem", "bn1", "conv_head", "bn2")
    yield from zip(("stem.convolve", "stem.norm", "head.convolve", "head.norm"), ends, strict=True)
    for number, shape in enumerate(block_shapes(vision)):
        found = _torchvision_block(shape) if is_torchvision else _timm_block(shape)
        parts = ["expand"] * (shape.expansion > 1) + ["depthwise", "squeeze", "project"]
        ours = [
            f"blocks.{number}.{part}.{each}"
            for part in parts
            for each in (("reduce", "restore") if part == "squeeze" else ("convolve", "norm"))
        ]
        yield from zip(ours, found, strict=True)


def _torchvision_block(shape: BlockShape) -> Iterator[str]:
    squeeze = 2 if shape.expansion > 1 else 1
    for part in range(squeeze + 2):
        for each in ("fc1", "fc2") if part == squeeze else ("0", "1"):
            yield f"features.{shape.stage + 1}.{shape.place}.block.{part}.{each}"


def _timm_block(shape: BlockShape) -> list[str]:
    squeeze = ["se.conv_reduce", "se.conv_expand"]
    if shape.expansion > 1:
        names = ["conv_pw", "bn1", "conv_dw", "bn2", *squeeze, "conv_pwl", "bn3"]
    else:
        names = ["conv_dw", "bn1", *squeeze, "conv_pw", "bn2"]
    return [f"blocks.{shape.stage}.{shape.place}.{name}" for name in names]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else ""
    return ", ".join(names[:_NUM_LISTED]) + more
