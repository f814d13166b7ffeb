"""A number as a distribution over atoms, by hand and back."""

from __future__ import annotations

import math

import pytest
import torch

from qtransformer.hl_gauss import hl_gauss_edges, hl_gauss_labels, hl_gauss_values


def normal_mass(low, high, std):
    return 0.5 * (math.erf(high / (std * math.sqrt(2))) - math.erf(low / (std * math.sqrt(2))))


def test_hl_gauss_edges_leave_three_deviations_on_either_side():
    edges = hl_gauss_edges(51, 0.75)
    atom = 1 / (51 - 4.5)
    torch.testing.assert_close(edges.diff(), torch.full((51,), atom))
    assert (edges[0].item(), edges[-1].item()) == (pytest.approx(-2.25 * atom), pytest.approx(1 + 2.25 * atom))
    with pytest.raises(ValueError, match=r"num_atoms \(4\) must be above 4.5, six deviations; use more atoms"):
        hl_gauss_edges(4, 0.75)


def test_hl_gauss_labels_by_hand():
    edges = torch.tensor([0.0, 0.25, 0.5, 1.0])
    masses = [normal_mass(low - 0.3, high - 0.3, 0.2) for low, high in ((0, 0.25), (0.25, 0.5), (0.5, 1))]
    labels = hl_gauss_labels(torch.tensor([0.3, 7.0]), edges, 0.2)
    assert labels[0].tolist() == pytest.approx([each / sum(masses) for each in masses], abs=1e-6)
    torch.testing.assert_close(labels[1], hl_gauss_labels(torch.tensor(1.0), edges, 0.2))


@pytest.mark.parametrize("num_atoms", [21, 51, 101])
def test_hl_gauss_values_undo_labels_from_end_to_end(num_atoms):
    edges = hl_gauss_edges(num_atoms, 0.75)
    targets = torch.linspace(0, 1, 401)
    labels = hl_gauss_labels(targets, edges, 0.75 * edges.diff()[0].item())
    torch.testing.assert_close(labels.sum(dim=-1), torch.ones(401))
    read_back = hl_gauss_values(labels.log().clamp_min(-100), edges)
    torch.testing.assert_close(read_back, targets, rtol=0, atol=1e-3)
