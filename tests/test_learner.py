"""A batch computed in parts, one after the other or by several ranks, is the batch computed at once."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import rank_children
import torch
from learner_fixtures import (
    UNIT,
    assert_same_bits,
    make_batch,
    make_config,
    make_learner,
    make_spec,
    noise_of,
    to_torch,
)
from rank_fixtures import start_ranks
from safetensors.torch import load_file

from qtransformer.baselines import LEARNERS
from qtransformer.batch import ObservationSpec
from qtransformer.policy import build_policy
from qtransformer.q_learning import QTransformerLearner

TOLERANCE = 2e-6  # of weights after five updates of 1e-5 to 5e-5: rounding, where a local mean is off by 1e-5 or more


def assert_alike(found, expected):
    """Fails with the names of the tensors that differ by more than rounding."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.allclose(found[name], expected[name], atol=TOLERANCE, rtol=1e-4)] == []


@pytest.mark.parametrize("algorithm", list(LEARNERS))
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_batch(algorithm, parts):
    """Six segments in four parts are three of two: as many as there can be of one size."""
    expected = rank_children.updated(algorithm)
    assert_alike(rank_children.updated(algorithm, gradient_accumulation_steps=parts), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork server")
def test_two_ranks_take_the_steps_of_one(tmp_path):
    """Means, advantages, the spread of Q and the best return are those of the whole batch; one half of it is short."""
    assert [each.wait() for each in start_ranks(rank_children.update, tmp_path)] == [0, 0]
    for algorithm in LEARNERS:
        first, second = (load_file(tmp_path / f"{algorithm}_{rank}.safetensors") for rank in range(2))
        assert_same_bits(first, second)
        assert_alike(first, rank_children.updated(algorithm))


def kept_bytes(learner, batch):
    """Returns what an update keeps for the way back."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.nbytes) or each, lambda each: each):
        learner.update(batch)
    return sum(kept)


@pytest.mark.parametrize("algorithm", ["q_transformer", "implicit_q_learning"])
def test_activation_checkpointing_changes_no_bit(algorithm):
    assert_same_bits(rank_children.updated(algorithm), rank_children.updated(algorithm, activation_checkpointing=True))


def test_activation_checkpointing_and_accumulation_keep_less():
    sizes = {"width": 32, "num_layers": 3, "num_action_layers": 2}
    batch = make_batch(16)
    whole, recomputed, accumulated = (
        kept_bytes(make_learner(make_config(None, **sizes, **changes)), batch)
        for changes in ({}, {"activation_checkpointing": True}, {"gradient_accumulation_steps": 4})
    )
    assert recomputed < 0.5 * whole
    assert accumulated / 4 < 0.5 * whole  # of each of the four parts, which come one after the other


def test_words_that_a_segment_is_told_in_hindsight_say_nothing_of_its_table():
    observations = (ObservationSpec("objects", (2, 3), "float32"), ObservationSpec("told", (), "str", "text"))
    statistics = {key: {"mean": [0.0] * size, "std": [1.0] * size} for key, size in (("objects", 6), ("told", 4))}
    config, spec = make_config(relabel=0.5), replace(make_spec(1), observations=observations)
    torch.manual_seed(0)
    policy = build_policy(config, spec, statistics)
    learner = QTransformerLearner(policy, config, UNIT, noise_of(policy))
    seen = {"objects": torch.randn(4, 4, 2, 3), "told": torch.randn(4, 4, 4)}
    for is_relabelled in ([False] * 4, [False, True, True, False], [True] * 4):
        batch = to_torch(make_batch(4, num_dimensions=1, is_relabelled=np.array(is_relabelled)))
        part = replace(batch, observations=seen)
        loss, figures = learner._grounded(part, torch.tensor(1.0), {}, share=0.5)
        rows = [row for row, is_other in enumerate(is_relabelled) if not is_other]
        of_told = policy.model.encoder.grounding_loss({key: value[rows or [0]] for key, value in seen.items()})
        assert of_told is not None  # 0 of one segment alone, which finds itself
        assert figures["grounding"].item() == pytest.approx(0.5 * of_told.item(), rel=1e-5)
        assert loss.item() == pytest.approx(1.0 + 0.1 * 0.5 * of_told.item(), rel=1e-5)
        assert bool(rows) == (figures["grounding"].item() > 0)
