"""Takes a picture of the upper part of a page, as docs/report.png shows that of the demo's report.

    .venv/bin/qtransformer demo --out runs/demo
    .venv/bin/python docs/screenshot.py runs/demo/report.html docs/report.png

It needs Debian's package chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def browser() -> str | None:
    """Returns the path of the browser; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def screenshot(page: Path, width: int, height: int) -> Image.Image:
    """Returns the page as a window of that size shows it.

    Raises:
        RuntimeError: there is no browser, or it took no picture.
    """
    binary = browser()
    if binary is None:
        raise RuntimeError("a browser is needed; apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.png"
        places = (f"--user-data-dir={folder}", f"--window-size={width},{height}", f"--screenshot={target}")
        command = [binary, *FLAGS, *places, "--hide-scrollbars", "--virtual-time-budget=2000", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not target.exists():
            raise RuntimeError(f"{binary} took no picture: {done.stderr.strip()[-300:]}")
        return Image.open(io.BytesIO(target.read_bytes()))


def main() -> None:
    """Takes the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1214)
    asked = parser.parse_args()
    screenshot(asked.page, asked.width, asked.height).convert("RGB").save(asked.picture, optimize=True)
    print(f"{asked.picture}: {asked.picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
