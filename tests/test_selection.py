"""Choosing from datasets and joining them: right episodes, new fingerprints, no empty result."""

import json
from dataclasses import replace

import numpy as np
import pytest
from dataset_fixtures import make_dataset, make_episode, make_spec

from qtransformer.batch import DatasetSpec
from qtransformer_datasets import selection
from qtransformer_datasets.formats.text import with_instruction
from qtransformer_datasets.schema import DatasetError


def test_texts_are_told_once_and_sorted(tmp_path):
    episodes = [make_episode(seed=0), make_episode(seed=1), make_episode(seed=2)]
    told = [["push", "push", "lift", "lift"], ["push"] * 4, ["åka"] * 4]
    episodes = [
        replace(each, observations={**each.observations, "told": np.array(words)})
        for each, words in zip(episodes, told, strict=True)
    ]
    assert selection.texts(make_dataset(tmp_path, episodes)) == {"told": ["lift", "push", "åka"]}
    assert selection.texts(make_dataset(tmp_path, [make_episode()])) == {}


def make_mixed(tmp_path):
    return make_dataset(
        tmp_path, [make_episode(seed=0), make_episode(seed=1, success=False), make_episode(seed=2)], ("b", "a")
    )


def test_only_successful_keeps_order_and_changes_the_fingerprint(tmp_path):
    dataset = make_mixed(tmp_path)
    filtered = selection.only_successful(dataset)
    assert [episode.seed for episode in filtered.episodes] == [0, 2]
    assert filtered.fingerprint != dataset.fingerprint
    with pytest.raises(DatasetError, match="none of 1 episodes succeeded; use the unfiltered"):
        selection.only_successful(dataset.with_episodes(dataset.episodes[1:2]))


def test_min_return_counts_the_undiscounted_sum(tmp_path):
    dataset = make_mixed(tmp_path)
    assert [episode.seed for episode in selection.with_min_return(dataset, 1.0).episodes] == [0, 2]
    assert selection.with_min_return(dataset, 0.0).num_episodes == 3
    with pytest.raises(DatasetError, match=r"none of 3 episodes has a return of 1.5 or more \(the best has 1\)"):
        selection.with_min_return(dataset, 1.5)


def test_a_task_is_an_instruction_word_for_word(tmp_path):
    dataset = with_instruction(make_dataset(tmp_path, [make_episode()]), "pick")
    assert dataset.spec.observations[-1].kind == "text"
    assert np.asarray(dataset.episodes[0].observations["instruction"]).tolist() == ["pick"] * 4
    assert selection.with_task(dataset, "pick").num_episodes == 1
    with pytest.raises(DatasetError, match=r"none of 1 episodes has the task 'Pick'; known are \['pick'\]"):
        selection.with_task(dataset, "Pick")
    with pytest.raises(DatasetError, match=r"known are none, since the log has no text"):
        selection.with_task(make_mixed(tmp_path), "pick")
    with pytest.raises(DatasetError, match=r"has text of its own in \['instruction'\]; leave out --instruction"):
        with_instruction(dataset, "push")


def test_observations_are_selected_in_the_order_of_the_spec(tmp_path):
    episodes = [make_episode(seed=seed, keys=("a", "b", "c")) for seed in (0, 1)]
    dataset = make_dataset(tmp_path, episodes, ("a", "b", "c"))
    chosen = selection.select_observations(dataset, ("c", "a"))
    assert [each.name for each in chosen.spec.observations] == ["a", "c"]
    assert [list(episode.observations) for episode in chosen.episodes] == [["a", "c"]] * 2
    assert chosen.spec.ignored_observations == ("b",)
    assert DatasetSpec.from_json(json.loads(json.dumps(chosen.spec.to_json()))) == chosen.spec
    assert "ignored_observations" not in dataset.spec.to_json()
    assert chosen.fingerprint != dataset.fingerprint
    for keys, named in (((), "none"), (("a", "depth"), r"\['depth'\]")):
        with pytest.raises(DatasetError, match=rf"observations {named} asked for, but the log has \['a', 'b', 'c'\]"):
            selection.select_observations(dataset, keys)


@pytest.mark.parametrize(("share", "num"), [(0.1, 1), (0.3, 3), (0.99, 9)])
def test_a_split_holds_out_whole_episodes_once(tmp_path, share, num):
    dataset = make_dataset(tmp_path, [make_episode(seed=seed) for seed in range(10)])
    training, held = selection.split(dataset, share, seed=3)
    assert held.num_episodes == num
    kept, out = ([int(episode.seed or 0) for episode in part.episodes] for part in (training, held))
    assert sorted(kept + out) == list(range(10))
    assert (kept, out) == (sorted(kept), sorted(out))
    assert selection.split(dataset, share, seed=3)[1].fingerprint == held.fingerprint
    if num == 3:
        assert selection.split(dataset, share, seed=4)[1].fingerprint != held.fingerprint


def test_what_cannot_be_split_is_explained(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode()])
    with pytest.raises(DatasetError, match="must hold two episodes or more to be split, got 1"):
        selection.split(dataset, 0.5)
    with pytest.raises(DatasetError, match=r"held_out \(1.0\) must be between 0 and 1"):
        selection.split(dataset, 1.0)


def test_merging_joins_episodes_rules_and_notes(tmp_path):
    first = replace(make_dataset(tmp_path / "a", [make_episode(seed=0)]), rules={"success": "flag"}, notes=("torn",))
    second = replace(make_dataset(tmp_path / "b", [make_episode(seed=1)]), rules={"success": "guess"})
    merged = selection.merge([first, second], tmp_path)
    assert [each.source for each in merged.episodes] == ["a/main_data.hdf5:episode_0", "b/main_data.hdf5:episode_1"]
    assert (merged.path, merged.notes) == (tmp_path, ("torn",))
    assert merged.rules == {"success": "flag; elsewhere: guess"}
    together = make_dataset(tmp_path, [make_episode(seed=0), make_episode(seed=1)])
    assert merged.fingerprint == together.fingerprint


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (make_spec(("other",)), "observations"),
        (replace(make_spec(), control_hz=20.0), "control_hz"),
        (replace(make_spec(), environment_id="Other-v0"), "environment_id"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(tmp_path, spec, name):
    first = make_dataset(tmp_path / "a", [make_episode()])
    with pytest.raises(DatasetError, match=rf"b: {name} must be those of .*a to be read as one set"):
        selection.merge([first, replace(first, path=tmp_path / "b", spec=spec)], tmp_path)


def test_selections_copy_no_array(tmp_path):
    dataset = make_mixed(tmp_path)
    assert np.shares_memory(selection.only_successful(dataset).episodes[0].actions, dataset.episodes[0].actions)
