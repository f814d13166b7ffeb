"""Compressed images in memory: what they are, and their pixels.

Special about this file: only JPEG and PNG are decoded, whatever else Pillow knows, since the bytes come from strangers.
"""

from __future__ import annotations

import io

import numpy as np

from ..schema import DatasetError


def compression(data: bytes) -> str | None:
    """Returns "jpeg" or "png" by a file's first bytes, None where they are neither."""
    if data[:2] == b"\xff\xd8":
        return "jpeg"
    return "png" if data[:8] == b"\x89PNG\r\n\x1a\n" else None


def decode(data: bytes, where: str) -> np.ndarray:
    """Returns (height, width, channels) uint8 of a JPEG or PNG file in memory; `where` names it in messages.

    Raises:
        DatasetError: the bytes are damaged, or claim more pixels than a camera has.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            mode = image.mode if image.mode in ("L", "RGB", "RGBA") else "RGB"
            pixels = np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where} is no readable JPEG or PNG ({error}); record or copy it again") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
