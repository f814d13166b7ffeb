"""What a person reads of a comparison: every figure, in words that say what it means, and a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from qtransformer.compare_report import evidence, judgement, outlook, print_comparison, save_picture, verdict
from qtransformer.comparison_pairs import Comparison, Method, Pair, compare
from qtransformer.config import RunError

METHODS = (
    Method("ours", ("a", "b"), np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])),
    Method("cloning", ("c",), np.array([[0.0, 0.0, 1.0, 0.0]])),
)
PLAYED = METHODS[0].outcomes.shape[1]


def make_pair(adjusted, *, difference=0.1, needed: int | None = 9, test="exact McNemar", **more):
    interval = (difference - 0.2, difference + 0.2)
    return Pair("ours", "cloning", test, difference, interval, 0.01, needed, adjusted_p_value=adjusted, **more)


def make_comparison(*pairs):
    return Comparison(METHODS, pairs, 5.0)


@pytest.mark.parametrize(
    ("adjusted", "difference", "words"),
    [
        (0.05, 0.1, "ours is better than cloning."),
        (0.05, -0.1, "cloning is better than ours."),
        (0.051, 0.1, "ours and cloning: no difference can be told."),
        (1.0, 0.0, "ours and cloning: no difference can be told."),
    ],
)
def test_the_verdict_in_words(adjusted, difference, words):
    assert verdict(make_pair(adjusted, difference=difference)) == words


def test_the_evidence_in_words():
    assert evidence(make_pair(0.0312, only_a=6, only_b=1)) == (
        "ours less cloning: +10.0 points (95 % interval -10.0 to +30.0); p = 0.031, exact McNemar: "
        "6 episodes where ours alone succeeds, 1 where cloning alone does."
    )


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (9, "5 more episodes are needed to see 5 points with a power of 80%; 9 in all."),
        (4, "No more episodes are needed to see 5 points with a power of 80%; 4 do."),
    ],
)
def test_what_more_episodes_would_show(needed, words):
    pair = make_pair(0.5, needed=needed)
    assert outlook(pair, make_comparison(pair)) == [words]


def test_what_more_trainings_would_show():
    pair = make_pair(
        0.5, needed=None, test="Student's t over trainings and episodes", probability_of_improvement=(0.75, (0.5, 1.0))
    )
    assert outlook(pair, make_comparison(pair)) == [
        "No number of episodes shows 5 points with a power of 80%, if trainings vary as these do: train more often.",
        "A training of ours beats one of cloning with probability 0.75 (95 % bootstrap interval 0.50 to 1.00).",
    ]


def test_the_error_rate_in_words():
    pair = make_pair(0.5)
    assert judgement(make_comparison(pair)) == "a false one has a probability of at most 5%."
    assert judgement(make_comparison(pair, pair, pair)) == (
        "a false one has a probability of at most 5% for all 3 pairs together (p-values by Holm)."
    )


def test_everything_is_printed(capsys):
    comparison = compare(METHODS, 5.0)
    print_comparison(comparison, "4 episodes in x/Y-v0")
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    text = " ".join(text.split())
    (pair,) = comparison.pairs
    lines = [verdict(pair), evidence(pair), *outlook(pair, comparison), judgement(comparison)]
    for part in ("4 episodes in x/Y-v0", "62.5%", "75 %, 50 %", "25.0%", *lines):
        assert part in text


def test_the_picture_shows_all_and_is_replaced(tmp_path):
    path = tmp_path / "new" / "picture.png"
    sizes = []
    for methods in (METHODS, (*METHODS, Method("[third] $x$ " * 9, ("d",), np.ones((1, PLAYED))))):
        save_picture(compare(methods, 5.0), path, "4 episodes in x/Y-v0")
        picture = Image.open(io.BytesIO(path.read_bytes()))
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
        sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]  # a row more above, two more below
    assert [each.name for each in path.parent.iterdir()] == ["picture.png"]


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--picture .*p.png: cannot be written .*; choose another path"):
        save_picture(compare(METHODS, 5.0), tmp_path / "file" / "p.png", "")
