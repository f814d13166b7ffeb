"""The numbers of a page: for every algorithm, for episodes seen and unseen, and from the command line."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_fixtures import make_episode
from learner_fixtures import make_config, make_policy, write_log

from qtransformer.calibration import calibrate
from qtransformer.cli import main
from qtransformer.config import LearningConfig, RunError
from qtransformer.explain import NO_VALUES, bin_actions, explain
from qtransformer.explain_log import RunLog, open_log
from qtransformer.loading import load_run
from qtransformer.training import train
from qtransformer_datasets.returns import monte_carlo_returns

EPISODES = [make_episode(length, seed=seed, success=seed % 2 == 0) for seed, length in enumerate((5, 40, 3, 6))]
OTHERS = [make_episode(length, seed=seed, success=seed % 2 == 0) for seed, length in enumerate((4, 7, 9, 5, 6, 8), 10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """logs `log` and `mixed`, and a run of each kind on `log`."""
    folder = tmp_path_factory.mktemp("explain")
    write_log(folder / "log", EPISODES)
    write_log(folder / "mixed", [*OTHERS, EPISODES[0]])
    config = make_config(dataset=folder / "log", out=folder / "ours", steps=2)
    for name, each in {
        "ours": config,
        "cloning": replace(config, algorithm="behaviour_cloning"),
        "conditioned": replace(config, algorithm="decision_transformer"),
        "implicit": replace(config, algorithm="implicit_q_learning"),
        "levels": make_config(dataset=folder / "log", steps=2, num_levels=2),
        "no_density": replace(
            config, learning=LearningConfig(support_temperature=0.0, target_temperature=0.0, density_weight=0.0)
        ),
    }.items():
        train(replace(each, out=folder / name))
    return folder


def explained(folder, name="ours", log="log", episode=0, **settings):
    run = load_run(folder / name)
    return explain(run, open_log(run, folder / log), episode, **settings)


def predicted(folder, episodes, log="log", name="ours"):
    run = load_run(folder / name)
    log = RunLog(run, open_log(run, folder / log))
    return log.predict(log.rows(episodes))


def values_of(token):
    assert token.q_values is not None
    return token.q_values


def density_of(token):
    assert token.density is not None
    return token.density


# --- one episode ------------------------------------------------------------------------------------------------------


def test_the_episode_along_its_steps(folder):
    view = explained(folder, episode=3).episode
    assert (view.number, view.source, view.success, view.origin) == (3, "main_data.hdf5:episode_3", False, "trained on")
    np.testing.assert_allclose(view.returns, monte_carlo_returns(EPISODES, 0.98)[3], rtol=1e-6)
    expected = predicted(folder, [3])
    assert view.predictions is not None
    np.testing.assert_array_equal(view.predictions.values, expected.values)
    np.testing.assert_array_equal(view.predictions.q_logged, expected.q_logged)


def test_moments_agree_with_the_values_along_the_episode(folder):
    """Without a density the policy takes the maximum: V is Q of the greedy bin of the first token."""
    view = explained(folder, "no_density").episode
    assert [moment.step for moment in view.moments] == [0, 1, 2, 3, 4]
    assert view.predictions is not None
    for moment in view.moments:
        first, last = (values_of(token) for token in moment.tokens)
        assert moment.tokens[0].greedy == first.argmax()
        assert first.max() == pytest.approx(view.predictions.values[moment.step], abs=1e-6)
        logged = last[moment.tokens[1].logged]
        assert logged == pytest.approx(view.predictions.q_logged[moment.step], abs=1e-6)


def test_bins_stand_for_actions_and_the_density_is_one(folder):
    for moment in explained(folder).episode.moments:
        first, last = moment.tokens
        for dimension, token in enumerate((first, last)):
            assert token.actions.tolist() == [-0.75, -0.25, 0.25, 0.75]
            logged = EPISODES[0].actions[moment.step, dimension]
            assert token.logged == np.abs(token.actions - logged).argmin()
            assert density_of(token).sum() == pytest.approx(1, abs=1e-5)


def test_a_long_episode_is_shown_at_even_steps_from_the_first_to_the_last(folder):
    steps = [moment.step for moment in explained(folder, episode=1).episode.moments]
    assert (len(steps), steps[0], steps[-1]) == (24, 0, 39)
    assert set(np.diff(steps)) == {1, 2}


def test_many_bins_are_shown_at_fewer_steps(folder, monkeypatch):
    monkeypatch.setattr("qtransformer.explain._MAX_BARS", 5 * 2 * 4)  # five steps of two tokens of four bins
    assert [moment.step for moment in explained(folder, episode=1).episode.moments] == [0, 10, 20, 29, 39]
    monkeypatch.setattr("qtransformer.explain._MAX_BARS", 1)
    assert [moment.step for moment in explained(folder, episode=1).episode.moments] == [0, 20, 39]


# --- algorithms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cloning", "conditioned"])
def test_imitation_has_a_density_and_no_values(folder, name):
    explanation = explained(folder, name)
    assert explanation.checks == ()
    assert explanation.episode.predictions is None
    tokens = explanation.episode.moments[0].tokens
    assert all(token.q_values is None and token.density is not None for token in tokens)
    half = [np.flatnonzero(np.cumsum(density_of(token)) >= 0.5)[0] for token in tokens]
    assert [token.greedy for token in tokens] == half  # the median of the density is the policy's action
    assert explanation.verdicts() == [("note", "no values", NO_VALUES)]


def test_implicit_q_learning_has_values_of_the_last_token(folder):
    explanation = explained(folder, "implicit")
    assert [token.q_values is None for token in explanation.episode.moments[0].tokens] == [True, False]
    assert explanation.episode.predictions is not None
    assert len(explanation.checks) == 1


def test_a_density_that_was_not_trained_is_not_shown(folder):
    tokens = explained(folder, "no_density").episode.moments[0].tokens
    assert all(token.density is None and token.q_values is not None for token in tokens)


def test_tokens_have_the_names_and_units_of_the_log(folder):
    assert explained(folder).token_names == ("left (m/s)", "right (m/s)")
    assert explained(folder, "levels").token_names == (
        "left (m/s), level 1",
        "right (m/s), level 1",
        "left (m/s), level 2",
        "right (m/s), level 2",
    )


def test_bins_of_a_token_keep_the_others_as_they_were_logged():
    """Two dimensions of two levels, coarse 1 and 3, fine 2 and 0: cell = 4 * coarse + fine, of 16 cells 1/8 wide."""
    tokenizer = make_policy(make_config(num_levels=2), num_dimensions=2).tokenizer
    actions = bin_actions(tokenizer, torch.tensor([[1, 3, 2, 0]]))
    cells = np.array([[2, 6, 10, 14], [0, 4, 8, 12], [4, 5, 6, 7], [12, 13, 14, 15]])
    np.testing.assert_allclose(actions[0], -1 + (cells + 0.5) / 8, atol=1e-6)


# --- calibration by origin --------------------------------------------------------------------------------------------


def test_the_training_log_is_one_check(folder):
    (check,) = explained(folder).checks
    assert (check.origin, check.num_episodes, check.num_there, check.num_cut) == ("trained on", 4, 4, 2)
    assert check.calibration.bias.num_steps == 54
    assert len(check.alarms) == 6


def test_unseen_episodes_come_first_and_are_counted_apart(folder):
    held_out, trained = explained(folder, log="mixed", episode=6).checks
    assert (held_out.origin, held_out.num_there, held_out.num_cut) == ("held out", 6, 3)
    assert (trained.origin, trained.num_there, trained.num_cut) == ("trained on", 1, 0)
    expected = predicted(folder, range(6), "mixed")
    episodes = np.repeat(np.arange(6), [4, 7, 9, 5, 6, 8])
    calibration = calibrate(expected.q_logged, expected.returns, episodes)
    assert held_out.calibration.bias.mean == pytest.approx(calibration.bias.mean, abs=1e-6)
    assert held_out.calibration.bias.high == pytest.approx(calibration.bias.high, abs=1e-6)
    assert explained(folder, log="mixed", episode=6).episode.origin == "trained on"


def test_alarms_know_first_and_last_steps_and_how_episodes_ended(folder):
    (check,) = explained(folder).checks
    failures = next(each for each in check.alarms if each.name == "failures that look like successes")
    expected = predicted(folder, range(4)).values[[4, 44, 47, 53]]
    assert failures.figure == pytest.approx(expected[[1, 3]].mean() / expected[[0, 2]].mean(), rel=1e-5)


def test_success_that_was_not_recorded_is_neither(folder, tmp_path):
    run = load_run(folder / "ours")
    unknown = open_log(run, folder / "log")
    episodes = tuple(replace(each, success=each.success or None) for each in unknown.episodes)
    explanation = explain(run, replace(unknown, episodes=episodes), 3)
    assert explanation.episode.success is None
    assert "it takes failed and successful episodes" in explanation.checks[0].alarms[2].sentence


def test_a_large_log_is_looked_at_in_whole_episodes(folder):
    """39 steps in 6 episodes, at most 20: the first, the middle, the last."""
    check = explained(folder, log="mixed", max_steps=20).checks[0]
    assert (check.num_episodes, check.num_there) == (3, 6)
    assert check.calibration.bias.num_steps == 4 + 9 + 8
    assert explained(folder, log="mixed", max_steps=1).checks[0].num_episodes == 1


# --- mistakes and the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize("episode", [-1, 4])
def test_an_episode_that_is_not_there(folder, episode):
    with pytest.raises(
        RunError, match=rf"episode \({episode}\) must be in 0 \.\. 3: .* holds 4 episodes; choose anothe"
    ):
        explained(folder, episode=episode)


def test_no_steps_to_look_at(folder):
    with pytest.raises(RunError, match=r"max_steps \(0\) must be at least 1; change --max-steps"):
        explained(folder, max_steps=0)


def say(*arguments):
    return main(["explain", *(str(each) for each in arguments)])


def test_the_command_writes_a_page_and_says_what_it_found(folder, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert say(folder / "ours", "--dataset", folder / "mixed", "--episode", 2, "--out", page) == 0
    captured = capsys.readouterr()
    assert "Along episode 2" in page.read_text()
    said = " ".join(captured.out.split())
    assert "episodes held out: 6 Q of logged actions exceeds their return by" in said
    assert "episodes trained on: 1 Q of" in said
    assert said.endswith("page.html")
    assert "explain, episodes held out: 1/1" in captured.err


def test_without_flags_it_is_the_first_episode_of_the_runs_own_log(folder, capsys):
    assert say(folder / "ours") == 0
    page = (folder / "ours" / "explain.html").read_text()
    assert "main_data.hdf5:episode_0: 5 steps, a success, trained on." in page
    assert say(folder / "ours", "--episode", 3) == 0  # a page is replaced
    assert "main_data.hdf5:episode_3" in (folder / "ours" / "explain.html").read_text()
    capsys.readouterr()


def test_mistakes_are_one_line_and_leave_no_page(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    page = tmp_path / "page.html"
    for arguments, message in (
        ([tmp_path], "holds no checkpoint; give the --out folder of a training run"),
        ([folder / "ours", "--episode", 9], "episode (9) must be in 0 .. 3"),
        ([folder / "ours", "--dataset", tmp_path / "missing"], "does not exist, nor is it"),
        ([folder / "ours", "--out", tmp_path / "file" / "page.html"], "page.html: cannot be written ("),
        ([folder / "ours", "--out", tmp_path], "cannot be written (Is a directory); choose another path"),
    ):
        assert say(*arguments, *(() if "--out" in arguments else ("--out", page))) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("explain, episodes")]
        assert len(error) == 1
        assert message in error[0]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"]


def test_a_run_whose_log_is_gone_says_so(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "ours", tmp_path / "run")
    path = next(run.glob("checkpoints/*/checkpoint.json"))
    before = path.read_bytes()
    after = before.replace(str(folder / "log").encode(), str(tmp_path / "gone").encode())
    path.write_bytes(after)
    sums, (old, new) = path.with_name("SHA256SUMS"), (hashlib.sha256(each).hexdigest() for each in (before, after))
    sums.write_text(sums.read_text().replace(old, new))
    assert say(run) == 2
    assert "gone) must exist, got no such path; give --dataset" in capsys.readouterr().err
    assert say(run, "--dataset", folder / "mixed") == 0
    assert "whether training saw these episodes cannot be told" in " ".join(capsys.readouterr().out.split())


def test_help_mentions_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["explain", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert [flag for flag in ("PATH", "--dataset", "--episode", "--out", "--max-steps") if flag not in text] == []
