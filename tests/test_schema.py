"""Episodes and datasets in memory: lengths, filters, fingerprints."""

from dataclasses import replace

import numpy as np
from dataset_fixtures import make_dataset, make_episode, make_spec

from qtransformer_datasets.schema import fingerprint


def test_a_sound_episode_has_no_length_problems():
    assert make_episode().length_problems() == []
    assert make_episode(final=False).length_problems() == []


def test_length_problems_name_the_array_and_both_lengths():
    episode = replace(make_episode(3), rewards=np.zeros(2))
    assert episode.length_problems() == ["rewards must have 3 rows for 3 actions, got 2"]
    without_final = replace(make_episode(3, final=False), has_final_observation=True)
    assert without_final.length_problems() == ["observations/state must have 4 rows for 3 actions, got 3"]


def test_counts_and_success_rate_leave_out_unknown_success(tmp_path):
    episodes = [make_episode(3), make_episode(5, success=False), replace(make_episode(2), success=None)]
    dataset = make_dataset(tmp_path, episodes)
    assert (dataset.num_episodes, dataset.num_steps, dataset.success_rate) == (3, 10, 0.5)
    assert make_dataset(tmp_path, episodes[2:]).success_rate is None


def test_fingerprint_depends_on_content_and_order_alone():
    spec, first, second = make_spec(), make_episode(seed=0), make_episode(seed=1)
    base = fingerprint(spec, (first, second))
    assert fingerprint(spec, (replace(first, source="elsewhere"), second)) == base
    assert fingerprint(spec, (second, first)) != base
    assert fingerprint(replace(spec, control_hz=20.0), (first, second)) != base
    assert fingerprint(spec, (replace(first, rewards=first.rewards + 1), second)) != base
    assert fingerprint(spec, (replace(first, success=False), second)) != base
    assert fingerprint(spec, (replace(first, goal="lift"), second)) != base
