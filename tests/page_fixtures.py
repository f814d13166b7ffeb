"""What the tests of all pages ask of a page: its tags and text, that it runs and fetches nothing, and its colours."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from qtransformer.page import PALETTE

EVIL = '<script src="x">&"$a$'
_VOID = {"meta", "img", "br", "link", "input", "hr"}
_ACTIVE = {"script", "link", "iframe", "object", "embed", "base", "a"}
_FETCHING = {"src", "href", "srcset", "xlink:href", "data", "poster", "action"}


class Page(HTMLParser):
    """The tags and the text of a page without its style sheet; fails on a tag that is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def found(self, tag):
        """Returns the attributes of each such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    def values(self, names):
        """Returns what stands in these attributes, of all tags."""
        return [value or "" for _, attributes in self.tags for name, value in attributes.items() if name in names]

    @property
    def links(self):
        """What a browser would fetch or go to."""
        return self.values(_FETCHING)

    @property
    def ids(self):
        return self.values({"id"})


def assert_fetches_and_runs_nothing(html: str, *data: str) -> None:
    """Fails where a browser would fetch or run something; `data` is how the links that a page may hold begin."""
    page = Page(html)
    (policy,) = [each["content"] for each in page.found("meta") if "http-equiv" in each]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert not _ACTIVE & {tag for tag, _ in page.tags}
    assert [link for link in page.links if not link.startswith(data)] == []
    assert not re.search(r"https?:|url\((?!#)|@import|javascript:|\son\w+=", html)


def assert_colours_follow_the_reader(html: str) -> None:
    """Fails where a colour is no variable of the palette, or a variable is not both light and dark."""
    style, body = html.split("</style>")
    light, dark = style.split("@media (prefers-color-scheme:dark)")
    for name, pair in PALETTE.items():
        assert f"--{name}:{pair[0]};" in light
        assert f"--{name}:{pair[1]};" in dark
    assert set(re.findall(r"var\(--([\w-]+)\)", html)) <= set(PALETTE)
    assert not re.search(r"#[0-9a-f]{3,8}\b", re.sub(r'(?:href="|url\()#[\w-]+', "", body))
