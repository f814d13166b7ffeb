"""The step in other formats: ONNX with rounded weights, and torch's own two packages.

Special about this file: how each is judged. `pt2` and `aoti` must decide as the network does, like policy.onnx. The
weights of `fp16` and `int8` are rounded: where a median lies between two bins they choose the other, and all later
tokens with it, so that neither tokens nor actions say what was lost. The network itself does: by its *regret*, how much
less Q it gives to their actions than to its own, in shares of the range of Q over the recorded steps.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qtransformer.deploy.controller import make_session
from qtransformer.deploy.golden import action_values
from qtransformer.deploy.graphs import StepGraph
from qtransformer.deploy.onnx_model import ExportError, Signature
from qtransformer.deploy.self_test import Run, play, replay, token_counts
from qtransformer.policy import GreedyPolicy

FILES = {
    "fp16": "policy.fp16.onnx",
    "int8": "policy.int8.onnx",
    "pt2": "policy.pt2",
    "aoti": "policy.aoti.pt2",
}
MOST_MEAN_REGRET = 0.005  # of the range of Q, on average
MOST_TAIL_REGRET = 0.1  # ... in 99 of 100 recorded steps
_LEAST_RANGE = 1e-6  # of Q in [0, 1]


class NamedStep(nn.Module):
    """A `StepGraph` whose outputs are a dict, since a file holds no classes of ours."""

    def __init__(self, step: StepGraph) -> None:
        super().__init__()
        self.step = step

    def forward(
        self, observation: Mapping[str, Tensor], history_in: Tensor, num_frames_in: Tensor
    ) -> dict[str, Tensor]:
        """Returns the `StepOutputs` by name."""
        return self.step(observation, history_in, num_frames_in)._asdict()


class Source(NamedTuple):
    """What the formats are made of and judged by."""

    policy: GreedyPolicy
    step: StepGraph
    called: Signature
    model: Any
    """policy.onnx, as an onnx.ModelProto."""
    golden: Mapping[str, np.ndarray]
    card: Mapping[str, Any]


def write_format(name: str, source: Source, folder: Path) -> dict[str, Any]:
    """Writes one of `FILES` to `folder`; returns its report.

    Raises:
        ExportError: it disagrees with the network or loses too much, or cannot be made here.
    """
    write = _write_rounded if name in ("fp16", "int8") else _write_exact
    return write(name, source, folder / FILES[name])


def _write_exact(name: str, source: Source, path: Path) -> dict[str, Any]:
    module = {"pt2": write_pt2, "aoti": write_aoti}[name](source.step, source.called, path)
    report = replay(source.card, source.golden, torch_run(module))
    if not report["passed"]:
        raise ExportError(
            f"--formats {name}: torch {torch.__version__} and the network disagree in {report['num_failures']} "
            f"place(s): {'; '.join(report['failures'])}; nothing was written: leave this format out"
        )
    return report


def _write_rounded(name: str, source: Source, path: Path) -> dict[str, Any]:
    if math.isinf(source.policy.support_temperature):
        raise ExportError(
            f"--formats {name}: this policy acts without values, by which alone its loss can be judged; leave this "
            "format out"
        )
    rounded = {"fp16": half_model, "int8": int8_model}[name](source.model)
    path.write_bytes(rounded.SerializeToString(deterministic=True))
    arrays, latency = play(source.card, source.golden, onnx_run(path.read_bytes()))
    report = regret_report(source.policy, source.golden, arrays)
    complaint = _complaint(report["regret"], arrays["ok"])
    if complaint:
        raise ExportError(
            f"--formats {name}: {complaint}; nothing was written: leave this format out, or train a wider network"
        )
    return {**report, "latency_ms": latency}


def _complaint(regret: Mapping[str, Any], is_ok: np.ndarray) -> str | None:
    """Returns what is wrong with a format that loses `regret`; None: it is good enough."""
    if not is_ok.all():
        return f"ok is False at recorded step {int(np.flatnonzero(~is_ok)[0])}"
    if regret["mean"] <= MOST_MEAN_REGRET and regret["p99"] <= MOST_TAIL_REGRET:
        return None
    return (
        f"its actions lose {regret['mean']:.2%} of the range of Q on average and {regret['p99']:.2%} in 1 step of 100, "
        f"at most {MOST_MEAN_REGRET:.2%} and {MOST_TAIL_REGRET:.2%}; most, {regret['worst']:.2%}, at recorded step "
        f"{regret['worst_step']}"
    )


def regret_report(
    policy: GreedyPolicy, golden: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Returns how far the outputs `arrays` lie from the recorded ones, and what the network gives for their actions.

    A regret may be negative: the greedy action is the median of a distribution, not the maximum of Q.
    """
    values, greedy = (action_values(policy, golden, each) for each in (arrays["tokens"], golden["outputs.tokens"]))
    regret = (greedy - values) / max(float(greedy.max() - greedy.min()), _LEAST_RANGE)
    return {
        "steps": len(regret),
        "tokens": token_counts(golden, arrays),
        "largest_action_difference": float(np.abs(golden["outputs.actions"] - arrays["actions"]).max()),
        "largest_q_difference": float(np.abs(arrays["q_max"][:, -1] - values).max()),
        "range_of_q": [float(greedy.min()), float(greedy.max())],
        "regret": {
            "mean": float(regret.mean()),
            "p99": float(np.percentile(regret, 99)),
            "worst": float(regret.max()),
            "worst_step": int(regret.argmax()),
        },
    }


def half_model(model: Any) -> Any:
    """Returns the graph with the weights of its matrix products stored in float16, half the size.

    It computes in float32: onnxruntime widens the weights once, when it loads them. Most CPUs multiply no float16.
    """
    from onnx import TensorProto, helper, numpy_helper

    half, casts = _copy(model), []
    multiplied = {node.input[1] for node in half.graph.node if node.op_type == "MatMul"}
    for each in half.graph.initializer:
        if each.name not in multiplied:
            continue
        name, array = each.name, numpy_helper.to_array(each).astype(np.float16)
        each.CopyFrom(numpy_helper.from_array(array, f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [each.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = list(half.graph.node)
    del half.graph.node[:]
    half.graph.node.extend([*casts, *nodes])
    return half


def int8_model(model: Any) -> Any:
    """Returns the graph with the decoder's weights in 8 bits, and the inputs of its matrix products rounded as it runs.

    The decoder's weights are read again for every action token, so that they take most of the time; what is read once a
    step would lose as much again and gain little. Unsigned, since processors without VNNI add products of signed
    weights in 16 bits, which overflow.

    Raises:
        ExportError: an action is a single token.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = {each.name for each in model.graph.initializer}
    readers = [(node.name, node.input[1]) for node in model.graph.node if node.op_type == "MatMul"]
    uses = Counter(weight for _, weight in readers if weight in weights)
    decoder = [name for name, weight in readers if uses[weight] > 1]
    if not decoder:
        raise ExportError("--formats int8: an action of one token reads every weight once; leave this format out")
    logging.disable(logging.WARNING)  # it asks for a preparation that the export has done
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            kind = QuantType.QUInt8
            quantize_dynamic(_copy(model), path, nodes_to_quantize=decoder, per_channel=True, weight_type=kind)
            return onnx.load(path)
    finally:
        logging.disable(logging.NOTSET)


def write_pt2(step: StepGraph, called: Signature, path: Path) -> Callable[..., Mapping[str, Tensor]]:
    """Writes what `torch.export.load` reads; returns it, loaded."""
    torch.export.save(_program(step, called), path)
    return torch.export.load(path).module()


def write_aoti(step: StepGraph, called: Signature, path: Path) -> Callable[..., Mapping[str, Tensor]]:
    """Compiles the step for this machine to what `torch._inductor.aoti_load_package` reads; returns it, loaded.

    Raises:
        ExportError: there is no C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package, exc

    try:
        aoti_compile_and_package(_program(step, called), package_path=str(path))
    except exc.InductorError as error:
        if not isinstance(error.inner_exception, exc.InvalidCxxCompiler | exc.CppCompileError):
            raise
        reason = str(error.inner_exception).splitlines()[0]
        raise ExportError(f"--formats aoti: needs a C++ compiler ({reason}); install g++, or leave it out") from error
    return aoti_load_package(str(path))


def onnx_run(graph: bytes) -> Run:
    """Returns an ONNX graph as a function of one frame and the history."""
    session = make_session(graph)
    names = [each.name for each in session.get_outputs()]

    def run(frame: Mapping[str, np.ndarray], history: np.ndarray, num_frames: np.ndarray) -> dict[str, np.ndarray]:
        inputs = {name: array[None] for name, array in frame.items()}
        found = session.run(names, {**inputs, "history_in": history, "num_frames_in": num_frames})
        return dict(zip(names, found, strict=True))

    return run


def torch_run(module: Callable[..., Mapping[str, Tensor]]) -> Run:
    """Returns a torch module as a function of one frame and the history."""

    @torch.no_grad()
    def run(frame: Mapping[str, np.ndarray], history: np.ndarray, num_frames: np.ndarray) -> dict[str, np.ndarray]:
        observation = {name: torch.from_numpy(array[None].copy()) for name, array in frame.items()}
        state = {"history_in": torch.from_numpy(history), "num_frames_in": torch.from_numpy(num_frames)}
        return {name: tensor.numpy() for name, tensor in module(observation=observation, **state).items()}

    return run


@torch.no_grad()
def _program(step: StepGraph, called: Signature) -> torch.export.ExportedProgram:
    """Returns the exported program without traces of this machine."""
    program = torch.export.export(NamedStep(step), args=(), kwargs=dict(called.arguments))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names of source files and folders
    return program


def _copy(model: Any) -> Any:
    copied = type(model)()
    copied.CopyFrom(model)
    return copied
