"""A page is filled as it was asked for, fetches nothing, and is written as a whole or not at all."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from page_fixtures import EVIL, Page, assert_colours_follow_the_reader, assert_fetches_and_runs_nothing

from qtransformer.page import PALETTE, box, facts, figure, fill, grid, legend, section, table, write

STYLE = """
$base
.own{color:var(--muted)}
$card
"""


def filled(*sections: str, style: str = STYLE, has_images: bool = False) -> str:
    return fill("A title", "<p>Hello</p>", sections, style, has_images=has_images)


def test_a_page_holds_its_parts():
    page = Page(filled(section("One", ["<p>first</p>", "<p>second</p>"]), section("Empty", [])))
    assert page.text.split() == ["A", "title", "A", "title", "Hello", "One", "first", "second"]
    assert [tag for tag, _ in page.tags][-8:] == ["body", "main", "h1", "p", "section", "h2", "p", "p"]


def test_a_page_fetches_nothing_and_shows_the_images_it_holds_only_where_it_may():
    for html in (filled(), filled(has_images=True)):
        assert_fetches_and_runs_nothing(html)
        assert_colours_follow_the_reader(html)
    policies = [re.findall(r"default-src[^\"]*", filled(has_images=each)) for each in (False, True)]
    assert policies == [
        ["default-src 'none'; style-src 'unsafe-inline'"],
        ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"],
    ]


def test_colours_differ_from_each_other_and_between_light_and_dark():
    assert len({light for light, _ in PALETTE.values()}) == len(PALETTE)
    assert all(light != dark for light, dark in PALETTE.values())


def test_shared_rules_stand_where_the_style_sheet_asks_for_them():
    html = filled()
    places = [html.index(rule) for rule in ("*{box-sizing", "\nmain{", "\n.own{", "\n.card{", "</style>")]
    assert places == sorted(places)
    assert "$" not in html
    assert "h3{" not in html  # not asked for


def test_a_shared_rule_that_is_not_there_is_refused():
    with pytest.raises(KeyError, match="cord"):
        filled(style="$cord")


def test_parts():
    assert figure("a <b>caption</b>", "<svg></svg>") == (
        '<figure class="card"><figcaption>a <b>caption</b></figcaption><svg></svg></figure>'
    )
    assert grid(["<i></i>", "<b></b>"]) == '<div class="grid">\n<i></i>\n<b></b>\n</div>'
    assert legend(["one", "two"]) == '<p class="legend"><span>one</span> <span>two</span></p>'
    assert table(("a", "b"), [("1", "2"), ("3", "4")]) == (
        "<table>\n<thead><tr><th>a</th><th>b</th></tr></thead>\n<tbody>\n"
        "<tr><td>1</td><td>2</td></tr>\n<tr><td>3</td><td>4</td></tr>\n</tbody>\n</table>"
    )
    assert facts([("a", "1"), ("b", "2")]) == '<dl class="card">\n<dt>a</dt><dd>1</dd>\n<dt>b</dt><dd>2</dd>\n</dl>'


def test_facts_are_escaped():
    page = Page(facts([(EVIL, EVIL)]))
    assert not page.found("script")
    assert page.text.count(EVIL) == 2


def test_writing_replaces_a_page_and_leaves_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "new" / "page.html"
    write("first", path)
    write("second – ü\n", path)
    assert path.read_bytes() == "second – ü\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def write_half(self, data):
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        write("new page", path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_box_scrolls_and_can_be_reached_by_the_keyboard():
    assert box("wide", "own") == '<div class="card scroll own" tabindex="0">wide</div>'
    assert box("wide") == '<div class="card scroll" tabindex="0">wide</div>'
