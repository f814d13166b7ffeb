"""Which frames a recorded step sees, and where rounding could decide otherwise; the rest is in test_export."""

from __future__ import annotations

import numpy as np
import torch
from learner_fixtures import make_config, make_policy

from qtransformer.deploy.golden import MAX_STEPS, Samples, golden_steps, tied_bins, windows
from qtransformer.model import TokenOutputs


def test_windows_end_with_the_newest_frame_and_begin_after_a_reset():
    """Frames 0 to 3 are one episode, 4 and 5 the next; what is missing stands behind, as copies of the newest."""
    indices, num_frames = windows(np.array([1, 0, 0, 0, 1, 0], bool), 3)
    assert num_frames.tolist() == [1, 2, 3, 3, 1, 2]
    assert indices.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2], [1, 2, 3], [4, 4, 4], [4, 5, 5]]
    indices, num_frames = windows(np.array([1, 0], bool), 1)
    assert (indices.tolist(), num_frames.tolist()) == ([[0], [1]], [1, 1])


def test_steps_do_not_depend_on_how_many_are_decided_at_a_time():
    policy, rng = make_policy(make_config(num_bins=5)).eval(), np.random.default_rng(0)
    samples = Samples({"state": rng.normal(size=(150, 3, 2)).astype(np.float32)}, np.full(150, 3))
    golden = golden_steps(policy, samples)
    assert golden["is_reset"].sum() == 19
    assert len(golden["outputs.tokens"]) == 450  # two blocks of 256 rows
    for step in (0, 255, 256, 449):
        (indices,), (count,) = (each[step : step + 1] for each in windows(golden["is_reset"], 3))
        frames = torch.from_numpy(golden["inputs.state"][indices][None])
        with torch.no_grad():
            expected = policy({"state": frames}, torch.tensor([count]))
        assert golden["outputs.tokens"][step].tolist() == expected.tokens[0].tolist()


def test_there_are_not_too_many_steps():
    policy = make_policy(make_config()).eval()
    samples = Samples({"state": np.zeros((MAX_STEPS, 3, 2), np.float32)}, np.full(MAX_STEPS, 3))
    assert len(golden_steps(policy, samples)["is_reset"]) == MAX_STEPS


def atoms_of(values: list[float]) -> torch.Tensor:
    """Logits whose distributions over 21 atoms have means that rise with `values`, the same way for each bin."""
    return torch.tensor(values)[:, None] * torch.linspace(-1, 1, 21)


def test_ties_of_values_that_are_distributions():
    config = make_config(num_bins=4, num_atoms=21)
    policy = make_policy(config)
    policy.support_threshold = policy.support_temperature = 0.0
    for values, tied in (([0.0, 1.0, 2.0, 0.0], [2]), ([0.0, 1.999995, 2.0, 0.0], [1, 2])):
        outputs = TokenOutputs(atoms_of(values)[None, None], torch.zeros(1, 1, 4))
        is_tied = tied_bins(policy, policy.choose(outputs), outputs)
        assert is_tied[0, 0].nonzero().flatten().tolist() == tied


def test_a_policy_of_distributions_has_golden_steps():
    policy = make_policy(make_config(num_bins=4, num_atoms=21)).eval()
    golden = golden_steps(policy, Samples({"state": np.zeros((2, 3, 2), np.float32)}, np.array([1, 3])))
    assert golden["is_tied"].shape == (4, 3, 4)
