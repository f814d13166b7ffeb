"""Training on one device: how fast, and how much of what the device can do.

The loop is training's own: batches from a log on the disk, the guard, one update after the other, with the default
losses; windows of 6, 8 dimensions x 256 bins. `matrix_share` is the rate of the products and attention of an update, as
torch counts them, over that of square matrix products just before: bfloat16 on a GPU, float32 on a CPU.
`waits_for_data` is the share of the time in which no batch is there to compute. `frames_encoded` counts images of a
segment, each once. `ratio` sets compiled against eager and bfloat16 against float32. A CPU gets the smallest model
alone, and time is CPU time there; `--profile` shows where the time of the last configuration goes.

    .venv/bin/python benchmarks/gpu.py [--quick] [--device cpu] [--profile profile.txt]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from harness import machine, print_result, rounded, say
from torch import Tensor

from qtransformer.batch import ActionSpec, Batch, DatasetSpec, ObservationSpec
from qtransformer.config import LearningConfig, ModelConfig, TokenConfig, TrainConfig
from qtransformer.guard import Guard, LogPlaces
from qtransformer.plan import Sizes, count_flops, number, update_flops, width_for
from qtransformer.q_learning import QTransformerLearner
from qtransformer.training import build, load_dataset, usable_device
from qtransformer_datasets.prefetch import Prefetcher
from qtransformer_datasets.recorder import Recorder
from qtransformer_datasets.schema import Episode, EpisodeDataset

SIZES = Sizes(64, num_layers=8, num_action_layers=2, window=6, dimensions=8, num_bins=256, state_size=64)
HEAD = 64  # features of an attention head
SIDE = 128  # pixels
STEPS = 50  # of an episode
MODELS = ("1M", "10M", "60M")
PRECISIONS = ("float32", "bfloat16")
WARM_UP = 3  # updates; compiling is one of them


@dataclass(frozen=True)
class Load:
    """How much work a device gets: `episodes` of each log, segments of a batch, seconds a configuration."""

    models: tuple[str, ...]
    state_batch: int
    image_batch: int
    image_episodes: int
    seconds: float
    product: int
    compiles: bool


LOADS = {
    ("cuda", False): Load(MODELS, 1024, 256, 100, seconds=10.0, product=8192, compiles=True),
    ("cuda", True): Load(MODELS[:1], 1024, 64, 10, seconds=2.0, product=4096, compiles=False),
    ("cpu", False): Load(MODELS[:1], 64, 8, 10, seconds=15.0, product=1024, compiles=True),
    ("cpu", True): Load(MODELS[:1], 32, 2, 3, seconds=2.0, product=512, compiles=False),
}


@dataclass(frozen=True)
class Case:
    """One configuration."""

    model: str
    has_images: bool
    precision: Literal["float32", "bfloat16"] = "float32"
    is_compiled: bool = False

    @property
    def name(self) -> str:
        """What it is called in the result."""
        kinds = [self.model, "images" if self.has_images else "state", self.precision]
        return " ".join([*kinds, "compiled" if self.is_compiled else "eager"])


def cases(load: Load) -> list[Case]:
    """Returns all configurations, the smallest first."""
    compiled = (False, True) if load.compiles else (False,)
    return [Case(*each) for each in itertools.product(load.models, (False, True), PRECISIONS, compiled)]


def write_log(folder: Path, num_episodes: int, has_images: bool) -> Path:
    """Records random episodes that end in a reward or not; returns the log."""
    size, N = SIZES.state_size, SIZES.dimensions
    observations = (ObservationSpec("state", (size,), "float32"),)
    if has_images:
        observations += (ObservationSpec("image/camera", (SIDE, SIDE, 3), "uint8", "image"),)
    generator, is_last = np.random.default_rng(0), np.arange(STEPS) == STEPS - 1
    with Recorder(folder, DatasetSpec(observations, ActionSpec((-1.0,) * N, (1.0,) * N))) as recorder:
        for number in range(num_episodes):
            seen: dict[str, Any] = {"state": generator.normal(size=(STEPS + 1, size)).astype(np.float32)}
            if has_images:
                seen["image/camera"] = generator.integers(256, size=(STEPS + 1, SIDE, SIDE, 3), dtype=np.uint8)
            actions = generator.uniform(-1, 1, (STEPS, N)).astype(np.float32)
            ends = is_last & bool(number % 2)
            recorder.record(Episode(seen, actions, 1.0 * ends, ends, is_last & ~ends, bool(number % 2)))
    return folder


def config_of(case: Case, log: Path, load: Load, device: str) -> TrainConfig:
    """Returns the settings of training."""
    width = width_for(number("model", case.model), SIZES)
    model = ModelConfig(
        window=SIZES.window,
        width=width,
        num_layers=SIZES.num_layers,
        num_action_layers=SIZES.num_action_layers,
        num_heads=width // HEAD,
    )
    return TrainConfig(
        log,
        log.with_name("run"),
        batch_size=load.image_batch if case.has_images else load.state_batch,
        device=device,
        tokens=TokenConfig(num_bins=SIZES.num_bins),
        model=model,
        learning=LearningConfig(precision=case.precision, compile=case.is_compiled),
    )


def matrix_rate(device: torch.device, size: int, seconds: float = 1.0) -> float:
    """Returns the FLOP/s of square matrix products, over about `seconds`: what the device really reaches."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    once = timed(lambda: torch.mm(left, right), 5, device)
    return 2 * size**3 / timed(lambda: torch.mm(left, right), max(1, round(seconds / once)), device)


def timed(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Returns the seconds of one call of `work`, the mean of `repeats`, until the device is done."""
    wait_for(device)
    clock = clock_of(device)
    started = clock()
    for _ in range(repeats):
        work()
    wait_for(device)
    return (clock() - started) / repeats


def clock_of(device: torch.device) -> Callable[[], float]:
    """Returns what time is measured by: CPU time of this process where that is what computes."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def wait_for(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def frames_encoded(learner: QTransformerLearner, work: Callable[[], object], num_segments: int) -> dict[str, float]:
    """Returns how many images of a segment each network encodes in `work`: those that it looks at, each once."""
    found = {"policy": 0.0, "target": 0.0}
    hooks = []
    for name, policy in (("policy", learner.policy), ("target", learner.target)):

        def count(_: object, inputs: tuple[Tensor, ...], __: object, name: str = name) -> None:
            found[name] += inputs[0].shape[:-3].numel() / num_segments

        hooks += [each.register_forward_hook(count) for each in policy.model.encoder.cameras]
    work()
    for hook in hooks:
        hook.remove()
    return found


def planned_flops(learner: QTransformerLearner, config: TrainConfig) -> float:
    """Returns the operations of an update that `qtransformer plan` foretells."""
    sizes, device = replace(SIZES, width=config.model.width), learner.policy.tokenizer.low.device
    for camera in learner.policy.model.encoder.cameras:
        picture, words = torch.zeros(1, 1, SIDE, SIDE, 3, device=device), torch.zeros(1, 1, 0, device=device)
        with torch.no_grad():
            frame = count_flops(partial(camera, picture, words))
        sizes = replace(sizes, frame_flops=float(frame), image_tokens=config.model.image_tokens)
    return update_flops(sizes, config.batch_size)


class Trainer:
    """Training's own loop on one configuration."""

    def __init__(self, config: TrainConfig, dataset: EpisodeDataset) -> None:
        torch.manual_seed(0)
        learner, self.sampler, info = build(config, dataset)
        assert isinstance(learner, QTransformerLearner)
        self.learner = learner
        self._guard = Guard(self.learner, LogPlaces(dataset, self.sampler), config.out, info)
        self._window = config.model.window

    def update(self, batch: Batch) -> int:
        """Takes one step; returns the transitions that it learned from."""
        self._guard.update(batch)
        return int(batch.is_valid[:, : self._window].sum())

    def run(self, seconds: float, device: torch.device) -> dict[str, float]:
        """Returns the rates of about so many seconds of training, after some updates that do not count."""
        with Prefetcher(self.sampler) as feed:
            for _ in range(WARM_UP):
                self.update(feed.sample())
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            wait_for(device)
            clock, updates, transitions = clock_of(device), 0, 0
            waited, began, started = feed.waited_s, time.perf_counter(), clock()
            while clock() - started < seconds:
                transitions += self.update(feed.sample())
                updates += 1
            wait_for(device)
            took, waits = clock() - started, (feed.waited_s - waited) / (time.perf_counter() - began)
        rates = {"updates_per_second": updates / took, "transitions_per_second": transitions / took}
        return {**rates, "waits_for_data": waits}


def measure(case: Case, dataset: EpisodeDataset, load: Load, device: torch.device, rate: float) -> dict[str, Any]:
    """Returns the figures of one configuration."""
    config = config_of(case, dataset.path, load, str(device))
    eager = Trainer(replace(config, learning=replace(config.learning, compile=False)), dataset)
    batch = eager.sampler.batch(0)
    encoded = frames_encoded(eager.learner, lambda: eager.update(batch), config.batch_size)
    flops = count_flops(lambda: eager.update(batch))
    trainer = Trainer(config, dataset) if case.is_compiled else eager
    rates = trainer.run(load.seconds, device)
    rates |= {"matrix_share": rates["updates_per_second"] * flops / rate, "flops_an_update": float(flops)}
    rates["planned_over_counted_flops"] = planned_flops(eager.learner, config) / flops
    return {
        "parameters": sum(each.numel() for each in eager.learner.policy.parameters()),
        "width": config.model.width,
        "segments": config.batch_size,
        **{name: rounded(value) for name, value in rates.items()},
        "frames_encoded": encoded,
        "memory_peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def ratio(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns how many times the transitions of eager compiled takes, and those of float32 bfloat16."""
    found = {}
    for name, each in figures.items():
        for fast, slow in (("compiled", "eager"), ("bfloat16", "float32")):
            other = name.replace(fast, slow)
            if fast in name and other in figures:
                rates = [one["transitions_per_second"] for one in (each, figures[other])]
                found[f"{name} / {slow}"] = rounded(rates[0] / rates[1])
    return found


def profile(trainer: Trainer, device: torch.device, path: Path) -> None:
    """Writes what the time of some updates goes into, the most first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    batches = [trainer.sampler.sample() for _ in range(2 * WARM_UP)]
    for batch in batches[:WARM_UP]:
        trainer.update(batch)
    with torch.profiler.profile(activities=activities) as found:
        for batch in batches[WARM_UP:]:
            trainer.update(batch)
        wait_for(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    path.write_text(found.key_averages().table(sort_by=order, row_limit=30))


def measure_all(
    folder: Path, load: Load, device: torch.device, profile_path: Path | None
) -> tuple[float, dict[str, dict[str, Any]]]:
    """Returns the device's rate of matrix products, and the figures of each configuration by its name."""
    logs = {False: 4 * load.image_episodes, True: load.image_episodes}
    config = {each: config_of(Case(MODELS[0], each), folder / str(each), load, str(device)) for each in logs}
    for has_images, num_episodes in logs.items():
        write_log(config[has_images].dataset, num_episodes, has_images)
    datasets = {each: load_dataset(config[each])[0] for each in logs}
    rate, figures, chosen = matrix_rate(device, load.product), {}, cases(load)
    for case in chosen:
        say(case.name)
        figures[case.name] = measure(case, datasets[case.has_images], load, device, rate)
    if profile_path is not None:
        last = chosen[-1]
        dataset = datasets[last.has_images]
        profile(Trainer(config_of(last, dataset.path, load, str(device)), dataset), device, profile_path)
    return rate, figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest model, not compiled, under a minute")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one")
    parser.add_argument("--profile", type=Path, help="file to write where the time goes")
    options = parser.parse_args(arguments)
    device = usable_device(options.device)
    load = LOADS[device.type, options.quick]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rate, figures = measure_all(Path(folder), load, device, options.profile)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["cpu"]
    head = {"benchmark": "gpu", "quick": options.quick, "machine": machine(), "device": f"{device.type}: {name}"}
    result = {**head, "matrix_gflops": rounded(rate / 1e9), "ratio": ratio(figures), "configurations": figures}
    print_result(result)


if __name__ == "__main__":
    main()
