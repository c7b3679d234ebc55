"""Interrupted commands end at once, whatever they are doing, and leave nothing half-written."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from lrp_jax.files import abandon

_GRACE = 0.5  # seconds that Python has to end by itself, after which it is ended
_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process soon after SIGINT or SIGTERM, with status 130 or 143.

    Python raises KeyboardInterrupt when the main thread is back from what it called; a compilation takes a minute. The
    signal itself is seen at once by another thread, which gives Python some time and ends the process then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    terminated = signal.getsignal(signal.SIGTERM)
    if terminated == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    done = threading.Event()
    threading.Thread(target=_watch, args=(reading, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, terminated)
        writing.close()


def ended_by(error: KeyboardInterrupt) -> int:
    """Say what ended the command; the exit status, as shells have it."""
    return _said(signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT)


def _said(number: int) -> int:
    print(f"lrp-jax: {_SAID[signal.Signals(number)]}; the files written so far are whole.", file=sys.stderr, flush=True)
    return 128 + number


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    raise TerminatedError


def _watch(reading: socket.socket, done: threading.Event) -> None:
    """End the process when a signal has come that is one of these and the command is not done soon after."""
    with reading:
        while data := reading.recv(1):
            number = data[0]
            if number in _SAID and signal.getsignal(number) != signal.SIG_IGN and not done.wait(_GRACE):
                abandon()
                if sys.stderr.isatty():
                    sys.stderr.write("\x1b[?25h\n")  # the cursor, which a bar hides
                os._exit(_said(number))
