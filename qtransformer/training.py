"""Training, from a log to a run folder, in plain sight: build, loop, write down, save.

    RUN/config.json      every setting, resolved       RUN/metrics.jsonl    one line every --log-every updates
    RUN/samples.npz      logged observation windows    RUN/checkpoints/     see checkpoint.py

It ties the dataset package to the learner, so nothing else may import it but the command line.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from qtransformer.baselines import LEARNERS
from qtransformer.checkpoint import checkpoint_folders, load_checkpoint, save_checkpoint
from qtransformer.config import RunError, TrainConfig
from qtransformer.console import progress
from qtransformer.deploy.controller import WordEncoder
from qtransformer.learner import Learner
from qtransformer.normalization import ReturnScale
from qtransformer.policy import build_policy
from qtransformer.token_report import print_token_report, token_report
from qtransformer.training_log import file_identity, open_training_log, print_findings, raise_on_misfit
from qtransformer_datasets.check import Finding, check_dataset, raise_on_errors
from qtransformer_datasets.prefetch import Prefetcher
from qtransformer_datasets.returns import return_range
from qtransformer_datasets.schema import DatasetError, EpisodeDataset
from qtransformer_datasets.selection import texts
from qtransformer_datasets.statistics import action_centres, action_noise, statistics
from qtransformer_datasets.windows import LoadingOptions, SegmentSampler

_BOUND_AFTER = 200  # updates until it is said what training waits for
_NUM_SAMPLES = 512  # logged windows kept for export: what its parity check and golden file are made of


def train(config: TrainConfig) -> Path:
    """Trains as `config` says and returns the run folder.

    Raises:
        RunError, DatasetError: a setting, the folder or the data cannot be used; nothing was overwritten.
    """
    dataset, findings = load_dataset(config)
    resume = _prepare_folder(config)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.num_threads)
    learner, sampler, info = build(config, dataset)
    step = _restore(config.out, learner, sampler, info) if resume else _start_run(config, sampler, info)
    save = _saver(config.out, learner, sampler, info)
    if not resume:
        actions = np.concatenate([episode.actions for episode in dataset.episodes])
        print_token_report(token_report(learner.policy.tokenizer, dataset.spec.actions, actions))

    started, first_step, recent = time.perf_counter(), step, []
    feed = Prefetcher(sampler)
    with feed, progress(config.algorithm, config.steps, step) as advance, _metrics(config.out) as write:
        while step < config.steps:
            recent.append(learner.update(feed.sample()))
            step += 1
            if step - first_step == _BOUND_AFTER:
                _say_what_bounds(feed.waited_s / (time.perf_counter() - started))
            shown = {}
            if step % config.log_every == 0 or step == config.steps:
                rate = (step - first_step) / (time.perf_counter() - started)
                shown = {**_means(recent), "updates_per_second": rate}
                write({"step": step, **shown})
                recent = []
            if step % config.checkpoint_every == 0 or step == config.steps:
                save(step)
            advance(**shown)
    print_findings(findings)  # once more: what was said an hour ago is out of sight
    return config.out


def load_dataset(config: TrainConfig) -> tuple[EpisodeDataset, list[Finding]]:
    """Opens and checks the part of the log that the settings ask for; returns it with what the check found.

    Raises:
        RunError, DatasetError: it cannot be read or used, or has an error that --allow does not name.
    """
    dataset = open_training_log(config)
    findings = check_dataset(dataset)
    try:
        raise_on_errors(findings, config.data.allow)
    except DatasetError as error:
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
            config.data.balance, memory_limit=config.data.memory_limit_bytes, encode_text=encoder.encode
        ),
    )
    info = {
        "config": config.to_json(),
        "spec": dataset.spec.to_json(),
        "statistics": _plain(statistics(dataset) | _text_statistics(known, encoder)),
        "instructions": list(encoder.known),
        "action_centres": _action_centres(dataset, config),
        "return_scale": dict(zip(("low", "high"), return_range(dataset.episodes, config.return_discount), strict=True)),
        "dataset": {
            "path": str(dataset.path),
            "fingerprint": dataset.fingerprint,
            "files": file_identity(dataset.path),
            "episodes": dataset.num_episodes,
        },
    }
    device = _device(config.device)
    _check_compiler(config, device)
    policy = build_policy(config, dataset.spec, info["statistics"], info["action_centres"]).to(device)
    scale, noise = ReturnScale(**info["return_scale"]), action_noise(dataset).tolist()
    learner = LEARNERS[config.algorithm](policy, config, scale, noise)
    return learner, sampler, info


def _prepare_folder(config: TrainConfig) -> bool:
    """Returns whether there is a checkpoint to resume from; makes the folder.

    Raises:
        RunError: the folder already holds a run and --resume was not given, or holds a run of other settings.
    """
    written = config.out / "config.json"
    if config.resume and written.exists():
        before, now = _read_settings(written), config.to_json()
        changed = sorted(key for key in now if before.get(key) != now[key] and key not in ("resume", "steps", "out"))
        if changed:
            raise RunError(
                f"--resume {config.out}: settings differ from the run's ({', '.join(changed)}); use the same"
            )
        return bool(checkpoint_folders(config.out))
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise RunError(f"--out {config.out}: already holds something; choose another folder, or --resume a run")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out {config.out}: cannot be made ({error.strerror}); choose another folder") from error
    return False


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: is damaged ({error}); begin a new run in another --out") from error


def _start_run(config: TrainConfig, sampler: SegmentSampler, info: dict[str, Any]) -> int:
    """Writes what stays the same during the run; returns step 0."""
    chosen = np.linspace(0, sampler.num_steps - 1, min(_NUM_SAMPLES, sampler.num_steps)).astype(int)
    batch = sampler.segments(chosen)
    window = config.model.window
    frames = {f"observations/{key}": value[:, :window] for key, value in batch.observations.items()}
    np.savez_compressed(config.out / "samples.npz", num_frames=batch.is_valid[:, :window].sum(axis=1), **frames)
    (config.out / "metrics.jsonl").write_text("")  # a run that was interrupted before its first checkpoint left lines
    (config.out / "config.json").write_text(json.dumps(info["config"], indent=1))
    return 0


def _restore(run: Path, learner: Learner, sampler: SegmentSampler, info: dict[str, Any]) -> int:
    """Loads the newest checkpoint and drops the metrics written after it; returns its step."""
    checkpoint = load_checkpoint(run)
    if checkpoint.info["dataset"]["fingerprint"] != info["dataset"]["fingerprint"]:
        raise RunError(f"--resume {run}: --dataset holds other data than the run began with; give the same dataset")
    learner.load_state(checkpoint.weights, checkpoint.training_tensors())
    sampler.load_state_dict(checkpoint.info["sampler"])
    step = checkpoint.info["step"]
    metrics = run / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if _step_of(line) <= step]
    metrics.write_text("".join(line + "\n" for line in kept))
    return step


def _step_of(line: str) -> float:
    """Returns the step of a line of metrics.jsonl; infinity where a crash cut the line short."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf


@contextmanager
def _metrics(run: Path) -> Iterator[Callable[[dict[str, int | float]], None]]:
    with (run / "metrics.jsonl").open("a") as file:

        def write(record: dict[str, int | float]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        yield write


def _saver(run: Path, learner: Learner, sampler: SegmentSampler, info: dict[str, Any]) -> Callable[[int], Path]:
    def save(step: int) -> Path:
        weights, training = learner.state()
        return save_checkpoint(run, {"step": step, **info, "sampler": sampler.state_dict()}, weights, training)

    return save


def _say_what_bounds(waited: float) -> None:
    """Prints whether training waits for data, by the share of the time that went into waiting."""
    if waited > 0.5:
        advice = "data-bound: a larger model would train at the same price"
    else:
        advice = "compute-bound: a faster disk would not help"
    Console(stderr=True).print(f"{waited:.1%} of the time waits for data; {advice}", highlight=False)


def _action_centres(dataset: EpisodeDataset, config: TrainConfig) -> list[list[float]] | None:
    return action_centres(dataset, config.tokens.num_cells).tolist() if config.tokens.binning == "quantile" else None


def _device(name: str) -> torch.device:
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


def _means(records: Iterable[dict[str, torch.Tensor]]) -> dict[str, float]:
    columns = list(records)
    return {key: torch.stack([each[key] for each in columns]).mean().item() for key in columns[0]}
