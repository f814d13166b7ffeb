"""Processes that train together: what they exchange, and that one that fails ends all with one message."""

from __future__ import annotations

import json
import os

import pytest
import rank_children
import torch
from rank_fixtures import start_ranks

from qtransformer import ranks
from qtransformer.config import RunError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork server")


def test_alone_nothing_is_exchanged():
    tensor = torch.tensor([1.0, 2.0])
    ranks.add([tensor])
    ranks.copy_from_first([tensor])
    ranks.wait()
    ranks.require_same("a thing", "mine")
    with ranks.first_goes_first(), ranks.joined("cpu"):
        assert (ranks.rank(), ranks.local_rank(), ranks.world_size()) == (0, 0, 1)
    assert tensor.tolist() == [1.0, 2.0]
    rows = torch.ones(2, 3)
    assert ranks.gathered(rows) is rows
    assert ranks.largest(-3) == -3.0


def test_what_two_ranks_exchange(tmp_path):
    started = start_ranks(rank_children.exchange, tmp_path)
    assert [each.wait() for each in started] == [0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, each in enumerate(found):
        assert each["sums"] == [[[3.0, 3.0], [3.0, 3.0]], 30.0]
        assert each["gathered"] == [[0.5], [0.75], [1.5], [1.75]]
        assert each["largest"] == [1.0, 0.0, 1.0]
        assert each["copied"] == [0, 7]
        assert each["found"] == bool(rank)  # rank 1 finds what rank 0 has written
        assert each["refusal"].startswith(f"a thing must be the same for all 2 ranks, got that of {rank} at rank")
        assert each["who"] == [rank, rank, 2]


@pytest.mark.parametrize(
    ("how", "statuses", "words"),
    [
        ("one", [2, 2], "the disk is full"),
        ("all", [2, 2], "the disk is full"),
        ("killed", [2, 9], "one of the 2 ranks has ended without a word (out of memory, perhaps: see the system's"),
    ],
)
def test_one_rank_says_why_all_end(tmp_path, how, statuses, words):
    started = start_ranks(rank_children.fail, tmp_path / "said", how)
    assert [each.wait() for each in started] == statuses
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert line.startswith(words)


def test_an_environment_that_names_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(RunError, match=r"WORLD_SIZE \(2\) processes must find each other, .*RANK.*torchrun, or unset"),
        ranks.joined("cpu"),
    ):
        pass
