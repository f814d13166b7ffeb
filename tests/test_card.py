"""The card's schema, and the command that trains again; what the export writes into a card is in test_export."""

from __future__ import annotations

import copy
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro
from controller_fixtures import CARD

from qtransformer.cli import _commands
from qtransformer.config import DataConfig, LearningConfig, ModelConfig, TokenConfig, TrainConfig
from qtransformer.deploy.card import schema, schema_violations, training_command
from qtransformer.deploy.controller import SCHEMA_VERSION
from qtransformer.presets import PRESETS

MISTAKES: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("schema_version",), 1, f"policy.json.schema_version: must be {SCHEMA_VERSION}, got 1"),
    (("observations",), [], "policy.json.observations: must have at least 1 entries, got 0"),
    (("observations", 0, "kind"), "smell", r"policy.json.observations\[0\].kind: must be \['state', .*, got 'smell'"),
    (("observations", 1, "max_age_s"), 0, r"observations\[1\].max_age_s: must be above 0, got 0"),
    (("observations", 1, "max_age_s"), True, r"observations\[1\].max_age_s: must be number or null, got bool"),
    (("observations", 0, "hard_low"), ["1"], r"observations\[0\].hard_low\[0\]: must be number or null, got str"),
    (("safety", "faults_before_latching"), 0, "safety.faults_before_latching: must be at least 1, got 0"),
    (("safety", "workspace"), {"x": {"low": 1}}, r"safety.workspace.x: must have \['observation', 'element', 'high'\]"),
    (("tokenizer", "bins"), 2.5, "tokenizer.bins: must be integer, got float"),
    (("control_hz",), None, ""),
    (("actions", "modes"), ["delta", None], ""),
    (("more",), {"of": "this"}, ""),
]


def spoilt(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    card: Any = copy.deepcopy(CARD)
    place = card
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return card


@pytest.mark.parametrize(("path", "value", "match"), MISTAKES)
def test_violations_are_named(path: tuple[str | int, ...], value: Any, match: str):
    found = list(schema_violations(spoilt(path, value), schema()))
    if match:
        assert len(found) == 1
        with pytest.raises(ValueError, match=match):
            raise ValueError(found[0])
    else:
        assert found == []


def test_a_sound_card_has_none_and_each_part_is_needed():
    assert list(schema_violations(CARD, schema())) == []
    for name in CARD:
        found = list(schema_violations({key: value for key, value in CARD.items() if key != name}, schema()))
        assert found == [f"policy.json: must have ['{name}']"]
    assert list(schema_violations([], schema())) == ["policy.json: must be object, got list"]


@pytest.mark.parametrize(("path", "value", "match"), MISTAKES)
def test_the_reference_validator_agrees(path: tuple[str | int, ...], value: Any, match: str):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    assert validator.is_valid(spoilt(path, value)) == (not match)


def test_only_words_that_are_known_here_stand_in_the_schema():
    known = {"type", "enum", "const", "minimum", "exclusiveMinimum", "minItems", "required", "properties", "items"}
    known |= {"additionalProperties", "description", "$schema", "title"}

    def words(rules: dict[str, Any]) -> set[str]:
        inner = [*rules.get("properties", {}).values(), rules.get("items"), rules.get("additionalProperties")]
        return set(rules).union(*(words(each) for each in inner if each))

    assert words(schema()) <= known


RUN = TrainConfig(Path("logs/my log"), Path("runs/a"))


@pytest.mark.parametrize(
    "config",
    [
        RUN,
        replace(
            RUN, steps=7, device="cpu", data=DataConfig(observations=("arm", "cup"), task="pick it", min_return=-1.5)
        ),
        replace(RUN, tokens=TokenConfig(num_bins=9, num_levels=2), model=ModelConfig(window=4)),
        replace(RUN, learning=LearningConfig(monte_carlo_bound=False, compile=True, learning_rate=0.1 + 0.2)),
        TrainConfig(**{**{"dataset": Path("x"), "out": Path("y"), "preset": "paper"}, **PRESETS["paper"]}),
        TrainConfig(
            **{
                **{"dataset": Path("x"), "out": Path("y"), "preset": "cql"},
                **PRESETS["cql"],
                "learning": replace(PRESETS["cql"]["learning"], monte_carlo_bound=True),
            }
        ),
    ],
)
def test_the_training_command_gives_the_same_settings(config: TrainConfig):
    name, *arguments = shlex.split(training_command(config))
    assert name == "qtransformer"
    assert tyro.cli(_commands(arguments), args=arguments) == config


def test_a_command_is_short():
    assert training_command(RUN) == "qtransformer train --dataset 'logs/my log' --out runs/a"
    assert training_command(replace(RUN, seed=3)).endswith("--out runs/a --seed 3")


def test_the_schema_is_plain_json():
    assert json.loads(json.dumps(schema()))["title"] == "Card of a policy bundle"
