"""What is printed fits into 80 columns, whatever the numbers and names, and strangers' text stays text."""

import io
from dataclasses import replace

import numpy as np
import pytest
from check_fixtures import CAMERA, INSTRUCTION, StoredFrames, edited, log_of, with_rows
from dataset_fixtures import make_episode
from rich.console import Console

from qtransformer.batch import ActionSpec
from qtransformer_datasets.check import Finding, check_dataset
from qtransformer_datasets.inspect import describe, print_description
from qtransformer_datasets.inspect_print import megabytes, number, share, visible

EVIL = "[red]pick\x1b[2J[/] up\n" + "a very long word" * 8


def printed(dataset, findings=()):
    stream = io.StringIO()
    print_description(describe(dataset, findings), Console(file=stream, width=80))
    return stream.getvalue()


def rich_log():
    """A log with images, text, ugly numbers and long names."""
    episode = make_episode(4)
    episode = edited(episode, "state", (slice(None), 0), np.array([-1.23456e-30, 9.87e30, 1, 2, 3]))
    frames, texts = StoredFrames([bytes([row]) for row in range(5)]), np.full(5, EVIL)
    log = log_of(with_rows(episode, camera=frames, instruction=texts), extra=(CAMERA, INSTRUCTION))
    actions = ActionSpec((-1.2345e-7, -1.0), (1.2345e7, 1.0), ("a" * 60, "right"), ("some long unit", "m/s"))
    log = log.with_episodes([replace(log.episodes[0], behaviour=EVIL)])
    return replace(log, spec=replace(log.spec, actions=actions), rules={"success": EVIL}, notes=("torn", EVIL))


def test_everything_fits_80_columns():
    findings = [Finding("error", "not-finite", "step [bold] 3 " + "is NaN " * 30, "why " * 40, "do " * 40)]
    text = printed(rich_log(), findings)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_what_strangers_wrote_is_shown_and_not_obeyed():
    text = printed(rich_log())
    assert "\x1b" not in text
    assert text.count("[red]pick\\x1b[2J[/] up\\n") == 4  # rule, note, instruction, behaviour


def test_all_parts_are_there():
    text = printed(rich_log())
    for part in (
        "test/Point-v0 at 10 Hz",
        "100.0%",
        "rule: success",
        "note",
        "torn",
        "state[1]",
        "8 x 8 x 3",
        "jpeg",
        "about 0.00 MB",
        "instruction: 1 different",
        "what acted",
        "right (m/s)",
        "-1 to 1",
        "No problems found.",
    ):
        assert part in text


def test_a_finding_says_why_it_matters_and_what_to_do():
    log = log_of(make_episode(), make_episode())
    text = printed(log, check_dataset(log))
    assert "warning duplicate-episode: main_data.hdf5:episode_0 equals" in text
    assert "  why: copies weigh double in training and spoil a held-out set\n" in text
    assert "  do: remove the copies; look for a file that was merged twice\n" in text
    assert "No problems" not in text


def test_what_is_not_known_is_said():
    log = log_of(replace(make_episode(), success=None))
    log = replace(log, spec=replace(log.spec, environment_id=None, control_hz=None))
    assert printed(log).count("unknown") == 2
    assert "–" in printed(log_of(edited(make_episode(), "state", slice(None), np.nan)))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (number(None), "–"),
        (number(-0.012345), "-0.0123"),
        (share(None), "unknown"),
        (share(1 / 3), "33.3%"),
        (megabytes(1_234_567), "1.23 MB"),
        (megabytes(2_500_000_000), "2.50 GB"),
        (visible("käse\t\ud800\x00"), "käse\\t\\ud800\\x00"),
    ],
)
def test_figures_for_people(found, expected):
    assert found == expected
