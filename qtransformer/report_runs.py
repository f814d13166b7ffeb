"""The parts of the report's page that tell of runs in words: what went wrong, the settings, how each was made.

It must not know torch or any file layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from qtransformer import page
from qtransformer.explain_page import alarm_card
from qtransformer.guard import SPIKE
from qtransformer.run_records import Methods, Rung, RunRecord

_SAME_ALWAYS = ("out", "resume")  # a run's place, and whether it was gone on with, are no settings of the method


def labels(methods: Methods) -> Iterator[tuple[str, RunRecord]]:
    """Yields every run with a name: its method's, and its number where there are several."""
    for name, runs in methods.items():
        for number, run in enumerate(runs, start=1):
            yield (name if len(runs) == 1 else f"{name} {number}"), run


# --- what went wrong --------------------------------------------------------------------------------------------------


def trouble_parts(methods: Methods) -> Iterator[str]:
    """Yields what rang while the runs trained, and what was done about batches, gradients and interruptions."""
    quiet = []
    for label, run in labels(methods):
        rung, told = run.rung(), list(_interventions(run))
        if not rung and not told:
            quiet.append(label)
            continue
        yield f"<h3>{escape(label)}</h3>"
        if rung:
            yield '<ul class="alarms">\n' + "\n".join(map(_rung_card, rung)) + "\n</ul>"
        if told:
            yield '<ul class="told">' + "".join(f"<li>{escape(each)}</li>" for each in told) + "</ul>"
    if quiet:
        who = f" of {escape(', '.join(quiet))}" if len(methods) > 1 or len(quiet) > 1 else ""
        yield f"<p>Nothing rang in the course{who}; nothing was left out, interrupted or refused.</p>"


def _rung_card(rung: Rung) -> str:
    """Returns the alarm, and when it rang."""
    when = f"at update {rung.last:,}" if rung.first == rung.last else f"from update {rung.first:,} to {rung.last:,}"
    since = ", silent since" if rung.is_over else ", and still does"
    return alarm_card(rung.alarm).replace("</li>", f"<p>It rang {when}{since}.</p></li>")


def _interventions(run: RunRecord) -> Iterator[str]:
    if len(run.sessions) > 1:
        resumed = ", ".join(str(each.get("first_step", "?")) for each in run.sessions[1:])
        yield f"Training was interrupted and gone on with at update {resumed}."
    if run.step < run.config.steps:
        yield f"Training stands at update {run.step:,} of {run.config.steps:,}."
    if skipped := run.last("skipped_batches"):
        yield f"{skipped:,.0f} batches whose numbers, loss or gradients were not finite were left out."
    yield from (f"Refused: {each}." for each in run.refused)
    if spikes := run.last("gradient_spikes"):
        yield f"{spikes:,.0f} gradients had a norm over {SPIKE:g} times the usual; they were clipped like all others."


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_parts(methods: Methods) -> Iterator[str]:
    """Yields the settings that differ between the runs, and all of each run."""
    named = list(labels(methods))
    settings = {label: flat(run.config.to_json()) for label, run in named}
    names = list(dict.fromkeys(name for each in settings.values() for name in each))
    differing = [
        name for name in names if name not in _SAME_ALWAYS and len({each.get(name) for each in settings.values()}) > 1
    ]
    if differing:
        yield "<p>What differs between the runs; all else is the same.</p>"
        rows = ((_flag(name), *(escape(each.get(name, "–")) for each in settings.values())) for name in differing)
        table = page.table(("setting", *map(escape, settings)), rows)
        yield page.box(table, "differs")
    elif len(named) > 1:
        yield "<p>The runs have the same settings.</p>"
    for label, each in settings.items():
        yield f"<details><summary>All settings of {escape(label)}</summary>\n{page.facts(each.items())}\n</details>"


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Returns nested settings as one table; a dot stands between a group and a name."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            listed = ", ".join(map(str, value)) or "all" if isinstance(value, list) else str(value)
            found[above + name] = listed
    return found


def _flag(name: str) -> str:
    return escape("--" + name.rpartition(".")[2].replace("_", "-"))


# --- how the runs were made -------------------------------------------------------------------------------------------


def provenance_parts(methods: Methods) -> Iterator[str]:
    """Yields log, command, machine, versions and revision of each run; those of a single run are unfolded."""
    named = list(labels(methods))
    for label, run in named:
        shown = " open" if len(named) == 1 else ""
        summary = f"{escape(label)}, {len(run.sessions)} {'session' if len(run.sessions) == 1 else 'sessions'}"
        yield f"<details{shown}><summary>{summary}</summary>\n{page.facts(_facts(run))}\n</details>"


def _facts(run: RunRecord) -> Iterator[tuple[str, str]]:
    yield "folder", str(run.folder)
    if run.loaded is not None:
        log = run.loaded.info["dataset"]
        yield "log", f"{log['path']}, {log['episodes']} episodes, fingerprint {log['fingerprint'][:16]}"
    for number, session in enumerate(run.sessions, start=1):
        prefix = f"session {number}: " if len(run.sessions) > 1 else ""
        yield f"{prefix}command", str(session.get("command"))
        yield f"{prefix}updates", f"from {session.get('first_step')} to {session.get('steps')} at most"
        yield f"{prefix}machine", f"{session.get('device')}, {session.get('processor')}"
        versions = session.get("versions")
        named = versions.items() if isinstance(versions, Mapping) else ()
        yield f"{prefix}versions", ", ".join(f"{name} {each}" for name, each in named) or "not known"
        changed = f", changed: {session['changes']}" if session.get("changes") else ""
        yield f"{prefix}git revision", f"{session.get('git_revision')}{changed}"
