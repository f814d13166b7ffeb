"""What is not finite is named, saved and kept from the weights; what stands out is counted."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_fixtures import make_dataset, make_episode
from learner_fixtures import assert_same_bits, copied, make_config, write_log

from qtransformer import training
from qtransformer.bad_batches import bad_numbers, load_bad_batch, probe
from qtransformer.checkpoint import load_checkpoint
from qtransformer.cli import main
from qtransformer.config import RunError
from qtransformer.guard import BadBatchError, Guard, LogPlaces
from qtransformer.training import build, train
from qtransformer_datasets.image_rows import MemoryRows
from qtransformer_datasets.schema import DatasetError

BAD_EPISODE, BAD_STEP = 617, 2


def make_log(tmp_path, number=6):
    return write_log(tmp_path / "log", [make_episode(5, seed=seed, success=seed % 2 == 0) for seed in range(number)])


@pytest.fixture
def config(tmp_path):
    return make_config(dataset=make_log(tmp_path), out=tmp_path / "run", steps=30, log_every=5, checkpoint_every=10)


def open_guard(config):
    """Returns a guard in front of a fresh learner, the sampler and the dataset."""
    dataset, _ = training.load_dataset(config)
    learner, sampler, info = build(config, dataset)
    config.out.mkdir(exist_ok=True)
    return Guard(learner, LogPlaces(dataset, sampler), config.out, info), learner, sampler, dataset


def all_of(learner):
    weights, others = learner.state()
    return copied({**weights, **others})


def use_in_memory(monkeypatch, tmp_path, episodes):
    """Lets training find these episodes as its log: writing a thousand durably takes a minute."""
    named = [replace(each, source=f"main_data.hdf5:episode_{number}") for number, each in enumerate(episodes)]
    (tmp_path / "log").mkdir()
    dataset = make_dataset(tmp_path / "log", named)
    monkeypatch.setattr(training, "open_training_log", lambda config: dataset)
    return make_config(dataset=tmp_path / "log", out=tmp_path / "run", steps=20, batch_size=256)


def plant(monkeypatch, key, episode, step, value, element=1):
    """Spoils one number of the log after all checks, in the memory that batches are cut from."""
    original = training.build

    def build_and_spoil(config, dataset):
        learner, sampler, info = original(config, dataset)
        lengths = [each.num_steps for each in dataset.episodes[:episode]]
        if key == "state":
            rows = sampler._observations["state"]
            assert isinstance(rows, MemoryRows)
            rows.array[sum(lengths) + episode + step, element] = value
        else:
            row = sampler._steps[key][sum(lengths) + step]
            if key == "actions":
                row[element] = value
            else:
                sampler._steps[key][sum(lengths) + step] = value
        return learner, sampler, info

    monkeypatch.setattr(training, "build", build_and_spoil)


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("state", np.nan, r"observations/state\[1\] \(state\[1\]\) step 2 is nan"),
        ("state", -np.inf, r"observations/state\[1\] \(state\[1\]\) step 2 is -inf"),
        ("actions", np.nan, r"actions\[1\] \(right\) step 2 is nan"),
        ("rewards", np.inf, r"rewards step 2 is inf"),
    ],
)
def test_one_bad_number_of_a_thousand_episodes_is_named_within_an_epoch(tmp_path, monkeypatch, key, value, where):
    config = use_in_memory(monkeypatch, tmp_path, [make_episode(5, seed=seed) for seed in range(1000)])
    plant(monkeypatch, key, BAD_EPISODE, BAD_STEP, value)  # 5,000 steps: an epoch is 20 updates
    states, update = [], training.Guard.update

    def watched(self, batch):
        states.append(all_of(self._learner))
        try:
            return update(self, batch)
        except BadBatchError:
            assert_same_bits(states[-1], all_of(self._learner))
            assert all(value.isfinite().all() for value in states[-1].values())
            raise

    monkeypatch.setattr(training.Guard, "update", watched)
    with pytest.raises(BadBatchError, match=rf"batch (\d+), for update \d+: \S+log: \S+:episode_617 {where}") as error:
        train(config)
    number = int(re.findall(r"batch (\d+)", str(error.value))[0])
    assert number < 20
    assert "it changed no weight; look at it with: qtransformer replay-batch" in str(error.value)
    assert str(error.value).endswith("repair the log, or leave such batches out with --on-bad-batch skip")
    assert (config.out / "bad_batches" / f"batch_{number:09d}.npz").exists()


@pytest.mark.parametrize("key", ["state", "actions", "rewards"])
def test_the_check_of_the_log_names_it_before_and_cannot_be_overruled(tmp_path, monkeypatch, key):
    episodes = [make_episode(5, seed=seed) for seed in range(1000)]
    spoilt = episodes[BAD_EPISODE]
    {"state": spoilt.observations["state"], "actions": spoilt.actions}.get(key, spoilt.rewards)[BAD_STEP] = np.nan
    config = use_in_memory(monkeypatch, tmp_path, episodes)
    place = rf"not-finite: \S+:episode_617 \S*{key} step 2 is NaN or infinite"
    with pytest.raises(DatasetError, match=rf"{place}.*; or train in spite of it with --allow CODE"):
        train(config)
    config = replace(config, data=replace(config.data, allow=("not-finite",)))
    with pytest.raises(DatasetError, match=rf"{place}.*; .* --allow CODE, which cannot help against not-finite: such"):
        train(config)


def test_the_sum_of_bad_rewards_names_the_reward(config):
    guard, _, sampler, dataset = open_guard(config)
    batch = sampler.sample()
    episodes, firsts = sampler.places(0)
    dataset.episodes[episodes[0]].rewards[4] = np.nan
    returns = batch.monte_carlo_returns.copy()
    returns[0, 0] = np.nan
    with pytest.raises(BadBatchError, match=rf"episode_{episodes[0]} rewards step 4 is nan"):
        guard.update(replace(batch, monte_carlo_returns=returns))
    assert firsts[0] <= 4


def test_a_network_that_is_not_finite_is_told_from_data_that_is_not(config):
    guard, learner, sampler, _ = open_guard(config)
    guard.update(sampler.sample())
    with torch.no_grad():
        learner.policy.model.density_head.bias[0] = torch.nan
    before = all_of(learner)
    with pytest.raises(
        BadBatchError, match=r"loss, cross_entropy, .*gradient_norm of the update is not finite, though"
    ) as e:
        guard.update(sampler.sample())
    assert re.search(r"the largest: \S+ \S+:episode_\d \S+ .*is -?\d", str(e.value))
    after = all_of(learner)
    assert [name for name in before if not torch.equal(before[name].nan_to_num(), after[name].nan_to_num())] == []


def test_an_infinite_gradient_of_a_finite_loss_changes_nothing(config, monkeypatch):
    guard, learner, sampler, _ = open_guard(config)
    loss = type(learner).loss

    def steep(self, batch, goals):
        value, figures = loss(self, batch, goals)
        return value + torch.sqrt(self.policy.model.density_head.bias.sum() * 0.0), figures  # d sqrt(0) is infinite

    monkeypatch.setattr(type(learner), "loss", steep)
    learner._loss = learner.loss
    before = all_of(learner)
    with pytest.raises(BadBatchError, match=r": gradient_norm of the update is not finite, though every number"):
        guard.update(sampler.sample())
    assert_same_bits(before, all_of(learner))


def test_bad_batches_can_be_left_out_and_are_counted(tmp_path, config, monkeypatch, capsys):
    plant(monkeypatch, "actions", 3, 2, np.nan)
    run = train(replace(config, on_bad_batch="skip"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    skipped = lines[-1]["skipped_batches"]
    assert [each["step"] for each in lines] == [5, 10, 15, 20, 25, 30]
    assert skipped > 0
    assert load_checkpoint(run).info["sampler"]["step"] == 30 + skipped
    assert all(value.isfinite().all() for value in load_checkpoint(run).weights.values())
    said = capsys.readouterr().err
    assert said.count("left out: batch ") == skipped
    assert len(list((run / "bad_batches").iterdir())) == min(skipped, 5)
    assert said.count("replay-batch") == min(skipped, 5)


def test_skipping_ends_where_nothing_is_left(config, monkeypatch):
    for episode in range(6):
        for step in range(5):
            plant(monkeypatch, "rewards", episode, step, np.nan)
    with pytest.raises(BadBatchError, match=r"20 in a row were bad, so leaving them out does not help"):
        train(replace(config, on_bad_batch="skip"))


def test_a_resumed_run_counts_on(config, monkeypatch):
    plant(monkeypatch, "actions", 3, 2, np.nan)
    other = train(replace(config, on_bad_batch="skip", out=config.out.with_name("other")))
    config = replace(config, on_bad_batch="skip")
    train(replace(config, steps=30, checkpoint_every=7))
    for path in sorted((config.out / "checkpoints").iterdir())[1:]:
        path.rename(path.with_name(path.name + ".damaged"))
    train(replace(config, checkpoint_every=7, resume=True))
    lines = [(run / "metrics.jsonl").read_text().splitlines()[-1] for run in (other, config.out)]
    counts = [{key: json.loads(line)[key] for key in ("skipped_batches", "gradient_spikes", "loss")} for line in lines]
    assert counts[0] == counts[1]


def test_gradients_that_stand_out_are_counted(config):
    guard, *_ = open_guard(config)
    for norm in [1.0] * 19 + [100.0]:  # nothing stands out among fewer than twenty
        guard._remember(norm)
    assert guard.counts(0)["gradient_spikes"] == 0
    for norm in (10.0, 10.5, 9.0, 11.0):  # the median is 1
        guard._remember(norm)
    assert guard.counts(0)["gradient_spikes"] == 2
    for _ in range(200):
        guard._remember(20.0)  # the first ones stand out, until they are the median
    found = guard.counts(0)["gradient_spikes"]
    assert found < 60
    assert guard._sorted == sorted(guard._norms) == [20.0] * 200
    state = guard.state()
    guard._remember(201.0)
    other, *_ = open_guard(config)
    other.load_state(state)
    other._remember(201.0)
    assert other.counts(0) == guard.counts(0)
    assert guard.counts(0)["gradient_spikes"] == found + 1


def test_the_places_are_those_of_the_batch(config):
    _, _, sampler, dataset = open_guard(config)
    for number in range(3):
        batch = sampler.sample()
        for row, (episode, first) in enumerate(zip(*sampler.places(number), strict=True)):
            np.testing.assert_array_equal(batch.actions[row, 0], dataset.episodes[episode].actions[first])


def test_numbers_that_run_over_in_the_sum_are_not_bad(config):
    _, _, sampler, _ = open_guard(config)
    batch = sampler.sample()
    assert list(bad_numbers(batch)) == []
    assert list(bad_numbers(replace(batch, rewards=np.full_like(batch.rewards, 3e38)))) == []
    rewards = batch.rewards.copy()
    rewards[1, 2] = np.nan
    (bad,) = bad_numbers(replace(batch, rewards=rewards))
    assert bad[:4] == ("rewards", 1, 2, ())


# --- replay-batch -------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_file(config, monkeypatch):
    plant(monkeypatch, "state", 3, 2, np.nan)
    with pytest.raises(BadBatchError):
        train(config)
    (path,) = (config.out / "bad_batches").iterdir()
    return path


def test_a_bad_batch_is_reproduced(bad_file, capsys):
    assert main(["replay-batch", str(bad_file)]) == 0
    said = capsys.readouterr().out
    assert "reproduced\n" in said
    assert "not reproduced" not in said
    assert re.search(
        r"not finite in the batch: observations/state\[1\] is nan, \d steps after step \d of \S+:episode_3", said
    )
    assert "not finite: the gradient of model." in said
    assert re.search(r"loss .* nan .* nan .* not finite", said)


def test_a_refused_update_of_finite_numbers_is_reproduced(config, capsys):
    guard, learner, sampler, _ = open_guard(config)
    for _ in range(3):
        guard.update(sampler.sample())
    expected = {name: value.item() for name, value in probe(learner, sampler.batch(3)).items()}
    with pytest.raises(BadBatchError):
        guard._refuse(sampler.sample(), probe(learner, sampler.batch(3)))
    bad = load_bad_batch(config.out / "bad_batches" / "batch_000000003.npz")
    assert bad.document["figures"] == expected
    assert bad.document["step"] == 4
    assert main(["replay-batch", str(config.out / "bad_batches" / "batch_000000003.npz")]) == 0
    assert "reproduced" in capsys.readouterr().out.splitlines()


def test_other_weights_are_not_reproduced(bad_file, config, capsys):
    guard, learner, sampler, _ = open_guard(config)
    figures = {**probe(learner, sampler.batch(0)), "loss": torch.tensor(3.0)}
    with pytest.raises(BadBatchError):
        guard._refuse(sampler.sample(), figures)
    assert main(["replay-batch", str(config.out / "bad_batches" / "batch_000000000.npz")]) == 0
    assert "not reproduced" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("damage", ["missing", "empty", "noise", "cut", "pickle", "other"])
def test_a_file_that_is_no_bad_batch(bad_file, tmp_path, damage):
    path, content = tmp_path / "file.npz", bad_file.read_bytes()
    if damage == "pickle":
        np.savez(path, document=np.array([Trap()], object), allow_pickle=True)
    elif damage == "other":
        np.savez(path, document=np.frombuffer(b"[1]", np.uint8))
    elif damage != "missing":
        path.write_bytes({"empty": b"", "noise": b"\xff" * 99, "cut": content[:-200]}[damage])
    with pytest.raises(RunError, match=r"file\.npz: must be a file of RUN/bad_batches, got something else \("):
        load_bad_batch(path)


class Trap:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_a_bad_batch_of_another_version(bad_file, tmp_path, capsys):
    with np.load(bad_file) as file:
        arrays = {name: file[name] for name in file.files}
    document = json.loads(arrays["document"].tobytes())
    del document["info"]["spec"]
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(tmp_path / "old.npz", **arrays)
    assert main(["replay-batch", str(tmp_path / "old.npz")]) == 2
    assert re.search(r"old\.npz: must fit this version of qtransformer, got another one's", capsys.readouterr().err)
