"""The whole path through the real commands, small: what the demo writes, and that its bundle is used without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qtransformer.cli import main
from qtransformer.config import RunError
from qtransformer.demo import demo

pytestmark = pytest.mark.slow
PARTS = ("behaviour", "cloning", "filtered_cloning", "ours", "exported")
WITHOUT_TORCH = """
import sys
from qtransformer.cli import main
code = main(sys.argv[1:])
sys.exit("torch was imported" if "torch" in sys.modules else code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    demo(out, quick=True)
    return out


def test_summary_holds_every_part(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {*PARTS, "seconds", "peak_memory_mb"}
    for part in PARTS:
        result = summary[part]
        assert result["success_rate"] == result["successes"] / result["episodes"]
        assert 0 <= result["interval"][0] <= result["success_rate"] <= result["interval"][1] <= 1


def test_exported_file_plays_the_same_episodes_as_the_checkpoint(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exported"]["outcomes"] == summary["ours"]["outcomes"]


def test_report_is_one_page_with_all_policies(folder):
    page = (folder / "report.html").read_text()
    assert "Q-Transformer (ours)" in page
    assert "behaviour that made the log" in page
    assert len(page) < 5_000_000


def test_golden_file_comes_from_the_log(folder):
    with np.load(folder / "policy" / "golden.npz") as golden:
        assert golden["inputs.state"].shape[1:] == (33,)
    assert json.loads((folder / "policy" / "parity.json").read_text())["passed"]


def test_bundle_is_evaluated_without_torch(folder):
    command = [sys.executable, "-c", WITHOUT_TORCH, "evaluate", str(folder / "policy"), "--episodes", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["episodes"] == 2


@pytest.mark.parametrize("name", ["ours", "policy"])
def test_evaluation_does_not_depend_on_the_number_of_environments(folder, name, capsys):
    outcomes = []
    for num_envs in ("1", "3"):
        assert main(["evaluate", str(folder / name), "--episodes", "3", "--num-envs", num_envs, "--json"]) == 0
        outcomes.append(json.loads(capsys.readouterr().out)["outcomes"])
    assert outcomes[0] == outcomes[1]


def test_finished_demo_is_shown_and_not_run_again(folder, capsys):
    before = (folder / "summary.json").stat().st_mtime_ns
    demo(folder)
    assert (folder / "summary.json").stat().st_mtime_ns == before
    assert "remove the folder to run it again" in capsys.readouterr().out


def test_folder_in_use_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="remove it or choose another folder"):
        demo(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_missing_packages_are_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr("qtransformer.demo.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"needs onnx, .*; pip install 'qtransformer\[export\]'"):
        demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
