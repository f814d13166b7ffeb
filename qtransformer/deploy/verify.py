"""Whether a bundle is what it was at its export: checksums, schema, the card in the graphs, the recorded steps.

It must not load torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qtransformer.config import RunError
from qtransformer.deploy.card import SCHEMA, schema, schema_violations
from qtransformer.deploy.controller import MODELS, Controller, ControllerError, make_session, read_sums
from qtransformer.files import sha256

GRAPHS = (MODELS[0], "policy_flat.onnx")  # that every bundle holds


def verify_bundle(folder: Path) -> dict[str, Any]:
    """Returns `passed`, the number of `files` that were checked, all `failures`, and the `self_tests` by graph.

    Raises:
        RunError: there is no such folder.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: must be the folder of a bundle, got no folder; check the path")
    failures, self_tests, sums = list[str](), dict[str, Any](), dict[str, str]()
    try:
        sums = read_sums(folder)
        failures += _file_failures(folder, sums)
        if not failures:
            card = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
            failures += [*schema_violations(card, schema()), *_graph_failures(folder, card, sums)]
        if not failures:
            self_tests = {name: Controller(folder, model=name).self_test() for name in MODELS if name in sums}
            failures += [f"{name}: {each}" for name, report in self_tests.items() for each in report["failures"]]
    except (ControllerError, ValueError) as error:
        failures.append(str(error))
    return {"passed": not failures, "files": len(sums), "failures": failures, "self_tests": self_tests}


def _file_failures(folder: Path, sums: Mapping[str, str]) -> Iterator[str]:
    for name in ("policy.json", "golden.npz", "controller.py", SCHEMA.name, *GRAPHS):
        if name not in sums:
            yield f"SHA256SUMS: must list {name}"
    root = folder.resolve()
    for name, digest in sums.items():
        path = root / name
        if not path.is_relative_to(root) or path.resolve() != path:
            yield f"{name}: must be a file within the folder, got a path or a link out; export or copy the bundle again"
        elif not path.is_file():
            yield f"{name}: is missing"
        elif sha256(path) != digest:
            yield f"{name}: is not what SHA256SUMS says; it was changed or damaged"
    if (folder / SCHEMA.name).is_file() and json.loads((folder / SCHEMA.name).read_text("utf-8")) != schema():
        yield f"{SCHEMA.name}: is not that of this qtransformer; verify with the version that exported it"


def _graph_failures(folder: Path, card: Mapping[str, Any], sums: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*GRAPHS, *MODELS} & set(sums)):
        metadata = make_session((folder / name).read_bytes()).get_modelmeta().custom_metadata_map
        if json.loads(metadata.get("policy_card", "null")) != card:
            yield f"{name}: the card in its metadata is not policy.json"
