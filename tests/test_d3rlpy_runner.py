"""d3rlpy on our logs: a stand-in answers for the package, and the package itself where its environment is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dataset_fixtures import POINT_ID, make_dataset, make_episode

from qtransformer.config import RunError
from qtransformer_datasets.collect import CollectConfig, collect

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))

import d3rlpy_runner as runner  # noqa: E402  # pyright: ignore[reportMissingImports]
import peers  # noqa: E402  # pyright: ignore[reportMissingImports]

ROBOTS = peers.ENVIRONMENTS / "robots" / "bin" / "python"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "point"
    collect(CollectConfig(POINT_ID, episodes=4, imports=("dataset_fixtures",), num_workers=1), path)
    return path


def test_observations_are_joined_in_the_order_of_the_names():
    arrays = {"b": np.array([[[1, 2]], [[3, 4]]], np.float64), "a": np.array([5, 6])}
    flat = runner.flat_observations(arrays, ["a", "b"])
    assert flat.dtype == np.float32
    assert flat.tolist() == [[5, 1, 2], [6, 3, 4]]


def test_an_episode_that_terminated_is_taken_as_it_is():
    episode = make_episode(3, success=True)
    made = runner.episode_arrays(episode, ["state"])
    assert made["terminated"] is True
    assert made["observations"].tolist() == np.asarray(episode.observations["state"][:3]).tolist()
    assert made["actions"].tolist() == episode.actions.tolist()
    assert made["rewards"].tolist() == [[0], [0], [1]]


def test_the_final_observation_of_a_truncated_episode_becomes_a_step():
    episode = make_episode(3, success=False)
    made = runner.episode_arrays(episode, ["state"])
    assert made["terminated"] is False
    assert made["observations"].tolist() == np.asarray(episode.observations["state"]).tolist()
    assert made["actions"][:3].tolist() == episode.actions.tolist()
    assert made["actions"][3].tolist() == [0, 0]
    assert made["rewards"].shape == (4, 1)


def test_without_a_final_observation_nothing_is_made_up():
    made = runner.episode_arrays(make_episode(3, success=False, final=False), ["state"])
    assert [len(made[name]) for name in ("observations", "actions", "rewards")] == [3, 3, 3]


def test_the_budget_is_spent_to_its_end():
    times, shares = iter([12.0, 13.0, 17.0, 21.0]), []
    assert runner.spend(10.0, 10.0, shares.append, lambda: next(times)) == 3
    assert shares == [0.2, 0.3, 0.7]


def test_reading_the_log_may_cost_the_whole_budget():
    assert runner.spend(1.0, 0.0, lambda share: pytest.fail("an update beyond the budget"), lambda: 1.0) == 0


def test_the_learning_rate_falls_from_all_to_nothing():
    assert [round(runner.cosine(share), 12) for share in (0, 1 / 3, 0.5, 1)] == [1, 0.75, 0.5, 0]


class FakeD3rlpy:
    """Stands for the package: one algorithm that writes down what it is given."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.seeded = -1
        self.configured: tuple[str, dict[str, Any]] = "", {}
        self.group = {"lr": -1.0}
        self.seed = lambda n: setattr(self, "seeded", n)
        self.preprocessing = SimpleNamespace(
            StandardObservationScaler=dict, MinMaxActionScaler=dict, ConstantShiftRewardScaler=dict
        )
        self.models = SimpleNamespace(VectorEncoderFactory=list)
        names = ("TD3PlusBCConfig", "IQLConfig", "CQLConfig")
        self.algos = SimpleNamespace(**{name: self._configure(name) for name in names})
        self.dataset = SimpleNamespace(Episode=dict, InfiniteBuffer=lambda: None, ReplayBuffer=self._buffer)

    def load_learnable(self, path: str, device: str) -> FakeD3rlpy:
        assert Path(path).read_text() == "weights"
        return self

    def predict(self, observations: np.ndarray) -> np.ndarray:
        self.seen = observations
        return np.stack([np.clip(-2 * observations[:, 0], -1, 1), 0 * observations[:, 0]], axis=1)

    def create(self, device: str) -> FakeD3rlpy:
        actor = SimpleNamespace(optim=SimpleNamespace(param_groups=[self.group]))
        self.impl = SimpleNamespace(modules=SimpleNamespace(actor_optim=actor))
        self.config, self.batch_size = SimpleNamespace(actor_learning_rate=8.0), 5
        return self

    def build_with_dataset(self, buffer: Any) -> None:
        assert buffer is self

    def sample_transition_batch(self, size: int) -> int:
        return size

    def update(self, batch: int) -> None:
        assert batch == 5
        self.rates.append(self.group["lr"])

    def save(self, path: str) -> None:
        Path(path).write_text("weights")

    def _configure(self, name: str) -> Any:
        def configure(**settings: Any) -> FakeD3rlpy:
            self.configured = name, settings
            return self

        return configure

    def _buffer(self, buffer: None, episodes: list[dict[str, Any]]) -> FakeD3rlpy:
        self.episodes = episodes
        return self


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeD3rlpy:
    package = FakeD3rlpy()
    monkeypatch.setattr(runner, "import_d3rlpy", lambda: package)
    return package


def train_arguments(log: Path, out: Path, algorithm: str = "iql", seconds: str = "0.2") -> list[str]:
    return [
        "train",
        "--log",
        str(log),
        "--algorithm",
        algorithm,
        "--seed",
        "3",
        "--cpu-seconds",
        seconds,
        "--out",
        str(out),
    ]


def test_iql_trains_for_its_budget_and_anneals_the_actor(fake: FakeD3rlpy, log: Path, tmp_path: Path):
    assert runner.main(train_arguments(log, tmp_path / "run")) == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["updates"] == len(fake.rates) > 10
    assert 0.2 <= run["cpu_seconds"] < 1
    assert run["budget_cpu_seconds"] == 0.2
    assert (run["environment_id"], run["observations"]) == (POINT_ID, ["state"])
    assert fake.seeded == 3
    assert len(fake.episodes) == 4
    assert fake.rates == sorted(fake.rates, reverse=True)
    assert 0 <= fake.rates[-1] < 1
    name, settings = fake.configured
    assert name == "IQLConfig"
    assert settings["reward_scaler"] == {"shift": -1}
    assert settings["action_scaler"]["minimum"].tolist() == [-1, -1]


@pytest.mark.parametrize("algorithm", ["td3_plus_bc", "cql"])
def test_the_others_keep_their_learning_rate(fake: FakeD3rlpy, log: Path, tmp_path: Path, algorithm: str):
    assert runner.main(train_arguments(log, tmp_path / "run", algorithm)) == 0
    assert set(fake.rates) == {-1.0}
    assert fake.configured[0] == {"td3_plus_bc": "TD3PlusBCConfig", "cql": "CQLConfig"}[algorithm]


def test_observations_are_standardised_by_the_log(fake: FakeD3rlpy, tmp_path: Path):
    dataset = make_dataset(tmp_path, [make_episode(3, seed=seed) for seed in (0, 1)])
    rows = np.concatenate([np.asarray(episode.observations["state"]) for episode in dataset.episodes])
    scaler = runner.scalers(fake, dataset)["observation_scaler"]
    np.testing.assert_allclose(scaler["mean"], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(scaler["std"], rows.std(axis=0), rtol=1e-5)


def test_a_run_plays_like_ours(fake: FakeD3rlpy, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert runner.main(train_arguments(log, tmp_path / "run")) == 0
    command = ["evaluate", str(tmp_path / "run"), "--episodes", "3", "--seed", "7", "--import", "dataset_fixtures"]
    assert runner.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["seed"] for each in found["outcomes"]] == [7, 8, 9]
    assert (found["successes"], found["episodes"]) == (3, 3)
    assert fake.seen.dtype == np.float32
    assert runner.main(command) == 0
    assert "3 of 3 episodes" in capsys.readouterr().out


def test_a_policy_refuses_observations_of_another_log(fake: FakeD3rlpy):
    policy = runner.D3rlpyPolicy(fake, ["state"])
    with pytest.raises(RunError, match=r"must have the keys \['state'\] of the log, got \['image'\]"):
        policy.act([0], [{"image": np.zeros(2)}])


@pytest.mark.parametrize("seconds", ["0", "nan"])
def test_a_budget_must_be_above_zero(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: str):
    assert runner.main(train_arguments(log, tmp_path / "run", seconds=seconds)) == 2
    assert "must be above 0; give more" in capsys.readouterr().err


def test_a_folder_is_not_overwritten(fake: FakeD3rlpy, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert runner.main(train_arguments(log, tmp_path)) == 2
    assert "cannot be made (File exists); choose another folder" in capsys.readouterr().err
    assert not fake.rates


def test_what_is_no_run_is_not_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert runner.main(["evaluate", str(tmp_path)]) == 2
    assert "must be the --out folder of `train`" in capsys.readouterr().err


def test_without_d3rlpy_it_says_where_to_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(RunError, match=r"d3rlpy cannot be imported .*; run by `peers.py robots d3rlpy_runner.py`"):
        runner.import_d3rlpy()


@pytest.mark.slow
@pytest.mark.skipif(not ROBOTS.exists(), reason="the environment `robots` is not made: benchmarks/peers.py robots")
def test_the_real_d3rlpy_trains_and_plays(log: Path, tmp_path: Path):
    def call(*arguments: str) -> str:
        environment = {**peers.ONE_THREAD, "PYTHONPATH": str(Path(__file__).parent)}
        command = [str(ROBOTS), str(FOLDER / "d3rlpy_runner.py"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    call(*train_arguments(log, tmp_path / "run", seconds="1"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["updates"] > 0
    plan = ("--episodes", "2", "--seed", "5", "--import", "dataset_fixtures", "--json")
    found = json.loads(call("evaluate", str(tmp_path / "run"), *plan))
    assert [each["seed"] for each in found["outcomes"]] == [5, 6]
