"""The frame and the style sheet of `inspect_page`: the colours of all our pages, light or dark as the reader's system.

Special about this file: it holds no code but the joining of both. The frame is filled in by `str.format`.
"""

from __future__ import annotations

_PALETTE = {  # CSS variable -> (light, dark), as in the reports of training
    "ink": ("#1c2430", "#e6e9ef"),
    "muted": ("#5d6675", "#9aa4b2"),
    "rule": ("#e1e5eb", "#2e3642"),
    "bars": ("#ccd6e4", "#394455"),
    "page": ("#f4f6f9", "#0e1217"),
    "card": ("#ffffff", "#171c24"),
    "series-0": ("#2563eb", "#7aa2ff"),
    "series-1": ("#d4690a", "#f3a35c"),
    "series-2": ("#12855c", "#4cc38a"),
    "series-4": ("#c93a4b", "#f2808c"),
}

_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
 overflow-wrap:anywhere}
main{max-width:1200px;margin:0 auto;padding:40px 16px 64px}
h1{font-size:clamp(1.5rem,4vw,2.1rem);line-height:1.2;margin:0 0 16px}
h2{font-size:1.2rem;margin:48px 0 12px}
h3{font-size:1rem;margin:28px 0 8px}
p{margin:0 0 12px;max-width:75ch}
small,figcaption,dt,.legend,.none{color:var(--muted)}
.card{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:14px 16px;margin:0}
.notice{border-left:4px solid var(--series-0);padding:2px 0 2px 14px}
.error{color:var(--series-4)}
.warning{color:var(--series-1)}
.grid,.list{display:grid;gap:16px}
.grid{grid-template-columns:repeat(auto-fill,minmax(min(100%,265px),1fr))}
.list{list-style:none;padding:0;margin:0}
.grid>*,.list>*{min-width:0}
.list p{margin:0 0 4px;font-size:.92rem}
.list ul{margin:0;font-size:.85rem}
.scroll{overflow-x:auto}
svg{display:block;width:100%;height:auto}
svg text{font-size:11px;fill:var(--muted);font-variant-numeric:tabular-nums}
img{display:block;width:100%;max-width:384px;height:auto;image-rendering:pixelated}
.rule{stroke:var(--rule);fill:none}
.limit{stroke:var(--series-1);stroke-width:1.6;stroke-dasharray:5 4;fill:none}
path.bars{fill:var(--series-0)}
path.success{fill:var(--series-2)}
path.failure{fill:var(--series-4)}
path.other{fill:var(--bars)}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:.9rem;max-width:none}
.legend i{display:inline-block;vertical-align:middle;margin:-2px 8px 0 0;width:14px;height:14px}
i.success{background:var(--series-2)}
i.failure{background:var(--series-4)}
i.other{background:var(--bars)}
i.limit{width:0;border-left:2px dashed var(--series-1)}
figcaption{font-size:.9rem;margin-bottom:6px}
small{display:block;font-weight:400}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}
th{font-size:.85rem;font-weight:500;color:var(--muted)}
tbody tr{border-top:1px solid var(--rule)}
dl{display:grid;grid-template-columns:minmax(0,max-content) minmax(0,1fr);gap:8px 24px}
dd{margin:0}
@media (max-width:600px){dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:10px}}
"""

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
{style}</style>
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


def fill_page(title: str, introduction: str, sections: str) -> str:
    """Returns the page as HTML; the parts are HTML, too."""
    light, dark = ("".join(f"--{name}:{pair[index]};" for name, pair in _PALETTE.items()) for index in (0, 1))
    colours = f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return _FRAME.format(title=title, introduction=introduction, sections=sections, style=colours + _STYLE)
