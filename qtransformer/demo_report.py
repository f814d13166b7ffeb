"""What the demo shows: the inputs of its report, read from the files that its stages wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qtransformer.loading import LoadedRun, load_run
from qtransformer.pictures import record_frames
from qtransformer.provenance import versions
from qtransformer.report import Animation, QPlot, Report, Row, save_picture, write_report

_INTRODUCTION = (
    "A 7-joint arm with a parallel gripper has to grasp a cube and lift it by 10 cm. The log was made by a scripted "
    "expert whose actions were disturbed: each episode drew its own Gaussian noise and its own rate of random actions "
    "held for several steps. Nothing else was used for training. All policies were played on the same seeds."
)
_RUNS = ("ours", "cloning", "filtered_cloning")


def write_demo_report(out: Path, summary: Mapping[str, Any], labels: Mapping[str, str], scale: str) -> None:
    """Writes report.html and picture.png into `out`."""
    run = load_run(out / "ours")
    facts = {
        "log": scale,
        "dataset fingerprint": run.info["dataset"]["fingerprint"],
        "time": f"{summary['seconds']:.0f} s",
        "memory": f"at most {summary['peak_memory_mb']:.0f} MB",
        "command": f"qtransformer demo --out {out}",
        **versions(),
    }
    report = Report(
        title="Q-Transformer demo: picking up a cube from noisy logs",
        introduction=_INTRODUCTION,
        rows=[_row(name, label, summary[name]) for name, label in labels.items()],
        curves={name: _metrics(out / name) for name in _RUNS},
        q_plot=q_plot(run),
        animation=_animation(out, summary["exported"]),
        facts=facts,
    )
    write_report(report, out / "report.html")
    save_picture(report, out / "picture.png")


def q_plot(run: LoadedRun) -> QPlot:
    """Returns Q and density of every action token in the middle one of the logged states kept with the run."""
    samples, policy = run.samples(), run.policy
    index = len(samples.num_frames) // 2
    with torch.inference_mode():
        observations = {key: torch.from_numpy(value[index : index + 1]) for key, value in samples.observations.items()}
        greedy = policy.model.greedy(
            observations, torch.from_numpy(samples.num_frames[index : index + 1]), policy.choose
        )
    spec, tokenizer = run.spec.actions, policy.tokenizer
    bins = torch.arange(tokenizer.num_bins).unsqueeze(-1).expand(-1, tokenizer.num_action_tokens)
    centres = tokenizer.decode(bins).T.numpy()
    return QPlot(
        dimensions=tuple(f"{name} ({unit})" for name, unit in zip(spec.elements, spec.units, strict=True)),
        centres=list(centres),
        q_values=greedy.outputs.q_values[0].numpy(),
        density=greedy.outputs.density_logits[0].softmax(dim=-1).numpy(),
        greedy=greedy.tokens[0].numpy(),
        logged=None,
        caption="One logged state: Q of every bin (line), the density of the log (bars), and the bin chosen.",
    )


def _row(name: str, label: str, result: Mapping[str, Any]) -> Row:
    low, high = result["interval"]
    return Row(name, label, result["successes"], result["episodes"], (low, high), result["mean_length"])


def _metrics(run: Path) -> list[dict[str, int | float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _animation(out: Path, exported: Mapping[str, Any]) -> Animation | None:
    """Returns the exported policy's first success, or its first episode where there is none."""
    outcomes = exported["outcomes"]
    shown = next((each for each in outcomes if each["success"]), outcomes[0])
    frames = record_frames(out / "policy", shown["seed"], out / "rollout.npz")
    if frames is None:
        return None
    ending = "a success" if shown["success"] else "a failure"
    return Animation(list(np.asarray(frames)), 10, f"The exported file acting, seed {shown['seed']}: {ending}.")
