"""What a person sees: plain lines without a terminal, and the table of an evaluation."""

from __future__ import annotations

from qtransformer.console import print_summary, progress

SUMMARY = {
    "environment_id": "test/Point-v0",
    "success_rule": "info['success'] at the last step",
    "successes": 8,
    "episodes": 10,
    "success_rate": 0.8,
    "interval": [0.4901, 0.9434],
    "mean_return": 0.75,
    "mean_length": 12.34,
    "latency_ms": {"median": 1.23, "p99": 4.56},
    "success_once": {"successes": 9, "episodes": 10, "success_rate": 0.9, "interval": [0.5958, 0.9821]},
    "crashed": 0,
    "stopped": None,
    "tasks": {},
}


def test_ten_plain_lines_on_stderr_without_a_terminal(capsys):
    with progress("train", 30) as advance:
        for step in range(30):
            advance(**({"loss": 0.123456} if step >= 20 else {}))
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 10
    assert lines[0] == "train: 3/30"
    assert lines[-1] == "train: 30/30  loss 0.1235"


def test_progress_goes_on_where_a_run_was_resumed(capsys):
    with progress("train", 20, done=18) as advance:
        advance()
        advance()
    assert capsys.readouterr().err.splitlines() == ["train: 20/20"]


def test_a_short_run_says_every_unit_and_a_long_one_says_the_last(capsys):
    for total, expected in ((3, [1, 2, 3]), (25, [*range(2, 25, 2), 25])):
        with progress("play", total) as advance:
            for _ in range(total):
                advance()
        lines = capsys.readouterr().err.splitlines()
        assert [line.removeprefix("play: ") for line in lines] == [f"{done}/{total}" for done in expected]


def test_the_summary_names_every_figure_and_fits_80_columns(capsys):
    print_summary(SUMMARY)
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    for part in (
        "Evaluation in test/Point-v0",
        "8 of 10 episodes: info['success'] at the last step",
        "80.0% (95 % interval 49.0% to 94.3%)",
        "90.0% (95 % interval 59.6% to 98.2%)",
        "0.75",
        "12.3 steps",
        "1.2 ms median, 4.6 ms p99",
    ):
        assert part in text
    assert [word for word in ("crashed", "stopped", "Tasks") if word in text] == []


def test_the_summary_tells_crashes_tasks_and_an_early_end(capsys):
    tally = {"successes": 8, "episodes": 10, "success_rate": 0.8, "interval": [0.4901, 0.9434]}
    none = {"successes": 0, "episodes": 0, "success_rate": None, "interval": [0.0, 1.0]}
    tasks = {
        "pick [bold]up": {**tally, "success_once": {**tally, "success_rate": 0.9}, "crashed": 0},
        "push": {**none, "success_once": none, "crashed": 3},
    }
    print_summary({**SUMMARY, "crashed": 3, "stopped": "hopeless after 13 of 20 episodes", "tasks": tasks})
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    (crashed,) = (line for line in lines if "crashed" in line and "task" not in line)
    assert "3 episodes, counted in no rate" in crashed
    assert any("hopeless after 13 of 20 episodes" in line for line in lines)
    (pick,) = (line for line in lines if "pick [bold]up" in line)
    assert [part for part in ("8 of 10", "80% (49% to 94%)", "90% (49% to 94%)", " 0 ") if part not in pick] == []
    (push,) = (line for line in lines if "push" in line)
    assert [part for part in ("0 of 0", "–", " 3 ") if part not in push] == []


def test_tasks_without_crashes_have_no_column_for_them(capsys):
    tally = {"successes": 8, "episodes": 10, "success_rate": 0.8, "interval": [0.4901, 0.9434]}
    print_summary({**SUMMARY, "tasks": {"pick": {**tally, "success_once": tally, "crashed": 0}}})
    assert "crashed" not in capsys.readouterr().out
