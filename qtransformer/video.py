"""Played episodes as pictures: an mp4 an episode, and one sheet with the first, middle and last picture of each.

Special about this file: what happened stands on a strip below each picture, never over it: verdict, seed, step, the
value Q that the policy gave its action, and the task. It must not know policies or environments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qtransformer.config import RunError, writing
from qtransformer.files import write_durably
from qtransformer.outcomes import CrashedEpisode
from qtransformer.rollout import Rollout

Listener = Callable[[Rollout], None]
ValueOf = Callable[[float], float]

_MIN_WIDTH = 320  # px: smaller pictures are enlarged, so that the strip can be read
_STRIP = 40  # px: two lines
_THUMBNAIL = 160  # px: width on the sheet
_LABEL = 210  # px: width of the words beside the thumbnails
_INK, _PAPER = (235, 235, 235), (24, 24, 24)
_COLOURS = {"success": (90, 210, 120), "failure": (240, 110, 90), "crashed": (240, 200, 80)}


@contextmanager
def open_videos(folder: Path, value_of: ValueOf | None) -> Iterator[Listener]:
    """Yields what writes each drawn episode to `folder`, as seed_<seed>_<verdict>.mp4.

    Args:
        folder: a new or empty one.
        value_of: turns Q in (0, 1) into what is shown; without it no Q is shown.

    Raises:
        RunError: `folder` holds something or cannot be written, or there is nothing to write videos with.
    """
    _require_av()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"--video {folder}: must be new or an empty folder, but holds something; choose another")
    with writing("--video", folder):
        folder.mkdir(parents=True, exist_ok=True)

    def take(rollout: Rollout) -> None:
        frames = captioned_frames(rollout, value_of)
        if frames:
            path = folder / f"seed_{rollout.seed:06d}_{verdict(rollout)}.mp4"
            with writing("--video", path):
                write_durably(path, lambda temporary: write_mp4(frames, rollout.render_fps, temporary))

    yield take


@contextmanager
def open_contact_sheet(path: Path) -> Iterator[Listener]:
    """Yields what adds each drawn episode as a row; the PNG is written at the end.

    Raises:
        RunError: `path` does not end in .png, or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise RunError(f"--contact-sheet {path}: must end in .png; change the name")
    rows: list[Image.Image] = []

    def take(rollout: Rollout) -> None:
        if rollout.is_drawn:
            rows.append(_row(rollout))

    yield take
    if rows:
        with writing("--contact-sheet", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, lambda temporary: _stacked(rows).save(temporary, "PNG"))


def verdict(rollout: Rollout) -> str:
    """Returns `success`, `failure` or `crashed`: at the last step, as in the success rate."""
    outcome = rollout.outcome()
    if isinstance(outcome, CrashedEpisode):
        return "crashed"
    return "success" if outcome.success else "failure"


def captioned_frames(rollout: Rollout, value_of: ValueOf | None) -> list[np.ndarray]:
    """Returns the pictures of an episode with their strips, (height, width, 3) uint8, both sizes even."""
    frames, words = _frames(rollout), verdict(rollout)
    values = [f"   Q {value_of(q):.3g}" for q in rollout.q_values] if value_of else []
    values += [""] * (len(frames) - len(values))  # no action is taken at the last step
    facts = [f"seed {rollout.seed}   step {step}/{len(frames) - 1}{value}" for step, value in enumerate(values)]
    return [
        np.asarray(_captioned(frame, (words, fact, rollout.task or "")))
        for frame, fact in zip(frames, facts, strict=False)
    ]


def write_mp4(frames: Sequence[np.ndarray], fps: float, path: Path) -> None:
    """Writes H.264 that any browser plays.

    Raises:
        RunError: the package `av` is missing, or has no encoder.
    """
    av = _require_av()
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # the other cores simulate
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _require_av():  # noqa: ANN202 - a module
    try:
        import av
    except ImportError as error:
        raise RunError(f"videos need the package av ({error}); pip install 'qtransformer[video]'") from error
    if "libx264" not in av.codecs_available:
        raise RunError("videos need an av with the encoder libx264, got one without; pip install --only-binary=av av")
    return av


def _frames(rollout: Rollout) -> list[np.ndarray]:
    return [step.frame for step in rollout.steps if step.frame is not None]


def _captioned(frame: np.ndarray, caption: tuple[str, str, str]) -> Image.Image:
    words, facts, task = caption
    scale = -(-_MIN_WIDTH // frame.shape[1]) if frame.shape[1] < _MIN_WIDTH else 1
    picture = Image.fromarray(frame).resize((frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (_even(picture.width), _even(picture.height + _STRIP)), _PAPER)
    canvas.paste(picture)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    draw.text((6, picture.height + 3), words, _COLOURS[words], font)
    draw.text((76, picture.height + 3), facts, _INK, font)
    draw.text((6, picture.height + 21), task, _INK, font)
    return canvas


def _row(rollout: Rollout) -> Image.Image:
    """Returns the words on an episode, and beside them its first, middle and last picture."""
    frames, words, outcome = _frames(rollout), verdict(rollout), rollout.outcome()
    thumbnails = [Image.fromarray(frames[index]) for index in (0, (len(frames) - 1) // 2, -1)] if frames else []
    thumbnails = [each.resize((_THUMBNAIL, _THUMBNAIL * each.height // each.width)) for each in thumbnails]
    height = max([each.height for each in thumbnails], default=3 * 20)
    row = Image.new("RGB", (_LABEL + 3 * _THUMBNAIL, max(height, 80)), _PAPER)
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(14)
    draw.text((6, 4), words, _COLOURS[words], font)
    end = outcome.error if isinstance(outcome, CrashedEpisode) else f"return {outcome.episode_return:.4g}"
    for line, text in enumerate((f"seed {rollout.seed}, {outcome.length} steps", end, rollout.task or ""), start=1):
        draw.text((6, 4 + 18 * line), _cut(text, font), _INK, font)
    for index, thumbnail in enumerate(thumbnails):
        row.paste(thumbnail, (_LABEL + index * _THUMBNAIL, 0))
    return row


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Returns the beginning of the text that fits beside the thumbnails."""
    while font.getlength(text) > _LABEL - 12:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _stacked(rows: Iterable[Image.Image]) -> Image.Image:
    rows, gap = list(rows), 2
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + gap for row in rows) - gap), (90, 90, 90))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return sheet


def _even(size: int) -> int:
    return size + size % 2  # H.264 with half the colours needs even sizes
