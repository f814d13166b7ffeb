"""Ctrl-C and SIGTERM as a wish that a loop grants between two of its steps, when everything can be saved.

Special about this file: it needs the standard library alone. It must not know what is stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopWish:
    """Whether somebody asked to stop."""

    def __init__(self, signal_number: int | None = None) -> None:
        """A wish that this signal set; without one, nobody asked yet."""
        self.signal_number = signal_number

    @property
    def is_there(self) -> bool:
        """A signal came."""
        return self.signal_number is not None

    @property
    def name(self) -> str:
        """What came, as users know it."""
        assert self.signal_number is not None
        return "Ctrl-C" if self.signal_number == signal.SIGINT else signal.Signals(self.signal_number).name


class Stopped(Exception):
    """Work was stopped by a signal and saved; the message says where it stands and how to go on."""

    def __init__(self, wish: StopWish, message: str) -> None:
        assert wish.signal_number is not None
        super().__init__(f"{wish.name}: {message}")
        self.exit_status = 128 + wish.signal_number
        """What a process that a signal ended exits with: 130 after Ctrl-C, 143 after SIGTERM."""


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Yields a wish that Ctrl-C and SIGTERM set; a second signal acts at once, as without this.

    Only the main thread hears signals: in another one, nobody ever wishes.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    def hear(signal_number: int, frame: FrameType | None) -> None:
        wish.signal_number = signal_number
        restore()

    for each in _SIGNALS:
        signal.signal(each, hear)
    try:
        yield wish
    finally:
        restore()
