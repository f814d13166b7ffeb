"""Every code block of README, docs and benchmarks runs, or says why not and is looked at; what pages name exists.

Blocks of a page run in order, in an empty folder and one namespace, in this process; `documentation_fixtures` says how a
fence is read. So that all of them together take less than 100 s of CPU, `SMALL` there makes every training four updates
and every log a dozen episodes: that the blocks run is shown here, and not how well a policy becomes. A server is started
on a free port, which the blocks after it get in place of 8000. The pages run without shape checks, since they export.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from documentation_fixtures import ROOT, Block, PageRun, blocks_of, commands_of, indented_blocks, look_at, look_at_python

from qtransformer_datasets.finding import CODES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
GUIDE = ROOT / "docs" / "datasets.md"


@pytest.mark.export
@pytest.mark.parametrize("page", [each for each in PAGES if blocks_of(each)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    with PageRun() as run:
        for block in blocks_of(page):
            run.run(block)
