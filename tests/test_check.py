"""The check as a whole: what blocks, what may be allowed, what is left out, and that every code is one of the table."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from check_fixtures import CAMERA, INSTRUCTION, StoredFrames, edited, find, log_of, sound_log, with_rows
from dataset_fixtures import make_episode

import qtransformer_datasets
from qtransformer_datasets.check import BLOCKING, check_dataset, raise_on_errors
from qtransformer_datasets.finding import CODES, finding, places_of
from qtransformer_datasets.schema import DatasetError


def test_a_sound_log_passes():
    assert check_dataset(sound_log()) == []
    raise_on_errors([])


def test_images_and_text_pass_every_check_and_no_image_is_decoded():
    episodes = [
        with_rows(
            each,
            camera=StoredFrames([bytes([row]) for row in range(each.num_steps + 1)]),
            instruction=np.full(each.num_steps + 1, "pick up the cube"),
        )
        for each in sound_log().episodes
    ]
    assert check_dataset(log_of(*episodes, extra=(CAMERA, INSTRUCTION))) == []


def test_empty_episodes_are_left_out_of_the_other_checks():
    found = find(log_of(make_episode(), make_episode(0, seed=7)))
    assert list(found) == ["empty-episode"]
    assert found["empty-episode"].message == "main_data.hdf5:episode_7 has no steps"
    assert list(find(log_of(make_episode(0, seed=7)))) == ["empty-episode"]


def test_episodes_of_wrong_lengths_are_left_out_of_the_other_checks():
    broken = edited(replace(make_episode(3, seed=4), rewards=np.ones(2)), "state", 0, np.nan)
    found = find(log_of(make_episode(), broken))
    assert list(found) == ["wrong-length"]
    assert found["wrong-length"].message == ("main_data.hdf5:episode_4: rewards must have 3 rows for 3 actions, got 2")
    assert found["wrong-length"].severity == "error"


def test_errors_come_first_and_block_with_reason_and_advice():
    failure = make_episode(success=False)
    findings = check_dataset(log_of(failure, failure))
    assert [(each.severity, each.code) for each in findings] == [
        ("error", "no-reward"),
        ("warning", "duplicate-episode"),
    ]
    with pytest.raises(DatasetError) as error:
        raise_on_errors(findings)
    assert str(error.value) == (
        "no-reward: log: rewards are zero at every step of all 2 episodes: every action looks as good as any other, so "
        "there is nothing to learn from; add successful episodes, or label the rewards"
    )


def test_all_errors_are_told_at_once():
    log = log_of(edited(make_episode(success=False), "actions", 1, 2.0))
    with pytest.raises(DatasetError, match=r"^action-limits: main_data.*\nno-reward: log"):
        raise_on_errors(check_dataset(log))


def test_warnings_do_not_block():
    findings = check_dataset(log_of(make_episode(), make_episode()))
    assert [each.code for each in findings] == ["duplicate-episode"]
    raise_on_errors(findings)


def test_an_allowed_error_does_not_block_and_the_others_do():
    findings = check_dataset(log_of(edited(make_episode(success=False), "actions", 1, 2.0)))
    raise_on_errors(findings, allow=("no-reward", "action-limits"))
    with pytest.raises(DatasetError, match=r"^action-limits"):
        raise_on_errors(findings, allow=["no-reward"])


@pytest.mark.parametrize("code", ["no-rewards", "idle"])
def test_only_codes_that_block_can_be_allowed(code):
    match = rf"allow \({code}\) must name codes that block training: empty-episode, .*, no-reward"
    with pytest.raises(DatasetError, match=match):
        raise_on_errors([], allow=(code, "no-reward"))


def test_every_code_of_the_table_belongs_to_a_check_and_the_other_way_round():
    folder = Path(qtransformer_datasets.__file__).parent
    sources = "".join(file.read_text() for file in folder.glob("check*.py"))
    assert set(re.findall(r'finding\(\s*"([\w-]+)"', sources)) == set(CODES)
    assert set(BLOCKING) < set(CODES)


def test_places_are_kept_and_counted():
    places = places_of([f"p{index}" for index in range(1200)])
    assert places.first == ("p0", "p1", "p2", "p3", "p4")
    assert str(places) == "p0 (and 1,199 more places)"
    assert str(places_of(["p0", "p1"])) == "p0 (and 1 more place)"
    assert str(places_of(["p0"])) == "p0"
    made = finding("idle", "it waits", "why", "do", places)
    assert (made.severity, made.count, made.sentence) == ("warning", 1200, "it waits: why; do")
