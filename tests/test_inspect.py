"""The description fits into JSON, states what is in the data, and prints within 80 columns."""

import io
import json
from dataclasses import replace

from dataset_fixtures import make_dataset, make_episode
from rich.console import Console

from qtransformer_datasets.check import Finding, check_dataset
from qtransformer_datasets.inspect import describe, print_description


def printed(description):
    stream = io.StringIO()
    print_description(description, Console(file=stream, width=80))
    return stream.getvalue()


def test_describe_states_the_data(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode(3), make_episode(5, seed=1, success=False), make_episode(8, seed=2)])
    description = json.loads(json.dumps(describe(dataset, check_dataset(dataset))))
    assert (description["episodes"], description["steps"], description["success_rate"]) == (3, 16, 2 / 3)
    assert description["lengths"] == {"min": 3, "median": 5, "max": 8}
    assert description["returns"] == {"min": 0, "median": 1, "max": 1}
    assert description["environment"] == {"id": "test/Point-v0", "kwargs": {}, "control_hz": 10.0}
    assert description["fingerprint"] == dataset.fingerprint
    assert [row["name"] for row in description["observations"]["state"]] == ["state[0]", "state[1]"]
    left = description["actions"][0]
    assert (left["name"], left["unit"], left["low"], left["high"]) == ("left", "m/s", -1.0, 1.0)
    assert left["min"] == min(float(episode.actions[:, 0].min()) for episode in dataset.episodes)
    assert description["findings"] == []


def test_printed_text_fits_80_columns_and_keeps_brackets(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode()])
    dataset = replace(dataset, metadata={"note": "the recording was interrupted", "success_rule": "a flag"})
    findings = [Finding("error", "not-finite", "step [bold] 3 " + "is NaN " * 30)]
    text = printed(describe(dataset, findings))
    assert max(len(line) for line in text.splitlines()) <= 80
    for part in ("test/Point-v0 at 10 Hz", "100.0% (a flag)", "state[1]", "step [bold] 3", "recording was interrupted"):
        assert part in text


def test_a_sound_dataset_says_so_and_unknown_values_are_named(tmp_path):
    dataset = make_dataset(tmp_path, [replace(make_episode(), success=None)])
    spec = replace(dataset.spec, environment_id=None, control_hz=None)
    text = printed(describe(replace(dataset, spec=spec), []))
    assert "No problems found." in text
    assert text.count("unknown") == 2


def test_missing_element_names_are_numbered(tmp_path):
    dataset = make_dataset(tmp_path, [make_episode()])
    observations = tuple(replace(each, elements=(), units=()) for each in dataset.spec.observations)
    description = describe(replace(dataset, spec=replace(dataset.spec, observations=observations)), [])
    assert [row["name"] for row in description["observations"]["state"]] == ["[0]", "[1]"]
