"""Turns on the run-time check of the shapes in signatures (jaxtyping with beartype), in tests only.

The hook rewrites modules as they are imported, so it is installed here, before any test imports `qtransformer`.
`torch.export` fails on rewritten functions: tests marked `export` run with JAXTYPING_DISABLE=1, in a call of their own.
"""

from __future__ import annotations

import os
import sys

import pytest

ARE_SHAPES_CHECKED = os.environ.get("JAXTYPING_DISABLE", "0") != "1"

if ARE_SHAPES_CHECKED:
    from jaxtyping import install_import_hook

    if "qtransformer" in sys.modules:
        raise RuntimeError("qtransformer must not be imported before tests/conftest.py, or its shapes go unchecked")
    install_import_hook("qtransformer", "beartype.beartype")

from qtransformer.pictures import choose_renderer  # noqa: E402 - after the hook, and before any test imports MuJoCo

choose_renderer()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, and skips, in a call with shape checks, what cannot pass under them.

    So several processes end at about the same time: none has a long file left when the others are done.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if not ARE_SHAPES_CHECKED:
        return
    for item in items:
        if item.get_closest_marker("export"):
            item.add_marker(pytest.mark.skip(reason="shape checks are on; run with JAXTYPING_DISABLE=1 -m export"))
