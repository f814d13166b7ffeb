"""Writes what the tabletop suite says of itself into docs/tabletop.md, and draws docs/tabletop/TASK.png.

Everything between the two markers of the page comes from the code: ids, words, starts, rules of success, held-out
combinations, spaces. A picture shows the start of an episode and the moment of success.

    .venv/bin/python docs/tabletop.py
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from qtransformer.pictures import choose_renderer
from qtransformer_envs import ENVIRONMENTS

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- made by docs/tabletop.py: begin -->", "<!-- end -->"
SEED = 1
SIZE = 320  # pixels
NUM_COLOURS = 128  # of a picture's palette


def task_ids() -> dict[str, str]:
    """Returns the id of each task of the suite, in their order there."""
    held = {name: each.get("kwargs", {}).get("tasks", ()) for name, each in ENVIRONMENTS.items()}
    return {tasks[0]: name for name, tasks in held.items() if len(tasks) == 1}


def page_text(text: str) -> str:
    """Returns the page with what stands between its markers made anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n" + "\n\n".join(_sections()) + f"\n\n{END}{tail}"


def _sections() -> Iterator[str]:
    for seed, (name, environment_id) in enumerate(task_ids().items(), SEED):
        yield _task(name, environment_id, seed)
    yield "## Observations\n\n" + _observations(gymnasium.make(next(iter(task_ids().values()))))
    yield "## Actions\n\n" + _actions(gymnasium.make(next(iter(task_ids().values())), terminate_action=True))


def _task(name: str, environment_id: str, seed: int) -> str:
    from qtransformer_envs.tabletop.combinations import HELD_OUT  # with MuJoCo, which must know its renderer before

    environment: Any = gymnasium.make(environment_id).unwrapped
    environment.reset(seed=seed)
    task = type(environment.task)
    title, _, purpose = _first_line(sys.modules[task.__module__].__doc__).partition(": ")
    rule = _first_line(task.is_success.__doc__).removeprefix("Returns whether ")
    held_out = ", ".join(f"{colour} {kind}" for kind, colour in HELD_OUT.get(name, {}).items())
    lines = [
        f"## {title}",
        f"`{environment_id}`: {purpose}",
        f"![The start, and the success: {environment.instruction}](tabletop/{name}.png)",
        f"*Shown: {environment.instruction}.*",
        f"- Words: {', '.join(f'`{template}`' for template in task.templates)}.\n"
        f"- Start: {_first_line(task.__doc__)}\n"
        f"- Success: {rule}\n"
        f"- Held out: {held_out or 'nothing, since the words name no object'}.",
    ]
    return "\n\n".join(lines)


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]


def _observations(environment: gymnasium.Env) -> str:
    space, elements = environment.observation_space, getattr(environment.unwrapped, "observation_elements")  # noqa: B009
    assert isinstance(space, gymnasium.spaces.Dict)
    rows = ["| key | what | elements |", "|---|---|---|"]
    for key, leaf in space.items():
        is_text = isinstance(leaf, gymnasium.spaces.Text)
        what = f"at most {leaf.max_length} characters" if is_text else f"{leaf.dtype}, {leaf.shape}"
        rows.append(f"| `{key}` | {what} | {_elements(elements.get(key, ())) or 'the words'} |")
    return "\n".join(rows)


def _elements(elements: tuple[tuple[str, str], ...]) -> str:
    """Returns names and units, those that differ by a number or an axis as one."""
    names = Counter((re.sub(r"_[xyz]$", "_*", re.sub(r"\d+", "*", name)), unit) for name, unit in elements)
    counts = ((f"`{name}`", "" if unit == "1" else f" {unit}", count) for (name, unit), count in names.items())
    return ", ".join(f"{name}{unit}" + (f" ({count})" if count > 1 else "") for name, unit, count in counts)


def _actions(environment: gymnasium.Env) -> str:
    rows = ["| element | unit | |", "|---|---|---|"]
    notes = {
        "gripper": "-1 closes, 1 opens",
        "terminate": "only with `terminate_action=True`; above 0 ends the episode",
    }
    for name, unit in getattr(environment.unwrapped, "action_elements"):  # noqa: B009
        rows.append(f"| `{name}` | {unit} | {notes.get(name, '')} |")
    return "\n".join(rows)


def draw(environment_id: str, seed: int) -> np.ndarray:
    """Returns start and success of the expert's episode side by side, shape (SIZE, 2 * SIZE + 4, 3), uint8.

    Raises:
        RuntimeError: the expert fails in this episode, or nothing can be drawn here.
    """
    environment = gymnasium.make(environment_id, render_mode="rgb_array", image_size=SIZE, domain_randomization=0)
    environment.reset(seed=seed)
    expert = getattr(environment.unwrapped, "make_expert")(seed)  # noqa: B009
    start: Any = environment.render()
    terminated = truncated = False
    while not (terminated or truncated):
        *_, terminated, truncated, _ = environment.step(expert.act())
    if not terminated:
        raise RuntimeError(f"the expert of {environment_id} must succeed in the episode of seed {seed}; change SEED")
    end: Any = environment.render()
    environment.close()
    return np.concatenate([start, np.full((SIZE, 4, 3), 255, np.uint8), end], axis=1)


def main() -> None:
    """Draws the pictures and writes the page."""
    from PIL import Image

    choose_renderer()
    for seed, (name, environment_id) in enumerate(task_ids().items(), SEED):
        path = PAGE.with_suffix("") / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw(environment_id, seed)).quantize(NUM_COLOURS).save(path, optimize=True)
    PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
