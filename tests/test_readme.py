"""The README's code runs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qtransformer.cli import main
from qtransformer.deploy.controller import Controller
from qtransformer_datasets.formats import open_dataset

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def own_log(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    return tmp_path / "logs" / "mine"


def test_own_log_can_be_recorded_and_trained_on(own_log, capsys):
    assert open_dataset(own_log).num_episodes == 20
    assert main(["inspect", str(own_log)]) == 0
    assert main(["train", "--dataset", str(own_log), "--out", "runs/mine", "--steps", "2"]) == 0


@pytest.mark.export
def test_bundle_acts_as_on_the_robot(own_log):
    assert main(["train", "--dataset", str(own_log), "--out", "runs/mine", "--steps", "2"]) == 0
    assert main(["export", "runs/mine", "--out", "policy"]) == 0
    names = {"state": np.zeros(3, np.float32)}
    exec(compile(PYTHON[1], "README.md", "exec"), names)
    assert names["action"].shape == (2,)
    assert isinstance(names["controller"], Controller)


def test_local_links_lead_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_commands_exist(capsys):
    for command in set(re.findall(r"^qtransformer (\w+)", README, flags=re.MULTILINE)):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
