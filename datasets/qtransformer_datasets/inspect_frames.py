"""A few frames of an episode as pictures that stand inside a page.

Special about this file: it is the one place of `inspect` that decodes images, three an episode. A frame that cannot be
read becomes a sentence, so that one damaged image does not hide the rest of the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape

import numpy as np

from .frames import Rows
from .inspect_print import visible
from .schema import DatasetError

_MAX_SIDE = 192  # pixels of a picture on the page: more only makes the page large


def episode_frames(rows: Rows) -> Iterator[tuple[int, str]]:
    """Yields row and picture, as HTML, of the first, the middle and the last frame.

    Raises:
        DatasetError: Pillow is not installed.
    """
    for row in sorted({0, len(rows) // 2, len(rows) - 1}):
        try:
            pixels = rows[row : row + 1][0]
        except DatasetError as error:
            yield row, f'<p class="none">{escape(visible(str(error)))}</p>'
        else:
            yield row, _picture(np.atleast_3d(pixels), row)


def _picture(pixels: np.ndarray, row: int) -> str:
    try:
        from PIL import Image
    except ImportError as error:
        raise DatasetError("pictures on the page need Pillow; pip install pillow, or leave out --html") from error
    channels = pixels.shape[-1]
    if pixels.dtype != np.uint8 or channels not in (1, 3, 4):
        return f'<p class="none">{channels} channels of {pixels.dtype} make no picture</p>'
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="row {row}" src="data:image/png;base64,{data}">'
