"""policy.json, the card of a bundle: all that an integrator must know and a controller obeys, in one document.

`policy.schema.json` beside this file is its JSON Schema; `schema_violations` checks as much of that language as it
uses, so that a bundle is verified where nothing but numpy and onnxruntime is installed. It must not load torch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qtransformer.batch import DatasetSpec, ObservationSpec
from qtransformer.config import RunError, TrainConfig
from qtransformer.deploy import controller
from qtransformer.presets import PRESETS

if TYPE_CHECKING:
    from qtransformer.policy import GreedyPolicy

SCHEMA = Path(__file__).with_name("policy.schema.json")
_PERIODS = 2.0  # of control that may pass between two steps, or since a sensor was read
_LEAST_WIDTH = 1e-6  # of a training range: what varied less is nothing to the network, and has no hard range
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


class CardError(RunError):
    """A card cannot be made of what was given; the message says why and what to do."""


def policy_card(
    policy: GreedyPolicy, spec: DatasetSpec, given: Mapping[str, Any], graphs: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns policy.json.

    Args:
        policy: what acts.
        spec: of its log.
        given: what else the card shall say (origin). `observation_ranges`, {key: {"low": [...], "high": [...]}}, go to
            the observations; `limits` are what `controller.merge_limits` takes.
        graphs: `inputs`, `outputs`, `flat`: how they are called.

    Raises:
        CardError: `given` clashes with what is written here, is no JSON with finite numbers, or not as the schema says.
        ControllerError: the limits name what is not there.
    """
    rest = dict(given)
    ranges, limits = rest.pop("observation_ranges", {}), rest.pop("limits", {})
    longest = None if spec.control_hz is None else _PERIODS / spec.control_hz
    card = {
        "schema_version": controller.SCHEMA_VERSION,
        "observations": [_observation(each, ranges.get(each.name), longest, graphs) for each in spec.observations],
        "actions": {**asdict(spec.actions), "modes": None, "rate_limit": None},
        "tokenizer": _tokenizer(policy, spec),
        "control_hz": spec.control_hz,
        "history_length": policy.model.window,
        "reset_rule": "history_in and num_frames_in are zeros; so they are at the first step of every episode",
        "safety": {"fallback": "stop", "faults_before_latching": 5, "max_gap_s": longest, "workspace": {}},
        "environment": {
            "id": spec.environment_id,
            "kwargs": dict(spec.environment_kwargs),
            "ignored_observations": list(spec.ignored_observations),
        },
        **graphs,
    }
    clash = set(rest) & set(card)
    if clash:
        raise CardError(f"card keys {sorted(clash)} are written by the export itself; rename them")
    merged = controller.merge_limits(card, limits)
    try:
        plain = json.loads(json.dumps({**merged, **rest}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CardError(f"card must be plain JSON with finite numbers ({error}); convert it") from error
    violations = list(schema_violations(plain, schema()))
    if violations:
        raise CardError(f"{'; '.join(violations)}; correct the limits")
    return plain


def _observation(
    spec: ObservationSpec, ranges: Mapping[str, Any] | None, longest: float | None, graphs: Mapping[str, Any]
) -> dict[str, Any]:
    (dtype,) = (each["dtype"] for each in graphs["inputs"] if each["name"] == spec.name)
    low, high = (np.array(ranges[key], float) if ranges and spec.kind != "image" else None for key in ("low", "high"))
    hard_low = hard_high = None
    if low is not None and high is not None:
        width = high - low
        reach = np.where(width > _LEAST_WIDTH, width, np.nan)
        hard_low, hard_high = ([None if v != v else v for v in each.tolist()] for each in (low - reach, high + reach))
    layout = {"layout": "HWC", "colour_order": "RGB"} if spec.kind == "image" else {}
    return {
        **asdict(spec),
        **layout,
        "dtype": spec.dtype if spec.kind == "text" else dtype,
        "training_low": None if low is None else low.tolist(),
        "training_high": None if high is None else high.tolist(),
        "hard_low": hard_low,
        "hard_high": hard_high,
        "max_age_s": longest,
    }


def _tokenizer(policy: GreedyPolicy, spec: DatasetSpec) -> dict[str, Any]:
    tokenizer, temperature = policy.tokenizer, policy.support_temperature
    dimensions = tokenizer.token_dimensions.tolist()
    return {
        "bins": tokenizer.num_bins,
        "levels": tokenizer.num_levels,
        "order": tokenizer.order,
        "token_dimensions": dimensions,
        "token_levels": [dimensions[:index].count(each) for index, each in enumerate(dimensions)],
        "low": list(spec.actions.low),
        "high": list(spec.actions.high),
        "edges": tokenizer.edges.tolist(),
        "centres": tokenizer.centres.tolist(),
        "rule": "the first bin up to which half of density * exp(Q / support_temperature) lies, token by token",
        "support_threshold": policy.support_threshold,
        "support_temperature": temperature if temperature < float("inf") else None,
    }


def training_command(config: TrainConfig) -> str:
    """Returns the command that trains with these settings, as short as it can be."""
    default = TrainConfig(config.dataset, config.out, preset=config.preset, **PRESETS[config.preset])
    words = ["qtransformer", "train", "--dataset", str(config.dataset), "--out", str(config.out)]
    if config.preset != "default":
        words += ["--preset", config.preset]
    written, expected = config.to_json(), default.to_json()
    for key, value in written.items():
        changed = value.items() if isinstance(value, dict) else [(key, value)]
        before = expected[key] if isinstance(value, dict) else expected
        words += [word for name, new in changed if new != before[name] for word in _flag(name, new)]
    return shlex.join(words)


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of the card."""
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def schema_violations(value: Any, rules: Mapping[str, Any], place: str = "policy.json") -> Iterator[str]:
    """Yields one line for each place where `value` is not as `rules`, a JSON Schema, say.

    It knows `type`, `enum`, `const`, `minimum`, `exclusiveMinimum`, `minItems`, `required`, `properties`, `items` and
    `additionalProperties` with rules.
    """
    types = rules.get("type", [])
    names = [types] if isinstance(types, str) else types
    if names and not any(_is_of(value, name) for name in names):
        yield f"{place}: must be {' or '.join(names)}, got {type(value).__name__}"
        return
    if ("enum" in rules and value not in rules["enum"]) or ("const" in rules and value != rules["const"]):
        yield f"{place}: must be {rules.get('const', rules.get('enum'))}, got {value!r}"
    if isinstance(value, dict):
        yield from _object_violations(value, rules, place)
    elif isinstance(value, list):
        if len(value) < rules.get("minItems", 0):
            yield f"{place}: must have at least {rules['minItems']} entries, got {len(value)}"
        for index, each in enumerate(value):
            yield from schema_violations(each, rules.get("items", {}), f"{place}[{index}]")
    elif "minimum" in rules and value is not None and value < rules["minimum"]:
        yield f"{place}: must be at least {rules['minimum']}, got {value}"
    elif "exclusiveMinimum" in rules and value is not None and value <= rules["exclusiveMinimum"]:
        yield f"{place}: must be above {rules['exclusiveMinimum']}, got {value}"


def _object_violations(value: Mapping[str, Any], rules: Mapping[str, Any], place: str) -> Iterator[str]:
    missing = [name for name in rules.get("required", ()) if name not in value]
    if missing:
        yield f"{place}: must have {missing}"
    properties: Mapping[str, Any] = rules.get("properties", {})
    for name, each in value.items():
        yield from schema_violations(
            each, properties.get(name, rules.get("additionalProperties", {})), f"{place}.{name}"
        )


def _is_of(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (not isinstance(value, bool) or name == "boolean")
