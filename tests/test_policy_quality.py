"""The comparison of policies without training: what each cell is told to do, the order, and what the table says."""

from __future__ import annotations

import json
import math
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import tyro
from dataset_fixtures import POINT_ID

from qtransformer import training
from qtransformer.cli import _commands
from qtransformer.config import TrainConfig
from qtransformer.training import build
from qtransformer_datasets.collect import CollectConfig, collect

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import cells  # noqa: E402  # pyright: ignore[reportMissingImports]
import d3rlpy_runner as runner  # noqa: E402  # pyright: ignore[reportMissingImports]
import policy_quality as quality  # noqa: E402  # pyright: ignore[reportMissingImports]

IQL, TD3 = "d3rlpy IQL", "d3rlpy TD3+BC"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "point"
    collect(CollectConfig(POINT_ID, episodes=4, imports=("dataset_fixtures",), num_workers=1), path)
    return path


# --- the cells --------------------------------------------------------------------------------------------------------


def options_of(*arguments: str) -> Namespace:
    return quality.read_arguments(arguments)


def test_ours_is_always_among_the_methods_and_the_order_is_fixed():
    assert options_of("--methods", IQL, "cloning").methods == ["ours", "cloning", IQL]
    assert options_of().methods == list(quality.METHODS)
    noisy = ("pick-cube", "pick-place", "push", "drawer-open", "button-press", "hand-reach")
    assert options_of().rows == (*noisy, "cross-maze", "pick-cube-habits")


def test_quick_is_small_and_keeps_its_cells_apart():
    options = options_of("--quick", "--work", "there")
    assert (options.work, options.logs) == (Path("there/quick"), Path("there/logs"))
    assert (options.rows, options.seeds, options.episodes) == (("pick-cube",), 1, 4)
    assert options.methods == ["ours", "cloning of successes", IQL]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ours", ("default", "q_transformer", False, 100)),
        ("paper", ("paper", "q_transformer", False, 100)),
        ("cloning", ("default", "behaviour_cloning", False, 100)),
        ("cloning of successes", ("default", "behaviour_cloning", True, 33)),
    ],
)
def test_the_flags_are_those_of_our_command(method: str, expected: tuple):
    arguments = ["train", "--dataset", "log", "--out", "run", *quality.own_flags(method, 100)]
    config = tyro.cli(_commands(arguments), args=arguments)
    assert isinstance(config, TrainConfig)
    assert (config.preset, config.algorithm, config.data.only_successful, config.steps) == expected
    assert (config.tokens.num_bins, config.model.window) == ((256, 6) if method == "paper" else (32, 2))


def test_one_update_is_the_least():
    assert quality.own_flags("cloning of successes", 2)[-1] == "1"


@pytest.mark.parametrize(("row", "imports"), [("pick-cube", "qtransformer_envs"), ("push", "sparse_tasks")])
def test_both_sides_are_evaluated_alike(row: str, imports: str):
    ours, other = (quality.make_cell((row, method, 4), Path("python"), Path("log"), 50, 60) for method in ("ours", IQL))
    run = Path("run")
    for command in (ours.evaluate(run), other.evaluate(run)):
        given = dict(
            zip(command[command.index("run") + 1 : -1 : 2], command[command.index("run") + 2 :: 2], strict=True)
        )
        assert given == {"--episodes": "50", "--seed": "500000", "--import": imports}
        assert command[-1] == "--json"
    read = runner.read_arguments(other.train(run)[2:])
    assert (read.log, read.algorithm, read.seed, read.cpu_seconds, read.out) == (Path("log"), "iql", 4, 60, run)
    assert runner.read_arguments(other.evaluate(run)[2:]).imports == [imports]
    assert "--device cpu --out run" in " ".join(ours.train(run))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, Any]]]:
    """The calls of `run_cells`: each cell's key, and the budget that its command names."""
    calls, done = [], {}

    def run_cells(batch: list[cells.Cell], work: Path, workers: int) -> dict[str, Any]:
        commands = {cell.key: list(cell.train(Path("run"))) for cell in batch}
        flags = {key: "--cpu-seconds" if "--cpu-seconds" in each else "--steps" for key, each in commands.items()}
        calls.append([(key, each[each.index(flags[key]) + 1]) for key, each in commands.items()])
        done.update({cell.key: {"training_cpu_s": 10.0 + cell.seed} for cell in batch})
        return done

    monkeypatch.setattr(quality.cells, "run_cells", run_cells)
    monkeypatch.setattr(quality.peers, "ensure", lambda name: Path("python"))
    monkeypatch.setattr(quality, "make_log", lambda row, folder: folder / row)
    monkeypatch.setattr(quality, "update_costs", lambda log: {"ours": [1.0, 1.0, 9.0], "paper": [4.0, 2.0, 18.0]})
    return calls


def test_ours_comes_first_and_sets_the_budget(asked: list, tmp_path: Path):
    arguments = ("--work", str(tmp_path), "--seeds", "2", "--rows", "push", "--updates", "90")
    quality.run(options_of(*arguments, "--methods", "paper", "cloning of successes", TD3))
    assert asked == [
        [("push/ours/0", "90")],
        [
            ("push/paper/0", "45"),
            ("push/cloning of successes/0", "30"),
            (f"push/{TD3}/0", "10.0"),
            ("push/ours/1", "90"),
        ],
        [("push/paper/1", "45"), ("push/cloning of successes/1", "30"), (f"push/{TD3}/1", "11.0")],
    ]


def test_a_folder_holds_cells_of_one_kind(asked: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ("--work", str(tmp_path), "--rows", "push", "--methods", "ours", "--seeds", "1")
    quality.run(options_of(*arguments))
    quality.run(options_of(*arguments))
    with pytest.raises(SystemExit, match="2"):
        quality.run(options_of(*arguments, "--updates", "7"))
    assert "must hold cells of {'updates': 7, 'episodes': 50}, got cells of {'updates': 3000" in capsys.readouterr().err
    assert len(asked) == 4


def test_the_paper_is_measured_once_for_each_log(asked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = options_of("--work", str(tmp_path), "--updates", "10")
    first = quality.calibrate({"push": Path("push")}, options)
    assert first == {"push": {"updates": 5, "ours_cpu_ms": 1000, "paper_cpu_ms": 4000}}
    monkeypatch.setattr(quality, "update_costs", lambda log: {"ours": [1.0], "paper": [1.0]})
    both = quality.calibrate({"push": Path("push"), "pick-cube": Path("pick-cube")}, options)
    assert {row: each["updates"] for row, each in both.items()} == {"push": 5, "pick-cube": 10}


def test_the_paper_makes_at_least_one_update():
    assert quality.paper_updates({"ours": [1.0], "paper": [100.0]}, 10)["updates"] == 1


def test_updates_are_measured_with_both_presets(log: Path, monkeypatch: pytest.MonkeyPatch):
    built = []
    monkeypatch.setattr(training, "build", lambda config, dataset: built.append(config) or build(config, dataset))
    costs = quality.update_costs(log, rounds=2, repeats=1)
    assert {name: len(each) for name, each in costs.items()} == {"ours": 2, "paper": 2}
    assert min(costs["ours"] + costs["paper"]) > 0
    assert [(each.tokens.num_bins, each.model.window, each.device) for each in built] == [
        (32, 2, "cpu"),
        (256, 6, "cpu"),
    ]


def test_a_log_is_made_once(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        quality.peers, "run", lambda name, script, arguments, **_: calls.append((name, script, arguments))
    )
    assert quality.make_log(log.name, log.parent) == log
    assert not calls
    assert quality.make_log("push", tmp_path) == tmp_path / "push"
    assert calls == [("robots", FOLDER / "logs.py", (str(tmp_path), "push"))]


# --- the table --------------------------------------------------------------------------------------------------------


def pooled(rate: float, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    interval = interval or (rate, rate)
    return {"success_rate": rate, "interval": list(interval), "seeds": [rate], "training_cpu_s": 1.0, "updates": 1}


@pytest.mark.parametrize(
    ("ours", "successes", "interval", "kept"),
    [(0.5, 0.4, [0.05, 0.15], True), (0.5, 0.55, [-0.1, 0.0], True), (0.5, 0.56, [-0.11, -0.01], False)],
)
def test_the_verdict_by_hand(ours: float, successes: float, interval: list[float], kept: bool):
    """Rates with 3 and 4 points to either end: their difference has 5."""
    methods = {
        "ours": pooled(ours, (ours - 0.03, ours + 0.03)),
        "cloning of successes": pooled(successes, (successes - 0.04, successes + 0.04)),
    }
    found = quality.verdict(methods)
    assert found == {"difference": pytest.approx(ours - successes), "interval": pytest.approx(interval), "kept": kept}


def test_no_verdict_on_what_is_missing():
    assert quality.verdict({"ours": pooled(1.0)}) is None
    assert quality.verdict({"cloning of successes": pooled(1.0)}) is None
    assert quality.summary({"push": {"ours": pooled(1.0)}})["kept"] == {
        "ours has the highest mean": True,
        "ours nowhere below cloning of successes": None,
    }


def test_the_summary_by_hand():
    table = {
        "push": {"ours": pooled(0.9), "paper": pooled(1.0), "cloning of successes": pooled(0.2), IQL: pooled(0.5)},
        "pick-cube": {"ours": pooled(0.5), "cloning of successes": pooled(0.6), IQL: pooled(0.2)},
    }
    found = quality.summary(table)
    assert found["mean_success"] == {"ours": 0.7, "cloning of successes": 0.4, IQL: 0.35}, "only those with all rows"
    assert found["ratio"] == 1.75
    assert {row: each["kept"] for row, each in found["verdicts"].items()} == {"push": True, "pick-cube": False}
    assert list(found["kept"].values()) == [True, False]
    assert found["success"] is table


def test_ours_must_be_above_the_best_other():
    table = {"push": {"ours": pooled(0.5), "cloning of successes": pooled(0.5)}}
    assert list(quality.summary(table)["kept"].values()) == [False, True]


def test_there_is_no_ratio_to_nothing():
    table = {"push": {"ours": pooled(0.5), "cloning of successes": pooled(0.0)}}
    assert quality.summary(table)["ratio"] is None
    assert quality.summary({"push": {IQL: pooled(0.5)}})["ratio"] is None


def write_results(work: Path) -> None:
    """Ours with two seeds on one log, TD3+BC with one; results alone, as a file of finished cells has them."""
    lines = []
    for key, successes in {"push/ours/0": 30, "push/ours/1": 50, f"push/{TD3}/0": 10}.items():
        counts = {"successes": successes, "episodes": 50, "mean_length": 1.0, "updates": 10 * successes}
        lines.append(json.dumps({"key": key, **counts, "training_cpu_s": 2.0, "evaluation_cpu_s": 1.0}) + "\n")
    work.mkdir(exist_ok=True)
    (work / "results.jsonl").write_text("".join(lines))


def test_main_tells_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_results(tmp_path)
    (tmp_path / "calibration.json").write_text('{"push": {"updates": 5}}')
    picture = tmp_path / "picture.png"
    assert quality.main(["--show", "--work", str(tmp_path), "--picture", str(picture)]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out.splitlines()[-1])
    assert found["ratio"] == 4
    assert found["success"]["push"]["ours"]["seeds"] == [0.6, 1.0]
    assert {method: each["updates"] for method, each in found["success"]["push"].items()} == {"ours": 400, TD3: 100}
    assert found["calibration"] == {"push": {"updates": 5}}
    assert (found["updates"], found["episodes"], found["seeds"]) == (3000, 50, 5)
    assert "ours has the highest mean: yes" in output.err
    assert "71-87" in output.err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_cells_that_come_with_the_repository_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy(FOLDER / "results" / "policy_quality.jsonl", tmp_path / "results.jsonl")
    assert quality.main(["--show", "--work", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {len(methods["ours"]["seeds"]) for methods in found["success"].values()} == {found["seeds"]}
    assert {methods["ours"]["updates"] for methods in found["success"].values()} == {found["updates"]}


def test_main_runs_before_it_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(quality, "run", lambda options: write_results(options.work))
    assert quality.main(["--work", str(tmp_path)]) == 0
    assert math.isclose(json.loads(capsys.readouterr().out.splitlines()[-1])["mean_success"]["ours"], 0.8)


def test_nothing_finished_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        quality.main(["--show", "--work", str(tmp_path)])
    assert "must hold finished cells of the rows and methods, got none; run without --show" in capsys.readouterr().err


def test_one_cell_for_people():
    assert quality.told({"success_rate": 0.754, "interval": [0.7, 0.806]}) == "75\n70-81"
