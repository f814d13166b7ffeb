"""The C++ controller in a process, driven by the lines that cpp_driver.cpp reads, beside the Python one."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
from controller_fixtures import CARD, GRAPH, write_bundle, write_sums

from qtransformer.deploy import controller as module
from qtransformer.language import encoded

SOURCES = Path(module.__file__).with_name("cpp")
EXAMPLE = SOURCES / "example.cpp"
DRIVER = Path(__file__).with_name("cpp_driver.cpp")
LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"), None)
COMPILER = shutil.which("g++") or shutil.which("c++")
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{SOURCES}")
WHY_NOT = "needs a C++ compiler (g++ or c++), and libonnxruntime.so in onnxruntime's wheel"
INSTRUCTIONS = ("put the red can near the blue cube", "Pick up the cup, 2 times", "größer")
CAN_BUILD = COMPILER is not None and LIBRARY is not None


def compiled(source: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(COMPILER), *FLAGS, *flags, str(source), "-o", str(out), "-ldl"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def built(source: Path, out: Path) -> Path:
    result = compiled(source, out)
    assert result.returncode == 0, result.stderr
    return out


def built_example(sources: Path, out: Path) -> Path:
    """Builds it with CMake where it is there, as an integrator does; with the compiler alone otherwise."""
    if shutil.which("cmake") is None:
        return built(sources / "example.cpp", out / "example")
    root = f"-DONNXRUNTIME_ROOT={Path(str(LIBRARY)).parent}"
    for command in (
        ["cmake", "-S", str(sources), "-B", str(out), root, "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-Werror"],
        ["cmake", "--build", str(out)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return out / "example"


@functools.cache
def built_once(source: Path) -> Path:
    """Returns the program of DRIVER or of the example, built once for all tests of this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return built(source, folder / "driver") if source == DRIVER else built_example(source.parent, folder)


def run_example(example: Path, folder: Path, *flags: str) -> tuple[int, list[dict[str, Any]], str]:
    command = [str(example), str(folder), "--onnxruntime", str(LIBRARY), *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines()], result.stderr


@dataclass
class Answer:
    """What a step came to."""

    state: str
    reason: str
    action: list[float] | None
    allocations: int = 0
    """Calls of operator new in the step; -1 for Python."""
    message: str = ""


@dataclass
class Cpp:
    """Collects commands, then runs all of them in one process."""

    driver: Path
    folder: Path
    limits: Mapping[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def clock(self, now: float) -> None:
        self.commands.append(f"clock {now!r}")

    def reset(self, instruction: str | None = None, sent: Any = None) -> None:
        numbers = [] if sent is None else [float(each).hex() for each in np.asarray(sent, np.float32)]
        self.commands.append(
            " ".join(["reset", "-" if instruction is None else digits(instruction.encode()), *numbers])
        )

    def step(self, observation: Mapping[str, Any], timestamp: Any = None) -> None:
        times = timestamp if isinstance(timestamp, Mapping) else dict.fromkeys(observation, timestamp)
        self.commands.append(f"step - {len(observation)}")
        for name, value in observation.items():
            self.commands.append(f"{digits(name.encode())} {reading(value, times.get(name))}")

    def run(self) -> list[str]:
        """Returns the printed lines, one a command other than `clock`."""
        limits = json.dumps(self.limits) if self.limits else ""
        result = subprocess.run(
            [str(self.driver), str(self.folder), str(LIBRARY), limits],
            input="".join(line + "\n" for line in self.commands),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    def answers(self) -> tuple[list[Answer], dict[str, int]]:
        """Returns what all steps came to, and the counters."""
        self.commands.append("counters")
        *lines, counters = self.run()
        words = counters.split()
        steps = [answer(line) for line in lines if "\t" in line]
        return steps, dict(zip(words[::2], map(int, words[1::2]), strict=True))


class Python:
    """The same with controller.py, and answers at once."""

    def __init__(self, folder: Path, limits: Mapping[str, Any]) -> None:
        self.now = 100.0
        self.controller = module.Controller(folder, limits=limits, clock=lambda: self.now)
        self.steps: list[Answer] = []

    def clock(self, now: float) -> None:
        self.now = now

    def reset(self, instruction: str | None = None, sent: Any = None) -> None:
        self.controller.reset(instruction, sent)

    def step(self, observation: Mapping[str, Any], timestamp: Any = None) -> None:
        action = self.controller.step(observation, timestamp)
        reason = self.controller.log[-1].reason or "accepted"
        told = None if action is None else [float(each) for each in action]
        self.steps.append(Answer(self.controller.state, reason, told, -1))


def answer(line: str) -> Answer:
    head, message = line.split("\t")
    state, reason, allocations, *action = head.split(" ")
    numbers = [float.fromhex(each) for each in action] if action else None
    return Answer(state, reason, numbers, int(allocations), message)


def reading(value: Any, taken_at: float | None) -> str:
    """Returns dtype, bytes, time and shape of a value."""
    time = "-" if taken_at is None else repr(float(taken_at))
    if isinstance(value, str):
        return f"str {digits(value.encode())} {time}"
    array = np.asarray(value)
    return " ".join([str(array.dtype), digits(array.tobytes()), time, *map(str, array.shape)])


@functools.lru_cache(maxsize=4096)
def digits(data: bytes) -> str:
    return data.hex() or "-"


def write_worded(folder: Path, vectors: np.ndarray | None = None) -> Path:
    """A bundle whose goal are words; their mean is added to the action. `vectors` are those of a language model."""
    size = 128 if vectors is None else vectors.shape[1]
    folder.mkdir(exist_ok=True)
    goal = {**CARD["observations"][1], "kind": "text", "shape": [], "dtype": "str"}
    inputs = [{**each, "shape": [1, size]} if each["name"] == "goal" else each for each in CARD["inputs"]]
    card = {"observations": [CARD["observations"][0], goal], "inputs": inputs, "instructions": list(INSTRUCTIONS)}
    if vectors is not None:
        card["language"] = {"fingerprint": "ab", "vectors": [encoded(each) for each in vectors]}
    write_bundle(folder, **card)
    text = GRAPH.replace("float[1,1] goal", f"float[1,{size}] goal")
    told = "scaled = Mul(mean, ten)\n bias = ReduceMean<keepdims = 0>(goal)\n actions = Add(scaled, bias)"
    return write_graph(folder, text.replace("actions = Mul(mean, ten)", told))


def write_seen(folder: Path) -> Path:
    """A bundle that sees: `goal` are pictures of 2 x 4 pixels, whose mean, a byte, is added to the action."""
    picture = {**CARD["observations"][1], "kind": "image", "shape": [2, 4, 3], "dtype": "uint8"}
    inputs = [
        {**each, "dtype": "uint8", "shape": [1, 2, 4, 3]} if each["name"] == "goal" else each for each in CARD["inputs"]
    ]
    write_bundle(folder, observations=[CARD["observations"][0], picture], inputs=inputs)
    text = GRAPH.replace("float[1,1] goal", "uint8[1,2,4,3] goal").replace(
        "ReduceMax<keepdims = 0>(goal)", "Neg(light)"
    )
    seen = "scaled = Mul(mean, ten)\n numbers = Cast<to = 1>(goal)\n light = ReduceMean<keepdims = 0>(numbers)\n"
    return write_graph(folder, text.replace("actions = Mul(mean, ten)", seen + " actions = Add(scaled, light)"))


def write_graph(folder: Path, text: str) -> Path:
    (folder / "policy.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return write_sums(folder)
