"""The wrapper: what was played is what is read, one episode a reset, on disk as soon as it ends."""

import gymnasium
import numpy as np
import pytest
from dataset_fixtures import POINT_ID
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple

from qtransformer_datasets.environment import describe_environment
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.record_episodes import RecordEpisodes
from qtransformer_datasets.schema import DatasetError

CONTACT = Box(0, 1, (1,), np.bool_)  # pyright: ignore[reportCallIssue, reportArgumentType]


class SensorEnv(gymnasium.Env):
    """Gives every kind of observation there is; the counter k is in each. It ends after `length` steps."""

    observation_space = Dict(
        {
            "camera": Box(0, 255, (40, 32, 3), np.uint8),
            "task": Text(20),
            "robot": Tuple((Box(-9, 9, (2,), np.float64), Dict({"contact": CONTACT}))),
            "clock": Box(0, 99, (), np.int32),
        }
    )
    action_space = Box(-1, 1, (2,), np.float32)
    length = 3
    successes: tuple[int, ...] | None = ()
    goal: object = "stand still"

    def observe(self):
        return {
            "camera": np.full((40, 32, 3), self.k, np.uint8),
            "task": f"step {self.k}",
            "robot": (np.full(2, self.k, np.float64), {"contact": np.array([self.k % 2 == 1])}),
            "clock": np.int32(self.k),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k = 0
        return self.observe(), {"goal": self.goal}

    def step(self, action):
        self.k += 1
        info = {"success": self.k in self.successes} if self.successes is not None else {}
        return self.observe(), float(self.k), self.k == self.length, False, info


def play(environment, num_steps, seed=None):
    environment.reset(seed=seed)
    for _ in range(num_steps):
        environment.step(np.array([0.5, -0.5], np.float32))


@pytest.mark.parametrize("images", ["raw", "jpeg"])
def test_what_was_played_is_read(tmp_path, images):
    environment = RecordEpisodes(SensorEnv(), tmp_path / "log", images=images, attributes={"author": ["me"]})
    play(environment, 3, seed=5)
    environment.close()
    dataset = open_dataset(tmp_path / "log")
    (episode,) = dataset.episodes
    observations = episode.observations
    assert set(observations) == {"camera", "task", "robot/_index_0", "robot/_index_1/contact", "clock"}
    assert observations["camera"][:][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert observations["task"][:].tolist() == ["step 0", "step 1", "step 2", "step 3"]
    assert observations["robot/_index_0"][:].tolist() == [[k, k] for k in range(4)]
    assert observations["robot/_index_1/contact"][:].tolist() == [[False], [True], [False], [True]]
    assert observations["clock"][:].tolist() == [[0], [1], [2], [3]]
    assert (episode.actions.tolist(), episode.rewards.tolist()) == ([[0.5, -0.5]] * 3, [1, 2, 3])
    assert (episode.terminations.tolist(), episode.truncations.any()) == ([False, False, True], False)
    assert (episode.seed, dataset.metadata["author"]) == (5, ["me"])
    assert episode.goal == "stand still"


def test_a_goal_that_is_a_place_is_not_in_words(tmp_path):
    sensors = SensorEnv()
    sensors.goal = np.zeros(3)
    environment = RecordEpisodes(sensors, tmp_path / "log")
    play(environment, 3)
    environment.close()
    assert open_dataset(tmp_path / "log").episodes[0].goal is None


def test_the_player_sees_what_it_would_see_without_the_wrapper(tmp_path):
    plain, recorded = gymnasium.make(POINT_ID), RecordEpisodes(gymnasium.make(POINT_ID), tmp_path / "log")
    one, other = plain.reset(seed=1, options={}), recorded.reset(seed=1, options={})
    np.testing.assert_equal(one, other)
    np.testing.assert_equal(plain.step(np.zeros(2)), recorded.step(np.zeros(2)))
    spec = recorded.spec
    assert spec is not None
    assert spec.additional_wrappers[-1].name == "RecordEpisodes"
    recorded.close()
    assert open_dataset(tmp_path / "log").spec.environment_id == POINT_ID


def test_an_episode_is_on_disk_when_its_last_step_returns(tmp_path):
    environment = RecordEpisodes(SensorEnv(), tmp_path / "log")
    play(environment, 3)
    assert open_dataset(tmp_path / "log").num_episodes == 1
    with pytest.raises(DatasetError, match="episode 1 is not started; call start_episode before step"):
        environment.step(np.zeros(2, np.float32))


@pytest.mark.parametrize(("successes", "expected"), [(None, None), ((), False), ((1,), True), ((3,), True)])
def test_success_is_what_any_step_reported(tmp_path, successes, expected):
    inner = SensorEnv()
    inner.successes = successes
    environment = RecordEpisodes(inner, tmp_path / "log")
    play(environment, 3)
    inner.successes = None
    play(environment, 3)  # nothing is carried over
    environment.close()
    assert [episode.success for episode in open_dataset(tmp_path / "log").episodes] == [expected, None]


def test_episodes_cut_by_reset_and_close_are_kept_as_truncated(tmp_path):
    environment = RecordEpisodes(SensorEnv(), tmp_path / "log")
    play(environment, 2)
    play(environment, 0)
    play(environment, 1)
    environment.close()
    episodes = open_dataset(tmp_path / "log").episodes
    assert [episode.num_steps for episode in episodes] == [2, 1]
    assert all(episode.truncations[-1] and not episode.terminations.any() for episode in episodes)


def test_a_discarded_episode_leaves_no_trace(tmp_path):
    environment = RecordEpisodes(SensorEnv(), tmp_path / "log")
    play(environment, 2)
    environment.discard_episode()
    play(environment, 1)
    environment.close()
    assert [episode.num_steps for episode in open_dataset(tmp_path / "log").episodes] == [1]


def test_appending_and_closing_twice(tmp_path):
    for _ in range(2):
        environment = RecordEpisodes(SensorEnv(), tmp_path / "log", append=True)
        play(environment, 3)
        environment.close()
        environment.close()
    assert open_dataset(tmp_path / "log").num_episodes == 2
    with pytest.raises(DatasetError, match="must be new or empty"):
        RecordEpisodes(SensorEnv(), tmp_path / "log")


def test_an_observation_outside_its_space_is_told_at_its_step(tmp_path):
    inner = SensorEnv()
    environment = RecordEpisodes(inner, tmp_path / "log")
    play(environment, 1)
    inner.observe = lambda: SensorEnv.observe(inner) | {"clock": 1.5}
    with pytest.raises(DatasetError, match=r"log: episode 0 step 1: clock must be int32 of shape \(1,\), got float64"):
        environment.step(np.zeros(2, np.float32))


def test_images_text_and_nesting_are_described():
    spec = describe_environment(SensorEnv())
    assert [(each.name, each.shape, each.dtype, each.kind) for each in spec.observations] == [
        ("camera", (40, 32, 3), "uint8", "image"),
        ("clock", (1,), "int32", "state"),
        ("robot/_index_0", (2,), "float64", "state"),
        ("robot/_index_1/contact", (1,), "bool", "state"),
        ("task", (), "str", "text"),
    ]


def test_names_do_not_outlive_a_wrapper_that_changes_what_they_name():
    plain = describe_environment(gymnasium.make(POINT_ID))
    assert plain.observations[0].elements == ("x", "x_start")
    space = Dict({"state": Box(-1, 1, (4,), np.float32)})
    wrapped = gymnasium.wrappers.TransformObservation(gymnasium.make(POINT_ID), lambda rows: rows, space)
    assert describe_environment(wrapped).observations[0].elements == tuple(f"state[{k}]" for k in range(4))
    rescaled = gymnasium.wrappers.RescaleAction(gymnasium.make(POINT_ID), np.float32(-2), np.float32(2))
    spec = describe_environment(rescaled)
    assert (spec.actions.low, spec.actions.elements) == ((-2.0, -2.0), ("action[0]", "action[1]"))
    assert spec.observations[0].elements == ("x", "x_start")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Dict({"a": Dict({"b": Discrete(3)})}), r"observation a/b must be a Box or a Text, got Discrete\(3\)"),
        (Box(0, 255, (3, 40, 40), np.uint8), "observation state is an image and must be uint8"),
        (Box(0, 255, (40, 40), np.uint8), "observation state would read back as an image"),
    ],
)
def test_spaces_that_cannot_be_recorded_are_refused(tmp_path, space, message):
    inner = SensorEnv()
    inner.observation_space = space
    with pytest.raises(DatasetError, match=message):
        RecordEpisodes(inner, tmp_path / "log")
    assert not (tmp_path / "log").exists()
