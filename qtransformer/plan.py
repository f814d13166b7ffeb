"""What a training costs, on paper: operations, memory, bytes read, hours. Numbers in, numbers out.

Counted are the matrix products and the attention of one update of the Q-Transformer: forward and back through the
policy, forward through the target network on the window and, up to the first action token, on the window after it.
Normalisations, activations and the optimizer are left out: they cost memory traffic, which belongs into `utilisation`.
It must not load torch: only `count_flops`, which measures what the rest predicts, does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from qtransformer.config import RunError

_BYTES = 4  # of a float32: weights, moments, gradients and losses, whatever the precision of the products
_KEPT_WIDTHS = (
    17  # of a token of a block for the way back: 4 inputs, 3 of attention, its result twice, 2 x 4 of the MLP
)
_KEPT_BINS = 6  # of an action token: values, density, and what their losses keep
_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


@dataclass(frozen=True)
class Sizes:
    """What a model is made of, as the flags of `train` name it; `frame_flops` encode a frame's images, forward."""

    width: int
    num_layers: int
    num_action_layers: int
    window: int
    dimensions: int
    num_bins: int
    state_size: int
    frame_flops: float = 0.0
    environment_steps: int = 5
    image_tokens: int = 0

    @property
    def observation_tokens(self) -> int:
        """Tokens of a step in the trunk: those of images, and one for all numbers."""
        return self.image_tokens + 1

    @property
    def decoded_tokens(self) -> int:
        """Tokens of a step in the decoder: the same, and the action before its last token."""
        return self.image_tokens + self.dimensions

    @property
    def num_frames(self) -> int:
        """Observations of a segment that are looked at: the window, and what the one after it does not share."""
        return self.window + min(self.window, self.environment_steps)

    @property
    def parameters(self) -> int:
        """Numbers that are learned, those of an image encoder left out."""
        W, N, K = self.width, self.dimensions, self.num_bins
        blocks = (self.num_layers + self.num_action_layers) * (12 * W**2 + 13 * W)
        encoder = self.state_size * 2 * W + 2 * W + 2 * W * W + W
        embeddings = (self.window + self.observation_tokens + (N - 1) * K + N - 1) * W
        return blocks + encoder + embeddings + 2 * W + 2 * N * (W * K + K)

    @property
    def kept_numbers(self) -> int:
        """Numbers of a segment that the way back needs."""
        tokens = self.observation_tokens * self.num_layers + self.decoded_tokens * self.num_action_layers
        encoder = self.state_size + 4 * self.width
        a_step = tokens * _KEPT_WIDTHS * self.width + self.dimensions * _KEPT_BINS * self.num_bins + encoder
        return self.window * a_step


def update_flops(sizes: Sizes, segments: int, is_recomputed: bool = False) -> float:
    """Returns the floating-point operations of an update on so many segments; a product counts 2 an element.

    On the way back a matrix product costs two more, but for the first layer's one; attention two and a half.
    """
    T, N, W, K = sizes.window, sizes.dimensions, sizes.width, sizes.num_bins
    first, second = 4 * sizes.state_size * W * T, 4 * W * W * T  # of the encoder
    heads = 4 * N * W * K * T
    trunk = [sizes.num_layers * each for each in _blocks(sizes.observation_tokens * T, 1, W)]
    decoder = [sizes.num_action_layers * each for each in _blocks(sizes.decoded_tokens, T, W)]
    start = sizes.num_action_layers * sum(_blocks(sizes.observation_tokens, T, W)) + heads / N
    products, attention = trunk[0] + decoder[0], trunk[1] + decoder[1]
    images = sizes.frame_flops * T
    forward = first + second + heads + products + attention + images
    back = first + 2 * (second + heads + products + images) + 2.5 * attention
    targets = forward + (first + second + images) * (sizes.num_frames / T - 1) + sum(trunk) + start
    again = 2 / 3 * products + attention if is_recomputed else 0.0  # without the last third: nothing needs it
    return segments * (forward + back + targets + again)


def width_for(parameters: float, sizes: Sizes) -> int:
    """Returns the least width, a multiple of 64, with as many parameters."""
    width = 64
    while replace(sizes, width=width).parameters < parameters:
        width += 64
    return width


def count_flops(work: Callable[[], object]) -> int:
    """Returns the operations of the matrix products and attention in one call of `work`, as torch counts them."""
    import torch
    from torch.utils import flop_counter

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's own table knows those of GPUs only
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward_flops(queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
        return flop_counter.sdpa_flop_count(queries, keys, values)

    def backward_flops(gradients: Any, queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
        return flop_counter.sdpa_backward_flop_count(gradients, queries, keys, values)

    mapping = {attention: forward_flops, backward: backward_flops}
    with flop_counter.FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Plan:
    """Tell what a training would cost: operations, memory, bytes read and hours, on hardware that you describe."""

    params: str = "60M"
    """Parameters that the model is to have, an image encoder's left out: its width follows."""
    episodes: str = "300k"
    """Episodes of the log."""
    episode_steps: int = 100
    """Steps of an episode."""
    passes: float = 1.0
    """How often each step is seen."""
    window: int = 6
    """As `train --window`."""
    environment_steps: int = 5
    """As `train --environment-steps`."""
    num_layers: int = 8
    """As `train --num-layers`."""
    num_action_layers: int = 2
    """As `train --num-action-layers`."""
    num_bins: int = 256
    """As `train --num-bins`."""
    dimensions: int = 8
    """Action dimensions, one token each."""
    state_size: int = 64
    """Numbers of an observation, instructions' vectors among them."""
    frame_bytes: str = "0"
    """Bytes of an observation's images, 49k for 128 x 128 pixels."""
    frame_flops: str = "0"
    """Operations that encode them, forward; 1G is about EfficientNet-B3 at 128 x 128."""
    image_tokens: int = 0
    """As `train --image-tokens`, for all cameras together: 8 for one."""
    batch_size: int = 1024
    """As `train --batch-size`."""
    gradient_accumulation_steps: int = 1
    """As `train --gradient-accumulation-steps`."""
    activation_checkpointing: bool = False
    """As `train --activation-checkpointing`."""
    num_devices: int = 1
    """Ranks that share each batch."""
    device_flops: str = "400T"
    """Operations a second of one device in matrix products, measured rather than promised."""
    utilisation: float = 0.4
    """Share of it that training reaches; `benchmarks/throughput.py` measures it."""
    read_rate: str = "1G"
    """Bytes a second that the log is read with, by all ranks together."""

    def run(self) -> None:
        """Prints what it comes to."""
        from qtransformer.console import print_facts

        print_facts("Plan", self.facts())

    @property
    def sizes(self) -> Sizes:
        """The model."""
        images = number("frame-flops", self.frame_flops)
        depth = self.num_layers, self.num_action_layers, self.window
        observed = self.state_size, images, self.environment_steps, self.image_tokens
        sizes = Sizes(64, *depth, self.dimensions, self.num_bins, *observed)
        return replace(sizes, width=width_for(number("params", self.params), sizes))

    @property
    def updates(self) -> float:
        """Updates of the training."""
        return number("episodes", self.episodes) * self.episode_steps * self.passes / (self.batch_size * self.window)

    @property
    def flops(self) -> float:
        """Operations of the training."""
        return self.updates * update_flops(self.sizes, self.batch_size, self.activation_checkpointing)

    @property
    def memory(self) -> dict[str, float]:
        """Bytes on each device, by what takes them."""
        weights, segments = float(_BYTES * self.sizes.parameters), self.batch_size / self.num_devices
        kept = self.sizes.kept_numbers * _BYTES * segments / self.gradient_accumulation_steps
        if self.activation_checkpointing:  # the input of each block, and the inside of one
            blocks = self.num_layers + self.num_action_layers
            kept *= 1 / _KEPT_WIDTHS + 1 / blocks
        return {
            "weights and target network": 2 * weights,
            "Adam and gradients": 3 * weights,
            "activations": kept,
            "batch": segments * self.sizes.num_frames * self._frame,
        }

    @property
    def bytes_read(self) -> float:
        """Bytes of the log that batches are made of."""
        return self.updates * self.batch_size * self.sizes.num_frames * self._frame

    @property
    def hours(self) -> dict[str, float]:
        """Hours of computing and of reading; they pass at the same time."""
        for name, value in (("utilisation", self.utilisation), ("num-devices", self.num_devices)):
            if value <= 0:
                raise RunError(f"{name} ({value}) must be above 0; change --{name}")
        computed = self.flops / (number("device-flops", self.device_flops) * self.utilisation * self.num_devices)
        return {"computing": computed / 3600, "reading": self.bytes_read / number("read-rate", self.read_rate) / 3600}

    def facts(self) -> dict[str, str]:
        """Returns all of it in words."""
        hours, sizes = self.hours, self.sizes
        waits = max(hours, key=lambda name: hours[name])
        memory = {f"memory: {name}": f"{value / 1e9:.3g} GB" for name, value in self.memory.items()}
        return {
            "model": f"{sizes.parameters / 1e6:.4g} M parameters: --width {sizes.width}",
            "updates": f"{self.updates:,.0f} of {self.batch_size} segments",
            "operations": f"{self.flops / self.updates:.4g} an update, {self.flops:.4g} in all",
            **memory,
            "memory on each device": f"{sum(self.memory.values()) / 1e9:.3g} GB",
            "read": f"{self.bytes_read / 1e9:,.4g} GB",
            **{f"hours of {name}": f"{value:,.3g}" for name, value in hours.items()},
            "takes": f"{hours[waits]:,.3g} hours, bound by {waits}",
        }

    @property
    def _frame(self) -> float:
        return _BYTES * (self.state_size + self.dimensions + 2) + number("frame-bytes", self.frame_bytes)


def number(flag: str, text: str) -> float:
    """Returns 60M as 60,000,000.

    Raises:
        RunError: it is no such number.
    """
    suffix = text[-1:] if text[-1:] in _SUFFIXES else ""
    try:
        value = float(text.removesuffix(suffix)) * _SUFFIXES[suffix]
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise RunError(f"{flag} ({text}) must be a number like 60M or 1.5G (k, M, G, T, P); change --{flag}")
    return value


def _blocks(length: int, sequences: int, width: int) -> tuple[float, float]:
    """Returns the operations of one block on sequences of so many tokens, forward: of products and of attention."""
    return 24.0 * width**2 * length * sequences, 4.0 * length**2 * width * sequences
