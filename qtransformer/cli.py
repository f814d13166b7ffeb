"""The command line: one subcommand a step of the path, each a thin function over the packages.

Special about this file: a user's mistake ends here, as one line on standard error and exit code 2. Modules are imported
inside the functions, so that evaluating a bundle never loads torch and `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from qtransformer.config import RunError, TrainConfig
from qtransformer.console import print_json, print_verdicts
from qtransformer.deploy.controller import ControllerError
from qtransformer.deploy_commands import Export, Run, Verify
from qtransformer.evaluate_command import Evaluate
from qtransformer.log_commands import Collect, Convert, Inspect
from qtransformer.pictures import choose_renderer
from qtransformer.plan import Plan
from qtransformer.presets import PRESETS
from qtransformer.run_commands import ReplayBatch, ReportCommand, RerunCommand
from qtransformer.score_command import Score
from qtransformer.serve_command import Serve
from qtransformer.signals import Stopped
from qtransformer_datasets.schema import DatasetError

_DESCRIPTION = (
    "Offline reinforcement learning for robots with autoregressive Q-functions: "
    "collect or inspect a log, train on it, evaluate in simulation, export to a robot controller."
)
_TRAIN = "Train a policy on a log."
_CLOSED_PIPE = 128 + 13  # what a process that SIGPIPE ended exits with


@dataclass(frozen=True)
class Compare:
    """Tell which policies are better than which, from the same episodes, at an error rate of 5 % over all pairs."""

    policies: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH|NAME=PATH,PATH")]
    """Runs, bundles, or files of `evaluate --json`, two at least. Several trainings of one method are one group:
    ours=RUN0,RUN1,RUN2. Files are taken as they are, the others are played."""
    episodes: int = 100
    """Episodes, with seeds seed, seed + 1, ..."""
    num_envs: int = 4
    """Environments side by side; the result does not depend on it."""
    vectorization: Literal["sync", "async"] = "sync"
    """How they step: one after the other, or each in a process of its own; the result does not depend on it."""
    seed: int = 0
    """Seed of the first episode."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ("qtransformer_envs",)
    """Modules that register the environment's id."""
    env_id: str | None = None
    """Another environment than the one that the logs came from."""
    points: float = 5.0
    """Difference, in percentage points, for which to say how many more episodes would show it."""
    picture: Path | None = None
    """PNG to write; one that is there is replaced."""
    json: bool = False
    """Print JSON for programs, every episode included."""

    def run(self) -> None:
        """Prints the success of each, and of each pair difference, interval, verdict and what more would show."""
        from qtransformer.compare_report import print_comparison, save_picture
        from qtransformer.compare_sources import Play, gather, parse_methods
        from qtransformer.comparison_pairs import compare, require_comparable
        from qtransformer.evaluation import Plan

        methods = parse_methods(self.policies)
        require_comparable(len(methods), self.points)
        plan = Plan(self.episodes, self.num_envs, self.seed, vectorization=self.vectorization)
        gathered = gather(methods, Play(plan, self.imports, self.env_id))
        comparison = compare(gathered.methods, self.points)
        if self.json:
            print_json({**gathered.to_json(), **comparison.to_json()})
        else:
            print_comparison(comparison, gathered.title())
        if self.picture:
            save_picture(comparison, self.picture, gathered.title())


@dataclass(frozen=True)
class Explain:
    """Show what a trained run makes of a log, on one HTML page: values, every bin, calibration, alarms."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run")]
    """The --out folder of `train`."""
    episode: int = 0
    """Number of the logged episode to show step by step."""
    dataset: Path | None = None
    """Log to ask about: best one that training did not see. Without it, the run's own."""
    out: Path | None = None
    """Page to write; a page that is there is replaced. Without it, explain.html in the run's folder."""
    max_steps: int = 20_000
    """Logged steps that calibration and alarms look at, in whole, evenly chosen episodes."""

    def run(self) -> None:
        """Writes the page, then prints calibration and alarms."""
        import torch

        from qtransformer.explain import explain
        from qtransformer.explain_log import open_log
        from qtransformer.explain_page import write_page
        from qtransformer.loading import load_run

        torch.set_num_threads(1)
        run, out = load_run(self.run_folder), self.out or self.run_folder / "explain.html"
        explanation = explain(run, open_log(run, self.dataset), self.episode, self.max_steps)
        write_page(explanation, out)
        print_verdicts(explanation.verdicts())
        print(f"explained: {out}")


@dataclass(frozen=True)
class Demo:
    """The whole path on a small log: collect, train, evaluate, compare with cloning, export, report."""

    out: Path = Path("runs/demo")
    """Folder to make."""
    quick: bool = False
    """A few episodes and updates: shows that everything runs, not how well."""

    def run(self) -> None:
        """Runs the demo and prints its table."""
        from qtransformer.demo import demo

        demo(self.out, quick=self.quick)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 2 after a user's mistake, 130 after Ctrl-C and 143 after SIGTERM.

    Raises:
        SystemExit: after `--help`, with 0; where the words are no command, with 2; where nobody reads what is printed
            any more, as after `| head -1`, with 141.
    """
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # rich was printing, and calls it a failure
            raise SystemExit(_CLOSED_PIPE) from None
        raise
    finally:
        _flush()


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else ""
    choose_renderer()  # before any environment that draws what is seen is made, here or in a worker
    try:
        command = tyro.cli(_commands(arguments), args=arguments, prog="qtransformer", description=_DESCRIPTION)
        _train(command) if isinstance(command, TrainConfig) else command.run()
    except (RunError, DatasetError, ControllerError) as error:
        print(f"qtransformer {name}: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"qtransformer {name}: {stopped}", file=sys.stderr)
        return stopped.exit_status
    except KeyboardInterrupt:
        print(f"qtransformer {name}: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return 0


def _flush() -> None:
    """Ends silently where nobody reads standard output any more; Python would find out at exit, and tell."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(_CLOSED_PIPE) from None


def _commands(arguments: Sequence[str]) -> Any:
    """Returns the union of the subcommands; a `--preset` among the arguments says where training's defaults start."""
    preset = _option(arguments, "--preset")
    defaults = next((values for name, values in PRESETS.items() if name == preset), {})
    train = tyro.conf.arg(constructor=partial(TrainConfig, **defaults))
    return (
        Annotated[Collect, tyro.conf.subcommand("collect")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[TrainConfig, tyro.conf.subcommand("train", description=_TRAIN), train, tyro.conf.OmitArgPrefixes]
        | Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Score, tyro.conf.subcommand("score")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Explain, tyro.conf.subcommand("explain")]
        | Annotated[ReportCommand, tyro.conf.subcommand("report")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[RerunCommand, tyro.conf.subcommand("rerun")]
        | Annotated[ReplayBatch, tyro.conf.subcommand("replay-batch")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Serve, tyro.conf.subcommand("serve")]
        | Annotated[Demo, tyro.conf.subcommand("demo")]
    )


def _train(config: TrainConfig) -> None:
    from qtransformer.ranks import joined
    from qtransformer.training import train

    with joined(config.device):
        print(f"trained: {train(config)}")


def _option(arguments: Sequence[str], flag: str) -> str | None:
    """Returns the value given to `flag`, as `flag value` or `flag=value`."""
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(flag + "="):
            return argument.removeprefix(flag + "=")
    return None


if __name__ == "__main__":
    sys.exit(main())
