"""Signals as wishes: heard once, acted on by whoever asks, and the second one acts at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from qtransformer.signals import Stopped, stop_wish


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_a_signal_is_a_wish(number, name, status):
    before = signal.getsignal(number)
    with stop_wish() as wish:
        assert not wish.is_there
        os.kill(os.getpid(), number)
        assert (wish.is_there, wish.name) == (True, name)
        assert signal.getsignal(number) == before
        stopped = Stopped(wish, "saved")
        assert (str(stopped), stopped.exit_status) == (f"{name}: saved", status)
    assert signal.getsignal(number) == before


def test_the_second_signal_acts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with stop_wish() as wish:
        os.kill(os.getpid(), signal.SIGINT)
        assert wish.is_there
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="own"), stop_wish():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_never_wishes():
    found = []

    def work():
        with stop_wish() as wish:
            found.append((wish.is_there, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert found == [(False, before)]
