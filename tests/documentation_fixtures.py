"""The fenced blocks of a page: taken apart, looked at without running them, and run one after another.

    ```bash                     commands, run in order     ```text         output, diagrams: nothing to run
    ```bash no-run: the reason  looked at alone            ```text output  was printed by the blocks before
    ```python                   executed                   ```json         must parse
    ```python no-run: reason    compiled, imports looked up    ```cpp      compiled by test_cpp_example.py

A python block whose first line is `# name.py` is a file that the commands after it import. A command whose comment says
`exit code 2` must end with it. In the text, a command between backticks may be cut short: what it names is looked up.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import tyro
from serve_fixtures import serving

import qtransformer_envs  # noqa: F401 - registers its ids before a page's own are taken back
from qtransformer import cli, diary

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"bash", "python", "text", "json", "cpp"}
COMMANDS = set(re.findall(r'subcommand\("([\w-]+)"', Path(cli.__file__).read_text()))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What the run of a block changes, so that all pages take less than 100 s: these flags are added or replaced, ...
SMALL = {
    "collect": {"--episodes": "12", "--num-workers": "1"},
    "train": {"--steps": "4"},
    "evaluate": {"--episodes": "2"},
    "compare": {"--episodes": "2"},
    "run": {"--episodes": "1", "--rate": "100"},
}
NUM_SAMPLES = 16  # logged windows that training keeps, on which export checks parity; 512 take 20 s to export
# ... and these replaced where a command has them.
SMALLER = {"--evaluate-every": "2", "--evaluate-episodes": "1", "--video-episodes": "1", "--checkpoint-every": "2"}
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)\n(?P<text>(?:.*\n)*?)(?P=indent)```$", re.MULTILINE)
_INFO = re.compile(r"(?P<language>\w+)(?: (?P<mark>no-run: .+|output))?")
_INLINE = re.compile(r"(?<!`)`([^`]*[^`\s][^`]*)`(?!`)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_FILE = re.compile(r"# (\w+\.py)\n")
_SERVED = "8000"  # the port that pages name
_EXPORTED: dict[tuple[str, ...], Path] = {}  # bundles by the command that made them, for pages that begin with the same


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    mark: str
    """Empty, `output` or `no-run: the reason`."""
    text: str

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page in order; asserts that each says what it is."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        info = _INFO.fullmatch(match["info"])
        assert info, f"{page.name}:{line}: fence {match['info']!r} must be a language, and `no-run: why` or `output`"
        assert info["language"] in LANGUAGES, f"{page.name}:{line}: {info['language']!r} must be one of {LANGUAGES}"
        mark, is_text = info["mark"] or "", info["language"] == "text"
        assert mark != "output" if not is_text else not mark.startswith("no-run"), f"{page.name}:{line}: {mark}"
        dedented = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        found.append(Block(page, line, info["language"], mark, dedented))
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE)), f"{page.name}: a fence is left open"
    return found


def indented_blocks(page: Path) -> list[str]:
    """Returns the lines that GitHub shows as code though no fence says what it is."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
    found, before = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        is_in_list = re.match(r"\s*([-*]|\d+\.) | ", before)
        if line.startswith("    ") and line.strip() and not is_in_list:
            found.append(f"{page.name}:{number}: {line}")
        before = line if line.strip() else before
    return found


@dataclass(frozen=True)
class Command:
    """One line of a bash block."""

    words: list[str]
    comment: str
    where: str

    @property
    def arguments(self) -> list[str] | None:
        """Returns the arguments of `qtransformer`, those of train.py included; None for another program."""
        if self.words[:2] == ["python", "train.py"]:
            return ["train", *self.words[2:]]
        return self.words[1:] if self.words[0] == "qtransformer" else None

    @property
    def status(self) -> int:
        """Returns the exit status that the page promises."""
        return 2 if "exit code 2" in self.comment else 0


def commands_of(block: Block) -> Iterator[Command]:
    """Yields the commands of a bash block."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    for line in filter(str.strip, joined.splitlines()):
        words = shlex.split(line, comments=True)
        if words:
            yield Command(words, line.partition(" #")[2], f"{block.where}: {line.strip()}")


def inline_commands(page: Path) -> Iterator[Command]:
    """Yields what stands between backticks in the text of a page and is a command for sure."""
    for span in _INLINE.findall(_FENCE.sub("", page.read_text())):
        words = span.split()
        name, has_flags = words[0], any(map(_FLAG.match, words[1:2]))
        is_ours = (ROOT / "benchmarks" / name).is_file() and has_flags
        if name in COMMANDS and has_flags:
            words = ["qtransformer", *words]
        elif is_ours or re.fullmatch(r"benchmarks/\w+\.py", name):
            words = ["python", f"benchmarks/{Path(name).name}", *words[1:]]
        if words[0] in ("qtransformer", "python", "make") and words[1:]:
            yield Command(words, "", f"{page.name}: `{' '.join(span.split())}`")


def look_at_inline(command: Command) -> None:
    """Asserts of a command that may be cut short that its program and the flags that it shows exist."""
    arguments = command.arguments
    if arguments is None:
        look_at(command)
        return
    assert arguments[0] in COMMANDS, f"{command.where}: the commands are {sorted(COMMANDS)}"
    unknown = set(_FLAG.findall(" ".join(arguments))) - flags_of(arguments[0])
    assert not unknown, f"{command.where}: {arguments[0]} knows no {sorted(unknown)}"


@cache
def flags_of(name: str) -> set[str]:
    """Returns the flags of a command, as its `--help` shows them."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([name, "--help"])
    return set(_FLAG.findall(said.getvalue()))


def parse(command: Command) -> Any:
    """Returns the command's dataclass; fails where a flag or subcommand does not exist. Runs nothing."""
    arguments, said = command.arguments, io.StringIO()
    assert arguments is not None
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(cli._commands(arguments), args=arguments, prog="qtransformer")
    except SystemExit as ended:
        raise AssertionError(f"{command.where}: does not parse\n{said.getvalue()}") from ended


def look_at(command: Command) -> None:
    """Asserts of a command that is not run that everything it names exists."""
    words = [word for word in command.words if "=" not in word or word.startswith("-")]
    assert words, command.where
    if command.arguments is not None:
        parse(command)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{command.where}: the Makefile has {targets}"
    elif words[0] == "python":
        _look_at_script(command, words[1], words[2:])
    elif words[0] == "pip":
        extras = [name for word in words for each in re.findall(r"\[(.*)\]", word) for name in each.split(",")]
        assert set(extras) <= set(EXTRAS), f"{command.where}: the extras are {sorted(EXTRAS)}"
    else:
        known = {
            ".",
            "apt-get",
            "cd",
            "cmake",
            "cp",
            "ctest",
            "git",
            "nvidia-smi",
            "sha256sum",
            "sudo",
            "taskset",
            "torchrun",
        }
        assert words[0] in known, f"{command.where}: nothing is known of {words[0]!r}"


def _look_at_script(command: Command, script: str, arguments: list[str]) -> None:
    if script == "-m":
        assert importlib.util.find_spec(arguments[0]), command.where
        return
    in_bundle = ROOT / "qtransformer" / "deploy" / Path(script).name
    path = in_bundle if script.startswith("policy/") else ROOT / script
    assert path.is_file(), f"{command.where}: there is no {script}"
    sources = path.read_text() + "".join(each.read_text() for each in path.parent.glob("harness.py"))
    for flag in (word for word in arguments if word.startswith("--")):
        name = flag.partition("=")[0].removeprefix("--")
        is_there = f'"--{name}"' in sources or re.search(rf"^ +{name.replace('-', '_')}: ", sources, re.MULTILINE)
        assert is_there, f"{command.where}: {script} knows no {flag}"


def look_at_python(block: Block) -> None:
    """Asserts of a python block that is not run that it compiles and that what it imports of ours exists."""
    tree = ast.parse(block.text, block.where)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qtransformer"):
            module = importlib.import_module(str(node.module))
            missing = [each.name for each in node.names if not hasattr(module, each.name)]
            assert not missing, f"{block.where}: {node.module} has no {missing}"


def shrunk(arguments: list[str]) -> list[str]:
    """Returns the arguments with the small numbers of `SMALL` and `SMALLER`; the last of two equal flags counts."""
    changes = {**SMALL.get(arguments[0], {}), **{flag: SMALLER[flag] for flag in arguments if flag in SMALLER}}
    return [*arguments, *(word for change in changes.items() for word in change)]


class PageRun:
    """Runs the blocks of a page in order, in the current folder, which must be empty."""

    def __init__(self) -> None:
        self.output = ""
        self._names: dict[str, Any] = {}
        self._port: int | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PageRun:
        modules, registry, kept = set(sys.modules), dict(gymnasium.registry), diary._NUM_SAMPLES
        diary._NUM_SAMPLES = NUM_SAMPLES
        self._stack.callback(setattr, diary, "_NUM_SAMPLES", kept)
        self._stack.callback(lambda: [sys.modules.pop(name) for name in set(sys.modules) - modules if _is_here(name)])
        self._stack.callback(lambda: (gymnasium.registry.clear(), gymnasium.registry.update(registry)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, block: Block) -> None:
        """Runs or looks at a block."""
        if block.mark.startswith("no-run"):
            look_at_python(block) if block.language == "python" else [look_at(each) for each in commands_of(block)]
        elif block.language == "python":
            self._python(block)
        elif block.language == "bash":
            for command in commands_of(block):
                self._command(command)
        elif block.language == "json":
            json.loads(block.text)
        elif block.mark == "output":
            self._compare(block)

    def _python(self, block: Block) -> None:
        text = block.text.replace(_SERVED, str(self._port)) if self._port else block.text
        if name := _FILE.match(text):
            Path(name[1]).write_text(text)
            return
        with self._listening():
            exec(compile(text, block.where, "exec"), self._names)

    def _command(self, command: Command) -> None:
        arguments = command.arguments
        if arguments is None:
            assert command.words[0] == "python", f"{command.where}: mark the block with `no-run: why`"
            self._process(command, [sys.executable, *command.words[1:]])
            return
        parse(command)
        if arguments[0] == "serve":
            rest = [word for word in arguments[2:] if word not in ("--port", _SERVED)]
            _, self._port = self._stack.enter_context(serving(Path(arguments[1]), *rest))
        elif arguments[0] == "verify":  # it refuses to run where torch is loaded
            program = f"import sys; from qtransformer.cli import main; sys.exit(main({arguments}))"
            self._process(command, [sys.executable, "-c", program])
        elif arguments[0] == "export" and tuple(arguments) in _EXPORTED:
            shutil.copytree(_EXPORTED[tuple(arguments)], parse(command).out)
        else:
            with self._listening():
                status = cli.main(shrunk(arguments))
            if arguments[0] == "export" and not status:
                kept = _EXPORTED[tuple(arguments)] = Path(tempfile.mkdtemp(dir=Path.cwd().parent)) / "bundle"
                shutil.copytree(parse(command).out, kept)
            assert status == command.status, f"{command.where}: ended with {status}\n{self.output[-3000:]}"

    def _process(self, command: Command, program: list[str]) -> None:
        path = os.pathsep.join(str(ROOT / each) for each in ("", "envs", "datasets"))
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
        self.output += done.stdout + done.stderr
        assert done.returncode == command.status, f"{command.where}\n{done.stdout}{done.stderr}"

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                yield
        finally:
            self.output += said.getvalue()

    def _compare(self, block: Block) -> None:
        """Asserts that every line was printed; `...` stands for anything."""
        printed = " ".join(self.output.split())
        for line in filter(str.strip, block.text.splitlines()):
            pattern = ".*?".join(re.escape(" ".join(part.split())) for part in line.split("..."))
            assert re.search(pattern, printed), f"{block.where}: was never printed: {line}\n{self.output[-3000:]}"


def _is_here(name: str) -> bool:
    file = getattr(sys.modules.get(name), "__file__", None)
    return bool(file) and Path(str(file)).parent == Path.cwd()
