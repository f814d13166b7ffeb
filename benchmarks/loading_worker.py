"""The contestants of loading.py, one a process: reads the log once, then draws batches of segments when asked.

    python loading_worker.py CONTESTANT LOG --batch 256 --segment 6

d3rlpy's contestants run in the environment `robots` of peers.py, which has our package, too.
"""

# d3rlpy lives in another environment.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from harness import cpu_seconds, serve

Draw = Callable[[], object]


def ours(options: argparse.Namespace) -> Draw:
    """Returns our sampler's draw; images are in the cache's memory map."""
    from qtransformer_datasets.formats import open_dataset
    from qtransformer_datasets.windows import LoadingOptions, SegmentSampler

    sampler = SegmentSampler(
        open_dataset(options.log),
        segment_length=options.segment,
        batch_size=options.batch,
        discount=0.98,
        seed=0,
        options=LoadingOptions(storage="mapped"),
    )
    return sampler.sample


def minari_episodes(options: argparse.Namespace) -> Draw:
    """Returns a draw by Minari's own reads: an episode for each segment, of which a window is cut."""
    import minari

    dataset, generator = minari.MinariDataset(options.log / "data"), np.random.default_rng(0)

    def draw() -> object:
        indices = generator.integers(dataset.total_episodes, size=options.batch)
        return stack([cut_episode(dataset[int(index)], options.segment, generator) for index in indices])

    return draw


def cut_episode(episode: Any, length: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns a window of an episode that is longer than it."""
    first = int(generator.integers(len(episode.actions) - length + 1))
    names = ("actions", "rewards", "terminations", "truncations")
    window = {name: getattr(episode, name)[first : first + length] for name in names}
    return {**window, "observations": episode.observations[first : first + length + 1]}


def d3rlpy_buffer(options: argparse.Namespace) -> Any:
    """Returns the log as d3rlpy's buffer."""
    from d3rlpy_runner import import_d3rlpy, replay_buffer

    from qtransformer_datasets.formats import open_dataset

    return replay_buffer(import_d3rlpy(), open_dataset(options.log))


def d3rlpy_segments(options: argparse.Namespace) -> Draw:
    """Returns the draw of d3rlpy's segments, those that its decision transformers train on."""
    buffer = d3rlpy_buffer(options)
    return lambda: buffer.sample_trajectory_batch(options.batch, options.segment)


def d3rlpy_transitions(options: argparse.Namespace) -> Draw:
    """Returns the draw of d3rlpy's transitions: one step each, a sixth of a segment or less."""
    buffer = d3rlpy_buffer(options)
    return lambda: buffer.sample_transition_batch(options.batch)


def robomimic_style(options: argparse.Namespace) -> Draw:
    """Returns a draw as robomimic's SequenceDataset reads without its cache, and PyTorch's loader collates.

    Each sample is read by itself, each key by its path from the root of the file, and padded where the demo ends. It
    reads as many frames as steps, one less than ours.
    """
    file: Any = h5py.File(options.log, "r")
    generator = np.random.default_rng(0)
    lengths = {demo: len(file[f"data/{demo}/actions"]) for demo in file["data"]}
    demos = [(demo, step) for demo, length in lengths.items() for step in range(length)]
    keys = ["actions", "rewards", "dones", *(f"obs/{key}" for key in file["data"][demos[0][0]]["obs"])]

    def read(demo: str, first: int) -> dict[str, np.ndarray]:
        last = min(lengths[demo], first + options.segment)
        rows = {key: file[f"data/{demo}/{key}"][first:last] for key in keys}
        missing = first + options.segment - last
        return {key: np.concatenate([each, np.repeat(each[-1:], missing, axis=0)]) for key, each in rows.items()}

    return lambda: stack([read(*demos[index]) for index in generator.integers(len(demos), size=options.batch)])


def stack(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the samples as one batch."""
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def memory_megabytes(status: Path = Path("/proc/self/status")) -> dict[str, float]:
    """Returns the memory of this process now: its own, that of mapped files, and the most of both so far."""
    lines = [line.split() for line in status.read_text().splitlines()]
    fields = {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line and line[0].startswith(("Vm", "Rss"))}
    return {"own": fields["RssAnon"], "mapped_files": fields["RssFile"], "peak": fields["VmHWM"]}


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Draw]] = {
    "ours": ours,
    "minari": minari_episodes,
    "d3rlpy segments": d3rlpy_segments,
    "d3rlpy transitions": d3rlpy_transitions,
    "robomimic style": robomimic_style,
}


def main() -> None:
    """Reads the log and answers calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("log", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--segment", type=int, required=True)
    options = parser.parse_args()
    draw = CONTESTANTS[options.contestant](options)
    draw()
    serve({"seconds": lambda repeats: cpu_seconds(draw, repeats), "memory": memory_megabytes})


if __name__ == "__main__":
    main()
