"""The page must hold what it was given, escaped, alone and without scripts; each step must be reachable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from page_fixtures import EVIL, Page, assert_colours_follow_the_reader, assert_fetches_and_runs_nothing

from qtransformer.alarms import Alarm
from qtransformer.calibration import calibrate
from qtransformer.config import RunError
from qtransformer.explain import NO_VALUES, Bins, Check, EpisodeView, Explanation, Moment
from qtransformer.explain_log import ORIGINS, Origin
from qtransformer.explain_page import render, write_page
from qtransformer.predictions import Predictions

ALARMS = (
    Alarm("too good", "ringing", 0.2061, 0.05, "Everything is expected to succeed."),
    Alarm("no better", "silent", -0.031, 0.1, "Nothing to see."),
    Alarm("unclear", "not asked", None, None, "Not asked: too few."),
)


def make_bins(has_values=True, has_density=True):
    q_values = np.array([0.1, 0.4, 0.2, 0.3]) if has_values else None
    return Bins(np.linspace(-1, 1, 4), q_values, np.full(4, 0.25) if has_density else None, logged=1, greedy=3)


def make_check(origin: Origin = "held out", num_steps=40, **changes):
    values = np.linspace(0, 1, num_steps)
    check = Check(origin, 4, 4, 0, calibrate(values, values**2, np.arange(num_steps) // 10), ALARMS)
    return replace(check, **changes)


def make_explanation(num_steps=8, tokens=("left (m/s)", "right"), **changes):
    returns = np.linspace(0.2, 1.0, num_steps)
    columns = (returns + 0.125, returns - 0.125, returns, returns, returns, np.zeros(num_steps, bool))
    moments = tuple(Moment(step, (make_bins(),) * len(tokens)) for step in (0, 3, num_steps - 1))
    view = EpisodeView(5, "file:episode_5", True, "held out", returns, Predictions(*columns), moments)
    explanation = Explanation("Run a on log b", tokens, view, (make_check(),), {"run": "a", "log": "b"})
    return replace(explanation, **changes)


def without_values(explanation):
    """The same episode as an algorithm without values would show it."""
    moments = tuple(Moment(each.step, (make_bins(has_values=False),) * 2) for each in explanation.episode.moments)
    return replace(explanation, checks=(), episode=replace(explanation.episode, predictions=None, moments=moments))


def test_the_page_fetches_and_runs_nothing():
    html = render(make_explanation())
    assert "img-src" not in html
    assert "url(" not in html
    assert_fetches_and_runs_nothing(html)


def test_names_of_users_are_escaped():
    explanation = make_explanation(tokens=(EVIL, "right"), title=EVIL, facts={EVIL: EVIL})
    explanation = replace(explanation, episode=replace(explanation.episode, source=EVIL))
    html = render(replace(explanation, checks=(make_check(alarms=(replace(ALARMS[0], sentence=EVIL, name=EVIL),)),)))
    assert "<script" not in html
    assert Page(html).text.count(EVIL) == 10  # title and fact twice, source, token thrice, name, sentence


def test_every_colour_is_light_and_dark():
    assert_colours_follow_the_reader(render(make_explanation()))


def test_each_step_has_a_button_and_the_first_is_chosen():
    html = render(make_explanation())
    buttons = Page(html).found("input")
    assert [each["id"] for each in buttons] == ["step-0", "step-3", "step-7"]
    assert {(each["type"], each["name"]) for each in buttons} == {("radio", "step")}
    assert ["checked" in each for each in buttons] == [True, False, False]
    assert [each["for"] for each in Page(html).found("label")] == ["step-0", "step-3", "step-7"]
    for step in (0, 3, 7):
        assert f"main:has(#step-{step}:checked) .at-{step}{{visibility:visible}}" in html
        assert f'class="at at-{step}"' in html
    ids = Page(html).ids
    assert len(ids) == len(set(ids))


def test_a_step_says_its_values_and_each_token_its_actions():
    text = Page(render(make_explanation())).text
    assert "Step 3: V 0.668, Q of the logged action 0.418, return 0.543." in text
    assert text.count("logged −0.333, policy 1") == 6
    assert text.count("left (m/s)") == 3


def test_the_episode_is_named():
    text = Page(render(make_explanation())).text
    assert "Along episode 5" in text
    assert "file:episode_5: 8 steps, a success, held out." in text
    for success, word in ((False, "a failure"), (None, "success not recorded")):
        explanation = make_explanation()
        explanation = replace(explanation, episode=replace(explanation.episode, success=success))
        assert f"8 steps, {word}, held out." in Page(render(explanation)).text


def test_alarms_stand_with_figure_threshold_and_sentence():
    text = " ".join(Page(render(make_explanation())).text.split())
    assert "1 of 2 over-estimation alarms ring on the episodes held out (4)." in text
    assert "ringsToo good20.6%, rings above 5% Everything" not in text  # elements apart, see below
    for part in (
        "Too good",
        "20.6%, rings above 5%",
        "Everything is expected",
        "−3.1%, rings above 10%",
        "Not asked: too",
    ):
        assert part in text


def test_calibration_has_a_row_a_group_and_its_figures():
    check = make_check(num_cut=3)
    text = Page(render(make_explanation(checks=(check,)))).text
    assert render(make_explanation()).count("<tr>") == 11
    assert f"{check.calibration.bias.mean:.3g} (95 % interval" in text
    assert "40 steps of 4 episodes" in text
    assert "3 of these episodes were cut off before the task ended." in text
    assert "were cut off" not in Page(render(make_explanation())).text
    assert (
        "2 of the 4 episodes, evenly chosen."
        in Page(render(make_explanation(checks=(make_check(num_episodes=2),)))).text
    )
    assert "evenly chosen" not in text


def test_one_episode_has_no_interval():
    values = np.linspace(0, 1, 20)
    check = make_check(calibration=calibrate(values, values, np.zeros(20, int)))
    text = Page(render(make_explanation(checks=(check,)))).text
    assert "(95 % interval not known)" in text
    assert "nan" not in text


def test_origins_are_told_apart():
    checks = (make_check("held out"), make_check("trained on"))
    text = Page(render(make_explanation(checks=checks))).text
    for origin in ("held out", "trained on"):
        assert ORIGINS[origin] in text
        assert f"Predicted against realised: episodes {origin}" in text
    assert ORIGINS["of unknown origin"] not in text


def test_without_values_the_page_says_so_and_shows_densities():
    html = render(without_values(make_explanation()))
    text = Page(html).text
    assert NO_VALUES in text
    assert "Step 3: return 0.543." in text
    assert "Q of the logged action" not in text
    assert "alarms" not in text
    assert html.count('class="density"') == 6


def test_values_of_the_last_token_alone_are_explained():
    explanation = make_explanation()
    tokens = (make_bins(has_values=False), make_bins())
    moments = tuple(Moment(each.step, tokens) for each in explanation.episode.moments)
    mixed = replace(explanation, episode=replace(explanation.episode, moments=moments))
    sentence = "learns Q at the last token of an action alone"
    assert sentence in Page(render(mixed)).text
    assert sentence not in Page(render(explanation)).text


def test_a_page_without_density_does_not_promise_one():
    explanation = make_explanation()
    moments = tuple(Moment(each.step, (make_bins(has_density=False),) * 2) for each in explanation.episode.moments)
    text = Page(render(replace(explanation, episode=replace(explanation.episode, moments=moments)))).text
    assert "density" not in text
    assert "density" in Page(render(explanation)).text


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "folder", tmp_path / "file" / "page.html"):
        with pytest.raises(RunError, match=r"--out .*: cannot be written \(.*\); choose another path"):
            write_page(make_explanation(), path)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file", "folder"]
