"""`export`, `verify` and `run` as a user calls them; the last two in processes that never load torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from controller_fixtures import CARD, write_bundle
from learner_fixtures import make_config, write_log

from qtransformer.cli import main
from qtransformer.deploy import export as module
from qtransformer.training import train

ROOT = Path(__file__).resolve().parents[1]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, which fails where torch was loaded."""
    code = "import sys; from qtransformer.cli import main; code = main(sys.argv[1:]); "
    code += "sys.exit('torch was loaded' if 'torch' in sys.modules else code)"
    path = os.pathsep.join(str(ROOT / each) for each in (".", "envs", "datasets", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    environment = {**CARD["environment"], "id": "test/Coast-v0"}
    return write_bundle(tmp_path / "bundle", environment=environment)


# --- verify -------------------------------------------------------------------------------------------------------


def test_verify(bundle: Path):
    result = call("verify", bundle, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["passed"]
    result = call("verify", bundle)
    assert result.returncode == 0
    assert "8 of 8 tokens equal" in result.stdout
    (bundle / "golden.npz").write_bytes(b"")
    result = call("verify", bundle, "--json")
    assert result.returncode == 2
    assert not json.loads(result.stdout)["passed"]
    assert "golden.npz: is not what SHA256SUMS says; it was changed or damaged; copy or export" in result.stderr


def test_verify_notices_torch(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert "torch" in sys.modules
    assert main(["verify", str(bundle)]) == 2
    assert "torch was loaded" in capsys.readouterr().err


# --- run ----------------------------------------------------------------------------------------------------------


def test_run(bundle: Path, tmp_path: Path):
    flags = ("--import", "realtime_fixtures", "--episodes", 2, "--rate", 50, "--log", tmp_path / "log.jsonl")
    result = call("run", bundle, *flags, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["rate"], report["steps"], report["successes"]) == (50.0, 8, 2)
    assert [each["seed"] for each in report["episodes"]] == [0, 1]
    assert report["counters"]["accepted"] + report["counters"]["late"] == 8
    assert 0 < report["latency_ms"]["median"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 8


def test_run_in_words(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", str(bundle), "--import", "realtime_fixtures", "--episodes", "1"]) == 0
    text = capsys.readouterr().out
    assert "1 of 1 episodes" in text
    assert "10 Hz, 4 steps" in text
    assert "missed deadlines" in text


def test_run_obeys_limits(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    limits = {"observations": {"state": {"hard_low": [5.0, 5.0]}}}
    (tmp_path / "limits.json").write_text(json.dumps(limits))
    arguments = ["run", str(bundle), "--import", "realtime_fixtures", "--episodes", "1", "--rate", "5", "--json"]
    assert main([*arguments, "--limits", str(tmp_path / "limits.json")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counters"]["hard_range"] == 3
    assert "must lie between 5 and inf" in report["episodes"][0]["stopped"]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--env-id", "test/Nothing-v0"], "environment id ('test/Nothing-v0') is unknown"),
        (["--episodes", "0"], "episodes (0) must be at least 1"),
        (["--rate", "-1"], "rate (-1.0) must be above 0"),
        (["--rate", "0"], "rate (0.0) must be above 0"),
        (["--model", "policy.int8.onnx"], "model (policy.int8.onnx) must be one of ['policy.onnx']"),
        (["--limits", "none.json"], "--limits none.json: cannot be used"),
        (["--log", "none/log.jsonl", "--episodes", "1"], "--log none/log.jsonl: cannot be written"),
    ],
)
def test_run_mistakes(bundle: Path, capsys: pytest.CaptureFixture[str], flags: list[str], match: str):
    assert main(["run", str(bundle), "--import", "realtime_fixtures", *flags]) == 2
    assert match in capsys.readouterr().err


def test_run_needs_a_bundle_and_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", str(tmp_path)]) == 2
    assert "must be the folder of a bundle; export the run first" in capsys.readouterr().err
    environment = {**CARD["environment"], "id": "test/Coast-v0"}
    folder = write_bundle(tmp_path, environment=environment, control_hz=None)
    assert main(["run", str(folder), "--import", "realtime_fixtures"]) == 2
    assert "its log names no rate; name one with --rate" in capsys.readouterr().err


# --- export -------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run in RUN, and what `export` would be called with."""
    config = make_config(dataset=write_log(tmp_path / "log"), out=tmp_path / "RUN", steps=2, checkpoint_every=2)
    train(config)
    monkeypatch.chdir(tmp_path)
    called: dict[str, Any] = {}

    def take(policy: object, **arguments: Any) -> dict[str, Any]:
        called.update(arguments)
        timing = {"control_period_ms": 20.0, "budget_ms": None, "fits_the_period": False}
        return {"latency_ms": {"p99": 34.5}, "timing": timing}

    monkeypatch.setattr(module, "export_bundle", take)
    return called


def test_export_passes_on_limits_and_budget_and_warns(exported: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    Path("limits.json").write_text('{"safety": {"fallback": "zero"}}')
    flags = ["--limits", "limits.json", "--budget-ms", "12.5"]
    assert main(["export", "RUN", "--out", "new", *flags]) == 0
    assert exported["wanted"] == ([], 12.5)
    assert main(["export", "RUN", "--out", "new", *flags, "--formats", "onnx", "int8", "pt2"]) == 0
    assert exported["wanted"] == (["int8", "pt2"], 12.5)
    assert exported["card"]["limits"] == {"safety": {"fallback": "zero"}}
    assert exported["card"]["training_command"].startswith("qtransformer train --dataset ")
    expected = "warning: 1 step in 100 takes 34.5 ms or more here, the control period is 20.0 ms"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"safety": 1}'])
def test_limits_that_are_none(exported: dict[str, Any], capsys: pytest.CaptureFixture[str], text: str):
    Path("limits.json").write_text(text)
    assert main(["export", "RUN", "--out", "new", "--limits", "limits.json"]) == 2
    assert "--limits limits.json: cannot be used" in capsys.readouterr().err
    assert exported == {}
