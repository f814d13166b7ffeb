"""The worker that runs PyPI's `q-transformer` 0.5.0 in its own environment: training steps and greedy actions.

The training step is its own loop, `QLearner.forward`, on a batch in memory. Two things are set right from outside, or
it would not run at all: without text its learner still hands a text embedding to the model, which refuses it; and
torchvision's operators, which it imports and does not use, are missing in a CUDA build beside a CPU torch.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from harness import cpu_milliseconds_each, cpu_seconds, serve

_LIBRARY = torch.library.Library("torchvision", "DEF")
_LIBRARY.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
_LIBRARY.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")

from q_transformer import QLearner, QRoboticTransformer  # noqa: E402  # pyright: ignore[reportMissingImports]

# "default": what a caller gets who names nothing but sizes. "lean": the least its options allow.
CONFIGURATIONS: dict[str, dict[str, int]] = {
    "default": {},
    "lean": {"token_learner_num_output_tokens": 1, "num_residual_streams": 1},
}


class StateEncoder(torch.nn.Module):
    """A state vector, given as an image of one pixel, to a feature map of one pixel: stands for the vision network."""

    cond_hidden_dims = ()

    def __init__(self, state_size: int, width: int) -> None:
        super().__init__()
        self.embed_dim = width
        layers = torch.nn.Linear(state_size, width), torch.nn.GELU(), torch.nn.Linear(width, width)
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, images: torch.Tensor, **_: Any) -> torch.Tensor:
        """Returns (frames, width, 1, 1)."""
        return self.layers(images.flatten(1))[..., None, None]


class Model(QRoboticTransformer):
    """Ignores the text embedding that the learner always passes."""

    def forward(self, video: torch.Tensor, *, text_embeds: object = None, actions: Any = None) -> torch.Tensor:
        """Returns the Q-logits of all bins."""
        return super().forward(video, actions=actions)


class Peer:
    """The model, its learner, one batch in memory and one state to act on."""

    def __init__(self, configuration: str, sizes: argparse.Namespace) -> None:
        torch.manual_seed(0)
        head = {"attn_heads": sizes.heads, "attn_dim_head": sizes.width // sizes.heads, "attn_depth": 2}
        self.model = Model(
            vit=StateEncoder(sizes.state_size, sizes.width),
            num_actions=sizes.dimensions,
            action_bins=sizes.bins,
            depth=2,
            heads=sizes.heads,
            dim_head=sizes.width // sizes.heads,
            condition_on_text=False,
            q_head_attn_kwargs=head,
            **CONFIGURATIONS[configuration],
        )
        batch = _batch(sizes)
        self.state = batch[1][:1]
        self.learner = QLearner(
            self.model,
            dataset=torch.utils.data.TensorDataset(batch[2]),
            batch_size=sizes.transitions,
            num_train_steps=0,
            learning_rate=3e-4,
            log_every=1_000_000,
            checkpoint_every=1_000_000,
            checkpoint_folder=tempfile.mkdtemp(),
            accelerator_kwargs={"cpu": True, "mixed_precision": {"float32": "no", "bfloat16": "bf16"}[sizes.dtype]},
        )
        self.learner.dataloader = [batch]  # drawn already, like ours

    def describe(self) -> dict[str, Any]:
        """Returns the number of parameters."""
        return {"parameters": sum(each.numel() for each in self.model.parameters())}

    def update(self, repeats: int) -> float:
        """Returns the CPU seconds of one training step, the mean of `repeats`."""
        self.model.train()
        self.learner.num_train_steps = int(self.learner.step) + repeats
        return cpu_seconds(self.learner) / repeats

    def act(self, repeats: int) -> list[float]:
        """Returns the CPU milliseconds of each of `repeats` greedy actions."""
        self.model.eval()
        return cpu_milliseconds_each(self._act, repeats)

    @torch.inference_mode()
    def _act(self) -> torch.Tensor:
        encoded = self.model.encode_state(self.state)
        return self.model.q_head.get_optimal_actions(encoded, prob_random_action=0.0)


def _batch(sizes: argparse.Namespace) -> tuple[torch.Tensor, ...]:
    """Returns text embeddings, states, actions, next states, next text embeddings, rewards and ends."""
    generator = torch.Generator().manual_seed(0)
    B, shape = sizes.transitions, (sizes.transitions, sizes.state_size, sizes.window, 1, 1)
    states, next_states = (torch.randn(shape, generator=generator) for _ in range(2))
    actions = torch.randint(0, sizes.bins, (B, sizes.dimensions), generator=generator)
    rewards = (torch.rand(B, generator=generator) < 0.1).float()
    return torch.zeros(B, 1, 1), states, actions, next_states, torch.zeros(B, 1), rewards, rewards > 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configuration", choices=CONFIGURATIONS)
    for name in ("dimensions", "bins", "window", "width", "heads", "state-size", "transitions"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = _parse()
    peer = Peer(arguments.configuration, arguments)
    serve({"describe": peer.describe, "update": peer.update, "act": peer.act})
