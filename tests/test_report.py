"""What a report gathers: from runs, files of evaluations, by playing; and what it says where something is missing."""

from __future__ import annotations

import json
import shutil

import pytest
from report_fixtures import PASSING, make_sources, train_some, write_outcomes

from qtransformer.cli import main
from qtransformer.config import RunError
from qtransformer.files import SUMS, write_sums
from qtransformer.report import gather_report
from qtransformer_datasets.schema import DatasetError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return train_some(tmp_path_factory.mktemp("report"))


@pytest.fixture
def words(runs):
    return [f"ours={runs['ours0']},{runs['ours1']}", f"cloning={runs['bc']}"]


def test_files_of_evaluations_are_compared(runs, words, tmp_path):
    files = [write_outcomes(tmp_path / f"{name}.json", [name != "bc"] * 9) for name in ("o0", "o1", "bc", "expert")]
    evaluations = (f"ours={files[0]},{files[1]}", f"cloning={files[2]}", f"expert={files[3]}")
    report = gather_report(words, make_sources(evaluations=evaluations, max_steps=0))
    assert report.success is not None
    assert {each.name: each.rate for each in report.success.methods} == {"ours": 1.0, "cloning": 0.0, "expert": 1.0}
    assert report.comparison is not None
    assert len(report.comparison.pairs) == 3
    assert report.names == ["ours", "cloning", "expert"]
    assert [len(each) for each in report.methods.values()] == [2, 1]
    assert report.explanations == {}


def test_a_single_method_is_compared_with_nothing(runs, tmp_path):
    evaluations = (f"{runs['bc']}={write_outcomes(tmp_path / 'a.json', [True, False])}",)
    report = gather_report([str(runs["bc"])], make_sources(evaluations=evaluations, max_steps=0))
    assert report.success is not None
    assert report.comparison is None


def test_one_episode_of_several_trainings_tells_nothing(runs, words, tmp_path):
    files = [write_outcomes(tmp_path / f"{name}.json", [True]) for name in ("o0", "o1", "bc")]
    evaluations = (f"ours={files[0]},{files[1]}", f"cloning={files[2]}")
    report = gather_report(words, make_sources(evaluations=evaluations, max_steps=0))
    assert (report.success is not None, report.comparison) == (True, None)


def test_evaluations_of_different_episodes_are_not_compared(words, tmp_path):
    files = [write_outcomes(tmp_path / f"{name}.json", [True] * (2 + place)) for place, name in enumerate("ab")]
    with pytest.raises(RunError, match=r"seeds of \S+ and \S+ must be the same, got only the second has 2"):
        gather_report(words, make_sources(evaluations=(f"ours={files[0]}", f"cloning={files[1]}")))
    other = write_outcomes(tmp_path / "c.json", [True] * 2, environment_id="another")
    with pytest.raises(RunError, match=rf"environments of .* must be the same, got '{PASSING}' and 'another'"):
        gather_report(words, make_sources(evaluations=(f"ours={files[0]}", f"cloning={other}")))


def test_runs_are_played_for_rates_and_clips(words):
    report = gather_report(words, make_sources(4, max_steps=0))
    assert report.success is not None
    assert [(each.name, each.outcomes.shape) for each in report.success.methods] == [
        ("ours", (2, 4)),
        ("cloning", (1, 4)),
    ]
    assert report.success.environment_id == PASSING
    assert all(1 <= len(each) <= 2 for each in report.clips.values())
    assert list(report.clips) == ["ours", "cloning"]


def test_files_go_before_what_was_played(words, tmp_path):
    evaluations = (f"ours={write_outcomes(tmp_path / 'a.json', [True] * 7)}",)
    report = gather_report(words, make_sources(2, evaluations=evaluations, max_steps=0))
    assert report.success is not None
    assert len(report.success.seeds) == 7
    assert list(report.clips) == ["ours", "cloning"]


def test_without_playing_the_environment_is_shown(words):
    report = gather_report(words, make_sources(max_steps=0))
    assert (report.success, report.comparison, report.notes) == (None, None, ())
    ((name, (clip,)),) = report.clips.items()
    assert (name, clip.caption) == ("ours", f"{PASSING}, the start of seed 0")


def test_values_are_held_against_the_runs_own_log_or_another(runs, words):
    report = gather_report(words, make_sources(max_steps=1000))
    assert list(report.explanations) == ["ours", "cloning"]
    assert [each.origin for each in report.explanations["ours"].checks] == ["trained on"]
    assert report.explanations["ours"].episode.success
    assert report.explanations["cloning"].checks == ()
    report = gather_report(words[:1], make_sources(dataset=runs["log"]))
    assert list(report.explanations) == ["ours"]


def test_a_log_that_is_gone_or_has_changed_is_said(runs, tmp_path):
    run = shutil.copytree(runs["bc"], tmp_path / "run")
    kept = runs["log"].with_name("kept")
    runs["log"].rename(kept)
    try:
        report = gather_report([str(run)], make_sources())
        (note,) = report.notes
        assert note.endswith(f"no values on its log: {runs['log']} is not there any more; name a log with --dataset.")
        with pytest.raises(DatasetError):
            gather_report([str(run)], make_sources(dataset=runs["log"]))
    finally:
        kept.rename(runs["log"])
    for path in run.glob("checkpoints/*"):  # as if it had been trained on another log, by the checksums' own rule
        document = json.loads((path / "checkpoint.json").read_text())
        document["dataset"]["fingerprint"] = "0" * 64
        _rewrite(path, json.dumps(document))
    (note,) = gather_report([str(run)], make_sources()).notes
    assert note.endswith("log has changed since; name a log with --dataset.")


def _rewrite(checkpoint, text):
    (checkpoint / "checkpoint.json").write_text(text)
    (checkpoint / SUMS).unlink()
    write_sums(checkpoint)


def test_a_run_without_a_policy_is_told_as_far_as_it_goes(runs, words, tmp_path):
    run = shutil.copytree(runs["bc"], tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    report = gather_report([*words, str(run)], make_sources(2))
    assert report.success is not None
    assert [each.name for each in report.success.methods] == ["ours", "cloning"]
    (note,) = report.notes
    assert note.startswith(f"{run}: No policy: ")
    alone = gather_report([str(run)], make_sources(2))
    assert (alone.success, alone.clips, alone.explanations) == (None, {}, {})


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_says_where(runs, words, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    flags = ["--episodes", "2", "--env-id", PASSING, "--import", "evaluation_fixtures", "--title", "A <title>"]
    assert main(["report", *words, "--out", str(out), *flags, "--text", "Some words."]) == 0
    assert capsys.readouterr().out == f"reported: {out}\n"
    page = out.read_text()
    assert "<h1>A &lt;title&gt;</h1>" in page
    assert "Some words." in page
    assert len(page) < 10_000_000


def test_the_command_says_what_the_page_lacks(runs, tmp_path, capsys):
    run = shutil.copytree(runs["bc"], tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"st')
    assert main(["report", str(run), "--out", str(tmp_path / "page.html"), "--max-steps", "0"]) == 0
    said = capsys.readouterr().err
    assert f"{run}: metrics.jsonl is missing or empty" in said
    assert "Traceback" not in said
    page = (tmp_path / "page.html").read_text()
    assert "metrics.jsonl is missing or empty" in page
    assert f"<h1>Report: {run}</h1>" in page


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--episodes", "-1"], "episodes (-1) must be at least 0; change --episodes"),
        (["--max-steps", "-1"], "max_steps (-1) must be at least 0; change --max-steps"),
        (["--evaluations", "x=nothing.json"], "nothing.json: must be a run, a bundle or a file of `evaluate --json`"),
        (["--episodes", "1", "--env-id", "no/Such-v0"], "environment id ('no/Such-v0') is unknown"),
        (["--out", "/dev/null/page.html", "--max-steps", "0"], "--out /dev/null/page.html: cannot be written"),
    ],
)
def test_mistakes_are_one_line(runs, flags, match, capsys):
    assert main(["report", str(runs["bc"]), *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("qtransformer report: error: ")
    assert match in line


def test_a_folder_that_is_no_run_is_refused(runs, capsys):
    assert main(["report", str(runs["log"])]) == 2
    assert "must be the --out folder of `train`, got one without config.json" in capsys.readouterr().err
