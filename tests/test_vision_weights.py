"""Weights by name from a local file: torchvision's names, timm's names, and what is said of a wrong file."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learner_fixtures import make_config
from safetensors.torch import save_file
from task_fixtures import write_tasks

from qtransformer.config import RunError
from qtransformer.encoders.efficientnet import EfficientNet
from qtransformer.encoders.vision_weights import load_vision_weights
from qtransformer.q_learning import QTransformerLearner
from qtransformer.training import build, load_dataset, train

B0 = "efficientnet_b0"
# Ours, torchvision's and timm's, written down from their state dicts.
NAMES = (
    ("stem.convolve.weight", "features.0.0.weight", "conv_stem.weight"),
    ("stem.norm.running_var", "features.0.1.running_var", "bn1.running_var"),
    ("blocks.0.depthwise.convolve.weight", "features.1.0.block.0.0.weight", "blocks.0.0.conv_dw.weight"),
    ("blocks.0.depthwise.norm.bias", "features.1.0.block.0.1.bias", "blocks.0.0.bn1.bias"),
    ("blocks.0.squeeze.reduce.bias", "features.1.0.block.1.fc1.bias", "blocks.0.0.se.conv_reduce.bias"),
    ("blocks.0.project.convolve.weight", "features.1.0.block.2.0.weight", "blocks.0.0.conv_pw.weight"),
    ("blocks.0.project.norm.weight", "features.1.0.block.2.1.weight", "blocks.0.0.bn2.weight"),
    ("blocks.2.expand.convolve.weight", "features.2.1.block.0.0.weight", "blocks.1.1.conv_pw.weight"),
    ("blocks.2.depthwise.norm.weight", "features.2.1.block.1.1.weight", "blocks.1.1.bn2.weight"),
    ("blocks.2.squeeze.restore.weight", "features.2.1.block.2.fc2.weight", "blocks.1.1.se.conv_expand.weight"),
    ("blocks.15.project.convolve.weight", "features.7.0.block.3.0.weight", "blocks.6.0.conv_pwl.weight"),
    ("blocks.15.project.norm.running_mean", "features.7.0.block.3.1.running_mean", "blocks.6.0.bn3.running_mean"),
    ("head.convolve.weight", "features.8.0.weight", "conv_head.weight"),
    ("head.norm.bias", "features.8.1.bias", "bn2.bias"),
)


def make_network(seed):
    torch.manual_seed(seed)
    return EfficientNet(B0, 2, has_statistics=True)


@functools.cache
def source_weights():
    return make_network(1).state_dict()


def translated(place):
    """The state dict of a network under their names: block by block, in the order in which both list their modules."""
    tensors, found = source_weights(), {}
    ends = ("features.0.0", "features.0.1", "features.8.0", "features.8.1")
    ends = ends if place == 1 else ("conv_stem", "bn1", "conv_head", "bn2")
    rules: dict[str, str] = dict(zip(("stem.convolve", "stem.norm", "head.convolve", "head.norm"), ends, strict=True))
    stages = [(stage, index) for stage, number in enumerate((1, 2, 2, 3, 3, 4, 1)) for index in range(number)]
    for name, value in tensors.items():
        if name.startswith("films."):
            continue
        module, _, last = name.rpartition(".")
        name = f"{rules.get(module, module)}.{last}"
        if block := re.match(r"blocks\.(\d+)\.(\w+)\.(\w+)\.(\w+)", name):
            number, part, module, last = int(block[1]), block[2], block[3], block[4]
            stage, index = stages[number]
            name = f"{_block_name(place, stage, index, part, module)}.{last}"
        found[name] = value
    return found | {"classifier.1.weight": torch.zeros(3)}


def _block_name(place, stage, index, part, module):
    parts = ["depthwise", "squeeze", "project"] if stage == 0 else ["expand", "depthwise", "squeeze", "project"]
    if place == 1:
        inner = {"convolve": "0", "norm": "1", "reduce": "fc1", "restore": "fc2"}[module]
        return f"features.{stage + 1}.{index}.block.{parts.index(part)}.{inner}"
    if part == "squeeze":
        return f"blocks.{stage}.{index}.se.conv_{'reduce' if module == 'reduce' else 'expand'}"
    convolutions = [each for each in parts if each != "squeeze"]
    if module == "norm":
        return f"blocks.{stage}.{index}.bn{convolutions.index(part) + 1}"
    last = "conv_pw" if stage == 0 else "conv_pwl"
    return f"blocks.{stage}.{index}." + {"expand": "conv_pw", "depthwise": "conv_dw", "project": last}[part]


@pytest.mark.parametrize("place", [1, 2], ids=["torchvision", "timm"])
def test_the_names_are_theirs(place):
    names = translated(place)
    assert {each[place] for each in NAMES} <= set(names)
    source = source_weights()
    assert all(torch.equal(names[each[place]], source[each[0]]) for each in NAMES)


@pytest.mark.parametrize(("place", "suffix"), [(1, ".pth"), (2, ".safetensors")], ids=["torchvision", "timm"])
def test_weights_are_found_by_name(tmp_path, place, suffix):
    path = tmp_path / f"weights{suffix}"
    tensors = translated(place)
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    network, source = make_network(0), source_weights()
    films = {name: value.clone() for name, value in network.state_dict().items() if name.startswith("films")}
    load_vision_weights(network, B0, path)
    for name, value in network.state_dict().items():
        assert torch.equal(value, films.get(name, source[name])), name


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    path, tensors = tmp_path / "weights.pth", translated(1)
    tensors["head.weight"] = tensors.pop("features.8.0.weight")
    tensors["features.0.0.weight"] = torch.zeros(40, 3, 3, 3)
    torch.save(tensors, path)
    message = (
        r"weights.pth: must hold torchvision's or timm's efficientnet_b0 \(missing: features.8.0.weight; of another "
        r"shape: features.0.0.weight \(40, 3, 3, 3\) instead of \(32, 3, 3, 3\); not of it: head.weight\); give its"
    )
    with pytest.raises(RunError, match=message):
        load_vision_weights(make_network(0), B0, path)
    torch.save({"one": torch.zeros(1)}, path)
    with pytest.raises(RunError, match=r"missing: conv_stem.weight, .* and \d+ more; not of it: one\)"):
        load_vision_weights(make_network(0), B0, path)


@pytest.mark.parametrize("content", [None, b"", b"no tensors", {"epoch": 3}])
def test_a_file_that_is_none(tmp_path, content):
    for path in (tmp_path / "weights.pth", tmp_path / "weights.safetensors"):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            torch.save(content, path)
        with pytest.raises(RunError, match=r"--vision-weights .*: cannot be read \(.*\); give a file of safetensors"):
            load_vision_weights(make_network(0), B0, path)


def test_no_code_in_a_file_is_run(tmp_path):
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (sprung,)

    torch.save({"stem.convolve.weight": Trap()}, path)
    with pytest.raises(RunError, match="cannot be read"):
        load_vision_weights(make_network(0), B0, path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap is none"


def test_a_run_begins_with_them_and_goes_on_without_the_file(tmp_path):
    path, source = tmp_path / "weights.pth", source_weights()
    torch.save(translated(2), path)
    model = {"vision": B0, "vision_weights": str(path), "image_tokens": 2, "window": 1}
    log, keys = write_tasks(tmp_path / "log"), ("arm", "camera", "told")
    config = make_config(
        dataset=log, out=tmp_path / "run", observations=keys, steps=1, batch_size=2, device="cpu", **model
    )
    dataset, _ = load_dataset(config)
    learner, *_ = build(config, dataset)
    assert isinstance(learner, QTransformerLearner)
    for policy in (learner.policy, learner.target):
        weights = policy.model.encoder.cameras[0].state_dict()
        assert all(
            torch.equal(weights[f"network.{name}"], value)
            for name, value in source.items()
            if not name.startswith("films")
        )
    train(config)
    path.unlink()
    build(replace(config, resume=True), dataset)
    with pytest.raises(RunError, match="cannot be read"):
        build(config, dataset)
