"""The commands around a bundle: write it, verify it, run it in real time.

Special about this file: modules are imported inside the functions, so that `verify` and `run` never load torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from qtransformer.config import RunError
from qtransformer.console import print_facts, print_json

Format = Literal["onnx", "fp16", "int8", "pt2", "aoti"]


@dataclass(frozen=True)
class Export:
    """Export a trained run to a bundle that a robot controller runs without torch."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run")]
    """The --out folder of `train`."""
    out: Path
    """Folder to make."""
    formats: tuple[Format, ...] = ("onnx",)
    """ONNX in float32 is always written; beside it: fp16, int8 (ONNX with rounded weights, refused where their actions
    are worth less), pt2 (torch.export), aoti (AOTInductor, compiled for this machine)."""
    limits: Path | None = None
    """JSON file with what a log cannot know: hard ranges, ages, absolute or delta, rate limits, workspace, fallback;
    the bundle's README.md shows its layout."""
    budget_ms: float | None = None
    """Refuse if 1 step in 100 takes longer here. Without it, a warning if that is beyond the control period."""

    def run(self) -> None:
        """Exports, checks parity, and prints the report."""
        from qtransformer.deploy.export import Wanted, export_bundle
        from qtransformer.loading import load_run
        from qtransformer.training_log import warn_if_log_changed

        loaded, limits = load_run(self.run_folder), _read_limits(self.limits)
        warn_if_log_changed(loaded.info)
        card = {**loaded.card(), "limits": limits}
        report = export_bundle(
            loaded.policy,
            spec=loaded.spec,
            samples=loaded.samples(),
            card=card,
            out=self.out,
            wanted=Wanted([name for name in self.formats if name != "onnx"], self.budget_ms),
        )
        if report["timing"]["fits_the_period"] is False:
            print(
                f"warning: 1 step in 100 takes {report['latency_ms']['p99']:.1f} ms or more here, the control period "
                f"is {report['timing']['control_period_ms']:.1f} ms",
                file=sys.stderr,
            )
        print_json(report)


def _read_limits(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        limits = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(limits, dict) or not all(isinstance(each, dict) for each in limits.values()):
            raise ValueError("must be an object of objects")
    except (OSError, ValueError) as error:
        raise RunError(f"--limits {path}: cannot be used ({error}); write JSON as in a bundle's README.md") from error
    return limits


@dataclass(frozen=True)
class Verify:
    """Check a bundle, without torch: checksums, schema, the card in the graphs, the recorded steps."""

    bundle: tyro.conf.Positional[Path]
    """The --out folder of `export`."""
    json: bool = False
    """Print JSON for programs."""

    def run(self) -> None:
        """Prints what was found.

        Raises:
            RunError: the bundle is not what it was at its export, or torch was loaded on the way.
        """
        from qtransformer.deploy.verify import verify_bundle

        report = verify_bundle(self.bundle)
        if "torch" in sys.modules:
            raise RunError("torch was loaded, so that it is not shown that the bundle needs none; correct qtransformer")
        if self.json:
            print_json(report)
        if not report["passed"]:
            raise RunError(f"{self.bundle}: {'; '.join(report['failures'])}; copy or export the bundle again")
        if not self.json:
            files = f"{report['files']} as exported, card as its schema says, and in the graphs"
            print_facts(f"Bundle {self.bundle}", {"files": files, **_tested(report["self_tests"])})


def _tested(reports: dict[str, Any]) -> dict[str, str]:
    """Returns the self-tests in words, by graph."""
    return {
        name: f"{each['tokens']['equal']} of {each['tokens']['total']} tokens equal in {each['steps']} recorded steps, "
        f"{each['latency_ms']['median']:.2f} ms median, {each['latency_ms']['p99']:.2f} ms p99"
        for name, each in reports.items()
    }


@dataclass(frozen=True)
class Run:
    """Drive an environment in real time through a bundle's controller, without torch: latency, jitter, deadlines."""

    bundle: tyro.conf.Positional[Path]
    """The --out folder of `export`."""
    model: str = "policy.onnx"
    """Graph of the bundle to run: policy.fp16.onnx or policy.int8.onnx, where it was exported."""
    rate: float | None = None
    """Steps a second; the log's without."""
    episodes: int = 10
    """Episodes, with seeds seed, seed + 1, ..."""
    seed: int = 0
    """Seed of the first episode."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ("qtransformer_envs",)
    """Modules that register the environment's id."""
    env_id: str | None = None
    """Another environment than the one that the log came from."""
    limits: Path | None = None
    """JSON file with limits to obey in place of the bundle's."""
    log: Path | None = None
    """JSONL file to write: the controller's log of the last minute."""
    json: bool = False
    """Print JSON for programs, every episode included."""

    def run(self) -> None:
        """Prints outcomes, latency, jitter, missed deadlines, and what the controller had to do."""
        from qtransformer.config import writing
        from qtransformer.deploy.controller import Controller
        from qtransformer.deploy.realtime import Drive, period_limits
        from qtransformer.evaluation import Plan, make_environment
        from qtransformer.loading import named_environment
        from qtransformer.vectorization import Host

        plan = Plan(self.episodes, 1, self.seed)
        if not (self.bundle / "policy.json").exists():
            raise RunError(f"{self.bundle}: must be the folder of a bundle; export the run first")
        controller = Controller(self.bundle, model=self.model, limits=_read_limits(self.limits))
        logged = controller.card["environment"]
        environment_id, kwargs = named_environment(self.bundle, logged["id"], logged["kwargs"], self.env_id)
        rate = controller.card["control_hz"] if self.rate is None else self.rate
        if rate is None:
            raise RunError(f"{self.bundle}: its log names no rate; name one with --rate")
        controller = controller.fork(period_limits(controller.card, rate))
        host = Host(partial(make_environment, environment_id, kwargs, self.imports))
        try:
            drive = Drive(controller, host, rate, tuple(logged.get("ignored_observations", ())))
            report = drive.play(range(plan.seed, plan.seed + plan.episodes))
        finally:
            host.close()
        if self.log:
            with writing("--log", self.log):
                controller.save_log(self.log)
        print_json(report) if self.json else print_facts(f"{self.bundle} in {environment_id}", _facts(report))


def _facts(report: dict[str, Any]) -> dict[str, str]:
    """Returns the report in words."""

    def spread(name: str) -> str:
        return "  ".join(f"{key} {value:.2f} ms" for key, value in report.get(name, {}).items())

    counters = {
        name: count for name, count in report["counters"].items() if count and name not in ("steps", "accepted")
    }
    return {
        "success": f"{report['successes']} of {len(report['episodes'])} episodes",
        "rate": f"{report['rate']:g} Hz, {report['steps']} steps",
        "latency": spread("latency_ms"),
        "jitter": spread("late_ms"),
        "missed deadlines": str(report["deadline_misses"]),
        "environment": spread("environment_ms"),
        "interventions": ", ".join(f"{count} {name}" for name, count in counters.items()) or "none",
    }
