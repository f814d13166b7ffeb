"""Training, from a log to a run folder, in plain sight: build, loop, write down, save.

    RUN/config.json      every setting, resolved       RUN/metrics.jsonl    one line every --log-every updates
    RUN/samples.npz      logged observation windows    RUN/checkpoints/     see checkpoint.py

Where torchrun has started several ranks, all loop alike, and what they decide they decide together; rank 0 keeps the
diary.
It ties the dataset package to the learner, so nothing else may import it but the command line.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qtransformer import ranks
from qtransformer.baselines import LEARNERS
from qtransformer.batch import DatasetSpec
from qtransformer.checkpoint import checkpoint_folders
from qtransformer.config import WITHOUT_VALUES, RunError, TrainConfig
from qtransformer.deploy.controller import text_encoder
from qtransformer.diary import Diary
from qtransformer.guard import Guard, LogPlaces
from qtransformer.learner import Learner, under
from qtransformer.normalization import ReturnScale
from qtransformer.policy import build_policy
from qtransformer.run_folder import can_resume, claimed
from qtransformer.signals import Stopped, StopWish, stop_wish
from qtransformer.training_log import file_identity, open_training_log, print_findings, raise_on_misfit, told
from qtransformer.training_state import TrainingState
from qtransformer.watch import Watch
from qtransformer_datasets.check import Finding, check_dataset, raise_on_errors
from qtransformer_datasets.prefetch import Prefetcher
from qtransformer_datasets.returns import return_range
from qtransformer_datasets.schema import DatasetError, EpisodeDataset
from qtransformer_datasets.selection import texts
from qtransformer_datasets.statistics import action_centres, action_noise, statistics
from qtransformer_datasets.windows import LoadingOptions, SegmentSampler

_NEVER_ALLOWED = "not-finite"


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
    folder = nullcontext() if ranks.rank() else claimed(config.out)
    with folder, _deterministic(config.deterministic), stop_wish() as wish:
        _train(config, dataset, wish)
    print_findings(findings)  # once more: what was said an hour ago is out of sight
    return config.out


def _train(config: TrainConfig, dataset: EpisodeDataset, wish: StopWish) -> None:
    is_first = ranks.rank() == 0
    is_resumed = ranks.largest(is_first and can_resume(config)) > 0
    torch.manual_seed(config.seed)  # the same at all ranks
    torch.set_num_threads(config.num_threads)
    with ranks.first_goes_first():  # it may write a cache of images
        learner, sampler, info = build(config, dataset)
    guard, watch = Guard(learner, LogPlaces(dataset, sampler), config.out, info), Watch(learner, dataset, info)
    state = TrainingState(learner, sampler, info, guard, watch)
    diary = Diary(state, wish) if is_first else None
    step = state.restore(config.out) if is_resumed else 0
    if diary:
        diary.go_on(step) if is_resumed else diary.begin(dataset)
    _agree(state, step)

    with Prefetcher(sampler) as feed, state.writer, diary.opened(step, feed) if diary else nullcontext():
        while step < config.steps:
            figures = guard.update(feed.sample())
            if figures is None:
                continue
            step += 1
            is_last = step == config.steps
            if diary:
                diary.updated(step, figures)
            state.writer.check()
            agreed = StopWish(int(ranks.largest(wish.signal_number or 0)) or None)  # what comes now is the next one's
            if step % config.checkpoint_every == 0 or is_last or agreed.is_there:
                diary.save(step) if diary else state.save(step)
            if agreed.is_there and not is_last:
                state.writer.wait()
                where = f"update {step} of {config.steps} is saved in {config.out}"
                raise Stopped(agreed, f"{where}; go on with the same command and --resume")
        state.writer.wait()


def _agree(state: TrainingState, step: int) -> None:
    """Makes sure that all ranks begin with the same.

    Raises:
        RunError: they have other data, settings or checkpoints.
    """
    info = state.info
    settings = {key: value for key, value in info["config"].items() if key not in ("dataset", "out")}
    for name, value in {"settings": settings, "data": info["dataset"]["fingerprint"], "updates": step}.items():
        ranks.require_same(name, str(value))
    weights, training = state.learner.state()
    ranks.copy_from_first([*weights.values(), *under("target.", training).values()])


def load_dataset(config: TrainConfig) -> tuple[EpisodeDataset, list[Finding]]:
    """Opens and checks the part of the log that the settings ask for; returns it with what the check found.

    Raises:
        RunError, DatasetError: it cannot be read or used, or has an error that --allow does not name.
    """
    dataset = open_training_log(config)
    findings = check_dataset(dataset)
    try:
        raise_on_errors(findings, [code for code in config.data.allow if code != _NEVER_ALLOWED])
    except DatasetError as error:
        raise DatasetError(
            f"{error}; or train in spite of it with --allow CODE, which cannot help against {_NEVER_ALLOWED}: such a "
            "log has no mean and no range"
        ) from error
    print_findings(findings)
    raise_on_misfit(dataset)
    return dataset, findings


def build(config: TrainConfig, dataset: EpisodeDataset) -> tuple[Learner, SegmentSampler, dict[str, Any]]:
    """Returns the learner, its source of batches, and the description that goes into every checkpoint.

    Raises:
        RunError: a setting cannot be used here.
        DatasetError: the log does not fit into memory, or does not say what the balance goes by.
    """
    _require_equal_parts(config)
    instructions = told(dataset, config.data)
    encode = text_encoder(instructions).encode
    sampler = SegmentSampler(
        dataset,
        segment_length=config.model.window + config.learning.environment_steps - 1,
        batch_size=config.batch_size,
        discount=config.return_discount,
        seed=config.seed,
        options=LoadingOptions(
            config.data.balance,
            storage="auto" if ranks.world_size() == 1 else "mapped",  # which the ranks of a machine have in common
            memory_limit=config.data.memory_limit_bytes,
            rank=ranks.rank(),
            world_size=ranks.world_size(),
            window=config.model.window,
            has_last_window=config.algorithm not in WITHOUT_VALUES,
            encode_text=encode,
            relabel=config.data.relabel,
        ),
    )
    info = {
        "config": config.to_json(),
        "spec": dataset.spec.to_json(),
        "statistics": _plain(statistics(dataset) | _text_statistics(texts(dataset), encode)),
        **instructions,
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
    """Returns the device of that name; `auto` is a GPU where there is one. Each rank of a machine has a GPU of its own.

    Raises:
        RunError: there is none, or it cannot be used.
    """
    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    found = f"cuda:{ranks.local_rank()}" if found == "cuda" else found
    try:
        return torch.empty(0, device=found).device
    except (RuntimeError, AssertionError) as error:
        raise RunError(
            f"--device {name}: is not usable here ({str(error).splitlines()[0]}); use cpu or auto"
        ) from error


def _require_equal_parts(config: TrainConfig) -> None:
    """Makes sure that all ranks have as many segments, and each part of theirs as many.

    Raises:
        RunError: the batch cannot be divided so.
    """
    parts = ranks.world_size() * config.gradient_accumulation_steps
    if config.batch_size % parts:
        raise RunError(
            f"--batch-size ({config.batch_size}) must be a multiple of {parts}, the ranks ({ranks.world_size()}) times "
            f"--gradient-accumulation-steps ({config.gradient_accumulation_steps}); choose another"
        )


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


def _text_statistics(
    known: Mapping[str, Sequence[str]], encode: Callable[[str], np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the moments of the vectors of each key's different texts."""
    tables = {key: np.stack([encode(text) for text in texts]) for key, texts in known.items()}
    return {key: {"mean": table.mean(axis=0), "std": table.std(axis=0)} for key, table in tables.items()}
