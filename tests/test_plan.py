"""What a training costs on paper, against what torch counts and keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_fixtures import UNIT, make_batch, make_config, make_learner, make_spec, noise_of

from qtransformer.batch import DatasetSpec, ObservationSpec
from qtransformer.cli import main
from qtransformer.config import LearningConfig, RunError
from qtransformer.plan import Plan, Sizes, count_flops, number, update_flops, width_for
from qtransformer.policy import build_policy
from qtransformer.q_learning import QTransformerLearner
from qtransformer_datasets.windows import looked_at

SIZES = Sizes(32, 2, 1, 3, 4, 16, 2)


def learner_of(sizes, **changes):
    config = make_config(
        LearningConfig(environment_steps=sizes.environment_steps),
        width=sizes.width,
        num_layers=sizes.num_layers,
        num_action_layers=sizes.num_action_layers,
        window=sizes.window,
        num_bins=sizes.num_bins,
        **changes,
    )
    return make_learner(config, num_dimensions=sizes.dimensions, size=sizes.state_size)


def batch_of(sizes, segments):
    """A batch as the sampler gives it: with the frames that are looked at."""
    num_steps = sizes.window + sizes.environment_steps - 1
    batch = make_batch(segments, num_steps=num_steps, num_dimensions=sizes.dimensions)
    return replace(batch, frames=looked_at(batch.is_valid, sizes.window, True))


@pytest.mark.parametrize(
    "sizes",
    [
        SIZES,
        replace(SIZES, num_layers=4, window=5),
        replace(SIZES, window=6, environment_steps=2),  # the last window shares 4 frames with the first
        replace(SIZES, num_action_layers=3),
        replace(SIZES, width=96),
    ],
)
def test_parameters_and_operations_are_those_of_the_network(sizes):
    learner = learner_of(sizes)
    assert sizes.parameters == sum(each.numel() for each in learner.policy.parameters())
    counted = count_flops(lambda: learner.update(batch_of(sizes, 6)))
    assert update_flops(sizes, 6) == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize(("window", "image_tokens"), [(6, 3), (2, 8)])
def test_images_add_tokens_and_their_network(window, image_tokens):
    torch.manual_seed(0)
    config = make_config(LearningConfig(), width=32, num_layers=4, window=window, image_tokens=image_tokens)
    spec = DatasetSpec(
        (ObservationSpec("state", (2,), "float32"), ObservationSpec("camera", (32, 32, 3), "uint8", "image")),
        make_spec().actions,
    )
    statistics = {name: {"mean": [0.0] * size, "std": [1.0] * size} for name, size in (("state", 2), ("camera", 3))}
    policy = build_policy(config, spec, statistics)
    learner = QTransformerLearner(policy, config, UNIT, noise_of(policy))
    batch = batch_of(replace(SIZES, window=window, dimensions=3), 2)
    pictures = np.zeros((*batch.frames.shape, 32, 32, 3), np.uint8)
    batch = replace(batch, observations={**batch.observations, "camera": pictures})
    (camera,) = policy.model.encoder.cameras
    frame = count_flops(lambda: camera(torch.zeros(1, 1, 32, 32, 3), torch.zeros(1, 1, 0)).sum().detach())
    sizes = Sizes(32, 4, 1, window, 3, 4, 2, frame_flops=float(frame), image_tokens=image_tokens)
    learned = [each.numel() for each in policy.parameters()]
    assert sizes.parameters == sum(learned) - sum(each.numel() for each in camera.parameters())
    counted = count_flops(lambda: learner.update(batch))
    assert update_flops(sizes, 2) == pytest.approx(counted, rel=0.05)  # pixels have no gradient
    assert update_flops(replace(sizes, image_tokens=0), 2) < 0.8 * counted


def test_recomputed_operations_are_counted():
    learner = learner_of(SIZES, activation_checkpointing=True)
    counted = count_flops(lambda: learner.update(batch_of(SIZES, 6)))
    assert update_flops(SIZES, 6, is_recomputed=True) == pytest.approx(counted, rel=1e-6)
    assert update_flops(SIZES, 6, is_recomputed=True) > 1.1 * update_flops(SIZES, 6)


@pytest.mark.parametrize("sizes", [SIZES, replace(SIZES, width=96, num_layers=5)])
def test_what_is_kept_for_the_way_back(sizes):
    learner, kept = learner_of(sizes), []
    own = {each.untyped_storage().data_ptr() for each in learner.policy.parameters()}

    def keep(each):
        kept.append(0 if each.untyped_storage().data_ptr() in own else each.nbytes)
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        learner.update(batch_of(sizes, 6))
    assert 4 * 6 * sizes.kept_numbers == pytest.approx(sum(kept), rel=0.2)


def test_hours_by_hand():
    log = {"episodes": "1k", "episode_steps": 60}
    plan = Plan(params="1M", **log, window=6, batch_size=100, device_flops="1T", utilisation=0.5)
    assert plan.updates == 100
    assert plan.sizes.width == width_for(1e6, plan.sizes)
    assert replace(plan.sizes, width=plan.sizes.width - 64).parameters < 1e6 <= plan.sizes.parameters
    assert plan.flops == 100 * update_flops(plan.sizes, 100)
    assert plan.hours["computing"] == pytest.approx(plan.flops / 0.5e12 / 3600)
    assert plan.bytes_read == 100 * 100 * 11 * 4 * (64 + 8 + 2)
    assert plan.hours["reading"] == pytest.approx(plan.bytes_read / 1e9 / 3600)
    two = replace(plan, num_devices=2, gradient_accumulation_steps=2)
    assert two.hours["computing"] == plan.hours["computing"] / 2
    assert two.memory["activations"] == plan.memory["activations"] / 4
    assert replace(plan, activation_checkpointing=True).memory["activations"] < 0.2 * plan.memory["activations"]
    images = replace(plan, frame_flops="1G", frame_bytes="49k")
    of_a_segment = 3 * 6 + 11  # forward and back through the policy; the target network's, which share one frame
    assert images.flops - plan.flops == pytest.approx(100 * 100 * of_a_segment * 1e9)
    assert replace(plan, environment_steps=1).bytes_read == plan.bytes_read * 7 / 11


def test_the_command(capsys):
    assert main(["plan", "--params", "60M", "--episodes", "300k"]) == 0
    said = capsys.readouterr().out
    assert "--width" in said
    assert "bound by" in said


@pytest.mark.parametrize("text", ["", "M", "60X", "-1k", "nan", "inf"])
def test_what_is_no_number(text):
    with pytest.raises(RunError, match=r"params \(.*\) must be a number like 60M or 1.5G \(k, M, G, T, P\); change"):
        number("params", text)
    assert number("params", "1.5k") == 1500


@pytest.mark.parametrize(("name", "nothing"), [("utilisation", 0.0), ("num_devices", 0)])
def test_nothing_cannot_compute(name, nothing):
    flag = name.replace("_", "-")
    with pytest.raises(RunError, match=rf"{flag} \({nothing}\) must be above 0; change --{flag}"):
        replace(Plan(), **{name: nothing}).hours  # noqa: B018
