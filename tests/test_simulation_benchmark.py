"""The benchmark of the simulator: figures by hand, measurements on short episodes, the result as the last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

from qtransformer_envs import ENVIRONMENTS

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import simulation  # noqa: E402  # pyright: ignore[reportMissingImports]
import simulation_worker  # noqa: E402  # pyright: ignore[reportMissingImports]

PICK = "qtransformer/Pick-v0"
FAKE_WORKER = """
import sys
sys.path.append({folder!r})
from harness import serve
if sys.argv[1] == "egl":
    raise SystemExit(3)
def steps_per_second(environment_id, num_steps, size=None):
    return 700 - 100 * (environment_id == "b") if size is None else 180.0
serve({{
    "task_ids": lambda: ["a", "b"],
    "why_unavailable": lambda: None,
    "steps_per_second": steps_per_second,
    "frames_per_second": lambda environment_id, num_steps, size: 1.6 * size + 40 * (environment_id == "b"),
    "serial": lambda num_episodes: {{"seconds": 6.0, "lengths": [5] * num_episodes}},
    "evaluated": lambda num_episodes, vectorization, num_envs: {{
        "seconds": 3.0 if vectorization == "sync" else 8.0, "lengths": [5] * num_episodes,
    }},
}})
"""


def test_the_share_of_the_renderer_by_hand():
    figures = {"a": [80.0, 90.0, 100.0], "a alone": [100.0, 100.0, 100.0], "b": [50.0], "b alone": [100.0]}
    assert simulation.share(figures, ["a", "b"]) == {
        "steps_per_cpu_second": {"a": 90.0, "b": 50.0},
        "pictures_per_cpu_second": {"a": 100.0, "b": 100.0},
        "share": {"a": 0.9, "b": 0.5},
        "median_share": 0.7,
    }


@pytest.mark.parametrize(
    ("rate", "share", "same", "broken"),
    [
        (600.0, 0.7, True, []),
        (599.0, 0.7, True, ["state"]),
        (600.0, 0.69, True, ["egl"]),
        (600.0, None, True, []),
        (600.0, 0.7, False, ["evaluate"]),
    ],
)
def test_which_promises_are_kept(rate, share, same, broken):
    images = None if share is None else {128: {"share": {"a": 0.9, "b": share}}}
    result = {
        "state_steps_per_cpu_second": {"a": rate, "b": 900.0},
        "images": {"osmesa": None, "egl": images},
        "evaluation": {"same_episodes": same},
    }
    kept = simulation.verdicts(result)
    assert len(kept) == 2 + (images is not None)
    assert [name.split(":")[0].split()[0] for name, is_kept in kept.items() if not is_kept] == broken


def test_the_tasks_are_those_of_the_suite_one_by_one():
    names = simulation_worker.task_ids()
    assert {"qtransformer/Pick-v0", "qtransformer/OpenDrawer-v0"} <= set(names) <= set(ENVIRONMENTS)
    assert not {"qtransformer/Tabletop-v0", "qtransformer/PickCube-v0"} & set(names)


def test_as_many_steps_are_timed_as_were_asked_for_over_whole_episodes(monkeypatch):
    calls = []
    monkeypatch.setattr(simulation_worker, "cpu_seconds", lambda work: calls.append(work()) or 0.5)
    assert simulation_worker.steps_per_second(PICK, 40) == 2.0
    assert len(calls) == 40
    assert sum(terminated for _, _, terminated, _, _ in calls) >= 1  # the expert's episode, and the next one's start


def test_an_image_costs_time_and_the_renderer_alone_less():
    reason = simulation_worker.why_unavailable()
    if reason:
        pytest.skip(reason)
    state, image = (simulation_worker.steps_per_second(PICK, 10, size) for size in (None, 256))
    assert 0 < image < state
    assert simulation_worker.frames_per_second(PICK, 10, 64) > 0


def test_why_a_backend_is_unavailable_is_one_line(monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("no\nlibEGL")

    monkeypatch.setattr(gymnasium, "make", fail)
    assert simulation_worker.why_unavailable() == "RuntimeError: no libEGL"


def test_evaluate_and_the_plain_loop_play_the_same_episodes():
    contest = simulation_worker.Contest()
    serial = contest.serial(2)
    side_by_side = contest.evaluated(2, "sync", 2)
    assert serial["lengths"] == side_by_side["lengths"]
    assert len(serial["lengths"]) == 2
    assert min(serial["seconds"], side_by_side["seconds"]) > 0


def test_other_episodes_are_told():
    class Stub:
        def call(self, handler, num_episodes, **_):
            return {"seconds": 1.0, "lengths": [5] * num_episodes if handler == "serial" else [6] * num_episodes}

    assert simulation.measure_evaluation(Stub(), 2, 1)["same_episodes"] is False


@pytest.fixture
def fake(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(FAKE_WORKER.format(folder=str(FOLDER)))
    monkeypatch.setattr(simulation, "SCRIPT", script)


@pytest.mark.usefixtures("fake")
def test_the_result_is_the_last_line_and_a_backend_that_ends_is_null_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simulation.py"])
    simulation.main()
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["ratio"] == {
        "osmesa 128 px": pytest.approx((180 / 204.8 + 180 / 244.8) / 2, abs=1e-3),
        "egl 128 px": None,
        "evaluate sync": 2.0,
        "evaluate async": 0.75,
    }
    assert result["state_steps_per_cpu_second"] == {"a": 700, "b": 600}
    assert set(result["images"]["osmesa"]) == {"64", "128", "256"}
    assert result["images"]["egl"] is None
    assert "egl: cannot draw here: worker.py: ended at call 'why_unavailable' with status 3" in captured.err
    assert set(result["kept"].values()) == {True}
    assert (result["evaluation"]["episodes"], result["quick"]) == (simulation.EPISODES, False)


@pytest.mark.usefixtures("fake")
def test_the_quick_form_compares_the_same(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simulation.py", "--quick"])
    simulation.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["quick"] is True
    assert result["evaluation"]["episodes"] == simulation.QUICK_EPISODES
    assert set(result["images"]["osmesa"]) == {"64", "128", "256"}


def test_the_worker_draws_with_the_backend_that_it_is_told(tmp_path):
    script = tmp_path / "worker.py"
    source = (FOLDER / "simulation_worker.py").read_text()
    script.write_text(source.replace('"task_ids": task_ids', '"task_ids": lambda: os.environ["MUJOCO_GL"]'))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(FOLDER)])}
    answer = subprocess.run(
        [sys.executable, script, "osmesa"],
        input='["task_ids", {}]\n',
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'answer: "osmesa"' in answer.stdout
