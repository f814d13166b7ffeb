"""What all our pages share: the frame, the colours, the rules of style sheets, and the parts of a content.

A page is a single file that fetches nothing and runs no script. Colours follow the reader's system. Special about this
file: both packages write their pages with it, so it needs the standard library alone. It must not know what a page is
about; the rules that only one page needs stand with that page.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from qtransformer.files import write_durably

PALETTE = {  # CSS variable -> (light, dark)
    "ink": ("#1c2430", "#e6e9ef"),
    "muted": ("#5d6675", "#9aa4b2"),
    "rule": ("#e1e5eb", "#2e3642"),
    "bars": ("#ccd6e4", "#394455"),
    "page": ("#f4f6f9", "#0e1217"),
    "card": ("#ffffff", "#171c24"),
    "series-0": ("#2563eb", "#7aa2ff"),
    "series-1": ("#d4690a", "#f3a35c"),
    "series-2": ("#12855c", "#4cc38a"),
    "series-3": ("#7c4dcc", "#b795f5"),
    "series-4": ("#c93a4b", "#f2808c"),
    "series-5": ("#0f8a9d", "#54c7d8"),
    "series-6": ("#857412", "#cdbb4e"),
    "series-7": ("#b0408f", "#e98acb"),
}

_RULES = {  # by the names under which style sheets ask for them
    "base": """*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
 overflow-wrap:anywhere}
main{max-width:1200px;margin:0 auto;padding:40px 16px 64px}""",
    "h1": "h1{font-size:clamp(1.5rem,4vw,2.1rem);line-height:1.2;margin:0 0 16px}",
    "h2": "h2{font-size:1.2rem;margin:48px 0 12px}",
    "h3": "h3{font-size:1rem;margin:28px 0 8px}",
    "p": "p{margin:0 0 12px;max-width:75ch}",
    "card": ".card{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:14px 16px;margin:0}",
    "notice": ".notice{border-left:4px solid var(--series-0);padding:2px 0 2px 14px}",
    "grid": ".grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,265px),1fr))}",
    "alarms": """.alarms{grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));list-style:none;padding:0;
 margin:0}
.alarms p{margin:0;font-size:.92rem}
.alarms .head{display:flex;flex-wrap:wrap;gap:0 12px;align-items:baseline;margin-bottom:6px}
.head small{flex:0 0 100%;font-variant-numeric:tabular-nums}""",
    "scroll": ".scroll{overflow-x:auto}",
    "svg": "svg{display:block;width:100%;height:auto}",
    "rule": ".rule{stroke:var(--rule);fill:none}",
    "legend": ".legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:.9rem;max-width:none}",
    "figcaption": "figcaption{font-size:.9rem;margin-bottom:6px}",
    "small": "small{display:block;font-weight:400}",
    "table": "table{border-collapse:collapse;width:100%;overflow-wrap:normal;font-variant-numeric:tabular-nums}",
    "th": "th{font-size:.85rem;font-weight:500;color:var(--muted)}",
    "rows": "tbody tr{border-top:1px solid var(--rule)}",
    "facts": "dl{display:grid;grid-template-columns:minmax(0,max-content) minmax(0,1fr);gap:8px 24px}",
    "narrow": "@media (max-width:600px){dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:10px}}",
}

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {images}style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{colours}{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{introduction}
{sections}
</main>
</body>
</html>
"""


def fill(title: str, introduction: str, sections: Iterable[str], style: str, *, has_images: bool) -> str:
    """Returns a page; its parts are HTML, and those sections that are empty are left out.

    Args:
        title: of the page and above its content.
        introduction: what stands below the title.
        sections: what `section` returned.
        style: the style sheet. Since the order of rules matters, a `$name` in it stands where a shared rule goes.
        has_images: whether the page may show images that it holds as data.

    Raises:
        KeyError: the style sheet asks for a rule that is not there.
    """
    light, dark = ("".join(f"--{name}:{pair[index]};" for name, pair in PALETTE.items()) for index in (0, 1))
    return _FRAME.format(
        title=title,
        images="img-src data:; " if has_images else "",
        colours=f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}",
        style=Template(style).substitute(_RULES),
        introduction=introduction,
        sections="\n".join(filter(None, sections)),
    )


def section(title: str, parts: Iterable[str]) -> str:
    """Returns a section with its heading; nothing if it has no content."""
    content = "\n".join(parts)
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def figure(caption: str, content: str) -> str:
    """Returns a figure on a card, its caption above it."""
    return f'<figure class="card"><figcaption>{caption}</figcaption>{content}</figure>'


def grid(figures: Iterable[str]) -> str:
    """Returns figures side by side, as many as the window is wide."""
    content = "\n".join(figures)
    return f'<div class="grid">\n{content}\n</div>'


def legend(items: Iterable[str]) -> str:
    """Returns what the marks of figures mean."""
    return '<p class="legend">' + " ".join(f"<span>{item}</span>" for item in items) + "</p>"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table of cells below their heads."""
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def box(content: str, kind: str = "") -> str:
    """Returns a card in which what is wide scrolls, also by the keyboard; `kind` are more classes of it."""
    return f'<div class="{f"card scroll {kind}".strip()}" tabindex="0">{content}</div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns names and what they are on a card. Unlike all other parts, these are text, and escaped."""
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f'<dl class="card">\n{rows}\n</dl>'


def write(html: str, path: Path) -> None:
    """Writes a page to `path`, as a whole or not at all; its folder is made where missing.

    Raises:
        OSError: it cannot be written there.
    """
    data = html.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, lambda temporary: temporary.write_bytes(data))
