"""Following a run: evaluations that change nothing, the best policy kept, times, boards."""

from __future__ import annotations

import builtins
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from dataset_fixtures import POINT_ID
from learner_fixtures import assert_same_bits, make_config, write_log

from qtransformer import following
from qtransformer.checkpoint import checkpoint_folders, load_checkpoint
from qtransformer.config import FollowConfig, RunError
from qtransformer.following import Clock, PeriodicEvaluation
from qtransformer.loading import load_run
from qtransformer.signals import Stopped, StopWish
from qtransformer.training import train

FOLLOWED = FollowConfig(evaluate_every=4, evaluate_episodes=3, imports=("dataset_fixtures",))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("following") / "log")


def make_run(log, out, **changes):
    settings = {"steps": 12, "log_every": 6, "checkpoint_every": 6, "following": FOLLOWED, **changes}
    return make_config(dataset=log, out=out, **settings)


def lines(run, name):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in found if name in line}


def scores(monkeypatch, *rates):
    """Lets the evaluations come out like this, one after the other."""
    results = iter(rates)
    monkeypatch.setattr(
        PeriodicEvaluation, "play", lambda *arguments: {"success_rate": next(results), "mean_return": 0.5}
    )


def test_evaluations_stand_in_the_metrics_and_change_no_bit(log, tmp_path):
    plain = train(make_run(log, tmp_path / "plain", following=FollowConfig()))
    run = train(make_run(log, tmp_path / "run"))
    assert list(lines(run, "success_rate")) == list(lines(run, "mean_return")) == [4, 8, 12]
    assert all(0 <= rate <= 1 for rate in lines(run, "success_rate").values())
    first, second = load_checkpoint(plain), load_checkpoint(run)
    assert_same_bits(first.weights, second.weights)
    assert_same_bits(first.training_tensors(), second.training_tensors())
    assert not (plain / "best").exists()


def test_the_seeds_are_those_of_development(log, tmp_path, monkeypatch):
    plans, play = [], following.evaluate
    monkeypatch.setattr(following, "evaluate", lambda *a, **k: plans.append(a[2]) or play(*a, **k))
    train(make_run(log, tmp_path / "run"))
    assert [(plan.seed, plan.episodes) for plan in plans] == [(1_000_000, 3)] * 3


def test_the_best_policy_is_kept_and_opens_like_a_run(log, tmp_path, monkeypatch):
    scores(monkeypatch, 0.2, 0.6, 0.6)
    run = train(make_run(log, tmp_path / "run"))
    best = load_checkpoint(run / "best")
    assert (best.info["step"], best.info["evaluation"]) == (8, {"success_rate": 0.6, "mean_return": 0.5})
    opened = load_run(run / "best").policy.state_dict()
    assert_same_bits(dict(sorted(best.weights.items())), dict(sorted(opened.items())))
    assert load_checkpoint(run).info["evaluation"] is None


def test_a_resumed_run_knows_what_was_best_and_does_not_play_twice(log, tmp_path, monkeypatch):
    scores(monkeypatch, 0.2, 0.6, 0.9)
    config = make_run(log, tmp_path / "run")
    train(replace(config, steps=8))
    scores(monkeypatch, 0.5)
    train(replace(config, resume=True))
    assert lines(config.out, "success_rate") == {4: 0.2, 8: 0.6, 12: 0.5}
    assert load_checkpoint(config.out / "best").info["step"] == 8


def test_a_wish_to_stop_ends_an_evaluation_and_resuming_repeats_it(log, tmp_path, monkeypatch):
    play = PeriodicEvaluation.play

    def wished(self, policy, wish):
        wish.signal_number = 15
        return play(self, policy, wish)

    config = make_run(log, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(PeriodicEvaluation, "play", wished)
        with pytest.raises(Stopped, match=r"SIGTERM: update 4 of 12 is saved in \S+; go on with the same command"):
            train(config)
    assert [each.name for each in checkpoint_folders(config.out)] == ["step_000000004"]
    assert lines(config.out, "success_rate") == {}
    train(replace(config, resume=True))
    assert list(lines(config.out, "success_rate")) == [4, 8, 12]


def test_an_environment_that_cannot_be_made_is_said_before_training(log, tmp_path):
    unknown = replace(FOLLOWED, imports=("no_such_module",))
    with pytest.raises(RunError, match="no_such_module"):
        train(make_run(log, tmp_path / "run", following=unknown))
    with pytest.raises(RunError, match="--evaluate-every needs a log that names its environment; leave it out"):
        PeriodicEvaluation(FOLLOWED, tmp_path, {"spec": {**_spec(log, tmp_path), "environment_id": None}})
    assert not list((tmp_path / "run").glob("*"))


def _spec(log, tmp_path):
    spec = load_checkpoint(train(make_run(log, tmp_path / "other", steps=1))).info["spec"]
    assert spec["environment_id"] == POINT_ID
    return spec


@pytest.mark.parametrize(("name", "value"), [("evaluate_every", -1), ("evaluate_episodes", 0)])
def test_settings_out_of_range(name, value):
    with pytest.raises(RunError, match=rf"{name} \({value}\) must be at least"):
        FollowConfig(**{name: value})


def test_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock(10, 130)
    now[0] = 110.0
    assert clock.figures(30, 4.0) == {"updates_per_second": 2.0, "data_share": 0.4}
    assert clock.minutes_left(30) == pytest.approx(50 / 60)


def test_time_to_finish_and_shares_are_shown(log, tmp_path, capsys):
    run = train(make_run(log, tmp_path / "run", following=FollowConfig()))
    assert "minutes_left " in capsys.readouterr().err
    assert set(lines(run, "data_share")) == {6, 12}
    assert all(0 <= share <= 1 for share in lines(run, "data_share").values())
    assert lines(run, "minutes_left") == {}


class Board:
    """What stands for TensorBoard's writer."""

    written: list = []  # noqa: RUF012

    def __init__(self, folder, purge_step):
        self.written.append((folder, purge_step))

    def add_scalar(self, name, value, step):
        self.written.append((name, value, step))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.written.append("closed")


def test_tensorboard_gets_what_the_metrics_get(log, tmp_path, monkeypatch):
    module = ModuleType("torch.utils.tensorboard.writer")
    module.SummaryWriter = Board  # pyright: ignore
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", ModuleType("torch.utils.tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", module)
    run = train(make_run(log, tmp_path / "run", following=replace(FOLLOWED, tensorboard=True)))
    assert Board.written[0] == (str(run / "tensorboard"), 1)
    assert Board.written[-1] == "closed"
    expected = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    flat = [(name, value, line["step"]) for line in expected for name, value in line.items() if name != "step"]
    assert Board.written[1:-1] == flat


def test_a_missing_tensorboard_names_the_extra(log, tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RunError, match=r"--tensorboard needs a package; pip install 'qtransformer\[tensorboard\]'"):
        train(make_run(log, tmp_path / "run", following=FollowConfig(tensorboard=True)))


def test_tensorboard_reads_what_is_written(log, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore

    run = train(make_run(log, tmp_path / "run", following=FollowConfig(tensorboard=True)))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [each.step for each in events.Scalars("loss")] == [6, 12]


class Session:
    """What stands for a run of Weights & Biases."""

    def __init__(self, **settings):
        self.settings, self.written, self.is_finished = settings, [], False

    def log(self, record, step):
        self.written.append((step, record))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_finished = True


@pytest.fixture
def wandb(monkeypatch):
    """The package, as far as it is used; `sessions` are those that were begun."""
    module: Any = ModuleType("wandb")
    module.Error, module.sessions = type("Error", (Exception,), {}), []
    module.Settings = lambda **settings: settings
    module.init = lambda **settings: module.sessions.append(Session(**settings)) or module.sessions[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


def test_wandb_gets_what_the_metrics_get(log, tmp_path, wandb):
    run = train(make_run(log, tmp_path / "run", following=replace(FOLLOWED, wandb=True)))
    (session,) = wandb.sessions
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert session.written == [(record.pop("step"), record) for record in records]
    assert session.is_finished
    settings = session.settings
    assert (settings["mode"], settings["dir"], settings["group"]) == ("offline", str(run), "run")
    assert settings["config"]["following"]["wandb"]
    assert settings["settings"] == {"silent": True, "console": "off"}


def test_wandb_sends_only_where_it_is_told_to(log, tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    train(make_run(log, tmp_path / "run", steps=1, following=FollowConfig(wandb=True)))
    assert wandb.sessions[0].settings["mode"] == "online"


def test_wandb_that_does_not_begin_is_one_line(log, tmp_path, wandb):
    def refuse(**settings):
        raise wandb.Error("No API key configured.")

    wandb.init = refuse
    with pytest.raises(
        RunError, match=r"--wandb: No API key configured; log in with `wandb login`, or leave WANDB_MODE"
    ):
        train(make_run(log, tmp_path / "run", steps=1, following=FollowConfig(wandb=True)))


def test_a_missing_wandb_names_the_extra(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunError, match=r"--wandb needs a package; pip install 'qtransformer\[wandb\]'"):
        train(make_run(log, tmp_path / "run", following=FollowConfig(wandb=True)))


def test_both_boards_at_once(log, tmp_path, wandb, monkeypatch):
    written = []
    monkeypatch.setattr(following, "_tensorboard", lambda *_: nullcontext(written.append))
    run = train(make_run(log, tmp_path / "run", steps=6, following=FollowConfig(wandb=True, tensorboard=True)))
    assert [line["step"] for line in written] == [step for step, _ in wandb.sessions[0].written] == [6]
    assert run.exists()


def test_evaluations_say_over_how_many_episodes(log, tmp_path):
    assert lines(train(make_run(log, tmp_path / "run", steps=4)), "evaluated_episodes") == {4: 3}


def test_the_rate_of_each_task_is_told_where_there_are_several(log, tmp_path):
    run = train(make_run(log, tmp_path / "run", steps=1, following=FollowConfig()))
    loaded = load_run(run)
    info = {**loaded.info, "spec": {**loaded.info["spec"], "environment_id": "test/Passing-v0"}}
    config = FollowConfig(evaluate_episodes=4, imports=("evaluation_fixtures",))
    found = PeriodicEvaluation(config, run, info).play(loaded.policy, StopWish())
    assert list(found)[3:] == ["success_rate/even", "success_rate/odd"]
    assert (found["success_rate/even"] + found["success_rate/odd"]) / 2 == found["success_rate"]


def test_nobody_wishes_by_default():
    assert not StopWish().is_there
