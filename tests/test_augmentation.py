"""Changed images: by hand, alike over a segment, a function of seed and update."""

from __future__ import annotations

import pytest
import torch

from qtransformer.augmentation import Augmentation, coloured, shifted


def pictures(B=3, F=2, H=20, W=40, C=3):
    return torch.randint(256, (B, F, H, W, C), generator=torch.Generator().manual_seed(0)).byte()


def test_a_shift_by_hand():
    picture = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3, 1)  # 0 1 2 / 3 4 5
    for offset, expected in (([0, 0], [0, 1, 2, 3, 4, 5]), ([1, 0], [3, 4, 5, 3, 4, 5]), ([0, -1], [0, 0, 1, 3, 3, 4])):
        assert shifted(picture, torch.tensor([offset])).flatten().tolist() == expected


def test_colours_by_hand():
    picture = torch.tensor([[100, 50, 0]], dtype=torch.uint8).view(1, 1, 1, 1, 3)
    for factors, expected in (
        ([1.0, 1.0, 1.0], [100, 50, 0]),
        ([2.0, 1.0, 1.0], [200, 100, 0]),
        ([3.0, 1.0, 1.0], [255, 150, 0]),  # no brighter than white
        ([1.0, 0.5, 1.0], [113.75, 88.75, 63.75]),  # half as far from 127.5
        ([1.0, 1.0, 0.0], [50, 50, 50]),  # grey
        ([1.0, 1.0, 0.5], [75, 50, 25]),
        ([2.0, 0.5, 0.5], [202.5, 177.5, 152.5]),
    ):
        found = coloured(picture, torch.tensor([factors])).flatten().tolist()
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_segment_is_changed_alike_and_cameras_apart():
    same = pictures()[:, :1].expand(3, 2, 20, 40, 3)
    changed = Augmentation(0.1, 0.2, seed=0)({"a": same, "b": same}, update=5)
    for each in changed.values():
        assert torch.equal(each[:, 0], each[:, 1])
        assert not torch.equal(each[0], each[1])
    assert not torch.equal(changed["a"], changed["b"])


def test_the_changes_are_a_function_of_seed_and_update():
    images = {"a": pictures()}
    changed = Augmentation(0.1, 0.2, seed=1)(images, update=7)["a"]
    torch.manual_seed(99)
    assert torch.equal(Augmentation(0.1, 0.2, seed=1)(images, update=7)["a"], changed)
    assert not torch.equal(Augmentation(0.1, 0.2, seed=1)(images, update=8)["a"], changed)
    assert not torch.equal(Augmentation(0.1, 0.2, seed=2)(images, update=7)["a"], changed)


def test_ranks_that_share_a_batch_change_it_as_one_would():
    images, augment = {"a": pictures(), "b": pictures()}, Augmentation(0.1, 0.2, seed=1)
    whole = augment(images, update=7)
    share = augment({key: value[1:] for key, value in images.items()}, update=7, first=1)
    assert all(torch.equal(share[key], whole[key][1:]) for key in images)


def test_shifts_reach_as_far_as_they_may_and_no_further():
    """A tenth of 20 lines and 40 columns: up to 2 and 4 pixels. A single bright pixel tells where it went."""
    dots = torch.zeros(300, 1, 20, 40, 1, dtype=torch.uint8)
    dots[:, :, 10, 20] = 255
    _, _, rows, columns, _ = Augmentation(0.1, 0.0, seed=0)({"a": dots}, 0)["a"].nonzero(as_tuple=True)
    assert sorted(set(rows.tolist())) == [8, 9, 10, 11, 12]
    assert sorted(set(columns.tolist())) == list(range(16, 25))


def test_nothing_is_changed_where_nothing_is_asked_for():
    images = pictures()
    assert Augmentation(0.0, 0.0, seed=0)({"a": images}, 0)["a"] is images
    assert Augmentation(0.01, 0.0, seed=0)({"a": images[:, :, :, :20]}, 0)["a"].dtype == torch.uint8
