"""The benchmark of dense rewards without its trainings: the gait, the shifted log, the values and what is told."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from qtransformer.config import ModelConfig, TokenConfig, TrainConfig
from qtransformer.training import train
from qtransformer_datasets.collect import CollectConfig, collect
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.returns import monte_carlo_returns

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import cells  # noqa: E402  # pyright: ignore[reportMissingImports]
import dense  # noqa: E402  # pyright: ignore[reportMissingImports]
import dense_cheetah as cheetah  # noqa: E402  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "cheetah"
    collect(CollectConfig(cheetah.ENVIRONMENT, episodes=2, imports=(dense.MODULE,), num_workers=1), path)
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into the current folder


# --- the expert -------------------------------------------------------------------------------------------------------


def sine(phase: float = 0.0, centre: float = 0.0, amplitude: float = 1.0) -> cheetah.Gait:
    return cheetah.Gait(2.0, (centre,) * 6, (amplitude,) * 6, (phase,) * 6)


def test_a_gait_swings_between_the_ends_of_the_joints():
    middle = (cheetah.LOW + cheetah.HIGH) / 2
    np.testing.assert_allclose(sine().angles(0.0), middle)
    np.testing.assert_allclose(sine().angles(1 / 8), cheetah.HIGH)  # a quarter of a stride
    np.testing.assert_allclose(sine(phase=1.5).angles(0.0), cheetah.LOW)
    np.testing.assert_allclose(sine(centre=1.0, amplitude=0.0).angles(0.3), cheetah.HIGH)


def test_the_expert_is_a_spring_and_a_damper_within_the_limits():
    middle = (cheetah.LOW + cheetah.HIGH) / 2
    angles = middle - np.array([0.1, 0.1, 5.0, -5.0, 0.0, 0.0])
    speeds = np.array([0.0, 1.0, 0.0, 0.0, 2.0, 0.0])
    data = SimpleNamespace(time=0.0, qpos=np.concatenate([np.zeros(3), angles]), qvel=np.concatenate([[9] * 3, speeds]))
    expert = cheetah.Tracker(SimpleNamespace(data=data), sine())
    np.testing.assert_allclose(expert.act(), [0.2, 0.1, 1.0, -1.0, -0.2, 0.0], atol=1e-6)


def test_the_expert_runs_and_the_episode_is_cut_off():
    environment = gymnasium.make(cheetah.ENVIRONMENT)
    episodes = []
    for seed in (7, 7, 8):
        environment.reset(seed=seed)
        expert = environment.unwrapped.make_expert(seed)  # pyright: ignore[reportAttributeAccessIssue]
        expert.reset()
        rewards, is_over = [], False
        while not is_over:
            action = expert.act()
            _, reward, terminated, is_over, info = environment.step(action)
            assert not terminated
            assert reward == pytest.approx(info["x_velocity"] - 0.1 * float(np.sum(action**2)), abs=1e-5)
            rewards.append(reward)
        episodes.append(rewards)
    assert episodes[0] == episodes[1] != episodes[2]
    assert [len(each) for each in episodes] == [200, 200, 200]
    assert all(sum(each) > 250 for each in episodes)
    environment.close()


def test_the_search_is_repeatable_and_improves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cheetah, "STEPS", 50)
    few = {"rounds": 4, "num_gaits": 8, "num_kept": 2}
    found = cheetah.search(**few)
    assert found == cheetah.search(**few)
    assert found != cheetah.search(seed=0, **few)
    environment = cheetah.DenseHalfCheetah()
    scores = [cheetah.play(environment, gait, 0, noise=0.0) for gait in (cheetah.search(rounds=0), found, cheetah.GAIT)]
    assert scores == sorted(scores)


def test_a_gait_of_19_numbers():
    gait = cheetah.gait_of(np.arange(19) + 0.004)
    assert gait == cheetah.Gait(0.0, (1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12), (13, 14, 15, 16, 17, 18))


# --- the logs ---------------------------------------------------------------------------------------------------------


def test_a_shifted_log_has_returns_that_lie_lower_by_a_constant(log: Path):
    episodes = open_dataset(log).episodes
    changed = [dense.shifted(each) for each in episodes]
    np.testing.assert_allclose(changed[0].rewards, episodes[0].rewards - 5.0)
    assert changed[0].actions is episodes[0].actions
    for plain, lower in zip(monte_carlo_returns(episodes, 0.98), monte_carlo_returns(changed, 0.98), strict=True):
        np.testing.assert_allclose(lower, plain - 250.0, atol=1e-4)  # 5 / (1 - 0.98), the cut included


def test_an_interrupted_copy_is_made_again(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "log").symlink_to(log)
    (tmp_path / "shifted.unfinished").mkdir()
    (tmp_path / "shifted.unfinished" / "rest").write_text("of a copy")
    asked: list[tuple] = []
    monkeypatch.setattr(cells, "call", lambda command, folder: asked.append(command))
    log_path, copy = dense.make_logs(tmp_path, 2)
    assert asked[0][3:8] == ("collect", "--env-id", "dense/HalfCheetah-v5", "--import", "dense_cheetah")
    assert asked[0][-3:] == ("--out", log_path, "--append")
    assert open_dataset(copy).episodes[1].rewards[3] == pytest.approx(open_dataset(log).episodes[1].rewards[3] - 5)
    dense.make_logs(tmp_path, 2)
    assert len(asked) == 1


# --- the cells --------------------------------------------------------------------------------------------------------


def test_quick_is_small():
    options = dense.read_arguments(["--quick"])
    assert (options.seeds, options.updates, options.episodes, options.log_episodes) == (1, 20, 2, 6)
    assert options.methods == ("ours", "ours, shifted", "cloning")
    assert dense.read_arguments([]).methods == ("ours", "ours, shifted", "cloning", "paper")
    assert dense.read_arguments([]).work.is_absolute()


def test_one_episode_has_no_interval(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        dense.read_arguments(["--seeds", "1", "--episodes", "1"])
    assert "--seeds (1) times --episodes (1) must be at least 2" in capsys.readouterr().err
    assert dense.read_arguments(["--seeds", "2", "--episodes", "1"]).episodes == 1


@pytest.mark.parametrize(
    ("method", "log_name", "flags"),
    [
        ("ours", "log", ["--steps", "30"]),
        ("ours, shifted", "shifted", ["--steps", "30"]),
        ("cloning", "log", ["--algorithm", "behaviour_cloning", "--steps", "30"]),
        ("paper", "log", ["--preset", "paper", "--steps", "10"]),
    ],
)
def test_what_a_cell_runs(
    method: str, log_name: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []
    told = json.dumps({"outcomes": [{"episode_return": 1.0}, {"episode_return": 3.0}]})
    monkeypatch.setattr(cells, "call", lambda command, folder: commands.append(list(command)) or (told, 1.25))
    monkeypatch.setattr(dense, "values_of", lambda run, log: {"of": (run.name, log.name)})
    found = dense.run_cell(Namespace(updates=30, episodes=7), method, 4, tmp_path)
    run = str(tmp_path / "runs" / method / "4")
    shared = ["train", "--dataset", str(tmp_path / log_name), "--seed", "4"]
    assert commands[0][3:] == [*shared, *flags, "--out", run]
    plan = ["--episodes", "7", "--seed", "500000", "--import", "dense_cheetah", "--json"]
    assert commands[1][3:] == ["evaluate", run, *plan]
    assert (found["returns"], found["training_cpu_s"]) == ([1.0, 3.0], 1.2)
    assert found.get("values") == (None if method == "cloning" else {"of": ("4", log_name)})


def test_finished_cells_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runs: list[tuple] = []
    result = {"returns": [1.0], "training_cpu_s": 2.0}
    monkeypatch.setattr(dense, "run_cell", lambda *asked: runs.append(asked) or result)
    for _ in range(2):
        assert dense.ensure(Namespace(), "ours", 1, tmp_path) == result
    assert runs == [(Namespace(), "ours", 1, tmp_path)]
    assert cells.read_results(tmp_path / "results.jsonl") == {"ours/1": result}


def test_a_command_runs_in_the_folder_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    (tmp_path / "folder").mkdir()
    source = "import os; sum(range(10**7)); print(os.getcwd(), os.environ['OMP_NUM_THREADS'], os.environ['PYTHONPATH'])"
    printed, cpu_s = cells.call([sys.executable, "-c", source], tmp_path / "folder")
    assert printed == f"{tmp_path / 'folder'} 1 {FOLDER}\n"
    assert cpu_s > 0.05


def test_a_command_that_fails_is_an_error(tmp_path: Path):
    with pytest.raises(cells.CellError, match=r"python.* -c raise SystemExit\('no'\): ended with 1: no"):
        cells.call([sys.executable, "-c", "raise SystemExit('no')"], tmp_path)


# --- values -----------------------------------------------------------------------------------------------------------


def test_an_episode_that_goes_on_by_hand():
    np.testing.assert_allclose(dense.going_on(np.array([1.0, 3.0]), 0.5), [3.5, 5.0])  # 2 a step for ever: 4


def test_values_come_in_the_unit_of_the_log(log: Path, tmp_path: Path):
    tokens, model = TokenConfig(num_bins=4), ModelConfig(width=8, num_layers=1, num_heads=2)
    run = train(TrainConfig(log, tmp_path / "run", steps=1, batch_size=4, device="cpu", tokens=tokens, model=model))
    found, episodes = dense.values_of(run, log), open_dataset(log).episodes
    bound = np.stack(monte_carlo_returns(episodes, 0.98))
    returns = np.stack([dense.going_on(each.rewards, 0.98) for each in episodes])
    assert found["first"]["bound"] == pytest.approx(bound[:, :50].mean(), rel=1e-3)
    assert found["last"]["bound"] == pytest.approx(bound[:, -10:].mean(), rel=1e-3)
    assert found["first"]["return"] == pytest.approx(returns[:, :50].mean(), rel=1e-3)
    assert found["last"]["return"] == pytest.approx(returns[:, -10:].mean(), rel=1e-3)
    assert found["range"][0] < found["last"]["q"] < found["range"][1]
    assert -1 <= found["rank_correlation"] <= 1


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_best_tenth_of_the_log():
    assert dense.behaviour([float(each) for each in range(20)]) == {"mean": 9.5, "best_tenth": 18.5}
    assert dense.behaviour([1.0, 2.0]) == {"mean": 1.5, "best_tenth": 2.0}


def test_an_interval_by_hand():
    # standard deviation 2 of 4 numbers: 1.96 * 2 / 2
    assert dense.interval([1.0, 1.0, 1.0, 5.0]) == {"mean": 2.0, "interval": [0.04, 3.96]}


def cell(returns: list[float], q: float) -> dict:
    values = {"first": {"q": q}, "last": {"q": 2 * q}}
    return {"returns": returns, "training_cpu_s": 1.0, "values": values}


def test_the_summary_by_hand():
    found = {
        "ours": [cell([2.0, 4.0], 10.0), cell([6.0, 8.0], 20.0)],
        "ours, shifted": [cell([1.0, 4.0], -240.0), cell([6.0, 8.0], -230.0)],
        "cloning": [cell([1.0, 1.0], 0.0), cell([3.0, 3.0], 0.0)],
    }
    told = dense.summary(found)
    assert told["ratio"] == 2.5
    assert told["returns"]["ours"]["seeds"] == [3.0, 7.0]
    assert told["returns"]["cloning"]["mean"] == 2.0
    assert told["shift"]["of_return"]["mean"] == -0.25
    assert told["shift"]["of_q"] == [{"first": -250.0, "last": -500.0}, {"first": -250.0, "last": -500.0}]
    assert set(told["values"]) == {"ours", "ours, shifted"}


def test_no_ratio_to_a_cloning_that_does_not_run():
    found = {"ours": [cell([2.0, 4.0], 1.0)], "ours, shifted": [cell([2.0, 4.0], 1.0)]}
    assert dense.summary({**found, "cloning": [cell([-3.0, 1.0], 0.0)]})["ratio"] is None
