"""The worker that runs our side of the speed benchmarks: real updates on real batches, and the machine's own limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from harness import cpu_milliseconds_each, cpu_seconds, matrix_rate, read_seconds, serve

from qtransformer.batch import ActionSpec, Batch, DatasetSpec, ObservationSpec
from qtransformer.config import LearningConfig, ModelConfig, TokenConfig, TrainConfig
from qtransformer.normalization import ReturnScale
from qtransformer.plan import count_flops
from qtransformer.policy import GreedyPolicy, build_policy
from qtransformer.q_learning import QTransformerLearner

Sizes = dict[str, int]  # dimensions, bins, window, width, layers, action_layers, heads, state_size, transitions


class Ours:
    """Learners and policies by name; each is made once and asked many times."""

    def __init__(self) -> None:
        self._learners: dict[str, tuple[QTransformerLearner, Batch]] = {}
        self._actors: dict[str, Any] = {}

    def make_learner(
        self, name: str, sizes: Sizes, dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> dict[str, Any]:
        """Makes a learner and a batch; returns what they are made of and the FLOPs of one update."""
        learner, batch = make_learner(sizes, dtype), make_batch(sizes)
        assert int(batch.is_valid[:, : sizes["window"]].sum()) == sizes["transitions"]
        flops = count_flops(lambda: learner.update(batch))
        self._learners[name] = learner, batch
        return {"parameters": num_parameters(learner.policy), "flops": flops}

    def update(self, name: str, repeats: int) -> float:
        """Returns the CPU seconds of one update, the mean of `repeats`."""
        learner, batch = self._learners[name]
        return cpu_seconds(lambda: learner.update(batch), repeats)

    def make_actors(self, name: str, sizes: Sizes, bundle: str) -> dict[str, Any]:
        """Makes the eager policy, exports it to the folder `bundle` and loads that; returns their sizes.

        They act under "NAME: eager", "NAME: exported" (the controller) and "NAME: session" (its graph alone).
        """
        from qtransformer.deploy.controller import Controller, make_session
        from qtransformer.deploy.export import Samples, export_bundle

        policy, spec = make_policy(sizes).eval(), make_spec(sizes)
        frames = _observations(4, sizes["window"], sizes["state_size"])
        num_frames = np.full(4, sizes["window"])
        samples = Samples(frames, num_frames)
        export_bundle(policy, spec=spec, samples=samples, card={}, out=Path(bundle))
        session = make_session(Path(bundle, "policy.onnx").read_bytes())
        controller = Controller(bundle, session=session)
        controller.reset()
        inputs = {key: torch.from_numpy(array[:1]) for key, array in frames.items()}
        newest = {key: array[0, -1] for key, array in frames.items()}
        shapes = {each["name"]: each["shape"] for each in controller.card["inputs"]}
        state = {
            "history_in": np.zeros(shapes["history_in"], np.float32),
            "num_frames_in": np.full(1, sizes["window"] - 1),
        }
        called = {**{key: array[None] for key, array in newest.items()}, **state}

        @torch.inference_mode()
        def act_eagerly() -> object:
            return policy(inputs, torch.from_numpy(num_frames[:1]))

        self._actors[f"{name}: eager"] = act_eagerly
        self._actors[f"{name}: exported"] = lambda: controller.step(newest)
        self._actors[f"{name}: session"] = lambda: session.run(None, called)
        for _ in range(sizes["window"]):  # from here on the history is full
            controller.step(newest)
        regions, order = weights_read(policy)
        return {"parameters": num_parameters(policy), "regions": regions, "order": order}

    def act(self, name: str, repeats: int) -> list[float]:
        """Returns the CPU milliseconds of each of `repeats` greedy actions."""
        return cpu_milliseconds_each(self._actors[name], repeats)


def make_spec(sizes: Sizes) -> DatasetSpec:
    """Returns one state vector, and actions in [-1, 1]."""
    state = ObservationSpec("state", (sizes["state_size"],), "float32")
    return DatasetSpec((state,), ActionSpec((-1.0,) * sizes["dimensions"], (1.0,) * sizes["dimensions"]))


def make_config(sizes: Sizes) -> TrainConfig:
    """Returns the default settings of a run at these sizes."""
    model = ModelConfig(
        window=sizes["window"],
        width=sizes["width"],
        num_layers=sizes["layers"],
        num_action_layers=sizes["action_layers"],
        num_heads=sizes["heads"],
    )
    return TrainConfig(Path("log"), Path("run"), tokens=TokenConfig(num_bins=sizes["bins"]), model=model)


def make_policy(sizes: Sizes) -> GreedyPolicy:
    """Returns an untrained policy."""
    torch.manual_seed(0)
    statistics = {"state": {"mean": [0.0] * sizes["state_size"], "std": [1.0] * sizes["state_size"]}}
    return build_policy(make_config(sizes), make_spec(sizes), statistics)


def make_learner(sizes: Sizes, dtype: Literal["float32", "bfloat16"] = "float32") -> QTransformerLearner:
    """Returns a learner with the default losses, its matrix products in `dtype`."""
    config = replace(make_config(sizes), learning=LearningConfig(precision=dtype))
    noise = [0.1] * sizes["dimensions"]
    return QTransformerLearner(make_policy(sizes), config, ReturnScale(0.0, 1.0), noise)


def make_batch(sizes: Sizes) -> Batch:
    """Returns random segments with `transitions` real steps in all; the end of the last segment is padding.

    Steps that are only looked ahead to, where targets take several rewards, come on top.
    """
    generator = np.random.default_rng(0)
    T, look_ahead = sizes["window"], make_config(sizes).learning.environment_steps - 1
    B = -(-sizes["transitions"] // T)
    is_valid = (np.arange(B * T) < sizes["transitions"]).reshape(B, T)
    is_valid = np.concatenate([is_valid, np.repeat(is_valid[:, -1:], look_ahead, axis=1)], axis=1)
    rewards = (generator.random(is_valid.shape) < 0.1) & is_valid
    actions = generator.uniform(-1, 1, (*is_valid.shape, sizes["dimensions"])) * is_valid[..., None]
    return Batch(
        observations=_observations(B, T + look_ahead + 1, sizes["state_size"]),
        actions=actions.astype(np.float32),
        rewards=rewards.astype(np.float32),
        terminations=rewards,
        has_successor=is_valid,
        monte_carlo_returns=(generator.random(is_valid.shape) * is_valid).astype(np.float32),
        is_success=rewards.any(axis=1),
        is_relabelled=np.zeros(B, bool),
        is_valid=is_valid,
        frames=np.tile(np.arange(T + look_ahead + 1), (B, 1)),
    )


def weights_read(policy: GreedyPolicy) -> tuple[list[int], list[int]]:
    """Returns the weights that one greedy action must read: the bytes of several regions, and the order of reading.

    Encoder and trunk run once, on all frames together. The decoder runs once for each action token, and each token has
    heads of its own. Of the embeddings one row is read, which is left out.
    """
    model = policy.model
    N = model.num_action_tokens
    once = num_parameters(model.encoder) + num_parameters(model.trunk)
    decoder = num_parameters(model.decoder) + num_parameters(model.norm)
    heads = (num_parameters(model.q_head) + num_parameters(model.density_head)) // N
    order = [0] + [region for token in range(N) for region in (1, 2 + token)]
    return [4 * once, 4 * decoder, *[4 * heads] * N], order


def num_parameters(module: torch.nn.Module) -> int:
    """Returns how many numbers are learned."""
    return sum(each.numel() for each in module.parameters())


def _observations(num_segments: int, num_frames: int, size: int) -> dict[str, np.ndarray]:
    shape = num_segments, num_frames, size
    return {"state": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ours = Ours()
    handlers = {name: getattr(ours, name) for name in ("make_learner", "update", "make_actors", "act")}
    serve({**handlers, "matrix_rate": matrix_rate, "read_seconds": read_seconds})
