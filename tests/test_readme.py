"""The README's code runs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qtransformer.cli import main
from qtransformer.deploy.controller import Controller
from qtransformer_datasets.finding import CODES
from qtransformer_datasets.formats import open_dataset

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "datasets.md"
PAGES = (ROOT / "README.md", GUIDE, ROOT / "docs" / "tabletop.md")
README = PAGES[0].read_text()
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


@pytest.mark.parametrize("page", PAGES)
def test_local_links_lead_somewhere(page):
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in target]
    assert targets
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", ["pendulum", "robot"])
def test_the_recordings_of_the_guide_open(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (block,) = (each for each in blocks if f"logs/{name}" in each)
    exec(compile(block, "docs/datasets.md", "exec"), {})
    assert open_dataset(f"logs/{name}").num_episodes == 1


def test_the_guide_names_every_code_of_the_check():
    rows = re.findall(r"^\| `([\w-]+)` \| (error|warning) \|", GUIDE.read_text(), flags=re.MULTILINE)
    assert dict(rows) == CODES


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page, capsys):
    for command in set(re.findall(r"^qtransformer (\w+)", page.read_text(), flags=re.MULTILINE)):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
