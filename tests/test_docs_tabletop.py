"""The page of the tabletop suite says what the code says, and has a picture of every task."""

from __future__ import annotations

import importlib.util
import re
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from PIL import Image

from qtransformer_envs import ENVIRONMENTS
from qtransformer_envs.tabletop.combinations import HELD_OUT
from qtransformer_envs.tabletop.registry import TASKS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tabletop.md"
TEXT = PAGE.read_text()
_spec = importlib.util.spec_from_file_location("docs_tabletop", PAGE.with_suffix(".py"))
assert _spec is not None
assert _spec.loader is not None
docs_tabletop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docs_tabletop)


def test_the_page_is_what_the_command_writes():
    assert docs_tabletop.page_text(TEXT) == TEXT, "run: python docs/tabletop.py"


def test_what_stands_outside_of_the_markers_stays():
    head, tail = TEXT.split(docs_tabletop.BEGIN)[0], TEXT.split(docs_tabletop.END)[1]
    assert head.startswith("# The tabletop suite")
    assert docs_tabletop.page_text(f"{head}{docs_tabletop.BEGIN}old{docs_tabletop.END}{tail}") == TEXT


def test_the_page_names_every_id_of_the_suite():
    suite = {name for name, each in ENVIRONMENTS.items() if "tabletop" in each["entry_point"]}
    assert suite == set(re.findall(r"`(qtransformer/\w+-v0)`", TEXT))
    assert set(docs_tabletop.task_ids()) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_each_task_has_its_words_rule_and_held_out_combinations(name):
    task = TASKS[name]
    (section,) = (each for each in TEXT.split("\n## ") if f"(tabletop/{name}.png)" in each)
    assert all(f"`{template}`" in section for template in task.templates)
    rule = (task.is_success.__doc__ or "").splitlines()[0]
    assert rule.startswith("Returns whether ")
    assert f"- Success: {rule.removeprefix('Returns whether ')}\n" in section
    held_out = re.findall(r"(\w+) (\w+)[,.]", section.split("- Held out: ")[1])
    assert {kind: colour for colour, kind in held_out if colour != "no"} == HELD_OUT.get(name, {})


def test_every_task_has_a_picture_and_together_they_are_small():
    pictures = {path.stem: path for path in PAGE.with_suffix("").glob("*.png")}
    assert set(pictures) == set(TASKS)
    assert sum(path.stat().st_size for path in pictures.values()) < 400_000
    for path in pictures.values():
        with Image.open(path) as image:
            start, end = np.split(np.asarray(image.convert("RGB")), [docs_tabletop.SIZE], axis=1)
        assert start.shape == (docs_tabletop.SIZE, docs_tabletop.SIZE, 3)
        assert end.shape == (docs_tabletop.SIZE, docs_tabletop.SIZE + 4, 3)
        assert min(start.std(), end.std()) > 20
        assert np.abs(start.astype(int) - end[:, 4:]).mean() > 1  # the arm has moved


def test_elements_that_differ_by_number_or_axis_are_told_once():
    elements = (("joint1_position", "rad"), ("joint2_position", "rad"), ("goal_x", "m"), ("goal_y", "m"), ("open", "1"))
    assert docs_tabletop._elements(elements) == "`joint*_position` rad (2), `goal_*` m (2), `open`"


def test_a_picture_without_success_is_an_error(monkeypatch):
    try:
        picture = docs_tabletop.draw("qtransformer/Pick-v0", docs_tabletop.SEED)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert picture.shape == (docs_tabletop.SIZE, 2 * docs_tabletop.SIZE + 4, 3)
    monkeypatch.setattr(gymnasium, "make", partial(gymnasium.make, max_episode_steps=1))
    with pytest.raises(RuntimeError, match=r"the expert of qtransformer/Pick-v0 must succeed in the episode of seed 5"):
        docs_tabletop.draw("qtransformer/Pick-v0", 5)


def test_the_code_of_the_page_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(block, "docs/tabletop.md", "exec"), {})
    instruction, _, task = capsys.readouterr().out.strip().partition(" | ")
    assert instruction
    assert task in TASKS
