"""Episodes that a report shows: played with a run, and kept as moving pictures that need neither script nor player.

Special about this file: pictures are only shown. Where nothing can be drawn the episodes are played without, and why is
said. It must not know HTML.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from qtransformer.compare_sources import Play
from qtransformer.config import RunError
from qtransformer.console import progress
from qtransformer.evaluation import Plan, evaluate, make_environment
from qtransformer.loading import OpenedPolicy
from qtransformer.rollout import Rollout
from qtransformer.vectorization import Crash, Reset, open_environments
from qtransformer.video import captioned_frames, verdict

MOST_BYTES = 5_000_000  # of all clips of a page, before base64
_MOST_DRAWN = 6  # episodes, of which a success and a failure are shown
_MOST_FRAMES = 90  # of a clip
# Width in pixels and WebP quality, tried in this order until the clip is small enough.
_ENCODINGS = ((360, 75), (320, 50), (240, 35), (160, 20))


@dataclass(frozen=True)
class Clip:
    """A picture, or a moving one; WebP."""

    caption: str
    data: bytes


@dataclass(frozen=True)
class Played:
    """What came of playing: a document like that of `evaluate --json`, clips, and why there are none."""

    document: Mapping[str, Any]
    clips: tuple[Clip, ...]
    reason: str | None


def play_for_clips(opened: OpenedPolicy, play: Play, most: int) -> Played:
    """Plays the episodes of `play` and keeps its first success and its first failure, in at most `most` bytes each.

    Raises:
        RunError: there is no environment, it cannot be made, or all episodes crashed.
    """
    id_, kwargs = opened.environment(play.environment_id)
    plan = replace(play.plan, ignored_observations=opened.ignored_observations)
    chosen: dict[str, Rollout] = {}

    def look(rollout: Rollout) -> None:
        if rollout.is_drawn:
            chosen.setdefault(verdict(rollout), rollout)

    with progress(f"report: {opened.path}", plan.episodes) as advance:

        def run(plan: Plan, **settings: Any) -> Mapping[str, Any]:
            make = partial(make_environment, id_, {**kwargs, **settings}, play.imports)
            return evaluate(opened.policy, make, plan, lambda _: advance(), [look]).to_json()

        try:
            drawn = replace(plan, num_drawn=min(plan.episodes, _MOST_DRAWN))
            document, reason = run(drawn, render_mode="rgb_array"), None
        except RunError as error:
            document, reason = run(plan), str(error)  # where it is not the pictures that fail, this says so
    kept = [chosen[each] for each in ("success", "failure") if each in chosen]
    return Played(document, tuple(_clip(each, opened, most) for each in kept), reason)


def _clip(rollout: Rollout, opened: OpenedPolicy, most: int) -> Clip:
    frames = captioned_frames(rollout, opened.value_of())
    caption = f"seed {rollout.seed}: a {verdict(rollout)} after {len(frames) - 1} steps"
    return Clip(caption, encode(frames, rollout.render_fps, most))


def still(opened: OpenedPolicy, play: Play) -> Clip:
    """Returns a picture of how the first episode begins.

    Raises:
        RunError: there is no environment, or it cannot be made or drawn.
    """
    id_, kwargs = opened.environment(play.environment_id)
    make, seed = partial(make_environment, id_, {**kwargs, "render_mode": "rgb_array"}, play.imports), play.plan.seed
    with open_environments("sync", make, 1) as environments:
        reply = environments.answer({0: Reset(seed, is_drawn=True)})[0]
    if isinstance(reply, Crash) or reply.frame is None:
        raise RunError(f"{id_}: {reply.error if isinstance(reply, Crash) else 'gave no picture'}")
    return Clip(f"{id_}, the start of seed {seed}", encode([reply.frame], 1, MOST_BYTES))


def encode(frames: Sequence[np.ndarray], fps: int | float, most_bytes: int) -> bytes:
    """Returns a WebP that plays in real time, in the best encoding that is small enough, or in the smallest."""
    stride = -(-len(frames) // _MOST_FRAMES)
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames[::stride]]
    options = {"save_all": True, "duration": round(1000 * stride / fps), "loop": 0, "method": 3}
    data = b""
    for width, quality in _ENCODINGS:
        scale = min(1.0, width / pictures[0].width)
        size = (max(1, round(pictures[0].width * scale)), max(1, round(pictures[0].height * scale)))
        first, *rest = [each.resize(size, Image.Resampling.LANCZOS) for each in pictures]
        buffer = io.BytesIO()
        first.save(buffer, "WEBP", append_images=rest, quality=quality, **options)
        data = buffer.getvalue()
        if len(data) <= most_bytes:
            break
    return data
