"""Interrupted commands end at once, whatever they are doing, and leave nothing half-written."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import NoReturn

from lrp_jax.files import abandon

_GRACE = 0.5  # seconds that Python has to end by itself, after which it is ended
_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came."""


class Watch:
    """Ends the process soon after SIGINT or SIGTERM, with status 130 or 143; a context, for the main thread.

    Python raises KeyboardInterrupt when the main thread is back from what it called, which may take a minute, and then
    waits for other threads before it ends. So another thread, which sees the signal at once, gives it half a second. An
    interactive session goes on, if it can.
    """

    def __init__(self) -> None:
        self._done, self._silent = threading.Event(), threading.Lock()

    def __enter__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        if threading.current_thread() is not threading.main_thread():
            return  # signals are the main thread's
        self._writing.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._terminated = signal.getsignal(signal.SIGTERM)
        if self._terminated == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if not interrupted or hasattr(sys, "ps1"):
            self._done.set()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._before)
            signal.signal(signal.SIGTERM, self._terminated)
        self._writing.close()  # which ends the thread

    def say(self, number: int) -> int:
        """Say, once, that a signal ended the command; the exit status, as shells have it."""
        if self._silent.acquire(blocking=False):
            said = _SAID[signal.Signals(number)]
            print(f"lrp-jax: {said}; the files written so far are whole.", file=sys.stderr, flush=True)
        return 128 + number

    def _watch(self) -> None:
        with self._reading:
            while data := self._reading.recv(1):
                number = data[0]
                if number in _SAID and signal.getsignal(number) != signal.SIG_IGN and not self._done.wait(_GRACE):
                    abandon()
                    if sys.stderr.isatty():
                        sys.stderr.write("\x1b[?25h\n")  # the cursor, which a bar hides
                    os._exit(self.say(number))


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that raised it."""
    return signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    raise TerminatedError
