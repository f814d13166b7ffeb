"""The page holds what the description says, fetches nothing, runs nothing, escapes everything, and is written whole."""

import base64
import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from check_fixtures import CAMERA, INSTRUCTION, StoredFrames, edited, log_of, sound_log, with_rows
from dataset_fixtures import make_episode
from page_fixtures import EVIL, Page, assert_colours_follow_the_reader, assert_fetches_and_runs_nothing
from PIL import Image

from qtransformer.batch import ActionSpec, ObservationSpec
from qtransformer_datasets.check import Finding, check_dataset
from qtransformer_datasets.inspect import MAX_ELEMENTS, describe
from qtransformer_datasets.inspect_page import render, write_page
from qtransformer_datasets.schema import DatasetError

HOSTILE = f"{EVIL}\x00\ud800"
SHOWN = f"{EVIL}\\x00\\ud800"


def page_of(dataset, findings=()):
    return render(dataset, describe(dataset, findings))


def filmed(num_episodes=2, channels=3, num_steps=4):
    """Episodes with a camera whose pixels tell the row, and an instruction."""
    spec = ObservationSpec("camera", (6, 10, channels), "uint8", "image")
    rows = np.arange(num_steps + 1, dtype=np.uint8)[:, None, None, None] * 10 + 5
    camera = np.broadcast_to(rows, (num_steps + 1, 6, 10, channels)).copy()
    episodes = [
        with_rows(make_episode(num_steps, seed=seed), camera=camera, instruction=np.full(num_steps + 1, "push"))
        for seed in range(num_episodes)
    ]
    return log_of(*episodes, extra=(spec, INSTRUCTION))


def test_the_page_fetches_and_runs_nothing():
    html = page_of(filmed())
    assert Page(html).found("img")
    assert "; img-src data:; style-src" in html
    assert "url(" not in html
    assert_fetches_and_runs_nothing(html, "data:image/png;base64,")


def test_what_strangers_wrote_is_text():
    log = filmed(1)
    episode = replace(log.episodes[0], source=HOSTILE, behaviour=HOSTILE)
    episode = with_rows(episode, instruction=np.full(5, HOSTILE, object).astype(str))
    observations = (
        ObservationSpec("state", (2,), "float32", "state", (HOSTILE, "x"), (HOSTILE, "")),
        *log.spec.observations[1:],
    )
    spec = replace(log.spec, observations=observations, environment_id=HOSTILE)
    log = replace(log, spec=spec, episodes=(episode,), rules={HOSTILE: HOSTILE}, notes=(HOSTILE,))
    html = page_of(log, [Finding("error", "not-finite", HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), 2)])
    assert "<script" not in html
    assert html.encode()  # a half of a surrogate pair would not do
    # finding 4, rules 2, note, environment, instruction, behaviour, source, element and unit
    assert Page(html).text.count(SHOWN) == 13


def test_colours_are_those_of_the_style_sheet_and_light_and_dark():
    assert_colours_follow_the_reader(page_of(filmed()))


def test_facts_findings_and_figures_are_there():
    log = replace(sound_log(), rules={"terminated": "terminations"}, notes=("interrupted",))
    finding = Finding("error", "not-finite", "it is NaN", "bad", "drop it", ("e1", "e2"), 1234)
    page = Page(page_of(log, [finding, replace(finding, severity="warning")]))
    for part in (
        "Errors: 1, warnings: 1.",
        "not-finite",
        "it is NaN.",
        "Why: bad.",
        "Do: drop it.",
        "2 of 1,234 places:",
        "rule: terminated",
        "interrupted",
        log.fingerprint,
        "50.0%",
        "left (m/s)",
        "state[1]",
    ):
        assert part in page.text
    assert [each["aria-label"] for each in page.found("svg")] == [
        "return, not discounted",
        "length in steps",
        "Histogram of left",
        "Histogram of right",
        "Histogram of state[0]",
        "Histogram of state[1]",
    ]
    assert "No problems found." in Page(page_of(log)).text


def test_actions_have_their_limits_and_those_that_are_infinite_none():
    log = sound_log()
    assert page_of(log).count('class="limit" d=') == 4
    actions = ActionSpec((-1.0, -np.inf), (np.inf, np.inf), ("left", "right"))
    assert page_of(replace(log, spec=replace(log.spec, actions=actions))).count('class="limit" d=') == 1


def test_tasks_stand_with_episodes_and_success():
    page = page_of(filmed(3))
    assert "<tr><td>push</td><td>3</td><td>100.0%</td></tr>" in page
    assert "1 different;" in page


def test_behaviours_stand_with_episodes_and_success_where_any_is_known():
    log = filmed(2)
    assert "Behaviours" not in page_of(log)
    html = page_of(log.with_episodes([replace(each, behaviour="noisy_replay") for each in log.episodes]))
    assert "<h2>Behaviours</h2>" in html
    assert "<tr><td>noisy_replay</td><td>2</td><td>100.0%</td></tr>" in html


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_first_middle_and_last_frame_are_shown(channels, mode):
    sources = Page(page_of(filmed(1, channels))).links
    images = [Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))) for each in sources]
    assert [(each.mode, each.size) for each in images] == [(mode, (10, 6))] * 3
    assert [np.asarray(each).max() for each in images] == [5, 25, 45]


def test_four_episodes_are_shown_and_large_frames_made_small():
    assert len(Page(page_of(filmed(20))).found("img")) == 4 * 3
    spec = ObservationSpec("camera", (300, 500, 3), "uint8", "image")
    episode = with_rows(make_episode(1), camera=np.zeros((2, 300, 500, 3), np.uint8))
    first, _ = Page(page_of(log_of(episode, extra=(spec,)))).links
    assert Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))).size == (192, 115)


def test_frames_that_cannot_be_shown_are_explained():
    class Damaged(StoredFrames):
        def __getitem__(self, rows):
            raise DatasetError("file:camera row 0 is <damaged>")

    damaged = with_rows(make_episode(3), camera=Damaged([b"x"] * 4))
    page = Page(page_of(log_of(damaged, extra=(CAMERA,))))
    assert not page.found("img")
    assert page.text.count("file:camera row 0 is <damaged>") == 3
    assert "2 channels of uint8 make no picture" in Page(page_of(filmed(1, 2))).text


def test_without_pillow_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DatasetError, match="pictures on the page need Pillow; pip install pillow, or leave out --html"):
        page_of(filmed())


def test_a_point_cloud_is_one_figure():
    size = MAX_ELEMENTS + 1
    spec = ObservationSpec("cloud", (size,), "float32")
    log = log_of(with_rows(make_episode(3), cloud=np.zeros((4, size))), extra=(spec,))
    page = Page(page_of(log))
    assert f"Histogram of all {size} elements" in [each["aria-label"] for each in page.found("svg")]
    assert "More than 128 elements: their values together." in page.text


def test_a_log_of_which_nothing_can_be_used_still_has_a_page():
    broken = edited(make_episode(3), "state", slice(None), np.nan)
    assert "nothing to draw" in Page(page_of(log_of(broken))).text
    useless = log_of(make_episode(0), replace(make_episode(3, seed=4), rewards=np.ones(2)))
    page = Page(page_of(useless, check_dataset(useless)))
    assert "Errors: 2, warnings: 0." in page.text
    assert len(page.found("svg")) == 4  # return, length, and the limits of the two actions


def test_the_same_log_gives_the_same_page(tmp_path):
    paths = [tmp_path / name for name in ("a.html", "b.html")]
    for path in paths:
        write_page(filmed(), describe(filmed(), []), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "folder", tmp_path / "file" / "page.html"):
        with pytest.raises(DatasetError, match=r"--html .*: cannot be written \(.*\); choose another file"):
            write_page(sound_log(), describe(sound_log(), []), path)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file", "folder"]
