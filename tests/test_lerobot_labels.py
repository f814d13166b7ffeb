"""What a LeRobot log's optional columns are taken for: worked by hand, with the rules in words."""

import numpy as np
import pytest
from lerobot_fixtures import four, write

from qtransformer.batch import ReadOptions
from qtransformer_datasets.formats import open_dataset
from qtransformer_datasets.formats.lerobot_labels import Marks, label
from qtransformer_datasets.schema import DatasetError


def marks(done=None, success=None, reward=None):
    columns = ((done, bool), (success, bool), (reward, np.float64))
    done, success, reward = (None if each is None else np.array(each, dtype) for each, dtype in columns)
    length = next(len(each) for each in (done, success, reward) if each is not None)
    return Marks("log:episode_0", length, done, success, reward)


@pytest.mark.parametrize(
    ("columns", "dones", "rewards", "is_terminated", "success"),
    [
        # next.success decides, whatever next.done says
        ([{"done": [0, 0, 1], "success": [0, 0, 0]}], "infer", [0, 0, 0], False, False),
        ([{"done": [0, 0, 1], "success": [0, 1, 1]}], "infer", [0, 0, 1], True, True),
        # reached on the way and lost again: a success, paid where it was, but the end is a truncation
        ([{"success": [0, 1, 0]}], "infer", [0, 1, 0], False, True),
        # the log's own rewards are kept; 0 and 1 tell the success
        ([{"reward": [0, 0, 1]}], "infer", [0, 0, 1], True, True),
        (
            [{"reward": [0, 0, 1], "done": [0, 0, 1]}, {"reward": [0, 0, 0], "done": [0, 0, 1]}],
            "infer",
            [0, 0, 1],
            True,
            True,
        ),
        # ... before next.done, which may mark a failure
        ([{"reward": [0, 0], "done": [0, 1]}, {"reward": [0, 1], "done": [0, 0]}], "infer", [0, 0], False, False),
        ([{"reward": [-1, 0.5, 2]}], "infer", [-1, 0.5, 2], False, None),
        # next.done alone: some ends are not done, so it means success
        ([{"done": [0, 0, 1]}, {"done": [0, 0, 0]}], "infer", [0, 0, 1], True, True),
        ([{"done": [0, 0, 0]}, {"done": [0, 0, 1]}], "infer", [0, 0, 0], False, False),
        # always at the last step, sometimes before: success, and the mere end
        ([{"done": [0, 1, 1]}, {"done": [0, 0, 1]}], "infer", [0, 0, 1], True, True),
        ([{"done": [0, 0, 1]}, {"done": [0, 1, 1]}], "infer", [0, 0, 0], False, None),
        ([{"done": [1, 0, 1]}], "infer", [1, 0, 0], False, True),
        # only at the last step of each: it says nothing
        ([{"done": [0, 0, 1]}], "infer", [0, 0, 0], False, None),
        ([{"done": [0, 0, 0]}], "infer", [0, 0, 0], False, None),
        # told by the user
        ([{"done": [0, 0, 1]}], "success", [0, 0, 1], True, True),
        ([{"done": [0, 0, 1], "success": [0, 0, 0]}], "success", [0, 0, 1], True, False),
        ([{"done": [0, 1, 1]}], "last-step", [0, 0, 0], False, None),
        ([{"done": [0, 1, 1], "success": [0, 0, 1]}], "last-step", [0, 0, 1], True, True),
        ([{"done": [0, 0, 1], "reward": [0, 0, 3]}], "both", [0, 0, 3], True, True),
        ([{"done": [0, 0, 1], "reward": [0, 0, 0]}], "both", [0, 0, 0], False, False),
        ([{"done": [1]}], "both", [0], False, None),
    ],
)
def test_labels(columns, dones, rewards, is_terminated, success):
    labels, rules, _ = label([marks(**each) for each in columns], dones)
    first, T = labels[0], len(rewards)
    assert first.rewards.tolist() == rewards
    assert first.terminations.tolist() == [False] * (T - 1) + [is_terminated]
    assert first.truncations.tolist() == [False] * (T - 1) + [not is_terminated]
    assert first.success is success
    assert set(rules) == {"terminated", "truncated", "success", "rewards", "final observation"}


def test_rules_say_what_next_done_was_taken_for():
    _, rules, notes = label([marks(done=[0, 1]), marks(done=[0, 0])], "infer")
    assert rules["success"] == "any step of success: next.done (inferred from the data: success)"
    assert rules["rewards"].startswith("1 at the last step of success, 0 elsewhere; the log has no next.reward")
    assert notes == ()
    assert "(as told by --dones: both)" in label([marks(done=[0, 1])], "both")[1]["success"]


def test_an_unlabelled_log_says_so():
    _, rules, notes = label([marks(done=[0, 1])], "infer")
    assert rules["rewards"].startswith("zero, since no success is known")
    assert "--dones success takes them for successes" in notes[0]
    assert notes[1].startswith("the log is unlabelled")
    assert len(label([marks(done=[0, 1])], "last-step")[2]) == 1
    assert label([marks(done=[0, 1], reward=[0.5, 0.2])], "success")[2] == ()


def test_a_meaning_for_dones_needs_next_done(tmp_path):
    write(tmp_path, "v2.1", four(), labels=("success",))
    with pytest.raises(DatasetError, match=r"episode_0 has no next.done, so --dones both has nothing to say"):
        open_dataset(tmp_path, ReadOptions(dones="both"))
