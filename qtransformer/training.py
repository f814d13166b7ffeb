"""Training, from a log to a run folder, in plain sight: build, loop, write down, save.

    RUN/config.json      every setting, resolved       RUN/metrics.jsonl    one line every --log-every updates
    RUN/samples.npz      logged observation windows    RUN/checkpoints/     see checkpoint.py

It ties the dataset package to the learner, so nothing else may import it but the command line.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from qtransformer.baselines import LEARNERS
from qtransformer.batch import DatasetSpec
from qtransformer.checkpoint import checkpoint_folders
from qtransformer.config import WITHOUT_VALUES, RunError, TrainConfig
from qtransformer.console import progress
from qtransformer.deploy.controller import WordEncoder
from qtransformer.files import write_durably
from qtransformer.following import BEST, Clock, Interrupted, PeriodicEvaluation, tensorboard
from qtransformer.guard import Guard, LogPlaces
from qtransformer.learner import Learner
from qtransformer.normalization import ReturnScale
from qtransformer.policy import build_policy
from qtransformer.provenance import add_session
from qtransformer.run_folder import Metrics, can_resume, claimed, keeping
from qtransformer.signals import Stopped, StopWish, stop_wish
from qtransformer.token_report import print_token_report, token_report
from qtransformer.training_log import file_identity, open_training_log, print_findings, raise_on_misfit
from qtransformer.training_state import TrainingState
from qtransformer.watch import Watch
from qtransformer_datasets.check import Finding, check_dataset, raise_on_errors
from qtransformer_datasets.prefetch import Prefetcher
from qtransformer_datasets.returns import return_range
from qtransformer_datasets.schema import DatasetError, EpisodeDataset
from qtransformer_datasets.selection import texts
from qtransformer_datasets.statistics import action_centres, action_noise, statistics
from qtransformer_datasets.windows import LoadingOptions, SegmentSampler

_BOUND_AFTER = 200  # updates until it is said what training waits for
_NEVER_ALLOWED = "not-finite"
_NUM_SAMPLES = 512  # logged windows kept for export: what its parity check and golden file are made of


def train(config: TrainConfig) -> Path:
    """Trains as `config` says and returns the run folder.

    Raises:
        RunError, DatasetError: a setting, the folder or the data cannot be used; nothing was overwritten. Or the disk
            is full; what was saved before is kept.
        Stopped: Ctrl-C or SIGTERM; all is saved.
    """
    return train_on(config, *load_dataset(config))


def train_on(config: TrainConfig, dataset: EpisodeDataset, findings: Sequence[Finding]) -> Path:
    """Does what `train` does, on what `load_dataset` returned."""
    with claimed(config.out), _deterministic(config.deterministic), stop_wish() as wish:
        _train(config, dataset, wish)
    print_findings(findings)  # once more: what was said an hour ago is out of sight
    return config.out


def _train(config: TrainConfig, dataset: EpisodeDataset, wish: StopWish) -> None:
    is_resumed = can_resume(config)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.num_threads)
    learner, sampler, info = build(config, dataset)
    guard, watch = Guard(learner, LogPlaces(dataset, sampler), config.out, info), Watch(learner, dataset, info)
    evaluation = PeriodicEvaluation(config.following, config.out, info) if config.following.evaluate_every else None
    state, metrics = TrainingState(learner, sampler, info, guard, watch), Metrics(config.out)
    step = state.restore(config.out) if is_resumed else _begin(config, state, metrics)
    if is_resumed:
        metrics.keep(step)
    else:
        actions = np.concatenate([episode.actions for episode in dataset.episodes])
        print_token_report(token_report(learner.policy.tokenizer, dataset.spec.actions, actions))
    with keeping(config.out):
        add_session(config.out, step, config.steps, str(learner.policy.tokenizer.low.device))

    first_step, clock = step, Clock(step, config.steps)
    board = tensorboard(config.out, config.following.tensorboard, step)
    with Prefetcher(sampler) as feed, progress(config.algorithm, config.steps, step) as advance, metrics, board as draw:
        _evaluate(evaluation, state, metrics, step, wish)  # a run may have been stopped in the midst of it
        while step < config.steps:
            figures = guard.update(feed.sample())
            if figures is None:
                continue
            state.recent.add(figures)
            step += 1
            shown, is_last = {}, step == config.steps
            if step - first_step == _BOUND_AFTER:
                _say_what_bounds(clock.figures(step, feed.waited_s)["data_share"])
            if step % config.log_every == 0 or is_last:
                shown = state.recent.take_means() | watch.figures() | guard.counts(step)
                shown |= clock.figures(step, feed.waited_s)
                metrics.write({"step": step, **shown})
                draw(metrics.lines[-1])
                shown["minutes_left"] = clock.minutes_left(step)
            if result := _evaluate(evaluation, state, metrics, step, wish):
                draw({"step": step, **result})
            advance(**shown)
            if step % config.checkpoint_every == 0 or is_last or wish.is_there:
                metrics.sync()
                state.save(config.out, step)
                watch.look([line for line in metrics.lines if "loss" in line])
            if wish.is_there and not is_last:
                where = f"update {step} of {config.steps} is saved in {config.out}"
                raise Stopped(wish, f"{where}; go on with the same command and --resume")
    watch.repeat()


def _evaluate(
    evaluation: PeriodicEvaluation | None, state: TrainingState, metrics: Metrics, step: int, wish: StopWish
) -> dict[str, float]:
    """Plays where it is time to and was not done yet, and keeps the policy if it is the best; returns the result."""
    config = state.config
    is_done = any(line["step"] == step and "success_rate" in line for line in metrics.lines)
    if evaluation is None or not step or step % config.following.evaluate_every or is_done:
        return {}
    try:
        result = evaluation.play(state.learner.policy, wish)
    except Interrupted:
        return {}
    if evaluation.is_best(result):
        state.save(config.out / BEST, step, result)
    metrics.write({"step": step, **result})
    return result


def load_dataset(config: TrainConfig) -> tuple[EpisodeDataset, list[Finding]]:
    """Opens and checks the part of the log that the settings ask for; returns it with what the check found.

    Raises:
        RunError, DatasetError: it cannot be read or used, or has an error that --allow does not name.
    """
    dataset = open_training_log(config)
    findings = check_dataset(dataset)
    try:
        raise_on_errors(findings, config.data.allow)
        raise_on_errors([each for each in findings if each.code == _NEVER_ALLOWED])
    except DatasetError as error:
        if _NEVER_ALLOWED in config.data.allow:
            raise DatasetError(f"{error}; --allow cannot help: such a log has no mean and no range") from error
        raise DatasetError(f"{error}; or train in spite of it with --allow CODE") from error
    print_findings(findings)
    raise_on_misfit(dataset)
    return dataset, findings


def build(config: TrainConfig, dataset: EpisodeDataset) -> tuple[Learner, SegmentSampler, dict[str, Any]]:
    """Returns the learner, its source of batches, and the description that goes into every checkpoint."""
    known = texts(dataset)
    encoder = WordEncoder(sorted({text for each in known.values() for text in each}))
    sampler = SegmentSampler(
        dataset,
        segment_length=config.model.window + config.learning.environment_steps - 1,
        batch_size=config.batch_size,
        discount=config.return_discount,
        seed=config.seed,
        options=LoadingOptions(
            config.data.balance,
            memory_limit=config.data.memory_limit_bytes,
            window=config.model.window,
            has_last_window=config.algorithm not in WITHOUT_VALUES,
            encode_text=encoder.encode,
        ),
    )
    info = {
        "config": config.to_json(),
        "spec": dataset.spec.to_json(),
        "statistics": _plain(statistics(dataset) | _text_statistics(known, encoder)),
        "instructions": list(encoder.known),
        "action_centres": _action_centres(dataset, config),
        "action_noise": action_noise(dataset).tolist(),
        "return_scale": dict(zip(("low", "high"), return_range(dataset.episodes, config.return_discount), strict=True)),
        "dataset": {
            "path": str(dataset.path),
            "fingerprint": dataset.fingerprint,
            "files": file_identity(dataset.path),
            "episodes": dataset.num_episodes,
        },
    }
    device = usable_device(config.device)
    _check_compiler(config, device)
    is_begun = config.resume and bool(checkpoint_folders(config.out))
    return build_learner(info, device, None if is_begun else config.model.vision_weights), sampler, info


def build_learner(info: Mapping[str, Any], device: torch.device, vision_weights: str | None = None) -> Learner:
    """Returns a fresh learner of the run that `info` describes; its cameras begin with the weights in a file.

    Raises:
        RunError: the file cannot be read, or is of another network.
    """
    config, spec = TrainConfig.from_json(info["config"]), DatasetSpec.from_json(info["spec"])
    policy = build_policy(config, spec, info["statistics"], info["action_centres"])
    if vision_weights is not None:
        policy.model.encoder.load_vision_weights(config.model.vision, Path(vision_weights))
    policy = policy.to(device)
    return LEARNERS[config.algorithm](policy, config, ReturnScale(**info["return_scale"]), info["action_noise"])


def _begin(config: TrainConfig, state: TrainingState, metrics: Metrics) -> int:
    """Writes what stays the same during the run, the settings first; returns step 0.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    settings, sampler = json.dumps(state.info["config"], indent=1), state.sampler
    chosen = np.linspace(0, sampler.num_steps - 1, min(_NUM_SAMPLES, sampler.num_steps)).astype(int)
    batch = sampler.segments(chosen)
    window = config.model.window
    arrays = {f"observations/{key}": value[:, :window] for key, value in batch.observations.items()}
    arrays["num_frames"] = batch.is_valid[:, :window].sum(axis=1)

    def write_samples(path: Path) -> None:
        with path.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(file, **arrays)

    with keeping(config.out):
        write_durably(config.out / "config.json", lambda path: path.write_text(settings))
        write_durably(config.out / "samples.npz", write_samples)
    metrics.clear()
    return 0


def _say_what_bounds(waited: float) -> None:
    """Prints whether training waits for data, by the share of the time that went into waiting."""
    if waited > 0.5:
        advice = "data-bound: a larger model would train at the same price"
    else:
        advice = "compute-bound: a faster disk would not help"
    Console(stderr=True).print(f"{waited:.1%} of the time waits for data; {advice}", highlight=False)


@contextmanager
def _deterministic(is_asked_for: bool) -> Iterator[None]:
    """Forbids torch every algorithm that does not give the same bits each time; afterwards all is as it was."""
    if not is_asked_for:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA's matrix products begin
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _action_centres(dataset: EpisodeDataset, config: TrainConfig) -> list[list[float]] | None:
    return action_centres(dataset, config.tokens.num_cells).tolist() if config.tokens.binning == "quantile" else None


def usable_device(name: str) -> torch.device:
    """Returns the device of that name; `auto` is a GPU where there is one.

    Raises:
        RunError: there is none, or it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise RunError(
            f"--device {name}: is not usable here ({str(error).splitlines()[0]}); use cpu or auto"
        ) from error


def _check_compiler(config: TrainConfig, device: torch.device) -> None:
    """Makes sure that there is what torch.compile writes its code for.

    Raises:
        RunError: on a CPU without a C++ compiler.
    """
    names = (os.environ.get("CXX", "g++"), "clang++", "c++")
    if config.learning.compile and device.type == "cpu" and not any(map(shutil.which, names)):
        raise RunError(f"--compile needs a C++ compiler, found none of {', '.join(names)}; install one or leave it out")


def _plain(values: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list[float]]]:
    return {key: {name: np.ravel(array).tolist() for name, array in each.items()} for key, each in values.items()}


def _text_statistics(known: Mapping[str, Sequence[str]], encoder: WordEncoder) -> dict[str, dict[str, np.ndarray]]:
    """Returns the moments of the vectors of each key's different texts."""
    tables = {key: np.stack([encoder.encode(text) for text in texts]) for key, texts in known.items()}
    return {key: {"mean": table.mean(axis=0), "std": table.std(axis=0)} for key, table in tables.items()}
