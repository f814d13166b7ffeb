"""Quantisation error, unused bins and clipped actions, worked by hand; what is said of them, and when."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from learner_fixtures import make_config, write_log
from rich.console import Console

from qtransformer.batch import ActionSpec
from qtransformer.config import TokenConfig
from qtransformer.token_report import TokenSlot, print_token_report, token_report, token_slots, warnings
from qtransformer.tokens import ActionTokenizer
from qtransformer.training import train


def make_report(actions, low=-1.0, high=1.0, centres=None, **tokens):
    """The reports of a log; `actions` has a column for each dimension."""
    actions = np.array(actions, np.float32).reshape(len(actions), -1)
    D = actions.shape[1]
    spec = ActionSpec((low,) * D, (high,) * D, tuple(f"joint_{index}" for index in range(D)))
    config = TokenConfig(**{"num_bins": 4, **tokens}, binning="uniform" if centres is None else "quantile")
    return token_report(ActionTokenizer(spec, config, centres), spec, actions)


def printed(reports):
    text = io.StringIO()
    print_token_report(reports, Console(file=text, width=80))
    return text.getvalue().splitlines()


def test_figures_worked_by_hand():
    """Centres -0.75 -0.25 0.25 0.75: errors 0.25, 0.25, 0 and 0.25; the first action on a limit."""
    (report,) = make_report([-1.0, -0.5, 0.25, 0.5])
    assert report.error == pytest.approx(0.25 * np.sqrt(0.75))
    assert report.relative_error == pytest.approx(0.125 * np.sqrt(0.75))
    assert (report.limits, report.used) == ((-1.0, 1.0), (-1.0, 0.5))
    assert report.relative_use == pytest.approx(0.75)
    assert (report.num_cells, report.num_unused) == (4, 0)
    assert (report.at_limit, report.clipped) == (0.25, 0.0)
    assert report.name == "joint_0"


def test_unused_bins_and_clipped_actions():
    """0.25 and 0.3 share a bin; 1.5 and -1.5 lie outside, in the outermost bins."""
    (report,) = make_report([0.25, 0.3, 1.5, -1.5])
    assert (report.num_unused, report.clipped, report.at_limit) == (1, 0.5, 0.0)
    assert report.error == pytest.approx(np.sqrt((0.05**2 + 2 * 0.75**2) / 4))


def test_each_dimension_has_its_own_report():
    first, second = make_report([[0.25, -1.0], [0.25, 1.0], [0.25, 0.0]])
    assert (first.error, first.num_unused, first.at_limit) == (0.0, 3, 0.0)
    assert (second.num_unused, second.at_limit) == (1, pytest.approx(2 / 3))


@pytest.mark.parametrize("order", ["level_major", "dimension_major"])
def test_levels_make_cells(order):
    """Two levels of four are 16 cells, 1/8 wide; both dimensions at centres of three cells."""
    centres = [[-0.9375, 0.0625], [-0.8125, 0.0625], [0.9375, 0.0625]]
    first, second = make_report(centres, num_levels=2, order=order)
    assert (first.num_cells, first.num_unused, first.error) == (16, 13, 0.0)
    assert (second.num_cells, second.num_unused, second.error) == (16, 15, 0.0)


def test_quantile_bins_are_measured_as_they_are():
    (report,) = make_report([-1.0, 0.0, 0.5, 1.0], centres=[[-1.0, 0.0, 0.5, 1.0]])
    assert (report.error, report.num_unused) == (0.0, 0)


def test_slots_name_dimension_and_level():
    spec = ActionSpec((-1.0, -1.0), (1.0, 1.0))
    slots = {
        order: token_slots(ActionTokenizer(spec, TokenConfig(num_bins=4, num_levels=2, order=order)))
        for order in ("level_major", "dimension_major")
    }
    assert slots["level_major"] == (TokenSlot(0, 0), TokenSlot(1, 0), TokenSlot(0, 1), TokenSlot(1, 1))
    assert slots["dimension_major"] == (TokenSlot(0, 0), TokenSlot(0, 1), TokenSlot(1, 0), TokenSlot(1, 1))


def test_dimensions_without_a_name_are_numbered():
    spec = ActionSpec((-1.0,), (1.0,))
    (report,) = token_report(ActionTokenizer(spec, TokenConfig()), spec, np.zeros((2, 1), np.float32))
    assert report.name == "[0]"


# --- words ------------------------------------------------------------------------------------------------------------

SPREAD = np.linspace(-1, 1, 101)


def test_a_sound_log_needs_no_words():
    assert warnings(make_report(SPREAD)) == []


def test_a_dimension_that_never_changes():
    assert warnings(make_report(np.stack([SPREAD, 0 * SPREAD], axis=1))) == [
        "joint_1: never changes in the log, so nothing can be learnt about it"
    ]


def test_a_range_far_wider_than_what_the_log_uses():
    (sentence,) = warnings(make_report(0.09 * SPREAD, num_bins=32))
    assert sentence.startswith("joint_0: the log uses at most 9.0% of the range between the limits, so few bins")
    assert sentence.endswith("narrow the limits, or take quantile bins")
    assert warnings(make_report(0.11 * SPREAD, num_bins=32)) == []


def test_quantile_bins_waste_nothing_on_a_wide_range():
    centres = np.quantile(0.09 * SPREAD, (np.arange(8) + 0.5) / 8)
    assert warnings(make_report(0.09 * SPREAD, centres=[centres.tolist()], num_bins=8)) == []


def test_actions_beyond_the_outermost_bins():
    (sentence,) = warnings(make_report(np.append(SPREAD, [1.5, -2.0])))
    assert sentence.startswith("joint_0: up to 1.9% of the actions lie beyond the outermost bins;")
    assert warnings(make_report(np.append(SPREAD, [1.5]))) == []  # 1 of 102: less than one in a hundred


def test_many_dimensions_of_one_kind_are_one_sentence():
    (sentence,) = warnings(make_report(np.zeros((5, 9))))
    assert sentence.startswith("joint_0, joint_1, joint_2, joint_3 and 5 more: never changes")


# --- print ------------------------------------------------------------------------------------------------------------


def test_the_table_fits_80_columns_and_names_every_figure():
    lines = printed(make_report([[-1.0, 0.1], [-0.5, 0.1], [0.25, 0.1], [1.5, 0.1]]))
    assert max(map(len, lines[:4])) <= 80
    assert lines[0].strip() == "Actions as tokens"
    assert [line.split(":")[0] for line in lines[4:]] == ["warning tokens"] * 2
    first, second = (line.split() for line in lines[2:4])
    assert first == ["joint_0", "-1", "to", "1", "-1", "to", "1.5", "0.41", "20.7%", "0/4", "25.0%", "25.0%"]
    assert second == ["joint_1", "-1", "to", "1", "0.1", "to", "0.1", "0.15", "7.5%", "3/4", "0.0%", "0.0%"]


def test_of_many_dimensions_the_worst_are_shown():
    """Dimension k is logged at a centre plus k / 1000: the larger k, the larger its error."""
    reports = make_report(0.25 + np.arange(30) * np.ones((3, 1)) / 1000)
    lines = printed(reports)
    assert lines[0].strip() == "Actions as tokens: the 8 of 30 dimensions with the largest errors"
    assert [line.split()[0] for line in lines[2:10]] == [f"joint_{index}" for index in range(22, 30)]
    assert len(lines) < 14


def test_names_are_not_markup():
    (report,) = make_report(SPREAD)
    assert any("[red]" in line for line in printed([replace(report, name="[red]")]))


def test_it_is_said_once_before_the_first_update(tmp_path, capsys):
    config = make_config(dataset=write_log(tmp_path / "log"), out=tmp_path / "run", steps=2)
    train(config)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err.index("Actions as tokens") < captured.err.index("left") < captured.err.index("q_transformer: 1/2")
    )
    train(replace(config, steps=3, resume=True))
    assert "Actions as tokens" not in capsys.readouterr().err
