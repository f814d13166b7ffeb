from pathlib import Path

LAYOUT = ""


def matches(path: Path) -> bool:
    return False
