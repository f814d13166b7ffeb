"""One page about a run on a log: an episode step by step, the bins of its tokens, alarms and calibration.

Steps are chosen by radio buttons, which a style sheet can see: a page runs no script. What is wide scrolls in a box of
its own. It must not know torch or any file layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from qtransformer import page
from qtransformer.alarms import Alarm
from qtransformer.calibration import Calibration, Group, Mean
from qtransformer.config import writing
from qtransformer.explain import NO_VALUES, Bins, Check, Explanation, Moment
from qtransformer.explain_log import ORIGINS
from qtransformer.explain_plots import STYLE as FIGURES
from qtransformer.explain_plots import bins_chart, calibration_chart, number, padded, value_chart

_LAST_TOKEN = "This algorithm learns Q at the last token of an action alone; the other tokens show their density."
_BEHAVIOUR = (
    "Q of the logged action is what follows if the policy takes over after it; the return is what the behaviour made "
    "of it. A policy that is better than the behaviour has values above the returns, so a bias above 0 is no fault by "
    "itself; the order should be right all the same."
)
_CUT = (
    "of these episodes were cut off before the task ended. What would have followed is not known: their returns count "
    "the least that can have."
)
_BINS = (
    "What the policy says of every bin, given the logged bins of the tokens before it. The axis below names the "
    "actions that bins stand for. Choose a step; arrow keys move on."
)
_COLOURS = {"ringing": "series-4", "silent": "series-2", "not asked": "muted"}


def write_page(explanation: Explanation, path: Path) -> None:
    """Writes the page to `path`, as a whole or not at all.

    Raises:
        RunError: it cannot be written there.
    """
    html = render(explanation)
    with writing("--out", path):
        page.write(html, path)


def render(explanation: Explanation) -> str:
    """Returns the page as HTML."""
    episode = explanation.episode
    sections = [
        page.section(f"Along episode {episode.number}", _along(explanation)),
        page.section("Every bin of every token", _tokens(explanation)),
        *(
            page.section(f"Predicted against realised: episodes {each.origin}", check_parts(each))
            for each in explanation.checks
        ),
        page.section("How this was made", [page.facts(explanation.facts.items())]),
    ]
    style = _STYLE + "".join(_mark_at(moment.step) for moment in episode.moments)
    introduction = "\n".join(_introduction(explanation))
    return page.fill(escape(explanation.title), introduction, sections, style, has_images=False)


def _introduction(explanation: Explanation) -> Iterator[str]:
    if not explanation.checks:
        yield f'<p class="notice">{NO_VALUES}</p>'
    for check in explanation.checks:
        ringing = sum(alarm.state == "ringing" for alarm in check.alarms)
        asked = sum(alarm.state != "not asked" for alarm in check.alarms)
        verdict = f"{ringing} of {asked} over-estimation alarms ring"
        where = f"on the episodes {check.origin} ({check.num_there})."
        yield f'<p class="notice"><b>{verdict}</b> {where} {ORIGINS[check.origin]}</p>'


def _along(explanation: Explanation) -> Iterator[str]:
    episode = explanation.episode
    ending = {True: "a success", False: "a failure", None: "success not recorded"}[episode.success]
    yield f"<p>{escape(episode.source)}: {len(episode.returns)} steps, {ending}, {episode.origin}.</p>"
    names = {"return": "Monte-Carlo return, realised"}
    if episode.predictions is not None:
        names |= {"logged": "Q of the logged action", "greedy": "V, value of the state"}
    yield _legend({f"curve {kind}": text for kind, text in names.items()})
    yield page.box(value_chart(episode))


def _tokens(explanation: Explanation) -> Iterator[str]:
    first = explanation.episode.moments[0].tokens
    has_values = any(token.q_values is not None for token in first)
    yield f"<p>{_BINS}</p>"
    if has_values and first[0].q_values is None:
        yield f"<p>{_LAST_TOKEN}</p>"
    yield bins_legend(first)
    moments = "\n".join(_moment(explanation, index) for index in range(len(explanation.episode.moments)))
    yield f'<fieldset class="steps"><legend>Step</legend>\n{moments}\n</fieldset>'


def bins_legend(tokens: Sequence[Bins]) -> str:
    """Returns what the marks of `bins_figures` mean."""
    names = {"ring": "logged bin", "dot": "bin that the policy would take"}
    if any(token.q_values is not None for token in tokens):
        names["up"] = "Q, upwards from the least of the step"
    if tokens[0].density is not None:
        names["down"] = "density"
    return _legend(names)


def _moment(explanation: Explanation, index: int) -> str:
    """Returns a radio button, its label, and what is shown while it is chosen."""
    episode, moment = explanation.episode, explanation.episode.moments[index]
    step, checked = moment.step, "" if index else " checked"
    said = f"return {number(float(episode.returns[step]))}"
    if episode.predictions is not None:
        value, q_logged = (float(each[step]) for each in (episode.predictions.values, episode.predictions.q_logged))
        said = f"V {number(value)}, Q of the logged action {number(q_logged)}, {said}"
    figures = page.grid(bins_figures(moment, explanation.token_names))
    return (
        f'<input type="radio" name="step" id="step-{step}"{checked}><label for="step-{step}">{step}</label>\n'
        f'<div class="moment"><p>Step {step}: {said}.</p>\n{figures}</div>'
    )


def bins_figures(moment: Moment, names: Sequence[str]) -> Iterator[str]:
    """Yields a figure a token: all its bins at one step."""
    values = [token.q_values for token in moment.tokens if token.q_values is not None]
    q_range = padded(np.concatenate(values)) if values else None
    for name, bins in zip(names, moment.tokens, strict=True):
        chart = bins_chart(bins, q_range, f"Bins of {name} at step {moment.step}")
        yield page.figure(_caption(name, bins), chart)


def _caption(name: str, bins: Bins) -> str:
    logged, greedy = (number(float(bins.actions[bin])) for bin in (bins.logged, bins.greedy))
    return f"{escape(name)}<small>logged {logged}, policy {greedy}</small>"


def check_parts(check: Check) -> Iterator[str]:
    """Yields what there is to say of the values of episodes of one origin: alarms, and calibration."""
    calibration = check.calibration
    if check.num_episodes < check.num_there:
        yield f"<p>{check.num_episodes} of the {check.num_there} episodes, evenly chosen.</p>"
    yield '<ul class="alarms">\n' + "\n".join(map(alarm_card, check.alarms)) + "\n</ul>"
    yield f"<h3>Calibration</h3>\n<p>{_BEHAVIOUR}</p>"
    if check.num_cut:
        yield f"<p>{check.num_cut} {_CUT}</p>"
    facts = {
        "bias, prediction − return": interval_text(calibration.bias),
        "root mean squared difference": number(calibration.error),
        "rank correlation": number(calibration.rank_correlation),
        "looked at": f"{calibration.bias.num_steps:,} steps of {calibration.bias.num_episodes} episodes",
    }
    yield page.facts(facts.items())
    chart = calibration_chart(calibration, f"Realised return against predicted value, episodes {check.origin}")
    figure = page.figure("A dot a tenth of the steps; dashed: as predicted", chart)
    yield f'<div class="pair">{_groups(calibration)}\n{figure}</div>'


def alarm_card(alarm: Alarm) -> str:
    """Returns one alarm as an item of a list of the class `alarms`."""
    word = f'<b style="color:var(--{_COLOURS[alarm.state]})">{alarm.word}</b>'
    head = f"{word}<b>{escape(alarm.name[:1].upper() + alarm.name[1:])}</b><small>{alarm.measure}</small>"
    return f'<li class="card"><p class="head">{head}</p><p>{escape(alarm.sentence)}</p></li>'


def _groups(calibration: Calibration) -> str:
    heads = ("predicted", "realised", "95 % interval", "steps", "episodes")
    table = page.table(heads, map(_cells, calibration.groups))
    return page.box(table)


def _cells(group: Group) -> tuple[str, ...]:
    mean = group.realised
    return number(group.prediction), number(mean.mean), _ends(mean), f"{mean.num_steps:,}", str(mean.num_episodes)


def _legend(marks: Mapping[str, str]) -> str:
    return page.legend(f'<i class="{kind}"></i>{text}' for kind, text in marks.items())


def interval_text(mean: Mean) -> str:
    """Returns a mean with its interval in words."""
    return f"{number(mean.mean)} (95 % interval {_ends(mean)})"


def _ends(mean: Mean) -> str:
    return f"{number(mean.low)} to {number(mean.high)}" if np.isfinite(mean.low) else "not known"


def _mark_at(step: int) -> str:
    """Returns the rule that shows in the upper figure which step is chosen below."""
    return f"main:has(#step-{step}:checked) .at-{step}{{visibility:visible}}\n"


_STYLE = (
    """
$base
$h1
$h2
$h3
$p
small,figcaption,dt,legend,.legend{color:var(--muted)}
$card
$notice
.grid,.pair,.alarms{display:grid;gap:16px}
$grid
@media (min-width:1000px){.pair{grid-template-columns:minmax(0,7fr) minmax(0,5fr)}}
.grid>*,.pair>*,.alarms>*{min-width:0}
$alarms
$scroll
.scroll svg{min-width:890px}
$svg
"""
    + FIGURES
    + """
$rule
.tick{stroke:var(--muted);fill:none}
.at{stroke:var(--muted);stroke-width:1.5;fill:none;visibility:hidden}
path.return{stroke:var(--ink);stroke-dasharray:5 4;stroke-width:1.6}
path.logged{stroke:var(--series-0)}
path.greedy{stroke:var(--series-1)}
$legend
.legend i{display:inline-block;vertical-align:middle;margin:-2px 8px 0 0}
i.curve{width:24px;border-top:3px solid}
i.return{border-top:2px dashed var(--ink)}
i.logged{border-color:var(--series-0)}
i.greedy{border-color:var(--series-1)}
.steps{display:flex;flex-wrap:wrap;gap:6px;border:0;padding:0;margin:0;min-width:0}
.steps>legend{padding:0 0 4px;font-size:.9rem}
.steps>input{position:absolute;opacity:0}
.steps>label{min-width:40px;padding:5px 8px;text-align:center;border:1px solid var(--rule);border-radius:8px;
 background:var(--card);cursor:pointer;font-variant-numeric:tabular-nums}
.steps>input:checked+label{background:var(--ink);color:var(--card);border-color:var(--ink)}
.steps>input:focus-visible+label{outline:3px solid var(--series-0);outline-offset:2px}
.moment{display:none;order:1;flex:0 0 100%;min-width:0;margin-top:10px}
.steps>input:checked+label+.moment{display:block}
$figcaption
$small
$table
th,td{padding:7px 10px;text-align:right;white-space:nowrap}
$th
$rows
$facts
dl.card{margin-bottom:16px}
dd{margin:0;white-space:pre-wrap}
$narrow
"""
)
