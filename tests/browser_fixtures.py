"""A real browser without a window, and what the tests of pages ask it about the page that it shows."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "docs"))

from screenshot import FLAGS, browser  # pyright: ignore[reportMissingImports]

NEEDED = "needs a browser: apt-get install chromium chromium-driver, and pip install selenium"

# Elements that stick out of the window, but for those inside of a box that scrolls.
STICKING_OUT = """
const found = [], width = document.documentElement.clientWidth;  // without the bar that scrolls
for (const element of document.querySelectorAll('body *')) {
  const box = element.getBoundingClientRect();
  if (box.width === 0 || (box.right <= width + 0.5 && box.left >= -0.5)) continue;
  let above = element.parentElement, is_inside = false;
  while (above) {
    is_inside ||= ['auto', 'scroll'].includes(getComputedStyle(above).overflowX);
    above = above.parentElement;
  }
  if (!is_inside) found.push(element.tagName + ' ' + element.className + ' ' + box.left + ' to ' + box.right);
}
return found;
"""

# Text whose colour is too near to that of what it stands on: ratio below 4.5 by WCAG 2, of computed colours.
FAINT_TEXT = """
const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
const light = rgb => {
  const [r, g, b] = rgb.map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = element => {
  const layers = [];
  for (let each = element; each; each = each.parentElement) layers.push(parse(getComputedStyle(each).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
};
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let num = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
  num += 1;
  const style = getComputedStyle(element), below = ground(element);
  const ink = over(parse(element instanceof SVGElement ? style.fill : style.color), below);
  const [bright, dark] = [light(ink), light(below)].sort((a, b) => b - a);
  const ratio = (bright + 0.05) / (dark + 0.05);
  if (ratio < 4.5) found.push(ratio.toFixed(2) + ' ' + walker.currentNode.textContent.trim().slice(0, 40));
}
return [num, found];
"""


class Browser:
    """A driver, and what it saw while it opened a page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Shows a page in a window of that width to a reader who prefers that scheme."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # what was said before is of another page
        self.driver.get(page.resolve().as_uri())

    def ask(self, script: str) -> Any:
        """Returns what a script of the test finds in the page."""
        return self.driver.execute_script(script)

    def said(self) -> list[str]:
        """Returns errors and warnings of the console since the page was opened."""
        return [each["message"] for each in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Returns all that was asked for since the page was opened: itself, data inside of it, and nothing else."""
        messages = (json.loads(each["message"])["message"] for each in self.driver.get_log("performance"))
        sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each for each in sent if not each.startswith("data:")]


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Yields a browser that keeps its profile in `folder`; skips the test where there is none."""
    binary = browser()
    driver_path = shutil.which("chromedriver")
    if binary is None or driver_path is None:
        pytest.skip(NEEDED)
    pytest.importorskip("selenium", reason=NEEDED)
    from selenium.webdriver import Chrome, ChromeOptions  # pyright: ignore[reportMissingImports]
    from selenium.webdriver.chrome.service import Service  # pyright: ignore[reportMissingImports]

    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(driver_path))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
